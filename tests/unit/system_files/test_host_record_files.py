"""Records of hosts as files beside a lockspace's file."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.ondisk.host_record import RECORD_BYTES_MAX
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.files.host_record_files import NO_PLACE, SystemHostRecordFiles


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "vms"
    path.write_bytes(bytes(4096))
    path.chmod(0o640)
    return path


def replaced(space: Path, host_id: int, raw: bytes) -> str:
    return asyncio.run(SystemHostRecordFiles(str(space), WorkerPool("records", 1)).replace(host_id, raw))


def found(space: Path) -> Mapping[int, bytes] | str:
    return asyncio.run(SystemHostRecordFiles(str(space), WorkerPool("records", 1)).read_all())


def test_record_is_beside_the_lockspace_and_has_its_owner_and_mode(space: Path) -> None:
    assert replaced(space, 3, b"three") == ""
    assert replaced(space, 12, b"twelve") == ""
    assert replaced(space, 3, b"three again") == ""
    assert sorted(os.listdir(space.parent)) == ["vms", "vms.host-12", "vms.host-3"]
    there = (space.parent / "vms.host-3").stat()
    assert (stat.S_IMODE(there.st_mode), there.st_uid) == (0o640, space.stat().st_uid)
    assert found(space) == {3: b"three again", 12: b"twelve"}
    assert space.read_bytes() == bytes(4096)


def test_what_is_no_file_or_too_long_is_not_read(space: Path) -> None:
    for number, name in enumerate(("fifo", "link", "long", "directory"), 1):
        path = space.parent / f"vms.host-{number}"
        match name:
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to(space)
            case "long":
                path.write_bytes(bytes(RECORD_BYTES_MAX + 1))
            case _:
                path.mkdir()
    assert replaced(space, 7, b"seven") == ""
    assert found(space) == {7: b"seven"}


def test_record_is_beside_the_file_and_not_beside_a_link_to_it(space: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = elsewhere / "link"
    link.symlink_to(space)
    assert replaced(link, 3, b"three") == ""
    assert os.listdir(elsewhere) == ["link"]
    assert found(space) == found(link) == {3: b"three"}


def test_block_device_and_whatever_is_no_file_has_no_place_for_records(tmp_path: Path) -> None:
    assert replaced(Path("/dev/null"), 3, b"three") == NO_PLACE
    assert found(tmp_path) == NO_PLACE
    assert not os.path.exists("/dev/null.host-3")


def test_storage_that_is_gone_is_a_reason(space: Path) -> None:
    space.unlink()
    assert replaced(space, 3, b"three") == "No such file or directory"
    assert found(space) == "No such file or directory"
    assert os.listdir(space.parent) == []
