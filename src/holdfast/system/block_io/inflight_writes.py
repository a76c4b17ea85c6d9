"""Which sectors have a write of ours under way: the memory that keeps an old write from landing on a newer one.

A write that no caller waits for any more may still reach the disk. What the protocols need is that nothing of ours
is written to the same sectors until the kernel has said how it ended:

    writer                     kernel                       disk
    write v1, gives up  ────►  v1 queued … path is down
    write v2            ────►  (refused here: EBUSY)        v1 arrives at last
    settled() returns   ◄────  v1 completed
    write v2            ────►                               v2

The memory belongs to the device, not to the open file: a path that is closed and opened again, or opened
twice, or by another name, has the same writes in flight. It lives as long as an open file or a write needs it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable


class InflightWrites:
    """The writes of this process to one device that have not completed. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: dict[object, tuple[int, int, str]] = {}
        self._waiters: list[tuple[int, int, Callable[[], None]]] = []

    def begin(self, offset_bytes: int, length_bytes: int, whose: str = "") -> object | None:
        """A token for a write that may be issued now; None if one is in flight to any of its bytes.

        `whose` it is: see `InflightByDevice`.
        """
        with self._lock:
            if self._touched(offset_bytes, length_bytes):
                return None
            token = object()
            self._writes[token] = (offset_bytes, length_bytes, whose)
            return token

    def end(self, token: object) -> None:
        """The write has completed, or was never issued. Wakes the waiters for just that."""
        with self._lock:
            del self._writes[token]
            if not self._waiters:
                return
            ready = [w for w in self._waiters if not self._touched(w[0], w[1])]
            self._waiters = [w for w in self._waiters if w not in ready]
        for _, _, wake in ready:
            wake()

    def touch(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether any write in flight touches these bytes."""
        with self._lock:
            return self._touched(offset_bytes, length_bytes)

    def tokens(self, whose: str) -> frozenset[object]:
        """Those of somebody's writes in flight."""
        with self._lock:
            return frozenset(token for token, (_, _, by) in self._writes.items() if by == whose)

    def has_any(self, tokens: frozenset[object]) -> bool:
        """Whether one of these is in flight still."""
        with self._lock:
            return not tokens.isdisjoint(self._writes)

    def when_settled(self, offset_bytes: int, length_bytes: int, wake: Callable[[], None]) -> None:
        """Call `wake` once, now or from the thread that ends the last such write."""
        with self._lock:
            if self._touched(offset_bytes, length_bytes):
                self._waiters.append((offset_bytes, length_bytes, wake))
                return
        wake()

    def forget(self, wake: Callable[[], None]) -> None:
        """The caller that waited with `wake` waits no more."""
        with self._lock:
            self._waiters = [w for w in self._waiters if w[2] is not wake]

    def _touched(self, offset_bytes: int, length_bytes: int) -> bool:
        return bool(self._writes) and any(
            begin < offset_bytes + length_bytes and offset_bytes < begin + length
            for begin, length, _ in self._writes.values()
        )


class InflightByDevice:
    """One `InflightWrites` for each device or file that is open, by its identity."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_identity: weakref.WeakValueDictionary[Hashable, InflightWrites] = (
            weakref.WeakValueDictionary()
        )

    def in_flight(self, whose: str) -> Callable[[], bool]:
        """A function that says whether a write of theirs that is in flight now still is, to any device or file.

        `whose`: the name of the worker pool that they go through. What begins later does not count.
        """
        with self._lock:
            known = list(self._by_identity.values())
        seen = [(writes, tokens) for writes in known if (tokens := writes.tokens(whose))]
        return lambda: any(writes.has_any(tokens) for writes, tokens in seen)

    def of(self, identity: Hashable) -> InflightWrites:
        with self._lock:
            known = self._by_identity.get(identity)
            if known is None:
                known = self._by_identity[identity] = InflightWrites()
            return known
