"""holdfastd's part of a switch: gets locks and connections at its start, as the state of a re-exec.

They are at a keeper; or no process has them any more, since one that had was killed. Then only what virtlockd had is known
(`left_behind`), and each lock is taken again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import msgspec

from holdfast.switch import left_behind, place
from holdfast.system.host import fd_messages
from holdfast.system.host.descriptors import (
    REEXEC_BYTES_MAX,
    Inherited,
    Notifier,
    ReexecState,
    SavedConnection,
    decode_state,
)

log = logging.getLogger(__name__)

WAIT_S = 60.0
"""A keeper serves one client after the other, and none of them for long."""
LAST_S, PAUSE_S = 1.0, 0.02
"""Within which the kernel closes all sockets of a process that was killed; between two looks."""


class NotFetched(Exception):
    """There are locks, and they can't be had: this start must not be one without them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A switch of which every process with the descriptors was killed: virtlockd's pid, and a line for each lock."""

    pid: int
    locks: list[str]


def take_over(
    inherited: Inherited, environ: MutableMapping[str, str], beside: Callable[[], int | None]
) -> Ended | None:
    """Puts what a switch has left for this daemon into `inherited`, if there is anything. Returns what ended meanwhile.
    `beside`: the pid of a virtlockd that runs. Raises `NotFetched`.
    """
    if inherited.reexec is not None:
        inherited.taken = _forget_own
        return None
    try:
        found = fetch(place.KEEPER)
    except OSError as e:
        if _lives_on():
            raise NotFetched(
                f"locks of a virtlockd that has ended are at {place.KEEPER}, and can't be fetched: {e}"
            ) from None
        found = None
    if found is not None:
        inherited.reexec, inherited.taken = found
        # Of a start that ended before the keeper let go: copies of the same.
        _let_go(inherited, environ)
        return None
    try:
        left = left_behind.read()
    except OSError as e:
        raise NotFetched(f"locks of a virtlockd that was killed can't be read: {e}") from None
    if left is None:
        return None
    if left.is_in_use():
        raise NotFetched(f"virtlockd (pid {left.pid}) is being switched just now")
    if beside() is not None:
        return None  # one that was started since: what VMs have by now is in that one
    state = left.without_descriptors()
    kept = {name: fd for name, fd in inherited.named if name.startswith("lock-")}
    # Of a start that ended before it had all of them: these are held.
    state.locks.update({number: fd for name, fd in kept.items() if (number := _number(name))})
    inherited.named = [each for each in inherited.named if each[0] not in kept]
    inherited.reexec, inherited.taken = state, _forget
    return Ended(left.pid, left.locks)


def _lives_on() -> bool:
    """Whether there is a keeper, and not the rest of one that is being killed."""
    deadline = time.monotonic() + LAST_S
    while place.keeper_lives():
        if time.monotonic() > deadline:
            return True
        time.sleep(PAUSE_S)
    return False


def _number(name: str) -> int:
    """Of a lock, by its name in the descriptor store."""
    digits = name.removeprefix("lock-")
    return int(digits) if digits.isdigit() else 0


def _let_go(inherited: Inherited, environ: MutableMapping[str, str]) -> None:
    copies = [(name, fd) for name, fd in inherited.named if name.startswith(("lock-", "conn-"))]
    inherited.named = [each for each in inherited.named if each not in copies]
    store = Notifier(environ)
    for name, fd in copies:
        os.close(fd)
        store.store(name, None)


def _forget() -> None:
    try:
        left_behind.remove()
    except OSError as e:
        log.error("%s can't be removed: %s", place.LOCKS, e.strerror)


def _forget_own() -> None:
    """Virtlockd's process may have become this daemon itself."""
    with contextlib.suppress(OSError):
        if (left := left_behind.read()) is not None and left.pid == os.getpid():
            _forget()


def fetch(path: str) -> tuple[ReexecState, Callable[[], None]] | None:
    """What a keeper at that socket has, and what is to be called when it is safe here; None if there is no keeper, or it has
    nothing. Raises OSError if there is one and it does not answer, or ends meanwhile.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(WAIT_S)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        fd_messages.send(sock, {"kind": "fetch"})
        message = fd_messages.receive(sock)
        if message is None:
            raise ConnectionResetError("the keeper has closed the connection")
    except BaseException:
        sock.close()
        raise
    if message[0]["kind"] != "state":
        sock.close()
        return None
    memory, *fds = message[1]
    state = decode_state(fd_messages.read_memory_file(memory, REEXEC_BYTES_MAX))
    moved = msgspec.structs.replace(
        state,
        locks={number: fds[at] for number, at in state.locks.items()},
        connections=[
            SavedConnection(fds[each.fd], each.owner, each.restricted, b"", b"", "")
            for each in state.connections
        ],
    )

    def taken() -> None:
        _forget()  # first: a start after this one finds them at the keeper, or in the store and the journal
        # A keeper that was killed meanwhile has nothing that is not here.
        with sock, contextlib.suppress(OSError):
            fd_messages.send(sock, {"kind": "taken"})
        log.info("locks and connections of virtlockd are here, and in the descriptor store")

    return moved, taken
