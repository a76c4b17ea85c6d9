"""The shipped simulations keep the same contracts as the kernel's own: processes and the journal's file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.mounts import mounted
from tests.support.polling import PATIENCE_S

from holdfast.system.epoll import Readiness
from holdfast.system.files.append_file import AppendFile, SystemAppendFile
from holdfast.system.host.process import Processes, SystemProcesses
from holdfast.testing.fakes import SimulatedAppendFile, SimulatedProcesses


class RealTable:
    """Processes of this machine, behind what the tests need."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def ports(self) -> Processes:
        return SystemProcesses(Readiness(asyncio.get_running_loop()))

    def start(self) -> int:
        process = subprocess.Popen(["sleep", "1000"])
        self._started.append(process)
        return process.pid

    def end(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


class SimulatedTable:
    def __init__(self) -> None:
        self._processes = SimulatedProcesses()
        self._last = 100

    def ports(self) -> Processes:
        return self._processes

    def start(self) -> int:
        self._last += 1
        self._processes.start(self._last, program="sleep")
        return self._last

    def end(self, pid: int) -> None:
        self._processes.end(pid)

    def close(self) -> None:
        pass


Table = RealTable | SimulatedTable


@pytest.fixture(params=[RealTable, SimulatedTable])
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    made: Table = request.param()
    yield made
    made.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_end_of_a_watched_process_is_told_once_from_the_event_loop(table: Table) -> None:
    async def scene() -> None:
        ports, pid = table.ports(), table.start()
        process = ports.open(pid)
        assert process is not None
        assert process.alive()
        assert process.id.pid == pid
        assert process.id.start_ticks > 0
        calls: list[int] = []
        process.watch(lambda: calls.append(pid))
        table.end(pid)
        assert not calls, "never from within the call that ends it"
        await until(lambda: bool(calls))
        assert not process.alive()
        process.signal(signal.SIGTERM)
        await asyncio.sleep(0)
        assert calls == [pid]
        process.close()

    asyncio.run(scene())


def test_closed_process_is_told_nothing(table: Table) -> None:
    async def scene() -> None:
        ports, pid = table.ports(), table.start()
        process, other = ports.open(pid), ports.open(pid)
        assert process is not None
        assert other is not None
        calls: list[str] = []
        process.watch(lambda: calls.append("closed"))
        other.watch(lambda: calls.append("open"))
        process.close()
        process.close()
        table.end(pid)
        await until(lambda: bool(calls))
        assert calls == ["open"]
        assert not process.alive()
        other.close()

    asyncio.run(scene())


def test_signal_ends_exactly_this_process(table: Table) -> None:
    async def scene() -> None:
        ports, pid, bystander = table.ports(), table.start(), table.start()
        process, other = ports.open(pid), ports.open(bystander)
        assert process is not None
        assert other is not None
        process.signal(signal.SIGTERM)
        await until(lambda: not process.alive())
        assert other.alive()
        assert ports.program(bystander) == "sleep"
        process.close()
        other.close()

    asyncio.run(scene())


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**32 - 1])
def test_pid_that_can_be_nobodys_is_nobody(table: Table, pid: int) -> None:
    async def scene() -> None:
        assert table.ports().open(pid) is None

    asyncio.run(scene())


@pytest.fixture(params=["system", "simulated"])
def append_file(request: pytest.FixtureRequest, tmp_path: Path) -> AppendFile:
    return SystemAppendFile(str(tmp_path / "journal")) if request.param == "system" else SimulatedAppendFile()


def test_what_is_appended_is_read_and_what_is_replaced_is_all(append_file: AppendFile) -> None:
    append_file.append(b"one\n")
    append_file.append(b"two\n")
    assert append_file.read() == b"one\ntwo\n"
    assert append_file.size_bytes == 8
    append_file.replace(b"three\n")
    append_file.append(b"four\n")
    assert append_file.read() == b"three\nfour\n"
    assert append_file.size_bytes == 11


def test_what_is_urgent_has_room_on_a_full_disk_for_a_while_and_what_is_kept_back_grows_again(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        file = SystemAppendFile(str(tmp_path / "journal"))
        file.append(b"first\n")
        shown = [file.is_short]
        filling = tmp_path / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
        whole = b"x" * 4095 + b"\n"
        with pytest.raises(OSError, match="No space left on device"):
            file.append(whole)
        written = 0
        with pytest.raises(OSError, match="No space left on device"):
            for _ in range(100):
                file.append(whole, urgent=True)
                written += 1
        assert written == 4, "a fourth of the file system was kept back"
        shown.append(file.is_short)
        assert file.read() == b"first\n" + written * whole
        assert SystemAppendFile(str(tmp_path / "journal")).read() == file.read()
        filling.unlink()
        file.append(b"last\n")
        assert [*shown, file.is_short] == [False, True, False]
        assert (tmp_path / "journal.spare").stat().st_size == 16384


def test_file_is_replaced_on_a_full_disk_by_the_room_that_is_kept_back(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        file = SystemAppendFile(str(tmp_path / "journal"))
        file.append(bytes(8192))
        with contextlib.suppress(OSError), (tmp_path / "filling").open("wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
        file.replace(b"less\n")
        assert file.read() == b"less\n"
        assert not file.is_short, "what the old content had is kept back again"
        with pytest.raises(OSError, match="No space left on device"):
            file.replace(bytes(60_000))
        assert file.read() == b"less\n"


def test_full_disk_is_an_error_of_the_system_in_both(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=4k", "tmpfs"):
        (tmp_path / "filling").write_bytes(b"x" * 4096)
        for file in (SystemAppendFile(str(tmp_path / "journal")), SimulatedAppendFile(room_bytes=0)):
            with pytest.raises(OSError, match="No space left on device"):
                file.append(b"x")
