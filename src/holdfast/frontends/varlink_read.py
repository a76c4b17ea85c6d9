"""What of io.holdfast.Control only reports: no method here changes anything, nor opens a path that a client names.

The read-only socket offers this interface alone, so that a program which shows a host's state can change none of it (ADR
0215). No `from __future__ import annotations` here: asyncvarlink reads the types at run time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from asyncvarlink import VarlinkInterface, varlinkmethod
from asyncvarlink.interface import LastResult

from holdfast.control.api import (
    INTERFACE,
    EventInfo,
    HolderInfo,
    LeaseSpaceInfo,
    MeasuresInfo,
    OwnerInfo,
    StatusInfo,
)
from holdfast.manager.events import Event, Events
from holdfast.manager.queries import Inspection, shown

EVENTS_BEHIND_MAX = 4096
"""Events that wait for one slow follower; then the oldest are dropped, which it notices by the numbers."""


class SpacesShown(Protocol):
    """The lockspaces of leases, as they are reported."""

    def infos(self) -> list[LeaseSpaceInfo]: ...


class ReadInterface(VarlinkInterface, name=INTERFACE):
    """The reporting part of io.holdfast.Control."""

    def __init__(
        self,
        events: Events,
        inspection: Inspection,
        status: Callable[[], StatusInfo],
        measures: Callable[[], MeasuresInfo],
        lease_spaces: SpacesShown,
    ) -> None:
        self._events = events
        self._shown = inspection
        self._status = status
        self._measures = measures
        self._spaces_shown = lease_spaces

    @varlinkmethod(return_parameter="status")
    def GetStatus(self) -> StatusInfo:  # noqa: N802 - Varlink's method names
        return self._status()

    @varlinkmethod(return_parameter="owners")
    def ListOwners(self) -> list[OwnerInfo]:  # noqa: N802
        return self._shown.owners()

    @varlinkmethod(return_parameter="locks")
    def ListLocks(self) -> list[HolderInfo]:  # noqa: N802
        return self._shown.locks()

    @varlinkmethod(return_parameter="lockspaces")
    def ListLeaseSpaces(self) -> list[LeaseSpaceInfo]:  # noqa: N802
        return self._spaces_shown.infos()

    @varlinkmethod(return_parameter="measures")
    def GetMeasures(self) -> MeasuresInfo:  # noqa: N802
        """Counters and latencies since the daemon's start."""
        return self._measures()

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def WatchEvents(self, *, after: int, follow: bool) -> AsyncIterator[EventInfo | None]:  # noqa: N802
        """Kept events with a number above `after`, then (with `follow`) each as it happens; a last empty one ends it."""
        queue: asyncio.Queue[Event] = asyncio.Queue(EVENTS_BEHIND_MAX)

        def put(event: Event) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

        stop = self._events.listen(put)
        try:
            for event in self._events.recent(after):
                yield event_info(event)
            while follow:
                yield event_info(await queue.get())
        finally:
            stop()
        raise LastResult(None)


def event_info(event: Event) -> EventInfo:
    owner = event.owner
    return EventInfo(
        number=event.number,
        time=event.wall_s,
        kind=event.kind,
        owner=shown(owner.name) if owner else "",
        owner_uuid=owner.uuid if owner else "",
        pid=event.pid,
        resource=shown(str(event.resource)) if event.resource else "",
        mode=event.mode.word if event.mode else "",
        detail=shown(event.detail),
    )
