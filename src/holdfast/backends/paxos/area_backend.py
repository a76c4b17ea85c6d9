"""The leases of sanlock's clients in one lockspace: a `PaxosBackend` whose leases are where the clients say.

A configured backend of the same lockspace has the same keys for the same lease names, so that the lock table excludes its
VMs and these clients from each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from holdfast.backends.base import HeldElsewhere, LeftBehind, OwnerNote, SavedLock, Stale, Turn
from holdfast.backends.lease_backend import OffWord
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos.area_store import GONE, Area, AreaStore, area_of
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.device_store import DeviceStore, IndexChange
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.backends.paxos.lease_failures import found_or_refused
from holdfast.backends.paxos.lease_jobs import HoldingPorts, area_in, member_in
from holdfast.backends.paxos.lease_store import Removed
from holdfast.errors import LockError, storage_failed
from holdfast.model import SANLOCK_PREFIX, LockFailureAction, Mode, Protection, Resource
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_request import Cleared, Force, RequestOutcome, clear, request
from holdfast.protocol.types import HostId
from holdfast.supervision.lockspace_port import LockspacePort
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.block_io.offload import Job, TimedOut
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.system.files.storage_executor import Storage

log = logging.getLogger(__name__)


def resource_in(lockspace: str, name: str) -> Resource:
    """A lease of sanlock's clients as a resource of the manager."""
    return Resource(SANLOCK_PREFIX + lockspace, name)


def in_lockspace(backends: Iterable[object], presence: LockspacePort) -> PaxosBackend | None:
    """The configured one of these backends whose leases are in that lockspace."""
    for backend in backends:
        if isinstance(backend, PaxosBackend) and backend.presence is presence:
            return backend
    return None


class AreaBackend(PaxosBackend):
    """`leases` is the storage of the lockspace's leases, `beside` a configured backend of the same lockspace."""

    def __init__(
        self,
        *,
        presence: LockspacePort,
        leases: LeaseStorage,
        ports: HoldingPorts,
        storage: Storage,
        identities: DiskIdentities,
        beside: PaxosBackend | None = None,
    ) -> None:
        self.areas = AreaStore(leases)
        super().__init__(
            SANLOCK_PREFIX + presence.name,
            presence=presence,
            places=self.areas,
            name_by=NameBy.RESOURCE,
            on_lockfailure=LockFailureAction.POWEROFF,
            reach=Protection.CROSS_HOST,
            reach_note="",
            ports=ports,
            storage=storage,
            identities=identities,
        )
        self._words: dict[HostId, OffWord] = {}
        self.index_turn: Turn[IndexChange] = Turn()
        """Who of this host changes the lockspace's resource index: a configured backend of it does, too."""
        if beside is not None:
            self.share_leases(beside)
            if isinstance(beside.places, DeviceStore):
                self.index_turn = beside.places.turn

    async def ask_holder(
        self, name: str, area: Area, force: Force | None, lver: int | None
    ) -> RequestOutcome | Cleared:
        """Write a request for version `lver` of a lease, the next one when None; `force` None: take any request back.

        Raises a `LockError`.
        """
        resource = resource_in(self.presence.name, name)
        member = self.member(resource)

        async def work(job: Job) -> RequestOutcome | Cleared | IoFailed:
            finding = await self.areas.open(job, member, name, area)
            found = found_or_refused(resource, finding if not isinstance(finding, Removed) else GONE)
            if isinstance(found, IoFailed):
                return found
            try:
                lease = area_in(job, found.area)
                if force is None:
                    return await clear(lease, member)
                return await request(lease, member_in(job, member), force, lver)
            finally:
                job.disk(found.disk).close()

        done = await self.ports.offload.run(work, member.io_timeout_s)
        outcome = await done.over if isinstance(done, TimedOut) else done
        if isinstance(outcome, IoFailed):
            raise storage_failed(outcome)
        return outcome

    def believe(self, word: OffWord) -> None:
        """Leases of that host are taken over by this word from now on, wherever a client says that they are."""
        self._words[word.term[0]] = word

    async def take(
        self, lease: str, member: Membership, resource: Resource, mode: Mode, note: OwnerNote
    ) -> PaxosHeld | HeldElsewhere | Stale | LeftBehind | IoFailed:
        taken = await super().take(lease, member, resource, mode, note)
        if not isinstance(taken, HeldElsewhere) or self.areas.wants_version(lease):
            return taken
        try:
            words = [
                word
                for word in self._words_in_force(member)
                if await self.maintenance.claims_of_term(lease, word.term, older_too=False)
            ]
            proof = words and await self.maintenance.break_of(lease, frozenset(word.term for word in words))
        except LockError as e:
            log.warning("lease %s is not taken over from a host that is attested to be off: %s", resource, e)
            return taken
        if not proof:
            return taken
        for word in words:
            word.broken(lease, proof)
        return await super().take(lease, member, resource, mode, note)

    def _words_in_force(self, member: Membership) -> list[OffWord]:
        """A host whose record has changed since is not off, whatever was said before."""
        for host_id, word in list(self._words.items()):
            view = member.view(host_id)
            if (host_id, view.generation) != word.term or view.timestamp != word.timestamp:
                log.warning(
                    "host_id %d of lockspace %s is not off as was attested: its record has changed since",
                    host_id,
                    self.presence.name,
                )
                del self._words[host_id]
        return list(self._words.values())

    async def adopt(self, saved: SavedLock, fd: int | None) -> PaxosHeld | HeldElsewhere | Stale | IoFailed:
        """As any other lease; where it is says the journal."""
        if (area := area_of(saved.path)) is not None:
            self.areas.put(saved.resource.name, area)
        return await super().adopt(saved, fd)
