"""The gate that every request to storage passes, so that a re-exec begins only when nothing is inside the kernel.

execve() waits until every other thread of the process has ended, and a thread inside a request that hangs does not end:
the whole daemon would stop, with the renewals of all healthy lockspaces. So each worker enters this gate before a request
and leaves it after:

    worker      enter ─ pread ─ leave        enter ……… (closed: waits, has begun nothing) ……… open ─ pread ─ leave
    event loop                        close ─ inside? ─ nothing: execve
                                                      └ "leases of A", for 12 s: open, the reload is refused

A worker writes down that it is inside, then reads whether the gate is closed. The event loop closes the gate, then reads
which workers are inside. Whatever the order, one of the two sees the other. Neither takes a
lock: a lease takes a dozen requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

OPEN_WAIT_S = 5.0
"""How long a worker waits for the gate to open before it checks again by itself; a re-exec keeps it closed for less."""


@dataclass(frozen=True, slots=True)
class Inside:
    """A request that has begun and has not ended."""

    pool: str
    for_s: float

    def __str__(self) -> str:
        return f"{self.pool}: a request has not ended for {self.for_s:.0f} s"


class Gate(Protocol):
    """The port: what closes the gate, and who is inside."""

    def inside(self, *, at_least_s: float = 0.0) -> list[Inside]:
        """The requests that began so long ago and have not ended; for each pool the oldest, the oldest first."""

    def close(self) -> None:
        """From now on no request begins."""

    def open(self) -> None: ...


def listed(requests: list[Inside]) -> str:
    """For people; empty if there is none."""
    return "; ".join(map(str, requests))


class Place:
    """One worker's place at the gate. Only that worker writes to it."""

    __slots__ = ("_gate", "begun", "pool")

    def __init__(self, gate: RequestGate, pool: str) -> None:
        self._gate = gate
        self.pool = pool
        self.begun = 0.0
        """When its request began, by `time.monotonic`; 0 if it is not inside."""

    def enter(self, now: Callable[[], float] = time.monotonic) -> None:
        """Before a request. Waits as long as the gate is closed."""
        self.begun = now()
        while self._gate.closed:
            self.begun = 0.0
            self._gate.wait()
            self.begun = now()

    def leave(self) -> None:
        self.begun = 0.0


class RequestGate:
    """See the module."""

    def __init__(self) -> None:
        self.closed = False
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._places: set[Place] = set()

    def place(self, pool: str) -> Place:
        """For a worker that begins its life."""
        place = Place(self, pool)
        with self._lock:
            self._places.add(place)
        return place

    def forget(self, place: Place) -> None:
        """Its worker ends."""
        with self._lock:
            self._places.discard(place)

    def close(self) -> None:
        """From now on no request begins."""
        self._opened.clear()
        self.closed = True

    def open(self) -> None:
        self.closed = False
        self._opened.set()

    def wait(self) -> None:
        """Until it may be open again."""
        self._opened.wait(OPEN_WAIT_S)

    def inside(self, *, at_least_s: float = 0.0) -> list[Inside]:
        """The requests that began so long ago and have not ended; for each pool the oldest, the oldest first."""
        now = time.monotonic()
        oldest: dict[str, float] = {}
        with self._lock:
            places = list(self._places)
        for place in places:
            begun = place.begun
            if begun and now - begun >= at_least_s:
                oldest[place.pool] = min(begun, oldest.get(place.pool, begun))
        return [Inside(pool, now - begun) for pool, begun in sorted(oldest.items(), key=lambda each: each[1])]


GATE = RequestGate()
"""The process's: a re-exec waits for all of its threads."""
