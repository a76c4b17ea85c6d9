"""What a host says of itself beside its delta lease, as bytes and back. The format is docs/specs/host-records.md.

sanlock's record has room for 47 bytes of a name and for one of two timeouts. What else other hosts and people should know
stands in a file of our own beside the lockspace's file:

    /srv/leases/__LIBVIRT__DISKS__            the lockspace, sanlock's format
    /srv/leases/__LIBVIRT__DISKS__.host-3     the record of host id 3

Nothing that keeps two hosts apart depends on it: a record that is missing, damaged, of another format or of another term
says nothing.
"""

from __future__ import annotations

import zlib

import msgspec

from holdfast.ondisk.delta import IO_TIMEOUT_MAX_S, DeltaLease
from holdfast.ondisk.geometry import HOSTS_MAX_LIMIT
from holdfast.ondisk.record_layout import U64_MAX

FORMAT = 1
RECORD_BYTES_MAX = 4096
END_BYTES_MAX = 1000
"""Of each of the two texts about resets."""
TEXT_BYTES_MAX = 256
"""Of one text: a host name has at most 255 bytes (RFC 1035)."""
FIRE_TIMEOUT_MAX_S = 65535
"""No watchdog of Linux takes more."""


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One host in one lockspace, for one term of its host id."""

    holdfast_host_record: int = FORMAT
    lockspace: str
    host_id: int
    generation: int
    host_name: str
    """As in its delta lease."""
    node: str
    """Its whole name."""
    version: str
    """Of holdfast."""
    boot: str
    """The kernel's name for its boot."""
    io_timeout_s: int
    fire_timeout_s: int
    identities: bool = False
    """Whether it has locks on what disks are, beside those of their paths (ADR 0197)."""
    last_end: str = ""
    """How its last boot ended, by its own flight recorder (ADR 0208); empty if it does not say."""
    trouble: str = ""
    """Which of its other lockspaces it has lost: its watchdog may reset it."""

    def is_about(self, record: DeltaLease) -> bool:
        """Whether it is of the term that this delta lease is of."""
        return (self.host_id, self.generation) == (
            record.owner_id,
            record.generation,
        ) and record.host_name.says(self.host_name)

    @property
    def is_possible(self) -> bool:
        """Whether its values are in their ranges."""
        texts = (self.lockspace, self.host_name, self.node, self.version, self.boot)
        return (
            self.holdfast_host_record == FORMAT
            and 1 <= self.host_id <= HOSTS_MAX_LIMIT
            and 1 <= self.generation <= U64_MAX
            and 1 <= self.io_timeout_s <= IO_TIMEOUT_MAX_S
            and 1 <= self.fire_timeout_s <= FIRE_TIMEOUT_MAX_S
            and all(1 <= len(text.encode("utf-8", "replace")) <= TEXT_BYTES_MAX for text in texts)
            and all(
                len(text.encode("utf-8", "replace")) <= END_BYTES_MAX
                for text in (self.last_end, self.trouble)
            )
        )


_MAY_LACK = ("last_end", "trouble")
"""Keys that are not written where they say nothing."""


class _Checked(HostRecord, frozen=True, kw_only=True):
    check: int
    """CRC-32 (zlib) of all that stands before it, and a closing brace."""


def encode(record: HostRecord) -> bytes:
    """ValueError if a value is out of its range, for then our code made it. What is said of resets is left out if it does
    not fit: quotes and the like take two bytes.
    """
    if not record.is_possible:
        raise ValueError(f"no possible record of a host: {record}")
    raw = _checked(record)
    if len(raw) > RECORD_BYTES_MAX:
        raw = _checked(msgspec.structs.replace(record, last_end="", trouble=""))
    return raw


def _checked(record: HostRecord) -> bytes:
    said = msgspec.structs.asdict(record)
    raw = msgspec.json.encode({key: value for key, value in said.items() if value or key not in _MAY_LACK})
    return raw[:-1] + f',"check":{zlib.crc32(raw)}}}\n'.encode()


def decode(raw: bytes) -> HostRecord | None:
    """None if it is no record that can be right. Keys that a later version adds are left out, and are under the checksum."""
    if len(raw) > RECORD_BYTES_MAX:
        return None
    body, mark, _ = raw.rpartition(b',"check":')
    try:
        found = msgspec.json.decode(raw, type=_Checked) if mark else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if found is None or found.check != zlib.crc32(body + b"}"):
        return None
    record = HostRecord(**{name: getattr(found, name) for name in HostRecord.__struct_fields__})
    return record if record.is_possible else None


def path_of(lockspace_path: str, host_id: int) -> str:
    """Where the record of a host is, for a lockspace in a file."""
    return f"{lockspace_path}{SUFFIX}{host_id}"


SUFFIX = ".host-"


def is_record_name(name: str, lockspace_file: str) -> bool:
    """Whether a file beside the lockspace's file is called like the record of a host."""
    begin = lockspace_file + SUFFIX
    return name.startswith(begin) and name[len(begin) :].isdecimal()
