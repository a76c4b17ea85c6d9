"""The hosts of a lockspace as one of them sees them, and how much must be read to see them.

The renewal's own read serves as the look at the others. Reading the sectors of all 2000 possible hosts for a cluster
of five would be a mebibyte per renewal; so a look goes a little beyond the greatest host id that was ever seen used, or
asked about, and a wide look over the whole area now and then finds newcomers beyond it. A host that was not looked at is
UNKNOWN, and who needs to know more reads its record itself: looking at few hosts costs time, never safety.
"""

from __future__ import annotations

import threading

from holdfast.ondisk.geometry import Geometry
from holdfast.protocol.host_status import Action, HostTable, HostView, Sampled, Ticked
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant
from holdfast.supervision.host_names import node_of

WIDE_LOOK_EVERY = 30
"""Every how many looks the whole area is read: each 10 minutes with the default io_timeout."""
NEWCOMERS = 8
"""So many ids beyond the greatest known one are in every look: newcomers mostly come next, and a request of one that
nobody looks at would be lost, since its bit stands for three renewals only."""


class PeerMonitor:
    """The table, fed by the renewal thread and asked from any thread."""

    def __init__(self, space_name: str, own_id: HostId, geometry: Geometry, timing: Timing) -> None:
        self._geometry = geometry
        self._table = HostTable(space_name, own_id, timing)
        self._lock = threading.Lock()
        self._watched = own_id
        self._looks = 0
        self._others_seen = False

    def hosts_to_read(self) -> int:
        """How many hosts, from the first one on, the next look shall cover."""
        wide = self._looks % WIDE_LOOK_EVERY == 0
        return self._geometry.hosts_max if wide else min(self._watched + NEWCOMERS, self._geometry.hosts_max)

    def looked(self, now: Instant, read_at: Instant, sectors: bytes) -> tuple[Action, ...]:
        """Take a look in; the state changes and notifications that it brought."""
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
        """What is known of a host; one that is asked about is looked at from now on."""
        with self._lock:
            if host_id <= self._geometry.hosts_max:
                self._watched = HostId(max(self._watched, host_id))
            return self._table.view(host_id, now)

    def beside_others(self, now: Instant) -> bool:
        """Whether a host whose name is none that Holdfast gives uses the lockspace, or has used it; true as well until
        the others were looked at.
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
            return tuple(view for view in each if view.generation or view.fault)


def _never_used(sector: bytes) -> bool:
    """No owner, no generation, no timestamp: not worth decoding, as most of 2000 ids are."""
    return not any(sector[32:48]) and not any(sector[152:160])
