"""The bounds of one case, and whether they were kept.

A change on disk has an earliest and a latest time, so a bound counts as broken when it is broken whichever of the two
is true, except for the order of two changes: seen by the same look they are in no order, and that is not good enough.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lab.fencing.observer import LOOK_GAP_MAX_S, Change
from lab.fencing.suites import MADE_HARMLESS_BY, Cause, Suite

from holdfast.protocol.timing import Timing

MACHINE_NOISE_S = 3.0
"""Emulated guests on two shared cores: a question each 0.3 s, its ballot, a renewal that takes a second."""
LAST_WRITE_S = 3.0
"""An owner writes ten times a second; one that has not for so long before the cause proves nothing by its silence."""


@dataclass(frozen=True, slots=True)
class Case:
    """What was seen of one case. Times are seconds since the epoch, by the clock outside."""

    suite: Suite
    cause: Cause
    struck_at: float
    wrote_before: Change
    last_write: Change
    last_renewal: Change
    takeover: Change
    fired_at: float | None
    taker_fired_at: float | None
    look_gap_s: float

    @property
    def made_harmless_by(self) -> str:
        if self.cause == "power":
            return "power"
        if self.fired_at is not None:
            return "watchdog"
        return "ladder" if self.last_write.latest < self.takeover.latest else "nothing"

    @property
    def harmless_at(self) -> float:
        """The owner's last write, or the reset: a frozen processor writes nothing and may go on at any time."""
        if self.made_harmless_by == "watchdog" and self.fired_at is not None:
            return max(self.last_write.latest, self.fired_at)
        return max(self.last_write.latest, self.struck_at)

    @property
    def latest_s(self) -> float:
        """How long after the last renewal that landed the lease must name the taker."""
        timing = self.suite.timing
        if self.suite.taker == "sanlock":
            return timing.takeover_s[1] + MACHINE_NOISE_S
        return timing.dead_s + timing.renewal_s + MACHINE_NOISE_S

    def broken(self) -> list[str]:
        """Every bound that was not kept."""
        timing: Timing = self.suite.timing
        found = []

        def bound(kept: bool, text: str) -> None:
            if not kept:
                found.append(text)

        bound(
            self.look_gap_s <= LOOK_GAP_MAX_S,
            f"the machine was too busy: no look for {self.look_gap_s:.1f} s",
        )
        bound(self.wrote_before.latest >= self.struck_at - LAST_WRITE_S, "h1's owner did not write before")
        bound(self.takeover.latest > 0, "h2 never got the lease")
        if not self.takeover.latest:
            return found
        bound(
            self.made_harmless_by in MADE_HARMLESS_BY[self.cause],
            f"h1 was not made harmless by {' or '.join(MADE_HARMLESS_BY[self.cause])}",
        )
        bound(
            self.takeover.latest - self.last_renewal.earliest >= timing.dead_s,
            f"h2 got the lease too early: {self.after_renewal_s:.2f} s after h1's last renewal, not {timing.dead_s} s",
        )
        bound(
            self.takeover.earliest - self.last_renewal.latest <= self.latest_s,
            f"h2 got the lease too late: {self.after_renewal_s:.2f} s after h1's last renewal, not {self.latest_s:g} s",
        )
        bound(
            self.harmless_at < self.takeover.latest,
            f"h1 was harmless {self.harmless_at - self.takeover.latest:.2f} s after h2 had the lease",
        )
        bound(
            self.harmless_at <= self.last_renewal.latest + timing.dead_s,
            f"h1 was harmless only {self.harmless_at - self.last_renewal.latest:.2f} s after its last renewal",
        )
        if self.cause == "kill9" and self.fired_at is not None:
            # Else the owner ended of itself, and would prove nothing about the watchdog.
            bound(self.fired_at - self.last_write.latest < LAST_WRITE_S, "h1's owner ended before the reset")
        bound(self.last_renewal.latest < self.takeover.latest, "h1 renewed after h2 had the lease")
        bound(self.taker_fired_at is None, "h2 was reset too")
        return found

    @property
    def after_renewal_s(self) -> float:
        return self.takeover.latest - self.last_renewal.latest

    def row(self) -> tuple[str, ...]:
        """As `HEAD` says."""
        timing = self.suite.timing
        return (
            f"{self.suite.name}/{self.cause}",
            self.made_harmless_by,
            f"{self.harmless_at - self.struck_at:.1f}",
            f"{self.takeover.latest - self.struck_at:.1f}",
            f"{self.after_renewal_s:.2f}",
            f"{timing.dead_s}..{self.latest_s:g}",
            f"{self.takeover.latest - self.harmless_at:.2f}",
            f"{self.look_gap_s:.2f}",
        )

    def facts(self) -> dict[str, object]:
        return {**asdict(self), "suite": self.suite.name}


HEAD = (
    "case",
    "h1 harmless by",
    "after cause s",
    "takeover after cause s",
    "after last renewal s",
    "bound s",
    "harmless before takeover s",
    "look gap s",
)


def table(cases: list[Case]) -> str:
    rows = [HEAD, *(case.row() for case in cases)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
