"""One lockspace of a whole daemon, as operators and checkers see it: its supervisor, its disks, its incarnation."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from holdfast.protocol.membership import Membership
from holdfast.supervision.lease_monitor import BEAT_S
from holdfast.supervision.lockspace_news import (
    Changed,
    Joined,
    Leaving,
    LockspaceNews,
    Lost,
    Notified,
    Over,
    UsersGone,
)
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import RemoveFlag
from holdfast.wire.sanlock.structures import Lockspace
from holdfast_sim.check.host_ids import Incarnation
from holdfast_sim.cluster.space import Space
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.storage.files import Volume

if TYPE_CHECKING:
    from holdfast_sim.cluster.daemon import ManagedDaemon
    from holdfast_sim.cluster.sanlock_clients import HostClients


ANSWER_S = BEAT_S
"""A renewal that took effect so lately may not be answered yet: the age of the one before counts."""
LEFT_LEAST_S = 2.0
"""Times io_timeout: with so much time left on its lease, a host whose storage works must not lose it."""


class ManagedSeat:
    """One lockspace of one daemon, with the incarnation as the checkers see it."""

    def __init__(
        self, daemon: ManagedDaemon, space: Space, volume: Volume, supervisor: LockspaceSupervisor | None
    ) -> None:
        self.daemon = daemon
        self.space = space
        self.volume = volume
        self._supervisor = supervisor
        self.desks = {resource: ManagedDesk(self, resource) for resource in space.resources}

    @property
    def supervisor(self) -> LockspaceSupervisor | None:
        """None while no client has added the lockspace."""
        return self._supervisor

    @property
    def state(self) -> LockspaceState:
        return self.supervisor.state if self.supervisor is not None else LockspaceState.LEFT

    @property
    def host_id(self) -> int | None:
        return self.supervisor.host_id if self.supervisor is not None else None

    @property
    def member(self) -> Membership | None:
        if self.supervisor is None or self.state is not LockspaceState.JOINED:
            return None
        member = self.supervisor.membership()
        return member if isinstance(member, Membership) else None

    @property
    def term(self) -> Incarnation | None:
        daemon = self.daemon
        ours = [
            t
            for t in daemon.checkers.terms.running
            if t.machine is daemon.machine and t.disk == self.space.name
        ]
        return ours[-1] if ours else None

    @property
    def stay(self) -> bool:
        return self.state is not LockspaceState.LEFT

    @stay.setter
    def stay(self, wanted: bool) -> None:
        if wanted and self.state is LockspaceState.LEFT and self.daemon.alive:
            with self.daemon.process.loop.entered():
                self.daemon.parts.lease_calls.join(self.space.name)

    def leave(self) -> bool:
        if any(desk.vm is not None or desk.busy for desk in self.desks.values()) or self.member is None:
            return False
        if self.daemon.parts.lease_recovery.in_use(
            set(self.daemon.parts.leases.backends_of(self.space.name))
        ):
            return False
        term = self.term
        if term is not None:
            for orphan in sorted(term.orphans):
                self.daemon.checkers.orphan_ends(term, orphan)
        self._leave()
        return True

    def _leave(self) -> None:
        assert self.supervisor is not None
        with self.daemon.process.loop.entered():
            self.daemon.parts.leases.leave(self.supervisor)

    def _settled(self) -> bool:
        return not self.daemon.machine.paths[self.space.name].may_land_for(self.daemon.process)

    # --- callbacks, before the daemon acts on them ---

    def observe(self, news: LockspaceNews) -> None:
        match news:
            case Joined():
                self._joined()
            case Lost(_, reason, timing):
                self._lost(reason, timing.io_timeout_s)
            case UsersGone():
                self._users_gone()
            case Leaving():
                if self.term is not None:
                    self.term.dismissed = self._settled
            case Changed(lockspace, incarnation) if not incarnation.next_io_timeout_s:
                self.daemon.world.record(
                    self.daemon.machine.name, f"has io_timeout {incarnation.io_timeout_s} in {lockspace}"
                )
            case Changed() | Over() | Notified():
                pass
            case _:
                assert_never(news)

    def _joined(self) -> None:
        member, daemon = self.member, self.daemon
        if member is not None:
            daemon.checkers.terms.joined(
                Incarnation(
                    daemon.machine,
                    daemon.process,
                    self.space.name,
                    member.host_id,
                    member.generation,
                    member.timing.io_timeout_s,
                )
            )

    def _lost(self, reason: str, io_timeout_s: int) -> None:
        daemon, term = self.daemon, self.term
        daemon.world.record(daemon.machine.name, f"has lost {self.space.name}: {reason}")
        if self.supervisor is not None and self.supervisor.use.refused and term is not None and term.vms:
            daemon.world.fail(
                "one daemon of a host in a lockspace",
                f"{term} has owners, and another daemon keeps this one out: {reason}",
                daemon.machine,
            )
        if daemon.quiet and term is not None and term.vms:
            if term.ordered_io_timeout_s:  # it may count by a smaller one than its record shows yet
                term.io_timeout_s = min(term.io_timeout_s, max(io_timeout_s, term.ordered_io_timeout_s))
            left_s = term.fails_at - daemon.machine.boottime()
            is_read = daemon.world.now - term.landed_at > ANSWER_S
            if is_read and left_s > LEFT_LEAST_S * term.io_timeout_s:
                daemon.world.fail(
                    "doubt kills nobody",
                    f"{term} counts as lost, {left_s:.1f} s before its lease fails: {reason}",
                    daemon.machine,
                )

    def _users_gone(self) -> None:
        daemon, term = self.daemon, self.term
        if term is None:
            return
        if term.vms:
            running = ", ".join(vm.name for vm in term.vms.values())
            daemon.world.fail("nothing lost", f"{term}: all users are gone, but {running}", daemon.machine)
        term.beliefs.clear()
        term.orphans.clear()
        term.dismissed = self._settled
        daemon.process.spawn(self._over(term))

    async def _over(self, term: Incarnation) -> None:
        while not self._settled():
            await self.daemon.clock.sleep(0.2)
        self.daemon.checkers.terms.is_over(term, "its owners are gone")


class AddedSeat(ManagedSeat):
    """A lockspace that no configuration names: a client of sanlock's, as vdsm or lvmlockd, adds it and removes it."""

    def __init__(
        self, daemon: ManagedDaemon, space: Space, volume: Volume, host_id: int, io_timeout_s: int
    ) -> None:
        super().__init__(daemon, space, volume, None)
        self._named = Lockspace.of(space.name, host_id, volume.lockspace_path)
        self._io_timeout_s = io_timeout_s
        self._is_wanted = True

    @property
    def supervisor(self) -> LockspaceSupervisor | None:
        found = (s for s in self.daemon.parts.leases.supervisors if s.name == self.space.name)
        return next((supervisor for supervisor in found if not supervisor.has_ended), None)

    @property
    def stay(self) -> bool:
        return self._is_wanted

    @stay.setter
    def stay(self, wanted: bool) -> None:
        self._is_wanted = wanted

    async def keep_added(self, clients: HostClients) -> None:
        """Its program asks for it again and again for as long as it wants it; it may not be there when the daemon starts."""
        daemon, rng = self.daemon, clients.site.rng
        if rng.random() < 0.2 and not clients.site.stopped:
            await daemon.clock.sleep(rng.uniform(10, 60))
        while True:
            await daemon.clock.sleep(rng.uniform(0.1, 4))
            if self._is_wanted and self.supervisor is None and daemon.serving:
                answer = await clients.ask(r.AddLockspace(0, self._io_timeout_s, self._named))
                result = answer and answer.result
                daemon.world.record(daemon.machine.name, f"adds {self.space.name} for a client: {result}")

    def leave(self) -> bool:
        """Its program asks for that also while clients hold leases there: then the lockspace has to stay."""
        if super().leave():
            return True
        if self.member is not None and self.daemon.serving:
            self.daemon.process.spawn(self._removed(RemoveFlag.UNUSED))
        return False

    def _leave(self) -> None:
        self._is_wanted = False
        clients = self.daemon.clients
        assert clients is not None
        self.daemon.process.spawn(self._removed(RemoveFlag.UNUSED if clients.site.rng.random() < 0.5 else 0))

    async def _removed(self, flags: int) -> None:
        daemon, clients = self.daemon, self.daemon.clients
        assert clients is not None
        answer = await clients.ask(r.RemLockspace(flags, self._named))
        result = answer and answer.result
        daemon.world.record(daemon.machine.name, f"removes {self.space.name} for a client: {result}")
