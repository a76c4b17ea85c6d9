"""`holdfast doctor`: protection that is silently off, found before it is needed.

Each check is a function that yields findings; none changes anything, except that a lock directory is tried with a
file of its own.  ``root`` moves the configuration that is read, for tests and for images of other hosts.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from holdfast import kept_config
from holdfast.backends.base import Backend
from holdfast.backends.directory_trust import untrusted
from holdfast.backends.file import FileBackend
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.cli import host_doctor, lease_doctor
from holdfast.cli.places import LOCKD_CONF, QEMU_CONF, domains, libvirt_lockspaces, read_settings
from holdfast.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.config import Config
from holdfast.control_api import (
    CONFIGURATION_PROBLEM,
    MIGRATION_PROBLEM,
    MOVED_PROBLEM,
    HolderInfo,
    LeaseSpaceInfo,
    OwnerInfo,
    StatusInfo,
)
from holdfast.manager.routing import Routing
from holdfast.model import DIRECT_LOCKSPACE, Mode, Protection, Resource
from holdfast.system.canonical_path import canonical_path
from holdfast.system.descriptors import socket_in_use
from holdfast.system.directory_writers import writers_of
from holdfast.system.domain_status import Domain
from holdfast.system.file_lock import ForeignLock, SystemLockFiles
from holdfast.system.mounts import MountTable, is_block_device
from holdfast.system.process import program_name

DISKS_NAMED_MAX = 5


@dataclass
class Finding:
    """``level``: ok, note (know it) or problem (fix it)."""

    level: str
    check: str
    text: str
    fix: str = ""


@dataclass
class Scene:
    """What all checks look at."""

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

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)


def examine(config_file: str | None, socket: str | None, root: str = "/") -> list[Finding]:
    """All findings, in the order of the checks."""
    from holdfast.backend_wiring import check_config, ports_for_a_look
    from holdfast.build import build_routing

    config, problems = check_config(config_file)
    findings = [
        Finding("problem", "configuration", str(p), "holdfast check-config && holdfast reload")
        for p in problems
    ]
    if config is None or problems:
        config = kept_config.in_force(config_file)
        if config is None:
            return findings
    else:
        findings.append(Finding("ok", "configuration", ", ".join(config.sources) or "built-in defaults"))
    mounts = MountTable()
    status, owners, locks, spaces, unreachable = None, [], [], None, ""
    try:
        with ControlClient(socket or config.control_socket, timeout_s=10) as client:
            status, owners, locks = client.status(), client.owners(), client.locks()
            spaces = client.lease_spaces()
    except (DaemonUnreachable, CallRefused) as e:
        unreachable = str(e)
    scene = Scene(
        root,
        config,
        build_routing(config, ports_for_a_look(config, mounts)),
        mounts,
        list(domains(root)),
        status,
        owners,
        locks,
        spaces,
        unreachable,
    )
    for check in CHECKS:
        found = list(check(scene))
        findings += found
    return findings


# --- the checks ---


def daemon(scene: Scene) -> Iterator[Finding]:
    if scene.status is None:
        yield Finding(
            "problem", "daemon", scene.unreachable, "systemctl enable --now holdfastd.socket holdfastd"
        )
        return
    s = scene.status
    yield Finding("ok", "daemon", f"holdfastd {s.version}, pid {s.pid}, {s.locks} locks of {s.owners} owners")
    if s.journal != "ok":
        yield Finding(
            "problem",
            "journal",
            f"{scene.config.journal_path} can't be written: {s.journal}; no new lock is granted",
            f"free space on the file system of {scene.config.run_dir}",
        )
    for problem in s.problems:
        of_files = problem.startswith(CONFIGURATION_PROBLEM)
        # Both change nothing that a lock needs: a reload that would is refused, with the reasons.
        fix = "holdfast reload" if of_files else f"df {scene.config.run_dir}; holdfast status"
        if problem.startswith(MIGRATION_PROBLEM):
            fix = "update holdfast to a version that knows this libvirt; until then migrate VMs paused (virsh suspend)"
        if problem.startswith(MOVED_PROBLEM):
            told, _, fix = problem.rpartition("; ")
            yield Finding("problem", "moved disk", told, fix)
            continue
        yield Finding("problem", "configuration" if of_files else "daemon", problem, fix)
    for waiting in s.storage_waiting:
        yield Finding(
            "problem", "storage", f"it does not answer: {waiting}", "see whether that storage answers"
        )
    for lock in scene.locks:
        if lock.unknown:
            yield Finding(
                "problem",
                "unknown owner",
                f"{lock.resource} is held, but its owner could not be attributed ({lock.unknown}). It is let go when no "
                "process of this host has the disk open. Were its lockspace lost before, this host would be reset",
                f"holdfast who {lock.resource}",
            )
        elif not lock.held:
            yield Finding(
                "problem",
                "lost lock",
                f"{lock.resource} of {lock.owner} (pid {lock.pid}): {lock.lost_reason}",
                f"holdfast who {lock.resource}",
            )
    if not s.descriptor_store:
        yield Finding(
            "note",
            "restarts",
            "no descriptor store: a crash of holdfastd lets go of the locks until it is started again",
            "run it by packaging/systemd/holdfastd.service",
        )


def listening(scene: Scene) -> Iterator[Finding]:
    path = scene.config.virtlockd.socket
    pid = socket_in_use(path)
    if pid is None:
        yield Finding(
            "problem",
            "libvirt's socket",
            f'nobody listens at {path}: no VM with lock_manager = "lockd" can start',
            "systemctl enable --now holdfastd.socket holdfastd",
        )
    elif scene.status is not None and pid in (scene.status.pid, 1):
        yield Finding("ok", "libvirt's socket", f"holdfastd serves {path}")
    else:
        name = program_name(pid) if pid else "another program"
        yield Finding(
            "problem",
            "libvirt's socket",
            f"{name} (pid {pid}) listens at {path}, not holdfastd",
            "systemctl disable --now virtlockd.socket virtlockd-admin.socket virtlockd; see docs/install.md",
        )
    for wanted in ("sockets.target.wants/virtlockd.socket", "multi-user.target.wants/virtlockd.service"):
        unit = scene.path(f"etc/systemd/system/{wanted}")
        if os.path.lexists(unit):
            yield Finding(
                "problem",
                "virtlockd unit",
                f"{unit} starts a real virtlockd at the next boot",
                "systemctl disable virtlockd.socket virtlockd-admin.socket virtlockd",
            )


def libvirt(scene: Scene) -> Iterator[Finding]:
    file = scene.path(QEMU_CONF)
    settings = read_settings(file)
    if settings is None:
        yield Finding("note", "libvirt", f"no {file}: libvirt's QEMU driver is not configured here")
        return
    manager = settings.get("lock_manager", "")
    if manager != "lockd":
        yield Finding(
            "problem",
            "libvirt",
            f"{file} has {f'lock_manager = {manager!r}' if manager else 'no lock_manager'}: libvirt asks nobody",
            'set lock_manager = "lockd" there, then: systemctl restart libvirtd',
        )
    else:
        yield Finding("ok", "libvirt", f'{file}: lock_manager = "lockd"')
    lockd = read_settings(scene.path(LOCKD_CONF)) or {}
    if lockd.get("auto_disk_leases") == "0":
        yield Finding(
            "problem",
            "libvirt",
            f"{scene.path(LOCKD_CONF)} has auto_disk_leases = 0: disks are not locked, only <lease> elements",
            "remove that line, or check that every domain has its <lease>",
        )
    yield from _read_too_early(scene)


def _read_too_early(scene: Scene) -> Iterator[Finding]:
    """libvirtd reads its configuration once: what was changed since is not in force."""
    for name in ("libvirtd", "virtqemud"):
        for pid in _pids_of(name):
            started = _started_wall_s(pid)
            for relative in (QEMU_CONF, LOCKD_CONF):
                file = scene.path(relative)
                if started is not None and os.path.exists(file) and os.stat(file).st_mtime > started + 1:
                    yield Finding(
                        "problem",
                        "libvirt",
                        f"{file} was changed after {name} (pid {pid}) started: the change is not in force",
                        f"systemctl restart {name}",
                    )


def lock_directories(scene: Scene) -> Iterator[Finding]:
    places = {
        str(t["directory"]): f"backend '{n}'"
        for n, t in scene.config.backend.items()
        if t.get("directory") and t.get("driver") != "paxos"  # leases need no locks
    }
    places.update(dict.fromkeys(libvirt_lockspaces(scene.root), "qemu-lockd.conf"))
    for directory, whose in places.items():
        if not os.path.isdir(directory):
            yield Finding(
                "problem",
                "lock directory",
                f"{directory} ({whose}) is not there",
                f"mkdir -m 700 {directory}",
            )
            continue
        if (writers := writers_of(directory)).who:
            yield Finding("problem", "lock directory", *untrusted(directory, writers))
        mount, _ = scene.mounts.locate(directory)
        if mount.lock_warning:
            yield Finding(
                "problem",
                "lock directory",
                f"{directory} ({whose}) is on {mount.point}, {mount.lock_warning}",
                f"mount {mount.point} with working locks",
            )
        if reason := try_locks(directory):
            yield Finding(
                "problem",
                "lock directory",
                f"locks do not work in {directory} ({whose}): {reason}",
                "use a file system with byte-range locks; for NFSv3 start rpc.statd and the server's lockd",
            )
        else:
            backend = next(
                (b for n, b in scene.routing.backends.items() if whose == f"backend '{n}'"),
                scene.routing.default.backend,
            )
            level, note = backend.protection(f"{directory}/x")
            text = f"{directory} ({whose}): locks work, protection {int(level)} ({level.word})"
            yield Finding("ok" if level >= Protection.CROSS_HOST else "note", "lock directory", text, note)


def try_locks(directory: str) -> str:
    """Why byte-range locks don't exclude in a directory; empty if they do."""
    files = SystemLockFiles()
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".holdfast-doctor-") as f:
            second = os.open(f.name, os.O_RDWR | os.O_CLOEXEC)
            try:
                first_try = files.lock(f.fileno(), Mode.EXCLUSIVE, f.name)
                if first_try is not None:
                    code = first_try.errno if not isinstance(first_try, ForeignLock) else errno.EAGAIN
                    return f"taking a lock fails: {os.strerror(code)}"
                if files.lock(second, Mode.EXCLUSIVE, f.name) is None:
                    return "two exclusive locks on one file are both granted"
            finally:
                os.close(second)
    except OSError as e:
        return f"no file can be made there: {e.strerror}"
    return ""


def mounts(scene: Scene) -> Iterator[Finding]:
    for mount in scene.mounts.all():
        if mount.lock_warning:
            yield Finding(
                "problem",
                "mount",
                f"{mount.point} ({mount.type} from {mount.source}): {mount.lock_warning}",
                "mount it without that option if disks or lock files are on it",
            )


def disks(scene: Scene) -> Iterator[Finding]:
    """Disks of libvirt's domains that other hosts could write too, under locks that stay on this host."""
    spaces = libvirt_lockspaces(scene.root)
    weak: dict[str, list[str]] = {}
    demanded: list[str] = []
    fine = 0
    for domain in scene.domains:
        for disk in domain.disks:
            block = is_block_device(disk.path) or disk.path.startswith("/dev/")
            shared = block or scene.mounts.locate(disk.path)[0].protection >= Protection.CROSS_HOST
            # With lockspaces in qemu-lockd.conf libvirt asks for a hash in the first that fits; rules go by the path.
            resource = Resource(spaces[0], "x") if spaces else Resource(DIRECT_LOCKSPACE, disk.path)
            route = scene.routing.route(resource, disk.path)
            level, note = _worth(route.backend, resource)
            if level < route.min_at_start:
                demanded.append(f"{disk.path} of {domain.name}: {int(level)} < {int(route.min_at_start)}")
            elif shared and level < Protection.CROSS_HOST:
                weak.setdefault(f"backend '{route.backend.name}': {note}", []).append(
                    f"{disk.path} of {domain.name}"
                )
            else:
                fine += 1
    for why, which in weak.items():
        yield Finding(
            "problem",
            "disks",
            f"{_some(which)}: storage that other hosts may reach, but the lock stays on this host ({why})",
            'add [[disk]] match = "/dev/…/*" with a backend whose directory is on shared storage',
        )
    if demanded:
        yield Finding(
            "problem",
            "disks",
            f"{_some(demanded)}: less protection than require_protection demands; such VMs can't start",
            "correct the backend or the demand",
        )
    if fine and not weak and not demanded:
        yield Finding("ok", "disks", f"{fine} disks of {len(scene.domains)} domains have the locks they need")


def disk_names(scene: Scene) -> Iterator[Finding]:
    """Disks that domains have by another path than the canonical one, where locks are named by the path."""
    spaces = libvirt_lockspaces(scene.root)
    for domain in scene.domains:
        for disk in domain.disks:
            backend = scene.routing.route(Resource(DIRECT_LOCKSPACE, disk.path)).backend
            if not (spaces or _names_by_path(backend)):
                continue
            canonical = canonical_path(disk.path)
            if canonical != disk.path:
                whose = "qemu-lockd.conf" if spaces else f"backend '{backend.name}'"
                yield Finding(
                    "problem",
                    "disk name",
                    f"{disk.path} of {domain.name} is another name of {canonical}: locks are named by path ({whose}), so a "
                    "VM that has the disk by another name is not excluded, here or on another host",
                    f"shut down every VM that has this disk, on all hosts, and only then write {canonical} into the "
                    f"definition of each (virsh edit {domain.name})",
                )


def _names_by_path(backend: Backend) -> bool:
    if isinstance(backend, LeaseBackend):
        return backend.names.by_path
    return isinstance(backend, FileBackend) and bool(backend.directory)


def _worth(backend: Backend, resource: Resource) -> tuple[Protection, str]:
    """Of leases: once their lockspace is joined; whether it is, is told apart."""
    if isinstance(backend, LeaseBackend):
        return backend.promised()
    return backend.protection(backend.lock_path(resource))


def leases(scene: Scene) -> Iterator[Finding]:
    tables = scene.config.backend
    for told in (
        *lease_doctor.lockspaces(tables, scene.spaces),
        *host_doctor.hosts(scene.spaces),
        *lease_doctor.clock_rate(tables, scene.root),
    ):
        yield Finding(*told)


def running(scene: Scene) -> Iterator[Finding]:
    """VMs that run and that holdfastd has never heard of."""
    if scene.status is None:
        return
    known = {o.pid for o in scene.owners}
    strangers = [
        d
        for d in scene.domains
        if d.pid is not None and d.disks and d.pid not in known and os.path.exists(f"/proc/{d.pid}")
    ]
    for domain in strangers:
        yield Finding(
            "problem",
            "running VM",
            f"{domain.name} (pid {domain.pid}) runs without any lock: it was started while no lock manager was asked",
            f"suspend and resume it (virsh suspend {domain.name}; virsh resume {domain.name}) to take its locks",
        )
    if not strangers and any(d.pid for d in scene.domains):
        yield Finding("ok", "running VMs", "holdfastd knows all of them")


def migrations(scene: Scene) -> Iterator[Finding]:
    """Whether a migration that fails at the wrong moment leaves a guest without its lock."""
    if scene.config.migration_peers == "any":
        yield Finding(
            "note",
            "migrations",
            'migration_peers = "any": a lock is let go when libvirt releases it for a migration. If the target dies before '
            "QEMU has handed over, the guest runs on here, and another host may have taken the disk before the lock is "
            "taken back; the VM is then paused",
            'migration_peers = "holdfast", once holdfastd runs on every host that VMs migrate to; then: holdfast reload',
        )


CHECKS: Sequence[Callable[[Scene], Iterator[Finding]]] = (
    daemon,
    listening,
    libvirt,
    lock_directories,
    leases,
    mounts,
    disks,
    disk_names,
    running,
    migrations,
)


def _some(which: Sequence[str]) -> str:
    more = f" and {len(which) - DISKS_NAMED_MAX} more" if len(which) > DISKS_NAMED_MAX else ""
    return ", ".join(which[:DISKS_NAMED_MAX]) + more


def _pids_of(program: str) -> list[int]:
    return [int(p) for p in os.listdir("/proc") if p.isdigit() and program_name(int(p)) == program]


def _started_wall_s(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError):
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
