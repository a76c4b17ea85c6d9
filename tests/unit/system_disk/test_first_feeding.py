"""A watchdog that an earlier program armed is fed from the next one's first moment on, by the bound that was left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.support.polling import wait_until
from tests.unit.system_disk.test_watchdog import Device

from holdfast.protocol.types import Instant
from holdfast.system.block_io.blocking_ports import BlockingClock, run_blocking
from holdfast.system.host import descriptors as fds
from holdfast.system.host.descriptors import Inherited
from holdfast.system.watchdog import device as wd
from holdfast.system.watchdog import first_feeding
from holdfast.system.watchdog.device import DeviceWatchdog
from holdfast.system.watchdog.fed_until import FED_UNTIL_NAME, RECORD_BYTES, KeptFedUntil, bound_in
from holdfast.system.watchdog.first_feeding import (
    FED_VARIABLE,
    FirstFeeding,
    Left,
    feed_until,
    left_by_exec,
    left_in_store,
    variable_of,
)
from holdfast.system.watchdog.passed import PassedWatchdog

FIRE_S = 10
IMPORTS_MAX = 130
"""Modules, with those of Python's own start: they are 104 now."""


class TurningClock:
    """A clock that its sleepers turn."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def now(self) -> Instant:
        return self._device.now()

    async def sleep(self, seconds: float) -> None:
        self._device.time += seconds


class RecordedDriver(DeviceWatchdog):
    """Counts the threads that feed it."""

    def __init__(self) -> None:
        self.fed_by: list[str] = []

    def feed(self, until: Instant) -> bool:
        self.fed_by.append(threading.current_thread().name)
        return True


@pytest.fixture
def memory() -> Iterator[KeptFedUntil]:
    kept = KeptFedUntil()
    yield kept
    os.close(kept.descriptor())


def test_an_inherited_device_is_fed_until_the_bound_and_fires_within_the_dead_bound() -> None:
    device = Device()
    device.open("/dev/watchdog")
    driver = DeviceWatchdog("/dev/watchdog", FIRE_S, device.now, device, fd=7)
    until = Instant(device.time + 14.5)
    run_blocking(feed_until(driver, until, TurningClock(device)))
    assert device.timeout_s == FIRE_S
    assert until - 1 <= device.pings[-1] < until
    assert device.fires_at is not None and until + FIRE_S - 1 <= device.fires_at < until + FIRE_S


def test_a_pause_before_the_ping_of_a_first_feeding_is_taken_back() -> None:
    device = Device()
    device.open("/dev/watchdog")
    driver = DeviceWatchdog("/dev/watchdog", FIRE_S, device.now, device, fd=7)
    until = Instant(device.time + 2)

    def pause() -> None:
        device.time += 5

    device.on_ping = pause
    run_blocking(feed_until(driver, until, TurningClock(device)))
    assert device.fires_at is not None and device.fires_at <= until + FIRE_S


def test_a_first_feeding_runs_on_a_thread_of_its_own_until_its_end() -> None:
    driver = RecordedDriver()
    feeding = FirstFeeding(driver, Instant(BlockingClock().now() + 100))
    wait_until(lambda: bool(driver.fed_by), "the first feeding")
    feeding.end()
    assert driver.fed_by == ["first-feeding"]
    assert "first-feeding" not in [thread.name for thread in threading.enumerate()]


def test_bound_is_there_for_the_next_program_and_a_torn_one_is_none(memory: KeptFedUntil) -> None:
    assert memory.read() is None
    memory.write(Instant(1234.5))
    assert KeptFedUntil(os.dup(memory.descriptor())).read() == 1234.5
    raw = os.pread(memory.descriptor(), RECORD_BYTES, 0)
    memory.write(Instant(1235.5))
    torn = os.pread(memory.descriptor(), RECORD_BYTES // 2, 0) + raw[RECORD_BYTES // 2 :]
    assert (bound_in(raw), bound_in(torn), bound_in(raw[1:])) == (1234.5, None, None)
    memory.write(None)
    assert memory.read() is None


@pytest.mark.parametrize("path", ["/dev/watchdog", "/dev/watch-dog:1%"])
def test_an_exec_says_what_was_left(path: str) -> None:
    assert left_by_exec(variable_of(Left(5, 9, path, 10))) == Left(5, 9, path, 10)
    assert left_by_exec("5:x:10:/dev/watchdog") is None
    assert left_by_exec("5:6") is None


def test_only_an_armed_device_with_its_memory_is_passed_on_by_an_exec() -> None:
    def variables(watchdog: tuple[str, str, int], watchdog_fd: int, fed_until_fd: int) -> dict[str, str]:
        state = fds.ReexecState(
            version=fds.REEXEC_VERSION,
            listeners={},
            self_bound=[],
            locks={},
            connections=[],
            journal=b"",
            events=[],
            lock_fd=3,
            watchdog_fd=watchdog_fd,
            watchdog=watchdog,
            fed_until_fd=fed_until_fd,
        )
        assert fed_until_fd < 0 or fed_until_fd in fds._all_fds(state)
        return fds._fed_by(state)

    device = ("device", "/dev/watchdog", 10)
    assert variables(device, 5, 9) == {FED_VARIABLE: "5:9:10:/dev/watchdog"}
    assert variables(device, -1, 9) == variables(device, 5, -1) == {}
    assert variables(("wdmd", "/run/wdmd/wdmd.sock", 60), 5, 9) == {}


def test_systemds_store_says_what_was_left() -> None:
    tag = PassedWatchdog(5, "device", "/dev/watchdog", 10).tag
    found = {"LISTEN_PID": "77", "LISTEN_FDNAMES": f"lock-1:watchdog:{tag}:{FED_UNTIL_NAME}"}
    assert left_in_store(found, 77) == Left(4, 6, "/dev/watchdog", 10)
    assert left_in_store(found, 78) is None
    wdmd = PassedWatchdog(5, "wdmd", "/run/wdmd/wdmd.sock", 60).tag
    for names in (
        f"watchdog:{tag}",
        f"{tag}:{FED_UNTIL_NAME}",
        f"watchdog:{FED_UNTIL_NAME}",
        f"watchdog:{wdmd}:{FED_UNTIL_NAME}",
    ):
        assert left_in_store({**found, "LISTEN_FDNAMES": names}, 77) is None


def test_memory_is_taken_from_the_store_and_no_lock_is_seen_in_it() -> None:
    closed: list[int] = []
    inherited = Inherited([("lock-1", 3), (FED_UNTIL_NAME, 4), (FED_UNTIL_NAME, 5)], close=closed.append)
    assert inherited.take_fed_until() == 5
    assert (inherited.named, closed) == ([("lock-1", 3)], [4])
    assert inherited.take_fed_until() == -1


def test_a_program_begins_to_feed_with_what_was_left(
    memory: KeptFedUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    watchdog_fd = device.open("/dev/watchdog")
    device.time = BlockingClock().now()
    memory.write(Instant(device.time + 30))
    monkeypatch.setattr(wd, "RealDeviceKernel", lambda: device)
    environ = {FED_VARIABLE: variable_of(Left(watchdog_fd, memory.descriptor(), "/dev/watchdog", FIRE_S))}
    first_feeding.begin(environ)
    try:
        wait_until(lambda: bool(device.pings), "the first ping")
        assert first_feeding.comes_first()
        assert environ == {}
    finally:
        first_feeding.end()
    # A bound that has passed, and none.
    device.pings.clear()
    for until in (Instant(BlockingClock().now() - 1), None):
        memory.write(until)
        first_feeding.begin(
            {FED_VARIABLE: variable_of(Left(watchdog_fd, memory.descriptor(), "/dev/watchdog", FIRE_S))}
        )
        first_feeding.end()
    assert device.pings == []


def test_what_feeds_first_imports_little() -> None:
    counted = "import sys; import holdfast.system.watchdog.first_feeding; print(len(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", counted], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < IMPORTS_MAX
    first = "import sys; import holdfast.holdfastd; print('holdfast.daemon.main' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_holdfastd_begins_with_it() -> None:
    code = (
        "from holdfast.holdfastd import main\n"
        "from holdfast.system.watchdog import first_feeding\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(first_feeding.comes_first())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "True"
