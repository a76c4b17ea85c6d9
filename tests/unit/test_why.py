"""`holdfast why` and the choice of events: the last trouble of a VM or a disk, and what mended it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from holdfast.cli.commands.events import Wanted, moment
from holdfast.cli.commands.why import MENDED, SENTENCES, ago, last_trouble, paragraph
from holdfast.cli.who.report import Answer
from holdfast.control.api import EventInfo
from holdfast.manager.events import KINDS

DISK = "/srv/web.img"
REFUSED = EventInfo(1, 1000.0, "refused", "web2", "u2", 12, DISK, "exclusive", "held by web1 on alpha")
GRANTED = replace(REFUSED, number=2, time=1060.0, kind="acquired", detail="")
OTHER = replace(GRANTED, owner="web1", owner_uuid="u1")
HELD = Answer(DISK, "held", "held by web1 (pid 11) on this host", "stop web1 first")


@pytest.mark.parametrize("what", ["web2", "u2", DISK, "/srv/../srv/web.img"])
def test_trouble_is_found_by_name_uuid_and_path(what: str) -> None:
    found = last_trouble([REFUSED], what)
    assert found is not None
    assert found.event is REFUSED
    assert found.mended is None


@pytest.mark.parametrize("what", ["web", "u", "/srv/web", "", "12"])
def test_part_of_a_name_is_another_subject(what: str) -> None:
    assert last_trouble([replace(REFUSED, owner_uuid="")], what) is None


def test_it_is_mended_by_the_same_owner_with_the_same_disk_alone() -> None:
    elsewhere = replace(GRANTED, resource="/srv/other.img")
    assert last_trouble([REFUSED, OTHER, elsewhere], DISK).mended is None  # type: ignore[union-attr]
    found = last_trouble([REFUSED, OTHER, GRANTED, replace(GRANTED, number=9)], "web2")
    assert found is not None
    assert found.mended is GRANTED


def test_the_last_trouble_counts_and_not_what_mended_one_before_it() -> None:
    again = replace(REFUSED, number=3, time=1100.0)
    found = last_trouble([REFUSED, GRANTED, again], "web2")
    assert found is not None
    assert found.event is again
    assert found.mended is None


def test_a_refused_start_is_mended_by_any_disk_of_that_vm() -> None:
    start = replace(REFUSED, resource="", mode="", pid=0, detail="this host is in maintenance")
    assert last_trouble([start, OTHER], "web2").mended is None  # type: ignore[union-attr]
    found = last_trouble([start, GRANTED], "web2")
    assert found is not None
    assert found.mended is GRANTED
    assert "web2 was refused its start. holdfastd said: this host is" in paragraph(found, None, 1120.0)


def test_paragraph_names_owner_disk_time_reason_holder_and_next_step() -> None:
    found = last_trouble([REFUSED], DISK)
    assert found is not None
    assert paragraph(found, HELD, 1120.0) == (
        "1970-01-01 00:16:40 UTC, 2 min ago: web2 (pid 12) was refused /srv/web.img (exclusive). "
        "holdfastd said: held by web1 on alpha. Now: held by web1 (pid 11) on this host.\n"
        "next: stop web1 first"
    )


def test_nothing_is_advised_for_what_is_well_again() -> None:
    found = last_trouble([REFUSED, GRANTED], DISK)
    assert found is not None
    shown = paragraph(found, HELD, 1120.0)
    assert "well again since 1970-01-01 00:17:40 UTC (acquired)" in shown
    assert shown.endswith("next: none: it is well again")


def test_control_characters_of_a_guests_name_are_not_printed() -> None:
    found = last_trouble([replace(REFUSED, owner="a\x1b[31m\nb")], DISK)
    assert found is not None
    shown = paragraph(found, None, 1120.0)
    assert "\x1b" not in shown
    assert "\n" not in shown


def test_every_kind_that_why_knows_is_one_that_the_daemon_emits() -> None:
    assert set(SENTENCES) | MENDED <= set(KINDS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s ago"), (59, "59 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (200000, "2 d ago")],
)
def test_spans_are_shown_by_their_greatest_unit(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 10_000 - 90),
        ("10min", 10_000 - 600),
        ("10 m", 10_000 - 600),
        ("2h", 10_000 - 7200),
        ("1d", 10_000 - 86400),
        ("1970-01-01 01:00:00 UTC", 3600),
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01 01:00+01:00", 0),
    ],
)
def test_moments(text: str, expected: float) -> None:
    assert moment(text, 10_000) == expected


def test_a_time_without_a_zone_is_of_this_hosts_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    try:
        assert moment("1970-01-02 03:00", 0) == 86400
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "10 weeks", "-5min", "2026-13-01", "5"])
def test_what_is_no_time_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="10min"):
        moment(text, 0)


def test_wanted_events() -> None:
    assert REFUSED in Wanted()
    assert REFUSED in Wanted(frozenset({"refused"}), 1000.0)
    assert REFUSED not in Wanted(frozenset({"acquired"}))
    assert REFUSED not in Wanted(since_s=1000.1)
