"""The protocol of lvmlockd's socket: messages of text lines (docs/specs/libvirt-hooks-lvm.md 3.4).

    request="lock_lv"        ──►          one line per key, `key = value` or `key="value"`, and a line `##` ends the message
    mode ="sh"
    ...
    ##
                             ◄──          response = "OK"
                                          op_result = 0
                                          ...

One request at a time: what is sent before the answer has come is dropped. A request that lvmlockd does not know gets no
answer, and keys that it does not know are skipped on both sides.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

END: Final = b"\n##\n"
MESSAGE_BYTES_MAX = 1 << 16
"""A lock request has some 250 bytes, and so has an answer."""
PROTOCOL, VERSION = "lvmlockd", 1
"""What `hello` is answered with."""

HELLO, LOCK_LV, QUERY_LOCK_LV = "hello", "lock_lv", "query_lock_lv"
PERSISTENT, NO_OPTIONS = "persistent", "none"
"""`opts`: the lock stays when the connection ends; it ends with the connection."""


class MalformedText(ValueError):
    """Bytes that are no message, or a value that no message can carry."""


class Mode(enum.StrEnum):
    """Of a lock. `INVALID` stands in answers about locks that lvmlockd can't speak of."""

    UNLOCKED = "un"
    SHARED = "sh"
    EXCLUSIVE = "ex"
    INVALID = "iv"


class OpResult(enum.IntEnum):
    """`op_result` of an answer, as far as its meaning was seen."""

    DONE = 0
    NOT_HELD = -2
    """`un` for what this host does not hold."""
    HELD_ELSEWHERE = -11
    INVALID = -22
    """A mode that is none of un, sh, ex, or a lock type that the VG does not have."""
    HELD_SO_ALREADY = -114
    NO_LOCKSPACE = -210
    """The VG is not started on this host, or lvmlockd has lost track of it."""
    LOCKSPACE_STARTING = -211
    VG_KILLED = -217
    """Its leases can't be renewed (`lvmlockctl --kill`): only `un` is served still."""
    LOCK_MANAGER_FAILED = -221
    """sanlock refused for another reason: the lease is another's, is damaged, or is not adopted after a crash."""


@dataclass(frozen=True, slots=True)
class LvLock:
    """Which lock a request is about. All but the lock type are fields of `lvs`, which calls the last one `lv_lockargs`."""

    vg_name: str
    lv_name: str
    lv_uuid: str
    vg_lock_args: str
    lv_lock_args: str
    lock_type: str = "sanlock"

    def keys(self) -> dict[str, str]:
        """As a request has them."""
        return {
            "vg_name": self.vg_name,
            "lv_name": self.lv_name,
            "lv_uuid": self.lv_uuid,
            "vg_lock_type": self.lock_type,
            "vg_lock_args": self.vg_lock_args,
            "lv_lock_args": self.lv_lock_args,
        }


def hello() -> bytes:
    return encode({"request": HELLO})


def query_lock_lv(lock: LvLock, *, command: str, pid: int) -> bytes:
    """In which mode this host holds it. `command` and `pid`: the program that asks, for lvmlockd's log."""
    return encode({"request": QUERY_LOCK_LV, "cmd": command, "pid": pid, "opts": NO_OPTIONS, **lock.keys()})


def lock_lv(lock: LvLock, mode: Mode, *, persistent: bool, command: str, pid: int) -> bytes:
    """Take it, convert it, or give it up."""
    options = PERSISTENT if persistent else NO_OPTIONS
    return encode(
        {"request": LOCK_LV, "cmd": command, "pid": pid, "mode": mode.value, "opts": options, **lock.keys()}
    )


def encode(keys: Mapping[str, str | int]) -> bytes:
    """A message. Raises `MalformedText` for text that would end a value or a line."""
    lines = (
        f"{key} = {value}" if isinstance(value, int) else f'{key} = "{_plain(key, value)}"'
        for key, value in keys.items()
    )
    return "\n".join(lines).encode() + b"\n" + END


def _plain(key: str, value: str) -> str:
    if any(character in '"\\' or not character.isprintable() for character in value):
        raise MalformedText(f"{key} can't be {value!r}: it is sent as one line of text in quotes")
    return value


def decode(message: bytes) -> dict[str, str]:
    """A message without its end, key by key, quotes taken off. A line without `=` raises `MalformedText`."""
    return dict(_lines(message))


def _lines(message: bytes) -> Iterator[tuple[str, str]]:
    for line in message.decode(errors="replace").split("\n"):
        if not line.strip():
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise MalformedText(f"a line without '=' in a message of lvmlockd's socket: {line[:80]!r}")
        yield key.strip(), value.strip().strip('"')


class Framer:
    """Bytes as they come in, whole messages out."""

    __slots__ = ("_unread",)

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """The messages that this piece ends, without their ends. Raises `MalformedText` for one that does not end."""
        self._unread += piece
        *whole, rest = bytes(self._unread).split(END)
        self._unread = bytearray(rest)
        if max(map(len, (*whole, rest))) > MESSAGE_BYTES_MAX:
            raise MalformedText(f"a message on lvmlockd's socket is longer than {MESSAGE_BYTES_MAX} bytes")
        return whole


@dataclass(frozen=True, slots=True)
class Answer:
    """What `lock_lv` and `query_lock_lv` are answered with. `mode` is a query's; INVALID where it has no meaning."""

    op_result: int
    mode: Mode = Mode.INVALID

    @classmethod
    def decode(cls, message: bytes) -> Answer:
        keys = decode(message)
        if keys.get("response") != "OK":
            raise MalformedText(f"lvmlockd did not say OK: {keys!r:.200}")
        try:
            mode = Mode(keys.get("mode", Mode.INVALID))
        except ValueError:
            raise MalformedText(f"lvmlockd named a mode that is not known: {keys['mode'][:40]!r}") from None
        return cls(_number(keys, "op_result"), mode)


def version_of(message: bytes) -> int:
    """The protocol's, from the answer to `hello`. Raises `MalformedText` if that is no lvmlockd."""
    keys = decode(message)
    if keys.get("response") != "OK" or keys.get("protocol") != PROTOCOL:
        raise MalformedText(f"not lvmlockd: it says {keys!r:.200}")
    return _number(keys, "version")


def _number(keys: Mapping[str, str], key: str) -> int:
    try:
        return int(keys[key])
    except (KeyError, ValueError):
        raise MalformedText(f"no number {key} in the answer of lvmlockd: {dict(keys)!r:.200}") from None
