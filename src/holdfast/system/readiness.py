"""Which descriptors are ready: one epoll of our own inside the event loop.

The daemon watches one socket and one pidfd per VM, and every request of libvirt's is a connection of its own, so watching
and unwatching a descriptor is on the hot path.  Event loops make an object for each watched descriptor and
a trip through their core for each event; here it is one dictionary entry and one epoll_ctl(2), and all events
that are ready are served in one trip (ADR 0003 has the figures).  The event loop watches only the epoll descriptor.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

EVENTS_PER_POLL = 128
POLLS_PER_TURN = 8
"""Rounds of events served before the rest of the event loop gets its turn."""

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Readiness:
    """Calls back when a descriptor is ready; level-triggered.

    A callback may close its own or any other descriptor.  One that was closed amid a round, and whose number was
    given out again, may see one call too many: callbacks read without blocking and find nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, callback: Callable[[], None], events: int) -> None:
        self._epoll.modify(fd, events)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def _ready(self) -> None:
        poll, callbacks = self._epoll.poll, self._callbacks
        for _ in range(POLLS_PER_TURN):
            events = poll(0, EVENTS_PER_POLL)
            for fd, _mask in events:
                callback = callbacks.get(fd)
                if callback is None:
                    continue
                try:
                    callback()
                except Exception:
                    log.exception("unexpected failure serving descriptor %d", fd)
            if len(events) < EVENTS_PER_POLL:
                return

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
