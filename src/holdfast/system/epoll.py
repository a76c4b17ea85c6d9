"""Which descriptors are ready: one epoll of our own inside the event loop.

The daemon watches one socket and one pidfd per VM, and every request of libvirt's is a connection of its own, so watching
and unwatching a descriptor is on the hot path.  Event loops make an object for each watched descriptor and
a trip through their core for each event; here it is one dictionary entry and one epoll_ctl(2), and all events
that are ready are served in one trip (ADR 0003 has the figures).  The event loop watches only the epoll descriptor.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from holdfast.system import eager_tasks

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

EVENTS_PER_POLL = 64
"""At most: their buffer is then one that malloc has at hand."""
LINGER_S = 0.001
"""How long we wait for the next event after one, unless something else is under way: libvirt's next request is some
microseconds away, and a trip through the event loop's core costs more than serving it.  One epoll_wait(2) more when a
burst ends, none when idle."""
SPIN_S = 50e-6
"""How long of that we don't even sleep: to wake up on another CPU takes longer than a request. 0 with one CPU, where
the client could not go on meanwhile."""
STAY_S = 0.005
"""How long a burst may keep the rest of the event loop (timers, the control socket) waiting."""

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
READ_ONCE = select.EPOLLIN | select.EPOLLET
"""Once for what is there now, and then for each further arrival and the end: for bytes that stay unread."""


class Readiness:
    """Calls back when a descriptor is ready; level-triggered.

    A callback may close its own or any other descriptor.  One that was closed during a round, and whose number was
    given out again, may see one call too many: callbacks read without blocking and find nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = loop
        self._spin_s = SPIN_S if len(os.sched_getaffinity(0)) > 1 else 0.0
        loop.add_reader(self._epoll.fileno(), self._ready)

    def fileno(self) -> int:
        """Readable while one of the descriptors is ready."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        """Descriptors that are watched."""
        return len(self._callbacks)

    def add(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, callback: Callable[[], None], events: int) -> None:
        self._epoll.modify(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """The same for a descriptor that is closed at once and has no copy anywhere: then the kernel removes it."""
        del self._callbacks[fd]

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def _ready(self) -> None:
        poll, callbacks = self._epoll.poll, self._callbacks
        events = poll(0, EVENTS_PER_POLL)
        leave_at = 0.0
        while events:
            for fd, _mask in events:
                callback = callbacks.get(fd)
                if callback is None:
                    continue
                try:
                    callback()
                except Exception:
                    log.exception("unexpected failure serving descriptor %d", fd)
            now = monotonic()
            if not leave_at:
                leave_at = now + STAY_S
            elif now > leave_at:
                return
            if eager_tasks.under_way():
                return  # a caller that waits for storage must not wait for the next client
            events = poll(0, EVENTS_PER_POLL)
            sleep_at = now + self._spin_s
            while not events and monotonic() < sleep_at:
                events = poll(0, EVENTS_PER_POLL)
            if not events:
                events = poll(LINGER_S, EVENTS_PER_POLL)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
