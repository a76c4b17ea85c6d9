"""Small files of our own, whatever lies in their place: read at once or not at all, written beside and moved there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.system.files.regular_file import Unreadable, read_regular, replace_regular
from holdfast.system.files.state_file import RecordFile


def placed(kind: str, directory: Path) -> Path:
    path = directory / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        (directory / "target").write_bytes(b"theirs")
        path.symlink_to(directory / "target")
    elif kind == "dangling link":
        path.symlink_to(directory / "nowhere")
    elif kind == "large":
        path.write_bytes(b"x" * 11)
    return path


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "dangling link", "large", "nothing"])
def test_what_is_no_regular_file_of_that_size_is_not_read_and_nobody_waits(kind: str, tmp_path: Path) -> None:
    found = read_regular(str(placed(kind, tmp_path)), 10)
    assert isinstance(found, Unreadable)
    assert found.reason
    assert found.missing is (kind == "nothing")


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling link", "large", "nothing"])
def test_file_takes_the_place_of_whatever_is_there(kind: str, tmp_path: Path) -> None:
    path = placed(kind, tmp_path)
    replace_regular(str(path), b"ours")
    assert read_regular(str(path), 10) == b"ours"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "nowhere").exists()
    if kind == "link":
        assert (tmp_path / "target").read_bytes() == b"theirs"


def test_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = placed("directory", tmp_path)
    with pytest.raises(OSError, match="directory"):
        replace_regular(str(path), b"ours")
    assert list(tmp_path.iterdir()) == [path]
    path.rmdir()
    path.write_bytes(b"before")
    with pytest.raises(TypeError):
        replace_regular(str(path), None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"


def test_planted_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "file.new").symlink_to(tmp_path / "target")
    replace_regular(str(tmp_path / "file"), b"ours")
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert (tmp_path / "file").read_bytes() == b"ours"


def test_record_that_can_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    record = RecordFile(str(tmp_path / "volumes.json"))
    assert record.read() == b""
    record.replace(b"a list")
    assert record.read() == b"a list"
    (tmp_path / "volumes.json").unlink()
    (tmp_path / "volumes.json").mkdir()
    with pytest.raises(OSError, match="can't be read"):
        record.read()
