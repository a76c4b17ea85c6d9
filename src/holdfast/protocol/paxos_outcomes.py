"""How an attempt to own a lease can end.

A refusal names the facts that a person needs: which host, seen when, at which version. All refusals leave
the lease as it was for everybody else. `InDoubt` does not: there our own value may still be decided by
another host, so the resource must not be touched here until the doubt was withdrawn.
"""

from dataclasses import dataclass

from holdfast.ondisk.host_block import HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.takeover import Busy, FormerUser, HostUnknown, NeverByTime
from holdfast.protocol.types import Generation, HostId, IoFailed


@dataclass(frozen=True, slots=True)
class Won:
    """The leader names us. `own` is our block, `sharers` the shared holds that were seen on the way."""

    leader: Leader
    own: HostBlock
    sharers: dict[HostId, Generation]


@dataclass(frozen=True, slots=True)
class WrongVersion:
    """The lease is not at the version that was asked for."""

    leader: Leader


@dataclass(frozen=True, slots=True)
class AlreadyShared:
    """This very term of our host holds the lease shared: convert it instead."""


@dataclass(frozen=True, slots=True)
class Contended:
    """Others were quicker, over and over."""

    ballots: int


@dataclass(frozen=True, slots=True)
class LeaderBehind:
    """Blocks are about a version that is ahead of the leader by more than the one to be decided."""

    leader: Leader
    lver_seen: int


@dataclass(frozen=True, slots=True)
class LockspaceLost:
    """Our delta lease has failed: nothing may be written."""


@dataclass(frozen=True, slots=True)
class ClearedByAnother:
    """Our block did not read back as written: another host takes us for dead."""


Refusal = (
    Busy
    | HostUnknown
    | NeverByTime
    | FormerUser
    | WrongVersion
    | AlreadyShared
    | Contended
    | LeaderBehind
    | LockspaceLost
    | ClearedByAnother
    | Malformed
    | IoFailed
)


@dataclass(frozen=True, slots=True)
class InDoubt:
    """Not acquired, but others may yet make us the owner. Unusable here until `withdraw` has succeeded.

    `own` is what our block holds or may come to hold; `keep` the shared hold that stays when all is
    withdrawn.
    """

    refusal: Refusal
    own: HostBlock
    keep: ModeBlock
