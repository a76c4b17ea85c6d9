"""The life of one daemon over its `Parts`, in the order that safety requires; used by the daemon and the simulator.

start    adopt: owners ─ leases resumed ─ locks │ begin: journal compacted │ clients are served │ account_for_left_behind
reload   ask why not │ pause: no new requests, present ones end │ Handover.state │ exec; if that fails: go_on
stop     no new requests ─ present ones end ─ unused lockspaces are left ─ journal compacted
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from holdfast.daemon.build import Parts
from holdfast.daemon.lockspaces import TimeLeft
from holdfast.manager import events as ev
from holdfast.manager.identity_locks import disks
from holdfast.system.block_io.request_gate import listed

log = logging.getLogger("holdfast")

IN_FLIGHT_WAIT_S = 2.0
"""How long a re-exec or a stop waits for requests to storage; remaining ones are repeated or undone."""
START_SHARE_MAX = 0.5
"""Of the time that is left, for the dry run of the next program: a start does the same, adopts, and reads storage too."""
LEASE_LOOK_S = 0.1
"""Between two checks whether a lease has been renewed."""
IN_FLIGHT_PAUSE_S = 0.01
"""Between two checks whether requests are still under way; most end in a few milliseconds."""


class Paused(Protocol):
    """A connection that takes no further request for a while."""

    @property
    def busy(self) -> bool: ...
    def hold(self) -> None: ...
    def go_on(self) -> None: ...


async def adopt(parts: Parts) -> None:
    """Take over what an earlier daemon left."""
    await parts.handover.adopt(parts.inherited, parts.journal.load(), journal_path=parts.config.journal_path)


def begin(parts: Parts) -> None:
    """After `adopt`, right before clients are served: rewrite the journal, so that it has exactly what is held now."""
    parts.journal.compact()
    if parts.volumes is not None:
        parts.volumes.adopted(journal_is_whole=not parts.manager.doubt)


def account_for_left_behind(parts: Parts) -> None:
    """After `begin`, not earlier: all restored locks have to be in the table."""
    parts.collector.begin()
    parts.rereading.begin()
    parts.moved.begin()
    parts.identities.begin()
    if parts.volumes is not None:
        parts.volumes.begin(parts.ports.status)


async def reload(
    parts: Parts,
    *,
    why_not: Callable[[], Awaitable[list[str]]],
    execute: Callable[[], None],
    busy: Callable[[], bool] = lambda: False,
    clients: Collection[Paused] = (),
    feeds_first: Callable[[], bool] = lambda: True,
) -> list[str]:
    """Become the program on disk, if it may take over; else resume service, and return the reasons.

    `why_not` asks it, and returns its reasons. `execute` does not return unless it raises OSError. `busy` reports requests
    that came by other ways than connections. `clients`: connections beside libvirt's, as they are at each moment.
    `feeds_first`: whether the program on disk feeds the watchdog from its first moment on, once `why_not` has asked it.
    """
    reasons = await _reload(parts, why_not, execute, busy, clients, feeds_first)
    for reason in reasons:
        log.error("reload refused: %s", reason)
    return reasons


async def _reload(
    parts: Parts,
    why_not: Callable[[], Awaitable[list[str]]],
    execute: Callable[[], None],
    busy: Callable[[], bool],
    clients: Collection[Paused],
    feeds_first: Callable[[], bool],
) -> list[str]:
    gate = parts.ports.gate
    # Don't pause all requests if one of them hangs already.
    if why := parts.leases.why_not_reexec() or listed(gate.inside(at_least_s=IN_FLIGHT_WAIT_S)):
        return [why]
    clock = parts.ports.clock
    asked_at = clock.now()
    if reasons := await why_not():
        return reasons
    check_s = clock.now() - asked_at
    armed = parts.leases.armed_watchdog()
    if armed is not None and (why := slow_start(check_s, armed.armed_with[2], feeds_first=feeds_first())):
        return [why]
    if why := await _wait_for_young_leases(parts, check_s):
        return [why]
    await _pause(parts, busy, clients)
    try:
        if why := await _close_gate(parts) or old_leases(check_s, parts.leases.time_left()):
            return [why]
        log.info("re-executing with %d locks", len(parts.manager.table))
        execute()
    except OSError as e:
        return [f"re-exec failed: {e}; going on as before"]
    finally:
        gate.open()
        for connection in (*parts.virtlockd.connections, *clients):
            connection.go_on()
    return ["re-exec failed; going on as before"]


async def _wait_for_young_leases(parts: Parts, check_s: float) -> str:
    """Wait for the next renewals, if the leases are too old for a start of that length and young ones are not."""
    clock, left = parts.ports.clock, parts.leases.time_left()
    until = clock.now() + (left.renewal_s if left is not None else 0.0)
    while (why := old_leases(check_s, left)) and clock.now() < until:
        if left is not None and old_leases(check_s, left._replace(now_s=left.renewed_s)):
            break
        await clock.sleep(LEASE_LOOK_S)
        left = parts.leases.time_left()
    return why


def old_leases(check_s: float, left: TimeLeft | None) -> str:
    """Why a program that took so long for its dry run would lose a lease that VMs depend on, or empty.

    From exec on nobody renews until it has adopted all. What the watchdog needs it has by the leases' own bounds (ADR 0242).
    """
    if left is None or check_s <= left.now_s * START_SHARE_MAX:
        return ""
    return (
        f"the program on disk took {check_s:.1f} s to start, and a lease that VMs depend on fails in {left.now_s:.1f} s "
        "unless it is renewed: reload when the host is less busy, or give its lockspace a longer io_timeout_s "
        "(docs/situations/changing-timeouts.md)"
    )


def slow_start(check_s: float, fire_timeout_s: int, *, feeds_first: bool) -> str:
    """Why a program that took so long for its dry run may not take over, or empty.

    From exec on nobody feeds the watchdog until the next program does: one that feeds first does so in a small part of its
    start, an earlier release when it has adopted all. Its dry run shows what a start takes on this host at this moment.
    """
    if not fire_timeout_s:
        return ""  # an earlier release did not say it
    if check_s <= fire_timeout_s * (1.0 if feeds_first else START_SHARE_MAX):
        return ""
    return (
        f"the program on disk took {check_s:.1f} s to start, and the watchdog resets this host when nobody feeds it for "
        f"{fire_timeout_s} s: reload when the host is less busy, or give it a longer fire_timeout_s (docs/situations/"
        "changing-timeouts.md)"
    )


async def _close_gate(parts: Parts) -> str:
    """Let no request begin from now on; returns those that have not ended in time, for which exec would wait."""
    gate, clock = parts.ports.gate, parts.ports.clock
    gate.close()
    until = clock.now() + IN_FLIGHT_WAIT_S
    while (inside := gate.inside()) and clock.now() < until:
        await clock.sleep(IN_FLIGHT_PAUSE_S)
    return listed(inside)


async def _pause(parts: Parts, busy: Callable[[], bool], clients: Collection[Paused]) -> None:
    """Stop reading requests from connections, and give those under way a little time to end."""
    clock, connections = parts.ports.clock, parts.virtlockd.connections
    for connection in (*connections, *clients):
        connection.hold()
    deadline = clock.now() + IN_FLIGHT_WAIT_S
    while (busy() or any(c.busy for c in (*connections, *clients))) and clock.now() < deadline:
        await clock.sleep(IN_FLIGHT_PAUSE_S)


async def stop(parts: Parts, close: Callable[[], None], *, restarts: bool = False) -> None:
    """Leave: locks end with this process (unless a descriptor store keeps them), VMs and the journal stay.

    `close` closes listeners and connections, after no new request may begin. `restarts`: the next daemon follows.
    """
    manager = parts.manager
    clients_live = any(owner.registered and owner.alive() for owner in manager.owners)
    parts.events.emit(ev.DAEMON_STOPPING, pid=parts.ports.pid)
    log.info("stopping; %d locks stay in the journal, no VM is touched", sum(1 for _ in disks(manager.table)))
    manager.closing = True
    close()
    if parts.volumes is not None:
        parts.volumes.stop()
    # Locks of an owner that has just ended are being released, which needs the lockspace.
    await parts.ports.all_ended(IN_FLIGHT_WAIT_S)
    await parts.leases.stop(clients_stay=restarts and clients_live)
    parts.journal.compact()
