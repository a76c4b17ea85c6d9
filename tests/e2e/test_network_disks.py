"""Disks that QEMU reaches over a network: libvirt asks a lock for none of them, its hook does where a rule names them."""

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.lab.domains import NetworkDisk
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image

pytestmark = pytest.mark.holdfast_only("virtlockd has no hook")

TARGET = "iqn.2026-11.lab.alpha:web"


@contextlib.contextmanager
def served_by_nbd(host: Host, image: Image) -> Iterator[NetworkDisk]:
    """The image as an export of a server on this host."""
    command = ("qemu-nbd", "-t", "-f", "raw", "-x", "web", "-e", "8", "-b", host.address, image.path)
    server = host.spawn("nbd", *command)
    until(lambda: ":10809" in host.run("ss", "-ltn"), "the NBD server to listen")
    yield NetworkDisk("nbd", "web", host.address)
    server.process.kill()


@contextlib.contextmanager
def served_by_iscsi(host: Host, image: Image) -> Iterator[NetworkDisk]:
    """The image as a unit of an iSCSI target on this host."""
    server = host.spawn("tgtd", "tgtd", "-f", "--iscsi", f"portal={host.address}:3260")
    until(lambda: ":3260" in host.run("ss", "-ltn"), "the iSCSI target to listen")
    new = ("tgtadm", "--lld", "iscsi", "--op", "new", "--tid", "1")
    host.run(*new, "--mode", "target", "-T", TARGET)
    host.run(*new, "--mode", "logicalunit", "--lun", "1", "-b", image.path)
    host.run("tgtadm", "--lld", "iscsi", "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
    yield NetworkDisk("iscsi", f"{TARGET}/1", host.address)
    server.process.kill()


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
@pytest.mark.parametrize("server", [served_by_nbd, served_by_iscsi])
def test_second_start_is_refused_on_both_hosts_also_after_a_migration(
    hooked_lab: Lab, server: Callable[[Host, Image], contextlib.AbstractContextManager[NetworkDisk]]
) -> None:
    lab = hooked_lab
    image = lab.storage.image("web")
    with server(lab.alpha, image) as disk:
        holder = lab.vm(lab.alpha, "web1", disk)
        holder.virsh("start")
        holder.assert_writes(image)
        second = {host: lab.vm(host, f"web-{host.name}", disk) for host in lab.hosts}
        for host in lab.hosts:
            error = second[host].refused("start")
            assert f"holdfast: Lockspace resource '{disk.protocol}:" in error, error
            assert f"is locked by VM web1 (uuid {holder.domain.uuid}" in error, error
        (lock,) = json.loads(lab.lockd[lab.alpha].holdfast("list", "--json"))
        assert (lock["owner"], lock["protection"], lock["known_by"]) == ("web1", 2, "name")
        holder.migrate(lab.beta)
        holder.assert_writes(image)
        for host in lab.hosts:
            assert "is locked by VM web1" in second[host].refused("start")
        holder.virsh("suspend")
        assert "is locked by VM web1" in second[lab.alpha].refused("start")
        holder.destroy()
        second[lab.alpha].virsh("start")
        second[lab.alpha].assert_writes(image)
        second[lab.alpha].destroy()
