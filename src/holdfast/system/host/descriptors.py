"""Descriptors that outlive this daemon: systemd's socket activation and descriptor store, and our own re-exec.

Three ways a daemon finds descriptors at its start, all distinguished by name:
* systemd's sockets (sd_listen_fds(3)): LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES;
* what an earlier daemon gave to systemd's descriptor store (sd_pid_notify_with_fds(3)), in the same variables: ``lock-N``,
  ``conn-N-OWNER``, ``sanlock-slots``, ``fed-until``, ``watchdog``, and an empty file whose name says what armed that:
  ``watchdog-DRIVER-SECONDS-PATH``;
* a re-exec of our own: one memory file, named by HOLDFAST_REEXEC, that lists everything.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from holdfast.system.logs.log_queue import flush_logs
from holdfast.system.watchdog.fed_until import FED_UNTIL_NAME, NO_FD
from holdfast.system.watchdog.first_feeding import FED_VARIABLE, FIRST_PASSED_FD, Left, variable_of
from holdfast.system.watchdog.passed import WATCHDOG_TAG, PassedWatchdog, armed_with, passed

log = logging.getLogger(__name__)

REEXEC_VARIABLE = "HOLDFAST_REEXEC"
REEXEC_VERSION = 1
REEXEC_BYTES_MAX = 256 << 20
HELD_SIGNALS = frozenset(
    (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)
)


class DescriptorStore(Protocol):
    """Where descriptors outlive this daemon, by name."""

    stores: bool
    """Whether there is such a store."""

    def store(self, name: str, fd: int | None, *, until_removed: bool = False) -> None:
        """Keep a descriptor under a name, or let it go (None); quiet where there is no store. `until_removed`: also when its
        other end is closed.
        """

    def mark(self, name: str) -> None:
        """Keep an empty file under a name, once: the next daemon reads the name. `store` lets it go."""


class NoStore:
    """Where there is none."""

    stores = False

    def store(self, name: str, fd: int | None, *, until_removed: bool = False) -> None:
        """Nothing is kept."""

    def mark(self, name: str) -> None:
        """Nothing is kept."""


class Notifier:
    """Messages to the service manager; silent where there is none (sd_notify(3))."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        if self._address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        stored = environ.get("FDSTORE", "")
        # systemd before 254 doesn't say how large the store is: the unit file that we ship has one.
        self.stores = self._socket is not None and stored != "0"
        self.watched_s = _watched_s(environ) if self._socket is not None else None
        """Within which time each sign of life (`alive`) is wanted; None if none is (sd_watchdog_enabled(3))."""

    def send(self, message: str, fds: Sequence[int] = ()) -> bool:
        if self._socket is None:
            return False
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._socket.sendmsg([message.encode()], ancillary, 0, address)
        except OSError as e:
            log.error("the service manager does not take '%s': %s", message.split("\n", maxsplit=1)[0], e)
            return False
        return True

    def ready(self, status: str) -> None:
        self.send(f"READY=1\nSTATUS={status}")

    def reloading(self, now_us: int) -> None:
        self.send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def alive(self) -> None:
        """The event loop runs. Without this in time the service manager replaces the process."""
        self.send("WATCHDOG=1")

    def still_here(self, status: str, next_within_s: float) -> None:
        """A stop takes longer: say so again within that time, or the service manager kills this process."""
        self.send(f"STATUS={status}\nEXTEND_TIMEOUT_USEC={int(next_within_s * 1e6)}")

    def stopping(self) -> None:
        self.send("STOPPING=1")

    def store(self, name: str, fd: int | None, *, until_removed: bool = False) -> None:
        """Keep a descriptor under a name, or let it go (None)."""
        if not self.stores:
            return
        if fd is None:
            self.send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        else:
            unpolled = "FDPOLL=0\n" if until_removed else ""
            self.send(f"FDSTORE=1\n{unpolled}FDNAME={name}", [fd])

    def mark(self, name: str) -> None:
        """Keep an empty file under a name, once."""
        if not self.stores:
            return
        self.store(name, None)  # systemd distinguishes two files, but keeps both under one name
        empty = os.memfd_create("holdfast-mark", os.MFD_CLOEXEC)
        try:
            self.store(name, empty)
        finally:
            os.close(empty)


def _watched_s(environ: MutableMapping[str, str]) -> float | None:
    """The variables stay as they are: a re-exec has the same process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdigit() or pid not in ("", str(os.getpid())) or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


class SavedConnection(msgspec.Struct, array_like=True, frozen=True):
    """A client of the virtlockd socket at the moment of a re-exec."""

    fd: int
    owner: int
    restricted: bool
    carried: bytes
    unsent: bytes
    kept: str


class SavedClient(msgspec.Struct, array_like=True, frozen=True):
    """A client of sanlock's socket at the moment of a re-exec: `unsent` is the rest of an answer, behind which it `closes`
    or not.
    """

    client_id: int
    fd: int
    unsent: bytes = b""
    closes: bool = False


class ReexecState(msgspec.Struct, frozen=True):
    """Everything that one program image hands to the next."""

    version: int
    listeners: dict[str, int]
    self_bound: list[str]
    locks: dict[int, int]
    connections: list[SavedConnection]
    journal: bytes
    events: list[tuple[int, float, str, str, str, int, str, str, int, str]]
    lock_fd: int
    watchdog_fd: int = -1
    state_lock_fd: int = -1
    # Later fields have defaults: a released program neither sends nor reads them (REEXEC_VERSION stays).
    watchdog: tuple[str, str, int] = ("", "", 0)
    """Driver, path and fire timeout of the descriptor."""
    configuration: str = ""
    """The configuration in force, as it is kept in the run directory."""
    space_locks: dict[str, int] = {}
    """The lock of each lockspace that is used, by its name."""
    clients: list[SavedClient] = []
    client_slots: int = -1
    """The memory with what is to be known of them."""
    fed_until_fd: int = -1
    """The memory with the bound of the last feeding (`system.watchdog.fed_until`)."""


@dataclass(slots=True)
class Inherited:
    """What was found; `named` holds socket-activation and store descriptors by name, in order."""

    named: list[tuple[str, int]] = field(default_factory=list)
    reexec: ReexecState | None = None
    taken: Callable[[], None] = lambda: None
    """To be called when all of `reexec` is held and recorded here: the one that had it before may go."""
    close: Callable[[int], None] = os.close

    def take_watchdog(self, name: str) -> PassedWatchdog | None:
        """The watchdog's descriptor, from a re-exec or from the store, where it has that name."""
        # What is fetched from a virtlockd comes beside the store, and has no watchdog.
        if self.reexec is not None and (self.reexec.watchdog_fd >= 0 or not self.named):
            if self.reexec.watchdog_fd < 0:
                return None
            return passed(self.reexec.watchdog_fd, *self.reexec.watchdog, ())
        stored = [fd for each, fd in self.named if each == name]
        tags = [(each, fd) for each, fd in self.named if each.startswith(WATCHDOG_TAG)]
        self.named = [
            (each, fd) for each, fd in self.named if each != name and not each.startswith(WATCHDOG_TAG)
        ]
        for fd in (*stored[:-1], *(fd for _, fd in tags)):
            self.close(fd)
        names = tuple(each for each, _ in tags)
        return passed(stored[-1], *armed_with(names), names) if stored else None

    def take_fed_until(self) -> int:
        """The memory with the bound of the last feeding; -1: none was left."""
        if self.reexec is not None and (self.reexec.fed_until_fd >= 0 or not self.named):
            return self.reexec.fed_until_fd
        stored = [fd for name, fd in self.named if name == FED_UNTIL_NAME]
        self.named = [(name, fd) for name, fd in self.named if name != FED_UNTIL_NAME]
        for fd in stored[:-1]:
            self.close(fd)
        return stored[-1] if stored else NO_FD


def inherited(environ: MutableMapping[str, str]) -> Inherited:
    """Take over what we were started with; the variables are removed so that no child believes them."""
    found = Inherited()
    reexec = environ.pop(REEXEC_VARIABLE, "")
    environ.pop(FED_VARIABLE, None)
    pid, count, names = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if reexec:
        found.reexec = _read_state(int(reexec))
        for fd in _all_fds(found.reexec):
            _set_inheritable(fd, False)
    elif pid == str(os.getpid()) and count.isdigit():
        listed = names.split(":") if names else []
        for i in range(int(count)):
            fd = FIRST_PASSED_FD + i
            _set_inheritable(fd, False)
            found.named.append((listed[i] if i < len(listed) else "", fd))
    return found


def _read_state(fd: int) -> ReexecState:
    with os.fdopen(fd, "rb") as f:
        f.seek(0)
        return decode_state(f.read(REEXEC_BYTES_MAX))


def decode_state(raw: bytes) -> ReexecState:
    """The state is ours alone, but a newer program may have other fields: fail loudly, before anything is lost."""
    state = msgspec.msgpack.decode(raw, type=ReexecState)
    if state.version != REEXEC_VERSION:
        raise ValueError(f"re-exec state version {state.version}, this program knows {REEXEC_VERSION}")
    return state


def encode_state(state: ReexecState) -> bytes:
    return msgspec.msgpack.encode(state)


def write_state(state: ReexecState) -> int:
    """A memory file with the state, inheritable; raises OSError."""
    fd = os.memfd_create("holdfast-reexec", 0)
    view = memoryview(encode_state(state))
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _all_fds(state: ReexecState) -> list[int]:
    return [
        *state.listeners.values(),
        *state.locks.values(),
        *state.space_locks.values(),
        *(c.fd for c in state.connections),
        *(c.fd for c in state.clients),
        *(
            fd
            for fd in (
                state.lock_fd,
                state.watchdog_fd,
                state.state_lock_fd,
                state.client_slots,
                state.fed_until_fd,
            )
            if fd >= 0
        ),
    ]


def _set_inheritable(fd: int, on: bool) -> None:
    with contextlib.suppress(OSError):
        os.set_inheritable(fd, on)


def exec_with(
    state: ReexecState, program: str, arguments: list[str], environ: MutableMapping[str, str]
) -> None:
    """Become the new program with everything in `state` open.  Returns only by raising OSError; then nothing changed."""
    flush_logs()  # its thread ends with this program
    memory = write_state(state)
    fds = _all_fds(state)
    # Handlers don't survive exec, and the default action of these is death: hold them back until the new
    # program has its handlers.  The mask survives, and so does a signal that comes meanwhile.
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        os.execve(program, arguments, {**environ, REEXEC_VARIABLE: str(memory), **_fed_by(state)})
    finally:
        for fd in fds:
            _set_inheritable(fd, False)
        os.close(memory)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def _fed_by(state: ReexecState) -> dict[str, str]:
    """What the next program needs to feed a watchdog device before it has read the state."""
    driver, path, fire_timeout_s = state.watchdog
    if driver != "device" or state.watchdog_fd < 0 or state.fed_until_fd < 0:
        return {}
    return {FED_VARIABLE: variable_of(Left(state.watchdog_fd, state.fed_until_fd, path, fire_timeout_s))}


def socket_in_use(path: str) -> int | None:
    """The pid that listens at a socket path; 0 if it can't be found out; None if no process does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError:
            return 0
        pid: int = struct.unpack_from("i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid


def open_socket_to(path: str, gid: int | None) -> None:
    """Let a group connect to a bound socket, or its owner alone (None); raises OSError. One that is so stays as it is."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    mode = 0o600 if gid is None else 0o660
    owner_gid = found.st_gid if gid is None else gid
    if (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, owner_gid):
        return
    # Never open to the group before.
    os.chmod(path, 0o600)
    os.chown(path, -1, owner_gid)
    os.chmod(path, mode)


def listening(fds: Iterable[int]) -> dict[str, int]:
    """The listening sockets among passed descriptors, by path: names of units may differ, addresses don't."""
    found: dict[str, int] = {}
    for fd in fds:
        if path := _listens_at(fd):
            found.setdefault(path, fd)
    return found


def _listens_at(fd: int) -> str:
    """The path of a listening socket; empty for anything else."""
    try:
        duplicate = os.dup(fd)
    except OSError:
        return ""
    try:
        sock = socket.socket(fileno=duplicate)
    except OSError:  # no socket: a lock's file, which must not stay open a second time
        os.close(duplicate)
        return ""
    with sock:
        try:
            accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            path = sock.getsockname()
        except OSError:
            return ""
    return path if accepts and isinstance(path, str) else ""


def bind_socket(path: str, *, mode: int, gid: int | None = None) -> socket.socket:
    """A listening socket at a path, made under its final mode; a stale one is replaced."""
    # Whatever the unit's UMask= is: who may use the socket has to reach it.
    before = os.umask(0o022 if os.geteuid() == 0 else 0o077)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    finally:
        os.umask(before)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o777 & ~mode if gid is None else 0o177)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    if gid is not None:
        os.chown(path, -1, gid)
        os.chmod(path, mode)
    return sock
