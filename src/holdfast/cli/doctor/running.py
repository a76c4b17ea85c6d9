"""Checks of virtual machines that run: does each have its locks, of the backend that its disks have now?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from holdfast.backends.naming import indirect_name
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Program, Scene, some
from holdfast.cli.libvirt_files import LOCKD_CONF, QEMU_CONF, read_settings
from holdfast.control.api import MOVED_PROBLEM, HolderInfo
from holdfast.model import DIRECT_LOCKSPACE, Resource
from holdfast.system.libvirt.domains import XML_BYTES_MAX, Domain
from holdfast.system.libvirt.xml_text import NotUnderstood, read

QEMU_PREFIXES = ("qemu-system-", "qemu-kvm", "kvm")


def running(scene: Scene) -> Iterator[Finding]:
    """VMs that run and that holdfastd has never heard of, or not with every disk."""
    if scene.status is None:
        return
    known = {o.pid for o in scene.owners}
    every = scene.running()
    strangers = [d for d in every if (d.disks or d.unresolved) and d.pid not in known]
    partly = [(d, lacking) for d in every if d.pid in known and (lacking := _lacking(scene, d))]
    for domain in strangers:
        yield found(
            "HF090",
            f"{domain.name} (pid {domain.pid}) runs without any lock: it was started while no lock manager was asked",
            _take_locks(scene, domain),
        )
    for domain, lacking in partly:
        yield found(
            "HF091",
            f"{domain.name} (pid {domain.pid}) has no lock on {some(lacking)}",
            _take_locks(scene, domain),
        )
    whole = [d for d in every if not d.unlocked and not d.unresolved]
    if whole and not strangers and not partly:
        yield fine(
            "running VMs", f"holdfastd knows {'all of them' if len(whole) == len(every) else f'{len(whole)}'}"
        )


def _take_locks(scene: Scene, domain: Domain) -> str:
    """libvirt asks for the locks of a VM at a resume, if it asks anybody."""
    if not _asked(scene):
        return 'first see to lock_manager = "lockd" (the finding about libvirt), and to holdfastd; then run doctor again'
    if domain.state == "paused":
        return (
            f"virsh resume -- {shlex.quote(domain.name)}   # when you want it to run: it takes the locks then"
        )
    name = shlex.quote(domain.name)
    return f"virsh suspend -- {name} && virsh resume -- {name}"


def _asked(scene: Scene) -> bool:
    settings = read_settings(scene.path(QEMU_CONF)) or {}
    return settings.get("lock_manager") == "lockd"


def _lacking(scene: Scene, domain: Domain) -> list[str]:
    """Disks of a VM that runs, and has no claim on them. A paused one has none, and should not."""
    lockd = read_settings(scene.path(LOCKD_CONF)) or {}
    if domain.state != "running" or lockd.get("auto_disk_leases") == "0" or domain.async_job:
        return []
    held = {lock.name for lock in scene.locks if lock.pid == domain.pid}
    indirect = any(len(name) != 0 and not name.startswith("/") for name in held)
    if indirect:
        return []
    lacking = [disk.path for disk in domain.disks if disk.path not in held]
    spare = held - {disk.path for disk in domain.disks}
    # No lock can be attributed to a volume whose path is not known, but there has to be one for each.
    return lacking + [str(disk) for disk in domain.unresolved[len(spare) :]]


def unread(scene: Scene) -> Iterator[Finding]:
    """VMs that run and whose disks can't be known."""
    for path in scene.unread:
        try:
            read(path, XML_BYTES_MAX)
            why = "there is no domain in it"
        except NotUnderstood as e:
            why = str(e)
        yield found(
            "HF095",
            f"{path} can't be read ({why}): which disks that VM has, and under which locks, is not known",
            "see which VMs run: virsh list; libvirt writes the file again when the VM is suspended and resumed",
        )


def other_backend(scene: Scene) -> Iterator[Finding]:
    """A lock that is of another backend than its rule names now: other hosts ask elsewhere."""
    stale: dict[tuple[str, str], list[HolderInfo]] = {}
    problems = scene.status.problems if scene.status is not None else []
    paths = {indirect_name(disk.path): disk.path for domain in scene.domains for disk in domain.disks}
    for lock in scene.locks:
        if not lock.held or any(each.startswith(f"{MOVED_PROBLEM}{lock.resource} ") for each in problems):
            continue  # not held, or the daemon says so itself
        path = paths.get(lock.name, "" if lock.lockspace else lock.name)
        route = scene.routing.route(Resource(lock.lockspace or DIRECT_LOCKSPACE, lock.name), path)
        if (
            lock.backend
            and route.backend.name != lock.backend
            and not _renamed(scene, lock.backend, route.backend.name)
        ):
            stale.setdefault((lock.backend, route.backend.name), []).append(lock)
    for (old, new), locks in stale.items():
        which = [f"{paths.get(lock.name, lock.resource)} of {lock.owner}" for lock in locks]
        vms = sorted({lock.owner for lock in locks if lock.owner_uuid})
        fix = " ; ".join(
            f"virsh suspend -- {shlex.quote(vm)} && virsh resume -- {shlex.quote(vm)}" for vm in vms
        )
        yield found(
            "HF092",
            f"{some(which)}: locked by backend '{old}', but the rules say '{new}' now: a host that asks '{new}' "
            f"is granted the "
            "disk. Start no VM with it elsewhere before that is mended",
            fix
            or "end these owners and start them again: "
            + some(sorted({f"pid {lock.pid}" for lock in locks})),
        )


def _renamed(scene: Scene, old: str, new: str) -> bool:
    """Whether two names are of one place: a table was renamed and the daemon has not been reloaded."""
    if scene.in_force is None:
        return False
    before, now = scene.in_force.backend.get(old), scene.config.backend.get(new)
    return before is not None and before == now


def outside_libvirt(scene: Scene) -> Iterator[Finding]:
    """Row 30: a QEMU that no libvirt started, with a disk that no owner of a lock has."""
    managed = {d.pid for d in scene.domains if d.pid is not None}
    owners = {o.pid for o in scene.owners}
    for program in scene.programs():
        if not program.name.startswith(QEMU_PREFIXES) or program.pid in managed | owners or program.elsewhere:
            continue
        if _of_libvirt(program) or _descends_from(scene, program.pid, owners):
            continue
        images = _images(program)
        if images:
            yield found(
                "HF093",
                f"{program.name} (pid {program.pid}, not of libvirt) has {some(images)}, and no lock manager knows of it",
                f"end it (ps -fp {program.pid}) and start it under a lock: holdfast run --disk "
                f"{shlex.quote(images[0])} -- "
                f"{shlex.quote(program.arguments[0] if program.arguments else program.name)} ...",
            )


def _of_libvirt(program: Program) -> bool:
    """libvirt's own probes, and VMs of a session's or of another libvirt: `-name guest=...` with a secret's object."""
    return any(word.startswith("guest=") for word in program.arguments)


def _descends_from(scene: Scene, pid: int, owners: set[int]) -> bool:
    """Whether one of `holdfast run`'s keepers started it."""
    seen = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
                pid = int(f.read().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError, ValueError):
            return False
        if pid in owners:
            return True
    return False


def _images(program: Program) -> list[str]:
    """Paths of images in its arguments that are there: file=, filename= of -drive and -blockdev, and -hda."""
    found_paths = []
    for before, word in zip(("", *program.arguments), program.arguments, strict=False):
        if "readonly=on" in word or '"read-only":true' in word:
            continue
        for part in (
            word.replace('"', "").replace("{", ",").replace("}", ",").replace("filename:", "file=").split(",")
        ):
            key, equals, path = part.partition("=")
            if equals and key in ("file", "filename", "file.filename") and path.startswith("/"):
                found_paths.append(path)
        if before in ("-hda", "-hdb", "-hdc", "-hdd") and word.startswith("/"):
            found_paths.append(word)
    return [
        path
        for path in dict.fromkeys(found_paths)
        if not path.startswith("/dev/fdset") and os.path.lexists(path)
    ]


def migrations(scene: Scene) -> Iterator[Finding]:
    """Whether a migration that fails at the wrong moment leaves a guest without its lock."""
    if scene.config.migration_peers == "any":
        yield found(
            "HF094",
            'migration_peers = "any": a lock is released when libvirt releases it for a migration. If the target '
            "dies before "
            "QEMU has handed over, the guest runs on here, and another host may have taken the disk before the lock is "
            "taken back; the VM is then paused",
            'migration_peers = "holdfast", once holdfastd runs on every host that VMs migrate to; then: holdfast reload',
        )
