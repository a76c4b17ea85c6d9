"""The guard's leases of a cluster with shared volumes, and what the lock manager of each host does with them (ADR 0232).

Leases outlive daemons, and those of a host without power stay until it is called dead. The manager's part is the order of
its steps, which `manager/identity_locks` and `manager/departures` keep: the lease before the grant, and back after it; a
RELEASE of a migration is held back until the status file says that the guest has left; a VM that ran before the guard was
configured gets its lease in the background. The decisions are those that ship (`manager/migration_roles`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.backends.lvm.ports import LvId, Volume
from holdfast.backends.lvm.write_rules import Vm
from holdfast.manager.migration_roles import Outcome, holds_back, is_arriving, outcome, stands
from holdfast.model import Mode

if TYPE_CHECKING:
    from holdfast_sim.volumes.site import Site

READ_S = 0.1
"""Between two looks at departing guests, and at a guard that a migration's target waits for."""
TARGET_WAITS_S = 10.0
BACKGROUND_S = 15.0
"""Mean seconds until a running VM is given its lease."""


@dataclass(slots=True)
class Lease:
    """Of one volume."""

    host: str
    vm: Vm
    departs: bool = False


@dataclass(slots=True)
class GuardLeases:
    """Storage: by volume, who has its lease."""

    held: dict[LvId, Lease] = field(default_factory=dict)

    def take(self, host: str, vm: Vm, volume: Volume) -> bool:
        """Whether the VM has it now."""
        lease = self.held.setdefault(volume.id, Lease(host, vm))
        return (lease.host, lease.vm) == (host, vm)

    def give_back(self, host: str, vm: Vm, volume: Volume) -> None:
        lease = self.held.get(volume.id)
        if lease is not None and (lease.host, lease.vm) == (host, vm):
            del self.held[volume.id]

    def called_dead(self, host: str) -> None:
        self.held = {lv: lease for lv, lease in self.held.items() if lease.host != host}


class HostGuard:
    """One daemon's lock manager, as far as guard leases go."""

    def __init__(self, site: Site, leases: GuardLeases) -> None:
        self._site = site
        self._leases = leases
        self._adopted = False
        """Whether the leases of the last daemon are held again: until then they are worth nothing here."""

    def mode(self, vm: Vm, volume: Volume) -> Mode | None:
        """See `HostVolumes.guard`."""
        lease = self._leases.held.get(volume.id)
        has = lease is not None and (lease.host, lease.vm) == (self._site.name, vm)
        return Mode.EXCLUSIVE if has and self._adopted else None

    async def acquire(self, vm: Vm, name: str, volume: Volume) -> str:
        """libvirt's ACQUIRE: the refusal, or empty."""
        site, clock = self._site, self._site.host.clock
        until = clock.now() + TARGET_WAITS_S
        had = self.mode(vm, volume) is not None
        while not (self._adopted and self._leases.take(site.name, vm, volume)):
            if not is_arriving(site.host.domain_of(vm)) or clock.now() >= until:
                return "the guard lease is held"
            await clock.sleep(READ_S)
        denied = await site.grants.acquire(vm, name, volume, Mode.EXCLUSIVE)
        lease = self._leases.held.get(volume.id)
        if denied is None and lease is not None:
            lease.departs = False
        elif denied is not None and not had:
            self._leases.give_back(site.name, vm, volume)
        return str(denied or "")

    def release(self, vm: Vm, volume: Volume) -> object:
        """libvirt's RELEASE."""
        lease = self._leases.held.get(volume.id)
        if lease is not None and holds_back(self._site.host.domain_of(vm)):
            lease.departs = lease.departs or (lease.host, lease.vm) == (self._site.name, vm)
            return "departs"
        return self._let_go(vm, volume)

    def _let_go(self, vm: Vm, volume: Volume) -> object:
        grant = self._site.grants.let_go(vm, volume)
        self._leases.give_back(self._site.name, vm, volume)
        return grant

    async def run(self) -> None:
        """Adopts, then looks after leases until the daemon ends."""
        site, random = self._site, self._site.world.random
        await site.host.clock.sleep(random.uniform(0.0, 1.0))
        self._adopted = True
        for lease in self._leases.held.values():
            if lease.host == site.name and stands(site.host.domain_of(lease.vm)):
                lease.departs = True
        site.host.news.set()
        while True:
            await site.host.clock.sleep(READ_S)
            for volume in site.volumes:
                self._look_after(volume)

    def _look_after(self, volume: Volume) -> None:
        site = self._site
        lease = self._leases.held.get(volume.id)
        if lease is None:
            grants = site.grants.of(volume)
            if grants and site.world.random.random() < READ_S / BACKGROUND_S and self._runs(grants[0].vm):
                self._leases.take(site.name, grants[0].vm, volume)
                site.host.news.set()
            return
        if lease.host != site.name:
            return
        if not self._runs(lease.vm):
            self._let_go(lease.vm, volume)
        elif lease.departs:
            seen = outcome(site.host.domain_of(lease.vm))
            if seen is Outcome.GONE:
                self._let_go(lease.vm, volume)
            elif seen is Outcome.STAYED:
                lease.departs = False

    def _runs(self, vm: Vm) -> bool:
        return any(qemu.vm == vm and not qemu.has_ended for qemu in self._site.qemus)
