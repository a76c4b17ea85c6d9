"""One seed, one history: virtual time, random choices, and the queue of scheduled events.

Everything in the simulator is an event at a moment of true time, which no host can read. Events run one after the
other in one thread, ordered by time and, at the same time, by the order in which they were scheduled. All random choices
come from one generator. So a seed determines a whole history, which is the same on every machine and in every run.

An event may belong to a process. While that process is frozen its events are deferred; after its end they are dropped.
A process can also be stopped in the middle of its code, in any call of a port that does not suspend: `run` is then
called again from within that call, and all other processes continue.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol

EVENTS_MAX = 3_000_000
"""No correct history has more; beyond this number some process loops forever."""

Happen = Callable[[], None]


class Runner(Protocol):
    """The process that an event belongs to."""

    alive: bool
    stopped: bool
    deferred: deque[Happen]


class Violation(AssertionError):
    """The simulated cluster broke a safety claim. `parties`: its hosts, the most likely cause first."""

    def __init__(self, claim: str, what: str, parties: tuple[str, ...] = ()) -> None:
        super().__init__(f"{claim}: {what}")
        self.claim = claim
        self.what = what
        self.parties = parties


class ProcessGone(BaseException):
    """Raised by every port of a process that no longer exists; shipping code must not catch it."""


class World:
    """Time, the random generator and the scheduled events."""

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

    def record(self, who: str, what: str) -> None:
        """Append a line to the history."""
        self.lines.append((self.now, who, what))

    def fail(self, claim: str, what: str, *parties: object) -> None:
        """Report a violation that a checker has found, and raise it. Only the first one counts; it ends the history."""
        if self.violation is None:
            names = tuple(map(str, parties))
            self.violation = Violation(claim, what, names)
            self.record(names[0] if names else "", f"VIOLATION of {claim}: {what}")
        raise self.violation

    def bug(self, who: str, what: str) -> None:
        """Report an exception of shipping code that was not caught."""
        if self.violation is None:
            self.violation = Violation("no unexpected exception", f"{who}: {what}", (who,))
            self.record(who, f"BUG {what}")

    def at(self, moment: float, happen: Happen, runner: Runner | None = None) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (max(moment, self.now), self._serial, runner, happen))

    def after(self, seconds: float, happen: Happen, runner: Runner | None = None) -> None:
        self.at(self.now + seconds, happen, runner)

    def run(self, until: float) -> None:
        """Run all events that are due up to that time. May be called from within an event."""
        self.depth += 1
        try:
            while self._queue and self._queue[0][0] <= until:
                self._happen()
            self.now = max(self.now, until)
        finally:
            self.depth -= 1

    def run_while(self, waiting: Callable[[], bool], until: float) -> bool:
        """Run events while `waiting()` is true; False if the time was reached first."""
        while waiting():
            if not self._queue or self._queue[0][0] > until:
                self.now = max(self.now, until)
                return False
            self._happen()
        return True

    def _happen(self) -> None:
        moment, _, runner, happen = heapq.heappop(self._queue)
        # A nested run may already have advanced the time beyond this event's moment.
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
            pass  # a process that was called has ended during the call
        if self.violation is not None:
            # It may have been raised inside a task, where the exception does not reach this loop.
            raise self.violation
