"""The offline commands beside the real `sanlock direct`, and beside a daemon that uses what they made."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.contract.disk.disks import loop_device
from tests.interop.sanlock.daemon import Holder, SanlockDaemon
from tests.interop.sanlock.direct import blank_file, direct, dump, read_at, read_leader, sizes, write_at

from holdfast.cli.main import cli
from holdfast.ondisk import areas
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, MIB, Geometry
from holdfast.ondisk.host_block import FLAG_RELEASED, Dblock, HostBlock, ModeBlock
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.request import REQUEST_BYTES

pytestmark = pytest.mark.interop

every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
REFUSED, FAILED, USAGE, UNKNOWN = 75, 1, 2, 4


def holdfast(*arguments: str | Path, expect: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert done.exit_code == expect, done.output
    return done.output


def told(*arguments: str | Path, expect: int = 0) -> Any:
    return json.loads(holdfast(*arguments, "--json", expect=expect))


def cli_sizes(geometry: Geometry) -> tuple[str, ...]:
    return ("--sector", str(geometry.sector_bytes), "--align", f"{geometry.align_bytes // MIB}M")


# --- made by us, as sanlock makes it ---


@every_geometry
def test_lockspace_init_writes_what_sanlock_writes_and_sanlock_reads_it(
    geometry: Geometry, tmp_path: Path
) -> None:
    size = 2 * geometry.align_bytes
    ours, theirs = blank_file(tmp_path / "ours", size), blank_file(tmp_path / "theirs", size)
    at = geometry.align_bytes
    before = int(time.time())
    answer = told("lockspace", "init", ours, "--name", "LS1", "--offset", str(at), *cli_sizes(geometry))
    assert (answer["ok"], answer["hosts_max"], answer["overwritten"]) == (True, geometry.hosts_max, None)
    direct("init", "-s", f"LS1:0:{theirs}:{at}", *sizes(geometry))
    made = DeltaLease.decode(read_at(ours, at, geometry.sector_bytes))
    assert isinstance(made, DeltaLease)
    assert made.generation >= before, (
        "sanlock begins at 0: a host and its generation would come again (ADR 0166)"
    )
    for path, generation in ((ours, made.generation), (theirs, 0)):
        area, first = areas.lockspace_area(geometry, "LS1", generation=generation)
        assert read_at(path, 0, at) == bytes(at)
        assert read_at(path, at, geometry.align_bytes) == first + area[len(first) :]
    assert read_leader("-s", f"LS1:1:{ours}:{at}")["space_name"] == "LS1"


@every_geometry
def test_lease_init_writes_what_sanlock_writes_and_sanlock_reads_it(
    geometry: Geometry, tmp_path: Path
) -> None:
    size = 2 * geometry.align_bytes
    ours, theirs = blank_file(tmp_path / "ours", size), blank_file(tmp_path / "theirs", size)
    at = geometry.align_bytes
    names = ("--lockspace", "LS1", "--resource", "web")
    told("lease", "init", ours, *names, "--offset", str(at), *cli_sizes(geometry))
    direct("init", "-r", f"LS1:web:{theirs}:{at}", *sizes(geometry))
    # sanlock leaves 4 bytes of its memory behind the request record.
    padding = at + geometry.request_offset_bytes + REQUEST_BYTES
    write_at(theirs, padding, bytes(4))
    assert read_at(ours, 0, size) == read_at(theirs, 0, size)
    assert read_leader("-r", f"LS1:web:{ours}:{at}")["resource_name"] == "web"


def test_a_lease_for_few_hosts_says_so_to_sanlock(tmp_path: Path) -> None:
    holdfast("lease", "init", tmp_path / "l", "--lockspace", "LS1", "--resource", "web", "--hosts-max", "64")
    leader = read_leader("-r", f"LS1:web:{tmp_path / 'l'}:0")
    assert (leader["num_hosts"], leader["max_hosts"]) == ("64", "2000")


def test_sizes_follow_from_the_hosts_to_be_served_and_from_the_lockspace(tmp_path: Path) -> None:
    small = told("lockspace", "init", tmp_path / "a", "--name", "a", "--sector", "4096", "--hosts-max", "251")
    assert (small["align"], small["hosts_max"]) == (2 * MIB, 500)
    lease = told("lease", "init", tmp_path / "a", "--lockspace", "a", "--resource", "r", "--offset", "2M")
    assert (lease["sector"], lease["align"]) == (4096, 2 * MIB)
    unasked = told("lockspace", "init", tmp_path / "b", "--name", "b")
    assert (unasked["sector"], unasked["align"]) == (512, MIB)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices are made by root")
def test_a_device_with_large_sectors_gets_large_records_and_no_others(tmp_path: Path) -> None:
    with loop_device(blank_file(tmp_path / "disk", 16 * MIB), 4096) as device:
        answer = told("lockspace", "init", device, "--name", "LS1", "--sector", "512", expect=FAILED)
        assert (answer["field"], answer["fix"]) == ("--sector", "use --sector 4096")
        made = told("lockspace", "init", device, "--name", "LS1")
        assert (made["sector"], made["align"], made["hosts_max"]) == (4096, 8 * MIB, 2000)
        assert read_leader("-s", f"LS1:1:{device}:0")["sector_size"] == "4096"
        beyond = told(
            "lease", "init", device, "--lockspace", "LS1", "--resource", "r", "--offset", "16M", expect=FAILED
        )
        assert beyond["field"] == "--offset"
        assert "ends beyond" in beyond["error"]


# --- refusals name the field and the fix ---


def test_an_area_that_holds_something_is_overwritten_only_by_force(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", 2 * MIB)
    direct("init", "-s", f"THEIRS:0:{path}:0")
    before = read_at(path, 0, 2 * MIB)
    refused = told("lockspace", "init", path, "--name", "ours", expect=REFUSED)
    assert "lockspace 'THEIRS' (512/1M), used by no host now" in refused["error"]
    assert "--force" in refused["fix"]
    lease = ("lease", "init", path, "--lockspace", "ours", "--resource", "r")
    assert "THEIRS" in told(*lease, expect=REFUSED)["error"]
    assert read_at(path, 0, 2 * MIB) == before
    assert "THEIRS" in told("lockspace", "init", path, "--name", "ours", "--force")["overwritten"]
    assert read_leader("-s", f"ours:1:{path}:0")["space_name"] == "ours"


@pytest.mark.parametrize(
    ("at", "content", "what"),
    [
        (0, b"QFI\xfb", "a qcow2 image"),
        (1080, b"\x53\xef", "ext4 file system"),
        (512, b"LABELONE", "LVM physical volume"),
        (700_000, b"x", "bytes of something else (the first at 700000)"),
    ],
)
def test_what_is_no_lease_is_named_and_kept(tmp_path: Path, at: int, content: bytes, what: str) -> None:
    path = blank_file(tmp_path / "disk", MIB)
    write_at(path, at, content)
    assert what in told("lockspace", "init", path, "--name", "n", expect=REFUSED)["error"]
    assert read_at(path, at, len(content)) == content


def test_a_short_file_of_something_else_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(b"do not lose this")
    assert "16 bytes" in told("lockspace", "init", path, "--name", "n", expect=REFUSED)["error"]
    assert path.read_bytes() == b"do not lose this"


def test_a_cleared_lease_is_overwritten_unasked(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", MIB)
    write_at(path, 0, areas.cleared_lease_area(areas.fresh_leader(DEFAULT, "LS1", "old")))
    told("lease", "init", path, "--lockspace", "LS1", "--resource", "new")


def test_areas_do_not_overlap_larger_areas_before_them_nor_others_inside(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", 16 * MIB)
    direct("init", "-s", f"BIG:0:{path}:0", *sizes(GEOMETRIES[4]))
    lease = ("lease", "init", path, "--lockspace", "L", "--resource", "r", "--sector", "512", "--align", "1M")
    within = told(*lease, "--offset", "7M", expect=REFUSED)
    assert "lockspace 'BIG' (4096/8M)" in within["error"]
    assert "begins at 0 and reaches over 7340032" in within["error"]
    told(*lease, "--offset", "11M")
    around = told("lockspace", "init", path, "--name", "n", "--sector", "4096", "--align", "8M",
                  "--offset", "8M", expect=REFUSED)  # fmt: skip
    assert "the lease of 'r'" in around["error"]
    assert "(at 11534336)" in around["error"]


@pytest.mark.parametrize(
    ("arguments", "field", "says"),
    [
        (("--offset", "777"), "--offset", "use 0M or 1M"),
        (("--offset", "1537K"), "--offset", "use 1M or 2M"),
        (("--sector", "512", "--align", "2M"), "--align", "use one of 512/1M"),
        (("--sector", "4096", "--align", "1M", "--hosts-max", "251"), "--hosts-max", "use --align 8M"),
        (("--hosts-max", "2001"), "--hosts-max", "name no more than that"),
        (("--name", "n" * 48), "--name", "1 to 47 bytes"),
        (("--name", ""), "--name", "1 to 47 bytes"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused_by_field_and_leaves_no_file(
    tmp_path: Path, arguments: tuple[str, ...], field: str, says: str
) -> None:
    refused = told("lockspace", "init", tmp_path / "new", "--name", "n", *arguments, expect=FAILED)
    assert (refused["ok"], refused["field"]) == (False, field)
    assert says in refused["fix"]
    assert not (tmp_path / "new").exists()
    text = holdfast("lockspace", "init", tmp_path / "new", "--name", "n", *arguments, expect=FAILED)
    assert text.startswith(f"holdfast: {field}: ")


def test_a_missing_device_is_not_made_a_file(tmp_path: Path) -> None:
    refused = told("lockspace", "init", "/dev/holdfast-no-such-device", "--name", "n", expect=FAILED)
    assert refused["field"] == "PATH"
    assert not os.path.lexists("/dev/holdfast-no-such-device")
    holdfast("lockspace", "init", tmp_path / "x", "--name", "n", "--offset", "one", expect=USAGE)


# --- dump shows what sanlock shows, and more ---


def test_a_dump_agrees_with_sanlocks_on_every_record_of_a_device(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", 8 * MIB)
    direct("init", "-s", f"LS1:0:{path}:0")
    direct("init", "-r", f"LS1:web:{path}:{MIB}")
    direct("format", "-x", f"LS1:{path}:{3 * MIB}")
    theirs = {(line.offset_bytes, line.resource) for line in dump(path, 0, 8 * MIB)}
    ours = told("lease", "dump", path)
    found = {(a["offset"], a["told"]["resource"]) for a in ours["areas"] if a["kind"] == "lease"}
    assert found == {each for each in theirs if each[0] in (MIB, 4 * MIB)}
    assert [(a["offset"], a["kind"]) for a in ours["areas"]] == [
        (0, "lockspace"),
        (MIB, "lease"),
        (3 * MIB, "index"),
        (4 * MIB, "lease"),
    ]
    assert ours["looked_at_all"]
    only = told("lease", "dump", path, "--offset", "1M")
    assert [a["told"]["resource"] for a in only["areas"]] == ["web"]


def test_sharers_and_a_released_owner_are_told_apart(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", MIB)
    base = areas.fresh_leader(DEFAULT, "LS1", "web")
    taken = type(base)(
        geometry=DEFAULT, space_name=base.space_name, resource_name=base.resource_name, num_hosts=8,
        max_hosts=2000, owner_id=1, owner_generation=5, lver=3, timestamp=99, write_id=2,
    )  # fmt: skip
    write_at(path, 0, areas.lease_area(taken))
    voice = Dblock(mbal=2001, bal=2001, inp=1, inp2=5, inp3=99, lver=3)
    sharer = HostBlock(mode=ModeBlock.shared(7))
    write_at(path, DEFAULT.host_block_offset_bytes(1), HostBlock(dblock=voice).sector(512))
    write_at(path, DEFAULT.host_block_offset_bytes(4), sharer.sector(512))
    (area,) = told("lease", "dump", path)["areas"]
    owners = [(o["host_id"], o["generation"], o["mode"]) for o in area["told"]["owners"]]
    assert owners == [(1, 5, "exclusive"), (4, 7, "shared")]
    assert area["told"]["blocks"][0]["mbal"] == 2001

    let_go = Dblock(mbal=2001, bal=2001, inp=1, inp2=5, inp3=99, lver=3, flags=FLAG_RELEASED)
    write_at(path, DEFAULT.host_block_offset_bytes(1), HostBlock(dblock=let_go).sector(512))
    (area,) = told("lease", "dump", path)["areas"]
    assert [o["host_id"] for o in area["told"]["owners"]] == [4]
    assert "SHARED generation 7" in holdfast("lease", "dump", path)


def test_a_dump_of_damaged_and_foreign_bytes_is_an_answer(tmp_path: Path) -> None:
    path = blank_file(tmp_path / "disk", 4 * MIB)
    direct("init", "-r", f"LS1:web:{path}:0")
    write_at(path, 20, b"\xff")
    write_at(path, MIB, b"\x1b[31mtext")
    (damaged, foreign) = told("lease", "dump", path, expect=UNKNOWN)["areas"]
    assert "damaged leader (checksum does not match)" in damaged["told"]["what"]
    assert "something else" in foreign["told"]["what"]
    assert "LOCKSPACE-PATH" in told("host", "list", path, expect=FAILED)["field"]
    assert told("lease", "dump", tmp_path / "missing", expect=FAILED)["error"].startswith("cannot open")


def test_names_from_a_disk_cannot_command_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    holdfast("lease", "init", path, "--lockspace", "LS1", "--resource", "\x1b[31mred\x1b[0m")
    assert "\x1b" not in holdfast("lease", "dump", path)
    assert told("lease", "dump", path)["areas"][0]["told"]["resource"] == "\\x1b[31mred\\x1b[0m"


# --- beside a daemon that uses what we made ---

IO_TIMEOUT_S = 1


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SanlockDaemon, Path]]:
    """A real daemon, joined to a lockspace of ours; a lease of ours is on the same path."""
    directory = tmp_path_factory.mktemp("sl")
    path = directory / "disk"
    holdfast("lockspace", "init", path, "--name", "LS1", "--io-timeout", str(IO_TIMEOUT_S))
    holdfast("lease", "init", path, "--lockspace", "LS1", "--resource", "web", "--offset", "1M")
    daemon = SanlockDaemon(directory, "the-real-one")
    try:
        daemon.client("add_lockspace", "-s", f"LS1:3:{path}:0", "-o", str(IO_TIMEOUT_S))
        yield daemon, path
    finally:
        daemon.stop()


def test_one_look_does_not_tell_whether_a_host_lives_and_two_looks_do(
    joined: tuple[SanlockDaemon, Path],
) -> None:
    _, path = joined
    (host,) = told("host", "list", path)["hosts"]
    assert (host["host_id"], host["name"]) == (3, "the-real-one")
    assert host["generation"] > 1, "it counts on from where 'lockspace init' began"
    assert (host["state"], host["io_timeout"]) == ("UNKNOWN", IO_TIMEOUT_S)
    assert "--watch" in host["note"]
    (host,) = told("host", "list", path, "--watch", "5")["hosts"]
    assert host["state"] == "LIVE"
    (host,) = told("host", "list", path, "--watch", "0.01")["hosts"]
    assert host["state"] in ("UNKNOWN", "LIVE")
    assert "the-real-one" in holdfast("host", "list", path)


def test_a_lease_that_sanlock_holds_is_dumped_with_its_owners_name_and_not_overwritten(
    joined: tuple[SanlockDaemon, Path],
) -> None:
    daemon, path = joined
    holder = daemon.hold(f"LS1:web:{path}:{MIB}")
    assert isinstance(holder, Holder), holder
    lockspace, lease = told("lease", "dump", path)["areas"]
    assert [(h["host_id"], h["name"]) for h in lockspace["told"]["hosts"]] == [(3, "the-real-one")]
    (owner,) = lease["told"]["owners"]
    # sanlock leaves no note that names a VM.
    generation = owner.pop("generation")
    assert owner == {"host_id": 3, "name": "the-real-one", "mode": "exclusive", "vm": ""}
    assert lease["told"]["disks"] == []
    (line,) = [line for line in dump(path, 0, 2 * MIB) if line.resource == "web"]
    assert (line.owner_id, line.generation, int(line.lver)) == (3, generation, lease["told"]["lver"])
    assert line.timestamp == lease["told"]["timestamp"]

    again = ("lease", "init", path, "--lockspace", "LS1", "--resource", "web", "--offset", "1M")
    assert f"owned by host_id 3 generation {generation}" in told(*again, expect=REFUSED)["error"]
    refused = told("lockspace", "init", path, "--name", "LS1", expect=REFUSED)
    assert "in use by the-real-one (host_id 3)" in refused["error"]
    holder.release()
    assert told("lease", "dump", path, "--offset", "1M")["areas"][0]["told"]["owners"] == []


def test_names_come_from_a_lockspace_elsewhere_and_only_for_the_generation_that_owns(
    joined: tuple[SanlockDaemon, Path], tmp_path: Path
) -> None:
    daemon, path = joined
    elsewhere = tmp_path / "lease"
    holdfast("lease", "init", elsewhere, "--lockspace", "LS1", "--resource", "db")
    holder = daemon.hold(f"LS1:db:{elsewhere}:0")
    assert isinstance(holder, Holder), holder

    def owner_name(*options: str | Path) -> str | None:
        name: str | None = told("lease", "dump", elsewhere, *options)["areas"][0]["told"]["owners"][0]["name"]
        return name

    assert owner_name() is None
    assert owner_name("--lockspace-path", path) == "the-real-one"
    other_term = tmp_path / "other-term"
    holdfast("lockspace", "init", other_term, "--name", "LS1")
    later = replace(
        areas.fresh_delta_lease(DEFAULT, "LS1"), owner_id=3, generation=2, host_name=PaddedName.of("later")
    )
    write_at(other_term, DEFAULT.delta_offset_bytes(3), later.sector())
    assert owner_name("--lockspace-path", other_term) is None
    holder.end()


def test_index_behind_a_lockspace_is_one_for_sanlock_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "device"
    made = told("lockspace", "init", path, "--name", "LS1", "--index", "4")
    assert (made["ok"], made["index_entries"]) == (True, 4)
    assert path.stat().st_size == 7 * MIB
    theirs = direct("dump", f"{path}:0:{7 * MIB}")
    assert "rindex_header 0x1 512 4 1048576" in theirs
    assert "rindex_lease" in theirs
    more = tmp_path / "more"
    refused = told("lockspace", "init", more, "--name", "LS1", "--index", "4096", expect=FAILED)
    assert "has room for 2048 leases" in refused["error"]
    assert not more.exists()
    told("lockspace", "init", path, "--name", "LS1", "--offset", "1M", expect=REFUSED)
