"""SET_EVENT: leaves an event for a host in our record, and sets its bit (sanlock-socket.md 2.8, sanlock-disk.md 3.6)."""

from __future__ import annotations

from holdfast.frontends.sanlock.engine_ports import LockspaceFacts, LockspaceView
from holdfast.frontends.sanlock.lockspace_commands import LockspaceCommands
from holdfast.ondisk.delta import NO_EVENT, Event
from holdfast.protocol.timing import BITMAP_FACTOR
from holdfast.protocol.types import HostId, Instant
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import SetEventFlag
from holdfast.wire.sanlock.result import Result


class HostEvents:
    """A record has room for one event, so one that is young is not replaced by another without being asked to."""

    def __init__(self, commands: LockspaceCommands, facts: LockspaceFacts, *, clock: Clock) -> None:
        self._commands = commands
        self._facts = facts
        self._clock = clock
        self._posted: dict[str, tuple[Event, int, Instant]] = {}
        """The event of a lockspace, our generation when it was posted, and when."""

    async def set(self, request: r.SetEvent) -> replies.Plain:
        wanted, flags = request.event, request.flags
        view = self._commands.joined(request.lockspace)
        if view is None:
            return replies.Plain(Result.ENOENT)
        hosts_max = view.geometry.hosts_max if view.geometry is not None else 0
        if not 1 <= wanted.host_id <= hosts_max:
            return replies.Plain(Result.EINVAL)
        generation = wanted.generation
        if flags & SetEventFlag.CUR_GENERATION:
            generation = self._present_generation(view, wanted.host_id)
        event = Event(generation, wanted.event, wanted.data)
        if flags & SetEventFlag.CLEAR_EVENT:
            event = NO_EVENT
        elif not flags & SetEventFlag.REPLACE_EVENT and self._would_clobber(view, event):
            return replies.Plain(Result.EBUSY)
        if not flags & SetEventFlag.CLEAR_HOSTID or flags & SetEventFlag.CLEAR_EVENT:
            self._posted[view.name] = event, view.generation, self._clock.now()
            self._facts.post_event(view.name, event)
        for host_id in self._meant(view, wanted.host_id, flags):
            if flags & SetEventFlag.CLEAR_HOSTID:
                self._facts.notify_no_more(view.name, HostId(host_id))
            elif not flags & SetEventFlag.CLEAR_EVENT:
                self._facts.notify(view.name, HostId(host_id))
        return replies.Plain()

    def _present_generation(self, view: LockspaceView, host_id: int) -> int:
        seen = {each.host_id: each.generation for each in self._facts.hosts(view.name)}
        return seen.get(HostId(host_id)) or 0

    def _would_clobber(self, view: LockspaceView, event: Event) -> bool:
        """Whether another event stands there that its receivers may not have read yet: one of another number."""
        before, generation, since = self._posted.get(view.name, (NO_EVENT, 0, Instant(0.0)))
        numbers = before.number, event.number
        if 0 in numbers or generation != view.generation or before.number == event.number:
            return False
        return self._clock.now() - since < BITMAP_FACTOR * view.io_timeout_s

    def _meant(self, view: LockspaceView, host_id: int, flags: int) -> list[int]:
        if not flags & SetEventFlag.ALL_HOSTS:
            return [host_id]
        return [int(each.host_id) for each in self._facts.hosts(view.name) if each.host_id != view.host_id]
