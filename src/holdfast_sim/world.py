"""One seed, one history: virtual time, chance, and the queue of what is to happen.

Everything in the simulator is an event at a moment of true time, which no host can read. Events happen one after the
other in one thread, in the order of their moments and, within one, in the order in which they were arranged; chance
comes from one generator. So a seed is a whole history, the same on every machine and at every run.

An event may belong to a process. While that process is frozen its events are kept back; once it is gone they are
dropped. A process can also be stopped in the middle of its code, at any call of a port that does not suspend: `run`
is then called again from within, and the others go on.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol

EVENTS_MAX = 3_000_000
"""No history has more; beyond it something turns in a circle."""

Happen = Callable[[], None]


class Runner(Protocol):
    """Whom an event belongs to."""

    alive: bool
    stopped: bool
    deferred: deque[Happen]


class Violation(AssertionError):
    """The simulated cluster did what must never happen. `parties` are the hosts that it is about, most guilty first."""

    def __init__(self, claim: str, what: str, parties: tuple[str, ...] = ()) -> None:
        super().__init__(f"{claim}: {what}")
        self.claim = claim
        self.what = what
        self.parties = parties


class ProcessGone(BaseException):
    """Raised at any port of a process that does not exist any more; nobody of shipping code may catch it."""


class World:
    """Time, chance and the events to come."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.random = Random(seed)
        self.events = 0
        self.depth = 0
        self.lines: list[tuple[float, str, str]] = []
        self.violation: Violation | None = None
        self._queue: list[tuple[float, int, Runner | None, Happen]] = []
        self._serial = 0

    def tell(self, who: str, what: str) -> None:
        """Write a line into the history."""
        self.lines.append((self.now, who, what))

    def fail(self, claim: str, what: str, *parties: object) -> None:
        """A checker has seen what must not be. The first one counts; the history ends with it."""
        if self.violation is None:
            names = tuple(map(str, parties))
            self.violation = Violation(claim, what, names)
            self.tell(names[0] if names else "", f"VIOLATION of {claim}: {what}")
        raise self.violation

    def bug(self, who: str, what: str) -> None:
        """Shipping code raised what nobody caught."""
        if self.violation is None:
            self.violation = Violation("no unexpected exception", f"{who}: {what}", (who,))
            self.tell(who, f"BUG {what}")

    def at(self, moment: float, happen: Happen, runner: Runner | None = None) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (max(moment, self.now), self._serial, runner, happen))

    def after(self, seconds: float, happen: Happen, runner: Runner | None = None) -> None:
        self.at(self.now + seconds, happen, runner)

    def run(self, until: float) -> None:
        """Let everything happen that is arranged up to that moment. May be called from within an event."""
        self.depth += 1
        try:
            while self._queue and self._queue[0][0] <= until:
                self._happen()
            self.now = max(self.now, until)
        finally:
            self.depth -= 1

    def run_while(self, waiting: Callable[[], bool], until: float) -> bool:
        """Let things happen while somebody waits; False if the moment came first."""
        while waiting():
            if not self._queue or self._queue[0][0] > until:
                self.now = max(self.now, until)
                return False
            self._happen()
        return True

    def _happen(self) -> None:
        moment, _, runner, happen = heapq.heappop(self._queue)
        # A nested run may have gone further than the moment of what it left behind.
        self.now = max(self.now, moment)
        if runner is not None:
            if not runner.alive:
                return
            if runner.stopped:
                runner.deferred.append(happen)
                return
        self.events += 1
        if self.events > EVENTS_MAX:
            self.fail("liveness", f"more than {EVENTS_MAX} events: something turns in a circle")
        try:
            happen()
        except ProcessGone:
            pass  # somebody asked a process something, and it died answering
        if self.violation is not None:
            # It may have been raised inside a task, which keeps what it raises to itself.
            raise self.violation
