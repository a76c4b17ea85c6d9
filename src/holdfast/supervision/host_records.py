"""Host records of a lockspace: writes this host's record at joining, and reads those of other hosts.

A delta lease has no room for a whole name, nor for the watchdog's fire timeout, from which others compute how long a silent
host may still write. The records (`ondisk.host_record`) have both. They inform people, and serve one rule: a host does not
join where the record of another host names another fire timeout (ADR 0191). A record that can't be read, or is of another
incarnation than the delta lease, is ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from holdfast import __version__
from holdfast.ondisk import host_record
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.host_record import HostRecord
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S, Timing
from holdfast.protocol.types import HostId
from holdfast.supervision.host_identity import HostIdentity, Incarnation
from holdfast.supervision.host_names import node_of
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.host_record_files import NO_PLACE, HostRecordFiles

log = logging.getLogger(__name__)

PAUSE_RENEWALS = 3
"""Between two reads of other hosts' records, and between two attempts to write this host's."""


class HostRecords:
    """The host records of the lockspace at `path`. On the event loop, except for `misfit`."""

    def __init__(
        self, lockspace: str, path: str, files: HostRecordFiles, identity: HostIdentity, last_end: str = ""
    ) -> None:
        """`last_end`: how this host's last boot ended, at most `host_record.END_BYTES_MAX` bytes."""
        self._lockspace = lockspace
        self._last_end = last_end
        self._trouble = ""
        self._present: Incarnation | None = None
        self._path = path
        self._files = files
        self._identity = identity
        self._found: Mapping[int, HostRecord] = {}
        self._reported: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self.has_place = True
        """Whether the lockspace is where records can be, as far as it is known."""
        self.unpublished = ""
        """Why this host's record is not there; empty if it is, or was not to be written yet."""
        self.misfits = ""
        """Hosts whose timeouts don't fit this one's, and what to do; empty if there are none."""

    def of(self, view: HostView) -> HostRecord | None:
        """The record of a host, if it is of the same incarnation as the view."""
        found = self._found.get(view.host_id)
        if found is None or found.generation != view.generation or found.host_name != view.name:
            return None
        return found

    async def refresh(self) -> None:
        """Read all records."""
        read = await self._files.read_all()
        if isinstance(read, str):
            self.has_place = read != NO_PLACE
            log.debug("lockspace %s: records of hosts can't be read: %s", self._lockspace, read)
            return
        self.has_place = True
        found = {host_id: host_record.decode(raw) for host_id, raw in read.items()}
        self._found = {
            host_id: record
            for host_id, record in found.items()
            if record is not None and record.host_id == host_id and record.lockspace == self._lockspace
        }

    def begin(self, tending: Coroutine[Any, Any, None]) -> None:
        """Run `tending` as a task; cancels that of an earlier incarnation."""
        if self._task is not None:
            self._task.cancel()
        self._task = eager_tasks.keep_watch(tending, "records of hosts are not looked after any more")

    async def tend(
        self,
        incarnation: Incarnation,
        *,
        views: Callable[[], Sequence[HostView]],
        is_present: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """Write this host's record and read the others' as long as this is the present incarnation."""
        published = False
        self._present = incarnation
        while is_present():
            published = published or await self.publish(incarnation)
            present = [view for view in views() if view.state not in (HostState.FREE, HostState.DEAD)]
            if self.has_place and any(self.of(view) is None for view in present):
                await self.refresh()
            self.misfits = self.report(present, incarnation.fire_timeout_s)
            await clock.sleep(PAUSE_RENEWALS * incarnation.timing.renewal_s)
        if self._present is incarnation:
            self._present = None

    async def tell(self, trouble: str) -> None:
        """Write at once what threatens this host elsewhere, while it is a member here; empty: nothing does any more."""
        changed, self._trouble = trouble != self._trouble, trouble
        if changed and self._present is not None:
            await self.publish(self._present)

    async def publish(self, incarnation: Incarnation) -> bool:
        """Write this host's record; False if it has to be tried again."""
        record = HostRecord(
            lockspace=incarnation.lockspace,
            host_id=incarnation.host_id,
            generation=incarnation.generation,
            host_name=incarnation.host_name,
            node=self._identity.node.encode("utf-8", "replace").decode() or "unknown",
            version=__version__,
            boot=incarnation.boot,
            io_timeout_s=incarnation.io_timeout_s,
            fire_timeout_s=incarnation.fire_timeout_s,
            identities=True,
            last_end=self._last_end,
            trouble=self._trouble,
        )
        before = self.unpublished
        self.unpublished = await self._files.replace(incarnation.host_id, host_record.encode(record))
        self.has_place = self.unpublished != NO_PLACE
        if self.has_place and self.unpublished and self.unpublished != before:
            log.warning(
                "lockspace %s: this host's record can't be written (%s: %s): other hosts can't tell its whole name and its "
                "fire timeout; nothing else depends on it",
                self._lockspace,
                host_record.path_of(self._path, incarnation.host_id),
                self.unpublished,
            )
        return not (self.has_place and self.unpublished)

    def differing(self, fire_timeout_s: int) -> list[HostRecord]:
        """The records that name another fire timeout, of present and of past incarnations."""
        return [each for each in self._found.values() if each.fire_timeout_s != fire_timeout_s]

    async def misfit(self, area: LockspaceArea, timing: Timing, own: Incarnation | None) -> str:
        """Why this host can't join with this timing: hosts that have not left name another fire timeout. Empty if it can.

        `own`: this host's last incarnation, of which nothing runs any more. Called on the joining thread, after `refresh`.
        """
        found = []
        for each in self.differing(timing.fire_timeout_s):
            if each.host_id > area.geometry.hosts_max or (
                own is not None and own.host_name == each.host_name
            ):
                continue
            record = await area.read_record(HostId(each.host_id), timing.io_timeout_s)
            if isinstance(record, DeltaLease) and each.is_about(record) and not record.is_free:
                found.append(each)
        if not found:
            return ""
        files = ", ".join(host_record.path_of(self._path, each.host_id) for each in found)
        return (
            f"{_DIFFER}: {', '.join(map(_says, found))}, and this host {timing.fire_timeout_s} s: set fire_timeout_s to the "
            f"same on all hosts of the lockspace; if such a host is gone for good, remove its record ({files})"
        )

    def report(self, views: Sequence[HostView], fire_timeout_s: int) -> str:
        """The present hosts whose records name another fire timeout, each logged once; empty if there are none.

        A host that joined before their records were written, or resumed with its VMs, can't be refused any more.
        """
        others = [
            _says(said)
            for view in views
            if (said := self.of(view)) is not None and said.fire_timeout_s != fire_timeout_s
        ]
        if fire_timeout_s < FIRE_TIMEOUT_DEFAULT_S:
            others += [_has_sanlock(view) for view in views if view.name and not node_of(view.name)]
        if not others:
            return ""
        text = (
            f"{_DIFFER}: {', '.join(others)}, and this host {fire_timeout_s} s: who has less takes over too early; set "
            "fire_timeout_s to the same on all hosts, 60 beside sanlock"
        )
        if not self._reported.issuperset(others):
            self._reported = set(others)
            log.error("lockspace %s: %s", self._lockspace, text)
        return text


_DIFFER = "watchdogs differ in their fire timeout"


def _says(record: HostRecord) -> str:
    return f"host {record.node} (host_id {record.host_id}) {record.fire_timeout_s} s"


def _has_sanlock(view: HostView) -> str:
    """Whether the host runs sanlock: it has no record, and its watchdog has sanlock's fire timeout."""
    return f"host {view.name} (host_id {view.host_id}), which has sanlock, {FIRE_TIMEOUT_DEFAULT_S} s"
