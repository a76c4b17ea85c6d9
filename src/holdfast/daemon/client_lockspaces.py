"""The lockspaces that clients of sanlock's protocol add and remove at run time, beside the configured ones (2.6).

    ADDING ──► JOINED ──► REMOVING ──► gone
      └─ failed: gone, the client gets the reason; nobody tries again

One that a backend names in the configuration is seen here, too, but no client can remove it. What a client adds is in the
journal before it is joined, and the next daemon joins it again; where the journal is lost, by the copies of this host's
incarnation there (`client_places`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial

import msgspec

from holdfast.daemon.client_backends import ClientBackends
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.manager.journal_kinds import SanlockLockspaceLine, path_of, text_of
from holdfast.manager.lock_registry import LockRegistry
from holdfast.model import SANLOCK_PREFIX
from holdfast.protocol.timing import Timing
from holdfast.supervision.host_identity import Incarnation, encode_term
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_port import LockspaceSpec, WatchdogSpec
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.supervision.named_lockspace import Named, Removal, Standing
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

END_LOOK_S = 0.1
"""Between two checks whether a lockspace that is left has ended."""


class ClientLockspaces:
    """`watchdog` is chosen with the first lockspace of a host of which no backend names one. `in_doubt` returns whether
    locks that can't be named may depend on these backends, `others` who depends on them and is no client of sanlock's.
    """

    def __init__(
        self,
        host: HostLockspaces,
        *,
        backends: ClientBackends,
        book: LockRegistry,
        clock: Clock,
        watchdog: WatchdogSpec,
        in_doubt: Callable[[Collection[str]], bool] = lambda _: False,
        others: Callable[[Collection[str]], list[str]] = lambda _: [],
    ) -> None:
        self._host = host
        self._in_doubt = in_doubt
        self._others = others
        self._uses: dict[str, int] = {}
        self._backends = backends
        self._book = book
        self._clock = clock
        self.watchdog = watchdog
        self._added: set[str] = set()

    def restore(self, added: Mapping[str, SanlockLockspaceLine]) -> None:
        """Before locks are adopted: what the journal says clients have added. `HostLockspaces.start` joins it again."""
        for line in added.values():
            name, fire_s = path_of(line.name), self.watchdog.fire_timeout_s
            spec = LockspaceSpec(
                name=name,
                path=path_of(line.path),
                host_id=line.host_id,
                hosts_max=None,
                timing=Timing(line.io_timeout_s, fire_s),
                offset_bytes=line.offset_bytes,
            )
            if any(supervisor.name == name for supervisor in self._host.supervisors):
                log.warning("lockspace %s, which a client of sanlock had added, is configured now", name)
                continue
            supervisor = self._host.restored_for_clients(spec, SANLOCK_PREFIX + name, self.watchdog)
            self._added.add(name)
            self._backends.add(supervisor)

    def note(self, incarnation: Incarnation) -> None:
        """What this host is in a lockspace by now: the next daemon joins what a client has added with its io_timeout."""
        line = self._book.added.get(text_of(incarnation.lockspace))
        if line is not None and not incarnation.next_io_timeout_s:
            changed = msgspec.structs.replace(line, io_timeout_s=incarnation.io_timeout_s)
            if changed != line:
                self._book.lockspace_added(changed)

    def forget(self, added: Mapping[str, SanlockLockspaceLine]) -> None:
        """In place of `restore`, where sanlock's clients are not served any more. None of them has a lease: a change of the
        configuration is refused while one has.
        """
        for name in list(added):
            log.warning(
                "lockspace %s, which a client of sanlock had added, is not joined: there is no [sanlock] socket",
                name,
            )
            self._removed(path_of(name))

    def _removed(self, lockspace: str) -> None:
        """The next daemon is not to join it. The copies come first: without their word the journal's line counts."""
        if (term := self._host.forget_place(lockspace)) is not None:
            self._book.remember(lockspace, encode_term(term))
        self._book.lockspace_removed(text_of(lockspace))

    @property
    def present(self) -> list[tuple[LockspaceSupervisor, Standing]]:
        """The lockspaces of this host that clients see, in the order in which they came."""
        self._forget_ended()
        found = [(supervisor, self._standing(supervisor)) for supervisor in self._host.supervisors]
        return [(supervisor, standing) for supervisor, standing in found if standing is not Standing.OTHER]

    def why_not_removed(self, lockspace: str) -> str:
        """Why no client may remove it or write over it; empty if one may. Its clients' own leases are no reason."""
        if lockspace not in self._added:
            return "it is configured"
        backends = self._host.backends_of(lockspace)
        if self._in_doubt(backends):
            return "locks that can't be named may depend on it"
        others = self._others(backends)
        return f"{', '.join(others)} depends on it" if others else ""

    def uses(self, lockspace: str) -> int:
        """The marks that clients have set, as a number of theirs; 0: none."""
        line = self._book.added.get(text_of(lockspace))
        return line.uses if line is not None else self._uses.get(lockspace, 0)

    def set_uses(self, lockspace: str, uses: int) -> None:
        """The next daemon has the marks of what a client has added, too."""
        if (line := self._book.added.get(text_of(lockspace))) is not None:
            self._book.lockspace_added(msgspec.structs.replace(line, uses=uses))
        else:
            self._uses[lockspace] = uses

    def serve_configured(self) -> None:
        """Clients may have leases in the lockspaces of configured backends, too."""
        for supervisor in self._host.supervisors:
            self._host.serve_clients(supervisor.name, SANLOCK_PREFIX + supervisor.name)
            self._backends.add(supervisor)

    def standing(self, named: Named) -> Standing:
        """From memory."""
        self._forget_ended()
        others = Standing.ABSENT
        for supervisor in self._host.supervisors:
            spec = supervisor.spec
            same_place = (spec.path, spec.offset_bytes) == (named.path, named.offset_bytes)
            if spec.name == named.name and same_place and named.host_id in (0, supervisor.host_id):
                return self._standing(supervisor)
            if spec.name == named.name or same_place:
                others = Standing.OTHER
        return others

    def _standing(self, supervisor: LockspaceSupervisor) -> Standing:
        match supervisor.state:
            case LockspaceState.ABSENT | LockspaceState.JOINING:
                return Standing.ADDING
            case LockspaceState.JOINED | LockspaceState.LOST:
                return Standing.JOINED
            case LockspaceState.LEAVING:
                return Standing.REMOVING
            case LockspaceState.LEFT:
                # An operator has left a configured one: that is no client's to join again.
                return Standing.REMOVING if supervisor.name in self._added else Standing.OTHER

    async def add(self, spec: LockspaceSpec) -> NotJoined | Standing | None:
        """Join, in one try; None: joined. A `Standing` is what was there before this call, so that nothing was tried."""
        before = self.standing(Named(spec.name, spec.path, spec.offset_bytes, spec.host_id or 0))
        if before is not Standing.ABSENT:
            return before
        self._book.lockspace_added(
            SanlockLockspaceLine(
                name=text_of(spec.name),
                path=text_of(spec.path),
                offset_bytes=spec.offset_bytes,
                sector_bytes=0,
                align_bytes=0,
                host_id=spec.host_id or 0,
                io_timeout_s=spec.timing.io_timeout_s,
            )
        )
        supervisor = self._host.for_clients(spec, SANLOCK_PREFIX + spec.name, self.watchdog)
        self._added.add(spec.name)
        self._backends.add(supervisor)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        supervisor.try_once(partial(eager_tasks.resolve, done, None))
        await done
        if supervisor.state is LockspaceState.JOINED:
            return None
        self._forget_ended()
        return supervisor.failure or NotJoined(supervisor.reason or supervisor.state.value)

    async def remove(self, named: Named) -> Removal:
        """Leave; returns when nothing of it can reach storage any more. Refused while owners depend on it."""
        standing = self.standing(named)
        if standing in (Standing.ABSENT, Standing.OTHER):
            return Removal.ABSENT
        if standing is Standing.REMOVING:
            return Removal.REMOVING
        if named.name not in self._added:
            log.warning("lockspace %s is not removed for a client: it is configured", named.name)
            return Removal.BUSY
        if self._host.is_in_use(named.name) or self._in_doubt(self._host.backends_of(named.name)):
            log.warning("lockspace %s is not removed for a client: owners depend on it", named.name)
            return Removal.BUSY
        supervisor = next(each for each in self._host.supervisors if each.name == named.name)
        self._host.leave(supervisor)
        while not supervisor.has_ended:
            await self._clock.sleep(END_LOOK_S)
        self._forget_ended()
        return Removal.DONE

    def _forget_ended(self) -> None:
        for supervisor in self._host.supervisors:
            if supervisor.name in self._added and supervisor.has_ended:
                self._added.discard(supervisor.name)
                self._backends.remove(supervisor.name)
                self._removed(supervisor.name)
                self._host.forget(supervisor.name)
