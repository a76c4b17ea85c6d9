"""Two hosts of a shared volume group on one machine: real holdfastd and hook, fake lvmlockd, and stand-ins for LVM.

Each holdfastd has mounts of its own: its `/dev` with the nodes of active volumes, lvmlockd's socket, and libvirt's status
files, which a test writes as libvirt does. Who holds a volume is on "storage" as well: the leases, as sanlock writes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from holdfast.ondisk import areas
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_block import Dblock, HostBlock, ModeBlock
from holdfast.ondisk.padded_name import PaddedName
from holdfast.testing.fake_lvmlockd import FakeLvmlockd, Modes, State
from holdfast.testing.virtlockd_client import CallFailed, VirtlockdClient
from holdfast.wire.lvmlockd import Mode
from tests.support import lvm_stand_in
from tests.support.daemon import (
    BIN,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    LIBVIRT_STATUS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    Holdfastd,
)
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until

EX, SH = Mode.EXCLUSIVE, Mode.SHARED
VG_UUID = "VGvgVG-tyfN-1qjW-eUPt-c15t-i2M6-STfxvE"
FIRST_AREA = 67
"""lvmlockd's: the first volume's lease."""
VOLUMES = 24
"""One for each test of a module, which may all be run by one process."""
NODES = ("null", "zero", "full", "random", "urandom", "tty")
HOSTS_MAX = 4
IO_TIMEOUT_S, FIRE_TIMEOUT_S = 1, 6
"""Of the guard's lockspace."""


class LeasedModes(Modes):
    """The fake's modes, with the leases that show them."""

    def __init__(self, path: Path, leases: Path) -> None:
        super().__init__(path)
        self._leases = leases
        leases.write_bytes(b"")
        with open(leases, "r+b") as f:
            f.truncate((FIRST_AREA + VOLUMES) * DEFAULT.align_bytes)
            for host_id in range(1, HOSTS_MAX):
                record = dataclasses.replace(
                    areas.fresh_delta_lease(DEFAULT, "lvm_vg", 10, 2),
                    owner_id=host_id,
                    timestamp=100,
                    host_name=PaddedName.of(f"h{host_id}"),
                )
                f.seek(DEFAULT.delta_offset_bytes(host_id))
                f.write(record.sector())
        with self.locked() as state:
            for number in range(VOLUMES):
                state.leases[f"1.0.0:{at(number)}"] = uuid_of(number)

    @contextlib.contextmanager
    def locked(self) -> Iterator[State]:
        with super().locked() as state:
            yield state
            with open(self._leases, "r+b") as f:
                for number in range(VOLUMES):
                    held = {
                        int(host): Mode(mode) for host, mode in state.held.get(uuid_of(number), {}).items()
                    }
                    owner = next((host for host, mode in held.items() if mode is EX), 0)
                    leader = areas.fresh_leader(DEFAULT, "lvm_vg", uuid_of(number), 250)
                    if owner:
                        leader = dataclasses.replace(
                            leader,
                            owner_id=owner,
                            owner_generation=2,
                            timestamp=7,
                            lver=24,
                            write_id=owner,
                            write_generation=2,
                            write_timestamp=7,
                        )
                    f.seek(at(number))
                    f.write(leader.sector())
                    for host in range(1, HOSTS_MAX):
                        block = HostBlock(dblock=Dblock(mbal=host, lver=24), mode=ModeBlock.shared(2))
                        f.seek(at(number) + DEFAULT.host_block_offset_bytes(host))
                        is_shared = held.get(host) is SH
                        f.write(
                            block.sector(DEFAULT.sector_bytes) if is_shared else bytes(DEFAULT.sector_bytes)
                        )


def at(number: int) -> int:
    """Where the lease of a volume is."""
    return (FIRST_AREA + number) * DEFAULT.align_bytes


def uuid_of(number: int) -> str:
    """That of the volume with a number."""
    return f"LVlv{number:02}-tyfN-1qjW-eUPt-c15t-i2M6-STfxvE"


class VolumeHost(Holdfastd):
    """One host."""

    def __init__(self, place: Path, number: int, modes: Modes, *, keys: str = "", more: str = "") -> None:
        """`keys`: more of the table with driver lvm; `more`: other tables."""
        name = f"h{number}"
        super().__init__(
            place / name,
            '[backend.san-lvm]\ndriver = "lvm"\nacquire_wait_s = 0.5\nhandover_wait_s = 4\n'
            f"{keys}\n"
            '[[disk]]\nmatch = "/dev/vg/*"\nbackend = "san-lvm"\n[[disk]]\nmatch = "/dev/plain/*"\nbackend = "san-lvm"\n'
            f"{more}\n",
        )
        self.name, self._place = name, place
        self.status_files, self.dev = self.directory / "status", self.directory / "dev"
        self._lvm, self._bin = self.directory / "lvm", self.directory / "bin"
        for directory in (self.status_files, self._lvm, self._bin, self.dev / "vg", self.dev / "mapper"):
            directory.mkdir(parents=True)
        for node in (*NODES, "mapper/vg-lvmlock"):
            (self.dev / node).touch()
        facts = self.directory / "facts.json"
        volumes = {
            f"lv{n}": {"vg": "vg", "uuid": uuid_of(n), "at": at(n), "minor": n} for n in range(VOLUMES)
        }
        volumes["thin"] = {
            "vg": "vg",
            "uuid": uuid_of(97),
            "at": 0,
            "minor": 97,
            "layout": "thin,sparse",
            "pool": "pool",
        }
        volumes["pool"] = {
            "vg": "vg",
            "uuid": uuid_of(98),
            "at": at(VOLUMES),
            "minor": 98,
            "layout": "thin,pool",
        }
        volumes["mine"] = {"vg": "plain", "uuid": uuid_of(99), "at": 0, "minor": 99}
        facts.write_text(
            json.dumps(
                {"host_id": number, "directory": str(self.directory), "vg_uuid": VG_UUID, "volumes": volumes}
            )
        )
        for command in ("lvchange", "lvs", "lvmconfig"):
            script = self._bin / command
            script.write_text(
                f'#!/bin/sh\nexec {sys.executable} {lvm_stand_in.__file__} {facts} {command} "$@"\n'
            )
            script.chmod(0o755)
        self.lvmlockd = FakeLvmlockd(self._lvm / "lvmlockd.socket", modes, number, ["vg"])

    def starts(self) -> VolumeHost:
        """holdfastd, within the mounts of its host."""
        path = f"{self._bin}:{os.environ['PATH']}"
        self.start(environ={"PATH": path}, preexec_fn=self._mounts())
        return self

    def restarted(self) -> None:
        """It is killed, and the next one goes on."""
        self.kill()
        self.starts()

    def _mounts(self) -> Callable[[], None]:
        libc = ctypes.CDLL(None, use_errno=True)

        def mount(what: Path | str, where: Path | str, kind: str | None = None, flags: int = MS_BIND) -> None:
            kind_raw = None if kind is None else kind.encode()
            if libc.mount(str(what).encode(), str(where).encode(), kind_raw, flags, None) != 0:
                raise OSError(ctypes.get_errno(), f"mount {what} on {where}")

        def enter() -> None:
            if libc.unshare(CLONE_NEWNS | CLONE_NEWUTS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            socket.sethostname(self.name)
            mount("none", "/", None, MS_REC | MS_PRIVATE)
            mount("holdfast-test", "/run", "tmpfs", 0)
            os.makedirs("/run/lvm")
            LIBVIRT_STATUS.mkdir(parents=True)
            mount(self._lvm, "/run/lvm")
            mount(self.status_files, LIBVIRT_STATUS)
            mount(self._place / "sysblock", "/sys/dev/block")
            for node in NODES:
                mount(f"/dev/{node}", self.dev / node)
            mount(self._place / "leases", self.dev / "mapper/vg-lvmlock")
            mount(self.dev, "/dev", None, MS_BIND | MS_REC)

        return enter

    def inside(self, *command: str) -> subprocess.Popen[bytes]:
        """A program within the mounts of this host."""
        path = f"{self._bin}:{os.environ['PATH']}"
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path},
            preexec_fn=self._mounts(),  # noqa: PLW1509 - it calls the kernel alone
        )

    def refuses(self, guest: Guest) -> str:
        """libvirt is about to start it, and is refused: why. It calls `release` then."""
        why = self.hook("prepare", guest)
        assert why, f"{guest.name} may be started"
        assert self.hook("release", guest) == ""
        return why

    def who(self, path: str) -> tuple[int, str]:
        """Exit code and words of `holdfast who`."""
        return self.holdfast("who", path)

    def holdfast(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a command on this host, with its errors."""
        asked = self.inside(str(BIN / "holdfast"), "--config", str(self.config), *words)
        text = asked.communicate(timeout=60)[0].decode()
        return asked.returncode, text

    def command(self, name: str, script: str) -> None:
        """A program of this host, as a line of shell."""
        made = self._bin / name
        made.write_text(f"#!/bin/sh\n{script}\n")
        made.chmod(0o755)

    def is_active(self, lv: str) -> bool:
        return (self.dev / "vg" / lv).exists()

    def hook(self, operation: str, guest: Guest) -> str:
        """libvirt's call; what it says if it fails, or empty."""
        conf = self.directory / "qemu.conf"
        conf.write_text('lock_manager = "lockd"\n')
        command = [str(BIN / "holdfast-qemu-hook"), "--socket", self.control, "--qemu-conf", str(conf)]
        done = subprocess.run(
            [*command, guest.name, operation, "begin", "-"],
            input=guest.xml.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.stderr.decode() if done.returncode else ""

    def ends(self) -> None:
        self.stop_all()
        self.lvmlockd.close()


def ask(socket_path: str, pid: str, name: str, uuid_of_vm: str, path: str) -> None:
    """libvirt's ACQUIRE for a VM, by a program of its own. Raises `CallFailed`."""
    with VirtlockdClient(socket_path, timeout_s=30) as client:
        client.register(pid=int(pid), name=name, uuid=uuid_of_vm)
        client.acquire(path)


class Guest:
    """A VM with one volume; on each host it may have a QEMU, which is a process that sleeps."""

    def __init__(self, name: str, lv: str) -> None:
        self.name, self.lv = name, lv
        self.path = f"/dev/vg/{lv}"
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        self.qemus: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def xml(self) -> str:
        return (
            f"<domain type='kvm' id='1'><name>{self.name}</name><uuid>{self.uuid}</uuid><devices>"
            f"<disk type='block' device='disk'><source dev='{self.path}'/><target dev='vda'/></disk></devices></domain>"
        )

    def says(self, host: VolumeHost, state: str, reason: str = "", job: str = "", phase: str = "") -> None:
        """libvirt replaces its status file."""
        attributes = f"async='{job}'" + (f" phase='{phase}'" if phase else "")
        of_job = f"<job type='none' {attributes}/>" if job else ""
        pid = self.qemus[host.name].pid if host.name in self.qemus else 0
        new = host.status_files / f"{self.name}.new"
        new.write_text(
            f"<domstatus state='{state}' reason='{reason}' pid='{pid}'>{of_job}{self.xml}</domstatus>"
        )
        new.replace(host.status_files / f"{self.name}.xml")

    def qemu(self, host: VolumeHost) -> None:
        """QEMU is started there, and has its disk open."""
        self.qemus[host.name] = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        (host.directory / f"open-{self.lv}").touch()

    def asks(self, host: VolumeHost, *, releases: bool = False) -> str:
        """libvirt's ACQUIRE or RELEASE; the text of the refusal, or empty."""
        try:
            with VirtlockdClient(host.socket, timeout_s=30) as client:
                client.register(pid=self.qemus[host.name].pid, name=self.name, uuid=self.uuid)
                if releases:
                    client.release(self.path)
                else:
                    client.acquire(self.path)
        except CallFailed as e:
            return e.reply.message
        return ""

    def starts(self, host: VolumeHost) -> None:
        assert host.hook("prepare", self) == ""
        assert host.is_active(self.lv)
        self.qemu(host)
        self.says(host, "paused", "starting up", "start")
        assert self.asks(host) == ""
        self.says(host, "running", "booted")

    def is_killed(self, host: VolumeHost) -> None:
        """QEMU ends there, whatever libvirt knows of it."""
        (host.directory / f"open-{self.lv}").unlink(missing_ok=True)
        if (process := self.qemus.pop(host.name, None)) is not None:
            process.kill()
            process.wait()

    def is_gone(self, host: VolumeHost) -> None:
        """libvirt ends it there."""
        self.is_killed(host)
        (host.status_files / f"{self.name}.xml").unlink(missing_ok=True)
        assert host.hook("release", self) == ""

    def ends(self, *hosts: VolumeHost) -> None:
        """Whatever was left."""
        for host in hosts:
            self.is_killed(host)
            (host.status_files / f"{self.name}.xml").unlink(missing_ok=True)


@dataclasses.dataclass
class Site:
    """Both hosts, and volumes that no test has used yet."""

    h1: VolumeHost
    h2: VolumeHost
    modes: Modes
    used: int = 0

    def guest(self, name: str) -> Guest:
        self.used += 1
        return Guest(name, f"lv{self.used - 1}")

    def held(self, guest: Guest) -> dict[int, Mode]:
        return self.modes.of(uuid_of(int(guest.lv.removeprefix("lv"))))

    def becomes(self, guest: Guest, held: dict[int, Mode]) -> None:
        wait_until(lambda: self.held(guest) == held, f"{guest.lv} to be held as {held}")


def guarded_site(place: Path, activation: str) -> Site:
    """Both hosts, in one lockspace of leases that guard their volumes."""
    leases = place / "guard"
    leases.mkdir()
    make_lockspace(leases / SPACE)
    more = [
        f'[backend.san]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = {number}\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\ncross_host = true\n"
        for number in (1, 2)
    ]
    return made_site(place, keys=f'guard = "san"\nactivation = "{activation}"', more=more)


def made_site(place: Path, *, keys: str = "", more: Sequence[str] = ("", "")) -> Site:
    """Both hosts, not started yet."""
    for n in range(VOLUMES):
        directory = place / "sysblock" / f"{lvm_stand_in.MAJOR}:{n}" / "dm"
        directory.mkdir(parents=True)
        (directory / "uuid").write_text("LVM-" + (VG_UUID + uuid_of(n)).replace("-", "") + "\n")
    modes = LeasedModes(place / "modes", place / "leases")
    h1, h2 = (VolumeHost(place, n, modes, keys=keys, more=tables) for n, tables in enumerate(more, start=1))
    return Site(h1, h2, modes)
