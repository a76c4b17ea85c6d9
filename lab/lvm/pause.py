"""How long a guest stands still in a live migration: with `driver = "lvm"`, and with no lock manager and no hook at all.

From QEMU's event STOP on the source to its event RESUME on the target, as each libvirtd has logged them, by the clock of h1.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lab.fencing.guests import LabError
from lab.lvm.host import IN_GUEST
from lab.lvm.vm_host import DAEMONS, LV, VM, VmHost

RUNS = 10
LIBVIRTD_LOG = "/var/log/libvirt/libvirtd.log"
HOOK_PLACE, HOOK_AWAY = "/etc/libvirt/hooks/qemu.d/holdfast", "/root/hook-away"
EVENT = re.compile(r'"seconds": (\d+), "microseconds": (\d+)\}, "event": "')
START_LIBVIRTD = (
    f"rm -f {DAEMONS['libvirtd']}; setsid libvirtd -d --listen -f /etc/libvirt/libvirtd.conf </dev/null >>/srv/libvirtd.out "
    "2>&1; for _ in $(seq 400); do virsh -q uri >/dev/null 2>&1 && exit 0; sleep .2; done; exit 1"
)


class Site(Protocol):
    """What is needed of a `VolumeSuite`."""

    one: VmHost
    two: VmHost
    at: VmHost
    uuid: str

    @property
    def other(self) -> VmHost: ...

    def both(self, step: Callable[[VmHost], object]) -> None: ...

    def start_vm(self, host: VmHost) -> None: ...

    def settled(self, owner: VmHost) -> str: ...

    def grows(self) -> None: ...

    def wait(self, happened: Callable[[], bool], what: Callable[[], str], timeout_s: float = ...) -> None: ...


def measured(site: Site) -> str:
    """Medians, least and greatest of `RUNS` migrations each, in milliseconds."""
    with clock(site):
        ours = [_migrated(site, lambda: site.settled(site.at)) for _ in range(RUNS)]
        with unlocked(site):
            none = [_migrated(site, site.grows) for _ in range(RUNS)]
    found = {"with": ours, "without": none}
    texts = [
        f"{name} {statistics.median(each):.0f} ({min(each):.0f} to {max(each):.0f})"
        for name, each in found.items()
    ]
    return f"pause in ms of {RUNS} migrations each: {', '.join(texts)}; {json.dumps(found)}"


@contextmanager
def clock(site: Site) -> Iterator[None]:
    site.two.sh(f"setsid {IN_GUEST}/clock serve </dev/null >/dev/null 2>&1 & echo $! > /srv/clock.pid")
    try:
        yield
    finally:
        site.two.sh("kill $(cat /srv/clock.pid)")


def ahead(site: Site) -> tuple[float, float]:
    """By how many seconds the clock of h2 is ahead of h1's, and by how many that may be wrong; inside of `clock`."""
    ahead_s, wrong_s = map(float, site.one.sh(f"{IN_GUEST}/clock ask {site.two.address}").split())
    return ahead_s, wrong_s


def _migrated(site: Site, settle: Callable[[], object]) -> float:
    """One migration; its pause in milliseconds."""
    source, target = site.at, site.other
    source.sh(f"virsh -q migrate --live --p2p {VM} qemu+tcp://{target.address}/system 2>&1")
    site.at = target
    settle()
    ahead_s, _ = ahead(site)
    stopped_s, resumed_s = (
        _last(host, event) - (ahead_s if host is site.two else 0)
        for host, event in ((source, "STOP"), (target, "RESUME"))
    )
    if not 0 < resumed_s - stopped_s < 60:
        raise LabError(f"that is no pause: STOP at {stopped_s}, RESUME at {resumed_s}")
    return round((resumed_s - stopped_s) * 1000, 1)


def _last(host: VmHost, event: str) -> float:
    """When QEMU said it last, by that host's clock."""
    line = host.sh(f'grep \'RECV_EVENT.*"event": "{event}"\' {LIBVIRTD_LOG} | tail -1')
    found = EVENT.search(line)
    if found is None:
        raise LabError(f"{host.name}: no {event} in {line!r}")
    return int(found[1]) + int(found[2]) / 1e6


@contextmanager
def unlocked(site: Site, hook: str = "", *, runs: bool = True) -> Iterator[None]:
    """Without lock manager and Holdfast's hook; the VM runs on h1, or (not `runs`) nowhere, and has run before.

    Without another `hook` the volume is active in shared mode on both hosts all the time.
    """

    def bare(host: VmHost) -> None:
        for daemon in ("libvirtd", "holdfastd"):
            host.kill_daemon(daemon)
        host.sh(f"mv {HOOK_PLACE} {HOOK_AWAY}; sed -i '/lock_manager/d' /etc/libvirt/qemu.conf")
        if hook:
            host.put(HOOK_PLACE, hook.encode())
            host.sh(f"chmod 755 {HOOK_PLACE}")
        else:
            host.lvm(f"lvchange -asy {LV}")
        host.sh(START_LIBVIRTD)

    def guarded(host: VmHost) -> None:
        host.sh(f"rm -f {HOOK_PLACE}")
        host.lvm(f"for n in 1 2 3 4 5; do lvchange -an {LV} && break; sleep 1; done")
        host.kill_daemon("libvirtd")
        host.virt_up()

    gone = f"for _ in $(seq 120); do [ -e {LV} ] || exit 0; sleep .5; done; exit 1"
    site.at.sh(f"virsh destroy {VM}; {gone}")
    site.both(bare)
    if runs:
        site.start_vm(site.one)
        site.grows()
    try:
        yield
    finally:
        if runs:
            site.at.sh(f"virsh destroy {VM}")
        site.both(guarded)
        site.start_vm(site.one)
        site.settled(site.one)
