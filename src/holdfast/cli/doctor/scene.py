"""What all checks of `holdfast doctor` see: configuration, daemon, domains, and the host itself.

``root`` moves the files that are read, for tests and for images of other hosts; `Host` is the rest of the machine:
processes, sockets and systemd's units, asked through a port so that a check can be shown any machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.config import Config
from holdfast.control.api import HolderInfo, LeaseSpaceInfo, OwnerInfo, StatusInfo
from holdfast.manager.routing import Routing
from holdfast.model import DIRECT_LOCKSPACE, Resource
from holdfast.system.files.bounded_question import Silent, answer_in_time
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.proc_locks import locks_on, processes_with
from holdfast.system.host.descriptors import socket_in_use
from holdfast.system.host.process import lives, program_name
from holdfast.system.libvirt.domains import Domain

COMMAND_S = 10.0
"""For systemctl, dmsetup: they answer from memory, unless their own daemon hangs."""
UNIT_KEYS = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "Result",
    "Id",
    "FragmentPath",
)


@dataclass(frozen=True, slots=True)
class Program:
    """A process: its name as the kernel has it, its arguments, its user, and when it was started by the wall clock."""

    pid: int
    name: str
    arguments: tuple[str, ...] = ()
    uid: int = 0
    started: float | None = None
    elsewhere: bool = False
    """In another mount namespace: a container's daemon is none of this host's. libvirt's QEMUs have one each."""


LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")


class Host(Protocol):
    """The port."""

    def listener(self, path: str) -> int | None:
        """The pid that listens at a socket path; 0 if it can't be determined; None if nobody does."""

    def programs(self) -> Sequence[Program]:
        """Every process that can be seen and has not ended, in the order of pids."""

    def unit(self, name: str) -> Mapping[str, str]:
        """`UNIT_KEYS` of a unit of systemd; empty if systemd does not answer."""

    def lockers(self, path: str) -> Sequence[int]:
        """The pids that have a lock of a lock manager on a file; empty if it can't be looked at."""

    def locked_by(self, pid: int) -> Sequence[str]:
        """The files that a process has locked, but for virtlockd's pid file; those that can't be read are not among them."""

    def openers(self, path: str) -> Sequence[int]:
        """The pids that have a file or device open."""

    def why_not_switched(self, pid: int, vms: Collection[int]) -> str:
        """Why a virtlockd can't become holdfastd while these VMs run; empty if it can (ADR 0211)."""

    def output(self, *command: str) -> str:
        """What a command prints; empty if it is not installed, fails, or takes too long."""

    def root(self) -> bool:
        """Whether this user sees everything."""


class ThisHost:
    """The machine that doctor runs on."""

    def listener(self, path: str) -> int | None:
        return socket_in_use(path)

    def programs(self) -> Sequence[Program]:
        found = []
        here = _namespace("self")
        for name in sorted(int(each) for each in os.listdir("/proc") if each.isdigit()):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as f:
                    words = f.read(1 << 16).decode("utf-8", "replace").split("\0")
                uid = os.stat(f"/proc/{name}").st_uid
            except OSError:
                continue
            if not lives(name):
                continue  # it has ended, and nobody has waited for it
            there = _namespace(str(name))
            elsewhere = bool(here and there and here != there)
            started = _started_wall_s(name)
            found.append(Program(name, program_name(name), tuple(words[:-1]), uid, started, elsewhere))
        return found

    def unit(self, name: str) -> Mapping[str, str]:
        output = self.output("systemctl", "show", "--no-pager", "-p", ",".join(UNIT_KEYS), "--", name)
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def why_not_switched(self, pid: int, vms: Collection[int]) -> str:
        from holdfast.switch.order import why_not

        libvirt = [each.pid for each in self.programs() if each.name in LIBVIRT_DAEMONS]
        return why_not(pid, {*vms, *libvirt})  # these are stopped, and then asked for again

    def lockers(self, path: str) -> Sequence[int]:
        def look() -> list[int]:
            locks = [each for each in locks_on(path) if each.of_lock_manager]
            return [each.pid for each in processes_with(path, locks)]

        try:
            return answer_in_time(look)
        except (OSError, Silent):
            return ()

    def locked_by(self, pid: int) -> Sequence[str]:
        found = set()
        try:
            numbers = os.listdir(f"/proc/{pid}/fdinfo")
        except OSError:
            return ()  # it has ended
        for number in numbers:
            try:
                with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as f:
                    if "\nlock:" in f.read():
                        found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
            except OSError:
                continue  # it was closed meanwhile
        return sorted(each for each in found if not each.endswith("/virtlockd.pid"))

    def openers(self, path: str) -> Sequence[int]:
        found = []
        for program in self.programs():
            try:
                numbers = os.listdir(f"/proc/{program.pid}/fd")
            except OSError:
                continue
            for number in numbers:
                try:
                    if os.readlink(f"/proc/{program.pid}/fd/{number}") == path:
                        found.append(program.pid)
                        break
                except OSError:
                    continue
        return found

    def output(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    def root(self) -> bool:
        return os.geteuid() == 0


def _namespace(pid: str) -> str:
    """Of mounts; empty if it can't be read."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _started_wall_s(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError):
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Scene:
    """What all checks look at. ``in_force`` is the configuration that the daemon kept, if it differs or can be read."""

    root: str
    config: Config
    routing: Routing
    mounts: MountTable
    domains: list[Domain]
    status: StatusInfo | None
    owners: list[OwnerInfo]
    locks: list[HolderInfo]
    spaces: list[LeaseSpaceInfo] | None
    unreachable: str
    host: Host = field(default_factory=ThisHost)
    config_file: str | None = None
    in_force: Config | None = None
    not_permitted: bool = False
    unread: list[str] = field(default_factory=list)
    """libvirt's files about running VMs that can't be read."""
    _programs: Sequence[Program] | None = None

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)

    def programs(self, *names: str) -> list[Program]:
        """The processes of this host with one of these names; all of them, also of containers, if none is given."""
        if self._programs is None:
            self._programs = self.host.programs()
        if not names:
            return list(self._programs)
        return [each for each in self._programs if each.name in names and not each.elsewhere]

    def running(self) -> list[Domain]:
        """The domains whose QEMU runs."""
        alive = {each.pid for each in self.programs()}
        return [each for each in self.domains if each.pid is not None and each.pid in alive]

    def resource(self, path: str, spaces: Sequence[str]) -> Resource:
        """What libvirt asks for: with lockspaces in qemu-lockd.conf a hash in the first that fits, not the path."""
        return Resource(spaces[0], "x") if spaces else Resource(DIRECT_LOCKSPACE, path)


NAMED_MAX = 5


def some(which: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(which) - NAMED_MAX} more" if len(which) > NAMED_MAX else ""
    return ", ".join(which[:NAMED_MAX]) + more
