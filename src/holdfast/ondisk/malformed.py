"""The answer for bytes that are not the record one hoped to find.

A sector of a shared disk may hold anything: zeros, another program's data, half of a record, a record of
another lockspace at the same place. None of it may raise, because its reader (a renewal, a ballot)
has to decide what to do next; so decoding answers with `Malformed`, which names the facts and leaves the
decision to the caller. Which number a frontend makes of a reason is not decided here: it depends on the
record and on the peer.
"""

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """Which rule the bytes break; the value completes the sentence "<record>: <value>"."""

    LENGTH = "too few bytes"
    MAGIC = "magic number of another record"
    CLEARED = "the lease was cleared"
    VERSION = "major version not supported"
    NEWER = "of a newer version than this program knows"
    CAW = "written by COMPARE AND WRITE only, which this program does not do"
    SECTOR_SIZE = "sector size neither 512 nor 4096"
    GEOMETRY = "no such pair of sector and align size"
    OFFSET = "another offset than the area's"
    LOCKSPACE_NAME = "another lockspace's name"
    RESOURCE_NAME = "another resource's name"
    HOST_ID = "host id out of the lease's range"
    CHECKSUM = "checksum does not match"
    RANGE = "field out of range"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A refusal to read `record`: the rule that was broken, what was found and what was expected."""

    record: str
    reason: Reason
    found: str
    expected: str

    @property
    def is_newer(self) -> bool:
        """Whether it may be a good record that a newer program wrote: it is in use for all that can be known here, and
        nothing may be made over it.
        """
        return self.reason is Reason.NEWER

    @property
    def fix(self) -> str:
        """What to do about a record that is good, but not for this program; empty for all others."""
        return {Reason.NEWER: NEWER_FIX, Reason.CAW: CAW_FIX}.get(self.reason, "")

    def __str__(self) -> str:
        return f"{self.record}: {self.reason.value} (found {self.found}, expected {self.expected})"


NEWER_FIX = (
    "it is not damaged, and a host may be using it: upgrade holdfast, or have it made in a version that this one reads "
    "(for sanlock 5 and later: both create_old_delta_disk_version = 3.4 and create_old_paxos_disk_version = 6.4 in the "
    "sanlock.conf of every host)"
)
"""What to do about a record that a newer program wrote (spec newer-sanlock.md, 1.1)."""

CAW_FIX = (
    "it is not damaged, and a host may be using it: leave it to hosts with sanlock 5, or have it made without "
    "(use_compare_and_write = no in the sanlock.conf of every host)"
)
"""What to do about a record that a plain write would take from its holder (spec newer-sanlock.md, 1.5)."""


def too_short(record: str, raw: bytes, expected_bytes: int) -> Malformed:
    """The answer that every decoder gives first."""
    return Malformed(record, Reason.LENGTH, f"{len(raw)} bytes", f"{expected_bytes} bytes")
