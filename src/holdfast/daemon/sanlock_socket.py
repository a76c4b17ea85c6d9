"""The socket for sanlock's clients: frontend and engine over the lockspaces, owners and leases of this daemon.

What the engine asks of the daemon around it is answered here (`engine_ports`), and what the daemon learns of a lockspace
that its clients have to know goes from here to them: events, requests of other hosts, a loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Protocol

from holdfast.daemon.build import Parts
from holdfast.daemon.client_backends import ClientBackends
from holdfast.daemon.client_facts import ClientFacts
from holdfast.daemon.client_lockspaces import ClientLockspaces
from holdfast.daemon.kept_clients import FoundClient
from holdfast.frontends.sanlock.client_stopper import ClientStopper
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.connection import Leftovers
from holdfast.frontends.sanlock.connection_slots import Slots
from holdfast.frontends.sanlock.engine import SanlockEngine
from holdfast.frontends.sanlock.engine_ports import DaemonFacts
from holdfast.frontends.sanlock.frontend import SanlockFrontend
from holdfast.frontends.sanlock.holder_asked import HolderAsked
from holdfast.frontends.sanlock.version import commands_of, version_number
from holdfast.manager.client_leases import ClientLeases
from holdfast.manager.owners import Owner
from holdfast.protocol.timing import Timing
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_news import Notified
from holdfast.supervision.lockspace_port import LockspaceSpec, WatchdogSpec
from holdfast.supervision.named_lockspace import Named, Removal, Standing
from holdfast.supervision.renewal import HISTORY_MAX
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.host.commands import Commands
from holdfast.system.host.descriptors import SavedClient

AREAS = "areas of sanlock's clients"
"""The workers for storage at places that clients name."""


class _Lockspaces:
    """`engine_ports.Lockspaces`."""

    def __init__(self, lockspaces: ClientLockspaces, stop_clients: Callable[[str], Awaitable[None]]) -> None:
        self._lockspaces = lockspaces
        self._stop_clients = stop_clients

    def standing(self, named: Named) -> Standing:
        return self._lockspaces.standing(named)

    async def add(self, spec: LockspaceSpec) -> NotJoined | Standing | None:
        return await self._lockspaces.add(spec)

    async def remove(self, named: Named) -> Removal:
        return await self._lockspaces.remove(named)

    def why_not_removed(self, lockspace: str) -> str:
        return self._lockspaces.why_not_removed(lockspace)

    async def stop_clients(self, lockspace: str) -> None:
        await self._stop_clients(lockspace)


class _Daemon:
    """`engine_ports.Daemon`."""

    def __init__(
        self, parts: Parts, facts: DaemonFacts, log_text: Callable[[], bytes], end: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._facts = facts
        self.log_text = log_text
        self._end = end

    def facts(self) -> DaemonFacts:
        return self._facts

    def why_not_ended(self) -> str:
        owners = self._parts.manager.owners
        others = [str(owner) for owner in owners if not owner.clients and not owner.keeps_orphans]
        return f"{', '.join(others[:3])}: its locks are held here" if others else ""

    async def end(self) -> None:
        self._end()


class KeptConnections(Protocol):
    """Connections from one daemon to the next: `KeptClients`."""

    @property
    def slots(self) -> Slots | None: ...
    @property
    def found(self) -> Sequence[FoundClient]: ...
    @property
    def owners(self) -> Counter[tuple[int, int]]: ...
    @property
    def pending(self) -> Collection[int]: ...

    def keep(self, client_id: int, fd: int | None) -> None: ...
    def passed_on(self, connections: Iterable[Leftovers]) -> tuple[list[SavedClient], int]: ...


class SanlockSocket:
    """Made when the configuration names a socket. `version`: of the sanlock it stands in for; `watchdog`: of the lockspaces
    that clients add; `areas`: storage at places that they name, None: with the daemon's own rights; `kept`: connections
    from an earlier daemon. `log_text`: the latest lines of its log. `end` has the daemon exit.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        lockspaces: ClientLockspaces,
        backends: ClientBackends,
        kept: KeptConnections,
        commands: Commands,
        areas: LeaseStorage | None,
        version: str,
        io_timeout_s: int,
        watchdog: WatchdogSpec,
        log_text: Callable[[], bytes],
        end: Callable[[], None],
    ) -> None:
        manager = parts.manager
        leases = self._leases = ClientLeases(manager)
        self.stopper = ClientStopper(
            clients_in=lambda lockspace: self.engine.clients_in(lockspace),  # noqa: PLW0108 - it is made below
            clients_of=self._clients_of,
            killpath_of=lambda client: self.engine.killpath_of(client),  # noqa: PLW0108
            owner_of=manager.owners.with_pid,
            run=commands.run,
            clock=parts.ports.clock,
        )
        self._asked = HolderAsked(leases, held=lambda: self.engine.held(), asked=self.stopper.asked)  # noqa: PLW0108
        self._facts = ClientFacts(lockspaces, examine=self._asked.examine)
        number = version_number(version)
        self.engine = SanlockEngine(
            lockspaces=_Lockspaces(lockspaces, self.stopper.stop_all),
            facts=self._facts,
            daemon=_Daemon(parts, _facts(parts, number, io_timeout_s, watchdog), log_text, end),
            leases=leases,
            backends=backends,
            areas=areas if areas is not None else parts.ports.leases.storage(AREAS),
            clock=parts.ports.clock,
            gone=lambda lockspace: self.frontend.lockspace_gone(lockspace),  # noqa: PLW0108
        )
        self._kept = kept
        self.frontend = SanlockFrontend(
            self.engine,
            readiness=parts.ports.readiness,
            version=number,
            commands=commands_of(number),
            slots=kept.slots,
            keep=kept.keep,
        )
        parts.lease_recovery.stop_client = self.stopper.lost
        parts.recovery.connected = kept.owners
        manager.on_client_ended = self._client_ended
        parts.reactions.on_notified = self._notified

    def admit_early(self) -> None:
        """Before locks are adopted, which takes a second for a thousand: clients connect, and wait (ADR 0187)."""
        self.frontend.admit_early({each.client_id for each in self._kept.found})

    def restore(self) -> None:
        """When locks are adopted: connections and processes that an earlier daemon had registered have what they had."""
        connected: dict[int, list[Client]] = {}
        for each in self._kept.found:
            client = self.frontend.adopt(each.client_id, each.sock, each.peer, each.entry, each.left)
            if client.registered:
                connected.setdefault(each.entry.owner, []).append(client)
        for owner in self._leases.of_earlier_daemon():
            mine = [client for client in connected.get(owner.id, ()) if client.pid == owner.pid]
            keep = partial(self.frontend.keep_process, owner.pid)
            self.engine.restore(owner, mine, self._kept.pending, keep)

    def serve_adopted(self) -> None:
        """When the journal has all of that: their connections resume."""
        self.frontend.serve_adopted()

    def passed_on(self) -> tuple[list[SavedClient], int]:
        """For a re-exec."""
        left = (connection.leftovers() for connection in self.frontend.connections)
        return self._kept.passed_on(each for each in left if each is not None)

    def lets_go(self) -> None:
        """The next program knows no connections of sanlock's clients: they end with this one."""
        for connection in self.frontend.connections:
            self._kept.keep(connection.client.client_id, None)

    def _client_ended(self, owner: Owner) -> None:
        self.engine.kept_ended(owner)
        self.frontend.kept_ended(owner.pid)

    def _host_id(self, lockspace: str) -> int:
        """This host's, for which the event is meant."""
        return next((view.host_id for view in self._facts.views() if view.name == lockspace), 0)

    def _clients_of(self, pid: int) -> Sequence[Client]:
        return self.frontend.clients.of_process(pid)

    def _notified(self, news: Notified) -> None:
        if news.event.number:
            ours = self._host_id(news.lockspace)
            self.frontend.publish(news.lockspace, ours, news.event, (news.host_id, news.generation))
        self._asked.examine(news.lockspace)


def _facts(parts: Parts, version: int, io_timeout_s: int, watchdog: WatchdogSpec) -> DaemonFacts:
    return DaemonFacts(
        host_name=parts.ports.identity.node,
        version=version,
        use_watchdog=watchdog.driver != "none",
        io_timeout_s=io_timeout_s,
        fire_timeout_s=watchdog.fire_timeout_s,
        kill_grace_s=int(Timing(io_timeout_s, watchdog.fire_timeout_s).grace_s),
        renewal_history=HISTORY_MAX,
        uid=parts.ports.uid,
    )
