"""Processes as a port: one process pinned, whether it lives, and a signal that can't hit another one.

A pid alone names the process that has it today.  A pidfd pins one process: it turns readable when that process has ended
(also as a zombie that nobody reaps), and while it has not, the kernel cannot give its number to another.
The start time (/proc/PID/stat field 22, proc(5)) names the process across a restart of the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from holdfast.model import ProcessId
from holdfast.system.host import cgroups

if TYPE_CHECKING:
    from holdfast.system.epoll import Readiness


class Process(Protocol):
    """One pinned process."""

    id: ProcessId

    def alive(self) -> bool:
        """False once the process has ended; never blocks."""

    def signal(self, number: int, *, tree: bool = False) -> None:
        """Send a signal to exactly this process; quiet if it has ended. `tree`: to all of its descendants first."""

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` once, from the event loop, when the process has ended."""

    def close(self) -> None:
        """Forget the process; no callback comes afterwards."""


class Family(Protocol):
    """Processes that belong together, wherever their parents are: a control group."""

    path: str
    """Names it, also for the next daemon."""

    def members(self) -> tuple[int, ...] | None:
        """The pids of those that live; None if that can't be said."""

    def signal(self, number: int) -> None:
        """To all of them."""

    def remove(self) -> None:
        """Nobody is in it any more."""


class Processes(Protocol):
    """How the layers above find processes."""

    def family(self, path: str) -> Family | None:
        """The control group that `holdfast run` made there; None if it can't be one."""

    def open(self, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none that we can see."""

    def program(self, pid: int) -> str:
        """The command name of a pid, for people; empty if unknown."""


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat; 0 if there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        raw = os.read(fd, 1024)
    except OSError:
        return 0
    finally:
        os.close(fd)
    # The command name (field 2) may hold blanks and parentheses: count from the last one.
    return int(raw[raw.rindex(b")") + 2 :].split(b" ", 20)[19])


def parent_pid(pid: int) -> int:
    """Field 4 of /proc/PID/stat. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as f:
        raw = f.read(1024)
    return int(raw[raw.rindex(b")") + 2 :].split(b" ", 2)[1])


def descendants(pid: int) -> list[ProcessId]:
    """Every living process that has this one as an ancestor (zombies have ended); complete if it is a subreaper."""
    children: dict[int, list[tuple[ProcessId, bytes]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                raw = f.read(1024)
        except OSError:
            continue  # it has ended
        fields = raw[raw.rindex(b")") + 2 :].split(b" ", 20)
        child = ProcessId(int(name), int(fields[19]))
        children.setdefault(int(fields[1]), []).append((child, fields[0]))
    found: list[ProcessId] = []
    ancestors = [pid]
    while ancestors:
        for child, state in children.pop(ancestors.pop(), ()):
            ancestors.append(child.pid)
            if state not in (b"Z", b"X"):
                found.append(child)
    return found


SIGNAL_ROUNDS_MAX = 32
"""A process that forks while its family is signalled is found in the next round; one that never stops gets no more."""


def signal_descendants(pid: int, number: int) -> None:
    """Send a signal to every descendant, those that are started meanwhile among them."""
    processes = SystemProcesses()
    signalled: set[ProcessId] = set()
    quiet = False
    for _ in range(SIGNAL_ROUNDS_MAX):
        fresh = [each for each in descendants(pid) if each not in signalled]
        if not fresh and quiet:
            return
        # Asked twice: a child that is born after the list was read, of a parent that ends before its turn, is in no list.
        quiet = not fresh
        for each in fresh:
            signalled.add(each)
            process = processes.open(each.pid)
            if process is not None:
                if process.id == each:
                    process.signal(number)
                process.close()


_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def become_subreaper() -> None:
    """From now on a descendant whose parent ends becomes this process's child (prctl(2)). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def program_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return ""


class PinnedProcess:
    """A process held by its pidfd."""

    __slots__ = ("_fd", "_poll", "_readiness", "_watched", "id")

    def __init__(self, process_id: ProcessId, fd: int, readiness: Readiness | None) -> None:
        self.id = process_id
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._readiness = readiness
        self._watched = False

    def alive(self) -> bool:
        return self._fd >= 0 and not self._poll.poll(0)

    def signal(self, number: int, *, tree: bool = False) -> None:
        if self._fd < 0:
            return
        if tree and self.alive():
            signal_descendants(self.id.pid, number)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def watch(self, on_exit: Callable[[], None]) -> None:
        if self._readiness is None:
            raise RuntimeError("these processes were opened without an event loop")

        def ended() -> None:
            if not self.alive():
                self._unwatch()
                on_exit()

        self._readiness.add(self._fd, ended)
        self._watched = True

    def _unwatch(self) -> None:
        if self._watched and self._readiness is not None:
            self._readiness.remove(self._fd)
            self._watched = False

    def close(self) -> None:
        if self._fd >= 0:
            self._unwatch()
            os.close(self._fd)
            self._fd = -1


class Cgroup:
    """The kernel's own `Family`."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def members(self) -> tuple[int, ...] | None:
        return cgroups.members(self.path)

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL and cgroups.kill(self.path):
            return
        processes = SystemProcesses()
        for pid in cgroups.members(self.path) or ():
            process = processes.open(pid)
            if process is not None:
                # It is pinned: if it is a member still, it was one all the time.
                if pid in (cgroups.members(self.path) or ()):
                    process.signal(number)
                process.close()

    def remove(self) -> None:
        cgroups.remove(self.path)


class SystemProcesses:
    """The processes of this kernel, as far as this PID namespace shows them.  Without `readiness` none can be watched."""

    def __init__(self, readiness: Readiness | None = None) -> None:
        self._readiness = readiness

    def open(self, pid: int) -> Process | None:
        if pid <= 0 or pid >= 1 << 31:
            return None
        try:
            fd = os.pidfd_open(pid)
        except OSError:  # no such process, or a thread id
            return None
        process = PinnedProcess(ProcessId(pid, start_ticks(pid)), fd, self._readiness)
        # Only if it lives *after* its start time was read was that the start time of this process, and not
        # of a stranger who got the number in between.
        if process.id.start_ticks and process.alive():
            return process
        process.close()
        return None

    def family(self, path: str) -> Cgroup | None:
        return Cgroup(path) if cgroups.is_ours(path) else None

    def program(self, pid: int) -> str:
        return program_name(pid)


def boot_id() -> str:
    """The kernel's name for this boot: pids of another boot mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


def host_name() -> str:
    return os.uname().nodename


CPUINFO_BYTES_MAX = 1 << 16
"""The first processors of a large machine: all have the same flags."""


def is_proven_hardware(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this is certainly no virtual machine: x86 processors have the flag `hypervisor` in one (CPUID leaf 1, bit 31
    of ECX). Other architectures, and what can't be read, prove nothing.
    """
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as f:
            text = f.read(CPUINFO_BYTES_MAX)
    except OSError:
        return False
    flags = next(
        (line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), []
    )
    return bool(flags) and "hypervisor" not in flags


def machine_ids() -> tuple[str, ...]:
    """What the operating system and the firmware call this machine, as far as they can be read."""
    found = []
    for path in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid"):
        try:
            with open(path, encoding="ascii", errors="replace") as f:
                found.append(f.read(128).strip())
        except OSError:
            found.append("")
    return tuple(found)


def lives(pid: int, ticks: int | None = None) -> bool:
    """Whether there is such a process, of that start time; one that has ended and that nobody has waited for is none."""
    process = SystemProcesses().open(pid)
    if process is None:
        return False
    try:
        return ticks in (None, process.id.start_ticks)
    finally:
        process.close()
