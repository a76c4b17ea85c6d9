"""Maintenance of a host: what it refuses, and how it is remembered."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from holdfast.errors import Refused
from holdfast.manager.events import Events
from holdfast.manager.maintenance import DAMAGED, Maintenance
from holdfast.model import OwnerName
from holdfast.system.files.state_file import StateFile

WEB1 = OwnerName("web1", "u")


class FullDisk(StateFile):
    def replace(self, raw: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def at(path: Path, events: Events | None = None) -> Maintenance:
    return Maintenance(StateFile(str(path)), events or Events(lambda: 1000.0), lambda: 1000.0)


def test_refusal_says_since_when_by_whom_why_and_how_it_ends(tmp_path: Path) -> None:
    events = Events(lambda: 1000.0)
    maintenance = at(tmp_path / "m", events)
    maintenance.must_not_begin(WEB1, 7)
    maintenance.begin("jane", "new memory")
    with pytest.raises(
        Refused, match=r"web1 .* in maintenance since .*, by jane: new memory; .*: holdfast maintenance off"
    ):
        maintenance.must_not_begin(WEB1, 7)
    assert [(e.kind, e.pid) for e in events.recent()] == [("maintenance-begun", 0), ("refused", 7)]
    maintenance.end("joe")
    maintenance.must_not_begin(WEB1, 7)
    assert events.recent()[-1].detail == "by joe"


def test_next_daemon_knows_it_and_a_second_order_changes_nothing(tmp_path: Path) -> None:
    at(tmp_path / "m").begin("jane", "new memory")
    again = at(tmp_path / "m")
    again.begin("joe", "")
    assert again.ordered is not None
    assert (again.ordered.by, again.ordered.reason, again.ordered.since) == ("jane", "new memory", 1000.0)
    again.end("joe")
    assert at(tmp_path / "m").ordered is None


def test_order_that_cannot_be_recorded_is_none(tmp_path: Path) -> None:
    maintenance = Maintenance(FullDisk(str(tmp_path / "m")), Events(lambda: 0.0), lambda: 0.0)
    with pytest.raises(OSError, match="No space"):
        maintenance.begin("jane", "")
    maintenance.must_not_begin(WEB1)


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"since": 1}', b"\xff\x00"])
def test_record_that_is_damaged_counts_as_an_order(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(Refused, match=DAMAGED):
        at(tmp_path / "m").must_not_begin(WEB1)
    at(tmp_path / "m").end("jane")
    at(tmp_path / "m").must_not_begin(WEB1)
