"""Who holds a lease, by its leader and its host blocks: one pure answer for everyone who asks.

`holdfast who`, `lease dump`, a start that is refused, `lease gc`, `break`, fencing and the adoption after a restart
read the same sectors. They must never disagree, so the rules are here and nowhere else:

1. A leader with timestamp 0 has no owner.
2. Any other leader names an owner. An owner that wrote the leader itself owns it until the leader is freed, whatever
   its block says. A release writes the block first and the leader second; between the two writes the block already
   begins the next version, but the write of the leader may still reach the disk at any later time:

       host 1                                         host 2
       releases lver 5: its block says lver 6
       its write of "leader 5, free" hangs            takes over: leader 6, owner 2
       "leader 5, free" lands on top of leader 6

   So nobody takes the lease there before host 1 repeats the write, or is proven dead. It is held: `releasing`.
3. A leader that another host wrote for the owner can't be freed by the owner (the other host may write it again).
   There the owner's block decides: it gives the lease up by its RELEASED flag, or by racing for a newer version
   (`gave_up`). Then the lease is as good as free: `Released`.
4. A block with the SHARED flag and a generation is a shared hold of that term of its host. Generation 0 was never
   anybody's.
5. A block that can't be read may be any of these. Doubt is never "free": `Unclear`, with what the rest says.

Whether a term that holds is over, because its host is dead or came back with a higher generation, is another question.
The sectors of the lease can't answer it; the host's record in the lockspace does (`takeover`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from holdfast.model import Mode
from holdfast.ondisk.host_block import NEVER_WRITTEN, Dblock, HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.types import Generation, HostId

HostTerm = tuple[HostId, Generation]
"""One incarnation of a host in the lockspace."""


@dataclass(frozen=True, slots=True)
class Free:
    """The leader has no owner, and no block holds the lease shared."""


@dataclass(frozen=True, slots=True)
class Released:
    """The leader names an owner, but the owner's block gives the lease up, and that is enough (rule 3)."""

    owner: HostTerm


@dataclass(frozen=True, slots=True)
class Exclusive:
    """The leader's owner holds it. `sharers`: shared holds that stand beside it, as in the middle of a conversion."""

    owner: HostTerm
    releasing: bool
    """The owner has given it up, but has not freed its leader yet (rule 2)."""
    sharers: tuple[HostTerm, ...] = ()


@dataclass(frozen=True, slots=True)
class Shared:
    """The leader has no owner (any more), and these terms hold the lease shared."""

    sharers: tuple[HostTerm, ...]


Known = Free | Released | Exclusive | Shared


@dataclass(frozen=True, slots=True)
class OwnerUnclear:
    """The owner's block has a say, and can't be read. It counts as held."""

    owner: HostTerm
    fault: Malformed


@dataclass(frozen=True, slots=True)
class Unclear:
    """These hosts' blocks can't be read; `known` is what the other sectors say. It counts as held."""

    damaged: tuple[tuple[HostId, Malformed], ...]
    known: Known

    def __str__(self) -> str:
        hosts = ", ".join(str(host_id) for host_id, _ in self.damaged)
        return f"the block of host_id {hosts} can't be read, so it may hold the lease: {self.damaged[0][1]}"


Holders = Known | Unclear


@dataclass(frozen=True, slots=True)
class Claim:
    """One term that holds the lease, and how."""

    term: HostTerm
    mode: Mode


def needs_owner_block(leader: Leader) -> bool:
    """Whether the owner's block has a say in who owns it (rule 3)."""
    return not leader.is_free and leader.write_id != leader.owner_id


def owner_by(
    leader: Leader, owner_block: HostBlock | Malformed | None
) -> Free | Released | Exclusive | OwnerUnclear:
    """Who owns the leader; `owner_block` may be None unless `needs_owner_block`."""
    if leader.is_free:
        return Free()
    owner = HostId(leader.owner_id), Generation(leader.owner_generation)
    if isinstance(owner_block, Malformed):
        return (
            OwnerUnclear(owner, owner_block)
            if needs_owner_block(leader)
            else Exclusive(owner, releasing=False)
        )
    gives_up = owner_block is not None and gave_up(owner_block.dblock, leader.lver)
    if gives_up and needs_owner_block(leader):
        return Released(owner)
    return Exclusive(owner, releasing=gives_up)


def holders_of(leader: Leader, blocks: Mapping[HostId, HostBlock | Malformed]) -> Holders:
    """Who holds the lease. `blocks`: of all hosts of the lease; one that is missing was never written."""
    damaged = tuple((h, block) for h, block in sorted(blocks.items()) if isinstance(block, Malformed))
    sharers = tuple(
        (host_id, generation)
        for host_id, block in sorted(blocks.items())
        if isinstance(block, HostBlock) and (generation := shared_by(block)) is not None
    )
    known: Known
    match owner_by(leader, blocks.get(HostId(leader.owner_id), NEVER_WRITTEN)):
        case Exclusive(owner, releasing):
            known = Exclusive(owner, releasing, sharers)
        case OwnerUnclear(owner):
            known = Exclusive(owner, releasing=False, sharers=sharers)
        case Free() | Released() as nobody:
            known = Shared(sharers) if sharers else nobody
    return Unclear(damaged, known) if damaged else known


def claims_of(holders: Holders) -> tuple[Claim, ...]:
    """The terms that hold it, the owner first; its own shared hold beside the leader is no second claim."""
    match holders:
        case Free() | Released():
            return ()
        case Shared(sharers):
            return tuple(Claim(term, Mode.SHARED) for term in sharers)
        case Exclusive(owner, _, sharers):
            others = (Claim(term, Mode.SHARED) for term in sharers if term[0] != owner[0])
            return Claim(owner, Mode.EXCLUSIVE), *others
        case Unclear(_, known):
            return claims_of(known)
        case _:
            assert_never(holders)


def claims_against(holders: Holders, term: HostTerm) -> tuple[Claim, ...]:
    """What stands in the way of this term of a host: not its own leader, nor a hold in its own block, which its next
    write replaces.
    """
    return tuple(
        claim
        for claim in claims_of(holders)
        if claim.term != term and not (claim.mode is Mode.SHARED and claim.term[0] == term[0])
    )


def gave_up(block: Dblock, lver: int) -> bool:
    """Whether the owner of version `lver` says in its block that it released it, or raced on to a newer one.

    sanlock also writes blocks of zeros with the flag after a failed shared acquire; they mean the same.
    """
    zeroed = not (block.mbal or block.bal or block.inp or block.lver)
    return block.lver > lver or (block.is_released and (block.lver == lver or zeroed))


def shared_by(block: HostBlock) -> Generation | None:
    """The generation of the block's host that holds the lease shared; None if none does."""
    generation = block.mode.generation
    return Generation(generation) if block.mode.is_shared and generation else None


def holds_alone(leader: Leader, blocks: Mapping[HostId, HostBlock], term: HostTerm) -> bool:
    """Whether the lease is proven to be this very term's alone: what its daemon may take up again after a restart.

    More than `Exclusive`: the term's block must still carry the value that was decided for this version, and no host may
    race for the next one, for it has judged this term to be over.

    Blocks that are newer and no such race are those of a lease of which an older copy was put back (`paxos_acquire`): one
    that is released has ended, and a host that races for a later version has seen a leader of the next one, which nobody
    writes while this term's block stands. To race for such a lease would remove our value from our block (ADR 0243).
    """
    holders = holders_of(leader, blocks)
    if not isinstance(holders, Exclusive) or holders.owner != term or holders.releasing:
        return False
    own = blocks.get(term[0], NEVER_WRITTEN).dblock
    value, next_lver = own.accepted, leader.lver + 1
    return (
        value is not None
        and (value.owner_id, value.generation) == term
        and own.lver == leader.lver
        and not own.is_released
        and not any(each.dblock.lver == next_lver and not each.dblock.is_released for each in blocks.values())
    )


def may_yet_own(leader: Leader, block: HostBlock, term: HostTerm) -> bool:
    """Whether others may still make this term the owner: its block carries its value for a version after this leader."""
    value = block.dblock.accepted
    named = value is not None and (value.owner_id, value.generation) == term
    return named and not block.dblock.is_released and block.dblock.lver > leader.lver
