"""A host's block in a lease area: its voice in the ballots (dblock) and its shared hold (mode block).

    off  0  mbal   greatest ballot this host has promised           }
         8  bal    ballot in which it last accepted a value         }  dblock,
        16  inp    the value: host id of the proposed owner,        }  bytes 0..47
        24  inp2          its generation,                           }  under the
        32  inp3          its timestamp                             }  checksum
        40  lver   the version of the lease this is about           }
        48  checksum
        52  flags  RELEASED: this host has given the lease up (outside the checksum)
       128  mode block: flags (SHARED), 4 bytes of padding, generation of the sharer (no checksum)
       256  note: Holdfast's words for people about the holder; no record of the format

mbal, bal and inp are Disk Paxos' names (Gafni and Lamport). A block without any byte set was never written;
that is the only valid block whose checksum does not match. Bytes that belong to neither record may hold
anything, so a note may stand there: sanlock never reads it, and writes it over with its own block only.
"""

import struct
from dataclasses import dataclass
from typing import Self

from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.malformed import Malformed, Reason, too_short
from holdfast.ondisk.record_layout import U64_MAX, padded_sector, range_fault

FLAG_RELEASED = 0x1
FLAG_SHARED = 0x1
MODE_OFFSET_BYTES = 128
NOTE_OFFSET_BYTES = 256
NOTE_BYTES_MAX = 256

_COVERED = struct.Struct("<QQQQQQ")
_CHECKSUM_AND_FLAGS = struct.Struct("<II")
_MODE = struct.Struct("<IIQ")
DBLOCK_BYTES = _COVERED.size + _CHECKSUM_AND_FLAGS.size
HOST_BLOCK_BYTES = MODE_OFFSET_BYTES + _MODE.size

_U32_MAX = 0xFFFF_FFFF
_DBLOCK = "dblock"
_MODE_BLOCK = "mode block"


@dataclass(frozen=True, slots=True)
class Value:
    """What a ballot decides: the owner of one version of the lease. Stored as inp, inp2 and inp3."""

    owner_id: int
    generation: int
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dblock:
    """One host's state in the ballots of a lease."""

    mbal: int = 0
    bal: int = 0
    inp: int = 0
    inp2: int = 0
    inp3: int = 0
    lver: int = 0
    flags: int = 0

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        if len(raw) < DBLOCK_BYTES:
            return too_short(_DBLOCK, raw, DBLOCK_BYTES)
        mbal, bal, inp, inp2, inp3, lver = _COVERED.unpack_from(raw, 0)
        stored, flags = _CHECKSUM_AND_FLAGS.unpack_from(raw, _COVERED.size)
        dblock = cls(mbal=mbal, bal=bal, inp=inp, inp2=inp2, inp3=inp3, lver=lver, flags=flags)
        if not (stored or mbal or bal or inp or lver):
            return dblock
        computed = sanlock_crc32c(raw[: _COVERED.size])
        if stored != computed:
            return Malformed(_DBLOCK, Reason.CHECKSUM, f"{stored:#010x}", f"{computed:#010x}")
        return dblock

    def encode(self) -> bytes:
        try:
            covered = _COVERED.pack(self.mbal, self.bal, self.inp, self.inp2, self.inp3, self.lver)
            return covered + _CHECKSUM_AND_FLAGS.pack(sanlock_crc32c(covered), self.flags)
        except struct.error:  # the bounds are those of the fields themselves; now say which
            raise ValueError(str(self._fault())) from None

    @property
    def is_released(self) -> bool:
        return bool(self.flags & FLAG_RELEASED)

    @property
    def accepted(self) -> Value | None:
        """The value this host has accepted for `lver`. A value without a ballot number was never accepted."""
        return Value(self.inp, self.inp2, self.inp3) if self.inp and self.bal else None

    def _fault(self) -> Malformed | None:
        numbers = (
            (name, getattr(self, name), 0, U64_MAX) for name in ("mbal", "bal", "inp", "inp2", "inp3", "lver")
        )
        return range_fault(_DBLOCK, (*numbers, ("flags", self.flags, 0, _U32_MAX)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeBlock:
    """Whether the host of this block holds the lease shared, and since which of its generations."""

    flags: int = 0
    generation: int = 0

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        """Read the 16 bytes of a mode block; the padding is ignored."""
        if len(raw) < _MODE.size:
            return too_short(_MODE_BLOCK, raw, _MODE.size)
        flags, _padding, generation = _MODE.unpack_from(raw, 0)
        return cls(flags=flags, generation=generation)

    @classmethod
    def shared(cls, generation: int) -> Self:
        return cls(flags=FLAG_SHARED, generation=generation)

    def encode(self) -> bytes:
        try:
            return _MODE.pack(self.flags, 0, self.generation)
        except struct.error:
            bounds = (("flags", self.flags, 0, _U32_MAX), ("generation", self.generation, 0, U64_MAX))
            raise ValueError(str(range_fault(_MODE_BLOCK, bounds))) from None

    @property
    def is_shared(self) -> bool:
        return bool(self.flags & FLAG_SHARED)


NO_MODE = ModeBlock()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBlock:
    """The sector of one host in a lease area: both records, always written together in one sector."""

    dblock: Dblock = Dblock()
    mode: ModeBlock = NO_MODE

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        if len(raw) < HOST_BLOCK_BYTES:
            return too_short("host block", raw, HOST_BLOCK_BYTES)
        dblock = Dblock.decode(raw)
        if isinstance(dblock, Malformed):
            return dblock
        mode = ModeBlock.decode(raw[MODE_OFFSET_BYTES:HOST_BLOCK_BYTES])
        return mode if isinstance(mode, Malformed) else cls(dblock=dblock, mode=mode)

    def encode(self) -> bytes:
        return self.dblock.encode().ljust(MODE_OFFSET_BYTES, b"\0") + self.mode.encode()

    def sector(self, sector_bytes: int, note: bytes = b"") -> bytes:
        if len(note) > NOTE_BYTES_MAX:
            raise ValueError(f"a note has at most {NOTE_BYTES_MAX} bytes, this one has {len(note)}")
        content = self.encode().ljust(NOTE_OFFSET_BYTES, b"\0") + note if note else self.encode()
        return padded_sector(content, sector_bytes)


NEVER_WRITTEN = HostBlock()


def note_of(sector: bytes) -> bytes:
    """What stands behind the records of a host block, less its padding."""
    return sector[NOTE_OFFSET_BYTES : NOTE_OFFSET_BYTES + NOTE_BYTES_MAX].rstrip(b"\0")
