"""The watchdog of a simulated machine, under the eyes of a checker."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.protocol.types import Instant
from holdfast.system.watchdog.device import Watchdog


class CheckedWatchdog:
    """The shipping driver; after each call a checker reads the state of the device."""

    fences = True

    def __init__(self, driver: Watchdog, looked: Callable[[], None]) -> None:
        self._driver = driver
        self._looked = looked

    def prove(self) -> None:
        self._driver.prove()

    def feed(self, until: Instant) -> bool:
        fed = self._driver.feed(until)
        self._looked()
        return fed

    def disarm(self) -> None:
        self._driver.disarm()

    def descriptor(self) -> int | None:
        return self._driver.descriptor()
