"""What storage says before a lockspace is joined: as which host id and incarnation, and whether this host may join at all.

It runs on the renewal thread, over the disk that the renewal uses; nothing is written here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.protocol.lockspace_area import Corrupt, open_area
from holdfast.protocol.ports import Clock, Disk
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import IoFailed
from holdfast.supervision.host_identity import HostIdChooser, Incarnation, JoinPlan
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.join_errors import NotJoined, through_page_cache
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.system.block_io.renewal_threads import FoundDisk

log = logging.getLogger(__name__)


class LockspaceEntry:
    """One try to enter. `fences` returns whether this host is reset when it loses its lease."""

    def __init__(
        self,
        spec: LockspaceSpec,
        chooser: HostIdChooser,
        *,
        records: HostRecords | None,
        fences: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._chooser = chooser
        self._records = records
        self._fences = fences

    async def plan(
        self,
        disk: Disk,
        clock: Clock,
        term: Incarnation | None,
        *,
        users_gone: bool,
        searches: bool,
    ) -> JoinPlan | NotJoined:
        area = await open_area(disk, self._spec.offset_bytes, self._spec.name, self._spec.timing.io_timeout_s)
        if isinstance(area, Corrupt):
            return NotJoined(
                f"{self._spec.path} holds no lockspace {self._spec.name}: {area.found}; {area.found.fix or _INIT}",
                cause=area.found,
            )
        if isinstance(area, IoFailed):
            return NotJoined(f"storage {self._spec.path} failed: errno {area.errno}", cause=area)
        if searches:
            log.error(
                "lockspace %s: no copy of this host's incarnation can be read; searching storage for it",
                self._spec.name,
            )
            return await self._chooser.search(area, clock, fences=self._fences())
        return await self._chooser.plan(area, clock, term, users_gone=users_gone)

    async def unfit(self, disk: FoundDisk, plan: JoinPlan, term: Incarnation | None) -> str:
        """Why storage or timeouts keep this host out; empty if they don't."""
        if not (disk.facts.direct or self._spec.page_cache):
            if plan.resumed is None:
                return through_page_cache(self._spec.path)
            # VMs depend on it already.
            log.error("lockspace %s: %s", self._spec.name, through_page_cache(self._spec.path))
        return await self._misfit(disk, plan.timing, term) if plan.resumed is None else ""

    async def _misfit(self, disk: Disk, timing: Timing, term: Incarnation | None) -> str:
        records = self._records
        if records is None or not records.differing(timing.fire_timeout_s):
            return ""
        area = await open_area(disk, self._spec.offset_bytes, self._spec.name, timing.io_timeout_s)
        if isinstance(area, Corrupt | IoFailed):
            return ""  # joining itself reports why
        return await records.misfit(area, timing, term)


_INIT = (
    "mount the storage, or make one with 'holdfast lockspace init'; over a damaged one, which other hosts may still be in, "
    "only when no VM depends on it on any host (--force)"
)
