"""Daemons that are away, or killed, at other moments of a migration than its live phase: rows of the specification's table.

at the start         holdfastd of the source (row 1) or of the target (row 4) is away: the migration is refused
from RELEASE on      holdfastd of the source is away until the migration is over (row 2): it goes through
at the switch-over   a daemon is killed and started again while the source's RELEASE waits (rows 3, 9, 16)
at each other step   of `STEPS`, each daemon on either side is killed and started again while everything waits there; which
                     host the VM ends on is libvirt's to decide then, and where libvirt leaves a paused guest, one command of
                     an administrator follows, which is said
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from lab.fencing.guests import LabError
from lab.lvm import gates
from lab.lvm.pause import Site
from lab.lvm.vm_host import LV, VM, State, VmHost
from lab.lvm.volume_record import Record

HOLDFASTD = "/srv/holdfastd.pid"
AT_SWITCH_OVER = (
    ("holdfastd", "source", "target"),
    ("holdfastd", "target", "target"),
    ("lvmlockd", "source", "target"),
    ("lvmlockd", "target", "target"),
    ("libvirtd", "source", "source"),
)
"""Which daemon, on which side, and where the VM is afterwards."""

DAEMONS = ("holdfastd", "lvmlockd", "libvirtd")
RELEASED = f"released {LV} for its migration"
"""What holdfastd logs of a RELEASE that a migration brings."""


class Migrating(Site, Protocol):
    """What is needed of a `VolumeSuite`, besides."""

    @property
    def record(self) -> Record: ...

    def live_phase(self) -> None: ...

    def let_end(self) -> None: ...

    def go_on(self) -> str: ...

    def migration_ended(self) -> str: ...

    def stands_still(self) -> bool: ...


def cases(site: Migrating) -> dict[str, Callable[[], str]]:
    """All of them, by name."""
    return {
        "holdfastd-of-source-away-at-begin": lambda: _away_at_begin(site, site.at),
        "holdfastd-of-target-away-at-begin": lambda: _away_at_begin(site, site.other),
        "holdfastd-of-source-away-from-release": lambda: _away_from_release(site),
        **{
            f"kill-{daemon}-of-{side}-at-switch-over": _killed(site, daemon, side, then)
            for daemon, side, then in AT_SWITCH_OVER
        },
        **{
            f"kill-{daemon}-of-{side}-{step}": _killed_at(site, gate, daemon, side)
            for step, gate in STEPS.items()
            for daemon in DAEMONS
            for side in ("source", "target")
        },
    }


@contextmanager
def switch_over(site: Migrating) -> Iterator[None]:
    """The guest stands, and the source's RELEASE waits for a holdfastd that is stopped; afterwards that goes on."""
    source = site.at
    source.sh(f"kill -STOP $(cat {HOLDFASTD})")
    try:
        site.let_end()
        # virsh's monitor commands would wait for the job that waits for the RELEASE.
        site.wait(site.stands_still, lambda: "the guest to stop for the switch-over")
        yield
    finally:
        source.sh(f"kill -CONT $(cat {HOLDFASTD})")


def _away_at_begin(site: Migrating, away: VmHost) -> str:
    source, target, boots = site.at, site.other, site.record.boots
    away.kill_daemon("holdfastd")
    said = source.is_refused(f"virsh -q migrate --live --p2p {VM} qemu+tcp://{target.address}/system")
    held = source.mode(site.uuid)
    if held != "ex":
        raise LabError(f"{source.name} has it {held}")
    away.start_daemon("holdfastd")
    settled = site.settled(source)
    _same(site, boots)
    return f"{said.splitlines()[0][:150]}; {settled}"


def _away_from_release(site: Migrating) -> str:
    source, target, boots = site.at, site.other, site.record.boots
    site.live_phase()
    source.kill_daemon("holdfastd")
    if "status 0" not in (ended := site.go_on()):
        raise LabError(f"the migration failed: {ended}")
    source.start_daemon("holdfastd")
    settled = site.settled(target)
    _same(site, boots)
    return settled


def _killed(site: Migrating, daemon: str, side: str, then: str) -> Callable[[], str]:
    def case() -> str:
        boots = site.record.boots
        ends = {"source": site.at, "target": site.other}
        struck = ends[side]
        site.live_phase()
        with switch_over(site):
            struck.kill_daemon(daemon)
            struck.start_daemon(daemon)
        ended = site.migration_ended()
        if ("status 0" in ended) is not (then == "target"):
            raise LabError(f"the migration ended otherwise: {ended}")
        settled = site.settled(ends[then])
        _same(site, boots)
        return settled

    return case


def _same(site: Migrating, boots: int) -> None:
    if site.record.boots != boots:
        raise LabError("the guest has booted again")


@contextmanager
def _at_prepare(site: Migrating) -> Iterator[None]:
    """The target's hook asks, and waits for a source that does not go to shared mode: its holdfastd is stopped."""
    source, target = site.at, site.other
    source.sh(f"kill -STOP $(cat {HOLDFASTD})")
    try:
        _migrate(site)
        asks = "pgrep -f '[h]oldfast-qemu-hook.* prepare' >/dev/null && echo yes; true"
        site.wait(lambda: target.sh(asks) == "yes", lambda: "the target's hook to ask")
        yield
    finally:
        source.sh(f"kill -CONT $(cat {HOLDFASTD})")


@contextmanager
def _when_shared(site: Migrating) -> Iterator[None]:
    """Both have it in shared mode, and the target's QEMU is not there."""
    source, target = site.at, site.other
    with gates.closed(target, "past-holdfast", "prepare"):
        _migrate(site)
        _reached(site, target, "past-holdfast")
        modes = source.mode(site.uuid), target.mode(site.uuid)
        if modes != ("sh", "sh"):
            raise LabError(f"source and target have it {modes}")
        yield


@contextmanager
def _before_acquire(site: Migrating) -> Iterator[None]:
    """The source has released it, and the target's holdfastd, which is asked for it next, is stopped."""
    source, target = site.at, site.other
    before = len(source.logged(RELEASED))
    site.live_phase()
    target.sh(f"kill -STOP $(cat {HOLDFASTD})")
    try:
        site.let_end()
        site.wait(lambda: len(source.logged(RELEASED)) > before, lambda: "the RELEASE at the source")
        site.wait(site.stands_still, lambda: "the guest to stop for the switch-over")
        yield
    finally:
        target.sh(f"kill -CONT $(cat {HOLDFASTD})")


@contextmanager
def _after_acquire(site: Migrating) -> Iterator[None]:
    """The target's QEMU is to continue the guest, and waits before it opens the volume for writing."""
    target = site.other
    with gates.closed(target, "open"):
        _migrate(site)
        _reached(site, target, "open")
        yield


@contextmanager
def _before_release(site: Migrating) -> Iterator[None]:
    """The guest runs on the target, the source's QEMU has ended, and its hook has not been called for that."""
    source = site.at
    with gates.closed(source, "before-holdfast", "release"):
        _migrate(site)
        _reached(site, source, "before-holdfast")
        yield


STEPS: dict[str, Callable[[Migrating], AbstractContextManager[None]]] = {
    "at-prepare": _at_prepare,
    "when-shared": _when_shared,
    "before-acquire": _before_acquire,
    "after-acquire": _after_acquire,
    "before-release": _before_release,
}
"""Beside those above: the migration stands at that step inside the block."""


def _migrate(site: Migrating) -> None:
    site.at.in_background(
        "migrate", f"virsh migrate --live --p2p {VM} qemu+tcp://{site.other.address}/system"
    )


def _reached(site: Migrating, host: VmHost, gate: gates.Gate) -> None:
    def is_so() -> bool:
        if said := site.at.ended("migrate"):
            raise LabError(f"the migration ended before gate {gate}: {said}")
        return gates.is_reached(host, gate)

    site.wait(is_so, lambda: f"the migration to be at gate {gate}")


def _killed_at(
    site: Migrating, step: Callable[[Migrating], AbstractContextManager[None]], daemon: str, side: str
) -> Callable[[], str]:
    def case() -> str:
        boots = site.record.boots
        struck = site.at if side == "source" else site.other
        with step(site):
            struck.kill_daemon(daemon)
            struck.start_daemon(daemon)
        ended = site.migration_ended()
        owner, by_hand = _at_rest(site)
        settled = site.settled(owner)
        _same(site, boots)
        went = "went through" if "status 0" in ended else f"failed ({ended.splitlines()[0][:120]})"
        return f"the migration {went}{by_hand}; {settled}"

    return case


def _at_rest(site: Migrating) -> tuple[VmHost, str]:
    """The host that the VM is on once libvirt is done with the migration, and what was done by hand for it."""
    source, target = site.at, site.other
    done: list[str] = []
    owner: VmHost | None = None
    seen = (State(), State())

    def is_over() -> bool:
        nonlocal owner, seen
        seen = here, there = source.now(site.uuid), target.now(site.uuid)
        if (here.state, here.job, there.qemus) == ("running", "", 0):
            owner = source
        elif (there.state, there.job, here.qemus) == ("running", "", 0):
            owner = target
        elif (there.state, there.job, here.state, here.qemus) == ("running", "", "paused", 1):
            done.append("destroyed at the source")
            source.sh(f"virsh destroy {VM} 2>&1; true")
        elif (here.state, there.state, there.qemus) == ("paused", "", 0):
            done.append("resumed at the source")
            source.sh(f"virsh resume {VM} 2>&1; true")
        return owner is not None

    site.wait(is_over, lambda: f"the VM to be on one host; source: {seen[0]}; target: {seen[1]}; {done}")
    assert owner is not None
    return owner, f", by hand: {', '.join(dict.fromkeys(done))}" if done else ""
