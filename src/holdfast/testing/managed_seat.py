"""One lockspace of one whole daemon: its keeper and backend as they ship, and the checkers' view of its term."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from holdfast.backends.device_places import DevicePlaces
from holdfast.backends.directory_places import DirectoryPlaces
from holdfast.backends.lease_holding import HoldingPorts
from holdfast.backends.lease_places import LeasePlaces
from holdfast.backends.lock_names import NameBy
from holdfast.backends.paxos import PaxosBackend
from holdfast.manager.lease_recovery import Loss
from holdfast.model import Instant, LockFailureAction, Protection
from holdfast.protocol.membership import Membership
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.keeper import KeeperNews, KeeperState, LockspaceKeeper, LockspaceSpec
from holdfast.system import tasks
from holdfast.system.blocking import InlineStorage
from holdfast.testing.machine import MachineClock
from holdfast.testing.machine_ports import Identities, Memory, Threads
from holdfast.testing.managed_desk import ManagedDesk
from holdfast.testing.shared_files import Volume
from holdfast.testing.simulated_daemon import Space
from holdfast.testing.term_checkers import Term

if TYPE_CHECKING:
    from holdfast.testing.managed_daemon import ManagedDaemon


class ManagedSeat:
    """One lockspace of one daemon, and the checkers' view of its term."""

    def __init__(
        self, daemon: ManagedDaemon, space: Space, volume: Volume, host_id: int | None, hosts_max: int
    ) -> None:
        self.daemon = daemon
        self.space = space
        self.volume = volume
        self.keeper = LockspaceKeeper(
            LockspaceSpec(
                name=space.name,
                path=volume.lockspace_path,
                host_id=host_id,
                hosts_max=hosts_max,
                timing=daemon.timing,
            ),
            heartbeat=daemon.heartbeat,
            threads=Threads(daemon.process, daemon.machine, daemon.storage),
            clock=MachineClock(daemon.process, daemon.machine),
            copies=IncarnationCopies(space.name, [daemon.state.memories.setdefault(space.name, Memory())]),
            identity=daemon.identity(),
            token=lambda: f"{daemon.world.random.getrandbits(48):012x}",
            in_use=lambda: daemon.lease_recovery.in_use({space.name}),
            lease_writes=partial(daemon.lease_writes, space.name),
            spawn=tasks.start,
            news=KeeperNews(on_joined=self._joined, on_lost=self._lost),
        )
        self.desks = {resource: ManagedDesk(self, resource) for resource in space.resources}

    def backend(self, action: LockFailureAction) -> PaxosBackend:
        daemon, volume = self.daemon, self.volume
        ports = HoldingPorts(
            errands=daemon.storage,
            clock=MachineClock(daemon.process, daemon.machine),
            chance=daemon.world.random,
            spawn=tasks.start,
        )
        places: LeasePlaces
        if volume.directory is not None:
            places = DirectoryPlaces(volume.root, volume.lockspace_path, daemon.storage, volume.lease_hosts)
        else:
            places = DevicePlaces(volume.root, daemon.storage, volume.lease_hosts, ports)
        return PaxosBackend(
            self.space.name,
            presence=self.keeper,
            places=places,
            name_by=NameBy.PATH_MD5,
            on_lockfailure=action,
            reach=Protection.CROSS_HOST,
            reach_note="",
            ports=ports,
            storage=InlineStorage(),
            identities=Identities(),
        )

    @property
    def host_id(self) -> int | None:
        return self.keeper.host_id

    @property
    def member(self) -> Membership | None:
        member = self.keeper.membership() if self.keeper.state is KeeperState.JOINED else None
        return member if isinstance(member, Membership) else None

    @property
    def term(self) -> Term | None:
        daemon = self.daemon
        ours = [
            t
            for t in daemon.checkers.terms.running
            if t.machine is daemon.machine and t.disk == self.space.name
        ]
        return ours[-1] if ours else None

    @property
    def stay(self) -> bool:
        return self.keeper.state is not KeeperState.LEFT

    @stay.setter
    def stay(self, wanted: bool) -> None:
        if wanted and self.keeper.state is KeeperState.LEFT and self.daemon.alive:
            with self.daemon.process.loop.entered():
                self.keeper.join()

    def leave(self) -> bool:
        if any(desk.vm is not None or desk.busy for desk in self.desks.values()) or self.member is None:
            return False
        if self.daemon.lease_recovery.in_use({self.space.name}):
            return False
        if self.term is not None:
            self.term.dismissed = self._settled
        with self.daemon.process.loop.entered():
            self.keeper.leave()
        return True

    def _settled(self) -> bool:
        return not self.daemon.machine.paths[self.space.name].may_land_for(self.daemon.process)

    def _joined(self, keeper: LockspaceKeeper) -> None:
        member = self.member
        if member is None:
            return
        daemon = self.daemon
        daemon.checkers.terms.joined(
            Term(
                daemon.machine,
                daemon.process,
                self.space.name,
                member.host_id,
                member.generation,
                member.timing.io_timeout_s,
            )
        )
        daemon.lease_recovery.joined(keeper.name)

    def _lost(self, keeper: LockspaceKeeper, reason: str) -> None:
        daemon = self.daemon
        daemon.world.tell(daemon.machine.name, f"has lost {self.space.name}: {reason}")
        daemon.lease_recovery.lost(
            Loss(
                lockspace=keeper.name,
                reason=reason,
                backends={keeper.name},
                timing=keeper.timing,
                lost_at=Instant(keeper.lost_at or 0.0),
                renewed_at=None if keeper.renewed_at is None else Instant(keeper.renewed_at),
                on_all_gone=self._all_gone,
            )
        )

    def _all_gone(self) -> None:
        daemon, term = self.daemon, self.term
        if term is not None:
            if term.vms:
                running = ", ".join(vm.name for vm in term.vms.values())
                daemon.world.fail(
                    "nothing lost", f"{term}: all users are gone, but {running}", daemon.machine
                )
            term.beliefs.clear()
            term.dismissed = self._settled
            daemon.process.spawn(self._over(term))
        self.keeper.users_are_gone()

    async def _over(self, term: Term) -> None:
        while not self._settled():
            await self.daemon.clock.sleep(0.2)
        self.daemon.checkers.terms.is_over(term, "its owners are gone")
