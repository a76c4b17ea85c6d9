"""Many seeds, one process per CPU: seeds are independent, and each is deterministic."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from holdfast_sim.run.seed import Verdict, play

CHUNK = 4
"""Seeds per task of a worker: enough to hide the cost of passing them."""


@dataclass(frozen=True)
class Outcome:
    """The result of a campaign."""

    seeds: int
    violations: tuple[Verdict, ...]
    events: int
    acquired: int
    virtual_s: float
    real_s: float


def verdicts(first: int, seeds: int, hosts: int | None, jobs: int) -> Iterator[Verdict]:
    """The verdicts, one per seed, in order."""
    wanted = range(first, first + seeds)
    if jobs <= 1 or seeds <= CHUNK:
        yield from (play(seed, hosts) for seed in wanted)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(partial(_briefly, hosts=hosts), wanted, chunksize=CHUNK)


def _briefly(seed: int, hosts: int | None) -> Verdict:
    """Drop the history of a sound seed: passing it between processes costs more than it is worth."""
    verdict = play(seed, hosts)
    return verdict if not verdict.sound else verdict.without_history()


def run(
    first: int,
    seeds: int,
    *,
    hosts: int | None = None,
    jobs: int | None = None,
    on_verdict: Callable[[Verdict], None] = lambda _: None,
) -> Outcome:
    """Play seeds first, first + 1, … and report each."""
    begun = time.perf_counter()
    played, events, acquired, virtual_s = 0, 0, 0, 0.0
    violations: list[Verdict] = []
    for verdict in verdicts(first, seeds, hosts, jobs or len(os.sched_getaffinity(0))):
        played += 1
        events += verdict.events
        acquired += verdict.acquired
        virtual_s += verdict.virtual_s
        if not verdict.sound:
            violations.append(verdict)
        on_verdict(verdict)
    return Outcome(played, tuple(violations), events, acquired, virtual_s, time.perf_counter() - begun)
