"""Notes of the flight recorder: one JSON object per line, in two files that are bounded.

    STATE_DIR/flight/latest.jsonl     appended to; at FILE_BYTES_MAX it is renamed to
    STATE_DIR/flight/before.jsonl     which is replaced

Each daemon begins with a note of kind START, which names the boot, and so does each new file. A line that is damaged, or was
cut by a reset, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.system.files.regular_file import Unreadable, read_regular

DIRECTORY = "flight"
LATEST, BEFORE = "latest.jsonl", "before.jsonl"
FILE_BYTES_MAX = 2 << 20
"""Of one file: some 10 000 notes, which is weeks of a quiet host."""
TEXT_CHARS_MAX = 1000
"""Of one note: a longer text is cut."""

START = "recorder-started"
"""A daemon began, or a file: `boot` is this boot's."""
ALIVE = "alive"
"""A sign of life, with the state of the lockspaces."""
LOG = "log"
"""A line of the log."""
LEFT_OUT = "notes-left-out"
"""More notes of one kind than are kept, or than could be written in time."""


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One note. `at`: seconds since 1970; `kind`: one of those above, or of an event (`manager/events`)."""

    at: float
    kind: str
    text: str = ""
    level: str = ""
    """Of a line of the log."""
    vm: str = ""
    disk: str = ""
    boot: str = ""
    """The kernel's name for its boot, of a START."""


def encode(notes: Sequence[Note]) -> bytes:
    """A line for each."""
    return _encoder.encode_lines(notes)


def decode(raw: bytes) -> list[Note]:
    """Every line that is a note, in order; the others are left out."""
    found = []
    for line in raw.splitlines():
        try:
            found.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def read(state_dir: str) -> list[Note] | Unreadable:
    """All notes, the oldest first; why there are none. Each file may be a little longer than its bound."""
    latest, before = (
        read_regular(f"{state_dir}/{DIRECTORY}/{name}", 2 * FILE_BYTES_MAX) for name in (LATEST, BEFORE)
    )
    if isinstance(latest, Unreadable):
        if not latest.missing or isinstance(before, Unreadable):
            return latest
        latest = b""  # the host went down between two files
    return decode((b"" if isinstance(before, Unreadable) else before) + latest)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Note)
