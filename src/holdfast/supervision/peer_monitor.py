"""Monitors the other hosts of a lockspace, and decides how many sectors a renewal reads for that.

The renewal's own read also samples the other hosts. Reading the sectors of all 2000 possible hosts for a cluster of five
would be a mebibyte per renewal; so a sample goes a little beyond the greatest host id that was ever seen used, or asked
about, and a wide sample of the whole area now and then finds newcomers beyond it. A host that was not sampled is UNKNOWN;
callers that need to know more read its record themselves: small samples cost time, never safety.
"""

from __future__ import annotations

import threading

from holdfast.ondisk.geometry import Geometry
from holdfast.protocol.host_status import Action, HostState, HostTable, HostView, Sampled, Ticked
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant
from holdfast.supervision.host_names import node_of

WIDE_LOOK_EVERY = 30
"""Every 30th sample reads the whole area: each 10 minutes with the default io_timeout."""
NEWCOMERS = 8
"""Host ids beyond the greatest known one in every sample: newcomers usually take the next ids, and a newcomer's request
that is not sampled would be lost, since its bit stays for three renewals only."""


class PeerMonitor:
    """The table of hosts, updated by the renewal thread and read from any thread."""

    def __init__(self, space_name: str, own_id: HostId, geometry: Geometry, timing: Timing) -> None:
        self._geometry = geometry
        self._table = HostTable(space_name, own_id, timing)
        self._lock = threading.Lock()
        self._watched = own_id
        self._looks = 0
        self._others_seen = False

    def hosts_to_read(self) -> int:
        """How many hosts, from host id 1 on, the next sample covers."""
        wide = self._looks % WIDE_LOOK_EVERY == 0
        return self._geometry.hosts_max if wide else min(self._watched + NEWCOMERS, self._geometry.hosts_max)

    def count_by(self, timing: Timing) -> None:
        """This host's own bounds have grown: they stand for those of hosts that record none."""
        with self._lock:
            self._table.count_by(timing)

    def looked(self, now: Instant, read_at: Instant, sectors: bytes) -> tuple[Action, ...]:
        """Evaluate a sample; returns the state changes and notifications in it."""
        size = self._geometry.sector_bytes
        seen = {HostId(at // size + 1): sectors[at : at + size] for at in range(0, len(sectors), size)}
        with self._lock:
            self._looks += 1
            used = {h: s for h, s in seen.items() if h <= self._watched or not _never_used(s)}
            self._watched = HostId(max(self._watched, *used))
            return self._table.step(now, Sampled(read_at, used))

    def ticked(self, now: Instant) -> tuple[Action, ...]:
        with self._lock:
            return self._table.step(now, Ticked())

    def view(self, host_id: HostId, now: Instant) -> HostView:
        """What is known of a host; later samples include it."""
        with self._lock:
            if host_id <= self._geometry.hosts_max:
                self._watched = HostId(max(self._watched, host_id))
            return self._table.view(host_id, now)

    def beside_others(self, now: Instant) -> bool:
        """Whether a host with a name that Holdfast does not give uses or has used the lockspace; also true until the first
        sample.
        """
        if not self._others_seen:
            # A record that was never used has no name, and maybe a generation (ADR 0166).
            views = self.views(now)
            self._others_seen = any(view.fault or (view.name and not node_of(view.name)) for view in views)
        return self._others_seen or not self._looks

    def views(self, now: Instant) -> tuple[HostView, ...]:
        """All hosts that were ever seen to use an id."""
        with self._lock:
            each = (self._table.view(HostId(host_id), now) for host_id in range(1, self._watched + 1))
            return tuple(view for view in each if view.fault or (view.generation and _is_somebodys(view)))


def _is_somebodys(view: HostView) -> bool:
    """A record that was never used has no name, and a generation where Holdfast made the lockspace (ADR 0166)."""
    return bool(view.name) or view.state is not HostState.FREE


def _never_used(sector: bytes) -> bool:
    """No owner, no host's name, no timestamp, whatever its generation: not worth decoding, as most of 2000 ids are."""
    return not any(sector[32:40]) and not any(sector[104:152]) and not any(sector[152:160])
