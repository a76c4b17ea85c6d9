"""The flight recorder of a running daemon: notes go through a bounded queue to one thread, which writes them.

    event loop, any thread ──► queue (bounded) ──► thread "flight recorder" ──► STATE_DIR/flight/latest.jsonl
            never waits          full: counted          urgent: fdatasync, at once

A host whose lockspace is lost is reset by its watchdog `fire_timeout_s` later, and what was not synced by then is gone. So
notes of URGENT kinds, and errors of the log, are written and synced as soon as they come; others within WRITE_S, unsynced.

Of one kind at most KIND_MAX notes are kept in KIND_PERIOD_S, the rest is counted: a client that asks a thousand times a
second must not push the decisions of last week out of the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from holdfast.flight import notes as n
from holdfast.flight.notes import Note
from holdfast.model import printable
from holdfast.system.block_io.request_gate import GATE, RequestGate
from holdfast.system.files.regular_file import open_regular, write_all
from holdfast.system.logs.log_lines import FACTS_ATTRIBUTE

log = logging.getLogger(__name__)

QUEUE_MAX = 4000
"""Notes that wait to be written, while the disk of STATE_DIR is slow or hangs."""
WRITE_S = 1.0
"""How long a note that is not urgent waits for others."""
FLUSH_S = 1.0
"""How long an ending or re-executing daemon waits for its last notes."""
KIND_MAX, KIND_PERIOD_S = 100, 10.0
DECIDERS = ("holdfast.supervision", "holdfast.lease_admin", "holdfast.daemon")
"""Whose routine log lines (INFO) are kept, too."""
URGENT = frozenset((
    "lockspace-lost",
    "lease-lost",
    "lock-lost",
    "owner-stopped",
    "host-reset-awaited",
    "watchdog-unfed",
    "daemon-stopping",
))  # fmt: skip
"""Kinds that must outlive a reset which comes right after them."""
KINDS_OF_LOG = frozenset(("watchdog-unfed", "watchdog-fed"))
"""Kinds that lines of the log have and no event: those of events are not noted twice."""


class KindLimit:
    """How many notes of each kind may be kept now. Without a lock."""

    def __init__(self, kind_max: int = KIND_MAX, period_s: float = KIND_PERIOD_S) -> None:
        self._max, self._period_s = kind_max, period_s
        self._kinds: dict[str, tuple[float, int, int]] = {}
        """By kind: when its period began, how many were kept and how many left out since."""

    def admits(self, kind: str, now_s: float) -> tuple[bool, int]:
        """Whether a note of this kind is kept, and how many were left out in the period that has just ended."""
        began_s, kept, left_out = self._kinds.get(kind, (now_s, 0, 0))
        owed = 0
        if now_s - began_s >= self._period_s:
            began_s, kept, left_out, owed = now_s, 0, 0, left_out
        admitted = kept < self._max
        self._kinds[kind] = (began_s, kept + admitted, left_out + (not admitted))
        return admitted, owed


class FlightRecorder(logging.Handler):
    """A handler for the root logger that never waits; events come by `note`. Its thread is a daemon thread.

    `boot`: the kernel's name for its boot; `wall`: seconds since 1970.
    """

    def __init__(
        self,
        state_dir: str,
        boot: str,
        *,
        wall: Callable[[], float] = time.time,
        gate: RequestGate = GATE,
        file_bytes_max: int = n.FILE_BYTES_MAX,
    ) -> None:
        super().__init__(logging.INFO)
        self._directory = f"{state_dir}/{n.DIRECTORY}"
        self._boot = boot
        self._wall = wall
        self._bytes_max = file_bytes_max
        self._gate = gate
        self._changed = threading.Condition()
        self._queue: deque[Note] = deque()
        self._urgent = False
        self._writing = False
        self._limit = KindLimit()
        self._lost = 0
        self._fd = -1
        self._size = 0
        self.failing = ""
        """Why notes can't be written now; empty if they can."""

    def start(self) -> None:
        """Begin to write; the first note says which boot it is. The file is opened here, before anybody is served, so
        that the number of descriptors does not grow later.
        """
        with contextlib.suppress(OSError):  # the thread tries again, and says why
            self._open()
        self.note(n.START, "holdfastd begins")
        threading.Thread(target=self._write_all, name="flight recorder", daemon=True).start()

    def problems(self) -> list[str]:
        """For `holdfast status`."""
        why = self.failing
        return [f"the flight recorder ({self._directory}) can't be written: {why}"] if why else []

    # --- any thread ---

    def note(self, kind: str, text: str = "", *, vm: str = "", disk: object = "", level: str = "") -> None:
        """Queue one note; never waits and never raises. Where it is left out, it costs next to nothing."""
        at = self._wall()
        with self._changed:
            admitted, left_out = self._limit.admits(kind, at)
            if left_out:
                said = f"{left_out} more notes of kind {kind} in {KIND_PERIOD_S:.0f} s"
                self._queue.append(Note(at=at, kind=n.LEFT_OUT, text=said))
            if not admitted and kind not in URGENT:
                return
            if len(self._queue) >= QUEUE_MAX:
                self._lost += 1
                return
            self._queue.append(
                Note(
                    at=at,
                    kind=kind,
                    text=_short(text),
                    level=level,
                    vm=_short(vm),
                    disk=_short(str(disk)),
                    boot=self._boot if kind == n.START else "",
                )
            )
            self._urgent |= kind in URGENT or level in ("ERROR", "CRITICAL")
            self._changed.notify_all()

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log: what events have said already is left out, and routine lines of others than DECIDERS."""
        if record.name == __name__ or (
            record.levelno < logging.WARNING and not record.name.startswith(DECIDERS)
        ):
            return
        facts = dict(getattr(record, FACTS_ATTRIBUTE, ()))
        kind = facts.get("EVENT", n.LOG)
        if kind != n.LOG and kind not in KINDS_OF_LOG:
            return
        try:
            text = record.getMessage()
        except Exception:  # a wrong format string: the log says so
            return
        self.note(kind, text, level=record.levelname, vm=facts.get("VM", ""), disk=facts.get("DISK", ""))

    def hurry(self) -> None:
        """What is queued is written and synced now; never waits. Before a re-exec, which closes the gate."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written and synced, for FLUSH_S at most; not behind a closed gate, as a re-exec goes on."""
        until = time.monotonic() + FLUSH_S
        self.hurry()
        with self._changed:
            while (self._queue or self._writing) and not self._gate.closed:
                if (left_s := until - time.monotonic()) <= 0:
                    return
                self._changed.wait(left_s)

    # --- its thread ---

    def _write_all(self) -> None:
        place = self._gate.place("flight recorder")
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                if not self._urgent:
                    self._changed.wait_for(lambda: self._urgent, WRITE_S)
                notes, urgent = list(self._queue), self._urgent
                lost, self._lost = self._lost, 0
                self._queue.clear()
                self._urgent, self._writing = False, True
            if lost:
                notes.append(
                    Note(at=notes[-1].at, kind=n.LEFT_OUT, text=f"{lost} notes could not be written in time")
                )
            place.enter()
            try:
                self._write(n.encode(notes), sync=urgent)
                self.failing = ""
            except OSError as e:
                if not self.failing:
                    log.error(
                        "the flight recorder can't be written: %s: %s", self._directory, e.strerror or e
                    )
                self.failing = e.strerror or str(e)
            finally:
                place.leave()
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write(self, raw: bytes, *, sync: bool) -> None:
        """Append; open or rotate the file before, if that is due. Raises OSError."""
        if self._fd < 0:
            self._open()
        if self._size + len(raw) > self._bytes_max:
            self._rotate()
        try:
            write_all(self._fd, raw)
        except OSError:
            self._close()  # perhaps it has a part of the last line
            raise
        self._size += len(raw)
        if sync:
            os.fdatasync(self._fd)

    def _open(self) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = f"{self._directory}/{n.LATEST}"
        self._fd = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._size = os.fstat(self._fd).st_size
        if self._size:
            # A reset may have cut the last line: the next one must not become part of it.
            write_all(self._fd, b"\n")
            self._size += 1

    def _rotate(self) -> None:
        self._close()
        os.rename(f"{self._directory}/{n.LATEST}", f"{self._directory}/{n.BEFORE}")
        self._open()
        first = n.encode([Note(at=self._wall(), kind=n.START, text="a file begins", boot=self._boot)])
        write_all(self._fd, first)
        self._size += len(first)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)


def _short(text: str) -> str:
    return printable(text)[: n.TEXT_CHARS_MAX]
