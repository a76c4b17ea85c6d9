"""What a lock manager says of a volume group's hosts, and that nothing it says or leaves out makes `who` wait or fail."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.system.lvm import lockspace_hosts
from holdfast.system.lvm.lockspace_hosts import HostSeen, LockspaceSeen, lockspace_seen
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import HostState
from holdfast.wire.sanlock.header import HEADER_BYTES, decode_header
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import RecordType, StateRecord

SPACE = "lvm_vg"
HOST = "last_check=95 last_live={} last_req=0 owner_id={} owner_generation={} timestamp=7 io_timeout=10 owner_name=h{}"


def host(host_id: int, last_live: int, generation: int) -> StateRecord:
    return StateRecord(
        RecordType.HOST, data32=host_id, text=HOST.format(last_live, host_id, generation, host_id)
    )


ANSWERS: dict[Command, replies.Reply] = {
    Command.GET_LOCKSPACES: replies.Lockspaces(
        Result.OK, (s.Lockspace.of("other", 9), s.Lockspace.of(SPACE, 1, "/dev/mapper/vg-lvmlock"))
    ),
    Command.GET_HOSTS: replies.Hosts(
        Result.OK, (s.Host(1, 4, 90, 10, HostState.LIVE), s.Host(2, 3, 7, 10, HostState.FAIL))
    ),
    Command.HOST_STATUS: replies.Records(Result.OK, (host(1, 96, 4), host(2, 10, 3), host(3, 11, 1))),
    Command.STATUS: replies.Records(
        Result.OK, (StateRecord(RecordType.DAEMON, text="our_host_name=h1 monotime=100"),)
    ),
}


class LockManager:
    """Answers on a socket with the bytes that it was given."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.changed: dict[Command, Callable[[bytes], bytes]] = {}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(8)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            header = decode_header(connection.recv(1 << 16)[:HEADER_BYTES])
            command = Command(header.command)
            raw = self.changed.get(command, bytes)(ANSWERS[command].encode(header))
            connection.sendall(raw)
            if raw:
                connection.close()
            else:  # it hangs
                self._open.append(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._open:
            each.close()


@pytest.fixture
def manager() -> Iterator[LockManager]:
    with tempfile.TemporaryDirectory(prefix="hf") as place:  # a socket's path has 107 bytes
        made = LockManager(Path(place) / "s")
        yield made
        made.close()


def test_hosts_with_their_states_and_how_long_each_is_unchanged(manager: LockManager) -> None:
    """One that GET_HOSTS does not list has no state, and is left out."""
    assert lockspace_seen(SPACE, manager.path) == LockspaceSeen(
        1,
        (
            HostSeen(1, "h1", 4, "LIVE", 4, 10),
            HostSeen(2, "h2", 3, "FAIL", 90, 10),
        ),
    )


def test_lockspace_that_this_host_is_not_in(manager: LockManager) -> None:
    assert lockspace_seen("lvm_other", manager.path) is None


def test_no_lock_manager(tmp_path: Path) -> None:
    assert lockspace_seen(SPACE, str(tmp_path / "none")) is None


@pytest.mark.parametrize("command", ANSWERS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:HEADER_BYTES],
        lambda raw: b"\xff" * len(raw),
        lambda raw: raw + raw,
    ],
    ids=["cut", "header alone", "noise", "twice"],
)
def test_damaged_answers_say_nothing(
    manager: LockManager, command: Command, change: Callable[[bytes], bytes]
) -> None:
    manager.changed[command] = change
    seen = lockspace_seen(SPACE, manager.path)
    assert seen is None or seen.host_id == 1


def test_silence_ends(manager: LockManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockspace_hosts, "TIMEOUT_S", 0.2)
    manager.changed[Command.HOST_STATUS] = lambda _: b""
    began = time.monotonic()
    assert lockspace_seen(SPACE, manager.path) is None
    assert time.monotonic() - began < 20
