"""What a site does beside the ordinary: each habit is drawn for a share of seeds, from a generator of its own.

A seed without habits keeps its history. Habits change the scenario alone; moves that need time have modules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from holdfast.protocol.timing import GRACE_FIRE_TIMEOUT_MIN_S
from holdfast_sim.cluster.cluster import Kind, Scenario

ADDS = 0.7
"""Of the seeds with clients: they add a lockspace."""
STUBBORN_MAX = 0.2
"""Virtual machines that can't even be paused, of sites that pause them."""
SHARE = 0.2
"""Of the seeds of the kinds that can have it, for each habit."""


@dataclass(frozen=True, slots=True)
class Habits:
    """`timeouts_differ`: hosts of one lockspace have different io_timeouts, as after a change that not all of them have yet.
    `ignores`: backends may say on_lockfailure = "ignore". `two_backends`: each lockspace is named by two backends, and some
    disks are of the second one. `hasty`: an operator calls hosts off whose storage is slow for a moment.
    `full_disks`: RUN_DIR is full now and then, and disks are unplugged from virtual machines that run. `clients`: sanlock's
    hold leases beside virtual machines; nobody removes leases there. `adds`: such clients add the last lockspace, which no
    configuration names, if there are two. `changed_timeouts`: hosts get other io_timeouts
    while they are in their lockspaces. `pauses`: hosts have a grace, in which virtual machines of a lost lockspace are
    paused before they are killed, and their last requests may hang. `slow_starts`: a program needs seconds
    until it adopts anything, and feeds the watchdog from its first moment on by the bound that the last one has left.
    """

    timeouts_differ: bool = False
    ignores: bool = False
    two_backends: bool = False
    hasty: bool = False
    full_disks: bool = False
    clients: bool = False
    adds: bool = False
    changed_timeouts: bool = False
    pauses: bool = False
    slow_starts: bool = False

    @classmethod
    def drawn(cls, seed: int, kind: Kind) -> Habits:
        def has(what: str, *kinds: Kind) -> bool:
            return Random(f"habit {what} {seed}").random() < SHARE and kind in kinds

        return cls(
            timeouts_differ=has("timeouts differ", Kind.MANAGED, Kind.TWINS),
            ignores=has("ignores", Kind.MANAGED),
            two_backends=has("two backends", Kind.MANAGED),
            hasty=has("hasty", Kind.MANAGED),
            full_disks=has("full disks", Kind.MANAGED),
            clients=has("clients", Kind.MANAGED),
            adds=has("clients", Kind.MANAGED) and Random(f"habit adds {seed}").random() < ADDS,
            changed_timeouts=has("changed timeouts", Kind.MANAGED),
            pauses=has("pauses", Kind.MANAGED),
            slow_starts=has("slow starts", Kind.MANAGED),
        )

    def at(self, seed: int, scenario: Scenario) -> Scenario:
        """The scenario of a site with these habits."""
        if self.timeouts_differ:
            scenario = replace(scenario, io_timeouts_s=_differing(Random(f"io_timeouts {seed}"), scenario))
        if self.pauses:
            longer_s = GRACE_FIRE_TIMEOUT_MIN_S - scenario.fire_timeout_s
            scenario = replace(
                scenario,
                hangs=True,
                stubborn_rate=min(scenario.stubborn_rate, STUBBORN_MAX),
                wdmd=False,  # with that fire timeout it tests every 5 s, and needs an io_timeout of 2 s
                fire_timeout_s=GRACE_FIRE_TIMEOUT_MIN_S,
                duration_s=scenario.duration_s + 4 * longer_s,
            )
        return replace(
            scenario,
            ignores=self.ignores,
            two_backends=self.two_backends,
            hasty=self.hasty,
            full_disks=self.full_disks,
            clients=self.clients,
            adds=self.clients and self.adds and scenario.spaces > 1 and not scenario.auto_ids,
            changed_timeouts=self.changed_timeouts,
            slow_starts=self.slow_starts,
            orders_every_s=0.0 if self.clients else scenario.orders_every_s,
        )


NO_HABITS = Habits()


def _differing(rng: Random, scenario: Scenario) -> tuple[int, ...]:
    """1 s and 2 s, each at least once."""
    drawn = [1, 2, *(rng.choice((1, 2)) for _ in range(scenario.hosts - 2))]
    rng.shuffle(drawn)
    return tuple(drawn)
