"""A blocking client of lvmlockd: in which mode this host holds an LV's lock, and another mode for it.

Takes, converts and gives up locks of LVs that stay active; activation itself is LVM's command
(docs/specs/libvirt-hooks-lvm.md 3.4). A persistent lock belongs to the host, not to a connection, so a connection that
failed is closed, and the next call makes another one.

What is unknown is said: `NoAnswer` to a request for a lock leaves open whether it was taken: only a query shows it.
"""

from __future__ import annotations

import os
import socket
import time

from holdfast.wire import lvmlockd as wire
from holdfast.wire.lvmlockd import LvLock, Mode, OpResult

__all__ = (
    "HeldElsewhere",
    "LockManagerFailed",
    "LockspaceInactive",
    "LvLock",
    "LvmlockdClient",
    "LvmlockdError",
    "Mode",
    "NoAnswer",
    "StorageFailed",
)
"""With `LvLock` and `Mode`, so that what is above needs nothing of the wire."""

SOCKET_PATH = "/run/lvm/lvmlockd.socket"
TIMEOUT_S = 10.0
"""For one answer. sanlock repeats a shared request that is refused for about 5 s, and then lvmlockd answers."""
_PIECE_BYTES = 1 << 16


class LvmlockdError(Exception):
    """lvmlockd did not do what it was asked for; the text says what, and about which lock."""


class HeldElsewhere(LvmlockdError):
    """Another host holds the lock in a mode that does not go with the one asked for. Its name is in the lease on disk."""


class LockspaceInactive(LvmlockdError):
    """The VG is not started on this host (`vgchange --lock-start`), or is being started."""


class StorageFailed(LvmlockdError):
    """The VG's leases can't be renewed: it is to be deactivated here, and only giving up is served (`lvmlockctl --drop`)."""


class LockManagerFailed(LvmlockdError):
    """lvmlockd, or the lock manager behind it, gave another reason: `result`, its number."""

    def __init__(self, text: str, result: int) -> None:
        super().__init__(text)
        self.result = result


class NoAnswer(LvmlockdError):
    """lvmlockd does not run, has closed the connection, says what can't be understood, or says nothing in time.

    Whether a requested lock was taken is not known then.
    """


class LvmlockdClient:
    """One connection, made by the first call and by the first one after a failure; used by one thread at a time."""

    def __init__(
        self, path: str = SOCKET_PATH, *, timeout_s: float = TIMEOUT_S, command: str = "holdfast"
    ) -> None:
        """`command`: as what lvmlockd logs this client."""
        self._path = path
        self._timeout_s = timeout_s
        self._command = command
        self._socket: socket.socket | None = None
        self._framer = wire.Framer()

    def __enter__(self) -> LvmlockdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Locks that are not persistent end with it."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._framer = None, wire.Framer()

    def version(self) -> int:
        """That of the protocol. Raises `NoAnswer`."""
        message = self._asked(wire.hello(), "hello")
        try:
            return wire.version_of(message)
        except wire.MalformedText as e:
            raise self._no_answer("hello", str(e)) from None

    def query_lock_lv(self, lock: LvLock) -> Mode:
        """The mode in which this host holds it: UNLOCKED, SHARED or EXCLUSIVE. Raises `LvmlockdError`."""
        what = f"query of {lock.vg_name}/{lock.lv_name}"
        request = wire.query_lock_lv(lock, command=self._command, pid=os.getpid())
        answer = self._answer(request, what)
        if answer.op_result != OpResult.DONE:
            raise _failed(answer.op_result, lock, what)
        if answer.mode is Mode.INVALID:
            raise self._no_answer(what, "it named no mode")
        return answer.mode

    def lock_lv(self, lock: LvLock, mode: Mode, *, persistent: bool = True) -> None:
        """Take it, convert it, or (UNLOCKED) give it up; done as well if this host holds it so already.

        A lock that is not persistent ends with this connection. Raises `LvmlockdError`: the mode is what it was, except
        after `NoAnswer`, when it may be either one.
        """
        what = f"{mode.value} of {lock.vg_name}/{lock.lv_name}"
        request = wire.lock_lv(lock, mode, persistent=persistent, command=self._command, pid=os.getpid())
        result = self._answer(request, what).op_result
        if result in (OpResult.DONE, OpResult.HELD_SO_ALREADY):
            return
        if result != OpResult.NOT_HELD or mode is not Mode.UNLOCKED:
            raise _failed(result, lock, what)

    def _answer(self, request: bytes, what: str) -> wire.Answer:
        message = self._asked(request, what)
        try:
            return wire.Answer.decode(message)
        except wire.MalformedText as e:
            raise self._no_answer(what, str(e)) from None

    def _asked(self, request: bytes, what: str) -> bytes:
        """The whole exchange has `timeout_s`: however slowly the answer comes, it is not waited for longer."""
        deadline = time.monotonic() + self._timeout_s
        try:
            connection = self._sent(request, deadline)
            while True:
                connection.settimeout(_left(deadline))
                piece = connection.recv(_PIECE_BYTES)
                if not piece:
                    raise self._no_answer(what, "it closed the connection")
                if messages := self._framer.feed(piece):
                    break
        except TimeoutError:
            raise self._no_answer(what, f"it said nothing in {self._timeout_s:g} s") from None
        except (OSError, wire.MalformedText) as e:
            raise self._no_answer(what, e.strerror or str(e) if isinstance(e, OSError) else str(e)) from None
        if len(messages) > 1:
            raise self._no_answer(what, "it answered more than once")
        return messages[0]

    def _sent(self, request: bytes, deadline: float) -> socket.socket:
        """On the connection that there is; on a new one if that is closed: lvmlockd was started again since."""
        if self._socket is not None:
            try:
                self._socket.settimeout(_left(deadline))
                self._socket.sendall(request)
                return self._socket
            except BrokenPipeError:
                self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_left(deadline))
        self._socket.connect(self._path)
        self._socket.sendall(request)
        return self._socket

    def _no_answer(self, what: str, why: str) -> NoAnswer:
        """What comes on this connection later would be taken for the answer to the next request, so it ends."""
        self.close()
        return NoAnswer(f"lvmlockd at {self._path} did not answer to {what}: {why}")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _failed(result: int, lock: LvLock, what: str) -> LvmlockdError:
    match result:
        case OpResult.HELD_ELSEWHERE:
            return HeldElsewhere(f"{what} is refused: another host holds the lock")
        case OpResult.NO_LOCKSPACE:
            return LockspaceInactive(f"{what} is refused: VG {lock.vg_name} is not started on this host")
        case OpResult.LOCKSPACE_STARTING:
            return LockspaceInactive(f"{what} is refused: VG {lock.vg_name} is being started on this host")
        case OpResult.VG_KILLED:
            return StorageFailed(
                f"{what} is refused: the storage of VG {lock.vg_name}'s leases failed on this host"
            )
        case OpResult.LOCK_MANAGER_FAILED:
            return LockManagerFailed(
                f"{what} failed: {lock.lock_type} refused it at {lock.lv_lock_args} ({result})", result
            )
        case _:
            return LockManagerFailed(f"{what} failed: lvmlockd says {result}", result)
