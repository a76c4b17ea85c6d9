"""Commands that add, inquire, mark and remove lockspaces, and the daemon's end (sanlock-socket.md 2.6, 2.10).

    ADD   ABSENT ─► ADDING ─► JOINED, or ABSENT again with the reason
    REM   JOINED ─ clients are stopped ─ no use is marked any more ─ orphans are released ─► REMOVING ─► ABSENT
          nothing of it begins while anybody else depends on the lockspace: -EBUSY, and the log says who

What is being removed is open for no new lease from the request on. INQ shows it as REMOVING for a second at least: clients
that poll expect to see that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.frontends.sanlock.engine_ports import (
    NO_USES,
    Daemon,
    LeasesOfLockspaces,
    LockspaceFacts,
    Lockspaces,
    LockspaceView,
)
from holdfast.frontends.sanlock.join_results import of_add, of_inquiry, of_not_joined, of_removal
from holdfast.frontends.sanlock.version import is_of_5
from holdfast.manager.client_leases import ClientLeases
from holdfast.model import SANLOCK_PREFIX
from holdfast.protocol.timing import IO_TIMEOUT_MAX_S, Timing
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.named_lockspace import Named, Standing
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import AddFlag, ConfigOrder, InquireLockspaceFlag, RemoveFlag
from holdfast.wire.sanlock.result import Result

log = logging.getLogger(__name__)

INQUIRE_POLL_S = 1.0
"""Of INQ_LOCKSPACE with WAIT, as sanlock's."""
USE_POLL_S = 0.2
"""How often a removal checks whether a lockspace is used still, as sanlock while it recovers one."""
REMOVING_SHOWN_S = 1.0
"""sanlock's main loop shows a lockspace as being removed for a tick of this length at least."""


def named(lockspace: s.Lockspace) -> Named:
    return Named(lockspace.name.text, lockspace.disk.path, lockspace.disk.offset_bytes, lockspace.host_id)


def _is_utf8(text: str) -> bool:
    """Whether a name has no byte that only a surrogate stands for: files in JSON can't have one."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class LockspaceCommands:
    """`index_in_use` answers whether a command changes an index of that lockspace now. `gone` is called when a client has
    removed one.
    """

    def __init__(
        self,
        lockspaces: Lockspaces,
        facts: LockspaceFacts,
        daemon: Daemon,
        leases: ClientLeases,
        backends: LeasesOfLockspaces,
        *,
        clock: Clock,
        index_in_use: Callable[[str], bool] = lambda _: False,
        gone: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lockspaces = lockspaces
        self._facts = facts
        self._daemon = daemon
        self._leases = leases
        self._backends = backends
        self._clock = clock
        self._index_in_use = index_in_use
        self._gone = gone
        self._removing: dict[str, bool] = {}
        """By name: whether it is shown as REMOVING already."""

    # --- what others ask ---

    def backend_of(self, lockspace: str) -> AreaBackend | None:
        """That of a lockspace in which clients may acquire: not of one that is being removed."""
        return None if lockspace in self._removing else self._backends.backend_of(lockspace)

    def standing(self, place: Named) -> Standing:
        """As clients shall see it."""
        found = self._lockspaces.standing(place)
        # Also when it is left already, for the moment that it is shown so.
        shown = found in (Standing.JOINED, Standing.ABSENT) and self._removing.get(place.name)
        return Standing.REMOVING if shown else found

    def views(self) -> list[LockspaceView]:
        return [
            replace(view, standing=Standing.REMOVING)
            if view.standing is Standing.JOINED and self._removing.get(view.name)
            else view
            for view in self._facts.views()
        ]

    def joined(self, lockspace: s.Lockspace) -> LockspaceView | None:
        """By its name alone, as most commands look for it."""
        for view in self.views():
            if view.name == lockspace.name.text and view.standing is Standing.JOINED:
                return view
        return None

    def is_used(self, lockspace: str) -> bool:
        """Whether a client or an orphan has a lease there, or had one whose release has not ended."""
        return SANLOCK_PREFIX + lockspace in self._leases.lockspaces()

    # --- ADD, INQ ---

    async def add(self, request: r.AddLockspace) -> replies.Plain:
        place = named(request.lockspace)
        facts = self._daemon.facts()
        io_timeout_s = request.io_timeout_s or facts.io_timeout_s
        if not (place.name and place.path and place.host_id) or io_timeout_s > IO_TIMEOUT_MAX_S:
            return replies.Plain(Result.EINVAL)
        if not _is_utf8(place.name):
            log.warning("refused ADD_LOCKSPACE %a: a name that is not UTF-8 is not supported", place.name)
            return replies.Plain(Result.EINVAL)
        if request.flags & AddFlag.NO_WATCHDOG:
            log.warning("refused ADD_LOCKSPACE %s: one without a watchdog is not supported", place.name)
            return replies.Plain(Result.EINVAL)
        if place.name in self._removing:
            return replies.Plain(Result.EAGAIN)
        if (before := self._lockspaces.standing(place)) is not Standing.ABSENT:
            return replies.Plain(of_add(before))
        spec = LockspaceSpec(
            name=place.name,
            path=place.path,
            host_id=place.host_id,
            hosts_max=None,
            timing=Timing(io_timeout_s, facts.fire_timeout_s),
            offset_bytes=place.offset_bytes,
        )
        log.info("ADD_LOCKSPACE %s:%d:%s:%d", place.name, place.host_id, place.path, place.offset_bytes)
        if request.flags & AddFlag.ASYNC:
            eager_tasks.start(self._add(spec))
            return replies.Plain()
        return replies.Plain(await self._add(spec))

    async def add_again(self, request: r.AddLockspace) -> replies.Plain:
        """As `add`, for a request with which an earlier daemon had begun: this one joins the lockspace again already."""
        place = named(request.lockspace)
        while not request.flags & AddFlag.ASYNC and self._lockspaces.standing(place) is Standing.ADDING:
            await self._clock.sleep(INQUIRE_POLL_S)
        if self._lockspaces.standing(place) in (Standing.ADDING, Standing.JOINED):
            return replies.Plain()
        return await self.add(request)

    async def _add(self, spec: LockspaceSpec) -> Result:
        match await self._lockspaces.add(spec):
            case None:
                return Result.OK
            case NotJoined() as failure:
                result = of_not_joined(failure)
                log.warning("ADD_LOCKSPACE %s: %d, %s", spec.name, result, failure.reason)
                return result
            case before:
                return of_add(before)

    async def inquire(self, request: r.InqLockspace) -> replies.Plain:
        place = named(request.lockspace)
        while True:
            result = of_inquiry(self.standing(place))
            if result is not Result.EINPROGRESS or not request.flags & InquireLockspaceFlag.WAIT:
                return replies.Plain(result)
            await self._clock.sleep(INQUIRE_POLL_S)

    # --- REM ---

    async def remove(self, request: r.RemLockspace) -> replies.Plain:
        place = named(request.lockspace)
        standing = self.standing(place)
        if standing in (Standing.ABSENT, Standing.OTHER):
            return replies.Plain(Result.ENOENT)
        if standing is Standing.REMOVING or place.name in self._removing:
            return replies.Plain(Result.EINPROGRESS)
        unused = bool(request.flags & RemoveFlag.UNUSED)
        if (unused and self.is_used(place.name)) or self._index_in_use(place.name):
            return replies.Plain(Result.EBUSY)
        if self._stands_in_the_way(place.name):
            return replies.Plain(Result.EBUSY)
        if request.flags & RemoveFlag.ASYNC:
            eager_tasks.start(self._remove(place))
            return replies.Plain()
        return replies.Plain(await self._remove(place))

    async def remove_again(self, request: r.RemLockspace) -> replies.Plain:
        """As `remove`, for a request with which an earlier daemon had begun: it may have removed it."""
        reply = await self.remove(request)
        return replies.Plain() if reply.result == Result.ENOENT else reply

    def _stands_in_the_way(self, lockspace: str) -> bool:
        if why := self._lockspaces.why_not_removed(lockspace):
            log.warning("refused to remove lockspace %s for a client: %s", lockspace, why)
        return bool(why)

    async def _remove(self, place: Named) -> Result:
        name = place.name
        self._removing[name] = False
        try:
            if self._lockspaces.standing(place) is Standing.JOINED:
                await self._lockspaces.stop_clients(name)
                while self._is_kept(name):
                    await self._clock.sleep(USE_POLL_S)
                if self._stands_in_the_way(name):
                    return Result.EBUSY
                for keeper, key, _ in self._leases.orphans(SANLOCK_PREFIX + name):
                    await self._leases.release_orphan(keeper, key)
            self._removing[name] = True
            until = self._clock.now() + REMOVING_SHOWN_S
            result = of_removal(await self._lockspaces.remove(place))
            if result is Result.OK:
                await self._clock.sleep(max(0.0, until - self._clock.now()))
                self._facts.set_uses(name, NO_USES)
                self._gone(name)
            return result
        finally:
            del self._removing[name]

    def _is_kept(self, lockspace: str) -> bool:
        uses = self._facts.uses(lockspace)
        if uses.used_by_orphans and self._leases.orphans(SANLOCK_PREFIX + lockspace):
            return True
        return uses.used

    # --- SET_CONFIG, EXAMINE ---

    def set_config(self, request: r.SetConfig) -> replies.Plain:
        view = self.joined(request.lockspace)
        if view is None:
            return replies.Plain(Result.ENOENT)
        if view.failing:
            return replies.Plain(Result.ENOSPC)
        uses = self._facts.uses(view.name)
        match request.order:
            case ConfigOrder.USED | ConfigOrder.UNUSED:
                uses = uses._replace(used=request.order == ConfigOrder.USED)
            case ConfigOrder.USED_BY_ORPHANS | ConfigOrder.UNUSED_BY_ORPHANS:
                uses = uses._replace(used_by_orphans=request.order == ConfigOrder.USED_BY_ORPHANS)
            case ConfigOrder.IO_TIMEOUT if self._changes_io_timeout(request.seconds):
                done = self._facts.set_io_timeout(view.name, request.seconds)
                return replies.Plain(Result.OK if done else Result.EINVAL)
            case _:
                return replies.Plain(Result.EINVAL)
        self._facts.set_uses(view.name, uses)
        return replies.Plain()

    def _changes_io_timeout(self, seconds: int) -> bool:
        """Whether clients may ask for that; sanlock 3 does not know the order (newer-sanlock.md 1.7)."""
        return is_of_5(self._daemon.facts().version) and 0 < seconds <= IO_TIMEOUT_MAX_S

    def examine(self, lockspace: s.Lockspace | s.Resource) -> replies.Plain:
        """Answers 0 always, whatever there is to examine."""
        if isinstance(lockspace, s.Resource):
            self._facts.examine(lockspace.lockspace.text, lockspace.name.text)
        else:
            self._facts.examine(lockspace.name.text, "")
        return replies.Plain()

    # --- SHUTDOWN ---

    async def shut_down(self, *, force: bool) -> Result:
        """Have the daemon end; returns when it is about to exit, or at once why it does not."""
        if not force and (self._facts.views() or self._removing):
            return Result.EBUSY
        if why := self._daemon.why_not_ended():
            log.warning("refused to end for a client of sanlock: %s", why)
            return Result.EBUSY
        places = [_place(view) for view in self._facts.views()]
        kept = [place for place in places if self._stands_in_the_way(place.name)]  # all of them are logged
        if kept:
            return Result.EBUSY
        await asyncio.gather(*(self._left(place) for place in places))
        if self._facts.views():
            return Result.EBUSY
        await self._daemon.end()
        return Result.OK

    async def _left(self, place: Named) -> None:
        """Remove it, or wait for the end of a removal that is under way."""
        if place.name not in self._removing:
            await self._remove(place)
        while place.name in self._removing:
            await self._clock.sleep(USE_POLL_S)


def _place(view: LockspaceView) -> Named:
    return Named(view.name, view.path, view.offset_bytes, view.host_id)
