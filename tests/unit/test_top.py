"""`holdfast top`: what one screen shows, and what it leaves out where there is no room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.cli.commands.top import EVENTS_SHOWN, Picture, lines
from holdfast.control.api import EventInfo, HolderInfo, HostInfo, LeaseSpaceInfo, StatusInfo

STATUS = StatusInfo(
    version="1", host="alpha", pid=1, started=0.0, owners=2, locks=3, locks_lost=1, connections=1,
    connections_max=9, lockspaces=[], backends=[], default_backend="local", virtlockd_socket="/s", journal="ok",
    descriptor_store=False, storage_waiting=[], config_files=[], last_event=0,
)  # fmt: skip
LOCK = HolderInfo(
    resource="/srv/a.img", lockspace="", name="/srv/a.img", mode="exclusive", owner="web1", owner_uuid="u", pid=7,
    host="alpha", since=None, backend="leases", path="", protection=3, protection_word="fenced", protection_note="",
    held=True, lost_reason="",
)  # fmt: skip
LOST = replace(LOCK, resource="/srv/z.img", held=False, lost_reason="storage is gone")
ALIVE = HostInfo(1, "alpha", "LIVE", 5, 10, 2.0, None, "")
SILENT = HostInfo(9, "gamma", "FAIL", 5, 10, 90.0, 47.4, "")
SPACE = LeaseSpaceInfo(
    name="vms", path="/srv/vms", state="joined", reason="", seconds_left=None, host_id=1, host_name="alpha",
    generation=5, renewed_s_ago=2.0, fails_in_s=78.0, fenced=True, backends=["leases"], leases=2, hosts=[ALIVE, SILENT],
)  # fmt: skip
EVENT = EventInfo(1, 1000.0, "refused", "web2", "u2", 12, "/srv/a.img", "exclusive", "held")
PICTURE = Picture(STATUS, [SPACE], [LOCK, LOST], [EVENT])


def test_what_is_wrong_comes_before_what_is_well() -> None:
    shown = lines(PICTURE, 100)
    assert [n for n, line in enumerate(shown) if "gamma" in line] < [
        n for n, line in enumerate(shown) if " alpha" in line and "LIVE" in line
    ]
    assert [n for n, line in enumerate(shown) if "/srv/z.img" in line] < [
        n for n, line in enumerate(shown) if line.startswith("/srv/a.img")
    ]


def test_a_silent_host_is_shown_with_the_seconds_until_its_leases_are_free() -> None:
    (line,) = (line for line in lines(PICTURE, 100) if "gamma" in line)
    assert "FAIL" in line
    assert "unchanged for 90 s, its leases can be taken over in 47 s" in line


def test_a_host_that_lives_is_not_shown_as_dying() -> None:
    picture = replace(PICTURE, spaces=[replace(SPACE, hosts=[replace(ALIVE, dead_in_s=24.0)])])
    (line,) = (line for line in lines(picture, 100) if " alpha" in line and "LIVE" in line)
    assert "unchanged for 2 s, if it is over, its leases can be taken over in 24 s" in line


@pytest.mark.parametrize("height", range(1, 30))
def test_no_screen_is_too_small(height: int) -> None:
    many = Picture(
        replace(STATUS, problems=["the journal is full"]),
        [replace(SPACE, hosts=[replace(ALIVE, host_id=n) for n in range(1, 60)])],
        [LOST, *(replace(LOCK, resource=f"/srv/{n}.img") for n in range(50))],
        [replace(EVENT, number=n) for n in range(20)],
    )
    assert len(lines(many, height)) <= height


def test_what_has_no_room_is_counted_and_locks_keep_some() -> None:
    hosts = [replace(ALIVE, host_id=n) for n in range(1, 60)]
    locks = [LOST, *(replace(LOCK, resource=f"/srv/{n}.img") for n in range(50))]
    shown = lines(Picture(STATUS, [replace(SPACE, hosts=hosts)], locks, [EVENT] * 20), 40)
    assert any("/srv/z.img" in line for line in shown)
    listed = sum(line.startswith("/srv/") for line in shown)
    assert f"... {51 - listed} locks: holdfast list" in shown
    assert any(line.endswith("lines of hosts: holdfast lockspace list") for line in shown)
    assert sum("refused" in line for line in shown) == EVENTS_SHOWN


def test_names_of_guests_draw_nothing() -> None:
    evil = replace(LOCK, owner="\x1b[2Jweb")
    assert not any("\x1b" in line for line in lines(Picture(STATUS, [], [evil]), 50))
