"""Leases at places that a user names are opened with that user's rights, and no others."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.sanlock_clients import Storage
from tests.support.sanlock_engine import EngineSite, blank

from holdfast.ondisk.geometry import MIB
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk import SuspendingDisk
from holdfast.system.block_io.lease_files import SystemLeaseStorage
from holdfast.system.block_io.offload import Job
from holdfast.system.block_io.users_leases import UsersLeaseStorage
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.host.peer_rights import Rights
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s

SANLOCK = Rights(uid=65534, gid=65534, groups=(65533,))
GROUP = 65533
"""One of its supplementary groups."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    return tmp_path


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    workers = WorkerPool("user")
    yield workers
    workers.close()


def opened(pool: WorkerPool, path: Path, *, writable: bool = True) -> int:
    """0, or the errno value."""

    async def go() -> int:
        disk = await UsersLeaseStorage(pool, SANLOCK).open(str(path), writable=writable)
        if isinstance(disk, IoFailed):
            return disk.errno
        disk.close()
        return 0

    return asyncio.run(go())


def test_user_opens_what_it_may(place: Path, pool: WorkerPool) -> None:
    path = blank(place / "area", MIB)
    for mode, group, reads, writes in (
        (0o600, 0, errno.EACCES, errno.EACCES),
        (0o644, 0, 0, errno.EACCES),
        (0o660, 0, errno.EACCES, errno.EACCES),
        (0o660, GROUP, 0, 0),
        (0o666, 0, 0, 0),
    ):
        path.chmod(mode)
        os.chown(path, 0, group)
        assert opened(pool, path, writable=False) == reads, oct(mode)
        assert opened(pool, path) == writes, oct(mode)
    assert opened(pool, place / "none") == errno.ENOENT


def test_directory_that_the_user_may_not_enter_hides_its_files(place: Path, pool: WorkerPool) -> None:
    secret = place / "secret"
    secret.mkdir()
    path = blank(secret / "area", MIB)
    path.chmod(0o666)
    assert opened(pool, path) == 0
    secret.chmod(0o700)
    assert opened(pool, path) == errno.EACCES


def test_path_that_is_exchanged_in_between_is_not_opened(
    place: Path, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, secret = blank(place / "area", MIB), blank(place / "secret", MIB)
    path.chmod(0o666)
    secret.chmod(0o600)
    opens = SystemLeaseStorage.open

    async def exchanged(
        self: SystemLeaseStorage, path: str, *, writable: bool = True, job: Job | None = None
    ) -> SuspendingDisk | IoFailed:
        os.replace(secret, path)
        return await opens(self, path, writable=writable, job=job)

    monkeypatch.setattr(SystemLeaseStorage, "open", exchanged)
    assert opened(pool, path) == errno.ESTALE


def test_client_of_sanlock_writes_no_file_of_roots(place: Path, pool: WorkerPool) -> None:
    async def go() -> None:
        site = EngineSite(Storage(place, "R1"), areas=UsersLeaseStorage(pool, SANLOCK))
        path = blank(place / "shadow", MIB)
        path.chmod(0o600)
        for request, result in (
            (r.WriteResource(0, 0, 0, s.Resource.of("X", "Y", s.Disk(str(path)))), -errno.EACCES),
            (r.ReadResource(s.Resource.of("X", "Y", s.Disk(str(path)))), -errno.EACCES),
        ):
            done = await site.ask(request)
            assert done.result == result
        assert not any(path.read_bytes())
        path.chmod(0o666)
        assert (
            await site.ask(r.WriteResource(0, 0, 0, s.Resource.of("X", "Y", s.Disk(str(path)))))
        ).result == 0

    asyncio.run(go())
