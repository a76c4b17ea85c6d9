"""Maintenance of a host: no VM begins here, whether it is started, restored or arrives; what is here goes on (ADR 0218).

A VM begins with a process of its own, which registers itself before it becomes QEMU: that is refused, and with libvirt's
hook what comes before. Every later request about a VM that is here (resume, hotplug, release) comes from libvirtd, and is
served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from holdfast.errors import Refused
from holdfast.manager import events as ev
from holdfast.manager.events import Events
from holdfast.model import OwnerName, wall_text
from holdfast.system.files.state_file import StatePort

log = logging.getLogger(__name__)

MAINTENANCE_FILE = "maintenance.json"
DAMAGED = "its record is damaged"


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """One maintenance. `since`: seconds since 1970; `by`: who ordered it."""

    since: float
    by: str
    reason: str = ""

    def __str__(self) -> str:
        return f"since {wall_text(self.since)}, by {self.by}{f': {self.reason}' if self.reason else ''}"


class Maintenance:
    """Whether this host is in maintenance, over restarts and reboots. `state` is read once, and written at each change."""

    def __init__(self, state: StatePort, events: Events, wall: Callable[[], float]) -> None:
        self._state = state
        self._events = events
        self._wall = wall
        self.ordered = self._read()
        """None: it is not in maintenance."""
        if self.ordered is not None:
            log.warning("this host is in maintenance %s", self.ordered)

    def _read(self) -> Ordered | None:
        raw = self._state.read().strip()
        if not raw or raw == b"null":
            return None
        try:
            return msgspec.json.decode(raw, type=Ordered)
        except msgspec.DecodeError:
            # Somebody ordered something: an operator can end it, and a VM that was started can't be taken back.
            return Ordered(since=0.0, by="an order that can't be read", reason=DAMAGED)

    def begin(self, by: str, reason: str) -> None:
        """Raises OSError, and then nothing has changed; one that is there already stays as it is."""
        if self.ordered is None:
            ordered = Ordered(since=self._wall(), by=by, reason=reason)
            self._state.replace(msgspec.json.encode(ordered))
            self.ordered = ordered
            log.warning("maintenance of this host begins: by %s%s", by, f": {reason}" if reason else "")
            self._events.emit(ev.MAINTENANCE_BEGUN, detail=str(ordered))

    def end(self, by: str) -> None:
        """Raises OSError, and then nothing has changed."""
        if self.ordered is not None:
            self._state.replace(b"null")
            self.ordered = None
            log.warning("maintenance of this host ends: by %s", by)
            self._events.emit(ev.MAINTENANCE_ENDED, detail=f"by {by}")

    def must_not_begin(self, name: OwnerName, pid: int = 0) -> None:
        """A VM, or another owner, is about to begin here. Raises `Refused` in maintenance."""
        if self.ordered is None:
            return
        error = Refused(
            reason=f"{name.name} can't begin on this host, which is in maintenance {self.ordered}; start it on "
            "another host, or end the maintenance: holdfast maintenance off"
        )
        self._events.emit(ev.REFUSED, name, pid, detail=str(error))
        log.warning("refused: %s", error, extra=ev.logged(ev.REFUSED, name))
        raise error
