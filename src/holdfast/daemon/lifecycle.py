"""The life of one daemon over its `Parts`, in the order that safety asks for; the daemon and the simulator go through it.

start    adopt: owners ─ leases go on ─ locks │ begin: journal compacted │ clients are served │ account_for_left_behind
reload   ask why not │ pause: nothing new begins, what is under way ends │ Handover.state │ exec; if that fails: go_on
stop     nothing new ─ what is under way ends ─ lockspaces are left that nobody uses ─ journal compacted
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from holdfast.daemon.build import Parts
from holdfast.manager import events as ev
from holdfast.system.block_io.request_gate import listed

log = logging.getLogger("holdfast")

IN_FLIGHT_WAIT_S = 2.0
"""How long a re-exec or a stop waits for requests that wait for storage; what is left is asked again or undone."""
IN_FLIGHT_PAUSE_S = 0.01
"""Between two questions whether requests are still under way; most end in a few milliseconds."""


async def adopt(parts: Parts) -> None:
    """Take over what an earlier daemon left."""
    await parts.handover.adopt(parts.inherited, parts.journal.load(), journal_path=parts.config.journal_path)


def begin(parts: Parts) -> None:
    """After `adopt`, right before clients are served: the journal says what is held now, and nothing else."""
    parts.journal.compact()


def account_for_left_behind(parts: Parts) -> None:
    """After `begin`. Not earlier: every lock that is to be held again has to stand in the table."""
    parts.collector.begin()
    parts.rereading.begin()
    parts.moved.begin()


async def reload(
    parts: Parts,
    *,
    why_not: Callable[[], Awaitable[list[str]]],
    execute: Callable[[], None],
    busy: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Become the program on disk, if it may take over; else go on as we are, and return the reasons.

    `why_not` asks it, and returns its reasons. `execute` does not return unless it raises OSError. `busy` reports requests
    that came by other ways than connections.
    """
    reasons = await _reload(parts, why_not, execute, busy)
    for reason in reasons:
        log.error("reload refused: %s", reason)
    return reasons


async def _reload(
    parts: Parts,
    why_not: Callable[[], Awaitable[list[str]]],
    execute: Callable[[], None],
    busy: Callable[[], bool],
) -> list[str]:
    gate = parts.ports.gate
    # A request that hangs by now is not worth a pause of all others.
    if why := parts.leases.why_not_reexec() or listed(gate.inside(at_least_s=IN_FLIGHT_WAIT_S)):
        return [why]
    if reasons := await why_not():
        return reasons
    await _pause(parts, busy)
    try:
        if why := await _close_gate(parts):
            return [why]
        log.info("re-executing with %d locks", len(parts.manager.table))
        execute()
    except OSError as e:
        return [f"re-exec failed: {e}; going on as before"]
    finally:
        gate.open()
        for connection in list(parts.virtlockd.connections):
            connection.go_on()
    return ["re-exec failed; going on as before"]


async def _close_gate(parts: Parts) -> str:
    """No request begins from now on; returns which ones have not ended in time, for exec would wait for them."""
    gate, clock = parts.ports.gate, parts.ports.clock
    gate.close()
    until = clock.now() + IN_FLIGHT_WAIT_S
    while (inside := gate.inside()) and clock.now() < until:
        await clock.sleep(IN_FLIGHT_PAUSE_S)
    return listed(inside)


async def _pause(parts: Parts, busy: Callable[[], bool]) -> None:
    """No connection takes a further request, and what is under way gets a little time to end."""
    clock, connections = parts.ports.clock, parts.virtlockd.connections
    for connection in list(connections):
        connection.hold()
    deadline = clock.now() + IN_FLIGHT_WAIT_S
    while (busy() or any(c.busy for c in connections)) and clock.now() < deadline:
        await clock.sleep(IN_FLIGHT_PAUSE_S)


async def stop(parts: Parts, close: Callable[[], None]) -> None:
    """Leave: locks end with this process (unless a descriptor store keeps them), VMs and the journal stay.

    `close` ends what serves clients, once nothing new is to begin.
    """
    manager = parts.manager
    parts.events.emit(ev.DAEMON_STOPPING, pid=parts.ports.pid)
    log.info("stopping; %d locks stay in the journal, no VM is touched", len(manager.table))
    manager.closing = True
    close()
    # What an owner that has just ended rested on is being given back: that needs the lockspace.
    await parts.ports.all_ended(IN_FLIGHT_WAIT_S)
    await parts.leases.stop()
    parts.journal.compact()
