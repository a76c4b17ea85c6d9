"""`holdfast who` on disks that a VM uses without a lock of its own; and disks that libvirt never locks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.doctor.machine import domain_xml, status

from holdfast import config as configuration
from holdfast.backends.file import owner_record
from holdfast.cli.commands.status import Answer as Status
from holdfast.cli.unlocked import unlocked_disks
from holdfast.cli.who.inquiry import ask
from holdfast.cli.who.report import Answer
from holdfast.model import Mode, OwnerName
from holdfast.system.files.ofd_lock import IoFailed, SystemLockFiles

BACKING = "<disk type='file'><source file='{top}'/><backingStore type='file'><source file='{base}'/></backingStore></disk>"
ISO = "<disk type='file' device='cdrom'><source file='{base}'/><readonly/></disk>"
READ = "<disk type='file'><source file='{base}'/><readonly/></disk>"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.touch()
    return path


def running(root: Path, name: str, *disks: str, pid: int = 0) -> None:
    path = root / f"run/libvirt/qemu/{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<domstatus state='running' pid='{pid or os.getpid()}'>{domain_xml(name, *disks)}</domstatus>"
    )


def asked(root: Path, path: Path | str) -> Answer:
    config = root / "holdfast.toml"
    config.write_text(f'run_dir = "{root}/run"\nstate_dir = "{root}/state"\n')
    return ask(configuration.load(str(config), environ={}, uid=0), f"{root}/none", str(path), root=str(root))


@pytest.mark.parametrize(
    ("disk", "how"),
    [(BACKING, "as the image below its own"), (ISO, "to read"), (READ, "to read")],
    ids=["backing image", "ISO", "read-only disk"],
)
def test_disk_that_a_running_vm_uses_without_a_lock_is_not_called_free(
    tmp_path: Path, base: Path, disk: str, how: str
) -> None:
    assert asked(tmp_path, base).verdict == "free"
    running(tmp_path, "web1", disk.format(base=base, top=tmp_path / "top.img"))
    answer = asked(tmp_path, base)
    assert (answer.verdict, answer.headline) == ("held", f"in use by VM web1 {how}")
    assert answer.next_step == "other VMs may read it too; nothing may write to it while they run"


def test_vm_that_has_ended_uses_nothing(tmp_path: Path, base: Path) -> None:
    running(tmp_path, "web1", ISO.format(base=base), pid=(1 << 22) + 1)
    assert asked(tmp_path, base).verdict == "free"


def test_disks_that_libvirt_never_locks_are_at_level_0_in_list_and_status(tmp_path: Path) -> None:
    running(
        tmp_path,
        "ceph",
        "<disk type='network'><source protocol='rbd' name='pool/image'/><target dev='vda'/></disk>",
    )
    (disk,) = unlocked_disks(list, str(tmp_path))
    assert (disk.resource, disk.owner, disk.protection, disk.held) == (
        "rbd:pool/image (vda)",
        "ceph",
        0,
        False,
    )
    answer = Status(status(), [], [disk])
    assert answer.as_object()["unlocked_disks"] == [
        {"disk": "rbd:pool/image (vda)", "owner": "ceph", "reason": "libvirt's lock plugin never asks for it"}
    ]
    assert answer.degraded == [], "nothing has failed: it is what libvirt does"


LEASE = "<lease><lockspace>space</lockspace><key>key1</key><target path='{target}'/></lease>"


def test_key_of_a_lease_element_leads_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    file = tmp_path / "space/key1"
    record = owner_record.encode(
        OwnerName("other", "u", 1), host="beta", pid=9, mode=Mode.EXCLUSIVE, since_wall_s=1.0
    )
    file.write_bytes(record)
    running(tmp_path, "web1", LEASE.format(target=tmp_path))
    answer = asked(tmp_path, "key1")
    assert (answer.verdict, answer.subject) == ("unknown", f"key1 ({file})")
    assert "its lock file names VM other" in answer.headline
    holder = SystemLockFiles()
    opened = holder.open(str(file), create=False)
    assert not isinstance(opened, IoFailed)
    assert holder.lock(opened.fd, Mode.EXCLUSIVE, str(file)) is None
    try:
        answer = asked(tmp_path, "key1")
        assert answer.verdict == "held", answer
    finally:
        holder.close(opened.fd)
    assert asked(tmp_path, "key2").headline == "holds nothing that is known here"
    assert "for a <lease>: holdfast who TARGET/LOCKSPACE/KEY" in asked(tmp_path, "key2").next_step


# --- a VM and each of its disks ---

NBD = (
    "<disk type='network'><source protocol='nbd' name='export1'><host name='localhost' port='10809'/></source>"
    "<target dev='vda'/></disk>"
)
VOLUME = "<disk type='volume'><source pool='images' volume='web.img'/><target dev='vda'/></disk>"
UNKNOWN = "<disk type='ram'><source size='1'/><target dev='vda'/></disk>"


def lines(answer: Answer, layer: str) -> list[str]:
    return [line for each in answer.layers if each.name == layer for line in each.lines]


@pytest.mark.parametrize(
    ("disk", "name", "why"),
    [
        (NBD, "nbd://localhost:10809/export1 (vda)", "libvirt's lock plugin never asks for it"),
        (UNKNOWN, "type='ram' (vda)", "whether libvirt asks a lock for it is not known"),
    ],
    ids=["network", "unknown"],
)
def test_vm_with_a_disk_that_libvirt_never_locks_is_named(
    tmp_path: Path, disk: str, name: str, why: str
) -> None:
    """public-reports.md 5, script r10."""
    running(tmp_path, "web1", disk)
    answer = asked(tmp_path, "web1")
    assert (answer.verdict, answer.headline) == ("held", f"runs with {name} without a lock")
    (line,) = lines(answer, "not locked")
    assert line.startswith(f"{name}: protection 0: {why}")
    (listed,) = unlocked_disks(list, str(tmp_path))
    assert (listed.resource, listed.protection) == (name, 0)
    assert listed.protection_note.startswith(why)
    running(tmp_path, "web1", disk, pid=(1 << 22) + 1)
    assert asked(tmp_path, "web1").verdict != "held", "it has ended"


def test_disk_without_a_path_is_asked_for_by_its_name(tmp_path: Path) -> None:
    name = "nbd://localhost:10809/export1"
    answer = asked(tmp_path, name)
    assert (answer.subject, answer.verdict) == (name, "unknown"), "another host may use it"
    running(tmp_path, "web1", NBD)
    answer = asked(tmp_path, name)
    assert (answer.verdict, answer.headline) == ("held", "in use by VM web1 without a lock")
    assert lines(answer, "libvirt")[0].endswith("without a lock: libvirt's lock plugin never asks for it")
    (tmp_path / "run/libvirt/qemu/web1.xml").write_text("<domstatus")
    answer = asked(tmp_path, name)
    assert (answer.verdict, len(answer.notes)) == ("unknown", 1)
    running(
        tmp_path, "web2", NBD.replace("protocol='nbd' name='export1'", "protocol='rbd' name='pool/image'")
    )
    assert asked(tmp_path, "rbd:pool/image").headline == "in use by VM web2 without a lock"
    socket = "nbd+unix:///export1?socket=/run/nbd.sock"
    assert f"holdfast who '{socket}'" in asked(tmp_path, socket).next_step, "safe to paste"
    assert asked(tmp_path, "vhostuser:/run/vhost.sock").subject == "vhostuser:/run/vhost.sock"
    file = tmp_path / "rbd:pool"
    file.mkdir()
    (file / "image").touch()
    assert asked(tmp_path, file / "image").subject == str(file / "image")


def test_running_vm_with_a_volume_that_can_not_be_found_is_not_called_free(tmp_path: Path) -> None:
    running(tmp_path, "web1", VOLUME)
    answer = asked(tmp_path, "web1")
    assert (answer.verdict, answer.headline) == (
        "unknown",
        "can't be told: the path of its disk images/web.img (vda) is not known",
    )
    assert lines(answer, "disk")[0].startswith(
        "images/web.img (vda): its path is not known: no file of libvirt"
    )


def test_vm_whose_status_file_can_not_be_read_is_not_called_free(tmp_path: Path) -> None:
    running(tmp_path, "web1", NBD)
    file = tmp_path / "run/libvirt/qemu/web1.xml"
    file.write_text(file.read_text()[:80])
    answer = asked(tmp_path, "web1")
    assert (answer.verdict, answer.headline) == (
        "unknown",
        "can't be told: libvirt's file about it can't be read",
    )
    assert str(file) in answer.notes[-1]


STORE = (
    "<disk type='file'><source file='{top}'><dataStore type='file'><source file='{base}'/></dataStore></source>"
    "<target dev='vda'/></disk>"
)


def test_parts_of_a_vm_are_shown_as_not_locked(tmp_path: Path, base: Path) -> None:
    top = tmp_path / "top.img"
    top.touch()
    running(tmp_path, "web1", BACKING.format(base=base, top=top), ISO.format(base="/iso"))
    answer = asked(tmp_path, "web1")
    assert lines(answer, "not locked") == [f"backing image {base}"]
    assert lines(answer, "only read") == ["/iso"]


def test_data_file_of_a_running_vm_is_its_own(tmp_path: Path, base: Path) -> None:
    running(tmp_path, "web1", STORE.format(base=base, top=tmp_path / "top.img"))
    answer = asked(tmp_path, base)
    assert (answer.verdict, answer.headline) == (
        "held",
        "in use by VM web1 as the data file of its own image",
    )
    assert (
        answer.next_step == "it is that VM's own, which writes it: nothing else may use it while the VM runs"
    )
