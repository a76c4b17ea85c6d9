"""What the daemon counts and measures for `holdfast metrics` and holdfast-web, put together for the control socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from holdfast.control.api import HistogramInfo, LeaseSpaceMeasures, MeasuresInfo, RenewalInfo
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.manager.events import Events
from holdfast.supervision.lockspace_supervisor import LockspaceSupervisor
from holdfast.supervision.renewal import RenewalCounts, RenewalTimes
from holdfast.system.histogram import Histogram

LOOP_LOOK_S = 1.0
"""Between two timers by which the event loop's delay is measured."""
LOOP_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class LoopDelay:
    """Measures how late the event loop calls a timer: so long every request of libvirt's would have waited."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.delays = Histogram(LOOP_BOUNDS_S)
        self._loop = loop

    def begin(self) -> None:
        # Not by the loop's own clock: that stands still while a callback runs.
        self._loop.call_later(LOOP_LOOK_S, self._called, time.monotonic() + LOOP_LOOK_S)

    def _called(self, due: float) -> None:
        self.delays.add(max(0.0, time.monotonic() - due))
        self.begin()


def measures(events: Events, loop_delay: LoopDelay, leases: HostLockspaces, now: float) -> MeasuresInfo:
    """`now`: seconds of the clock by which renewals are dated."""
    monitor = leases.lease_monitor
    watchdog = monitor if monitor is not None and monitor.fences else None
    return MeasuresInfo(
        events=dict(events.counts),
        loop_delay=_histogram(loop_delay.delays),
        watchdog_feeds=watchdog.feeds if watchdog is not None else 0,
        watchdog_fed_s_ago=watchdog.fed_s_ago if watchdog is not None else None,
        lockspaces=[_of_lockspace(each, now) for each in leases.supervisors],
    )


def _of_lockspace(supervisor: LockspaceSupervisor, now: float) -> LeaseSpaceMeasures:
    renewal = supervisor.renewal
    counts = renewal.counts if renewal is not None else RenewalCounts()
    history: Sequence[RenewalTimes] = tuple(renewal.history) if renewal is not None else ()
    return LeaseSpaceMeasures(
        name=supervisor.name,
        io_timeout_s=supervisor.timing.io_timeout_s,
        latency=_histogram(counts.latency),
        failures=counts.failures,
        recent=[
            RenewalInfo(
                s_ago=max(0.0, now - each.timestamp),
                read_ms=each.read_ms,
                write_ms=each.write_ms,
                failed_since=each.next_timeouts + each.next_errors,
            )
            for each in history
        ],
    )


def _histogram(found: Histogram) -> HistogramInfo:
    return HistogramInfo(bounds=list(found.bounds), counts=list(found.counts), sum_s=found.sum_s)
