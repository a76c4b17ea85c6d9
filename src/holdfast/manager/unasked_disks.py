"""Disks that libvirt's hook wants held for a VM, and that libvirt itself never asks for.

libvirt asks its lock manager for no disk that it is configured not to lock (`auto_disk_leases = 0`), and for none of a kind
that it does not lock. The hook has those of a start held from `prepare` on, and they stay held until QEMU ends. For a
migration there are two more moments, in which libvirt connects and registers the VM, also if it asks for nothing:

    source    the guest has stopped               ─ they depart with the guest (`departures`): released when it has left
    target    finish3: the guest is about to run  ─ they are acquired, waiting for the source (`arrivals`), or it fails

What libvirt asks for, or releases, is one of these disks no longer: from then on it follows libvirt.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from holdfast.manager.lock_manager import LockManager
from holdfast.manager.migration_roles import holds_back
from holdfast.manager.owners import Owner
from holdfast.model import AcquireRequest
from holdfast.system.libvirt.domains import DomainStatus
from holdfast.system.libvirt.status_words import OUT


class UnaskedDisks:
    """Follows libvirt's connections that register a VM. `domains` None: there are no status files."""

    def __init__(self, manager: LockManager, domains: DomainStatus | None) -> None:
        self._manager = manager
        self._domains = domains

    def registered(self, owner: Owner) -> Coroutine[Any, Any, None] | None:
        """libvirtd has registered a VM, whose process is there; None if nothing more is to be done.

        The coroutine acquires what is missing, all or none; raises an error of the `LockError` tree.
        """
        if not owner.unasked:
            return None
        domain = None
        if self._domains is not None:
            domain = self._domains.look(owner.name.name, owner.name.uuid, owner.pid)
        if domain is not None and domain.async_job == OUT:
            if holds_back(domain):
                self._manager.departures.go_with(owner, owner.unasked)
            return None
        missing = [
            AcquireRequest(resource, mode)
            for resource, mode in owner.unasked.items()
            if (self._manager.claimed(owner, resource) or 0) < mode
        ]
        return self._acquire(owner, missing) if missing else None

    async def _acquire(self, owner: Owner, missing: list[AcquireRequest]) -> None:
        taken = []
        try:
            for want in sorted(missing):
                is_new = self._manager.claimed(owner, want.resource) is None
                await self._manager.acquire_waiting(owner, want, by_hook=True)
                if is_new:
                    taken.append(want.resource)
        except BaseException:
            for resource in reversed(taken):
                if (lock := self._manager.table.named(resource)) is not None:
                    await self._manager.release_one(owner, lock, resource)
            raise
