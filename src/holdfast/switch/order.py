"""Orders a live switch: what speaks against it, the program in virtlockd's place, SIGUSR1, and what came of it.

virtlockd is lost, with all locks, if it re-executes itself while a connection has not registered an owner
(docs/specs/virtlockd-rpc.md 4.2). Which ones have is in its memory alone; but a connection that a VM's process has was
registered before that process was QEMU. So every other one is a reason against the switch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from holdfast.switch import left_behind, place
from holdfast.switch.program import CHECK
from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.host.process import SystemProcesses, start_ticks

COMMAND_S = 60.0
ANSWER_S = 60.0
"""virtlockd re-executes itself within milliseconds; thousands of locks on slow storage take some seconds."""
LOOK_S = 0.02
CONNECTIONS_S = 5.0
"""libvirt's own connections last as long as one operation."""
NOT_REGISTERED = (
    "has a connection to it and is no VM of libvirt's that runs, so it may not have registered, and virtlockd would lose "
    "all its locks; end that process or its connection, and try again"
)
SYS_PIDFD_GETFD = 438
PROC_BYTES_MAX = 1 << 20


class NotSwitched(Exception):
    """The text says why, and what to do. virtlockd runs on with all its locks, unless the text says otherwise."""


@dataclass(frozen=True, slots=True)
class Virtlockd:
    """A running one: its pid, and the file that it executes on SIGUSR1."""

    pid: int
    target: str


def find(pid: int) -> Virtlockd:
    """Raises `NotSwitched` if what it would execute is not surely known."""
    if not hasattr(signal, "pidfd_send_signal"):
        raise NotSwitched("this kernel or Python has no pidfds")
    for name in ("mnt", "pid"):
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            raise NotSwitched(f"virtlockd (pid {pid}) runs in a {name} namespace of its own; run this there")
    if os.readlink(f"/proc/{pid}/root") != "/":
        raise NotSwitched(f"virtlockd (pid {pid}) has a root directory of its own")
    first = _proc(pid, "cmdline").split(b"\0")[0].decode("utf-8", "surrogateescape")
    environ = dict(each.partition(b"=")[::2] for each in _proc(pid, "environ").split(b"\0"))
    path = environ.get(b"PATH", b"/bin:/usr/bin").decode("utf-8", "surrogateescape")
    target = executed(first, path, os.readlink(f"/proc/{pid}/cwd"))
    if target is None:
        raise NotSwitched(f"virtlockd (pid {pid}) was started as {first!r}, and no such program is found")
    at = os.stat(target)
    if not stat.S_ISREG(at.st_mode) or at.st_uid != 0 or at.st_mode & 0o022:
        raise NotSwitched(f"{target} is not a program that only root can change")
    return Virtlockd(pid, target)


def executed(first: str, path: str, directory: str) -> str | None:
    """What execvp(3) executes for a program's own name: through PATH if it has no slash. Without symbolic links."""
    places = [os.path.join(directory, first)]
    if "/" not in first:
        places = [os.path.join(directory, each, first) for each in path.split(":")]
    found = next(
        (each for each in places if first and os.access(each, os.X_OK) and os.path.isfile(each)), None
    )
    return None if found is None else os.path.realpath(found)


def _proc(pid: int, name: str) -> bytes:
    raw = read_regular(f"/proc/{pid}/{name}", PROC_BYTES_MAX)
    if isinstance(raw, Unreadable):
        raise NotSwitched(f"/proc/{pid}/{name}: {raw.reason}")
    return raw


def strangers(pid: int, vms: Collection[int]) -> list[str]:
    """virtlockd's connections that no VM's process has, by the process at the other end. Raises `NotSwitched`."""
    found = []
    names = SystemProcesses()
    for sock in _sockets(pid):
        with sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            at = sock.getsockname()
            if not isinstance(at, str) or "virtlockd" not in at:
                continue  # a log, or its own
            peer: int = struct.unpack_from("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            if peer not in vms or "admin" in at:
                found.append(f"{names.program(peer) or 'a process that has ended'} (pid {peer})")
    return found


def _sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of its sockets of the local kind (pidfd_getfd(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        process = os.pidfd_open(pid)
    except OSError as e:
        raise NotSwitched(f"virtlockd (pid {pid}): {e.strerror}") from None
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    continue
            except OSError:
                continue
            fd = libc.syscall(SYS_PIDFD_GETFD, process, int(name), 0)
            if fd < 0:
                why = os.strerror(ctypes.get_errno())
                raise NotSwitched(f"which connections virtlockd (pid {pid}) has can't be found out: {why}")
            sock = socket.socket(fileno=fd)
            if sock.family == socket.AF_UNIX:
                yield sock
            else:
                sock.close()
    finally:
        os.close(process)


def why_not(pid: int, known: Collection[int]) -> str:
    """Why a virtlockd can't be switched now; empty if it can. `known`: the processes whose connections are no reason."""
    try:
        if not place.program():
            raise NotSwitched(f"{place.PROGRAM} is not installed beside the holdfast command")
        if left := strangers(find(pid).pid, known):
            raise NotSwitched(f"{', '.join(sorted(set(left)))} {NOT_REGISTERED}")
    except (NotSwitched, OSError) as e:
        return str(e)
    return ""


def wait_for_registered(pid: int, vms: Collection[int]) -> None:
    """Raises `NotSwitched` as long as there is a connection that may not be registered."""
    deadline = time.monotonic() + CONNECTIONS_S
    while left := strangers(pid, vms):
        if time.monotonic() > deadline:
            raise NotSwitched(f"{', '.join(sorted(set(left)))} {NOT_REGISTERED}")
        time.sleep(LOOK_S)


class Watched:
    """A process that is known to be the same, also when it has ended. Raises `NotSwitched` if it has before."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self.fd = os.pidfd_open(pid)
        except OSError:
            raise NotSwitched(f"virtlockd (pid {pid}) has ended") from None

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def has_ended(self) -> bool:
        return bool(select.select([self.fd], [], [], 0)[0])


def order(
    which: Virtlockd,
    vms: Collection[int],
    *,
    command: Sequence[str],
    backend: str,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[list[str]], None] | None = None,
) -> place.Result:
    """The whole switch. `command`: holdfastd's, to be executed in virtlockd's place; `keep` starts a keeper by its command
    instead. Raises `NotSwitched`; virtlockd runs on then, or its locks are where the text says.
    """
    program = place.program()
    if not program:
        raise NotSwitched(f"{place.PROGRAM} is not installed beside the holdfast command")
    try:
        subprocess.run([program, CHECK], check=True, capture_output=True, timeout=COMMAND_S)
    except (OSError, subprocess.SubprocessError) as e:
        raise NotSwitched(f"{program} does not run here: {e}") from None
    if place.keeper_has_locks():
        raise NotSwitched(
            f"a keeper of an earlier switch still has locks, and virtlockd (pid {which.pid}) began after it, and has "
            "others: suspend the VMs that were started or resumed since (virsh suspend), try again, and resume them"
        )
    ticks = start_ticks(which.pid)
    plan = place.Plan(
        which.pid, ticks, which.target, (os.getpid(), start_ticks(os.getpid())), list(command), backend
    )
    try:
        os.makedirs(place.DIRECTORY, mode=0o700, exist_ok=True)
        # A keeper of a run that was stopped has nothing, and serves.
        if keep is not None and not place.keeper_lives():
            keep([program, place.KEEP])
            _await(place.keeper_lives, "the keeper does not start")
        wait_for_registered(which.pid, vms)
        _give_up(say)
        place.put(plan, program)
    except OSError as e:
        raise NotSwitched(f"{e.filename or place.DIRECTORY}: {e.strerror}") from None
    try:
        say(f"virtlockd (pid {which.pid}) re-executes itself, and is {program} then")
        wait_for_registered(which.pid, vms)
        with Watched(which.pid) as process:
            if start_ticks(which.pid) != ticks:
                raise NotSwitched(f"virtlockd (pid {which.pid}) has ended")
            signal.pidfd_send_signal(process.fd, signal.SIGUSR1)
            _await(
                lambda: _is_final(place.read_result()) or process.has_ended(),
                f"virtlockd (pid {which.pid}) does not answer to SIGUSR1",
            )
            ended = process.has_ended()
    finally:
        with contextlib.suppress(OSError):
            place.remove(which.target)
    result = _outcome(which.pid, backend) if ended else place.read_result()
    if result is None or result.pid != which.pid:
        raise NotSwitched(
            f"virtlockd (pid {which.pid}) has ended without a word, and its locks with it, while its VMs run: "
            "journalctl -u virtlockd.service; start holdfastd at once, which finds what it can; holdfast doctor"
        )
    if result.outcome == "back":
        raise NotSwitched(f"the real virtlockd runs on and keeps all its locks: {result.why}")
    return result


def _give_up(say: Callable[[str], None]) -> None:
    """What a switch has left behind that was killed, where a virtlockd that began since has locks by now."""
    with contextlib.suppress(OSError):
        if (left := left_behind.read()) is not None:
            say(
                f"LOCKS OF AN EARLIER SWITCH (virtlockd, pid {left.pid}) ended when it was killed, and are not taken again: "
                f"{'; '.join(left.locks)}; holdfast doctor names VMs that have none"
            )


def _is_final(result: place.Result | None, *, ended: bool = False) -> bool:
    """Whether nothing more comes. With all at the keeper a process that has not ended may still go back."""
    if result is None or result.outcome == "begun":
        return False
    return ended or result.outcome != "kept"


def _outcome(pid: int, backend: str) -> place.Result | None:
    """Of a process that has ended. If it was killed while nobody else had its locks, they are left behind for holdfastd, and
    the outcome is "ended". None if they are not known.
    """
    with contextlib.suppress(NotSwitched):  # a keeper says what it has when it has tried for all
        _await(lambda: _is_final(place.read_result(), ended=True) or not place.keeper_has_locks(), "")
    result = place.read_result()
    if result is not None and result.outcome != "begun":
        return result if result.outcome != "back" else None
    try:
        locks = result.locks if result is not None else left_behind.write_of(pid, backend)
    except OSError:
        return None
    return place.Result(pid, "kept" if place.keeper_has_locks() else "ended", "it was killed", locks)


def _await(condition: Callable[[], bool], what: str, *, seconds: float = ANSWER_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotSwitched(f"{what} within {seconds:.0f} s")
        time.sleep(LOOK_S)
