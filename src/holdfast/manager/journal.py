"""The journal: who owns what, written before it is answered, so that the next daemon knows.

One JSON array per line in RUN_DIR/journal: a kind, then its fields in order. Replaying the lines gives the state; when the
file has grown well past the state, it is rewritten. A claim is recorded after its lock is taken and before the client gets
the answer; its end is recorded before the lock is released. So at whatever moment the daemon is killed, the journal has
every lock that was granted to a client, and no lock whose release was confirmed:

    take lock │ journal "claim" │ answer            killed before the answer: no client has it
    journal "unclaim" │ release │ answer            killed before the release: the kernel releases it

The first line names the boot: owners of another boot are dead.

Each append ends with a checksum of its lines, so that a journal that was damaged, cut inside an append or written by
another version is recognized (`SavedState.is_whole`). Such a journal may prove that a lock was held, never that none is.
VERSION stays 1 and new facts are new kinds of lines, because an older daemon skips a kind that it does not know, but takes
another version for an earlier boot and frees everything.
"""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections.abc import Callable, Sequence

import msgspec

from holdfast.manager.journal_extent import Extent, decode_extent, encode_extent
from holdfast.manager.journal_kinds import (
    VERSION,
    Line,
    SeriesLine,
    StartLine,
)
from holdfast.manager.journal_replay import SavedState, replay_with_extent
from holdfast.system.files.append_file import AppendFile
from holdfast.system.files.fixed_record import FixedRecord

log = logging.getLogger(__name__)

COMPACT_LINES_MIN = 4096
"""Lines that are always allowed: below this, rewriting saves too little."""
COMPACT_FACTOR = 4
"""Rewrite when there are this many times more lines than the state needs: amortised, four writes a line."""

_encoder = msgspec.json.Encoder()
_FIRST = b'["sum",0]\n'
"""The first line, which shows that a journal without any other checksum was cut. An older daemon wrote none at all."""


def image(lines: list[Line]) -> bytes:
    """A whole journal of these lines, of which the first is a `StartLine`; checksum included."""
    return _FIRST + _encode_lines(lines)


def _encode_lines(lines: Sequence[Line]) -> bytes:
    raw = _encoder.encode_lines(lines)
    return b'%b["sum",%d]\n' % (raw, zlib.crc32(raw))


class Journal:
    """Appends lines, and rewrites the file from `snapshot` when it has outgrown the state. `extent`: the file with the
    journal's length; without one, a journal that lost its end may seem whole.
    """

    def __init__(
        self,
        file: AppendFile,
        *,
        boot: str,
        host: str,
        snapshot: Callable[[], list[Line]],
        extent: FixedRecord | None = None,
    ) -> None:
        self._file = file
        self._start = StartLine(VERSION, boot, host)
        self._snapshot = snapshot
        self._extent = extent
        self._series = 0
        """0 while no extent is kept."""
        self._last_series = 0
        self._last_bytes = 0
        """At least so long is the journal of that series: what the extent says until the next one is in the file."""
        self._lines = 0
        self._lines_max = COMPACT_LINES_MIN
        self._lacks_an_end = False
        """Whether the file names a claim, or an owner, that has ended: every line tries to rewrite it."""
        self._failed_bytes = 0
        self._is_cut = False
        self.failing = ""
        """Why the journal cannot be written at the moment; empty if it can."""

    def load(self) -> SavedState:
        """Read the last daemon's journal; the file itself is kept until `compact`."""
        record = self._extent.read() if self._extent is not None else b""
        kept = decode_extent(record)
        if kept is not None:
            self._last_series = kept.series
            self._last_bytes = kept.size_bytes if kept.boot == self._start.boot else 0
        try:
            raw = self._file.read()
        except OSError as e:
            # As `holdfast status` shows it, until a line could be written.
            self.failing = e.strerror or str(e)
            return SavedState(damage=f"it can't be read: {self.failing}")
        # If rewriting fails, a line appended after one that was cut must not become part of it.
        self._is_cut = bool(raw) and not raw.endswith(b"\n")
        state = replay_with_extent(raw, record)
        if state.series and (kept is None or kept.boot != state.boot):
            # Nothing vouches for its length: no later extent may, if it can't be rewritten.
            self._last_series, self._last_bytes = max(state.series, self._last_series) + 1, 0
        elif state.series > self._last_series:
            self._last_series, self._last_bytes = state.series, len(raw)
        return state

    def append(self, *lines: Line, urgent: bool = False) -> None:
        """Record lines, all or none; raises OSError. Urgent lines may use the reserved room on a full disk.

        If the file is due to be rewritten, that happens *before* the lines: their changes may not be in the snapshot yet.
        They may also be there already, so replaying a line twice, or the end of an unknown claim, must do no harm.
        """
        if self._lacks_an_end or self._lines > self._lines_max:
            self.compact()
        raw = _encode_lines(lines)
        try:
            try:
                self._file.append(b"\n" + raw if self._is_cut else raw, urgent=urgent)
            except OSError as full:
                self._make_room(full)
                self._file.append(raw, urgent=urgent)
        except OSError as e:
            if not self.failing:
                log.error("the journal can't be written: %s; no new lock is granted until it can", e)
            self.failing = e.strerror or str(e)
            is_full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            self._failed_bytes = len(raw) if is_full else 0  # a shorter line may still fit a full disk
            raise
        self._is_cut = False
        if self._file.is_short:
            if not self.failing:
                log.error(
                    "the journal's disk is full: no new lock is granted until it can be written; VMs that had locks get "
                    "them back for a while"
                )
            self.failing = self.failing or os.strerror(errno.ENOSPC)
        elif self.failing and len(raw) >= self._failed_bytes:
            log.warning("the journal can be written again")
            self.failing = ""
        self._lines += len(lines) + 1
        self._record_extent()

    def _record_extent(self) -> None:
        if self._series and self._extent is not None:
            try:
                self._extent.write(
                    encode_extent(Extent(self._start.boot, self._series, self._file.size_bytes))
                )
            except OSError as e:
                # The journal is longer than its extent, which is valid; only a lost end would not be noticed.
                log.error("how far the journal goes can't be recorded: %s", e)
                self._series = 0
            else:
                self._last_bytes = self._file.size_bytes

    def _make_room(self, full: OSError) -> None:
        before = self._file.size_bytes
        self.compact()
        if self._file.size_bytes >= before:
            raise full

    def append_end(self, *lines: Line) -> None:
        """Record that something ended. If that fails the end still counts: the journal then has too many claims, and is
        rewritten as soon as that works.
        """
        try:
            self.append(*lines, urgent=True)
        except OSError:
            self._lacks_an_end = True

    def image(self, lines: list[Line]) -> bytes:
        """A whole journal with these lines, checksum included."""
        return image([self._start, *lines])

    def compact(self) -> bool:
        """Rewrite the file from the live state; whether that worked. If not, the old file stays in use."""
        lines = self._snapshot()
        series = self._next_series()
        head: list[Line] = [SeriesLine(series)] if series else []
        try:
            self._file.replace(self.image([*head, *lines]))
        except OSError as e:
            log.error("the journal can't be rewritten: %s", e)
            if not self._lines:  # the last daemon's, which may name what was over before this one started
                self._lacks_an_end = True
            self._lines_max = self._lines + COMPACT_LINES_MIN
            return False
        self._is_cut = self._lacks_an_end = False
        self._lines = 2 + len(head) + len(lines)
        self._lines_max = max(COMPACT_LINES_MIN, COMPACT_FACTOR * self._lines)
        self._series = series
        if series:
            self._last_series, self._last_bytes = series, self._file.size_bytes
        self._record_extent()
        return True

    def _next_series(self) -> int:
        """0 if no extent can be kept: a journal with a series and without its extent counts as damaged. The extent goes on
        saying what it says of the journal that is there: rewriting may fail, and its end may be lost later.
        """
        if self._extent is None:
            return 0
        try:
            self._extent.write(encode_extent(Extent(self._start.boot, self._last_series, self._last_bytes)))
        except OSError as e:
            log.error("how far the journal goes can't be recorded: %s", e)
            return 0
        return self._last_series + 1
