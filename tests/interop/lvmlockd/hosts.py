"""Hosts with the real lvm2 and lvmlockd over sanlock's socket: that of the real sanlock, or of Holdfast in its place.

A host is a set of namespaces: what lvm2 and lvmlockd have at fixed paths (/run, /dev/mapper) is its own, and so is the
abstract socket by which `lvmlockctl` gets its dumps. No device-mapper is needed: `lvm --driverloaded n` takes and gives
up locks as always, and makes no device. The hidden LV with the leases, which lvmlockd opens as /dev/mapper/vg-lvmlock, is
a second loop device over the same file, from where a new VG has its first LV.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.contract.disk.disks import loop_device
from tests.support.daemon import BIN
from tests.support.polling import wait_until

MIB = 1 << 20
VG = "vg"
IO_TIMEOUT_S = 1
_FIRST_EXTENT_BYTES = MIB
"""Where lvm2 begins with extents on a PV of this size: behind its metadata."""
_LEASES_BYTES = {512: 256 * MIB, 4096: 1024 * MIB}
"""Of the hidden LV, by sector size."""
_FOR_LVS_BYTES = 128 * MIB
_COMMAND_S = 120
LOCK_MANAGER = {"sanlock": "sanlock", "holdfast": str(BIN / "holdfast-sanlockd")}
"""By name of a program: what is called with the options of `sanlock daemon`."""

_UNSHARE = ("unshare", "--mount", "--net", "--uts", "--propagation", "private")
_IN_NAMESPACES = f"""set -e
hostname "$1"
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/mapper  # a machine where LVM has never run has none
mount -t tmpfs -o mode=755 tmpfs /dev/mapper
mkdir -p /run/lvm /run/lock/lvm
(cat /proc/devices; echo "252 device-mapper") > /run/devices
mount --bind /run/devices /proc/devices
ln -s "$2" /dev/mapper/{VG}-lvmlock
echo ready
exec sleep infinity
"""
_NO_NEWS = re.compile(r"Activation disabled|Skipping zeroing|not zeroed")
"""Warnings of a lvm2 that is kept from device-mapper."""


def lvmlockd_version() -> tuple[int, ...]:
    """Of the one that this machine has: (2, 3, 16) in Debian 12."""
    said = subprocess.run(["lvmlockd", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", said.stdout + said.stderr)
    assert found is not None, said
    return tuple(map(int, found.groups()))


@dataclass(frozen=True, slots=True)
class Ran:
    """A command's end: its exit status, and what it printed without the warnings of `--driverloaded n`."""

    status: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"exit status {self.status}", *self.lines))


class LvmHost:
    """One host; after `start` its two daemons run. In any case it has to be closed."""

    def __init__(self, place: Path, host_id: int, program: str, devices: Devices, preloaded: Path) -> None:
        """`preloaded`: what answers lvmlockd for device-mapper (`build_device_mapper`)."""
        self.place = place
        self._active = place / "active"
        self._active.mkdir(parents=True)
        self._preloaded = preloaded
        self.host_id = host_id
        self.program = program
        (place / "etc").mkdir()
        (place / "run").mkdir()
        (place / "etc" / "lvm.conf").write_text(
            "global { use_lvmlockd = 1 }\n"
            f'devices {{ use_devicesfile = 0  filter = ["a|^{devices.volume}$|", "r|.*|"]  hints = "none"\n'
            '  obtain_device_list_from_udev = 0  external_device_info_source = "none" }\n'
            "activation { udev_sync = 0  udev_rules = 0 }\n"
        )
        (place / "etc" / "lvmlocal.conf").write_text(f"local {{ host_id = {host_id} }}\n")
        self._environment = {
            **os.environ,
            "SANLOCK_PRIVILEGED": "0",
            "SANLOCK_RUN_DIR": str(place / "run"),
            "LVM_SYSTEM_DIR": str(place / "etc"),
            "LVM_SUPPRESS_FD_WARNINGS": "1",
        }
        self._namespaces = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _IN_NAMESPACES, "sh", f"h{host_id}", devices.leases],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._namespaces.stdout is not None
        said = self._namespaces.stdout.readline()
        assert said == b"ready\n", said
        pid = str(self._namespaces.pid)
        self._enter = ("nsenter", "--mount", "--net", "--uts", "--target", pid)
        self.lvmlockd_socket = Path(f"/proc/{pid}/root/run/lvm/lvmlockd.socket")
        self._daemons: list[subprocess.Popen[bytes]] = []

    # --- daemons ---

    def start(self) -> None:
        self.start_lock_manager()
        self.start_lvmlockd()

    def start_lock_manager(self) -> None:
        unprivileged = ("-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root")
        self.lock_manager = self._daemon(
            "manager.log",
            LOCK_MANAGER[self.program],
            "daemon",
            "-D",
            *unprivileged,
            *("-o", str(IO_TIMEOUT_S)),
            *("-e", f"h{self.host_id}"),
        )
        self._wait_for(self.lock_manager, lambda: self.run("sanlock", "client", "status").status == 0)

    def start_lvmlockd(self, *, adopts: bool = True) -> None:
        """After a crash it adopts what the earlier one held, if that one was started so too."""
        options = ("--adopt", str(int(adopts)), "--sanlock-timeout", str(IO_TIMEOUT_S))
        double = ("env", f"LD_PRELOAD={self._preloaded}", f"DEVICE_MAPPER={self._active}")
        self.lvmlockd = self._daemon(
            "lvmlockd.log", *double, "lvmlockd", "--daemon-debug", "--host-id", str(self.host_id), *options
        )
        self._wait_for(self.lvmlockd, lambda: self.run("lvmlockctl", "--info").status == 0)

    def show_as_active(self, volume: Volume) -> None:
        """To a lvmlockd that starts: what was locked and is not active has lost its lock for good."""
        uuid = "LVM-" + (volume.vg_uuid + volume.uuid).replace("-", "")
        (self._active / f"{VG}-{volume.name}").write_text(uuid)

    def show_as_closed(self, volume: Volume) -> None:
        (self._active / f"{VG}-{volume.name}").unlink()

    def kill_lvmlockd(self) -> None:
        self.lvmlockd.kill()
        self.lvmlockd.wait()

    def power_off(self) -> None:
        """As far as others can tell; `close` has still to be called."""
        for process in (self.lock_manager, self.lvmlockd):
            process.kill()
            process.wait()

    def _daemon(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.place / log).open("ab") as output:
            daemon = subprocess.Popen(
                [*self._enter, *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._daemons.append(daemon)
        return daemon

    def _wait_for(self, daemon: subprocess.Popen[bytes], answers: Callable[[], bool]) -> None:
        def answered() -> bool:
            assert daemon.poll() is None, f"a daemon of host {self.host_id} ended:\n{self.logs()}"
            return answers()

        wait_until(answered, f"the daemons of host {self.host_id}")

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.parent.name}/{log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted(self.place.glob("*.log"))
        )

    def close(self) -> None:
        for process in (*self._daemons, self._namespaces):
            process.kill()
            process.wait()
        assert self._namespaces.stdout is not None
        self._namespaces.stdout.close()

    # --- commands ---

    def run(self, *command: str) -> Ran:
        done = subprocess.run(
            [*self._enter, *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        lines = (line.strip() for line in done.stdout.splitlines())
        return Ran(done.returncode, tuple(line for line in lines if not _NO_NEWS.search(line)))

    def lvm(self, command: str, *arguments: str) -> Ran:
        """A command of lvm2, kept from device-mapper."""
        return self.run(command, "--driverloaded", "n", *arguments)

    def done(self, command: str, *arguments: str) -> Ran:
        """The same, and it must be done."""
        ran = self.lvm(command, *arguments)
        assert ran.status == 0, f"{command} {arguments} on host {self.host_id}: {ran}\n{self.logs()}"
        return ran

    def locks(self) -> dict[str, str]:
        """This host's modes by LV UUID, as `lvmlockctl --info` shows them; an LV that is not there was never locked."""
        lines = (line.split() for line in self.run("lvmlockctl", "--info").lines)
        return {words[3]: words[2] for words in lines if words[:2] == ["LK", "LV"]}

    def lockspaces(self) -> list[str]:
        lines = (line.split() for line in self.run("lvmlockctl", "--info").lines)
        return [words[2] for words in lines if words[0] == "LS"]


@dataclass(frozen=True, slots=True)
class Devices:
    """Block devices: the PV, and the extents in it that hold the leases."""

    volume: str
    leases: str


@dataclass(frozen=True, slots=True)
class Volume:
    """An LV, as lvm2 reports it."""

    name: str
    uuid: str
    vg_args: str
    lv_args: str
    vg_uuid: str

    @property
    def path(self) -> str:
        return f"{VG}/{self.name}"


class Site:
    """Two hosts with one disk; after `start` a shared VG on it is started on both."""

    def __init__(self, place: Path, programs: tuple[str, str], devices: Devices, preloaded: Path) -> None:
        self.devices = devices

        def host(host_id: int) -> LvmHost:
            return LvmHost(place / f"h{host_id}", host_id, programs[host_id - 1], devices, preloaded)

        self.one, self.two = self.hosts = (host(1), host(2))

    def start(self) -> None:
        """The daemons of both, and the VG on both."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(LvmHost.start, self.hosts))
            self.one.done("vgcreate", "--yes", "--shared", "--lockopt", "nowait", VG, self.devices.volume)
            list(pool.map(self.start_vg, self.hosts))

    def start_vg(self, host: LvmHost) -> None:
        """Its exit status says little: what counts is that the lockspace is there."""

        def started() -> bool:
            host.lvm("vgchange", "--lock-start", VG)
            return host.lockspaces() == [f"lvm_{VG}"]

        wait_until(started, f"the lockspace on host {host.host_id}")

    def new_lv(self, name: str) -> Volume:
        self.one.done("lvcreate", "--yes", "-an", "--size", "4M", "--name", name, VG)
        columns = "lv_uuid,vg_lock_args,lv_lockargs,vg_uuid"
        words = self.two.done("lvs", "--noheadings", "-o", columns, f"{VG}/{name}").lines[-1].split()
        return Volume(name, *words)

    def close(self) -> None:
        for host in self.hosts:
            host.close()


@contextlib.contextmanager
def disk(place: Path, sector_bytes: int) -> Iterator[Devices]:
    """A blank one of that sector size; the file is sparse."""
    image = place / "disk.img"
    leases_bytes = _LEASES_BYTES[sector_bytes]
    with image.open("wb") as file:
        file.truncate(_FIRST_EXTENT_BYTES + leases_bytes + _FOR_LVS_BYTES)
    part = ("--offset", str(_FIRST_EXTENT_BYTES), "--sizelimit", str(leases_bytes))
    with loop_device(image, sector_bytes) as volume, loop_device(image, sector_bytes, *part) as leases:
        yield Devices(volume, leases)


@contextlib.contextmanager
def site(place: Path, programs: tuple[str, str], sector_bytes: int, preloaded: Path) -> Iterator[Site]:
    """`programs`: what serves sanlock's socket on the two hosts."""
    with disk(place, sector_bytes) as devices:
        made = Site(place, programs, devices, preloaded)
        try:
            made.start()
            yield made
        finally:
            made.close()


def build_device_mapper(place: Path) -> Path:
    """What is preloaded into lvmlockd."""
    library = place / "device_mapper.so"
    source = Path(__file__).with_name("device_mapper.c")
    subprocess.run(["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def patiently(host: LvmHost, command: str, *arguments: str, seconds: float = 30.0) -> Ran:
    """Again until it is done: of what another host has given up, this one hears with its next renewal."""
    deadline = time.monotonic() + seconds
    while True:
        ran = host.lvm(command, *arguments)
        if ran.status == 0 or time.monotonic() > deadline:
            return ran
        time.sleep(0.2)
