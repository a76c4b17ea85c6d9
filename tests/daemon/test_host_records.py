"""What hosts say of themselves beside a lockspace in a file, with real daemons: shown, and believed where it may be."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
from tests.daemon.conftest import FIRE_TIMEOUT_S, MakeHost
from tests.daemon.test_leases import joined, record
from tests.support.daemon import Holdfastd, called, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.polling import wait_until

from holdfast import __version__
from holdfast.daemon.lifecycle import IN_FLIGHT_WAIT_S
from holdfast.ondisk import host_record

ONE, TWO = (f"prod-eu-central-1-hypervisor-compute-node-00{n}" for n in (1, 2))


def said(leases: Path, host_id: int) -> host_record.HostRecord | None:
    path = leases / f"{SPACE}.host-{host_id}"
    return host_record.decode(path.read_bytes()) if path.exists() else None


def says(host: Holdfastd, leases: Path, host_id: int) -> Holdfastd:
    joined(host)
    wait_until(lambda: said(leases, host_id), "the record of the host")
    return host


def with_fire_timeout(host: Holdfastd, seconds: int) -> Holdfastd:
    text = host.config.read_text()
    host.config.write_text(text.replace(f"fire_timeout_s = {FIRE_TIMEOUT_S}", f"fire_timeout_s = {seconds}"))
    return host


def test_whole_names_versions_and_fire_timeouts_are_shown(make_host: MakeHost, leases: Path) -> None:
    one, two = make_host("one", "auto"), make_host("two", "auto")
    says(one.start(preexec_fn=called(ONE)), leases, 1)
    two.start(preexec_fn=called(TWO)).says("joined as host_id 2")
    wait_until(lambda: said(leases, 2), "the record of the second host")
    answer = two.cli_json("host", "list", str(leases / SPACE))["hosts"]
    assert [(h["node"], h["version"], h["fire_timeout"]) for h in answer] == [
        (ONE, __version__, FIRE_TIMEOUT_S),
        (TWO, __version__, FIRE_TIMEOUT_S),
    ]
    assert answer[0]["name"][:20] == answer[1]["name"][:20]

    def seen() -> list[tuple[str, str, int]]:
        (space,) = two.cli_json("lockspace", "list")
        assert space["fire_timeout_s"] == FIRE_TIMEOUT_S
        return [(h["node"], h["version"], h["fire_timeout_s"]) for h in space["hosts"]]

    wait_until(
        lambda: seen() == [(node, __version__, FIRE_TIMEOUT_S) for node in (ONE, TWO)], "both to be known"
    )
    assert ONE in two.cli("lockspace", "list").stdout
    # Records are no leases, for nobody.
    assert "host-" not in two.cli("lease", "gc", "--dry-run").stdout


def test_host_that_locks_disks_by_their_paths_alone_is_named(make_host: MakeHost, leases: Path) -> None:
    says(make_host("one", 1).start(), leases, 1)
    path = leases / f"{SPACE}.host-1"
    newer = host_record.decode(path.read_bytes())
    assert newer is not None
    path.write_bytes(host_record.encode(msgspec.structs.replace(newer, identities=False)))
    two = says(make_host("two", 2).start(), leases, 2)
    named = "(host_id 1): locks disks by their paths alone"
    wait_until(lambda: named in two.cli("lockspace", "list").stdout, "the older host to be named")
    three = make_host("three", 3)
    path.write_bytes(host_record.encode(newer))
    says(three.start(), leases, 3)
    wait_until(
        lambda: sum(h["identities"] for h in three.cli_json("lockspace", "list")[0]["hosts"]) == 3,
        "all three",
    )
    assert "paths alone" not in three.cli("lockspace", "list").stdout


def test_record_that_is_stale_damaged_or_missing_says_nothing(make_host: MakeHost, leases: Path) -> None:
    one = says(make_host("one", 1).start(), leases, 1)
    path = leases / f"{SPACE}.host-1"
    whole = path.read_bytes()

    def shown() -> str:
        (host,) = one.cli_json("host", "list", str(leases / SPACE))["hosts"]
        return host["node"]  # type: ignore[no-any-return]

    assert shown() == os.uname().nodename
    path.write_bytes(whole.replace(b'"fire_timeout_s":6', b'"fire_timeout_s":7'))
    assert shown() == ""
    stale = host_record.decode(whole)
    assert stale is not None
    path.write_bytes(host_record.encode(msgspec.structs.replace(stale, generation=stale.generation - 1)))
    assert shown() == ""
    path.unlink()
    assert shown() == ""
    assert one.cli("host", "list", str(leases / SPACE)).stdout.splitlines()[2].split("\t")[6:9] == ["-"] * 3


def test_host_whose_fire_timeout_does_not_fit_is_refused_by_name_until_the_other_one_left(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    one = says(make_host("one", 1).start(preexec_fn=called("alpha.example.org")), leases, 1)
    two = with_fire_timeout(make_host("two", 2), FIRE_TIMEOUT_S + 1).start()
    two.says(
        "watchdogs differ in their fire timeout: host alpha.example.org (host_id 1) 6 s, and this host 7 s"
    )
    disk = make_disk(place)
    assert "watchdogs differ in their fire timeout" in refusal(two, disk)
    assert record(leases, 2).is_never_used, "nothing was claimed"
    assert refusal(one, disk) == ""
    one.kill(signal.SIGTERM)
    wait_until(lambda: record(leases, 1).is_free, "the first host to have left")
    two.says("joined as host_id 2")
    assert refusal(two, disk) == ""


def test_host_that_says_it_later_is_reported_and_nobody_loses_anything(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    """As two that join at one moment: neither has said anything when the other one reads."""
    one = says(make_host("one", 1).start(), leases, 1)
    disk = make_disk(place)
    one.vm([disk], name="web1")
    (leases / f"{SPACE}.host-1").unlink()
    two = with_fire_timeout(make_host("two", 2), FIRE_TIMEOUT_S + 1).start()
    says(two, leases, 2)
    one.says("watchdogs differ in their fire timeout: host ")
    (space,) = one.cli_json("lockspace", "list")
    assert "(host_id 2) 7 s, and this host 6 s" in space["misfits"]
    assert space["state"] == "joined"
    assert "watchdogs differ" in one.cli("lockspace", "list").stdout
    assert "watchdogs differ" in one.cli("doctor").stdout
    assert [held for _, _, held in one.holders(disk)] == [True]


def test_record_that_can_not_be_written_fails_no_join_and_no_renewal(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    (leases / f"{SPACE}.host-1").mkdir()
    one = joined(make_host("one", 1).start())
    one.says("this host's record can't be written")
    assert refusal(one, make_disk(place)) == ""
    before = record(leases, 1).timestamp
    wait_until(lambda: record(leases, 1).timestamp > before, "a renewal")
    (leases / f"{SPACE}.host-1").rmdir()
    wait_until(lambda: said(leases, 1), "the record to be written after all")
    one.says_once("this host's record can't be written")


def test_stop_does_not_wait_for_what_hosts_say(make_host: MakeHost, leases: Path) -> None:
    """It sleeps most of the time; meanwhile the daemon would renew, or not, and hold up its service."""
    one = says(make_host("one", 1).start(), leases, 1)
    begun = time.monotonic()
    one.kill(signal.SIGTERM)
    assert time.monotonic() - begun < IN_FLIGHT_WAIT_S
    assert record(leases, 1).is_free


def test_record_is_written_again_by_the_next_daemon_of_the_same_term(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    one = says(make_host("one", 1).start(), leases, 1)
    one.vm([make_disk(place)], name="web1")
    one.kill()
    (leases / f"{SPACE}.host-1").write_bytes(b"")
    one.start()
    wait_until(lambda: said(leases, 1), "the record again")
    assert said(leases, 1).generation == record(leases, 1).generation  # type: ignore[union-attr]
