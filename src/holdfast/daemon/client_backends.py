"""The backends that hold the leases of sanlock's clients: one for each lockspace of this host, configured or added.

A backend is in the routing from before its lockspace is joined, so that a restart adopts its leases, until the lockspace
is left.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.backends.lease_backend import LeaseBackend
from holdfast.backends.paxos.area_backend import AreaBackend, in_lockspace
from holdfast.backends.paxos.lease_jobs import HoldingPorts
from holdfast.manager.routing import Routing
from holdfast.model import SANLOCK_PREFIX
from holdfast.protocol.ports import Rng
from holdfast.supervision.lockspace_port import LockspacePort
from holdfast.system import eager_tasks
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import DiskIdentities
from holdfast.system.files.storage_executor import Storage


class ClientBackends:
    """`leases` gives storage for the leases of a lockspace, by its name."""

    def __init__(
        self,
        routing: Routing,
        *,
        leases: Callable[[str], LeaseStorage],
        storage: Storage,
        identities: DiskIdentities,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._routing = routing
        self._leases = leases
        self._storage = storage
        self._identities = identities
        self._clock = clock
        self._rng = rng
        self._backends: dict[str, AreaBackend] = {}

    def backend_of(self, lockspace: str) -> AreaBackend | None:
        """None if this host is not in that lockspace, and is not about to join it."""
        return self._backends.get(lockspace)

    def serves(self, backend: LeaseBackend | None) -> bool:
        """Whether clients may have leases where that backend has its own."""
        return backend is not None and backend.presence.name in self._backends

    def add(self, presence: LockspacePort) -> None:
        """A lockspace is there from now on; one that has its backend already keeps it."""
        if presence.name in self._backends:
            return
        leases = self._leases(presence.name)
        backend = AreaBackend(
            presence=presence,
            leases=leases,
            ports=HoldingPorts(offload=leases, clock=self._clock, rng=self._rng, spawn=eager_tasks.start),
            storage=self._storage,
            identities=self._identities,
            beside=in_lockspace(self._routing.leases.values(), presence),
        )
        self._routing.add_clients_leases(backend)
        self._backends[presence.name] = backend

    def remove(self, lockspace: str) -> None:
        """This host has left it."""
        if self._backends.pop(lockspace, None) is not None:
            self._routing.remove_clients_leases(SANLOCK_PREFIX + lockspace)
