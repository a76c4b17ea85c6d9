"""How long something takes, as a histogram that only grows: what Prometheus reads (docs/situations/monitoring.md).

One thread adds, any thread reads: a reader may see a value that is in its bucket and not yet in the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts of values (seconds) by upper bounds, which are inclusive; the last bucket has what is above all of them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: ascending."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Each value in one bucket: not added up."""
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds
