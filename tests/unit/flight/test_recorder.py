"""The flight recorder on real files: what is kept, what is bounded, and that nobody waits for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.flight import notes as n
from holdfast.flight.last_end import ROUTINE
from holdfast.flight.notes import Note
from holdfast.flight.recorder import (
    KIND_MAX,
    KIND_PERIOD_S,
    KINDS_OF_LOG,
    QUEUE_MAX,
    URGENT,
    FlightRecorder,
    KindLimit,
)
from holdfast.manager import events
from holdfast.system.block_io.request_gate import RequestGate
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.logs.log_lines import facts


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[FlightRecorder]:
    made = FlightRecorder(str(tmp_path), "boot-1", gate=RequestGate())
    made.start()
    yield made
    made.flush()


def kept(place: Path) -> list[Note]:
    found = n.read(str(place))
    assert isinstance(found, list), found
    return found


def test_notes_come_back_with_the_boot_before_them(recorder: FlightRecorder, tmp_path: Path) -> None:
    recorder.note("refused", "locked by\nweb2", vm="web1", disk="/srv/a\udc80")
    recorder.flush()
    start, note = kept(tmp_path)
    assert (start.kind, start.boot) == (n.START, "boot-1")
    assert (note.kind, note.text, note.vm, note.disk) == (
        "refused",
        "locked by\\nweb2",
        "web1",
        "/srv/a\\udc80",
    )
    assert (tmp_path / n.DIRECTORY / n.LATEST).stat().st_mode & 0o777 == 0o600


def test_urgent_note_is_synced_at_once(
    recorder: FlightRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.flush()
    synced: list[int] = []
    done = threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        synced.append(fd)
        done.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    recorder.note("acquired", "")
    time.sleep(0.05)
    assert not synced
    recorder.note("lockspace-lost", "S: silent")
    assert done.wait(30)
    assert [note.kind for note in kept(tmp_path)][-2:] == ["acquired", "lockspace-lost"]


def test_line_that_a_reset_has_cut_costs_that_line_only(tmp_path: Path) -> None:
    first = FlightRecorder(str(tmp_path), "boot-1", gate=RequestGate())
    first.start()
    first.note("refused", "one")
    first.flush()
    path = tmp_path / n.DIRECTORY / n.LATEST
    path.write_bytes(path.read_bytes()[:-9])
    second = FlightRecorder(str(tmp_path), "boot-2", gate=RequestGate())
    second.start()
    second.note("refused", "two")
    second.flush()
    assert [(note.kind, note.boot or note.text) for note in kept(tmp_path)] == [
        (n.START, "boot-1"),
        (n.START, "boot-2"),
        ("refused", "two"),
    ]


def test_files_are_bounded_and_each_names_the_boot(tmp_path: Path) -> None:
    recorder = FlightRecorder(str(tmp_path), "boot-1", gate=RequestGate(), file_bytes_max=4000)
    recorder.start()
    for number in range(60):
        recorder.note(f"kind{number}", "x" * 400)
        recorder.flush()
    sizes = {each.name: each.stat().st_size for each in (tmp_path / n.DIRECTORY).iterdir()}
    assert sizes.keys() == {n.LATEST, n.BEFORE}
    assert max(sizes.values()) <= 4000 + 200  # and its first note
    found = kept(tmp_path)
    assert found[0].boot == "boot-1"
    assert found[-1].kind == "kind59"
    assert [note.kind for note in found if note.kind != n.START] == [
        f"kind{k}" for k in range(60 - len(found) + 2, 60)
    ]


def test_lines_of_the_log(recorder: FlightRecorder, tmp_path: Path) -> None:
    records = (
        ("holdfast.supervision.renewal", logging.INFO, "joined", ""),
        ("holdfast.manager.acquire", logging.INFO, "routine", ""),
        ("holdfast.manager.acquire", logging.WARNING, "refused, as its event says", "refused"),
        ("holdfast.manager.journal", logging.WARNING, "can be written again", ""),
        ("holdfast.supervision.lease_monitor", logging.ERROR, "not fed", "watchdog-unfed"),
        ("holdfast.x", logging.ERROR, "wrong %d", ""),
    )
    for name, level, text, event in records:
        arguments = ("not a number",) if "%d" in text else ()
        record = logging.LogRecord(name, level, __file__, 0, text, arguments, None)
        record.__dict__.update(facts(event=event))
        recorder.handle(record)
    recorder.flush()
    assert [(note.kind, note.text) for note in kept(tmp_path)[1:]] == [
        (n.LOG, "joined"),
        (n.LOG, "can be written again"),
        ("watchdog-unfed", "not fed"),
    ]


def test_flood_of_one_kind_is_counted_and_pushes_nothing_out() -> None:
    limit = KindLimit()
    assert sum(limit.admits("refused", 0.0)[0] for _ in range(5 * KIND_MAX)) == KIND_MAX
    assert limit.admits("lockspace-lost", 0.0) == (True, 0)
    assert limit.admits("refused", KIND_PERIOD_S) == (True, 4 * KIND_MAX)
    assert limit.admits("refused", KIND_PERIOD_S) == (True, 0)


def test_disk_that_hangs_holds_up_nobody_and_losses_are_counted(tmp_path: Path) -> None:
    gate = RequestGate()
    recorder = FlightRecorder(str(tmp_path), "boot-1", gate=gate)
    gate.close()
    recorder.start()
    began = time.monotonic()
    for number in range(2 * QUEUE_MAX):
        recorder.note(f"kind{number}")
    recorder.flush()  # nothing can be written: it does not wait
    assert time.monotonic() - began < 10
    gate.open()
    recorder.flush()
    (text,) = [note.text for note in kept(tmp_path) if note.kind == n.LEFT_OUT]
    assert "could not be written in time" in text


def test_file_that_cannot_be_written_is_a_problem_and_is_tried_again(
    recorder: FlightRecorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.flush()
    place = tmp_path / n.DIRECTORY
    os.close(recorder._fd)
    recorder._fd = -1
    (place / n.LATEST).rename(place / "elsewhere")
    (place / n.LATEST).mkdir()
    for _ in range(2):
        recorder.note("refused")
        recorder.flush()
    (problem,) = recorder.problems()
    assert "can't be written" in problem and "a directory" in problem
    assert caplog.text.count("can't be written") == 1
    (place / n.LATEST).rmdir()
    recorder.note("refused", "again")
    recorder.flush()
    assert recorder.problems() == []
    assert kept(tmp_path)[-1].text == "again"


def test_no_notes_and_unreadable_notes(tmp_path: Path) -> None:
    nothing = n.read(str(tmp_path))
    assert isinstance(nothing, Unreadable) and nothing.missing
    (tmp_path / n.DIRECTORY / n.LATEST).mkdir(parents=True)
    odd = n.read(str(tmp_path))
    assert isinstance(odd, Unreadable) and not odd.missing
    (tmp_path / n.DIRECTORY / n.LATEST).rmdir()
    (tmp_path / n.DIRECTORY / n.BEFORE).write_bytes(n.encode([Note(at=1.0, kind="x")]) + b"{}\n\xff\n")
    assert [note.kind for note in kept(tmp_path)] == ["x"]


def test_kinds_that_the_recorder_and_its_verdict_name_are_those_of_events() -> None:
    assert set(events.KINDS) | KINDS_OF_LOG >= URGENT
    notes_of_ours = {n.ALIVE, n.START}
    assert set(events.KINDS) | notes_of_ours >= ROUTINE
    assert {events.DAEMON_STOPPING, events.LOCKSPACE_LOST, events.HOST_RESET_AWAITED} <= URGENT
