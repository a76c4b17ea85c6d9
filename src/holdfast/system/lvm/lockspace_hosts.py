"""The hosts of a volume group's lockspace as this host's lock manager sees them: sanlock, or Holdfast on its socket.

One read of storage shows who holds a lease, and not whether that host lives: its timestamps are readings of a clock of its
own. The lock manager has read them all the time. It is asked for people's sake alone: no decision depends on what it says.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import HostState
from holdfast.wire.sanlock.header import HEADER_BYTES, decode_reply_header
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.state_records import RecordType
from holdfast.wire.sanlock.structures import Lockspace

SOCKET_PATH = "/run/sanlock/sanlock.sock"
TIMEOUT_S = 2.0
"""For all answers together: they come from memory."""
ANSWER_BYTES_MAX = 4 << 20
"""2000 hosts have 512 KiB of records."""
DAEMON_ALONE = 1
"""STATUS's `upto`."""


@dataclass(frozen=True, slots=True)
class HostSeen:
    """One host, with its last incarnation that was seen."""

    host_id: int
    name: str
    generation: int
    state: str
    """`LIVE`, `FAIL`, `DEAD`, `UNKNOWN`, `FREE`."""
    unchanged_s: float
    """Since the lock manager last saw its lease change."""
    io_timeout_s: int


@dataclass(frozen=True, slots=True)
class LockspaceSeen:
    """A lockspace that this host is in."""

    host_id: int
    """This host's."""
    hosts: tuple[HostSeen, ...]


def lockspace_seen(space: str, path: str = SOCKET_PATH) -> LockspaceSeen | None:
    """None: no lock manager answers, or this host is not in that lockspace. Blocks for `TIMEOUT_S` at most."""
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(OSError, MalformedMessage, KeyError, ValueError):
        lockspaces = _asked(path, r.GetLockspaces(), deadline)
        own = next((each for each in _lockspaces(lockspaces) if each.name.text == space), None)
        if own is None:
            return None
        hosts = _asked(path, r.GetHosts(0, Lockspace.of(space)), deadline)
        status = _asked(path, r.HostStatus(Lockspace.of(space)), deadline)
        daemon = _asked(path, r.Status(DAEMON_ALONE), deadline)
        of_daemon = _records(daemon, RecordType.DAEMON)
        if not isinstance(hosts, replies.Hosts) or not of_daemon:
            return None
        now = int(of_daemon[0]["monotime"])
        seen = {int(words["owner_id"]): words for words in _records(status, RecordType.HOST)}
        states = {each.host_id: HostState(each.state).name for each in hosts.hosts if each.state}
        return LockspaceSeen(
            own.host_id,
            tuple(
                HostSeen(
                    host_id,
                    words["owner_name"],
                    int(words["owner_generation"]),
                    states[host_id],
                    max(0, now - int(words["last_live"])),
                    int(words["io_timeout"]),
                )
                for host_id, words in sorted(seen.items())
                if host_id in states
            ),
        )
    return None


def _lockspaces(reply: replies.Reply) -> tuple[Lockspace, ...]:
    return reply.lockspaces if isinstance(reply, replies.Lockspaces) else ()


def _records(reply: replies.Reply, kind: RecordType) -> list[dict[str, str]]:
    records = reply.records if isinstance(reply, replies.Records) else ()
    return [each.words for each in records if each.type == kind]


def _asked(path: str, request: r.AnyRequest, deadline: float) -> replies.Reply:
    """One question on a connection of its own. Raises OSError, `MalformedMessage`."""
    command = request_table.command_of(request)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_left(deadline))
        connection.connect(path)
        connection.sendall(request_table.encode(request))
        raw = b""
        size: int | None = HEADER_BYTES
        while size is None or len(raw) < size:
            connection.settimeout(_left(deadline))
            piece = connection.recv(1 << 16)
            if not piece:
                break
            raw += piece
            if size == HEADER_BYTES and len(raw) >= HEADER_BYTES:
                size = None if command in replies.STREAMS else decode_reply_header(raw).length
            if len(raw) > ANSWER_BYTES_MAX:
                raise MalformedMessage(f"more than {ANSWER_BYTES_MAX} bytes")
    return replies.decode(command, raw)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
