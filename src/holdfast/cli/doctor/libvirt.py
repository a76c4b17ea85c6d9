"""Checks of libvirt's own configuration: whom does it ask for locks, for which disks, and since when?"""

from __future__ import annotations

import glob
import os
import pwd
import shlex
from collections.abc import Iterator

from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Program, Scene, some
from holdfast.cli.libvirt_conf import ConfFile
from holdfast.cli.libvirt_files import LOCKD_CONF, QEMU_CONF, read_conf
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.libvirt.domains import read_domain
from holdfast.system.libvirt.volume_hooks import HOOK

DAEMONS = ("libvirtd", "virtqemud")
PLUGINS = ("usr/lib/*/libvirt/lock-driver/lockd.so", "usr/lib*/libvirt/lock-driver/lockd.so")
LENSES = {QEMU_CONF: "Libvirtd_qemu.lns", LOCKD_CONF: "Libvirt_lockd.lns"}
LIBXL = "etc/libvirt/libxl"


def restart(scene: Scene) -> str:
    """The command that makes libvirt read its configuration again; it touches no VM."""
    names = [name for name in DAEMONS if scene.programs(name)]
    return "; ".join(f"systemctl restart {name}" for name in names or ["libvirtd"])


def qemu_conf(scene: Scene) -> Iterator[Finding]:
    file = scene.path(QEMU_CONF)
    conf = read_conf(file)
    if isinstance(conf, Unreadable):
        if conf.missing:
            yield found(
                "HF036",
                f"no {file}: libvirt's QEMU driver is not configured here",
                "install libvirt's QEMU driver, if VMs run here",
            )
        elif scene.host.root():
            yield found("HF032", f"{file} can't be read: {conf.reason}", f"ls -l {file}")
        return
    yield from _whom(scene, file, conf)
    yield from _readable(scene, file, conf, QEMU_CONF)
    yield from _twice(file, conf, "lock_manager", scene)


def _whom(scene: Scene, file: str, conf: ConfFile) -> Iterator[Finding]:
    """Whom libvirt asks."""
    manager = conf.get("lock_manager")
    put = f'write lock_manager = "lockd" into {file}, then: {restart(scene)}'
    if manager is None:
        yield found(
            "HF030", f"{file} has no lock_manager: libvirt uses no lock manager, disks are not locked", put
        )
    elif manager.value == "lockd":
        if not conf.error:
            yield fine("libvirt", f'{file}: lock_manager = "lockd"')
        yield from _plugin(scene)
    elif manager.value == "sanlock":
        yield found(
            "HF031",
            f'{file} has lock_manager = "sanlock" (line {manager.line}): libvirt asks sanlock, not holdfastd',
            f"only when no VM of this host has a lock in sanlock: {put}",
        )
    else:
        yield found(
            "HF031",
            f"{file} has lock_manager = {manager.value!r} (line {manager.line}): libvirt asks nobody",
            put,
        )


HASHING = ("file_lockspace_dir", "lvm_lockspace_dir", "scsi_lockspace_dir")
"""Settings with which libvirt asks for a name of the disk in place of its path."""


def lockd_conf(scene: Scene) -> Iterator[Finding]:
    file = scene.path(LOCKD_CONF)
    conf = read_conf(file)
    if isinstance(conf, Unreadable):
        if not conf.missing and scene.host.root():
            yield found("HF032", f"{file} can't be read: {conf.reason}", f"ls -l {file}")
        return
    yield from _readable(scene, file, conf, LOCKD_CONF)
    for name in ("auto_disk_leases", *HASHING):
        yield from _twice(file, conf, name, scene)
    yield from _hashed(scene, file, conf)
    if conf.text("auto_disk_leases") == "0":
        required = conf.text("require_lease_for_disks") != "0"
        text = "disks are not locked, only <lease> elements" + (
            "; a VM with a writable disk and without any <lease> is refused" if required else ""
        )
        yield found(
            "HF034",
            f"{file} has auto_disk_leases = 0: {text}",
            f"remove that line, then: {restart(scene)}; or give every domain its <lease>, and ignore this",
        )


def _hashed(scene: Scene, file: str, conf: ConfFile) -> Iterator[Finding]:
    """Names that libvirt makes of paths, where leases are named by the path (ADR 0181)."""
    used = [name for name in HASHING if conf.text(name)]
    leases = [n for n, table in scene.config.backend.items() if table.get("driver") == "paxos"]
    if used and leases:
        yield found(
            "HF120",
            f"{file} sets {', '.join(used)}, and backend '{leases[0]}' has leases: libvirt asks for disks by hashes",
            "where all disks have leases: shut down or migrate this host's VMs, remove these lines, then: "
            f"{restart(scene)}; where other disks need the lock files, start VMs with all their disks",
        )


def hook(scene: Scene) -> Iterator[Finding]:
    """The hook holds disks from a start on; it does not replace the lock manager (ADR 0196)."""
    file, qemu = scene.path(HOOK), scene.path(QEMU_CONF)
    conf = read_conf(qemu)
    if not os.path.lexists(file) or (isinstance(conf, Unreadable) and not conf.missing):
        return
    manager = None if isinstance(conf, Unreadable) else conf.get("lock_manager")
    if manager is None or manager.value != "lockd":
        has = (
            "no lock_manager"
            if manager is None
            else f"lock_manager = {manager.value!r} (line {manager.line})"
        )
        yield found(
            "HF041",
            f"{file} is installed, and {qemu} has {has}",
            f'write lock_manager = "lockd" into {qemu}, or remove {file}; then: {restart(scene)}',
        )


def _readable(scene: Scene, file: str, conf: ConfFile, relative: str) -> Iterator[Finding]:
    if conf.error:
        yield found(
            "HF032",
            f"{file}, line {conf.error_line}: {conf.error}; libvirt's QEMU driver does not start with it",
            f"correct that line, then: {restart(scene)}",
        )
        return
    if line := _lens_stops_at(scene, file, relative):
        yield found(
            "HF040",
            f"{file}, line {line}: libvirt's augeas lens can't read it, although libvirt may",
            f"check the spelling of the key there, and use double quotes: sed -n {line}p {shlex.quote(file)}",
        )


def _lens_stops_at(scene: Scene, file: str, relative: str) -> int:
    """The line that libvirt's own augeas lens, where it is installed, can't read: a key that it does not know. 0: none."""
    output = scene.host.output(
        "augtool", "--noautoload", "--transform", f"{LENSES[relative]} incl {file}",
        "print", f"/augeas/files{file}/error/line",
    )  # fmt: skip
    number = output.rpartition(" = ")[2].strip().strip('"')
    return int(number) if number.isdigit() else 0


def _twice(file: str, conf: ConfFile, name: str, scene: Scene) -> Iterator[Finding]:
    first = conf.get(name)
    for later in conf.ignored(name) if first is not None else ():
        assert first is not None
        if later.value != first.value:
            yield found(
                "HF033",
                f"{file} has {name} twice: line {first.line} ({first.value!r}) counts, line {later.line} "
                f"({later.value!r}) is "
                "ignored",
                f"delete the wrong one of the two lines, then: {restart(scene)}",
            )


def _plugin(scene: Scene) -> Iterator[Finding]:
    drivers = [scene.path(pattern.replace("lockd.so", "..")) for pattern in PLUGINS]
    libvirt = any(glob.glob(f"{os.path.dirname(each)}/../connection-driver") for each in drivers)
    if libvirt and not any(glob.glob(scene.path(pattern)) for pattern in PLUGINS):
        yield found(
            "HF039",
            "lockd.so is in no directory of libvirt's lock drivers: no VM can be started",
            "apt-get install libvirt-daemon-plugin-lockd, and see docs/install.md: it brings virtlockd, and starts it",
        )


def began_before(program: Program, changed: float) -> bool:
    """Whether this host's own libvirt, no user's session, had started when a file changed; `changed`: seconds since 1970."""
    return not program.uid and program.started is not None and changed > program.started + 1


def read_too_early(scene: Scene) -> Iterator[Finding]:
    """libvirtd reads its configuration once: what was changed since is not in force."""
    for program in scene.programs(*DAEMONS):
        for relative in (QEMU_CONF, LOCKD_CONF):
            file = scene.path(relative)
            if os.path.exists(file) and began_before(program, os.stat(file).st_mtime):
                yield found(
                    "HF035",
                    f"{file} was changed after {program.name} (pid {program.pid}) started: the change is not in force",
                    f"systemctl restart {program.name}",
                )


def other_drivers(scene: Scene) -> Iterator[Finding]:
    """VMs that another libvirt runs: a user's session, or the Xen driver."""
    for uid, names in sorted(_session_domains(scene).items()):
        yield found(
            "HF037",
            f"the session libvirt of {_user(uid)} runs {some(names)}: the system's holdfastd is not asked for "
            f"their disks",
            'run these VMs under qemu:///system; or a holdfastd of that user\'s, with lock_manager = "lockd" in '
            "~/.config/libvirt/qemu.conf",
        )
    if names := glob.glob(scene.path(f"{LIBXL}/*.xml")):
        yield found(
            "HF038",
            f"{len(names)} Xen domains are defined; their lock_manager is in /etc/libvirt/libxl.conf",
            'grep lock_manager /etc/libvirt/libxl.conf   # "lockd" asks holdfastd',
        )


def _session_domains(scene: Scene) -> dict[int, list[str]]:
    """Domains that run in users' sessions, by user: their status files are in the user's runtime directory."""
    found: dict[int, list[str]] = {}
    alive = {each.pid for each in scene.programs()}
    for path in glob.glob(scene.path("run/user/*/libvirt/qemu/run/*.xml")):
        uid = path.removeprefix(scene.path("run/user/")).split("/", 1)[0]
        domain = read_domain(path)
        if domain is not None and domain.pid in alive and uid.isdigit():
            found.setdefault(int(uid), []).append(domain.name)
    return found


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
