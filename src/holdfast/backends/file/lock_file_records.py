"""Owner records in lock files: who of this host, or of another, has the lock (`owner_record` has their bytes)."""

from __future__ import annotations

import logging

from holdfast.backends.base import NotedOwner, OwnerNote
from holdfast.backends.file import owner_record
from holdfast.model import Holder, Mode, OwnerName, ProcessId
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import LockFiles

log = logging.getLogger(__name__)


class LockFileRecords:
    """Reads and writes them by the descriptor of an open lock file; on a storage thread. `host`: this one's name."""

    def __init__(self, files: LockFiles, clock: Clock, host: str) -> None:
        self._files = files
        self._clock = clock
        self._host = host

    def read(self, fd: int) -> list[Holder]:
        try:
            if self._files.size(fd) > owner_record.RECORD_FILE_BYTES_MAX:
                return []  # no lock file of ours: a disk
            return owner_record.decode(self._files.read(fd, owner_record.RECORD_FILE_BYTES_MAX))
        except OSError:
            return []

    def owner(self, fd: int) -> NotedOwner:
        """The owner of this host that a lock file names, if there is exactly one; storage thread."""
        ours = [h for h in self.read(fd) if h.host == self._host]
        return noted_by(ours[0]) if len(ours) == 1 else NotedOwner()

    def write(self, fd: int, mode: Mode, note: OwnerNote, disk: str, *, first: bool) -> bool:
        files = self._files
        try:
            if first:
                size = files.size(fd)
                if size > owner_record.RECORD_FILE_BYTES_MAX:
                    return False
                before = files.read(fd, size) if size else b""
                if not owner_record.is_ours(before):
                    return False
                self._warn_of_stale(owner_record.decode(before), mode)
            raw = owner_record.encode(
                note.owner,
                host=self._host,
                pid=note.pid,
                start_ticks=note.start_ticks,
                mode=mode,
                since_wall_s=self._clock.wall(),
                disk=disk,
            )
            offset = owner_record.slot_of(self._host, mode) * owner_record.SLOT_BYTES
            files.write(fd, raw, offset, truncate=mode is Mode.EXCLUSIVE)
        except OSError as e:  # a full disk must not refuse a lock that is already held
            log.warning("owner record not written: %s", e)
            return False
        return True

    def _warn_of_stale(self, holders: list[Holder], mode: Mode) -> None:
        """Warn: we have the lock, and the file still names an owner elsewhere, whose host or daemon has crashed."""
        for h in holders:
            if h.host != self._host and (mode is Mode.EXCLUSIVE or h.mode is Mode.EXCLUSIVE):
                log.warning(
                    "a lock file still named %s, who no longer has the lock: if host %s did not crash, "
                    "look there for a VM that runs without its lock manager",
                    h,
                    h.host,
                )

    def blank(self, fd: int, mode: Mode) -> None:
        try:
            offset = owner_record.slot_of(self._host, mode) * owner_record.SLOT_BYTES
            self._files.write(fd, owner_record.BLANK, offset, truncate=False)
        except OSError as e:
            log.warning("owner record not removed: %s", e)


def noted_by(holder: Holder) -> NotedOwner:
    process = ProcessId(holder.pid, holder.start_ticks) if holder.pid else None
    return NotedOwner(process, OwnerName(holder.name, holder.uuid), holder.disk)
