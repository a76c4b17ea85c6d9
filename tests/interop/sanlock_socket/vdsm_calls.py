"""What oVirt's vdsm asks of sanlock, played with the same module in the same order (sanlock-socket.md 4.4).

A storage domain is a lockspace of its id: the volume `ids`, the volume `leases` with the lease SDM of the host that manages
the pool (SPM), and the volume `xleases` with the leases of VMs, whose index vdsm keeps itself.
"""

from __future__ import annotations

from pathlib import Path

from tests.interop.sanlock.direct import blank_file
from tests.interop.sanlock_socket.python_client import PythonClient, Transcript, disk
from tests.interop.sanlock_socket.scene import IO_TIMEOUT_S
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import MIB

DOMAIN = b"0d1e5f0c-5f0f-4bd1-9b8b-1c1f5a8f2b11"
SDM = b"SDM"
SDM_AT = MIB
SLOTS_AT = 3 * MIB
"""Of VMs' leases: behind a place for a lockspace, vdsm's index and one that nobody uses."""
EVENT_S = 15
LIVE = 3


class Domain:
    """A storage domain on two hosts, each with a vdsm and what it has registered."""

    def __init__(self, t: Transcript) -> None:
        place = t.scene.place
        self.ids = str(blank_file(place / "ids", 2 * MIB))
        self.leases = blank_file(place / "sdm-leases", 2 * MIB)
        self.xleases = blank_file(place / "xleases", 8 * MIB)
        self.vdsms = (t.client(t.scene.one), t.client(t.scene.two))
        self.one, self.two = (t.writes(f"vdsm {number}", vdsm) for number, vdsm in enumerate(self.vdsms, 1))

    @property
    def sdm(self) -> list[tuple[str, int]]:
        return disk(self.leases, SDM_AT)

    def slot(self, number: int) -> list[tuple[str, int]]:
        return disk(self.xleases, SLOTS_AT + number * MIB)


def vdsm(t: Transcript) -> None:
    domain = Domain(t)
    _creates(domain)
    _gets_host_ids(domain)
    spm = _starts_spm(domain)
    _leases_of_vms(t, domain)
    _events(domain)
    _stops_spm(domain, spm)
    for host_id, call in ((1, domain.one), (2, domain.two)):
        call("rem_lockspace", DOMAIN, host_id, domain.ids, wait=True, unused=True)
        call("inq_lockspace", DOMAIN, host_id, domain.ids)


def _creates(domain: Domain) -> None:
    domain.one("write_lockspace", DOMAIN, domain.ids, iotimeout=IO_TIMEOUT_S, align=MIB, sector=512)
    domain.one("write_resource", DOMAIN, SDM, domain.sdm, align=MIB, sector=512)


def _gets_host_ids(domain: Domain) -> None:
    """In the background; its monitor asks until the host id is there, and whether it still is."""
    for host_id, call in ((1, domain.one), (2, domain.two)):
        call("inq_lockspace", DOMAIN, host_id, domain.ids)
        call("add_lockspace", DOMAIN, host_id, domain.ids, iotimeout=IO_TIMEOUT_S, wait=False)
        call("inq_lockspace", DOMAIN, host_id, domain.ids)
    for host_id, call in ((1, domain.one), (2, domain.two)):
        call("inq_lockspace", DOMAIN, host_id, domain.ids, wait=True)
        call("add_lockspace", DOMAIN, host_id, domain.ids, iotimeout=IO_TIMEOUT_S, wait=False)
    wait_until(lambda: all(_lives(vdsm, each) for vdsm in domain.vdsms for each in (1, 2)), "two hosts")
    for call in (domain.one, domain.two):
        call("get_hosts", DOMAIN, 1)
        call("get_hosts", DOMAIN, 2)
        call("get_hosts", DOMAIN, 250)


def _lives(vdsm: PythonClient, host_id: int) -> bool:
    found = vdsm("get_hosts", DOMAIN, host_id)
    return isinstance(found, list) and [each["flags"] for each in found] == [LIVE]


def _starts_spm(domain: Domain) -> object:
    fd = domain.one("register")
    domain.one("acquire", DOMAIN, SDM, domain.sdm, slkfd=fd, lvb=True)
    _asks_for_the_owner(domain)
    twos = domain.two("register")
    domain.two("acquire", DOMAIN, SDM, domain.sdm, slkfd=twos, lvb=True)
    domain.two("close", twos)
    domain.one("set_lvb", DOMAIN, SDM, domain.sdm, b'{"generation": 1}')
    domain.one("get_lvb", DOMAIN, SDM, domain.sdm, 512)
    return fd


def _asks_for_the_owner(domain: Domain) -> None:
    """Another host: the lease's name, its owners, and how the owner is."""
    for call in (domain.one, domain.two):
        call("read_resource", *domain.sdm[0], align=MIB, sector=512)
        owners = call("read_resource_owners", DOMAIN, SDM, domain.sdm, align=MIB, sector=512)
        assert isinstance(owners, list)
        for owner in owners:
            call("get_hosts", DOMAIN, owner["host_id"])


def _leases_of_vms(t: Transcript, domain: Domain) -> None:
    """Made and removed by the SPM; taken for a VM's process, whose connection libvirt has registered."""
    for number, name in enumerate((b"vm-1", b"vm-2")):
        domain.one("read_resource", *domain.slot(number)[0])
        domain.one("write_resource", DOMAIN, name, domain.slot(number), align=MIB, sector=512)
        domain.two("read_resource", *domain.slot(number)[0])
    qemus = [(t.client(host), call) for host, call in ((t.scene.one, domain.one), (t.scene.two, domain.two))]
    for qemu, call in qemus:
        qemu("register")
        call("acquire", DOMAIN, b"vm-1", domain.slot(0), pid=qemu.pid)
        call("inquire", pid=qemu.pid)
    qemus[0][0].close()
    quiet = domain.vdsms[1]
    wait_until(lambda: quiet("read_resource_owners", DOMAIN, b"vm-1", domain.slot(0)) == [], "the VM's end")
    domain.two("acquire", DOMAIN, b"vm-1", domain.slot(0), pid=qemus[1][0].pid)
    domain.one("read_resource_owners", DOMAIN, b"vm-1", domain.slot(0))
    # Removed: a name of no bytes, or cleared, as the version of vdsm is. Its slot is used again.
    domain.one("write_resource", b"", b"", domain.slot(1), align=MIB, sector=512)
    domain.two("read_resource", *domain.slot(1)[0])
    domain.one("write_resource", DOMAIN, b"vm-2", domain.slot(1), clear=True)
    domain.two("read_resource", *domain.slot(1)[0])
    domain.one("write_resource", DOMAIN, b"vm-3", domain.slot(1))
    domain.two("read_resource", *domain.slot(1)[0])


def _events(domain: Domain) -> None:
    """Both ways at once."""
    fds = [call("reg_event", DOMAIN) for call in (domain.one, domain.two)]
    for sender, receiver, event in ((domain.one, 2, 5), (domain.two, 1, 6)):
        sender("set_event", DOMAIN, receiver, 0, event, data=event * 10, flags=1)
    for call, fd, event in ((domain.one, fds[0], 6), (domain.two, fds[1], 5)):
        call("wait_event", fd, event, EVENT_S)
        call("end_event", fd, DOMAIN)


def _stops_spm(domain: Domain, fd: object) -> None:
    domain.one("release", DOMAIN, SDM, domain.sdm, slkfd=fd)
    _asks_for_the_owner(domain)
    twos = domain.two("register")
    domain.two("acquire", DOMAIN, SDM, domain.sdm, slkfd=twos, lvb=True)
    domain.two("get_lvb", DOMAIN, SDM, domain.sdm, 512)
    _asks_for_the_owner(domain)
    domain.two("close", twos)
    quiet = domain.vdsms[0]
    wait_until(lambda: quiet("read_resource_owners", DOMAIN, SDM, domain.sdm) == [], "the second SPM's end")


# --- a fencing agent ---


def fencing(t: Transcript) -> None:
    """By sanlock's command: who is there, who holds the victim's lease, that it shall go, and that it has gone."""
    place, one, two = blank_file(t.scene.place / "fence", 4 * MIB), t.scene.one, t.scene.two
    resource = f"LS:h1:{place}:{MIB}"
    t.command("two", two, "client", "init", "-r", resource)
    victim = t.client(one)
    fd = victim("register")
    victim("acquire", b"LS", b"h1", disk(place, MIB), slkfd=fd)
    t.command("two", two, "client", "host_status", "-s", "LS")
    t.command("two", two, "client", "inq_lockspace", "-s", f"LS:2:{t.scene.lockspace.disk.path}:0")
    t.command("two", two, "client", "read", "-r", resource, "-h", "1")
    t.command("two", two, "direct", "read_leader", "-r", resource)
    t.command("two", two, "client", "command", "-r", resource, "-c", "/bin/echo", "fenced")
    t.command("one", one, "client", "inquire", "-p", str(victim.pid))
    t.command("two", two, "client", "request", "-r", f"{resource}:1", "-f", "1")
    t.command("two", two, "client", "request", "-r", f"{resource}:2", "-f", "1")
    t.say("victim ends", victim.wait_ended(EVENT_S))
    quiet = t.client(two)
    wait_until(
        lambda: quiet("read_resource_owners", b"LS", b"h1", disk(Path(place), MIB)) == [], "its release"
    )
    t.command("two", two, "client", "read", "-r", resource, "-h", "1")
    t.command("two", two, "client", "command", "-r", resource, "-c", "/bin/echo", "fenced")
    t.command("two", two, "client", "examine", "-s", f"LS:2:{t.scene.lockspace.disk.path}:0")
