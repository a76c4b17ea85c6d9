"""Finds file locks of running VMs at a start with a lost or doubtful journal.

A file lock ends with the daemon that held it, unless a descriptor store keeps it; then only the journal says which locks
must be taken again. Where the journal is in doubt, two other places name running VMs and their disks:

    lock directories     the owner record in a lock file names host, VM, pid and start time
    libvirt              the status file of a running domain names pid and disks

Each lock that is found so and that is free now is taken again, for its owner. A lock with another holder is reported as
lost, and no VM is touched: a find is no proof that the lock was held.
"""

from __future__ import annotations

import logging

from holdfast.backends.base import HeldElsewhere, KeepsDescriptors, SavedLock, Stale
from holdfast.errors import LockError
from holdfast.manager import events as ev
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.owners import Evidence, Owner
from holdfast.model import AcquireRequest, Mode, OwnerName, Resource
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.system.libvirt.domains import Domain, DomainStatus

log = logging.getLogger(__name__)

RUNNING = "running"
"""libvirt's word for a domain whose locks it holds: those of a paused one are released."""


class LockSearch:
    """Searches lock directories and libvirt's status files."""

    def __init__(self, manager: LockManager, *, domains: DomainStatus | None) -> None:
        self._manager = manager
        self._domains = domains

    async def search(self, why: str) -> None:
        """Take the found locks again, after the journal's locks are in the table. `why`: the journal's doubt."""
        for backend in list(self._manager.backends):
            await self._in_directory(backend, why)
        for domain in self._domains.running() if self._domains is not None else ():
            await self._of_domain(domain)

    async def _in_directory(self, name: str, why: str) -> None:
        backend = self._manager.backends[name]
        if not isinstance(backend, KeepsDescriptors):
            return
        for left in await backend.left_files():
            if left.noted.process is None or self._manager.table.of_lock_file(left.key) is not None:
                continue
            saved = SavedLock(
                resource=left.resource, mode=left.mode, create=True, path=left.path, keys=(left.key,)
            )
            held = await backend.adopt(saved, None)
            if isinstance(held, HeldElsewhere | Stale | IoFailed):
                log.warning("lock file %s names %s of this host: %s", left.path, left.noted.owner.name, held)
                continue
            self._manager.unknown.hold(
                backend=name,
                held=held,
                resource=left.resource,
                mode=left.mode,
                keys=(left.key,),
                name=left.noted.owner,
                evidence=Evidence(
                    why=f"{why}; lock file {left.path}", process=left.noted.process, disk=left.noted.disk
                ),
            )

    async def _of_domain(self, domain: Domain) -> None:
        if domain.state != RUNNING or domain.pid is None:
            return
        for disk in domain.disks:
            resource = Resource("", disk.path)
            backend = self._manager.routing.route(resource).backend
            # Leases are found on storage, and lock files in a directory by their records.
            if backend.lock_path(resource) != disk.path or self._manager.table.named(resource) is not None:
                continue
            owner = self._manager.owners.find(domain.pid, OwnerName(domain.name, domain.uuid))
            if owner.process is None:
                self._manager.owners.forget(owner)
                return
            await self._taken(
                owner, AcquireRequest(resource, Mode.SHARED if disk.shareable else Mode.EXCLUSIVE)
            )

    async def _taken(self, owner: Owner, want: AcquireRequest) -> None:
        try:
            await self._manager.acquire(owner, want)
        except LockError as e:
            log.critical(
                "LOCK LOST: %s of %s, which runs by libvirt's status file: %s", want.resource, owner, e
            )
            self._manager.events.emit(ev.LOCK_LOST, owner.name, owner.pid, want.resource, want.mode, str(e))
            if not self._manager.table.holds_any(owner.id) and not owner.connections:
                self._manager.owners.forget(owner)
        else:
            log.warning("%s is held again for %s, as libvirt's status file says", want.resource, owner)
