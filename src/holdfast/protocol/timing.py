"""Every bound of the lease protocols, derived from two numbers.

`io_timeout` is a host's own choice and is recorded in its delta lease; `fire_timeout` is the watchdog's, is
recorded nowhere and must be the same on all hosts of a lockspace that run Holdfast. sanlock's is 60 s: its hosts are
known by their names, and at least that much counts for them, whatever our own is.

    0        2 io       6 io    8 io                          8 io + fire
    |---------|----------|-------|------------------------------|----------->  age of the last good renewal
    renewed   renew      warn    fail: owners are stopped,      dead: reset by the watchdog;
              again              watchdog no longer fed         others may take over, strictly later

The age counts from *before* the renewal was written. Three full-length failed renewals fit between the one
that is due at 2 io and the failure at 8 io. What makes exclusion hold is an order of bounds;
`Timing.broken()` checks each of them by name, so that a configuration which breaks one is refused with both
values.
"""

from dataclasses import dataclass

RENEWAL_FACTOR = 2
WARN_FACTOR = 6
FAIL_FACTOR = 8
BITMAP_FACTOR = 6
FREE_CLAIM_MAX_FACTOR = 5
HELD_CLAIM_MAX_FACTOR = 6
HELD_LEASE_MAX_FACTOR = 7

# The delta lease stores eight bits of it, and 0 stands for "not known".
IO_TIMEOUT_MIN_S = 1
IO_TIMEOUT_MAX_S = 255

FIRE_TIMEOUT_DEFAULT_S = 60
"""sanlock's too (spec/sanlock-disk.md 5)."""

NAME_TOKEN_DIGITS = 12
"""Behind the last dot of the name of each incarnation of ours (`supervision.host_names`)."""


def is_of_holdfast(host_name: str) -> bool:
    """Whether a name in a record is of the form that Holdfast writes: the node's name, a dot and a token."""
    node, _, token = host_name.rpartition(".")
    return bool(node) and len(token) == NAME_TOKEN_DIGITS and not token.strip("0123456789abcdef")


# How long owners get to end by themselves before they are killed, by the least fire timeout that leaves
# room for it.
GRACE_FIRE_TIMEOUT_MIN_S = 30
_GRACE_BY_FIRE_TIMEOUT_S = ((60, 40), (GRACE_FIRE_TIMEOUT_MIN_S, 15), (0, 0))
# Full-length renewal attempts that must fit between the due renewal and the failure.
_ATTEMPTS_BEFORE_FAIL = 3


@dataclass(frozen=True, slots=True)
class Inequality:
    """`lesser` must be below `greater` (or equal, when not strict), and why."""

    name: str
    lesser: tuple[str, float]
    greater: tuple[str, float]
    strict: bool = True

    @property
    def holds(self) -> bool:
        below = self.lesser[1] < self.greater[1]
        return below or (not self.strict and self.lesser[1] == self.greater[1])

    def __str__(self) -> str:
        (lesser, lesser_s), (greater, greater_s) = self.lesser, self.greater
        relation = "below" if self.strict else "at most"
        return f"{lesser} {lesser_s:g} s must be {relation} {greater} {greater_s:g} s: {self.name}"


@dataclass(frozen=True, slots=True)
class Timing:
    """The bounds of one host. Another host's follow from its io_timeout and the common fire timeout."""

    io_timeout_s: int
    fire_timeout_s: int = FIRE_TIMEOUT_DEFAULT_S

    @property
    def renewal_s(self) -> int:
        """From one renewal to the begin of the next."""
        return RENEWAL_FACTOR * self.io_timeout_s

    @property
    def warn_s(self) -> int:
        return WARN_FACTOR * self.io_timeout_s

    @property
    def fail_s(self) -> int:
        """At this age (not only beyond it) a host's own lease is lost and its owners are stopped."""
        return FAIL_FACTOR * self.io_timeout_s

    @property
    def dead_s(self) -> int:
        """Strictly beyond this unchanged time another host is known to have been reset."""
        return self.fail_s + self.fire_timeout_s

    @property
    def stall_s(self) -> int:
        """Storage that is silent for no longer costs no healthy host its lease.

        At worst the silence begins with a renewal that is due, and the attempt that is under way at its end fails too.
        """
        return self.fail_s - 2 * self.renewal_s

    @property
    def settle_s(self) -> int:
        """How long a claim on a host id must stand unchallenged before it is held."""
        return RENEWAL_FACTOR * self.io_timeout_s

    @property
    def renewal_write_timeout_s(self) -> int:
        """A renewal's write is not given up earlier than anybody could profit from another one."""
        return self.dead_s

    @property
    def notify_s(self) -> int:
        """How long the bit of a notified host stays set in our bitmap."""
        return BITMAP_FACTOR * self.io_timeout_s

    @property
    def grace_s(self) -> int:
        """How long owners are asked before they are killed, once the lease has failed."""
        return next(grace for least, grace in _GRACE_BY_FIRE_TIMEOUT_S if self.fire_timeout_s >= least)

    @property
    def claim_free_s(self) -> tuple[int, int]:
        """Least and greatest time to claim a free host id."""
        return self.settle_s, FREE_CLAIM_MAX_FACTOR * self.io_timeout_s

    @property
    def claim_held_s(self) -> tuple[int, int]:
        """Least and greatest time to claim the host id of a dead host."""
        return self.dead_s, self.dead_s + HELD_CLAIM_MAX_FACTOR * self.io_timeout_s

    @property
    def takeover_s(self) -> tuple[int, int]:
        """Least and greatest time to take over the lease of a host that died just now."""
        return self.dead_s, self.dead_s + HELD_LEASE_MAX_FACTOR * self.io_timeout_s

    def of_host(self, io_timeout_s: int, *host_names: str) -> "Timing":
        """The bounds of a host that recorded this io_timeout; 0 means that it recorded none, and stands for ours.

        `host_names`: of its record, or all that one generation has shown. One that is not of Holdfast's form stands for
        sanlock's fire timeout, if ours is shorter.
        """
        of_others = any(name and not is_of_holdfast(name) for name in host_names)
        fire_s = max(self.fire_timeout_s, FIRE_TIMEOUT_DEFAULT_S) if of_others else self.fire_timeout_s
        return Timing(io_timeout_s or self.io_timeout_s, fire_s)

    def inequalities(self) -> tuple[Inequality, ...]:
        """Every order of bounds that the safety argument uses."""
        attempts_s = self.renewal_s * (1 + _ATTEMPTS_BEFORE_FAIL)
        kill_s = self.fail_s + self.grace_s
        io_timeout = ("io_timeout", self.io_timeout_s)
        renewal, warn = ("renewal", self.renewal_s), ("warn", self.warn_s)
        fail, dead = ("fail", self.fail_s), ("dead", self.dead_s)
        return (
            Inequality("an io_timeout of 0 means unknown", ("0", 0), io_timeout),
            Inequality("it is stored in 8 bits", io_timeout, ("the limit", IO_TIMEOUT_MAX_S), strict=False),
            Inequality("a renewal ends before the next is due", io_timeout, renewal),
            Inequality("a healthy host never warns", renewal, warn),
            Inequality("a warning comes before the failure", warn, fail),
            Inequality(
                "three slow renewals do not fail a host", ("attempts", attempts_s), fail, strict=False
            ),
            Inequality("owners are stopped before another host takes over", fail, dead),
            Inequality("owners are killed before the watchdog fires", ("kill", kill_s), dead),
        )

    def broken(self) -> tuple[Inequality, ...]:
        """The inequalities that these two numbers break; empty for a configuration that may be used."""
        return tuple(each for each in self.inequalities() if not each.holds)
