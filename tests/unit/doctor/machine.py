"""A machine that `holdfast doctor` is shown: a made-up root directory, processes, units, and a daemon's answers."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from holdfast import config as configuration
from holdfast.cli import doctor
from holdfast.cli.doctor import CHECKS
from holdfast.cli.doctor.findings import Finding
from holdfast.cli.doctor.scene import Program, Scene
from holdfast.cli.libvirt_files import domains
from holdfast.control.api import HolderInfo, LeaseSpaceInfo, OwnerInfo, StatusInfo
from holdfast.daemon.build import build_routing
from holdfast.daemon.check_config import ports_for_a_look
from holdfast.system.files.mounts import MountTable, parse_mountinfo

DAEMON, QEMU = 700, 4242
SOCKET = "/run/libvirt/virtlockd-sock"


class FakeHost:
    """The port `scene.Host`, of a host where Holdfast is installed, enabled and runs."""

    def __init__(self) -> None:
        self.listens: int | None = DAEMON
        self.processes = [Program(1, "systemd"), Program(DAEMON, "holdfastd")]
        self.units: dict[str, dict[str, str]] = {
            "holdfastd.socket": {"LoadState": "loaded", "ActiveState": "active"},
            "holdfastd.service": {"LoadState": "loaded", "ActiveState": "active", "MainPID": str(DAEMON)},
        }
        self.locked: dict[str, list[int]] = {}
        self.opened: dict[str, list[int]] = {}
        self.files_locked: dict[int, list[str]] = {}
        self.outputs: dict[str, str] = {}
        self.is_root = True
        self.not_switched = "this is no real host"

    def listener(self, path: str) -> int | None:
        return self.listens

    def programs(self) -> Sequence[Program]:
        return self.processes

    def unit(self, name: str) -> Mapping[str, str]:
        return self.units.get(name, {})

    def lockers(self, path: str) -> Sequence[int]:
        return self.locked.get(path, [])

    def locked_by(self, pid: int) -> Sequence[str]:
        return self.files_locked.get(pid, [])

    def openers(self, path: str) -> Sequence[int]:
        return self.opened.get(path, [])

    def why_not_switched(self, pid: int, vms: Collection[int]) -> str:
        return self.not_switched

    def output(self, *command: str) -> str:
        return self.outputs.get(command[0], "")

    def root(self) -> bool:
        return self.is_root


class FakeMounts(MountTable):
    """Mounts as a text has them; what is below none of them is local."""

    def __init__(self, lines: str = "") -> None:
        self._lines = lines
        super().__init__()

    def _read(self) -> None:
        table = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{self._lines}"
        self._by_point = {m.point: m for m in parse_mountinfo(table)}
        self.changes += 1

    def add(self, point: Path | str, kind: str, options: str = "rw") -> None:
        self._lines += f"2 1 0:9 / {point} rw - {kind} server:/export {options}\n"
        self._read()


class Machine:
    """A healthy host; each test breaks one thing of it and asks what doctor says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = FakeHost()
        self.mounts = FakeMounts()
        self.config = root / "holdfast.toml"
        self.in_force: configuration.Config | None = None
        self.locks: list[HolderInfo] = []
        self.owners: list[OwnerInfo] = []
        self.spaces: list[LeaseSpaceInfo] = []
        self.unreachable = ""
        self.not_permitted = False
        self.status: StatusInfo | None = status()
        for name in ("etc/libvirt/qemu", "run/libvirt/qemu", "leases", "locks"):
            (root / name).mkdir(parents=True)
        self.configure("")
        self.qemu('lock_manager = "lockd"\n')
        for target, unit in (("sockets", "holdfastd.socket"), ("multi-user", "holdfastd.service")):
            self.enable(target, unit)

    # --- what it has ---

    def enable(self, target: str, unit: str) -> Path:
        link = self.root / f"etc/systemd/system/{target}.target.wants/{unit}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")
        return link

    def configure(self, text: str, top: str = "") -> None:
        self.config.write_text(
            f'run_dir = "{self.root}/run/holdfast"\nstate_dir = "{self.root}/state"\n{top}\n'
            f'[virtlockd]\nsocket = "{self.root}/sock"\n{text.format(root=self.root)}'
        )

    def file(self, relative: str, text: str = "") -> Path:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def qemu(self, text: str) -> None:
        self.file("etc/libvirt/qemu.conf", text)

    def lockd(self, text: str) -> None:
        self.file("etc/libvirt/qemu-lockd.conf", text)

    def program(self, pid: int, name: str, *arguments: str, uid: int = 0, age_s: float = 1000.0) -> None:
        self.host.processes.append(Program(pid, name, arguments, uid, time.time() - age_s))

    def define(self, name: str, *disks: str) -> None:
        """A definition; each disk is a path, or a whole element."""
        self.file(f"etc/libvirt/qemu/{name}.xml", domain_xml(name, *disks))

    def start(self, name: str, *disks: str, pid: int = QEMU, state: str = "running") -> None:
        """A VM that runs, without any lock."""
        self.file(
            f"run/libvirt/qemu/{name}.xml",
            f"<domstatus state='{state}' reason='booted' pid='{pid}'>{domain_xml(name, *disks)}</domstatus>",
        )
        self.program(pid, "qemu-system-x86", "/usr/bin/qemu-system-x86_64", "-name", f"guest={name}")

    def lock(self, name: str, *disks: str, pid: int = QEMU, backend: str = "file", space: str = "") -> None:
        """The locks of a VM that runs."""
        self.owners.append(
            OwnerInfo(name, f"uuid-{name}", 1, pid, True, "", 1, len(disks), protection=1, protection_word="")
        )
        self.locks += [
            HolderInfo(
                resource=disk, lockspace=space, name=disk, mode="exclusive", owner=name, owner_uuid=f"uuid-{name}", pid=pid,
                host="h", since=None, backend=backend, path=disk, protection=1, protection_word="same host",
                protection_note="", held=True, lost_reason="",
            )
            for disk in disks
        ]  # fmt: skip

    # --- what doctor says ---

    def scene(self) -> Scene:
        config, problems = configuration.check(str(self.config), environ=os.environ, uid=0)
        assert config is not None, problems
        down = self.status is None
        unread: list[str] = []
        return Scene(
            str(self.root),
            config,
            build_routing(config, ports_for_a_look(config, self.mounts)),
            self.mounts,
            list(domains(str(self.root), unread)),
            self.status,
            [] if down else self.owners,
            [] if down else self.locks,
            None if down else self.spaces,
            self.unreachable,
            host=self.host,
            config_file=str(self.config),
            in_force=self.in_force,
            not_permitted=self.not_permitted,
            unread=unread,
        )

    def findings(self) -> list[Finding]:
        scene = self.scene()
        return [each for check in CHECKS for each in doctor.run(check, scene)]

    def ids(self) -> set[str]:
        """Of what is wrong or to be known."""
        return {each.id for each in self.findings() if each.id}

    def problems(self) -> set[str]:
        return {each.id for each in self.findings() if each.severity == "problem"}

    def one(self, id: str) -> Finding:
        (finding,) = (each for each in self.findings() if each.id == id)
        return finding


def domain_xml(name: str, *disks: str) -> str:
    elements = "".join(
        disk
        if disk.startswith("<")
        else f"<disk type='{'block' if disk.startswith('/dev/') else 'file'}'>"
        f"<source {'dev' if disk.startswith('/dev/') else 'file'}={quoteattr(disk)}/></disk>"
        for disk in disks
    )
    return f"<domain><name>{name}</name><uuid>uuid-{name}</uuid><devices>{elements}</devices></domain>"


def status(**changes: Any) -> StatusInfo:
    info = StatusInfo(
        version="1", host="h", pid=DAEMON, started=0.0, owners=0, locks=0, locks_lost=0, connections=0, connections_max=1,
        lockspaces=[], backends=[], default_backend="file", virtlockd_socket="", journal="ok", descriptor_store=True,
        storage_waiting=[], config_files=[], last_event=0, problems=[],
    )  # fmt: skip
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def space(
    name: str = "__LIBVIRT__DISKS__", state: str = "joined", reason: str = "", **changes: Any
) -> LeaseSpaceInfo:
    info = LeaseSpaceInfo(
        name=name, path="", state=state, reason=reason, seconds_left=None, host_id=1, host_name="h", generation=1,
        renewed_s_ago=1.0, fails_in_s=79.0, fenced=True, backends=["san"], leases=0, hosts=[],
    )  # fmt: skip
    for key, value in changes.items():
        setattr(info, key, value)
    return info
