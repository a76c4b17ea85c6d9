"""Joins driver lvm to the lock manager: its claims, its rules, and what happens to a VM whose volume another host has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from holdfast.backends.base import Backend
from holdfast.backends.lvm.backend import LvmBackend
from holdfast.backends.lvm.ports import Volume
from holdfast.backends.lvm.write_rules import Grant, Holding, Vm
from holdfast.manager.adoption import Recovery
from holdfast.manager.lock_manager import LockManager
from holdfast.model import DIRECT_LOCKSPACE, IDENTITY_LOCKSPACE, Mode, Resource
from holdfast.system.files.strong_identity import VOLUME_IDENTITY


def volumes_of(backends: Mapping[str, Backend]) -> LvmBackend | None:
    """The backend with driver lvm; there is one at most."""
    return next((each for each in backends.values() if isinstance(each, LvmBackend)), None)


def connect_volumes(volumes: LvmBackend, manager: LockManager, recovery: Recovery) -> None:
    """Before anything is adopted."""
    volumes.host.claims = partial(_claims, manager, volumes.name)
    volumes.host.is_ours = lambda path: (
        manager.routing.route(Resource(DIRECT_LOCKSPACE, path)).backend is volumes
    )

    async def failed(holding: Holding, why: str) -> None:
        owner = manager.owners.with_pid(holding.vm.pid)
        if owner is None or owner.name.uuid != holding.vm.uuid:
            return  # its process has ended, and the log has the rest
        domain = volumes.host.domain_of(holding.vm)
        await recovery.act(owner, domain.on_lockfailure if domain is not None else "")

    volumes.on_lockfailure = failed
    if volumes.guard is not None:
        volumes.host.guard = partial(_guard, manager, volumes.guard.name)


def _guard(manager: LockManager, guard: str, vm: Vm, volume: Volume) -> Mode | None:
    """The mode in which a process has the guard's lease of a volume; None without one that is worth something now."""
    identity = Resource(IDENTITY_LOCKSPACE, f"{VOLUME_IDENTITY}{volume.id.lv_uuid}")
    lock, owner = manager.table.named(identity), manager.owners.with_pid(vm.pid)
    if lock is None or lock.backend != guard or manager.why_lost(lock):
        return None
    if owner is None or owner.gone or owner.name.uuid != vm.uuid:
        return None
    return lock.claims.get(owner.id, {}).get(identity)


def _claims(manager: LockManager, name: str) -> Iterator[tuple[str, Holding]]:
    """By path: who writes by the table. One that departs may not, and one that is being started does not yet."""
    for lock in manager.table:
        if lock.backend != name:
            continue
        for owner_id, names in lock.claims.items():
            owner = manager.owners.get(owner_id)
            if owner is None or owner.pid <= 0 or owner.gone:
                continue
            standing = {each: mode for each, mode in names.items() if (owner_id, each) not in lock.departing}
            if standing:
                vm = Vm(owner.name.uuid, owner.pid)
                yield lock.path, Holding(vm, owner.name.name, max(standing.values()), Grant.HELD)
