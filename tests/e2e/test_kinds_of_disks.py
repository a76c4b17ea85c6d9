"""Disks that are no file in the XML: volumes, which libvirt locks by their path, and network disks, which it locks never."""

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import pytest

from tests.e2e.lab.domains import NetworkDisk, Volume
from tests.e2e.lab.hosts import CommandError, Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused

pytestmark = pytest.mark.holdfast_only("asks the holdfast command")


def asked(lab: Lab, host: Host, *arguments: str) -> Any:
    """What a command of the operator says on a host, whatever its exit code."""
    try:
        said = lab.lockd[host].holdfast(*arguments, "--json")
    except CommandError as answer:
        said = answer.stdout
    return json.loads(said)


def findings(lab: Lab, host: Host, subject: str) -> set[str]:
    return {each["id"] for each in asked(lab, host, "doctor") if subject in each["facts"]}


@pytest.fixture
def pool(direct_lab: Lab) -> Iterator[str]:
    """A storage pool of alpha's that has the shared images."""
    host = direct_lab.alpha
    host.virsh("pool-define-as", "shared", "dir", "--target", "/srv/images")
    host.virsh("pool-start", "shared")
    yield "shared"
    if "shared" in host.virsh("pool-list", "--name"):
        host.virsh("pool-destroy", "shared")
    host.virsh("pool-undefine", "shared")


def test_volume_is_locked_by_its_path_and_known_by_it(direct_lab: Lab, pool: str) -> None:
    lab = direct_lab
    image = lab.storage.image("web")
    lab.alpha.virsh("pool-refresh", pool)
    vm = lab.vm(lab.alpha, "web1", Volume(pool, PurePath(image.path).name))
    vm.virsh("start")
    vm.assert_writes(image)
    (lock,) = asked(lab, lab.alpha, "list")
    assert (lock["resource"], lock["owner"]) == (image.path, "web1")
    assert not findings(lab, lab.alpha, "web1")
    second = lab.vm(lab.beta, "web2", image)
    assert_refused(second.refused("start"))
    lab.alpha.virsh("pool-destroy", pool)
    assert not findings(lab, lab.alpha, "web1"), "the pool is still defined"


def test_network_disk_has_no_lock_and_every_command_says_so(direct_lab: Lab) -> None:
    lab = direct_lab
    image = lab.storage.image("web")
    server = lab.alpha.spawn("nbd", "qemu-nbd", "-t", "-f", "raw", "-x", "export1", "-e", "4", image.path)
    until(lambda: ":10809" in lab.alpha.run("ss", "-ltn"), "the NBD server to listen")
    vm = lab.vm(lab.alpha, "web1", NetworkDisk("nbd", "export1"))
    vm.virsh("start")
    vm.assert_writes(image)
    name = "nbd://localhost:10809/export1 (vda)"
    (listed,) = asked(lab, lab.alpha, "list")
    assert (listed["resource"], listed["owner"], listed["protection"]) == (name, "web1", 0)
    assert findings(lab, lab.alpha, name) == {"HF083"}
    answer = asked(lab, lab.alpha, "who", "web1")
    assert (answer["verdict"], answer["headline"]) == ("held", f"runs with {name} without a lock")
    vm.destroy()
    server.process.kill()
