"""Checks the safety claims and the invariants of the format from outside.

The checkers see what no host sees: true time, every byte that takes effect on storage, every lease that a host believes
it holds, every virtual machine that runs. Of the code under test they use the layout of records and io_timeout alone.

    claim                 checked in
    identity first        `_is_in_order`: with aliases, a daemon has the lease of what a disk is before that of a path
    exclusion             `runs`, `believes`: no two hosts hold a lease if one hold is exclusive; no VM without a lease
    expiry                `_supersedes`, `seen_dead`, `_outlived`, `fed`: no host takes what a live incarnation believes it
                          holds, none outlives the dead bound of its last renewal on storage, no ping after its fail bound
    no lock unprotected   `runs`: the watchdog is armed, and the last renewal is recent enough
    nothing lost          `believes` and every write: while a host believes it holds a lease, the lease's record says so
    liveness              `run/seed`: after all faults have healed every lease can be acquired in bounded time
    no reset in vain      `host/machine`: no watchdog fires while only the descriptor store has it open and the daemon lives

Incarnations and delta leases are checked in `host_ids`. Numbers after I are those of the invariants in
docs/specs/sanlock-disk.md, section 9.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.paxos_release import Mode
from holdfast_sim.check.host_ids import Incarnation, TermCheckers
from holdfast_sim.check.lease_names import INDEX_AREA, LeasePlace, NamedLeases
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import Machine, VirtualMachine
from holdfast_sim.storage.disk import SharedDisk
from holdfast_sim.world import World


class Checkers:
    """All checkers of one world: which hosts believe they hold what, which VMs run, and every write to a lease."""

    def __init__(self, world: World, geometry: Geometry, fire_timeout_s: int) -> None:
        self.world = world
        self.geometry = geometry
        self.terms = TermCheckers(world, fire_timeout_s)
        self.acquired = 0
        self.takeovers = 0
        self.leases = NamedLeases(geometry, self._unnamed)
        self.first: Callable[[Process, str], str] = lambda _, __: ""
        """The lease that a daemon has to hold before the other one, which it is about to take; empty for none."""
        self.never_by_time = False
        """Whether leases never expire by time in these lockspaces."""
        self.called_off: set[str] = set()
        """Hosts that an operator has confirmed to be off, by name or host id."""
        self._resource_of: dict[str, Callable[[str], str]] = {}
        self._disks: dict[str, SharedDisk] = {}
        self._unsettled: set[tuple[str, str]] = set()
        """Leases by disk and resource that were restored, and may not be what their holders wrote."""

    def watch(self, disk: SharedDisk) -> None:
        """Watch a disk whose first area is a lockspace."""
        self._disks[disk.name] = disk
        disk.on_landed = self._landed
        disk.on_issued = self._issued

    def watch_fixed(self, disk: SharedDisk, resources: dict[str, int]) -> None:
        """Watch leases that were created beforehand at those offsets and are never removed."""
        self.watch(disk)
        for resource, offset in resources.items():
            self.leases.named(self.leases.made(disk.name, resource, offset))

    def watch_index(self, disk: SharedDisk, resource_of: Callable[[str], str]) -> None:
        """Watch leases that are created and removed, by the resource index after the lockspace."""
        self.watch(disk)
        self._resource_of[disk.name] = resource_of
        internal = (INDEX_AREA + 1) * self.geometry.align_bytes
        self.leases.named(self.leases.made(disk.name, "", internal))

    def _unnamed(self, place: LeasePlace, who: str) -> None:
        """A lease was removed, or its index entry was lost: no host may hold it."""
        self.world.record(who, f"takes out the lease of {place.resource}")
        for term in self.terms.running:
            if term.disk == place.disk and place.resource in term.beliefs:
                self.world.fail(
                    "nothing lost", f"{who} takes {place.resource} out, which {term} holds", who, term.machine
                )

    # --- what operators put back ---

    def lockspace_restored(self, disk: SharedDisk) -> None:
        """An older state of a whole lockspace is on the disk."""
        geometry = self.geometry
        records = {}
        for host_id in range(1, geometry.hosts_max + 1):
            at = geometry.delta_offset_bytes(host_id)
            record = DeltaLease.decode(bytes(disk.content[at : at + geometry.sector_bytes]))
            if isinstance(record, DeltaLease):
                records[host_id] = record
        self.terms.restored(disk.name, records)

    def lease_restored(self, disk: str, resource: str) -> None:
        """An older state of a lease is on the disk. Until `restored_lease_noticed` nobody can know what it says."""
        self._unsettled.add((disk, resource))
        place = self.leases.of(disk, resource)
        if place is not None:
            place.is_restored = place.was_restored = True
        for term in self.terms.running:
            if term.disk == disk:
                self.gave_up(term, resource)

    def is_unsettled(self, disk: str, resource: str) -> bool:
        """Whether the lease was restored, and its holder need not have noticed yet."""
        return (disk, resource) in self._unsettled

    def restored_lease_noticed(self, disk: str, resource: str) -> None:
        """From now on storage counts again: a virtual machine that runs on has its lease there, alone or shared."""
        self._unsettled.discard((disk, resource))
        place = self.leases.of(disk, resource)
        if place is not None:
            self._goes_on_from_storage(place)
        for term in list(self.terms.running):
            vm = term.vms.get(resource) if term.disk == disk else None
            if vm is None or resource in term.beliefs:
                continue
            self.world.record(term.machine.name, f"{vm.name} has run on since its lease was restored")
            block = None if place is None else self._block(place, term.host_id)
            shared = block is not None and block.mode.is_shared and block.mode.generation == term.generation
            self.believes(term, resource, Mode.SHARED if shared else Mode.EXCLUSIVE)

    def _goes_on_from_storage(self, place: LeasePlace) -> None:
        """Versions and ballots grow from those that stand there now."""
        at, size = place.offset, self.geometry.sector_bytes
        leader = Leader.decode(bytes(self._disks[place.disk].content[at : at + size]))
        place.leader = leader if isinstance(leader, Leader) else None
        place.decided.clear()
        place.is_restored = False
        hosts = leader.max_hosts if isinstance(leader, Leader) else 0
        place.mbal = {host_id: self._block(place, host_id).dblock.mbal for host_id in range(1, hosts + 1)}
        place.begins_at = leader.lver if isinstance(leader, Leader) else 0

    # --- holds, and VMs that run ---

    def believes(self, term: Incarnation, resource: str, mode: Mode) -> None:
        """A host believes that it holds a lease from now on."""
        if term.over:
            return
        if self.is_unsettled(term.disk, resource):
            # It may have been won just before an older copy was restored: that counts when the holder has read it again.
            self.acquired += 1
            return
        for other in self.terms.running:
            others = other.beliefs.get(resource) if other.disk == term.disk and other is not term else None
            if others is not None and Mode.EXCLUSIVE in (mode, others):
                self.world.fail(
                    "exclusion",
                    f"{term} holds {resource} {mode.value}, {other} {others.value}",
                    term.machine,
                    other.machine,
                )
        term.beliefs[resource] = mode
        self.acquired += 1
        self.world.record(term.machine.name, f"holds {resource} {mode.value}")
        self._stands_on_disk(term, resource)

    def gave_up(self, term: Incarnation, resource: str) -> None:
        if resource not in term.orphans and term.beliefs.pop(resource, None) is not None:
            self.world.record(term.machine.name, f"gives up {resource}")

    def runs(self, term: Incarnation, resource: str, vm: VirtualMachine) -> None:
        """A virtual machine begins to run on a disk."""
        if resource not in term.beliefs and not self.is_unsettled(term.disk, resource):
            self.world.fail("exclusion", f"{vm.name} runs on {term} without a lease", term.machine)
        machine = term.machine
        if machine.watchdog.fires_at is None:
            self.world.fail(
                "no lock without protection", f"{vm.name} runs on {machine}, its watchdog does not", machine
            )
        if machine.last_look >= term.fails_at:
            self.world.fail(
                "no lock without protection", f"{vm.name} runs on {term}, whose lease has failed", machine
            )
        term.vms[resource] = vm
        self.world.record(machine.name, f"{vm.name} runs on {resource}")

    def stopped(self, term: Incarnation, resource: str) -> None:
        vm = term.vms.pop(resource, None)
        if vm is not None:
            self.world.record(term.machine.name, f"{vm.name} has stopped")

    def writes_no_more(self, vm: VirtualMachine) -> None:
        """A virtual machine has ended, or has stopped for ever: nothing depends on its lease."""
        for term in [t for t in self.terms.running if t.vms.get(vm.resource) is vm]:
            self.stopped(term, vm.resource)
            self.gave_up(term, vm.resource)
            if vm.beside:
                self.gave_up(term, vm.beside)

    def orphaned(self, vm: VirtualMachine) -> None:
        """A client has ended, and its host holds its lease on."""
        for term in [t for t in self.terms.running if t.vms.get(vm.resource) is vm]:
            self.stopped(term, vm.resource)
            term.orphans.add(vm.resource)
            self.world.record(term.machine.name, f"keeps {vm.resource} as an orphan")

    def orphan_ends(self, term: Incarnation, resource: str) -> None:
        """It is released, or its lockspace is left."""
        term.orphans.discard(resource)
        if resource not in term.vms:
            self.gave_up(term, resource)

    def answers(self, machine: Machine, resource: str, requested: int, held: int) -> None:
        """A holder gives the lease up, because another host requested it."""
        if requested <= held:
            self.world.fail(
                "no owner stopped in vain", f"{resource} lver {held}, the request is for {requested}", machine
            )

    def _stands_on_disk(self, term: Incarnation, resource: str) -> None:
        """I3, I11: while a host believes that it holds the lease, its own block has its value, or its shared hold."""
        if self.is_unsettled(term.disk, resource):
            return
        mode = term.beliefs[resource]
        place = self.leases.of(term.disk, resource)
        if place is None:
            self.world.fail(
                "nothing lost", f"{term} believes in {resource}, whose lease is gone", term.machine
            )
            return
        block = self._block(place, term.host_id)
        # A sharer that converts to exclusive removes its shared hold after it has won, and before it reports that.
        stands = (block.dblock.inp, block.dblock.inp2) == (
            term.host_id,
            term.generation,
        ) and block.dblock.bal > 0
        if mode is Mode.SHARED and not (stands and not block.dblock.is_released):
            stands = block.mode.is_shared and block.mode.generation == term.generation
        if not stands:
            self.world.fail(
                "nothing lost",
                f"{term} believes in {resource} {mode.value}; its block says {block}",
                term.machine,
            )

    # --- writes that take effect on the disks ---

    def _block(self, place: LeasePlace, host_id: int) -> HostBlock:
        at = place.offset + self.geometry.host_block_offset_bytes(host_id)
        block = HostBlock.decode(bytes(self._disks[place.disk].content[at : at + 512]))
        assert isinstance(block, HostBlock), block
        return block

    @staticmethod
    def _generation_of(content: bytes) -> int:
        record = DeltaLease.decode(content)
        return record.generation if isinstance(record, DeltaLease) else 0

    def _issued(self, disk: SharedDisk, process: Process, offset: int, content: bytes) -> None:
        """I14: a process issues writes only while its delta lease has not failed, by the last time it has read."""
        claims = offset < self.geometry.align_bytes
        slot = offset // self.geometry.sector_bytes + 1
        if claims:
            self.terms.claimed(disk.name, process, slot, content)
        for term in self.terms.running:
            if claims and (slot, self._generation_of(content)) != (term.host_id, term.generation):
                continue  # a new claim, after all owners of the old incarnation have ended
            if term.process is process and term.disk == disk.name and term.machine.last_look >= term.fails_at:
                self.world.fail(
                    "I14 no write after expiry",
                    f"{term} writes at {offset}, its lease failed at {term.fails_at:.1f}, "
                    f"it is {term.machine.last_look:.1f}",
                    term.machine,
                )
        self._is_in_order(disk, process, offset, content)

    def _is_in_order(self, disk: SharedDisk, process: Process, offset: int, content: bytes) -> None:
        """A daemon becomes the owner of a path's lease only while it has that of what the disk is (ADR 0197)."""
        area, within = divmod(offset, self.geometry.align_bytes)
        place = self.leases.at(disk.name, area)
        first = self.first(process, place.resource) if place is not None and within == 0 else ""
        identity = self.leases.of(disk.name, first) if first else None
        leader = Leader.decode(content) if first else None
        if place is None or not isinstance(leader, Leader) or leader.is_free:
            return
        value = (leader.owner_id, leader.owner_generation)
        mine = any(
            term.process is process and term.disk == disk.name and (term.host_id, term.generation) == value
            for term in self.terms.running
        )
        restored = place.was_restored or identity is None or identity.was_restored
        if mine and not restored and not (identity and self._has(identity, *value)):
            self.world.fail(
                "identity first", f"{process.name} takes {place.resource}, and not what it is", process.name
            )

    def _has(self, place: LeasePlace, host_id: int, generation: int) -> bool:
        """Whether an incarnation is the owner of a lease, or shares it."""
        mode, leader = self._block(place, host_id).mode, place.leader
        if mode.is_shared and mode.generation == generation:
            return True
        owner = (
            (leader.owner_id, leader.owner_generation) if leader is not None and not leader.is_free else None
        )
        return owner == (host_id, generation)

    def _landed(self, disk: SharedDisk, process: Process, offset: int, content: bytes) -> None:
        area, within = divmod(offset, self.geometry.align_bytes)
        sector = within // self.geometry.sector_bytes
        if area == 0:
            self.terms.landed(disk.name, process, sector + 1, content)
            return
        if area == INDEX_AREA and disk.name in self._resource_of:
            self.leases.index_landed(disk, self._resource_of[disk.name], process.name)
            return
        place = self.leases.at(disk.name, area)
        if sector == 0:
            leader = Leader.decode(content)
            assert isinstance(leader, Leader) or leader.reason is Reason.CLEARED, leader
            if isinstance(leader, Leader) and leader.is_free and leader.owner_id == 0:
                place = self._made(place, disk, offset, leader)
            if place is not None:
                self._leader_landed(place, process, leader)
        elif (
            2 <= sector < self.geometry.hosts_max + 2
            and place is not None
            and len(content) == self.geometry.sector_bytes
        ):
            self._block_landed(place, process, sector - 1, content)

    def _made(self, before: LeasePlace | None, disk: SharedDisk, offset: int, leader: Leader) -> LeasePlace:
        if before is not None and any(
            t.disk == disk.name and before.resource in t.beliefs
            for t in self.terms.running
            if self.leases.is_named(before)
        ):
            self.world.fail("nothing lost", f"a new lease is made over that of {before.resource}")
        resource_of = self._resource_of[disk.name]
        made = self.leases.made(disk.name, resource_of(leader.resource_name.text), offset, leader.lver)
        made.was_restored = before is not None and before.was_restored
        if before is not None and before.is_restored:
            self._goes_on_from_storage(made)
        elif before is not None:
            # Ballots and decisions there outlive the lease, as its host blocks stay.
            made.mbal.update(before.mbal)
            made.decided.update(before.decided)
            made.begins_at = max(made.begins_at, before.begins_at)
        return made

    def _leader_landed(self, place: LeasePlace, process: Process, leader: Leader | Malformed) -> None:
        if isinstance(leader, Malformed):
            if self.leases.is_named(place) and any(place.resource in t.beliefs for t in self.terms.running):
                self.world.fail(
                    "nothing lost", f"the lease of {place.resource} is cleared under its holder", process.name
                )
            return
        before, place.leader = place.leader, leader
        # One of an older version that lands late changes no owner: the blocks are newer.
        is_late = before is not None and leader.lver < before.lver
        if place.is_restored:
            return
        if leader.is_free:
            self._freed(place, process, leader)
            return
        if self.never_by_time and before is not None and not is_late:
            self._is_no_takeover_by_time(place, process, before, leader)
        value = (leader.owner_id, leader.owner_generation, leader.timestamp)
        newest = max(place.begins_at, *place.decided, 0)
        known = place.decided.setdefault(leader.lver, value)
        if known != value:
            self.world.fail(
                "I2 a version has one owner", f"lver {leader.lver}: {known}, then {value}", process.name
            )
        if leader.lver > newest + 1 and not place.was_restored:
            self.world.fail("I4 versions follow each other", f"from {newest} to {leader.lver}", process.name)
        if leader.lver > newest:
            self._supersedes(place, process, leader)

    def _supersedes(self, place: LeasePlace, process: Process, leader: Leader) -> None:
        """I9: no new owner while a live incarnation believes that it holds the lease exclusively."""
        if not self.leases.is_named(place):
            return  # its winner finds that it has lost its name
        for term in self.terms.running:
            if term.disk != place.disk or term.beliefs.get(place.resource) is not Mode.EXCLUSIVE:
                continue
            if (leader.owner_id, leader.owner_generation) != (term.host_id, term.generation):
                self.world.fail(
                    "expiry before takeover",
                    f"{process.name} makes host_id {leader.owner_id} owner of {place.resource} lver {leader.lver}, "
                    f"which {term} holds",
                    process.name,
                    term.machine,
                )
            self.takeovers += 1

    def _is_no_takeover_by_time(
        self, place: LeasePlace, process: Process, before: Leader, leader: Leader
    ) -> None:
        """The old owner gave it up, its record was free or marked, it was confirmed off, or it is the new owner's host."""
        if before.is_free or before.owner_id == leader.owner_id or not self.leases.is_named(place):
            return
        block = self._block(place, before.owner_id).dblock
        gave_up = block.lver > before.lver or (block.lver == before.lver and block.is_released)
        proven = self.terms.proven_over(place.disk, before.owner_id, before.owner_generation)
        names = {str(before.owner_id), *self.terms.names_of(place.disk, before.owner_id)}
        if not gave_up and not proven and not names & self.called_off:
            self.world.fail(
                "never by time",
                f"{process.name} makes host_id {leader.owner_id} owner of {place.resource} lver {leader.lver}, which nobody "
                f"has seen host_id {before.owner_id} generation {before.owner_generation} give up",
                process.name,
            )

    def _freed(self, place: LeasePlace, process: Process, leader: Leader) -> None:
        if not self.leases.is_named(place):
            return
        for term in self.terms.running:
            holds = term.disk == place.disk and term.beliefs.get(place.resource) is Mode.EXCLUSIVE
            if holds and (leader.owner_id, leader.owner_generation) == (term.host_id, term.generation):
                block = self._block(place, term.host_id)
                if block.dblock.lver == leader.lver:
                    self.world.fail(
                        "nothing lost",
                        f"{process.name} frees {place.resource}, which {term} holds",
                        process.name,
                    )

    def _block_landed(self, place: LeasePlace, process: Process, host_id: int, content: bytes) -> None:
        if not any(content) and (host_id not in place.mbal or place.was_restored):
            return  # a lease is being created where there was none, or none by the copy that was put back
        block = HostBlock.decode(content)
        assert isinstance(block, HostBlock), block
        dblock = block.dblock
        who = process.name
        if dblock.mbal < place.mbal.get(host_id, 0) and not place.is_restored:
            self.world.fail(
                "I6 ballots grow", f"host_id {host_id} took back a promise of {place.resource}: {dblock}", who
            )
        place.mbal[host_id] = dblock.mbal
        if dblock.mbal % self.geometry.hosts_max != host_id % self.geometry.hosts_max:
            self.world.fail("I6 ballots name their host", f"host_id {host_id}: mbal {dblock.mbal}", who)
        if dblock.bal > dblock.mbal or (dblock.inp == 0) != (dblock.bal == 0):
            self.world.fail("I7 blocks make sense", f"host_id {host_id}: {dblock}", who)
        terms = self.terms.of(place.disk, host_id)
        # Two hosts have the id until the next renewal of one shows it an older lockspace that was put back (ADR 0184).
        is_shared_id = any(term.is_restored_away for term in terms)
        for term in terms:
            # Fencing clears the holds of an incarnation whose daemon died without owners, though its machine may run; and of
            # one that was left, and whose host id could not be freed.
            unused = (term.is_left or term.dismissed()) and not (term.beliefs or term.vms)
            others = term.process is not process and not unused
            if others and not is_shared_id:
                self.world.fail(
                    "I13 everyone writes his own", f"{who} wrote the block of host_id {host_id}", who
                )
            if place.resource in term.beliefs:
                self._stands_on_disk(term, place.resource)
