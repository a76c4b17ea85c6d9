"""Daemons that are away, or killed, at other moments of a migration than its live phase: rows of the specification's table.

at the begin         holdfastd of the source (row 1) or of the target (row 4) is away: the migration is refused
from RELEASE on      holdfastd of the source is away until the migration is over (row 2): it goes through
at the switch-over   a daemon is killed and started again while the source's RELEASE waits (rows 3, 9, 16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lab.fencing.guests import LabError
from lab.lvm.pause import Site
from lab.lvm.vm_host import VM, VmHost
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
