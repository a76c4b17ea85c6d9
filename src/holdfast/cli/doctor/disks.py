"""Checks of domains' disks: is each one locked, by a lock that reaches every host that could write it, under one name?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from holdfast.backends.base import Backend
from holdfast.backends.file.backend import FileBackend
from holdfast.backends.lvm.backend import LvmBackend
from holdfast.backends.nop import NopBackend
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Scene, some
from holdfast.cli.libvirt_files import LOCKD_CONF, QEMU_CONF, libvirt_lockspaces, read_settings
from holdfast.cli.unlocked import held_names
from holdfast.model import DIRECT_LOCKSPACE, HOST_LOCKSPACE, Protection, Resource
from holdfast.system.files.canonical_path import canonical_path
from holdfast.system.files.mounts import is_block_device
from holdfast.system.libvirt.domain_disks import DomainDisk, Kind
from holdfast.system.libvirt.domains import Domain
from holdfast.system.libvirt.volume_hooks import HOOK

UNCACHED = ("none", "directsync")


def disks(scene: Scene) -> Iterator[Finding]:
    """Disks of libvirt's domains that other hosts could write too, under locks that stay on this host."""
    spaces = libvirt_lockspaces(scene.root)
    weak: dict[str, list[str]] = {}
    block: dict[str, bool] = {}
    demanded: list[str] = []
    without: list[str] = []
    enough = 0
    for domain in scene.domains:
        for disk in domain.disks:
            device = is_block_device(disk.path) or disk.path.startswith("/dev/")
            shared = device or scene.mounts.locate(disk.path)[0].is_shared
            resource = scene.resource(disk.path, spaces)
            route = scene.routing.route(resource, disk.path)
            level, note = worth(route.backend, resource)
            named = f"{disk.path} of {domain.name}"
            if level < route.min_at_start:
                demanded.append(f"{named}: {int(level)} < {int(route.min_at_start)}")
            elif isinstance(route.backend, NopBackend):
                without.append(f"{named} (backend '{route.backend.name}')")
            elif shared and level < Protection.CROSS_HOST:
                why = f"backend '{route.backend.name}': {note}"
                weak.setdefault(why, []).append(named)
                block[why] = block.get(why, False) or device
            else:
                enough += 1
    for why, which in weak.items():
        yield found(
            "HF080",
            f"{some(which)}: storage that other hosts may reach, but the lock stays on this host ({why})",
            _reaching(which, block[why]),
        )
    if demanded:
        yield found(
            "HF081",
            f"{some(demanded)}: less protection than require_protection demands; such VMs can't start",
            "give these disks a backend that reaches it (docs/protection.md), or lower require_protection; then: "
            "holdfast reload",
        )
    if without:
        yield found(
            "HF088",
            f'{some(without)}: driver = "nop" locks nothing: protection level 0',
            "if nothing else guards these disks: give them another backend, then: holdfast reload",
        )
    if enough and not weak and not demanded and _asked(scene):
        yield fine("disks", f"{enough} disks of {len(scene.domains)} domains have the locks they need")


def _asked(scene: Scene) -> bool:
    """Whether libvirt asks holdfastd for them at all."""
    lockd = read_settings(scene.path(LOCKD_CONF)) or {}
    qemu = read_settings(scene.path(QEMU_CONF)) or {}
    return qemu.get("lock_manager") == "lockd" and lockd.get("auto_disk_leases") != "0"


def _reaching(which: Sequence[str], block: bool) -> str:
    """The rule to write, for the directory that the first of these disks is in."""
    match = which[0].rpartition(" of ")[0].rpartition("/")[0] + "/*"
    where = (
        "a lock directory on shared storage, or leases"
        if block
        else "locks that reach other hosts, or leases"
    )
    return (
        f"write a rule that gives them {where} (docs/install.md), such as: [[disk]] match = {_toml(match)} "
        f'backend = "shared" '
        "require_protection = 2; then: holdfast reload"
    )


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unlocked(scene: Scene) -> Iterator[Finding]:
    """Kinds of disks that libvirt asks no lock for or that are not known, and volumes that can't be found."""
    reasons: dict[tuple[bool, str], list[str]] = {}
    asked: list[str] = []
    for domain in scene.domains:
        for disk in domain.unlocked:
            if disk.kind is Kind.NETWORK and scene.routing.locks_network_disk(
                Resource(DIRECT_LOCKSPACE, disk.name)
            ):
                if not _has_asked(scene, domain, disk):
                    asked.append(f"{disk} of {domain.name}")
                continue
            case = (disk.kind is Kind.UNKNOWN, disk.why_unlocked)
            reasons.setdefault(case, []).append(f"{disk} of {domain.name}")
    for (unknown, why), which in reasons.items():
        yield found(
            "HF083",
            f"{some(which)}: {why}{'' if unknown else ', whatever the lock manager'}: protection level 0",
            "make sure by other means that no second VM has them, and report the <disk> element (virsh dumpxml)"
            if unknown
            else "install libvirt's hook, and write a rule that names network disks (docs/protection.md); or use the host's "
            "own driver (rbd map, iscsiadm, nvme connect) and give the VM the block device, under leases; else make sure by "
            "other means that no second VM has them",
        )
    if asked:
        yield found(
            "HF083",
            f"{some(asked)}: a rule names them, and libvirt's hook has not asked for them: protection level 0",
            f"if {scene.path(HOOK)} is missing, install it (docs/install.md); then restart these VMs",
        )
    lost = [
        f"{disk} of {domain.name} ({disk.reason})" for domain in scene.domains for disk in domain.unresolved
    ]
    if lost:
        yield found(
            "HF087",
            f"{some(lost)}: the path of these volumes (pool/volume) is not known here",
            "see which path the running VM has: virsh domblklist; then: holdfast who PATH",
        )


def _has_asked(scene: Scene, domain: Domain, disk: DomainDisk) -> bool:
    """Whether the hook holds a network disk for a VM that runs; of another one, whether it would ask."""
    if domain.pid is None:
        return os.path.lexists(scene.path(HOOK))
    return (domain.pid, disk.name) in held_names(scene.locks)


def beside_disks(scene: Scene) -> Iterator[Finding]:
    """Images below disks, data files, NVRAM and TPM state of VMs that run."""
    guarded = {lock.name for lock in scene.locks if lock.held and lock.lockspace == HOST_LOCKSPACE}
    which = [
        f"{part} ({domain.name})"
        for domain in scene.running()
        for part in domain.unguarded
        if not part.path or part.path not in guarded
    ]
    if which:
        yield found(
            "HF089",
            f"{some(which)}: not locked, for libvirt asks a lock for top images alone",
            "nothing to do if no other VM writes them; those of one VM: holdfast who VM",
        )


def names(scene: Scene) -> Iterator[Finding]:
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
                yield found(
                    "HF082",
                    f"{disk.path} of {domain.name} is another name of {canonical}: locks are named by path "
                    f"({whose}), so a "
                    "VM that has the disk by another name is not excluded, here or on another host",
                    f"shut down every VM that has this disk, on all hosts, and only then write {canonical} into the "
                    f"definition of each (virsh edit -- {shlex.quote(domain.name)})",
                )


def shared_by_domains(scene: Scene) -> Iterator[Finding]:
    """Row 28: one disk in several domains, and how each has it."""
    users: dict[str, list[tuple[str, bool]]] = {}
    cached: list[str] = []
    for domain in scene.domains:
        for disk in domain.disks:
            users.setdefault(canonical_path(disk.path), []).append((domain.name, disk.shareable))
            if disk.shareable and disk.cache not in UNCACHED:
                cached.append(f"{disk.path} of {domain.name} (cache = {disk.cache or 'default'!r})")
    if cached:
        yield found(
            "HF085",
            f"{some(cached)}: a shareable disk whose writes stay in this host's memory for a while",
            "write <driver cache='none'/> for each (virsh edit), and restart the VMs",
        )
    for path, domains in users.items():
        every = some([name for name, _ in domains])
        ways = {shareable for _, shareable in domains}
        if len(domains) > 1 and len(ways) > 1:
            yield found(
                "HF086",
                f"{path} is <shareable/> in some of {every}, and not in others: these can't run at once",
                "write <shareable/> for it into all of them, or into none (virsh edit)",
            )
        elif len(domains) > 1 and False in ways:
            yield found(
                "HF084",
                f"{path} is a disk of {every}: only one of them can run",
                "give each a disk of its own, if that is not meant (virsh edit)",
            )


def _names_by_path(backend: Backend) -> bool:
    if isinstance(backend, PaxosBackend):
        return backend.names.by_path
    return isinstance(backend, FileBackend) and bool(backend.directory)


def worth(backend: Backend, resource: Resource) -> tuple[Protection, str]:
    """Of leases, also of guards: once their lockspace is joined; whether it is, another check says."""
    if isinstance(backend, PaxosBackend | LvmBackend):
        return backend.promised()
    return backend.protection(backend.lock_path(resource))
