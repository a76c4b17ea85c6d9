"""The journal's length, kept beside it: without it, a journal that lost whole appends, or an older copy, seems whole.

    RUN_DIR/journal          ["sum",0] ["start",1,BOOT,…] ["series",7] … ["sum",…] │ append │ append
    RUN_DIR/journal.extent   ["BOOT",7,BYTES,CRC]                                           ↑ written after each, in place

Each rewriting of the journal begins a series, and until one has succeeded the extent goes on saying how long the journal
was. A daemon may be killed after it wrote the journal and before it wrote the extent, so a journal that is longer than its
extent is valid. One that is shorter, or is of an earlier series, lost unknown lines. A journal without a series is one of
an older daemon, which keeps no extent: it counts as whole, unless an extent of the same boot shows that a newer daemon ran
after it.

Both files are in RUN_DIR. An older copy of all of RUN_DIR is not noticed here (docs/safety.md).
"""

from __future__ import annotations

import zlib

import msgspec

RECORD_BYTES = 128


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """`size_bytes`: the length of the journal of that boot and series."""

    boot: str
    series: int
    size_bytes: int


class _Checked(Extent, frozen=True, array_like=True):
    crc: int
    """zlib.crc32 of the extent alone."""


def encode_extent(extent: Extent) -> bytes:
    """`RECORD_BYTES` bytes, padded with spaces, so that each record exactly replaces the one before."""
    crc = zlib.crc32(msgspec.json.encode(extent))
    raw = msgspec.json.encode(_Checked(extent.boot, extent.series, extent.size_bytes, crc))
    return raw.ljust(RECORD_BYTES - 1) + b"\n"


def decode_extent(raw: bytes) -> Extent | None:
    """None if there is none, or if it is damaged."""
    try:
        found = msgspec.json.decode(raw, type=_Checked)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    extent = Extent(found.boot, found.series, found.size_bytes)
    return extent if found.crc == zlib.crc32(msgspec.json.encode(extent)) else None


def what_is_missing(boot: str, series: int, size_bytes: int, record: bytes) -> str:
    """Why a journal with good checksums is not whole; empty if it is. `series`: 0 if it has none; `record`: the extent
    beside it, empty if there is none.
    """
    extent = decode_extent(record)
    if extent is None:
        return "the record of how far it goes, journal.extent, is missing or damaged" if series else ""
    if extent.boot != boot:
        return "the record of how far it goes, journal.extent, is of another boot" if series else ""
    if series < extent.series:
        return f"it is an older copy: series {series}, and the last one was {extent.series}"
    if series == extent.series and size_bytes < extent.size_bytes:
        return f"its end is missing: it had {extent.size_bytes} bytes and has {size_bytes}"
    return ""
