"""What a daemon gives its flight recorder: how the last boot ended, every event, and signs of life."""

from __future__ import annotations

import asyncio
import logging

from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.flight import notes as n
from holdfast.flight.last_end import Cause, last_end, paragraph
from holdfast.flight.recorder import FlightRecorder
from holdfast.manager.events import Event, Events
from holdfast.supervision.lockspace_supervisor import LockspaceSupervisor
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.host.process import boot_id
from holdfast.system.watchdog.boot_status import resetter

log = logging.getLogger("holdfast")

ALIVE_S = 60.0
"""Between two signs of life: how well is known when a host went down without a word."""


def begin(state_dir: str) -> tuple[FlightRecorder, str]:
    """The recorder, begun, and how this host's last boot ended by its notes; empty if it left none."""
    notes, boot = n.read(state_dir), boot_id()
    if isinstance(notes, Unreadable):
        if not notes.missing:
            log.error("notes of the flight recorder in %s can't be read: %s", state_dir, notes.reason)
        notes = []
    recorder = FlightRecorder(state_dir, boot)
    recorder.start()
    logging.getLogger().addHandler(recorder)
    found = last_end(notes, boot, resetter())
    if found is None:
        return recorder, ""
    text = paragraph(found)
    if found.cause is not Cause.ORDERLY and not any(note.boot == boot for note in notes):
        log.warning("the last boot of this host: %s 'holdfast explain-reset' shows what came before", text)
    return recorder, text


def of_events(recorder: FlightRecorder, events: Events) -> None:
    """From now on every event is noted."""

    def noted(event: Event) -> None:
        vm, disk = event.owner.name if event.owner else "", event.resource or ""
        recorder.note(event.kind, event.detail, vm=vm, disk=disk)

    events.listen(noted)


def of_life(recorder: FlightRecorder, leases: HostLockspaces, loop: asyncio.AbstractEventLoop) -> None:
    """Note now, and by a timer of the loop from now on, that this host is alive, and the state of its lockspaces."""
    recorder.note(n.ALIVE, "; ".join(map(_standing, leases.supervisors)))
    loop.call_later(ALIVE_S, of_life, recorder, leases, loop)


def _standing(supervisor: LockspaceSupervisor) -> str:
    left = f", {supervisor.fails_in_s:.0f} s until its lease fails" if supervisor.fails_in_s else ""
    return f"{supervisor.name}: {supervisor.state.name.lower()}{left}"
