"""Feeds a watchdog that an earlier program has armed, from the first moment of the next one on (ADR 0242).

From exec to the first guarded lease a program needs as long as it takes to import everything, to adopt the locks and to read
storage: seconds, and on a busy host more than the fire timeout. This part needs a twentieth of that. It feeds on a thread of
its own while the leases are good by the bound that the earlier program has left, and not a moment longer; the lease monitor
takes over from it.

So this module and what it imports are few, and are kept so by a test.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from holdfast.protocol.ports import Clock
from holdfast.protocol.types import Instant
from holdfast.system.block_io.blocking_ports import BlockingClock, Interrupted, start_thread
from holdfast.system.watchdog.device import DeviceWatchdog, Watchdog
from holdfast.system.watchdog.fed_until import FED_UNTIL_NAME, RECORD_BYTES, bound_in
from holdfast.system.watchdog.passed import WATCHDOG_FD_NAME, WATCHDOG_TAG, armed_with

FED_VARIABLE = "HOLDFAST_FED_UNTIL"
"""At a re-exec: what `variable_of` writes."""
FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START
PAUSE_S = 1.0
"""Between two feedings, as the lease monitor's."""
END_WAIT_S = 1.0
"""For a feeding that is under way; a device takes a ping in no time."""


class Left(NamedTuple):
    """What an earlier program has left: the device's descriptor, that of the memory, and what armed the device."""

    watchdog_fd: int
    memory_fd: int
    path: str
    fire_timeout_s: int


async def feed_until(driver: Watchdog, until: Instant, clock: Clock) -> None:
    """Feed until that moment, or until the clock is interrupted."""
    try:
        while driver.feed(until):
            await clock.sleep(PAUSE_S)
    except Interrupted:
        return


class FirstFeeding:
    """Feeds on a thread of its own until `end`, or until the bound."""

    def __init__(self, driver: Watchdog, until: Instant) -> None:
        self._clock = BlockingClock()
        # No signal is for this thread: the main one holds those back that it can't take yet.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread = start_thread(
                "first-feeding", feed_until(driver, until, self._clock), lambda _: None
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """Feed no more. Called before anything else may feed or stop the watchdog."""
        self._clock.interrupt()
        if self._thread is not threading.current_thread():
            self._thread.join(END_WAIT_S)


def variable_of(left: Left) -> str:
    """For the environment of the next program."""
    return f"{left.watchdog_fd}:{left.memory_fd}:{left.fire_timeout_s}:{left.path}"


def left_by_exec(text: str) -> Left | None:
    *numbers, path = text.split(":", 3)
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        return None
    watchdog_fd, memory_fd, fire_timeout_s = map(int, numbers)
    return Left(watchdog_fd, memory_fd, path, fire_timeout_s)


def left_in_store(environ: Mapping[str, str], pid: int) -> Left | None:
    """By systemd's variables (sd_listen_fds(3)), which stay as they are."""
    if environ.get("LISTEN_PID") != str(pid):
        return None
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    driver, path, fire_timeout_s = armed_with([name for name in names if name.startswith(WATCHDOG_TAG)])
    places = {name: FIRST_PASSED_FD + number for number, name in enumerate(names)}
    if driver != "device" or not {WATCHDOG_FD_NAME, FED_UNTIL_NAME} <= set(places):
        return None
    return Left(places[WATCHDOG_FD_NAME], places[FED_UNTIL_NAME], path, fire_timeout_s)


_begun: list[FirstFeeding | None] = []
"""Once per program: None if there was nothing to feed."""


def begin(environ: MutableMapping[str, str]) -> None:
    """Feed from now on until `end`, if there is something to feed. A fault here leaves the start as it would be."""
    _begun.append(_begun_by(environ))


def _begun_by(environ: MutableMapping[str, str]) -> FirstFeeding | None:
    try:
        text = environ.pop(FED_VARIABLE, "")
        left = left_by_exec(text) if text else left_in_store(environ, os.getpid())
        if left is None or not left.fire_timeout_s:
            return None
        until = bound_in(os.pread(left.memory_fd, RECORD_BYTES, 0))
        if until is None:
            return None
        driver = DeviceWatchdog(left.path, left.fire_timeout_s, BlockingClock().now, fd=left.watchdog_fd)
        return FirstFeeding(driver, until)
    except Exception:
        return None


def end() -> None:
    """Feed no more: the lease monitor feeds from now on, or nobody."""
    for number, feeding in enumerate(_begun):
        if feeding is not None:
            feeding.end()
            _begun[number] = None


def comes_first() -> bool:
    """Whether this program began with `begin`."""
    return bool(_begun)
