"""Chooses the watchdog driver of this host, and keeps its descriptor in the descriptor store for the next program."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.protocol.types import Instant
from holdfast.supervision.lockspace_port import WatchdogSpec
from holdfast.system import eager_tasks
from holdfast.system.host.descriptors import DescriptorStore
from holdfast.system.watchdog.device import Watchdog
from holdfast.system.watchdog.fed_until import FED_UNTIL_NAME
from holdfast.system.watchdog.passed import WATCHDOG_FD_NAME, PassedWatchdog

log = logging.getLogger("holdfast")


class StoredWatchdog:
    """A watchdog whose descriptor the service manager stores. The kernel stops a device when its last copy is closed, and
    refuses to open it before: after a disarm the store must close its copy, too, or the host is reset.
    """

    def __init__(self, driver: Watchdog, closed: Callable[[], None]) -> None:
        self._driver = driver
        self._closed = closed

    @property
    def fences(self) -> bool:
        return self._driver.fences

    def prove(self) -> None:
        self._driver.prove()

    def feed(self, until: Instant) -> bool:
        return self._driver.feed(until)

    def disarm(self) -> None:
        was_open = self._driver.descriptor() is not None
        self._driver.disarm()
        if was_open and self._driver.descriptor() is None:
            self._closed()

    def descriptor(self) -> int | None:
        return self._driver.descriptor()


class HostWatchdog:
    """The one watchdog of this host. `make`: see `LeaseHostPorts.watchdog`; `passed`: that of an earlier daemon, open and
    armed; `needed`: locks may be held that depend on it.
    """

    def __init__(
        self,
        *,
        make: Callable[[WatchdogSpec, int | None], Watchdog],
        store: DescriptorStore,
        passed: PassedWatchdog | None,
        needed: bool,
    ) -> None:
        self._make = make
        self._store = store
        self.passed = passed
        self._needed = needed
        self._unfit: PassedWatchdog | None = passed
        self._armed_by: WatchdogSpec | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_stored_bound = False
        self.problems: list[str] = []
        """Problems that an operator has to fix."""

    @property
    def is_kept(self) -> bool:
        """Whether the next program gets the descriptor also when this one ends."""
        return self._store.stores

    def begin(self) -> None:
        """On the event loop, before a lease is claimed: from now on the store follows what the driver closes."""
        self._loop = asyncio.get_running_loop()

    def driver(self, choice: WatchdogSpec) -> Watchdog:
        """The configured watchdog, or that of an earlier daemon as long as locks need it."""
        passed = self.passed
        if passed is not None and not passed.fits(choice.driver, choice.path, choice.fire_timeout_s):
            if self._needed:
                armed = WatchdogSpec(
                    passed.driver,
                    passed.path or choice.path,
                    passed.fire_timeout_s or choice.fire_timeout_s,
                )
                self.problems.append(
                    f"the watchdog stays {words_of(armed)}, which guards held locks, where {words_of(choice)} is configured:"
                    " when no VM of this host holds a lease any more, restart holdfastd"
                )
                log.error("%s", self.problems[-1])
                choice = armed
            else:
                passed = None
        if passed is not None:
            self._unfit = None
        self._armed_by = choice
        driver = self._make(choice, passed.fd if passed is not None else None)
        return StoredWatchdog(driver, self._closed)

    def stop_unfit(self, is_used_by_others: Callable[[], bool]) -> None:
        """Stop an armed watchdog that nothing here feeds, by the driver that armed it."""
        unfit, self._unfit = self._unfit, None
        if unfit is None:
            return
        armed = WatchdogSpec(*unfit.armed_with)
        if self._needed or is_used_by_others():
            log.critical(
                "the watchdog %s is armed for leases that no configured backend knows: this host is reset",
                words_of(armed),
            )
            return
        self._make(armed, unfit.fd).disarm()
        log.warning("the watchdog %s of an earlier daemon is stopped: no lock needs it", words_of(armed))
        self.forget()

    def store_armed(self, fd: int | None, fed_until_fd: int) -> None:
        """Put the armed watchdog into the store, before anything depends on the lease; with it the memory that says until
        when it was fed, if there is one.
        """
        if (watchdog := self.armed(fd)) is not None:
            self._store.store(WATCHDOG_FD_NAME, watchdog.fd)
            for tag in sorted(self._tags() - {watchdog.tag}):
                self._store.store(tag, None)  # two different names would be ambiguous
            self._store.mark(watchdog.tag)
            if fed_until_fd >= 0 and not self._has_stored_bound:
                self._has_stored_bound = True
                self._store.store(FED_UNTIL_NAME, None)  # an earlier daemon's, unless it is this one
                self._store.store(FED_UNTIL_NAME, fed_until_fd)

    def _closed(self) -> None:
        """On the thread that closed it; the store is updated in order, before a later join stores the next one."""
        if self._loop is not None:
            eager_tasks.post_to_loop(self._loop, self.forget)

    def forget(self) -> None:
        """Remove the watchdog from the store: its descriptor and the names that record what armed it."""
        self._has_stored_bound = False
        for name in (WATCHDOG_FD_NAME, FED_UNTIL_NAME, *sorted(self._tags())):
            self._store.store(name, None)

    def _tags(self) -> set[str]:
        """The names in the store that record what armed a watchdog: those found there, and ours."""
        tags = set(self.passed.tags) if self.passed is not None else set()
        if (by := self._armed_by) is not None:
            tags.add(PassedWatchdog(-1, by.driver, by.path, by.fire_timeout_s).tag)
        return tags

    def armed(self, fd: int | None) -> PassedWatchdog | None:
        """The watchdog that the next program has to feed, by its open descriptor; None without one."""
        by = self._armed_by
        if fd is None or by is None:
            return None
        return PassedWatchdog(fd, by.driver, by.path, by.fire_timeout_s)


def words_of(choice: WatchdogSpec | None) -> str:
    return f'"{choice.driver}" {choice.path} {choice.fire_timeout_s} s' if choice is not None else "nothing"
