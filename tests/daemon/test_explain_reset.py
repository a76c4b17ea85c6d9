"""`holdfast explain-reset` with real daemons: a boot whose notes end with an unfed watchdog, shown on two hosts."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.daemon.conftest import MakeHost
from tests.daemon.test_host_records import ONE, said, says
from tests.support.daemon import Holdfastd, called
from tests.support.polling import wait_until

from holdfast.cli import exits
from holdfast.flight import notes
from holdfast.flight.notes import ALIVE, START, Note

UNFED = "the watchdog is not fed any more: lockspace S may not be relied on"


def had_notes(host: Holdfastd, *kinds: tuple[str, str]) -> Holdfastd:
    """Of a boot before this one, which ended an hour ago."""
    at = time.time() - 3600
    kept = [Note(at=at, kind=START, boot="earlier")]
    kept += [Note(at=at + n, kind=kind, text=text) for n, (kind, text) in enumerate(kinds, 1)]
    place = host.directory / "state" / notes.DIRECTORY
    place.mkdir(parents=True)
    (place / notes.LATEST).write_bytes(notes.encode(kept))
    return host


def kinds_of(host: Holdfastd) -> list[str]:
    found = notes.read(str(host.directory / "state"))
    assert isinstance(found, list)
    return [note.kind for note in found]


def test_why_a_host_went_down_is_known_there_and_on_other_hosts(make_host: MakeHost, leases: Path) -> None:
    one, two = make_host("one", 1), make_host("two", 2)
    had_notes(
        one, (ALIVE, "S: joined"), ("lockspace-lost", "S: storage is silent"), ("watchdog-unfed", UNFED)
    )
    says(one.start(preexec_fn=called(ONE)), leases, 1)
    one.says("the last boot of this host: the watchdog had not been fed since")
    shown = one.cli("explain-reset")
    assert shown.returncode == exits.OK
    assert "so it reset this host" in shown.stdout and "S: storage is silent" in shown.stdout
    assert UNFED in shown.stdout and "S: joined" not in shown.stdout
    assert one.cli_json("explain-reset")["cause"] == "watchdog"
    record = said(leases, 1)
    assert record is not None and "S: storage is silent" in record.last_end
    says(two.start(), leases, 2)
    from_there = two.cli("explain-reset", ONE)
    assert from_there.returncode == exits.OK
    assert "of its boot before" in from_there.stdout and "S: storage is silent" in from_there.stdout
    nothing = two.cli("explain-reset")
    assert nothing.returncode == exits.UNKNOWN
    assert "has left notes" in nothing.stdout
    unknown = two.cli("explain-reset", "nobody")
    assert unknown.returncode == exits.UNKNOWN
    assert f"where these do: {ONE}, " in unknown.stderr
    assert two.cli_json("explain-reset", "nobody")["ok"] is False


def test_recorder_outlives_the_daemon_and_says_when_it_was_stopped(make_host: MakeHost, leases: Path) -> None:
    host = make_host("one", 1).start()
    says(host, leases, 1)
    wait_until(
        lambda: {START, ALIVE, "daemon-started", "lockspace-joined"} <= set(kinds_of(host)), "the notes"
    )
    host.kill(signal.SIGKILL)
    host.start()
    wait_until(lambda: kinds_of(host).count(START) == 2, "the second daemon's first note")
    host.kill(signal.SIGTERM)
    assert "daemon-stopping" in kinds_of(host)[-4:]
    (host.directory / "state" / notes.DIRECTORY / notes.LATEST).unlink()
    (host.directory / "state" / notes.DIRECTORY / notes.LATEST).mkdir()
    host.start()
    wait_until(lambda: "flight recorder" in str(host.cli_json("status")["problems"]), "the problem")
