"""Names of a disk that are the same on all hosts, and those that are not because they repeat on clones."""

import os
import stat
from pathlib import Path

import pytest

from holdfast.system.files import strong_identity as module
from holdfast.system.files.strong_identity import strong_identity, worldwide_name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("naa.6001405F3B9C2D1A", "naa.6001405f3b9c2d1a"),
        ("36001405f3b9c2d1a4e5f60718293a4b5", "naa.6001405f3b9c2d1a4e5f60718293a4b5"),
        ("2001b4d2000000001", "eui.001b4d2000000001"),
        ("eui.0025385b71b0b1c2", "eui.0025385b71b0b1c2"),
        ("uuid.0a1b2c3d-0000-4000-8000-00000000000f", "uuid.0a1b2c3d-0000-4000-8000-00000000000f"),
        ("t10.ATA     QEMU HARDDISK   QM00001", ""),
        ("1ATA_QEMU_HARDDISK_QM00001", ""),
        ("nvme.1b36-6465-51454d55-00000001", ""),
        ("eui.0000000000000000", ""),
        ("naa.", ""),
        ("naa.xyz", ""),
        ("", ""),
    ],
)
def test_names_of_makers_count_and_those_that_repeat_do_not(name: str, found: str) -> None:
    assert worldwide_name(name) == found


def test_file_is_the_same_by_link_and_by_hard_link_and_another_file_is_not(tmp_path: Path) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.write_bytes(b"x")
    other.write_bytes(b"x")
    (tmp_path / "link").symlink_to("disk")
    os.link(disk, tmp_path / "hard")
    what = strong_identity(str(disk))
    assert what
    assert strong_identity(str(tmp_path / "link")) == what
    assert strong_identity(str(tmp_path / "hard")) == what
    assert strong_identity(str(other)) not in ("", what)


def test_file_that_took_the_place_of_another_is_another_disk(tmp_path: Path) -> None:
    disk, new = tmp_path / "disk", tmp_path / "new"
    disk.write_bytes(b"x")
    what = strong_identity(str(disk))
    new.write_bytes(b"x")
    new.rename(disk)
    assert strong_identity(str(disk)) not in ("", what)


@pytest.mark.parametrize("path", ["/proc/self/stat", "/dev/null", "/", "/is/not/there", "a\0b", ""])
def test_what_is_no_disk_or_on_no_known_file_system_has_none(path: str) -> None:
    assert strong_identity(path) == ""


@pytest.mark.parametrize(
    ("file_system", "begins"),
    [("nfs4", "nfs:"), ("nfs", "nfs:"), ("xfs", "xfs:"), ("9p", ""), ("fuse.sshfs", "")],
)
def test_handle_counts_where_all_hosts_get_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: str, begins: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    monkeypatch.setattr(module, "_handle", lambda _: (1, b"\x01\x02", 7))
    monkeypatch.setattr(module, "_type_of_mount", lambda _: file_system)
    what = strong_identity(str(disk))
    assert what.startswith(begins)
    assert bool(what) is bool(begins)
    if begins == "nfs:":
        assert what == "nfs:1:0102"  # no id of the client's own


class Sysfs:
    """A block device of this kernel, as a directory says it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev" / "block").mkdir(parents=True)

    def device(self, number: str, at: str, files: dict[str, str]) -> str:
        place = self.root / "devices" / at
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(f"{text}\n")
        (self.root / "dev" / "block" / number).symlink_to(place)
        return module._of_device(os.makedev(*map(int, number.split(":"))), str(self.root))


def test_partition_is_its_disk_and_where_it_begins(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    whole = sysfs.device("8:0", "sda", {"device/wwid": "naa.6001405abc"})
    assert whole == "naa.6001405abc"
    assert sysfs.device("8:1", "sda/sda1", {"partition": "1", "start": "2048"}) == "naa.6001405abc+2048"
    assert sysfs.device("8:2", "sda/sda2", {"partition": "2", "start": "4096"}) == "naa.6001405abc+4096"


def test_multipath_is_its_path_and_other_mappings_are_nothing(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    name = "36001405f3b9c2d1a4e5f60718293a4b5"
    mapped = sysfs.device("253:0", "dm-0", {"dm/uuid": f"mpath-{name}"})
    assert mapped == sysfs.device("8:0", "sda", {"device/wwid": f"naa.{name[1:]}"})
    assert sysfs.device("253:1", "dm-1", {"dm/uuid": "CRYPT-LUKS2-0123-root"}) == ""
    assert sysfs.device("253:2", "dm-2", {"dm/uuid": f"part1-mpath-{name}"}) == ""


def test_loop_device_is_its_file_at_an_offset(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    sysfs = Sysfs(tmp_path / "sys")
    what = sysfs.device("7:0", "loop0", {"loop/backing_file": str(disk), "loop/offset": "512"})
    assert what == f"{strong_identity(str(disk))}+512"
    gone = sysfs.device("7:1", "loop1", {"loop/backing_file": f"{disk} (deleted)", "loop/offset": "0"})
    assert gone == ""


def test_volume_is_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stat, "S_ISBLK", lambda _: True)
    assert strong_identity("/dev/null", lvm_uuid="aBcDeF-0000") == "lvm:aBcDeF-0000"
