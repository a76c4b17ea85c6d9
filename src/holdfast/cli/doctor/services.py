"""Checks of the daemon itself: does it answer, is what it says in order, does it have the configuration on disk?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from holdfast.cli.commands import maintenance
from holdfast.cli.commands.status import with_keys
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Program, Scene
from holdfast.cli.in_force import not_loaded
from holdfast.control.api import (
    CONFIGURATION_PROBLEM,
    IDENTITY_PROBLEM,
    MIGRATION_PROBLEM,
    MOVED_PROBLEM,
    StatusInfo,
)

START = "systemctl enable --now holdfastd.socket holdfastd.service"


def permission(scene: Scene) -> Iterator[Finding]:
    """What this user can't see would be missing without a word."""
    if scene.not_permitted or not scene.host.root():
        yield found(
            "HF004",
            "this user is not root: libvirt's files, locks and processes of others can't be seen, and what is "
            "said below is not "
            "all" + (f" ({scene.unreachable})" if scene.not_permitted else ""),
            "sudo holdfast doctor",
        )


def daemon(scene: Scene) -> Iterator[Finding]:
    if scene.status is None:
        if not scene.not_permitted:
            yield _silent(scene)
        return
    s = scene.status
    yield fine("daemon", f"holdfastd {s.version}, pid {s.pid}, {s.locks} locks of {s.owners} owners")
    if s.journal != "ok":
        yield found(
            "HF005",
            f"{scene.config.journal_path} can't be written: {s.journal}; no new lock is granted",
            f"free space on the file system of {scene.config.run_dir}: df {shlex.quote(scene.config.run_dir)}",
        )
    yield from _problems(scene, s)
    for waiting in s.storage_waiting:
        yield found(
            "HF006", f"it does not answer: {waiting}", "check that the storage responds (dmesg, its own log)"
        )
    yield from _locks(scene)
    if not s.descriptor_store:
        yield found(
            "HF009",
            "no descriptor store: a crash of holdfastd frees its locks until it is started again",
            "run it by packaging/systemd/holdfastd.service",
        )


def _silent(scene: Scene) -> Finding:
    """Nobody answers: is the daemon not there, or can it not be reached?"""
    running = daemons(scene)
    hidden = scene.mounts.mounted_at(scene.config.run_dir)
    if running and hidden is not None and hidden.point not in ("/", "/run"):
        return found(
            "HF027",
            f"holdfastd (pid {running[0].pid}) runs, but {scene.config.run_dir} is a mount ({hidden.type} from "
            f"{hidden.source}) that "
            "hides its socket and its journal",
            f"umount {shlex.quote(scene.config.run_dir)}; holdfast status",
        )
    if running:
        return found(
            "HF003",
            f"{scene.unreachable}; holdfastd runs as pid {running[0].pid}",
            "journalctl -u holdfastd -n 50",
        )
    if virtlockds(scene):
        return found(
            "HF003",
            scene.unreachable,
            "first see the finding about virtlockd; started now, holdfastd would refuse",
        )
    return found("HF003", scene.unreachable, START)


def daemons(scene: Scene) -> list[Program]:
    """Processes of holdfastd, as the unit starts it or as Python."""
    return [
        each
        for each in scene.programs()
        if not each.elsewhere
        and (each.name == "holdfastd" or any(word.endswith("/holdfastd") for word in each.arguments[:3]))
    ]


def virtlockds(scene: Scene) -> list[Program]:
    return [each for each in scene.programs("virtlockd") if each.uid == 0]


def _problems(scene: Scene, s: StatusInfo) -> Iterator[Finding]:
    if s.maintenance_since is not None:
        yield found("HF013", maintenance.words(s), "holdfast maintenance status")
    for problem in s.problems:
        if problem.startswith(MIGRATION_PROBLEM):
            yield found(
                "HF011",
                problem,
                "update holdfast to a version that knows this libvirt; until then migrate VMs paused (virsh suspend)",
            )
        elif problem.startswith(MOVED_PROBLEM):
            facts, _, fix = problem.rpartition("; ")
            yield found("HF092", facts, fix)
        elif problem.startswith(IDENTITY_PROBLEM):
            facts, what, fix = problem.partition("; if two VMs have it")
            yield found("HF096", facts, f"{what[2:]}{fix}")
        elif problem.startswith(CONFIGURATION_PROBLEM):
            # A reload changes nothing that a lock needs: one that would is refused, with the reasons.
            yield found(
                "HF002", with_keys(problem, not_loaded(scene.config, scene.in_force)), "holdfast reload"
            )
        else:
            yield found("HF010", problem, f"df {shlex.quote(scene.config.run_dir)}; holdfast status")


def not_in_force(scene: Scene) -> Iterator[Finding]:
    """Row 17: edited, and not loaded. The daemon itself says when it could not load it."""
    s = scene.status
    if s is None or any(each.startswith(CONFIGURATION_PROBLEM) for each in s.problems):
        return
    if edited := not_loaded(scene.config, scene.in_force):
        yield found("HF002", f"not loaded since it was edited: {edited}", "holdfast reload")


def _locks(scene: Scene) -> Iterator[Finding]:
    for lock in scene.locks:
        # The name of a lock may begin with a dash or hold a quote.
        ask = f"holdfast who -- {shlex.quote(lock.resource)}"
        if lock.unknown:
            yield found(
                "HF007",
                f"{lock.resource} is held, but its owner could not be attributed ({lock.unknown}). It is released "
                f"when no "
                "process of this host has the disk open. Were its lockspace lost before, this host would be reset",
                ask,
            )
        elif not lock.held:
            yield found("HF008", f"{lock.resource} of {lock.owner} (pid {lock.pid}): {lock.lost_reason}", ask)
