"""The shipped backends pass the conformance suite; what only the file backend promises is below it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import locked
from tests.support.mounts import mounted

from holdfast.backends.base import BackendPorts, Creation, Stale
from holdfast.backends.file import owner_record
from holdfast.backends.file.backend import FileBackend
from holdfast.backends.naming import indirect_name
from holdfast.backends.nop import NopBackend
from holdfast.backends.registry import make_backend
from holdfast.errors import ConfigError
from holdfast.model import Mode, Resource
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import IoFailed, SystemLockFiles
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.testing.conformance import NOTE, BackendConformance, BackendWorld, assert_held, opened, take
from holdfast.testing.fakes import SimulatedClock

MOUNTS = MountTable()


def ports(host: str = "alpha") -> BackendPorts:
    return BackendPorts(
        files=SystemLockFiles(),
        storage=InlineStorage(),
        mounts=MOUNTS,
        clock=SimulatedClock(),
        host=host,
    )


@pytest.fixture(scope="session")
def loop_file_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 file system on a loop device."""
    if os.geteuid() != 0:
        pytest.fail("a loop device needs root: run 'make test' as root")
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.fail("a file system on a loop device needs mkfs.ext4: apt-get install e2fsprogs mount")
    directory = tmp_path_factory.mktemp("loop")
    image, point = directory / "image", directory / "mounted"
    point.mkdir()
    with open(image, "wb") as f:
        f.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(point, "-o", "loop", str(image)):
        yield point


@pytest.fixture(params=["tmp_path", "loop_file_system"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "tmp_path":
        return tmp_path
    base: Path = request.getfixturevalue("loop_file_system")
    made = base / tmp_path.name
    made.mkdir()
    return made


def direct(directory: Path) -> BackendWorld:
    (directory / "disk.img").touch()
    os.link(directory / "disk.img", directory / "alias.img")
    return BackendWorld(
        backend=FileBackend("file", ports()),
        rival=FileBackend("file", ports("beta")),
        resource=Resource("", str(directory / "disk.img")),
        missing=Resource("", str(directory / "missing.img")),
        alias=Resource("", str(directory / "alias.img")),
    )


def indirect(directory: Path) -> BackendWorld:
    (directory / "locks").mkdir()
    (directory / "disk.img").touch()
    os.link(directory / "disk.img", directory / "alias.img")
    locks = str(directory / "locks")
    return BackendWorld(
        backend=FileBackend("shared", ports(), directory=locks),
        rival=FileBackend("shared", ports("beta"), directory=locks),
        resource=Resource("", str(directory / "disk.img")),
        alias=Resource("", str(directory / "alias.img")),
        creation=Creation.TEMPORARY,
    )


def lockspace(directory: Path) -> BackendWorld:
    (directory / "space").mkdir()
    return BackendWorld(
        backend=FileBackend("file", ports()),
        rival=FileBackend("file", ports("beta")),
        resource=Resource(str(directory / "space"), "hash"),
        missing=Resource(str(directory / "space"), "missing"),
        creation=Creation.TEMPORARY,
    )


class TestNop(BackendConformance):
    def make_world(self) -> BackendWorld:
        return BackendWorld(backend=NopBackend("nop"), rival=None, resource=Resource("", "/any"))


class _OnDirectory(BackendConformance):
    @pytest.fixture(autouse=True)
    def _in(self, directory: Path) -> None:
        self.directory = directory


class TestFileDirect(_OnDirectory):
    def make_world(self) -> BackendWorld:
        return direct(self.directory)


class TestFileIndirect(_OnDirectory):
    def make_world(self) -> BackendWorld:
        return indirect(self.directory)


class TestFileInLockspace(_OnDirectory):
    def make_world(self) -> BackendWorld:
        return lockspace(self.directory)


# --- what only the file backend promises ---


def test_nothing_is_done_at_once_on_storage_that_may_block(tmp_path: Path) -> None:
    class OnLane(InlineStorage):
        def pool(self, path: str) -> str:
            return "nfs /srv"

    async def scene() -> None:
        (disk := tmp_path / "disk.img").touch()
        backend = FileBackend("file", dataclasses.replace(ports(), storage=OnLane()))
        w = BackendWorld(backend=backend, rival=None, resource=Resource("", str(disk)))
        assert backend.take_nowait(w.resource, Mode.EXCLUSIVE) is None
        held = assert_held(await take(backend, w, Mode.EXCLUSIVE))
        assert not held.release_nowait()
        assert locked(disk)
        await held.release()
        assert not locked(disk)

    asyncio.run(scene())


def test_temporary_lock_file_goes_with_its_lock_and_a_lasting_one_stays(tmp_path: Path) -> None:
    async def scene() -> None:
        w = lockspace(tmp_path)
        file = tmp_path / "space" / "hash"
        held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        assert file.exists()
        await held.release()
        assert not file.exists()
        lasting = await w.backend.open(w.resource, create=Creation.LASTING)
        held = assert_held(await lasting.take(Mode.EXCLUSIVE, NOTE))  # type: ignore[union-attr]
        await held.release()
        assert file.exists()
        assert owner_record.decode(file.read_bytes()) == []

    asyncio.run(scene())


def test_lock_file_that_was_removed_between_open_and_lock_is_not_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        w = indirect(tmp_path)
        assert w.rival is not None
        first = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        late = await opened(w.rival, w)  # it has the file open that the first is about to remove
        await first.release()
        third = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))  # on a new file of that name
        assert isinstance(await late.take(Mode.EXCLUSIVE, NOTE), Stale)
        await third.release()

    asyncio.run(scene())


def test_reader_elsewhere_keeps_the_lock_file(tmp_path: Path) -> None:
    async def scene() -> None:
        w = lockspace(tmp_path)
        assert w.rival is not None
        one = assert_held(await take(w.backend, w, Mode.SHARED))
        two = assert_held(await take(w.rival, w, Mode.SHARED))
        await one.release()
        assert (tmp_path / "space" / "hash").exists()
        await two.release()
        assert not (tmp_path / "space" / "hash").exists()

    asyncio.run(scene())


def test_disk_that_is_locked_directly_is_never_written(tmp_path: Path) -> None:
    async def scene() -> None:
        w = direct(tmp_path)
        disk = tmp_path / "disk.img"
        disk.write_bytes(b"content")
        held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        await held.convert(Mode.SHARED, NOTE)
        await held.release()
        assert disk.read_bytes() == b"content"

    asyncio.run(scene())


def test_foreign_content_of_a_lock_file_is_left_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        w = lockspace(tmp_path)
        file = tmp_path / "space" / "hash"
        file.write_bytes(b"somebody's words")
        lasting = await w.backend.open(w.resource, create=Creation.LASTING)
        held = assert_held(await lasting.take(Mode.EXCLUSIVE, NOTE))  # type: ignore[union-attr]
        await held.release()
        assert file.read_bytes() == b"somebody's words"

    asyncio.run(scene())


def test_name_of_an_indirect_lock_file_is_libvirts(tmp_path: Path) -> None:
    backend = FileBackend("shared", ports(), directory=str(tmp_path))
    path = "/var/lib/libvirt/images/a.img"
    assert backend.lock_path(Resource("", path)) == f"{tmp_path}/{indirect_name(path)}"
    assert indirect_name(path) == "17756750d91ae11b47d32396242a9e833937f02ab48569201fe29b1a94ecb520"


def test_descriptor_carries_the_lock_to_the_next_daemon_without_a_gap(tmp_path: Path) -> None:
    async def scene() -> None:
        w = direct(tmp_path)
        held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        fd = held.descriptor()
        assert fd is not None
        kept = os.dup(fd)
        held.forget()
        assert locked(tmp_path / "disk.img")
        os.close(kept)
        assert not locked(tmp_path / "disk.img")

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            {"driver": "file", "directroy": "/x"},
            "unknown key 'directroy'; this driver knows: directory, cross_host",
        ),
        ({"driver": "file", "directory": "x"}, "directory must be an absolute path"),
        ({"driver": "file", "cross_host": "yes"}, "cross_host must be true or false"),
        ({"driver": "nop", "x": 1}, "this driver knows: none besides driver"),
        ({"driver": "paxos-of-the-future"}, "no driver 'paxos-of-the-future' is installed; known: file, nop"),
    ],
)
def test_backend_table_that_is_wrong_is_refused_with_the_fix(table: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_backend("b", table, ports(), file="holdfast.toml")
    assert expected in str(refused.value)
    assert "holdfast.toml: backend.b" in str(refused.value)


def test_disk_by_another_name_is_locked_and_warned_about_where_lock_files_are_named_by_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = indirect(tmp_path)
    (tmp_path / "disk.0").symlink_to("disk.img")

    async def go() -> None:
        for name in ("disk.img", "disk.0"):
            candidate = await world.backend.open(Resource("", f"{tmp_path}/{name}"), create=Creation.NONE)
            assert not isinstance(candidate, IoFailed)
            await candidate.abandon()

    with caplog.at_level(logging.WARNING):
        asyncio.run(go())
    (warning,) = caplog.messages
    assert f"{tmp_path}/disk.0 is another name of {tmp_path}/disk.img" in warning


def test_lock_file_of_another_holder_stays_when_the_path_names_it_by_now(tmp_path: Path) -> None:
    """Somebody moved the locked file away, and another host took the lock on a new file of that name."""

    async def scene() -> None:
        w = indirect(tmp_path)
        assert w.rival is not None
        held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        os.rename(held.path, f"{held.path}.moved")
        others = assert_held(await take(w.rival, w, Mode.EXCLUSIVE))
        assert others.path == held.path
        await held.release()
        assert os.path.exists(others.path), "its name is taken away: a third host would get the disk"
        assert locked(Path(others.path))
        await others.release()

    asyncio.run(scene())


def test_lock_file_whose_name_is_a_link_to_it_by_now_is_opened_again(tmp_path: Path) -> None:
    """Somebody who removed the link would take the lock's name away: another host would make a new one and have the disk."""

    async def scene() -> None:
        w = indirect(tmp_path)
        candidate = await opened(w.backend, w)
        path = w.backend.lock_path(w.resource)
        os.rename(path, f"{path}.moved")
        os.symlink(f"{path}.moved", path)
        assert isinstance(await candidate.take(Mode.EXCLUSIVE, NOTE), Stale)
        assert not locked(Path(f"{path}.moved"))

    asyncio.run(scene())


def test_released_lock_is_free_although_a_copy_of_its_descriptor_is_still_open(tmp_path: Path) -> None:
    """systemd closes the copy in its descriptor store some time after it was asked to."""

    async def scene() -> None:
        w = direct(tmp_path)
        held = assert_held(await take(w.backend, w, Mode.EXCLUSIVE))
        fd = held.descriptor()
        assert fd is not None
        kept = os.dup(fd)
        await held.release()
        assert not locked(tmp_path / "disk.img")
        os.close(kept)

    asyncio.run(scene())
