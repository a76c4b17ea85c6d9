"""One disk on one host of the whole daemon: the virtual machine that has it, and libvirt's calls for it.

A virtual machine is a process that registers, acquires, and only then runs; it ends when it is stopped, killed by the
escalation, or its machine is reset. Where sanlock's clients are played, some of these processes are such clients.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from holdfast.errors import LockError
from holdfast.manager.journal_replay import replay
from holdfast.manager.owners import Owner
from holdfast.model import AcquireRequest, Mode, OwnerName, Resource
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.supervision.host_identity import decode_term
from holdfast.system.libvirt.status_words import IN, PHASE_ACQUIRES
from holdfast_sim.cluster.sanlock_clients import ClientDesk
from holdfast_sim.host.machine import VirtualMachine
from holdfast_sim.storage.disk_names import disk_of, resource_of

if TYPE_CHECKING:
    from holdfast_sim.check.host_ids import Incarnation
    from holdfast_sim.cluster.lockspace import ManagedSeat

UNKILLABLE = frozenset((signal.SIGTERM, signal.SIGKILL))


class ManagedDesk:
    """One disk on one host: the virtual machine that has it, and libvirt's calls for it."""

    def __init__(self, seat: ManagedSeat, resource: str) -> None:
        self.seat = seat
        self.resource = resource
        self.busy = False
        self.last_refusal = ""
        clients = seat.daemon.clients
        self.of_clients = ClientDesk(self, clients) if clients is not None else None

    def __str__(self) -> str:
        return f"{self.seat.daemon.machine}:{self.resource}"

    @property
    def vm(self) -> VirtualMachine | None:
        return next((vm for vm in self.seat.daemon.machine.vms if vm.resource == self.resource), None)

    @property
    def lease(self) -> VirtualMachine | None:
        """The virtual machine that holds the disk: one that has begun to run."""
        vm = self.vm
        return vm if vm is not None and vm.held else None

    async def start(self, mode: LeaseMode, *, wait: bool, arriving: bool = False) -> None:
        """`arriving`: the guest migrates here from another host, which is about to release its lock."""
        del wait  # the backend never waits until a host is dead
        if self.busy or self.vm is not None or not self.seat.daemon.serving:
            return
        self.busy = True
        try:
            await self._start(Mode.EXCLUSIVE if mode is LeaseMode.EXCLUSIVE else Mode.SHARED, arriving)
        finally:
            self.busy = False

    async def _start(self, mode: Mode, arriving: bool) -> None:
        daemon = self.seat.daemon
        stubborn = daemon.world.random.random() < daemon.stubborn_rate
        pid = next(daemon.state.processes.pids)
        path = self._path()
        vm = VirtualMachine(
            f"vm{pid}",
            daemon.machine,
            stubborn,
            pid=pid,
            resource=self.resource,
            disk=resource_of(self.resource, path).name,
            beside=daemon.names.beside(self.resource, path),
        )
        of_clients = self.of_clients
        vm.is_client = of_clients is not None and not arriving and of_clients.begins()
        daemon.state.processes.start(pid, ignoring=UNKILLABLE if stubborn else frozenset())
        daemon.machine.vms.append(vm)
        if of_clients is not None and vm.is_client:
            await of_clients.start(vm, _lease_mode(mode))
            return
        orphan = of_clients.orphan if of_clients is not None else None
        status = daemon.state.status
        if status is not None:
            job, phase = (IN, PHASE_ACQUIRES) if arriving else ("start", "")
            status.write(vm, "paused", reason="starting up", job=job, phase=phase)
        owner = daemon.manager.register(pid, OwnerName(vm.name, vm.uuid, pid))
        was_unknown = len(daemon.manager.unknown) > 0
        try:
            await daemon.manager.acquire(owner, AcquireRequest(Resource("", vm.disk), mode))
        except LockError as refusal:
            self.last_refusal = f"{type(refusal).__name__}: {refusal}"
            daemon.world.record(daemon.machine.name, f"refuses {self.resource}: {self.last_refusal}")
            if vm.running:
                daemon.state.processes.end(pid)
            return
        term = self.seat.term
        if vm.running and term is not None:
            self.is_remembered(vm, term, may_be_adopted=was_unknown)
            # libvirt starts the guest's CPUs only now.
            vm.held = True
            if status is not None:
                status.write(vm)
            self.believes(term, vm, _lease_mode(mode))
            daemon.checkers.runs(term, self.resource, vm)
            if self.resource in term.orphans and LeaseMode.EXCLUSIVE in (orphan, _lease_mode(mode)):
                daemon.world.fail("exclusion", f"{vm.name} gets {self.resource}, an orphan", daemon.machine)

    def _path(self) -> int:
        """The number of the path by which a virtual machine calls the disk."""
        paths = self.seat.daemon.names.paths
        return self.seat.daemon.world.random.choice(paths) if len(paths) > 1 else 0

    def believes(self, term: Incarnation, vm: VirtualMachine, mode: LeaseMode) -> None:
        """Every lease of the disk is believed to be held from now on."""
        self.seat.daemon.checkers.believes(term, self.resource, mode)
        if vm.beside:
            self.seat.daemon.checkers.believes(term, vm.beside, mode)

    def is_remembered(self, vm: VirtualMachine, term: Incarnation, *, may_be_adopted: bool) -> None:
        """Check that the next daemon will find the claim in the journal, and each copy of the incarnation. Adopted locks are
        exempt: unlike new ones they are not refused while a copy can't be written.
        """
        daemon = self.seat.daemon
        saved = replay(daemon.state.journal.raw)
        claimants = {i for lock in saved.locks.values() for i in lock.claims}
        if vm.pid not in {owner.process.pid for i, owner in saved.owners.items() if i in claimants}:
            daemon.world.fail(
                "nothing lost", f"{vm.name} runs, and its claim is not in the journal", daemon.machine
            )
        if may_be_adopted:
            return
        for where, files in (("state_dir", daemon.state.state_files), ("RUN_DIR", daemon.state.run_files)):
            file = files.get(self.seat.space.name)
            copy = decode_term(file.written) if file is not None else None
            if copy is None or (copy.host_id, copy.generation) != (term.host_id, term.generation):
                daemon.world.fail(
                    "nothing lost",
                    f"{vm.name} runs on {term}, which {where} does not name: {copy}",
                    daemon.machine,
                )

    async def rival(self) -> None:
        """Another virtual machine of this host wants the disk."""
        daemon = self.seat.daemon
        if not daemon.serving:
            return
        processes, rivals = daemon.state.processes, daemon.state.rivals
        pid = next(processes.pids)
        processes.start(pid)
        rivals.add(pid)
        try:
            owner = daemon.manager.register(pid, OwnerName(f"rival{pid}", f"uuid-{pid}", pid))
            want = AcquireRequest(resource_of(self.resource, self._path()), Mode.EXCLUSIVE)
            await daemon.manager.acquire(owner, want)
        except LockError as refusal:
            daemon.world.record(daemon.machine.name, f"refuses {self.resource} to a rival: {refusal}")
        else:
            vm = self.lease
            if vm is not None and vm.writes:
                daemon.world.fail(
                    "exclusion", f"a rival gets {self.resource}, and {vm.name} runs on it", daemon.machine
                )
        if pid in rivals:
            rivals.remove(pid)
            processes.end(pid)

    async def stop(self) -> None:
        vm = self.lease
        if vm is None or vm.migrating or self.busy or not self.seat.daemon.serving:
            return
        self.busy = True
        try:
            if self.of_clients is not None and vm.is_client:
                await self.of_clients.stop(vm)
                return
            if self.seat.daemon.world.random.random() < 0.5:
                await self._release(vm)
            if vm.running:
                self.seat.daemon.state.processes.end(vm.pid)
            while self._in_table():
                await self.seat.daemon.clock.sleep(0.2)
        finally:
            self.busy = False

    async def paused_by_libvirt(self, hangs_s: float) -> None:
        """Its requests end `hangs_s` seconds after its lock is released. Then it ends, too: nobody resumes it here."""
        vm = self.lease
        if vm is None:
            return
        daemon = self.seat.daemon
        if not hangs_s:
            await self._release(vm)
            self._drained(vm)
            return
        vm.draining = True
        daemon.world.record(daemon.machine.name, f"requests of {vm.name} hang for {hangs_s:.1f} s")
        daemon.world.at(daemon.world.now + hangs_s, lambda: self._drained(vm))
        await self._release(vm)

    def _drained(self, vm: VirtualMachine) -> None:
        if vm.draining:
            vm.draining = False
            self.seat.daemon.world.record(self.seat.daemon.machine.name, f"requests of {vm.name} have ended")
            if vm.running:
                self.seat.daemon.checkers.writes_no_more(vm)
        if vm.running:
            self.seat.daemon.state.processes.end(vm.pid)

    async def _release(self, vm: VirtualMachine) -> None:
        """The guest is paused; libvirt releases its lock over the connection that registered it."""
        daemon = self.seat.daemon
        owner = self._owner(vm.pid)
        if owner is None:
            return
        vm.paused = True
        if not vm.draining:
            daemon.checkers.writes_no_more(vm)
        try:
            await daemon.manager.release(owner, Resource("", vm.disk))
        except LockError as refusal:
            daemon.world.record(daemon.machine.name, f"release of {self.resource}: {refusal}")

    # --- a guest that migrates away ---

    async def released_for_migration(self, vm: VirtualMachine) -> None:
        """The guest is paused and may still be resumed here: its lease must stay held, whatever the daemon does."""
        daemon = self.seat.daemon
        try:
            owner = daemon.manager.register(vm.pid, OwnerName(vm.name, vm.uuid, vm.pid))
            await daemon.manager.release(owner, Resource("", vm.disk))
        except LockError as refusal:
            daemon.world.record(daemon.machine.name, f"release of {self.resource}: {refusal}")

    async def acquired_again(self, vm: VirtualMachine) -> None:
        """libvirt resumes a guest here, as its migration failed."""
        daemon = self.seat.daemon
        try:
            owner = daemon.manager.register(vm.pid, OwnerName(vm.name, vm.uuid, vm.pid))
            await daemon.manager.acquire(owner, AcquireRequest(Resource("", vm.disk), Mode.EXCLUSIVE))
        except LockError as refusal:
            daemon.world.record(daemon.machine.name, f"refuses {self.resource} to {vm.name}: {refusal}")
            return
        term = self.seat.term
        if vm.running and vm.paused and term is not None:
            vm.paused = False
            self.believes(term, vm, LeaseMode.EXCLUSIVE)
            daemon.checkers.runs(term, self.resource, vm)

    def _owner(self, pid: int) -> Owner | None:
        return self.seat.daemon.manager.owners.with_pid(pid)

    async def unplug(self) -> bool:
        """The disk is unplugged, and its virtual machine lives on; whether that has happened."""
        vm = self.lease
        if vm is None or vm.migrating or vm.is_client or self.busy or not self.seat.daemon.serving:
            return False
        if self._owner(vm.pid) is None:
            return False  # the daemon has lost its journal, and does not know yet whose lock it is
        self.busy = True
        try:
            await self._release(vm)
        finally:
            self.busy = False
        if not vm.running or vm not in self.seat.daemon.machine.vms:
            return False
        self.seat.daemon.machine.vms.remove(vm)
        return True

    def _in_table(self) -> bool:
        return any(disk_of(name) == self.resource for names in self._claims() for name in names)

    def _claims(self) -> Iterator[Mapping[Resource, Mode]]:
        """Of all owners but keepers of orphans, which outlive their clients."""
        manager = self.seat.daemon.manager
        for lock in manager.table:
            for owner_id, names in lock.claims.items():
                owner = manager.owners.get(owner_id)
                if owner is None or not owner.keeps_orphans:
                    yield names

    async def convert(self) -> None:
        """Convert the lock to exclusive or shared. libvirt has no call for that yet; the manager supports it."""
        vm, term = self.lease, self.seat.term
        if self.of_clients is not None and vm is not None and vm.is_client:
            await self._convert_client(self.of_clients, vm)
            return
        owner = self._owner(vm.pid) if vm is not None else None
        if vm is None or owner is None or term is None or self.busy or not self.seat.daemon.serving:
            return
        if vm.migrating:
            return
        before = term.beliefs.get(self.resource)
        if before is None:
            return
        wanted = Mode.SHARED if before is LeaseMode.EXCLUSIVE else Mode.EXCLUSIVE
        self.busy = True
        try:
            await self._convert(vm, owner, term, wanted)
        finally:
            self.busy = False

    async def _convert(self, vm: VirtualMachine, owner: Owner, term: Incarnation, wanted: Mode) -> None:
        daemon = self.seat.daemon
        if wanted is Mode.SHARED:
            # The guest stops writing at this order; in both cases its lease must stay held throughout.
            self.believes(term, vm, LeaseMode.SHARED)
        try:
            await daemon.manager.acquire(owner, AcquireRequest(Resource("", vm.disk), wanted))
        except LockError as refusal:
            self.last_refusal = f"{type(refusal).__name__}: {refusal}"
            daemon.world.record(daemon.machine.name, f"does not convert {self.resource}: {self.last_refusal}")
            return
        if vm.running and not vm.paused and not term.over and term.vms.get(self.resource) is vm:
            self.believes(term, vm, _lease_mode(wanted))

    async def _convert_client(self, of_clients: ClientDesk, vm: VirtualMachine) -> None:
        if self.busy or not self.seat.daemon.serving:
            return
        self.busy = True
        try:
            await of_clients.convert(vm)
        finally:
            self.busy = False

    @property
    def has_orphan(self) -> bool:
        """Whether this host holds the lease on for a client that has ended."""
        return self.of_clients is not None and self.of_clients.is_orphan

    def orphan_settled(self) -> None:
        """An operator has given the word that nobody has it."""
        term = self.seat.term
        if term is not None:
            self.seat.daemon.checkers.orphan_ends(term, self.resource)

    async def release_orphan(self) -> None:
        if self.of_clients is not None:
            await self.of_clients.release_orphan()

    async def ask_for(self) -> None:
        """A client of sanlock's asks the holder to give the lease up, where clients are played."""
        if self.of_clients is not None and self.seat.daemon.serving:
            await self.of_clients.ask_for()


def _lease_mode(mode: Mode) -> LeaseMode:
    return LeaseMode.EXCLUSIVE if mode is Mode.EXCLUSIVE else LeaseMode.SHARED
