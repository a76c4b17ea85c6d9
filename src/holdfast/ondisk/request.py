"""The request record: some host asks the holder of a lease to give it up.

Sector 1 of a lease area. A requester writes the version it wants (`lver`, greater than the holder's) and
how hard the holder shall be asked. Nobody clears the record: one that names a version not newer than the
current lease is stale.

    off  0  magic     4  version     8  lver (8 bytes)    16  force_mode     20  padding

The record has no checksum, and sanlock leaves whatever its memory held in the padding: readers ignore it.
"""

import struct
from dataclasses import dataclass
from typing import Self

from holdfast.ondisk.malformed import Malformed, Reason, too_short
from holdfast.ondisk.record_layout import U64_MAX, padded_sector, range_fault

MAGIC = 0x08292011
VERSION = 0x00010001
_MAJOR_SHIFT = 16
_LAYOUT = struct.Struct("<IIQI")
REQUEST_BYTES = _LAYOUT.size

FORCE_MODE_NONE = 0
FORCE_MODE_FORCE = 1  # kill the holder
FORCE_MODE_GRACEFUL = 2  # run its killpath, or ask it to end

_RECORD = "request record"
_U32_MAX = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for version `lver`; all zero means that nothing is requested."""

    lver: int = 0
    force_mode: int = FORCE_MODE_NONE
    version: int = VERSION

    @classmethod
    def decode(cls, raw: bytes) -> Self | Malformed:
        if len(raw) < REQUEST_BYTES:
            return too_short(_RECORD, raw, REQUEST_BYTES)
        magic, version, lver, force_mode = _LAYOUT.unpack_from(raw, 0)
        if magic != MAGIC:
            return Malformed(_RECORD, Reason.MAGIC, f"{magic:#010x}", f"{MAGIC:#010x}")
        if version >> _MAJOR_SHIFT != VERSION >> _MAJOR_SHIFT:
            reason = Reason.NEWER if version > VERSION else Reason.VERSION
            return Malformed(_RECORD, reason, f"{version:#010x}", f"{VERSION:#010x}")
        return cls(lver=lver, force_mode=force_mode, version=version)

    def encode(self) -> bytes:
        fault = range_fault(
            _RECORD, (("lver", self.lver, 0, U64_MAX), ("force_mode", self.force_mode, 0, _U32_MAX))
        )
        if fault:
            raise ValueError(str(fault))
        return _LAYOUT.pack(MAGIC, self.version, self.lver, self.force_mode)

    def sector(self, sector_bytes: int) -> bytes:
        return padded_sector(self.encode(), sector_bytes)


NO_REQUEST = Request()
