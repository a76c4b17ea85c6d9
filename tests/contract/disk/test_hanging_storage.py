"""Storage that hangs for long: what is tried again and again must not use up the process."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.fuse_storage import FaultyStorage
from tests.support.polling import wait_until

from holdfast.protocol.ports import Clock, Disk
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.disk import open_suspending
from holdfast.system.block_io.renewal_threads import HANGING_MAX, SystemLeaseThreads
from holdfast.system.block_io.worker_pool import WorkerPool

TRIES = 3


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FaultyStorage]:
    storage = FaultyStorage(tmp_path / "behind", tmp_path / "mounted")
    (storage.source / "lockspace").write_bytes(b"\0" * 4096)
    yield storage
    storage.close()


async def life(disk: Disk, clock: Clock, interrupt: Callable[[], None]) -> object:
    return "opened"


def threads_of(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == f"disk {name}"]


def test_threads_of_tries_to_join_are_bounded_and_the_first_try_after_it_works(
    storage: FaultyStorage,
) -> None:
    async def scene() -> None:
        threads = SystemLeaseThreads(open_timeout_s=0.1)

        async def one_try() -> object:
            ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            threads.start_on_disk("a", str(storage.at / "lockspace"), life, ended.set_result)
            return await ended

        async def opened_by(tries: int) -> bool:
            """A busy machine may take longer than the timeout to open it."""
            return any([await one_try() == "opened" for _ in range(tries)])

        assert await opened_by(TRIES)
        storage.stall()
        for _ in range(3 * HANGING_MAX):
            assert await one_try() == IoFailed(errno.ETIMEDOUT)
        assert len(threads_of("a")) == HANGING_MAX
        storage.healthy()
        wait_until(lambda: not threads_of("a"), "the late ones to end")
        assert await opened_by(TRIES)

    asyncio.run(scene())


def test_closing_a_file_whose_storage_hangs_holds_up_nobody(storage: FaultyStorage) -> None:
    async def scene() -> None:
        pool = WorkerPool("b")
        disk = await open_suspending(str(storage.at / "lockspace"), pool)
        assert not isinstance(disk, IoFailed)
        storage.stall()
        closed = threading.Event()

        def close() -> None:
            disk.close()
            closed.set()

        threading.Thread(target=close, daemon=True).start()
        assert closed.wait(10)
        pool.close()
        assert threads_of("b")  # the worker that closes it
        storage.healthy()
        wait_until(lambda: not threads_of("b"), "it to be closed")

    asyncio.run(scene())
