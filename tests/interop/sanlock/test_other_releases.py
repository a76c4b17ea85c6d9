"""The sanlocks of Debian 13 (3.9) and 14 (5) beside holdfastd: what each writes is read, kept, shared and excluded.

Areas are those that each program makes by default: 3.4 with 6.4, and 5.0 with 7.0. Tests that wait for dead bounds are
`long`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import Holder, SanlockDaemon, held
from tests.interop.sanlock.direct import blank_file, direct, read_at, read_leader, sizes, write_at
from tests.interop.sanlock.programs import Program, installed, of_release
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.polling import wait_until

from holdfast.ondisk import areas, delta
from holdfast.ondisk import leader as leaders
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT, DeltaLease
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.testing.virtlockd_client import SHARED

pytestmark = pytest.mark.interop

IO_TIMEOUT_S = 1
DEAD_S = 8 * IO_TIMEOUT_S + 60
SILENCE_S = 3 * IO_TIMEOUT_S
RELEASES = ("installed", "trixie", "forky")
every_release = pytest.mark.parametrize("release", RELEASES)
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


def program_of(release: str) -> Program:
    return installed() if release == "installed" else of_release(release)


def versions_of(program: Program) -> tuple[int, int]:
    """Of the delta leases and leaders that it makes by default."""
    new = program.version >= (5,)
    return (delta.VERSION_5, leaders.VERSION_7) if new else (delta.VERSION, leaders.VERSION)


# --- bytes ---


@every_geometry
@every_release
def test_areas_that_it_makes_are_byte_by_byte_what_we_make_in_that_version(
    release: str, geometry: Geometry, tmp_path: Path
) -> None:
    program = program_of(release)
    delta_version, leader_version = versions_of(program)
    path = blank_file(tmp_path / "theirs", 2 * geometry.align_bytes)
    size = geometry.align_bytes
    direct("init", "-s", f"LS1:0:{path}:0", *sizes(geometry), program=program)
    direct("init", "-r", f"LS1:disk:{path}:{size}", *sizes(geometry), program=program)
    area, first = areas.lockspace_area(geometry, "LS1", version=delta_version)
    assert read_at(path, 0, size) == first + area[len(first) :]
    assert leaders.version_beside(delta_version) == leader_version
    leader = areas.fresh_leader(geometry, "LS1", "disk", version=leader_version)
    assert read_at(path, size, size) == areas.lease_area(leader)


@every_geometry
@every_release
def test_it_reads_what_we_make_in_every_version_that_it_knows(
    release: str, geometry: Geometry, tmp_path: Path
) -> None:
    program = program_of(release)
    path = blank_file(tmp_path / "ours", 2 * geometry.align_bytes)
    size = geometry.align_bytes
    for delta_version in (delta.VERSION, delta.VERSION_4, delta.VERSION_5):
        leader_version = leaders.version_beside(delta_version)
        area, first = areas.lockspace_area(geometry, "LS1", version=delta_version, flags=0)
        write_at(path, 0, first + area[len(first) :])
        leader = areas.fresh_leader(geometry, "LS1", "disk", version=leader_version)
        write_at(path, size, areas.lease_area(leader))
        names = (("-s", f"LS1:1:{path}:0"), ("-r", f"LS1:disk:{path}:{size}"))
        for (kind, what), version in zip(names, (delta_version, leader_version), strict=True):
            newer = version not in (delta.VERSION, leaders.VERSION) and program.version < (4,)
            if newer:
                assert "-224" in direct("read_leader", kind, what, expect=1, program=program)
            else:
                assert int(read_leader(kind, what, program)["version"], 16) == version


# --- daemons ---


@dataclass
class Space:
    """A lockspace of one geometry in a directory of its own, with leases by the MD5 of a disk's path."""

    name: str
    geometry: Geometry
    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / "leases" / self.name

    def lockspace(self, host_id: int) -> str:
        return f"{self.name}:{host_id}:{self.path}:0"

    def disk(self, name: str) -> tuple[Path, str, Path]:
        """A disk, its lease as sanlock names it, and where that is."""
        disk = make_disk(self.directory, name)
        lease = hashlib.md5(str(disk).encode()).hexdigest()
        place = self.directory / "leases" / lease
        return disk, f"{self.name}:{lease}:{place}:0", place

    def record(self, host_id: int) -> DeltaLease:
        at, size = self.geometry.delta_offset_bytes(host_id), self.geometry.sector_bytes
        record = DeltaLease.decode(read_at(self.path, at, size))
        assert isinstance(record, DeltaLease), record
        return record


@dataclass
class Cluster:
    """holdfastd is host 2, real daemons are the others."""

    place: Path
    holdfastd: Holdfastd
    spaces: list[Space]
    program: Program
    sanlocks: dict[int, SanlockDaemon] = field(default_factory=dict)

    def sanlock(self, host_id: int) -> SanlockDaemon:
        directory = self.place / f"sanlock{host_id}"
        directory.mkdir()
        daemon = self.sanlocks[host_id] = SanlockDaemon(directory, f"real-{host_id}", self.program)
        return daemon

    def join(self, *host_ids: int) -> None:
        """All of them join all lockspaces, each takes some seconds."""

        def add(host_id: int, space: Space) -> None:
            self.sanlocks[host_id].client(
                "add_lockspace", "-s", space.lockspace(host_id), "-o", str(IO_TIMEOUT_S)
            )

        with ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(add, host_id, space) for host_id in host_ids for space in self.spaces]:
                done.result()

    def start_holdfastd(self) -> None:
        self.holdfastd.start()
        wait_until(
            lambda: self.holdfastd.log_text().count("joined as host_id 2") == len(self.spaces),
            "holdfastd to join",
        )

    def refusal(self, disk: Path, flags: int = 0) -> str:
        return refusal(self.holdfastd, disk, flags=flags)


def _config(spaces: list[Space]) -> str:
    backends = "".join(
        f'[backend.{space.name}]\ndriver = "paxos"\ndirectory = "{space.path.parent}"\nlockspace = "{space.name}"\n'
        f'cross_host = true\nhost_id = 2\nwatchdog = "none"\nio_timeout_s = {IO_TIMEOUT_S}\n'
        for space in spaces
    )
    return backends + "".join(
        f'[[disk]]\nmatch = "{space.directory}/*"\nbackend = "{space.name}"\n' for space in spaces
    )


@contextmanager
def cluster(release: str, geometries: tuple[Geometry, ...]) -> Iterator[Cluster]:
    """Lockspaces are to be made before anybody joins."""
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    spaces = []
    for number, geometry in enumerate(geometries):
        directory = place / f"s{number}"
        (directory / "leases").mkdir(parents=True)
        spaces.append(Space(f"space{number}", geometry, directory))
    here = Cluster(place, Holdfastd(place / "d", _config(spaces)), spaces, program_of(release))
    try:
        yield here
    finally:
        here.holdfastd.stop_all()
        for daemon in here.sanlocks.values():
            daemon.stop()
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def beside(release: str) -> Iterator[Cluster]:
    """Host 1 is a real daemon, and its program has made a lockspace of each geometry."""
    with cluster(release, GEOMETRIES) as here:
        for space in here.spaces:
            blank_file(space.path, space.geometry.align_bytes)
            direct("init", "-s", space.lockspace(0), "-o", "1", *sizes(space.geometry), program=here.program)
        here.sanlock(1)
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(here.join, 1)
            here.start_holdfastd()
            joining.result()
        yield here


def _each(spaces: list[Space], work: Callable[[Space], None]) -> None:
    """For all spaces at once: most of it is waiting."""
    with ThreadPoolExecutor(len(spaces)) as pool:
        for done in [pool.submit(work, space) for space in spaces]:
            done.result()


@pytest.mark.parametrize("release", ["trixie", "forky"])
def test_they_exclude_each_other_and_share_in_areas_of_its_making_of_every_geometry(release: str) -> None:
    with beside(release) as here:
        sanlock, holdfastd = here.sanlocks[1], here.holdfastd
        delta_version, leader_version = versions_of(here.program)

        def both_ways(space: Space) -> None:
            # Made by its program, and used by us.
            disk, lease, place = space.disk("theirs.img")
            blank_file(place, space.geometry.align_bytes)
            direct("init", "-r", lease, *sizes(space.geometry), program=here.program)
            theirs = held(sanlock.hold(lease))
            text = wait_until(lambda: here.refusal(disk), "a refusal")
            assert "on host real-1 (host_id 1)" in text
            theirs.release()
            wait_until(lambda: here.refusal(disk) == "", "the lease to be free")
            # Made by us, and used by its program.
            disk, lease, place = space.disk("ours.img")
            vm = holdfastd.vm([disk], name="web1")
            assert isinstance(sanlock.hold(lease), str), "sanlock acquired what holdfastd holds"
            holdfastd.end_vm(vm)
            wait_until(lambda: not holdfastd.holders(disk), "the release")
            taken = wait_until(lambda: _taken(sanlock, lease), "the lease to be free on storage")
            assert taken is not None
            taken.release()
            # Shared, by both at once.
            theirs = held(sanlock.hold(f"{lease}:SH"))
            vm = holdfastd.vm([disk], name="reader", flags=SHARED)
            assert isinstance(sanlock.hold(lease), str)
            holdfastd.end_vm(vm)
            assert "host_id 1" in wait_until(lambda: here.refusal(disk), "a refusal")
            theirs.release()
            wait_until(lambda: here.refusal(disk) == "", "the lease to be free")
            for each in (place, place.with_name(space.disk("theirs.img")[2].name)):
                leader = Leader.decode(read_at(each, 0, Leader.BYTES))
                assert isinstance(leader, Leader)
                assert (leader.version, leader.geometry) == (leader_version, space.geometry)
            assert space.record(1).version == space.record(2).version == delta_version

        _each(here.spaces, both_ways)


def _taken(sanlock: SanlockDaemon, lease: str) -> Holder | None:
    taken = sanlock.hold(lease)
    return taken if isinstance(taken, Holder) else None


def test_leases_of_a_sanlock_5_host_without_time_out_are_free_by_a_mark_and_ours_by_its(
    tmp_path: Path,
) -> None:
    """NO_TIMEOUT and DEAD_EXT, written by the real program and read by us, and the other way round."""
    with cluster("forky", (DEFAULT,)) as here:
        (space,) = here.spaces
        blank_file(space.path, space.geometry.align_bytes)
        alpha, gamma, delta_host = (here.sanlock(host_id) for host_id in (1, 3, 4))
        alpha.client("init", "-s", space.lockspace(0), "-o", "1", "-N", "1", "-C", "0")
        assert space.record(1).flag_names == ("NO_TIMEOUT",)
        with ThreadPoolExecutor(1) as pool:
            joining = pool.submit(here.join, 1, 3, 4)
            here.start_holdfastd()
            joining.result()
        assert space.record(2).flags == space.record(1).flags == DEFAULT.align_flag | FLAG_NO_TIMEOUT

        def lease_of(name: str) -> tuple[Path, str]:
            disk, lease, place = space.disk(name)
            blank_file(place, DEFAULT.align_bytes)
            direct("init", "-r", lease, program=here.program)
            return disk, lease

        first, second = lease_of("first.img"), lease_of("second.img")
        holders = [held(alpha.hold(first[1])), held(gamma.hold(second[1]))]
        wait_until(lambda: "alive" in here.refusal(first[0]), "host 1 to be seen alive")

        # Host 1 dies. No time frees its lease; a mark of the real program does, at once.
        alpha.kill()
        holders[0].end()
        wait_until(
            lambda: "never expire by time" in here.refusal(first[0]), "it not to be seen alive any more"
        )
        gamma.client("set_host", "-s", space.lockspace(3), "-i", "1", "-g", "1", "-F", "DEAD_EXT")
        assert space.record(1).flag_names == ("NO_TIMEOUT", "DEAD_EXT")
        assert space.record(1).marked_by == (3, 1)
        assert here.refusal(first[0]) == ""

        # Host 3 dies. What we write frees its lease for the real program, at once.
        before = space.record(3)
        gamma.kill()
        holders[1].end()
        fenced = here.holdfastd.cli("host", "fenced", "3", "--operator", "J. Doe", "--wait")
        assert fenced.returncode == 0, fenced.stderr
        after = space.record(3)
        assert (after.flag_names, after.marked_by) == (
            ("NO_TIMEOUT", "DEAD_EXT"),
            (2, space.record(2).generation & 0xFFFF),
        )
        assert (after.generation, after.host_name) == (before.generation, before.host_name)
        held(delta_host.hold(second[1])).release()

        # We are marked: our VM is stopped, and the mark stays.
        vm = here.holdfastd.vm([first[0]], name="web1")
        assert isinstance(delta_host.hold(first[1]), str)
        mine = space.record(2)

        def marked() -> bool:
            # A renewal that is just being written takes the mark away.
            if not space.record(2).is_marked_dead:
                delta_host.client("set_host", "-s", space.lockspace(4), "-i", "2", "-F", "DEAD_EXT")
            return not exists(vm)

        wait_until(marked, "the VM to be stopped")
        assert (
            f"host_id 4 has marked generation {mine.generation} of this host as dead"
            in here.holdfastd.log_text()
        )
        assert (space.record(2).is_marked_dead, space.record(2).generation) == (True, mine.generation)
        held(delta_host.hold(first[1])).release()


def test_mark_that_we_write_is_the_one_that_the_real_program_writes() -> None:
    with cluster("forky", (DEFAULT,)) as here:
        (space,) = here.spaces
        blank_file(space.path, space.geometry.align_bytes)
        direct("init", "-s", space.lockspace(0), "-o", "1", program=here.program)
        daemon = here.sanlock(258)
        here.join(258)
        before = read_at(space.path, 0, 512)
        fresh = DeltaLease.decode(before)
        assert isinstance(fresh, DeltaLease)
        daemon.client("set_host", "-s", space.lockspace(258), "-i", "1", "-F", "DEAD_EXT")
        assert space.record(1) == fresh.marked_dead(258, 1)
        refused = daemon.client(
            "set_host", "-s", space.lockspace(258), "-i", "258", "-g", "0", "-F", "DEAD_EXT", check=False
        )
        assert not space.record(258).is_marked_dead or "done 0" in refused


# --- dead bounds ---


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("release", ["trixie", "forky"])
def test_each_takes_over_from_the_other_after_the_bound_in_areas_of_every_geometry(release: str) -> None:
    with beside(release) as here:
        sanlock = here.sanlocks[1]
        disks = [space.disk("a.img") for space in here.spaces]
        for disk, _, _ in disks:
            assert here.refusal(disk) == ""
        holders = [held(sanlock.hold(lease)) for _, lease, _ in disks]
        for disk, _, _ in disks:
            wait_until(lambda disk=disk: "alive" in here.refusal(disk), "it to be seen alive")  # type: ignore[misc]
        died = time.monotonic()
        sanlock.kill()
        for holder in holders:
            holder.end()
        for disk, _, _ in disks:
            while here.refusal(disk):
                time.sleep(0.2)
                assert time.monotonic() < died + DEAD_S + 30
        assert time.monotonic() - died > DEAD_S - 2 * IO_TIMEOUT_S
        # The other way round, with another host of the real program.
        successor = here.sanlock(3)
        here.join(3)
        vms = [here.holdfastd.vm([disk], name="web1") for disk, _, _ in disks]
        for _, lease, _ in disks:
            assert isinstance(successor.hold(lease), str)
        died = time.monotonic()
        here.holdfastd.kill()
        for vm in vms:
            here.holdfastd.end_vm(vm)

        def take(number: int) -> None:
            while not (taken := _taken_in_time(successor, disks[number][1])):
                time.sleep(0.5)
                assert time.monotonic() < died + DEAD_S + 60
            assert time.monotonic() - died > DEAD_S - 2 * IO_TIMEOUT_S
            taken.release()

        with ThreadPoolExecutor(len(disks)) as pool:
            for done in [pool.submit(take, number) for number in range(len(disks))]:
                done.result()


def _taken_in_time(sanlock: SanlockDaemon, lease: str) -> Holder | None:
    try:
        return _taken(sanlock, lease)
    except AssertionError:
        return None  # it waits longer than the double lets it


@pytest.mark.long
@pytest.mark.timeout(300)
def test_no_time_frees_the_lease_of_a_sanlock_5_host_without_time_out() -> None:
    with cluster("forky", (DEFAULT,)) as here:
        (space,) = here.spaces
        blank_file(space.path, space.geometry.align_bytes)
        alpha = here.sanlock(1)
        alpha.client("init", "-s", space.lockspace(0), "-o", "1", "-N", "1", "-C", "0")
        here.join(1)
        here.start_holdfastd()
        disk, lease, _ = space.disk("a.img")
        assert here.refusal(disk) == ""
        theirs = held(alpha.hold(lease))
        wait_until(lambda: "alive" in here.refusal(disk), "host 1 to be seen alive")
        alpha.kill()
        died = time.monotonic()
        while time.monotonic() < died + DEAD_S + 15:
            assert here.refusal(disk)
            time.sleep(1)
        assert "never expire by time" in here.refusal(disk)
        # Rejoining its own id at once proves nothing either: its holder runs on.
        alpha.restart()
        here.join(1)
        assert space.record(1).generation == 2
        assert theirs.runs()
        while time.monotonic() < died + 2 * DEAD_S + 15:
            assert here.refusal(disk)
            time.sleep(1)
        theirs.end()
