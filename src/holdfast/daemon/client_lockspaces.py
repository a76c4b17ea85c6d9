"""The lockspaces that clients of sanlock's protocol add and remove at run time, beside the configured ones (2.6).

    ADDING ──► JOINED ──► REMOVING ──► gone
      └─ failed: gone, the client gets the reason; nobody tries again

One that a backend names in the configuration is seen here, too, but no client can remove it. NOT wired into the daemon
yet: nothing writes what a client adds into the journal (`SanlockLockspaceLine`), or joins it again after a restart.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from functools import partial
from typing import NamedTuple

from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.model import SANLOCK_PREFIX
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_port import LockspaceSpec, WatchdogSpec
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

END_LOOK_S = 0.1
"""Between two checks whether a lockspace that is left has ended."""


class Standing(enum.Enum):
    """Of a lockspace that a client names."""

    ABSENT = "this host is not in it"
    ADDING = "it is being joined"
    JOINED = "this host is in it, or has just lost it"
    REMOVING = "it is being left"
    OTHER = "its name, or its place, is another lockspace's here"


class Removal(enum.Enum):
    """What has become of a removal."""

    DONE = "it is left"
    ABSENT = "this host is not in it"
    REMOVING = "it is being left already"
    BUSY = "owners depend on it, or it is configured"


class Named(NamedTuple):
    """What identifies a lockspace; `host_id` 0 stands for any."""

    name: str
    path: str
    offset_bytes: int
    host_id: int


class ClientLockspaces:
    """`watchdog` is chosen with the first lockspace of a host of which no backend names one."""

    def __init__(self, host: HostLockspaces, *, clock: Clock, watchdog: WatchdogSpec) -> None:
        self._host = host
        self._clock = clock
        self._watchdog = watchdog
        self._added: set[str] = set()

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
        supervisor = self._host.for_clients(spec, SANLOCK_PREFIX + spec.name, self._watchdog)
        self._added.add(spec.name)
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
        if self._host.is_in_use(named.name):
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
                self._host.forget(supervisor.name)
