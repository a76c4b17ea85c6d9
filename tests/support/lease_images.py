"""One table of what may stand in a lease's sectors, and who holds the lease then.

Each image is a moment that the protocols leave behind, or a fault. Host 1 is the owner wherever there is one, host 2 the
other host that wrote the leader for it, host 3 a sharer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from holdfast.ondisk import areas
from holdfast.ondisk.geometry import DEFAULT, Geometry
from holdfast.ondisk.host_block import FLAG_RELEASED, NO_MODE, Dblock, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.ballot import prepare_next
from holdfast.protocol.holders import Exclusive, Free, HostTerm, Released, Shared
from holdfast.protocol.types import Generation, HostId

LVER = 5
NUM_HOSTS = 8
DAMAGED = b"\xff" * 144

OWNER: HostTerm = (HostId(1), Generation(1))
WRITER = HostId(2)
SHARER: HostTerm = (HostId(3), Generation(1))


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    leader: Leader
    blocks: dict[HostId, HostBlock | bytes]
    known: Free | Released | Exclusive | Shared
    """Who holds it by the sectors that can be read."""
    damaged: tuple[HostId, ...] = ()
    adopted: bool = field(default=False)
    """Whether a restarted daemon of the owner takes it up again as exclusive."""

    @property
    def is_held(self) -> bool:
        """Doubt counts as held."""
        return bool(self.damaged) or isinstance(self.known, Exclusive | Shared)

    def decoded(self) -> dict[HostId, HostBlock | Malformed]:
        return {h: HostBlock.decode(b) if isinstance(b, bytes) else b for h, b in self.blocks.items()}

    def area(self) -> bytes:
        """The whole area as it stands on disk."""
        geometry = self.leader.geometry
        raw = bytearray(areas.lease_area(self.leader))
        raw[: geometry.sector_bytes] = self.leader.sector()
        for host_id, block in self.blocks.items():
            at = geometry.host_block_offset_bytes(host_id)
            sector = (
                block.ljust(geometry.sector_bytes, b"\0")
                if isinstance(block, bytes)
                else block.sector(geometry.sector_bytes)
            )
            raw[at : at + geometry.sector_bytes] = sector
        return bytes(raw)


_VALUE = Dblock(mbal=2001, bal=2001, inp=1, inp2=1, inp3=100, lver=LVER)
"""The owner's block after the ballot that made it the owner."""


def images(space: str, resource: str, geometry: Geometry = DEFAULT) -> tuple[Image, ...]:
    never = areas.fresh_leader(geometry, space, resource, NUM_HOSTS)
    by_owner = replace(
        never,
        owner_id=1,
        owner_generation=1,
        lver=LVER,
        timestamp=100,
        write_id=1,
        write_generation=1,
        write_timestamp=100,
    )
    by_other = replace(by_owner, write_id=WRITER)
    free = replace(by_owner, timestamp=0)
    holds = HostBlock(dblock=_VALUE)
    flagged = HostBlock(dblock=replace(_VALUE, flags=FLAG_RELEASED))
    prepared = prepare_next(holds, by_owner, OWNER[0])
    assert prepared is not None
    newer = replace(prepared.dblock, flags=0)
    shares = HostBlock(dblock=Dblock(mbal=3, lver=LVER - 1), mode=ModeBlock.shared(1))
    one, three = OWNER[0], SHARER[0]
    alone, leaving = Exclusive(OWNER, releasing=False), Exclusive(OWNER, releasing=True)
    beside = Exclusive(OWNER, releasing=False, sharers=(SHARER,))
    return (
        Image("never owned", never, {}, Free()),
        Image("free, with the owner's value", free, {one: holds}, Free()),
        Image("free, released by the flag", free, {one: flagged}, Free()),
        Image("free, with a prepared ballot", free, {one: prepared}, Free()),
        Image("exclusive", by_owner, {one: holds}, alone, adopted=True),
        Image("exclusive, written by another host", by_other, {one: holds}, alone, adopted=True),
        Image(
            "exclusive, an older block of another host",
            by_owner,
            {one: holds, WRITER: HostBlock(dblock=Dblock(mbal=2, lver=LVER - 1))},
            alone,
            adopted=True,
        ),
        # --- a release ---
        Image("between a release's writes, prepared ballot", by_owner, {one: prepared}, leaving),
        Image("between a release's writes, flag", by_owner, {one: flagged}, leaving),
        Image(
            "between a release's writes, newer block without flag",
            by_owner,
            {one: HostBlock(dblock=newer)},
            leaving,
        ),
        Image("released by the flag", by_other, {one: flagged}, Released(OWNER)),
        Image("released by a newer block", by_other, {one: HostBlock(dblock=newer)}, Released(OWNER)),
        Image(
            "released by sanlock's zeros",
            by_other,
            {one: HostBlock(dblock=Dblock(flags=FLAG_RELEASED))},
            Released(OWNER),
        ),
        Image(
            "a flag of an older version releases nothing",
            by_other,
            {one: HostBlock(dblock=replace(_VALUE, lver=LVER - 1, flags=FLAG_RELEASED))},
            alone,
        ),
        Image("an owner that never wrote its block", by_other, {}, alone),
        # --- shared ---
        Image("shared", free, {one: holds, three: shares}, Shared((SHARER,))),
        Image(
            "shared by two",
            free,
            {one: HostBlock(dblock=flagged.dblock, mode=ModeBlock.shared(1)), three: shares},
            Shared((OWNER, SHARER)),
        ),
        Image(
            "shared, leader released by the flag", by_other, {one: flagged, three: shares}, Shared((SHARER,))
        ),
        Image("exclusive beside a shared hold", by_owner, {one: holds, three: shares}, beside, adopted=True),
        Image(
            "a hold of generation 0 is nobody's",
            free,
            {three: HostBlock(dblock=shares.dblock, mode=ModeBlock.shared(0))},
            Free(),
        ),
        Image(
            "a generation without the flag is no hold",
            free,
            {three: HostBlock(dblock=shares.dblock, mode=replace(NO_MODE, generation=1))},
            Free(),
        ),
        # --- what can't be read ---
        Image("free, damaged block", free, {one: holds, three: DAMAGED}, Free(), (three,)),
        Image("exclusive, damaged block of its owner", by_owner, {one: DAMAGED}, alone, (one,)),
        Image("owner's block has the say, damaged", by_other, {one: DAMAGED}, alone, (one,)),
        Image("exclusive, damaged block of another", by_owner, {one: holds, three: DAMAGED}, alone, (three,)),
        Image(
            "shared, damaged block of another", free, {one: DAMAGED, three: shares}, Shared((SHARER,)), (one,)
        ),
    )
