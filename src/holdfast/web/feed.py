"""Asks holdfastd once a second, while somebody watches, and hands what it says to every viewer as server-sent events.

    thread: look ─► Look or why there is none ─► event loop: changes since the last one ─► each viewer's queue ─► its stream

Locks, the longest answer, are asked for only when an event has happened or some seconds have passed, and never for more than
a part of the daemon's time. With nobody watching nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast.control.api import EventInfo, LeaseSpaceInfo, MeasuresInfo, StatusInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.web.changes import Changes, Row, changes, rows_of

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the daemon."""
LOCKS_AGE_MAX_S = 15.0
"""Protection may change without an event: a watchdog, a mount."""
LOCKS_PAUSE_FACTOR = 10
"""Asking for locks takes at most this part of the time: a daemon that needs 0.3 s for 20 000 locks is asked every 3 s."""
EVENTS_KEPT = 200
"""For a viewer that comes later."""
VIEWERS_MAX = 32
"""Pages that are open at once."""
BEHIND_MAX = 32
"""Messages that wait for one slow viewer; then its stream ends, and the browser begins another one."""
QUIET_S = 15.0
"""A stream with nothing to say has a comment as often, so that proxies keep it and a closed one is noticed."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the daemon; `rows` None: the locks were not asked for."""

    status: StatusInfo
    spaces: Sequence[LeaseSpaceInfo]
    measures: MeasuresInfo | None
    events: Sequence[EventInfo]
    rows: dict[str, Row] | None
    locks_took_s: float


Connect = Callable[[], ControlClient]


def look(connect: Connect, *, after: int, wants_locks: Callable[[StatusInfo], bool]) -> Look:
    """Blocks. `after`: events above this number. Raises `DaemonUnreachable`, `CallRefused`."""
    with connect() as client:
        status = client.status()
        events = list(client.events(after=after, follow=False)) if status.last_event != after else []
        rows, took_s = None, 0.0
        if wants_locks(status):
            began = time.monotonic()
            rows = rows_of(client.locks())
            took_s = time.monotonic() - began
        return Look(status, client.lease_spaces(), measures_of(client), events, rows, took_s)


def measures_of(client: ControlClient) -> MeasuresInfo | None:
    try:
        return client.measures()
    except CallRefused:  # a daemon of an earlier release
        return None


def message(event: str, data: object) -> bytes:
    """One server-sent event: JSON has no line end in it."""
    return b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


@dataclass(eq=False, slots=True)
class Viewer:
    """One open page."""

    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(BEHIND_MAX))
    fresh: bool = True
    """It has got nothing yet, so it gets everything."""


class Feed:
    """All viewers, and what they were sent last."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._viewers: set[Viewer] = set()
        self._wanted = asyncio.Event()
        self._closed = False
        self._rows: dict[str, Row] = {}
        self._rows_at = float("-inf")
        self._rows_pause_s = 0.0
        self._rows_event = -1
        """The daemon's last event when its locks were asked for."""
        self._recent: deque[EventInfo] = deque(maxlen=EVENTS_KEPT)

    @property
    def is_full(self) -> bool:
        return len(self._viewers) >= VIEWERS_MAX

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._viewers:
                try:
                    await self._look()
                except Exception:
                    log.exception("a look at holdfastd failed")
                newcomer = asyncio.create_task(self._wanted.wait())
                await asyncio.wait((newcomer,), timeout=LOOK_S)
                newcomer.cancel()
                self._wanted.clear()

    def close(self) -> None:
        """End every stream; a server that stops waits for them."""
        self._closed = True
        for viewer in self._viewers:
            _end(viewer)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Messages for one new viewer, until it goes or falls behind."""
        viewer = Viewer()
        self._viewers.add(viewer)
        self._wanted.set()
        getting: asyncio.Task[bytes | None] | None = None
        try:
            while not self._closed:
                getting = getting or asyncio.create_task(viewer.queue.get())
                if not (await asyncio.wait((getting,), timeout=QUIET_S))[0]:
                    yield b": still here\n\n"
                    continue
                sent = getting.result()
                getting = None
                if sent is None:
                    return
                yield sent
        finally:
            self._viewers.discard(viewer)
            if getting is not None:
                getting.cancel()

    async def _look(self) -> None:
        after = self._recent[-1].number if self._recent else 0
        try:
            seen = await asyncio.to_thread(look, self._connect, after=after, wants_locks=self._wants_locks)
        except (DaemonUnreachable, CallRefused, msgspec.ValidationError) as e:
            self._rows_at = float("-inf")
            self._send_all(message("daemon", {"up": False, "why": str(e)}))
            return
        self._publish(seen)

    def _wants_locks(self, status: StatusInfo) -> bool:
        age_s = time.monotonic() - self._rows_at
        happened = status.last_event != self._rows_event
        return age_s >= self._rows_pause_s and (happened or age_s >= LOCKS_AGE_MAX_S)

    def _publish(self, seen: Look) -> None:
        different = Changes({}, [])
        if seen.rows is not None:
            different = changes(self._rows, seen.rows)
            self._rows = seen.rows
            self._rows_at = time.monotonic()
            self._rows_pause_s = seen.locks_took_s * LOCKS_PAUSE_FACTOR
            self._rows_event = seen.status.last_event
        self._recent.extend(seen.events)
        state = message("state", _state(seen))
        for viewer in list(self._viewers):
            if viewer.fresh:
                viewer.fresh = False
                self._send(viewer, state)
                self._send(viewer, message("locks", {"all": True, "rows": self._rows, "gone": []}))
                self._send(viewer, message("events", list(self._recent)))
                continue
            self._send(viewer, state)
            if different.rows or different.gone:
                self._send(
                    viewer, message("locks", {"all": False, "rows": different.rows, "gone": different.gone})
                )
            if seen.events:
                self._send(viewer, message("events", seen.events))

    def _send_all(self, sent: bytes) -> None:
        for viewer in list(self._viewers):
            self._send(viewer, sent)

    def _send(self, viewer: Viewer, sent: bytes) -> None:
        try:
            viewer.queue.put_nowait(sent)
        except asyncio.QueueFull:
            self._viewers.discard(viewer)
            _end(viewer)


def _end(viewer: Viewer) -> None:
    while True:
        try:
            viewer.queue.put_nowait(None)
            return
        except asyncio.QueueFull:
            viewer.queue.get_nowait()


def _state(seen: Look) -> dict[str, Any]:
    return {
        "status": seen.status,
        "spaces": seen.spaces,
        "measures": seen.measures.lockspaces if seen.measures is not None else [],
        "watchdog_fed_s_ago": seen.measures.watchdog_fed_s_ago if seen.measures is not None else None,
        "now": time.time(),
    }
