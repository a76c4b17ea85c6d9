"""The records that STATUS, HOST_STATUS and RENEWAL stream until the daemon closes (sanlock-socket.md 2.9).

A record is 80 bytes, a text of `key=value` words with its NUL, and for lockspaces and resources the structure. Of the
keys clients read `list` alone and show the others as they come.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

from holdfast.ondisk.padded_name import NO_NAME, PaddedName
from holdfast.wire.sanlock.malformed import MalformedMessage, need
from holdfast.wire.sanlock.structures import Lockspace, Raw, Resource

STATE_BYTES = 80
TEXT_BYTES_MAX = 4096
"""Of one record's text, with its NUL."""
PID_NONE = 0xFFFF_FFFF
"""data32 of a client without a process: -1."""
_STATE = struct.Struct("<IIIIQ48sII")


class RecordType(IntEnum):
    DAEMON = 1
    CLIENT = 2
    LOCKSPACE = 3
    RESOURCE = 4
    HOST = 5
    RENEWAL = 6
    WORKER = 7
    RESOURCE_THREAD = 8


VERSION_3_8_5, VERSION_3_9, VERSION_5 = 0x03080500, 0x03090000, 0x05000000
"""As VERSION answers them; from the second and the third one on records say more."""
_SINCE = {"": 0, "3.9": VERSION_3_9, "5": VERSION_5}
_WORDS = {
    RecordType.DAEMON: (
        "our_host_name use_watchdog high_priority mlock_level quiet_fail debug_renew debug_hosts@3.9 debug_clients "
        "debug_cmds renewal_history_size gid uid sh_retries max_sectors_kb_ignore max_sectors_kb_align "
        "max_sectors_kb_num max_worker_threads num_worker_threads@3.9 use_hugepages@3.9 write_init_io_timeout use_aio "
        "io_timeout@3.9 use_compare_and_write@5 watchdog_fire_timeout@3.9 kill_grace_seconds helper_pid helper_kill_fd "
        "helper_full_count helper_last_status monotime version_str version_num version_hex smproto_hex "
        "create_delta_34@5 create_delta_40@5 create_paxos_64@5"
    ),
    RecordType.CLIENT: (
        "ci fd pid flags restricted cmd_active cmd_last pid_dead kill_count kill_last suspend need_free"
    ),
    RecordType.LOCKSPACE: (
        "list space_id version@5 io_timeout sector_size align_size host_generation renew_fail space_dead killing_pids "
        "used_retries external_used used_by_orphans no_timeout@5 no_watchdog@5 caw@5 caw_dev@5 caw_off@5 "
        "renewal_read_extend_sec set_max_sectors_kb corrupt_result acquire_last_result renewal_last_result "
        "acquire_last_attempt acquire_last_success renewal_last_attempt renewal_last_success"
    ),
    RecordType.RESOURCE: (
        "list flags sector_size align_size lver reused res_id caw@5 caw_dev@5 caw_off@5 token_id ci@3.9"
    ),
    RecordType.HOST: (
        "last_check last_live last_req owner_id owner_generation timestamp io_timeout no_timeout@5 dead_ext@5 "
        "found_dead_ext_gen@5 wrote_dead_ext_gen@5 host_flags@5 host_state@5 owner_name"
    ),
    RecordType.RENEWAL: "timestamp read_ms write_ms next_timeouts next_errors",
}
"""What a record's text says, in this order; `@`: the version of sanlock from which on it does (sanlock-socket.md 2.9,
newer-sanlock.md 3).
"""


NO_CAW: dict[str, object] = {"caw": 0, "caw_dev": "0:0", "caw_off": 0}
"""Of a lockspace or a lease that is not written by COMPARE AND WRITE."""


def keys_of(kind: int, version: int) -> tuple[str, ...]:
    """The keys of a record, in order, in that version of sanlock, as VERSION answers it; none for an unknown type."""
    words = _WORDS[RecordType(kind)].split() if kind in _WORDS else []
    parted = (word.partition("@") for word in words)
    return tuple(key for key, _, since in parted if _SINCE[since] <= version)


class StateRecord(NamedTuple):
    """One record; which of the numbers mean what depends on the type. `attached` goes with LOCKSPACE and RESOURCE."""

    type: int
    data32: int = 0
    data64: int = 0
    name: PaddedName = NO_NAME
    text: str = ""
    attached: Lockspace | Resource | None = None
    flags: int = 0

    def encode(self) -> bytes:
        text = encode_text(self.text)
        head = _STATE.pack(self.type, self.flags, self.data32, 0, self.data64, self.name.field, len(text), 0)
        match self.attached:
            case None:
                return head + text
            case Lockspace():
                return head + text + self.attached.encode()
            case Resource():
                return head + text + self.attached.encode_whole()

    @classmethod
    def decode(cls, raw: Raw, start: int = 0) -> tuple[Self, int]:
        """The record at `start`, and where the next one begins."""
        need(raw, start, STATE_BYTES, "a state record")
        kind, flags, data32, _, data64, name, text_bytes, _ = _STATE.unpack_from(raw, start)
        if text_bytes > TEXT_BYTES_MAX:
            raise MalformedMessage(f"a record's text has at most {TEXT_BYTES_MAX} bytes, not {text_bytes}")
        end = start + STATE_BYTES + text_bytes
        need(raw, start + STATE_BYTES, text_bytes, "a record's text")
        text = bytes(raw[start + STATE_BYTES : end]).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        attached: Lockspace | Resource | None = None
        if kind == RecordType.LOCKSPACE:
            attached = Lockspace.decode(raw, end)
            end += len(attached.encode())
        elif kind == RecordType.RESOURCE:
            attached = Resource.decode_whole(raw, end)
            end += attached.bytes_whole
        return cls(kind, data32, data64, PaddedName(name), text, attached, flags), end

    @property
    def words(self) -> dict[str, str]:
        """The text's keys, in order."""
        return dict(word.partition("=")[::2] for word in self.text.split(" ") if word)


def encode_text(text: str) -> bytes:
    """With its NUL; a text that is too long is cut, as sanlock does."""
    raw = text.encode("utf-8", "surrogateescape").split(b"\0", 1)[0]
    return raw[: TEXT_BYTES_MAX - 1] + b"\0"


def key_words(kind: RecordType, words: dict[str, object], version: int) -> str:
    """`key=value` words as that version of sanlock has them, whatever `words` has besides; ValueError if one is missing."""
    known = keys_of(kind, version)
    if missing := [key for key in known if key not in words]:
        raise ValueError(f"a record of type {kind.name} needs {', '.join(missing)}")
    return " ".join(f"{key}={words[key]}" for key in known)


def decode_records(raw: Raw, start: int = 0) -> tuple[StateRecord, ...]:
    """All records from `start` to the end."""
    records: list[StateRecord] = []
    while start < len(raw):
        record, start = StateRecord.decode(raw, start)
        records.append(record)
    return tuple(records)
