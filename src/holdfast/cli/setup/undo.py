"""`holdfast setup --undo`: the files as they were, virtlockd's units as they were, and holdfastd disabled.

Refused while a VM has a lock in holdfastd: virtlockd knows nothing of locks that were taken before it started, so a VM would
run without any. Refused before anything is changed where somebody has edited a file since.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from holdfast.cli.doctor import units
from holdfast.cli.doctor.scene import Host, Scene
from holdfast.cli.doctor.services import daemons, virtlockds
from holdfast.cli.setup.execute import Say, StepFailed, run
from holdfast.cli.setup.plan import GC_TIMER, HOLDFAST_UNITS
from holdfast.cli.setup.record import FileKept, Record, digest
from holdfast.cli.setup.survey import active_libvirt_units
from holdfast.system.files.regular_file import replace_regular


def refusals(record: Record, scene: Scene) -> list[str]:
    """Why it is not undone; empty if it may be."""
    found = [
        f"{each.path} was edited since setup wrote it; {_compare(record, each)}" for each in edited(record)
    ]
    return found + holders(scene)


def edited(record: Record) -> list[FileKept]:
    """Files that are neither as they were nor as setup wrote them."""
    return [each for each in record.kept.files if _now(each.path) not in (each.before, *each.after)]


def _compare(record: Record, kept: FileKept) -> str:
    if not kept.backup:
        return "there was no such file before: move it away, and undo again"
    backup = os.path.join(record.directory, kept.backup)
    return f"compare it with what was there (diff {backup} {kept.path}), copy that over it, and undo again"


def _now(path: str) -> str:
    try:
        with open(path, "rb") as f:
            return digest(f.read())
    except FileNotFoundError:
        return ""
    except OSError:
        return "unreadable"


def holders(scene: Scene) -> list[str]:
    """Who would lose a lock."""
    if scene.status is None:
        if daemons(scene):
            return [f"holdfastd runs and does not answer ({scene.unreachable}): who has locks is not known"]
        if waiting := list(units.left_by_a_switch(scene)):
            return [
                f"{each.facts}; run holdfast setup, which has holdfastd take them, before anything is undone"
                for each in waiting
            ]
        if virtlockds(scene):
            return []  # setup was stopped before virtlockd was: it still has every lock, and nothing here stops it
        running = [each.name for each in scene.running() if each.state != "paused"]
        if running:
            return [
                f"holdfastd does not run, and {', '.join(running)} may have locks in its journal: start it (systemctl start "
                "holdfastd), or end these VMs"
            ]
        return []
    names = [f"{each.name or 'a process'} (pid {each.pid})" for each in scene.owners if each.locks]
    names += [f"an unknown owner of {each.resource}" for each in scene.locks if each.unknown]
    if not names:
        return []
    return [
        f"{', '.join(names)} have locks in holdfastd, and virtlockd can't take them over: suspend or migrate these VMs "
        "(virsh suspend VM), undo again, and resume them"
    ]


def undo(record: Record, look: Callable[[], Scene], host: Host, say: Say) -> None:
    """All of it; raises `StepFailed`, and can be called again then. Lockspaces on shared storage stay."""
    libvirt = active_libvirt_units(host)
    wanted = [*libvirt, *(each for each in record.kept.libvirt_active if each not in libvirt)]
    say("stop libvirt, so that no VM starts meanwhile; VMs run on")
    complete = record.kept.complete
    record.undo_begins(wanted)
    if libvirt:
        run(("systemctl", "stop", *libvirt))
    if left := refusals(record, look()):
        if libvirt:
            run(("systemctl", "start", *libvirt))
        record.undo_is_refused(complete=complete)
        raise StepFailed("; ".join(left))
    # What was enabled before setup stays.
    ours = [
        each
        for each in (GC_TIMER, *HOLDFAST_UNITS)
        if each not in record.kept.enabled and _in_use(host, each)
    ]
    if ours:
        say(f"stop and disable {', '.join(ours)}")
        run(("systemctl", "disable", "--now", *ours))
    for each in reversed(record.kept.files):
        _restore(record, each, say)
    run(("systemctl", "daemon-reload"))
    if enable := [each for each in record.kept.enabled if each in units.VIRTLOCKD_UNITS]:
        say(f"enable {', '.join(enable)}")
        run(("systemctl", "enable", *enable))
    if start := [each for each in record.kept.active if each in units.VIRTLOCKD_UNITS]:
        say(f"start {', '.join(start)}")
        run(("systemctl", "start", *start))
    if any(each in record.kept.enabled for each in HOLDFAST_UNITS):
        say("holdfastd, which ran before setup, loads the configuration that was restored")
        run(("systemctl", "try-reload-or-restart", "holdfastd.service"))
    if wanted:
        say(f"start {', '.join(wanted)}")
        run(("systemctl", "start", *wanted))
    place = record.kept.wishes.place
    if place and not any(each in record.kept.enabled for each in HOLDFAST_UNITS):
        say(
            f"virtlockd sees no lease in {place}: start no VM here whose disk a host of that lockspace may have open"
        )
    if wrong := [each.path for each in record.kept.files if _now(each.path) != each.before]:
        raise StepFailed(f"{', '.join(wrong)}: not as before; {record.directory} has the copies")
    record.remove()


def _in_use(host: Host, name: str) -> bool:
    unit = host.unit(name)
    return unit.get("ActiveState") == "active" or unit.get("UnitFileState") == "enabled"


def _is_owned_as_before(kept: FileKept) -> bool:
    try:
        there = os.stat(kept.path)
    except FileNotFoundError:
        return not kept.backup
    return (there.st_mode & 0o7777, there.st_uid, there.st_gid) == (kept.mode, kept.uid, kept.gid)


def _restore(record: Record, kept: FileKept, say: Say) -> None:
    if _now(kept.path) == kept.before and _is_owned_as_before(kept):
        return
    try:
        if kept.backup:
            say(f"restore {kept.path}")
            owner = (kept.uid, kept.gid)
            replace_regular(kept.path, record.backup_of(kept), durable=True, mode=kept.mode, owner=owner)
        else:
            say(f"remove {kept.path}")
            os.unlink(kept.path)
    except OSError as e:
        raise StepFailed(f"{kept.path}: {e.strerror}; {record.directory} has the copy") from None
    if kept.run:
        run(kept.run)
