"""What `holdfast setup` reads of this host: `holdfast doctor`'s scene and findings, judged by the configuration that is
proposed, and what a plan needs beyond them. Changes nothing.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from holdfast.cli import doctor
from holdfast.cli.doctor import units
from holdfast.cli.doctor.disks import worth
from holdfast.cli.doctor.findings import Finding
from holdfast.cli.doctor.scene import Host, Scene, ThisHost
from holdfast.cli.doctor.services import daemons, virtlockds
from holdfast.cli.libvirt_conf import ConfFile
from holdfast.cli.libvirt_files import LOCKD_CONF, QEMU_CONF, libvirt_lockspaces, read_conf
from holdfast.cli.sanlock_files import PLUGIN_CONF, NotImported, read
from holdfast.cli.setup import lens
from holdfast.cli.setup.facts import Facts, Proposal, SpaceSeen, Storage, Watchdog, Wishes
from holdfast.cli.setup.lock_settings import Sanlock, of_lockd, of_sanlock
from holdfast.cli.setup.lockspace_there import look
from holdfast.cli.setup.plan import GC_TIMER
from holdfast.cli.setup.proposal import propose
from holdfast.cli.setup.record import Record
from holdfast.config import SYSTEM_FILE
from holdfast.errors import ConfigError
from holdfast.system.files.mounts import MountTable, is_block_device
from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.libvirt.volume_hooks import HOOK

CONFIG_BYTES_MAX = 1 << 20
DIRECT_NEEDED = '[backend.file] with driver = "file" and without a directory'
LIBVIRT_SOCKETS = ("", "-ro", "-admin", "-tcp", "-tls")
CHRONY = (("etc/chrony/chrony.conf", "etc/chrony/conf.d", "chrony.service"),)
"""Debian's: its configuration, the directory that it includes, its unit."""
CHRONY_FILE = "zz-holdfast.conf"
"""Read last, and the last word counts."""
HOOK_SOURCES = ("/usr/share/holdfast/libvirt/qemu-hook",)


@dataclass(frozen=True, slots=True)
class Survey:
    facts: Facts
    proposal: Proposal
    space: SpaceSeen | None
    scene: Scene | None
    """None if no configuration can be used."""


def survey(
    wishes: Wishes,
    record: Record,
    *,
    config_file: str | None,
    socket: str | None,
    root: str = "/",
    host: Host | None = None,
    scene_of: Callable[..., Scene] = doctor.scene_of,
) -> Survey:
    """`scene_of` as `doctor.scene_of`, for tests."""
    host = host or ThisHost()
    space = look(wishes.place) if wishes.place else None
    if space is not None and not space.is_device:
        with closing(MountTable()) as mounts:
            mount, _ = mounts.locate(space.place)
        space = replace(space, outlives_its_writers=mount.outlives_its_writers)
    sanlock = read_sanlock(root)
    proposal = propose(wishes, space, _watchdog(host, root), sanlock.plugin)
    file = config_file or os.path.join(root, SYSTEM_FILE.lstrip("/"))
    text, broken = _text(file)
    if text is None and glob.glob(os.path.join(os.path.dirname(file), "conf.d", "*.toml")):
        text = ""  # somebody has configured this host there
    ours = text is not None and record.wrote(file, text)
    scene: Scene | None = None
    findings: list[Finding] = []
    keeps = text is not None and not ours
    if not broken:
        named = file if config_file is not None and text is not None else None
        scene, findings, broken = _judged(
            "" if keeps or proposal.refusals else proposal.text, named, socket, root, host, scene_of
        )
    facts = _facts(file, text, ours, broken, scene, tuple(findings), host, root, record, proposal)
    carried = (
        *of_sanlock(sanlock, space, proposal, manager=facts.lock_manager or "", configured=keeps),
        *of_lockd(read_conf(os.path.join(root, LOCKD_CONF)), leases=has_leases(scene)),
    )
    return Survey(
        replace(facts, carried=carried),
        proposal,
        space,
        scene,
    )


def has_leases(scene: Scene | None) -> bool:
    """Whether the configuration that was judged has leases."""
    return scene is not None and any(t.get("driver") == "paxos" for t in scene.config.backend.values())


def read_sanlock(root: str) -> Sanlock:
    """qemu-sanlock.conf, as `holdfast import-sanlock` reads it."""
    path = os.path.join(root, PLUGIN_CONF)
    conf = read_conf(path)
    if isinstance(conf, Unreadable):
        return Sanlock(ConfFile(), fault="" if conf.missing else f"it can't be read: {conf.reason}")
    if conf.error:
        return Sanlock(conf, fault=f"line {conf.error_line}: {conf.error}")
    if not conf.settings:
        return Sanlock(conf)
    try:
        return Sanlock(conf, read(root).backend)
    except NotImported as e:
        return Sanlock(conf, fault=str(e))


def _text(file: str) -> tuple[str | None, str]:
    """The configuration file's text; and why it can't be read."""
    raw = read_regular(file, CONFIG_BYTES_MAX)
    if isinstance(raw, Unreadable):
        return None, "" if raw.missing else f"{file} can't be read: {raw.reason}"
    return raw.decode("utf-8", "replace"), ""


def _judged(
    text: str,
    file: str | None,
    socket: str | None,
    root: str,
    host: Host,
    scene_of: Callable[..., Scene],
) -> tuple[Scene | None, list[Finding], str]:
    """The scene, doctor's findings, and why the configuration can't be used. A proposal is judged from a file of its own."""
    with tempfile.TemporaryDirectory(prefix="holdfast-setup-") as directory:
        judged = file
        if text:
            judged = os.path.join(directory, "holdfast.toml")
            with open(judged, "w", encoding="utf-8") as f:
                f.write(text)
        try:
            scene = scene_of(judged, socket, root, host=host)
        except ConfigError as e:
            return None, [], str(e)
        scene.config_file = file
        findings = [each for check in doctor.CHECKS for each in doctor.run(check, scene)]
    return scene, findings, ""


def _facts(
    file: str,
    text: str | None,
    ours: bool,
    broken: str,
    scene: Scene | None,
    findings: tuple[Finding, ...],
    host: Host,
    root: str,
    record: Record,
    proposal: Proposal,
) -> Facts:
    qemu = os.path.join(root, QEMU_CONF)
    conf = read_conf(qemu)
    missing = isinstance(conf, Unreadable) and conf.missing
    setting = None if isinstance(conf, Unreadable) else conf.get("lock_manager")
    service = host.unit("holdfastd.service")
    names, files = users_of_virtlockd(scene, host) if scene else ([], [])
    process = next(iter(virtlockds(scene)), None) if scene else None
    backend = direct_backend(scene) if scene else ""
    active = active_libvirt_units(host)
    chrony = next((each for each in CHRONY if os.path.isdir(os.path.join(root, each[1]))), None)
    hook = os.path.join(root, HOOK)
    return Facts(
        file,
        qemu,
        is_root=host.root(),
        systemd=bool(service),
        units_there=service.get("LoadState") == "loaded",
        cannot_edit=lens.cannot_edit("Libvirtd_qemu.lns"),
        lock_manager=None if setting is None else str(setting.value),
        libvirt_here=not missing,
        virtlockd_users=tuple(names),
        virtlockd_files=tuple(files),
        virtlockd_not_live=_not_live(scene, host, backend) if names or files else "",
        direct_backend=backend,
        virtlockd_pid=process.pid if process else 0,
        virtlockd_units=_virtlockd_units(host, process is not None),
        holdfastd_runs=bool(scene and (scene.status is not None or daemons(scene))),
        config_text=text,
        config_is_ours=ours,
        config_broken=broken,
        libvirt_active=active,
        libvirt_stopped=tuple(each for each in record.libvirt_active if each not in active),
        chrony_drop_in=os.path.join(root, chrony[1], CHRONY_FILE) if chrony else "",
        chrony_unit=chrony[2] if chrony else "",
        gc_timer_there=host.unit(GC_TIMER).get("LoadState") == "loaded",
        hook_source=next((each for each in HOOK_SOURCES if os.path.exists(each)), ""),
        hook_path=hook,
        hook_there=os.path.lexists(hook),
        storages=tuple(_storages(scene)) if scene else (),
        lock_directories=tuple(libvirt_lockspaces(root)),
        joined=_joined(scene, proposal.lockspace),
        findings=findings,
    )


def _virtlockd_units(host: Host, runs: bool) -> tuple[str, ...]:
    """Those of virtlockd's own that are active or enabled. The alias that holdfastd.socket has is none of them."""
    found = []
    for name in units.VIRTLOCKD_UNITS:
        unit = host.unit(name)
        if unit.get("Id", name) != name or unit.get("LoadState") != "loaded":
            continue
        if runs or unit.get("ActiveState") == "active" or unit.get("UnitFileState") == "enabled":
            found.append(name)
    return tuple(found)


def users_of_virtlockd(scene: Scene, host: Host) -> tuple[list[str], list[str]]:
    """VMs that a stop of virtlockd would kill, or may, by name; else the files that it has locked for somebody else."""
    names: list[str] = []
    files: list[str] = []
    for process in virtlockds(scene):
        names += [each.name for each in units.virtlockd_users(scene, process)]
        files += host.locked_by(process.pid)
    return names, [] if names else files


def _not_live(scene: Scene | None, host: Host, backend: str) -> str:
    """Why virtlockd can't become holdfastd as it is."""
    if scene is None:
        return "the configuration can't be used"
    running = virtlockds(scene)
    if len(running) != 1:
        return f"{len(running)} virtlockds run here"
    if daemons(scene) or scene.status is not None:
        return "holdfastd runs as well; stop it first (systemctl stop holdfastd.service), if it has no lock (holdfast list)"
    if not backend:
        return f"no backend of the configuration locks the files that virtlockd has locked; it needs {DIRECT_NEEDED}"
    return host.why_not_switched(running[0].pid, vms_of(scene))


def vms_of(scene: Scene) -> list[int]:
    """The processes of libvirt's VMs that run."""
    return [each.pid for each in scene.running() if each.pid]


def direct_backend(scene: Scene) -> str:
    """holdfastd's name of the file driver that locks the files themselves, as virtlockd does; empty if there is none."""
    config = scene.config
    found = [
        name
        for name, table in config.backend.items()
        if table.get("driver") == "file" and not table.get("directory")
    ]
    if config.default_backend in found:
        return config.default_backend
    return found[0] if found else ""


def _joined(scene: Scene | None, lockspace: str) -> bool:
    if not lockspace or scene is None:
        return True
    return any(each.name == lockspace and each.state == "joined" for each in scene.spaces or ())


def _watchdog(host: Host, root: str) -> Watchdog:
    device = os.path.join(root, "dev/watchdog")
    programs = {each.pid: each.name for each in host.programs()}
    users = {pid for each in (device, f"{device}0") for pid in host.openers(each)}
    # It can be opened once: what has it open beside holdfastd has a copy of its descriptor, as systemd's store has.
    is_ours = any(programs.get(pid) == "holdfastd" for pid in users)
    others = () if is_ours else sorted(users)
    about = os.path.join(root, "sys/class/watchdog/watchdog0")
    return Watchdog(
        os.path.exists(device),
        tuple(f"{programs.get(pid, 'a process')} (pid {pid})" for pid in others),
        os.path.exists(os.path.join(root, "run/wdmd/wdmd.sock")),
        _number(f"{about}/nowayout") == 1,
        _number(f"{about}/max_timeout"),
    )


def _number(path: str) -> int:
    raw = read_regular(path, 64)
    text = "" if isinstance(raw, Unreadable) else raw.decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0


def _storages(scene: Scene) -> list[Storage]:
    """By the directory that disks are in."""
    spaces = libvirt_lockspaces(scene.root)
    found: dict[tuple[str, str, bool, int, str], list[str]] = {}
    for domain in scene.domains:
        for disk in domain.disks:
            device = disk.path.startswith("/dev/") or is_block_device(disk.path)
            mount = scene.mounts.locate(disk.path)[0]
            kind = "block device" if device else mount.type
            resource = scene.resource(disk.path, spaces)
            route = scene.routing.route(resource, disk.path)
            level = int(worth(route.backend, resource)[0])
            shared = device or mount.is_shared
            key = (os.path.dirname(disk.path), kind, shared, level, route.backend.name)
            found.setdefault(key, []).append(f"{disk.path} of {domain.name}")
    return [
        Storage(where, kind, tuple(disks), shared, level, backend)
        for (where, kind, shared, level, backend), disks in sorted(found.items())
    ]


def active_libvirt_units(host: Host) -> tuple[str, ...]:
    """Sockets first: they would start a daemon again that is stopped before them."""
    sockets, services = [], []
    for daemon in ("libvirtd", "virtqemud"):
        service = host.unit(f"{daemon}.service")
        if service.get("LoadState") != "loaded":
            continue
        if service.get("ActiveState") == "active":
            services.append(f"{daemon}.service")
        names = [f"{daemon}{kind}.socket" for kind in LIBVIRT_SOCKETS]
        sockets += [each for each in names if host.unit(each).get("ActiveState") == "active"]
    return (*sockets, *services)
