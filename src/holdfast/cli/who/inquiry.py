"""`holdfast who`: everything that can be known about who holds a disk, and what may safely be done next.

Three steps: `gather` reads every source into frozen `evidence`, `verdict` concludes from it, `report` puts both into what
is shown. Here is only what the question may mean: a path, the key of a `<lease>`, a hash, a
lease of sanlock's clients, or a VM.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace

from holdfast.cli.who.client_leases import named
from holdfast.cli.who.evidence import Evidence, Judged, VmEvidence
from holdfast.cli.who.gather import Sources
from holdfast.cli.who.report import Answer, about_disk, about_vm
from holdfast.cli.who.verdict import conclude, conclude_vm
from holdfast.config import Config
from holdfast.system.libvirt.domains import Domain

DISKS_SHOWN_MAX = 64
_WITHOUT_PATH = re.compile(r"[a-z][a-z0-9+]*:.*/")
"""A name such as nbd://host:10809/export, rbd:pool/image: no VM and no path is called so."""


def ask(config: Config, socket: str, what: str, *, root: str = "/") -> Answer:
    """The answer for a path, or for a VM's name or UUID. `root`: where libvirt's files are."""
    with Sources(config, socket, root) as sources:
        if (lease := named(what)) is not None and not os.path.exists(what):
            evidence = sources.client_lease(lease)
            if lease.path or evidence.holders or sources.has_lockspace(lease.lockspace):
                return about_disk(evidence, conclude(evidence))
        if _WITHOUT_PATH.match(what) and not os.path.exists(what):
            evidence = sources.disk_without_path(what)
            return about_disk(evidence, conclude(evidence))
        if "/" in what or os.path.exists(what):
            return _disk(sources, os.path.abspath(what))
        return _lock(sources, what) or _lease(sources, what) or _vm(sources, what)


def _disk(sources: Sources, path: str, *, is_lock_file: bool = False) -> Answer:
    evidence = sources.disk(path, is_lock_file=is_lock_file)
    return about_disk(evidence, conclude(evidence))


def _lock(sources: Sources, name: str) -> Answer | None:
    """By the key of a `<lease>`, or a hash: the holders of a lock of that name here; None if there is none."""
    holders = sources.locks_named(name)
    if not holders:
        return None
    first = holders[0]
    answer = _disk(sources, first.path or first.resource) if first.path.startswith("/") else Answer(name)
    if not answer.holders:
        verdict = conclude(Evidence(answer.subject, daemon=tuple(holders)))
        answer = replace(
            answer,
            holders=holders,
            verdict=verdict.state,
            headline=verdict.headline,
            next_step=verdict.next_step,
        )
    answer.subject = f"{name} ({first.resource})"
    return answer


def _lease(sources: Sources, key: str) -> Answer | None:
    """By the key of a `<lease>` that nobody has here: its file says whether another host has it."""
    answers = [_disk(sources, path, is_lock_file=True) for path in sources.lease_files(key)]
    if not answers:
        return None
    answer = next((each for each in answers if each.verdict != "free"), answers[0])
    others = [each.subject for each in answers if each is not answer]
    if others:
        answer.notes.append(f"other leases have this key too: holdfast who {shlex.join(others)}")
    answer.subject = f"{key} ({answer.subject})"
    return answer


def _vm(sources: Sources, name: str) -> Answer:
    """By its name or UUID: its claims, and each of its disks."""
    claims = sources.claims_of(name)
    paths = sources.disks_of(name, claims)
    judged: list[Judged] = []
    answers: list[Answer] = []
    for path in paths[:DISKS_SHOWN_MAX]:
        disk = sources.disk(path)
        verdict = conclude(disk)
        judged.append(Judged(path, verdict))
        answers.append(about_disk(disk, verdict))
    unasked = max(0, len(paths) - DISKS_SHOWN_MAX)
    domain = sources.domain(name)
    evidence = VmEvidence(
        name,
        sources.host,
        claims,
        tuple(judged),
        unasked,
        domain,
        isinstance(domain, Domain) and domain.runs(),
    )
    return about_vm(evidence, conclude_vm(evidence), answers, is_root=sources.is_root)
