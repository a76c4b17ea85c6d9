"""What an operator reads: the same truth on the host that holds a disk and on the host that was refused."""

import json
from typing import Any

import pytest

from tests.e2e.lab.domains import Disk
from tests.e2e.lab.hosts import CommandError, Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.storage import Image

pytestmark = pytest.mark.holdfast_only("asks the holdfast command")


def who(lab: Lab, host: Host, subject: str) -> tuple[int, dict[str, Any]]:
    """`holdfast who` on a host: exit code and answer."""
    try:
        code, said = 0, lab.lockd[host].holdfast("who", subject, "--json")
    except CommandError as answer:
        code, said = answer.code, answer.stdout
    return code, json.loads(said)


def test_who_names_the_holder_on_either_host(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    code, answer = who(lab, lab.alpha, disk.path)
    assert (code, answer["verdict"]) == (0, "held")
    assert [(h["owner"], h["pid"], h["host"]) for h in answer["holders"]] == [("web1", vm.inner_pid, "alpha")]
    code, answer = who(lab, lab.beta, disk.path)
    assert (code, answer["verdict"]) == (0, "held")
    if lab.mode == "indirect":
        assert "VM web1" in answer["headline"] and "on host alpha" in answer["headline"]
    vm.destroy()
    lab.wait_free(disk)
    for host in lab.hosts:
        assert who(lab, host, disk.path)[0] == 3


def test_who_follows_a_migration(lab: Lab) -> None:
    disk = lab.storage.image("web")
    vm = lab.vm(lab.alpha, "web1", disk).start()
    vm.migrate(lab.beta)
    assert "on host beta" in who(lab, lab.alpha, disk.path)[1]["headline"]
    assert who(lab, lab.beta, disk.path)[1]["holders"][0]["owner"] == "web1"


def test_who_without_a_daemon_never_calls_a_written_disk_safe(lab: Lab) -> None:
    disk = lab.storage.image("web")
    lab.vm(lab.alpha, "web1", disk).start()
    lab.lockd[lab.alpha].kill()
    for host in lab.hosts:
        _, answer = who(lab, host, disk.path)
        assert answer["verdict"] != "free", (host.name, answer)
        assert "can be started" not in answer["next_step"], (host.name, answer)
        assert "web1" in json.dumps(answer)


def test_list_shows_each_disk_once_with_owner_and_protection(direct_lab: Lab) -> None:
    lab = direct_lab
    disk, shared, device = lab.storage.image("web"), lab.storage.image("cluster"), lab.device("sda")
    vm = lab.vm(
        lab.alpha, "web1", Disk(disk), Disk(shared, "vdb", shareable=True), Disk(device, "vdc")
    ).start()
    listed = json.loads(lab.lockd[lab.alpha].holdfast("list", "--json"))
    assert {(lock["resource"], lock["mode"], lock["owner"], lock["pid"]) for lock in listed} == {
        (image.path, mode, "web1", vm.inner_pid)
        for image, mode in ((disk, "exclusive"), (shared, "shared"), (device, "exclusive"))
    }
    protection = {lock["resource"]: lock["protection"] for lock in listed}
    assert protection[device.path] == 2  # the rule's folder reaches all hosts
    vm.virsh("suspend")
    assert json.loads(lab.lockd[lab.alpha].holdfast("list", "--json")) == []


@pytest.mark.without_hook("what the hook holds has other names, and events of its own")
def test_events_tell_a_guests_life(lab: Lab) -> None:
    disk = lab.storage.image("web")
    lockd = lab.lockd[lab.alpha]
    before = len(kinds_of(lab, disk))
    vm = lab.vm(lab.alpha, "web1", disk).start()
    lab.vm(lab.alpha, "web2", disk).refused("start")
    vm.virsh("suspend")
    vm.virsh("resume")
    vm.kill_qemu()
    lab.wait_free(disk)
    assert kinds_of(lab, disk)[before:] == [
        ("acquired", "web1"), ("refused", "web2"), ("released", "web1"), ("acquired", "web1"), ("released",
        "web1"),
    ], lockd.holdfast("events")  # fmt: skip


def kinds_of(lab: Lab, disk: Image) -> list[tuple[str, str]]:
    """Kind and owner of alpha's events about a disk."""
    events = (json.loads(line) for line in lab.lockd[lab.alpha].holdfast("events", "--json").splitlines())
    return [(e["kind"], e["owner"]) for e in events if lab.lock_file(disk).name in e["resource"]]
