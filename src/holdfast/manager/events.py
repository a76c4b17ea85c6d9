"""Events for people and programs: a short history and a stream.

Events report changes, not state: a slow reader loses the oldest and gets their count. Numbers increase across restarts of
the daemon: each daemon begins at the microseconds since 1970, so that a reader that asks for newer ones misses none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from holdfast.model import Mode, OwnerName, Resource
from holdfast.system.logs.log_lines import facts

EVENTS_KEPT_MAX = 1000
"""Newest events that are kept for late readers: enough for all VMs of a host to start a few times."""

ACQUIRED = "acquired"
REFUSED = "refused"
RELEASED = "released"
CONVERTED = "converted"
DEPARTING = "lock-departing"
"""A lock was released for a migration: it stays held until that is over."""
STAYED = "lock-stayed"
"""The migration came to nothing: the guest runs on here, under the lock that was released for it."""
OWNER_DIED = "owner-died"
OWNER_STOPPED = "owner-stopped"
OWNER_RESTARTED = "owner-restarted"
"""It was stopped for a lost lockspace, and was started again when that was joined."""
OWNER_NOT_RESTARTED = "owner-not-restarted"
"""The same, and libvirt could not start it."""
LOCK_LOST = "lock-lost"
LOCK_REGAINED = "lock-regained"
LEASE_LOST = "lease-lost"
UNKNOWN = "lock-unknown"
"""A lock is held for an owner that could not be attributed."""
ADOPTED = "lock-adopted"
"""The owner of an unknown lock asked for it, and is proven to be its owner."""
STARTED = "lock-started"
"""A lock that was prepared for a start is its process's now."""
ORPHANED = "lock-orphaned"
"""A client of sanlock's protocol has ended, and what it held persistently stays held."""
SETTLED = "lock-settled"
"""The owner of an unknown lock is proven, or attested by an operator, to be over."""
LEASE_BROKEN = "lease-broken"
HOST_FENCED = "host-fenced"
LOCKSPACE_JOINED = "lockspace-joined"
LOCKSPACE_LOST = "lockspace-lost"
HOST_RESET_AWAITED = "host-reset-awaited"
"""`on_loss = "reset"`: VMs of a lost lockspace have ended, and the watchdog is left unfed."""
MAINTENANCE_BEGUN = "maintenance-begun"
MAINTENANCE_ENDED = "maintenance-ended"
DAEMON_STARTED = "daemon-started"
DAEMON_RESTARTED = "daemon-restarted"
DAEMON_STOPPING = "daemon-stopping"

KINDS = (
    ACQUIRED,
    REFUSED,
    RELEASED,
    CONVERTED,
    DEPARTING,
    STAYED,
    OWNER_DIED,
    OWNER_STOPPED,
    OWNER_RESTARTED,
    OWNER_NOT_RESTARTED,
    LOCK_LOST,
    LOCK_REGAINED,
    LEASE_LOST,
    UNKNOWN,
    ADOPTED,
    STARTED,
    ORPHANED,
    SETTLED,
    LEASE_BROKEN,
    HOST_FENCED,
    LOCKSPACE_JOINED,
    LOCKSPACE_LOST,
    HOST_RESET_AWAITED,
    MAINTENANCE_BEGUN,
    MAINTENANCE_ENDED,
    DAEMON_STARTED,
    DAEMON_RESTARTED,
    DAEMON_STOPPING,
)


class Event(NamedTuple):
    """One thing that happened; fields that don't apply are empty."""

    number: int
    wall_s: float
    kind: str
    owner: OwnerName | None
    pid: int
    resource: Resource | None
    mode: Mode | None
    detail: str


def logged(
    kind: str, owner: OwnerName | None = None, resource: Resource | None = None, host: str = ""
) -> dict[str, object]:
    """`extra` of an event's log call: its subject, for programs that read the log. `host`: another host, if it has one."""
    return facts(
        vm=owner.name if owner else "", disk=str(resource) if resource else "", host=host, event=kind
    )


class Events:
    """The history and the listeners."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._recent: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._listeners: list[Callable[[Event], None]] = []
        self.counts: Counter[str] = Counter()
        """By kind, of all events since this daemon's start: not only of those that are kept."""
        self.last = int(wall() * 1e6)

    def emit(
        self,
        kind: str,
        owner: OwnerName | None = None,
        pid: int = 0,
        resource: Resource | None = None,
        mode: Mode | None = None,
        detail: str = "",
    ) -> None:
        self.last += 1
        # tuple.__new__ is faster than the class: there are several events per request.
        event = tuple.__new__(Event, (self.last, self._wall(), kind, owner, pid, resource, mode, detail))
        self._recent.append(event)
        self.counts[kind] += 1
        for listener in self._listeners:
            listener(event)

    def restore(self, events: Iterable[Event]) -> None:
        """Restore the history from before a re-exec; numbering continues after it."""
        for event in events:
            self._recent.append(event)
            self.last = max(self.last, event.number)

    def recent(self, after: int = 0) -> list[Event]:
        """Kept events with a number above `after`, oldest first; all, if this daemon has not reached that number.

        Then it is of an earlier daemon, before the clock was set back.
        """
        return [e for e in self._recent if e.number > after or after > self.last]

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` for every event from now on; returns a function that stops that."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop
