"""A VM goes there and back under strace: no two descriptors of the volume that may write overlap, and nobody else wrote.

Two orders are checked. By the guest's counter, which needs no clock: each count was written once, by the host whose turn it
was, and the host changes once per migration. By time: the clock of h2 is compared with h1's before and after, by the fastest
of 200 answers; the bound of the error is half of that answer's way, and what the difference has moved in between.
"""

from __future__ import annotations

from typing import Protocol

from lab.fencing.guests import LabError
from lab.lvm.open_log import NotShown
from lab.lvm.pause import Site, ahead, clock
from lab.lvm.vm_host import LV, VM, VmHost
from lab.lvm.volume_record import Record
from lab.lvm.write_trace import OPTIONS, shown, traced

MIGRATIONS = 2


class Counting(Site, Protocol):
    """What is needed of a `VolumeSuite`, besides."""

    @property
    def record(self) -> Record: ...


def case(site: Counting) -> str:
    """Begins and ends with an untraced VM."""
    site.both(lambda host: host.sh(f"rm -f /srv/*.trace.*; echo '{OPTIONS}' > /srv/trace"))
    before = _off(site)
    try:
        with clock(site):
            ahead_s, wrong_s = ahead(site)
            site.start_vm(site.at)
            site.settled(site.at)
            for _ in range(MIGRATIONS):
                source, target = site.at, site.other
                source.sh(f"virsh -q migrate --live --p2p {VM} qemu+tcp://{target.address}/system 2>&1")
                site.settled(target)
            after = _off(site)
            later_s, later_wrong_s = ahead(site)
    finally:
        site.both(lambda host: host.sh("rm -f /srv/trace"))
    ends = "until ! pgrep -x strace >/dev/null; do sleep .2; done"
    texts = [
        host.sh(f'timeout 60 bash -c "{ends}"; for f in /srv/*.trace.*; do echo "== $f"; cat $f; done')
        for host in (site.one, site.two)
    ]
    bound_s = max(wrong_s, later_wrong_s) + abs(later_s - ahead_s)
    try:
        found = shown(traced("h1", texts[0], LV, 0.0), traced("h2", texts[1], LV, ahead_s), before, after)
    except NotShown as e:
        raise LabError(str(e)) from None
    if found.least_gap_s <= bound_s or found.changes != MIGRATIONS:
        raise LabError(f"both could write: {found}, clocks compared to {bound_s:.4f} s")
    site.start_vm(site.at)
    site.settled(site.at)
    by_host = " and ".join(f"{count} by {host}" for host, count in found.writes.items())
    return (
        f"strace: {found.turns} descriptors that may write, at least {found.least_gap_s * 1000:.0f} ms between two hosts' "
        f"(clocks compared to {bound_s * 1000:.1f} ms); counts {before + 1} to {after}, each written once, {by_host}, "
        f"in {found.changes} changes of host"
    )


def _off(site: Counting) -> int:
    """The counter, when no guest runs."""
    host: VmHost = site.at
    host.sh(f"virsh destroy {VM} 2>&1")
    gone = f"[ ! -e {LV} ] && ! pgrep -f ^/usr/bin/qemu-system >/dev/null && echo gone; true"
    site.wait(lambda: host.sh(gone) == "gone", lambda: "the VM to be gone")
    seen = -1

    def is_still() -> bool:
        nonlocal seen
        before, seen = seen, site.record.count
        return before == seen

    site.wait(is_still, lambda: "the counter to be read twice the same")
    return seen
