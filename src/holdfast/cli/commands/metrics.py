"""`holdfast metrics`: what `status`, `list`, `lockspace list` and `events` say, in Prometheus' text format.

For node_exporter's textfile collector: a daemon that can't be reached is a metric too. Names and labels stay the same over
releases; the daemon counts nothing for this, so events are those that it still keeps (the newest 1000), not counters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from holdfast.cli.commands.status import Answer
from holdfast.control.api import HolderInfo, LeaseSpaceInfo
from holdfast.manager.events import KINDS
from holdfast.system.files.regular_file import replace_regular

HELP = {
    "up": "Whether holdfastd answers.",
    "info": "Version and host of holdfastd.",
    "start_time_seconds": "When holdfastd began, in seconds since 1970.",
    "owners": "VMs and other processes that are known.",
    "locks": "Locks that are held.",
    "locks_lost": "Locks of running owners that somebody else has.",
    "locks_unknown": "Locks held for owners that could not be attributed.",
    "connections": "Connections of libvirt's.",
    "connections_max": "As many as are served at once.",
    "journal_ok": "Whether the journal can be written: else no lock is granted.",
    "descriptor_store": "Whether locks outlive a crash of holdfastd.",
    "storage_waiting": "Storage that does not answer.",
    "degraded": "Reasons for which `holdfast status` is red.",
    "disk_protection": "What a disk's lock is worth: 0 none, 1 this host, 2 all hosts, 3 with fencing.",
    "lockspace_joined": "Whether this host is in the lockspace: else its disks can't be started.",
    "lockspace_fenced": "Whether a watchdog resets this host when it loses the lockspace.",
    "lockspace_age_seconds": "Since the last renewal.",
    "lockspace_bound_seconds": "The age at which the lockspace is lost.",
    "lockspace_leases": "Leases held there.",
    "lockspace_hosts": "Hosts that this one sees there, by state.",
    "events_kept": "Events by kind among the newest that holdfastd keeps since its start; no counter.",
}

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


def samples(answer: Answer, locks: Sequence[HolderInfo], kinds: Sequence[str]) -> Iterator[Sample]:
    """Of a daemon that answers; ``kinds`` are those of the events that it keeps."""
    s = answer.daemon
    yield "up", {}, 1
    yield "info", {"version": s.version, "host": s.host}, 1
    yield "start_time_seconds", {}, s.started
    for name in ("owners", "locks", "locks_lost", "locks_unknown", "connections", "connections_max"):
        yield name, {}, getattr(s, name)
    yield "journal_ok", {}, s.journal == "ok"
    yield "descriptor_store", {}, s.descriptor_store
    yield "storage_waiting", {}, len(s.storage_waiting)
    yield "degraded", {}, len(answer.degraded)
    seen = set()
    for lock in (*locks, *answer.unlocked):
        labels = {"disk": lock.resource, "vm": lock.owner, "pid": str(lock.pid), "backend": lock.backend}
        if (key := tuple(labels.values())) not in seen:  # a disk may be held twice by one owner
            seen.add(key)
            # A lost lock excludes nobody, whatever it was worth.
            lost = not lock.held and lock.source == "holdfastd"
            yield "disk_protection", labels, 0 if lost else lock.protection
    for space in answer.spaces:
        yield from _of_lockspace(space)
    kept = Counter(kinds)
    for kind in KINDS:
        yield "events_kept", {"kind": kind}, kept[kind]


def _of_lockspace(space: LeaseSpaceInfo) -> Iterator[Sample]:
    labels = {"lockspace": space.name}
    yield "lockspace_joined", labels, space.state == "joined"
    yield "lockspace_fenced", labels, space.fenced
    yield "lockspace_leases", labels, space.leases
    if space.renewed_s_ago is not None and space.fails_in_s is not None:
        yield "lockspace_age_seconds", labels, space.renewed_s_ago
        yield "lockspace_bound_seconds", labels, space.renewed_s_ago + space.fails_in_s
    for state, number in sorted(Counter(each.state for each in space.hosts).items()):
        yield "lockspace_hosts", {**labels, "state": state}, number


UNREACHABLE: tuple[Sample, ...] = (("up", {}, 0),)


def text(found: Sequence[Sample]) -> str:
    """The exposition format 0.0.4: each family once, with its help, and its samples together."""
    lines = []
    for name, words in HELP.items():
        ours = [each for each in found if each[0] == name]
        if ours:
            lines += [f"# HELP holdfast_{name} {words}", f"# TYPE holdfast_{name} gauge"]
        lines += [f"holdfast_{name}{_labels(labels)} {float(value):.17g}" for _, labels, value in ours]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """A path may hold any byte but NUL."""
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(path: str, content: str) -> None:
    """All of it or nothing, as the collector wants it, and readable for all; raises OSError."""
    replace_regular(path, content.encode())
    os.chmod(path, 0o644)
