"""A lockspace fails under libvirt's sanlock plugin: its own helper does what the domain's <on_lockfailure> says.

The plugin registers /usr/lib/libvirt/libvirt_sanlock_helper as the killpath of each guest, with the URI, the guest's uuid
and the action. Whatever serves sanlock's socket has to run it; it asks libvirtd to stop the guest or to suspend it, and a
suspended guest's lease is released by the plugin.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from tests.e2e.conftest import clean
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.test_leases_on_shared_storage import owner
from tests.support.leases import SPACE

pytestmark = pytest.mark.holdfast_only("is about sanlock's socket")


@pytest.fixture
def holdfast_lab(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """beta has Holdfast in sanlock's place."""
    yield from clean(request, make_lab(("holdfastd", "in sanlock's place"), "leases"))


@pytest.fixture
def sanlock_lab(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """beta has Debian's sanlock."""
    yield from clean(request, make_lab(("in sanlock's place", "sanlock"), "leases with sanlock's times"))


def test_guests_are_powered_off_and_paused_as_they_ask_when_their_lockspace_fails(holdfast_lab: Lab) -> None:
    _lockspace_fails(holdfast_lab, holdfast_lab.beta)
    said = holdfast_lab.lockd[holdfast_lab.beta].said
    assert said.count("running the killpath") == 2
    assert "SIGKILL" not in said


@pytest.mark.long
def test_the_same_with_the_real_sanlock(sanlock_lab: Lab) -> None:
    _lockspace_fails(sanlock_lab, sanlock_lab.beta)


def _lockspace_fails(lab: Lab, host: Host) -> None:
    """The host's record is overwritten: that is a failure at its next renewal."""
    web, mail = lab.storage.image("web"), lab.storage.image("mail")
    stopped = lab.vm(host, "stopped", web, on_lockfailure="poweroff")
    paused = lab.vm(host, "paused", mail, on_lockfailure="pause")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda vm: vm.start(), (stopped, paused)))
    qemu = stopped.process
    space = lab.storage.folder / "disk-leases" / SPACE
    left = _leave_record(space, host.number)
    try:
        until(lambda: not qemu.is_alive(), "the first guest's QEMU to end")
        stopped.wait_state("shut off")
        assert stopped.state == "shut off (destroyed)"  # by libvirt; a signal would be "shutdown"
        paused.wait_state("paused (user)")
        until(lambda: SPACE not in _status(host), "the lockspace to be left")
        assert "\nr " not in _status(host)
        assert paused.process.is_alive()
        assert "lock" in paused.refused("resume").lower()
    finally:
        _write_at(space, DEFAULT.delta_offset_bytes(host.number), left)
        lab.libvirtd[host].stop()  # the plugin adds its lockspace when libvirtd starts, and never again
        lab.libvirtd[host].start()
    paused.virsh("resume")
    assert owner(lab, mail) == host.number
    paused.assert_writes()
    lab.vm(lab.other(host), "thief", mail).refused("start")
    stopped.start()


def _status(host: Host) -> str:
    return host.run("sanlock", "client", "status")


def _leave_record(space: Path, host_id: int) -> bytes:
    """Write a host's record as nobody can renew it; returns it as its host would have left it."""
    offset = DEFAULT.delta_offset_bytes(host_id)
    with space.open("rb") as file:
        file.seek(offset)
        sector = file.read(DEFAULT.sector_bytes)
    lease = DeltaLease.decode(sector)
    assert isinstance(lease, DeltaLease)
    _write_at(space, offset, bytes(DEFAULT.sector_bytes))
    return replace(lease, timestamp=0).encode() + sector[DeltaLease.BYTES :]


def _write_at(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b", buffering=0) as opened:
        opened.seek(offset)
        opened.write(data)
