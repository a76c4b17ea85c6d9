"""Leases of sanlock's clients: anywhere, of any sizes, never made and never removed here."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest
from tests.contract.test_lease_flags import sees_silent
from tests.contract.test_paxos_backend import play
from tests.support.leases import SPACE, HostLockspaces, lease_file, make_area, make_lockspace

from holdfast.backends.base import Creation, HeldElsewhere, SavedLock, TakeOutcome
from holdfast.backends.lease_backend import OffWord
from holdfast.backends.paxos.area_backend import AreaBackend, resource_in
from holdfast.backends.paxos.area_store import Area, area_of
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode, Resource
from holdfast.ondisk.geometry import DEFAULT, GEOMETRIES, MIB, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_outcomes import WrongVersion
from holdfast.protocol.takeover import Busy
from holdfast.protocol.types import Generation, HostId, HostTimestamp
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.testing.conformance import NOTE, BackendConformance, BackendWorld, assert_held, take

RESOURCE = resource_in(SPACE, "vol-1")


class Scene:
    """Two hosts, and a lease that is neither in a directory of theirs nor in an index."""

    def __init__(
        self, directory: Path, geometry: Geometry = DEFAULT, *, offset_bytes: int = 16 * MIB
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.lockspace = directory / SPACE
        make_lockspace(self.lockspace)
        self.area = Area(str(directory / "leases: of a domain"), offset_bytes)
        make_area(Path(self.area.path), offset_bytes, "vol-1", geometry)
        self.alpha = HostLockspaces(self.lockspace, 1, "alpha")
        self.beta = HostLockspaces(self.lockspace, 2, "beta")
        self.one, self.two = self.alpha.area_backend(), self.beta.area_backend()
        for each in (self.one, self.two):
            each.areas.put("vol-1", self.area)

    def world(self) -> BackendWorld:
        return BackendWorld(backend=self.one, rival=self.two, resource=RESOURCE)

    def write(self, raw: bytes, offset_bytes: int = 0) -> None:
        with open(self.area.path, "r+b") as f:
            f.seek(self.area.offset_bytes + offset_bytes)
            f.write(raw)

    def leader(self) -> Leader:
        with open(self.area.path, "rb") as f:
            f.seek(self.area.offset_bytes)
            leader = Leader.decode(f.read(512))
        assert isinstance(leader, Leader), leader
        return leader


async def tried(backend: AreaBackend, mode: Mode = Mode.EXCLUSIVE) -> TakeOutcome:
    candidate = await backend.open(RESOURCE, create=Creation.NONE)
    assert not isinstance(candidate, IoFailed)
    return await candidate.take(mode, NOTE)


async def why_not(backend: AreaBackend) -> object:
    """The cause with which a lease is refused as unusable."""
    with pytest.raises(LeaseUnusable) as refused:
        await tried(backend)
    return refused.value.facts["cause"]


class TestAreasOfSanlocksClients(BackendConformance):
    @pytest.fixture(autouse=True)
    def _in(self, tmp_path: Path) -> None:
        self.scene = Scene(tmp_path / "leases")

    def make_world(self) -> BackendWorld:
        return self.scene.world()


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_sizes_are_those_of_the_leader_and_not_the_lockspaces(tmp_path: Path, geometry: Geometry) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", geometry)
        held = assert_held(await tried(s.one))
        assert (s.leader().owner_id, s.leader().geometry) == (1, geometry)
        assert isinstance(await tried(s.two), HeldElsewhere)
        await held.release()
        shared = assert_held(await tried(s.two, Mode.SHARED))
        refused = await tried(s.one)
        assert isinstance(refused, HeldElsewhere)
        assert isinstance(refused.cause, SharedBy)
        await shared.release()
        assert s.leader().is_free

    play(scene)


def test_refusal_has_what_the_protocol_found(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await tried(s.two))
        refused = await tried(s.one)
        assert isinstance(refused, HeldElsewhere)
        assert isinstance(refused.cause, Busy)
        await held.release()
        lver = s.leader().lver
        s.one.areas.put("vol-1", s.area._replace(wanted_lver=lver + 1))
        assert isinstance(await why_not(s.one), WrongVersion)
        s.one.areas.put("vol-1", s.area._replace(wanted_lver=lver))
        await assert_held(await tried(s.one)).release()

    play(scene)


def test_lease_that_is_missing_or_anothers_is_neither_made_nor_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")

        async def cause_with(raw: bytes) -> Reason:
            s.write(raw.ljust(512, b"\0"))
            cause = await why_not(s.one)
            assert isinstance(cause, Malformed)
            with open(s.area.path, "rb") as f:
                f.seek(s.area.offset_bytes)
                assert f.read(512) == raw.ljust(512, b"\0")
            return cause.reason

        good = s.leader()
        assert await cause_with(b"") is Reason.MAGIC
        assert await cause_with(good.encode_cleared()) is Reason.CLEARED
        other = dataclasses.replace(good, resource_name=good.space_name)
        assert await cause_with(other.encode()) is Reason.RESOURCE_NAME
        s.one.areas.put("vol-1", s.area._replace(path=s.area.path + ".gone"))
        missing = await tried(s.one)
        assert isinstance(missing, IoFailed)
        assert missing.errno == errno.ENOENT
        assert not Path(s.area.path + ".gone").exists()
        s.one.areas.put("vol-1", s.area._replace(offset_bytes=64 * MIB))
        beyond = await tried(s.one)
        assert isinstance(beyond, IoFailed)
        assert beyond.errno == errno.EMSGSIZE

    play(scene)


def test_lease_is_never_removed(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert await s.one.maintenance.lease_names() == []
        assert "belongs to the program" in await s.one.maintenance.take_out("vol-1", dry_run=False)
        assert s.leader().is_free

    play(scene)


def test_next_daemon_finds_the_place_in_the_journal(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        held = assert_held(await tried(s.one))
        candidate = await s.two.open(RESOURCE, create=Creation.NONE)
        assert not isinstance(candidate, IoFailed)
        saved = SavedLock(
            resource=RESOURCE, mode=Mode.EXCLUSIVE, create=False, path=held.path, keys=candidate.keys
        )
        held.forget()
        again = s.alpha.area_backend()
        lver = s.leader().lver
        adopted = assert_held(await again.adopt(saved, None))
        assert (s.leader().owner_id, s.leader().lver) == (1, lver)
        await adopted.release()
        assert s.leader().is_free

    play(scene)


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":5", "/a:-1", "/a:1x"])
def test_what_is_no_place_is_none(text: str) -> None:
    assert area_of(text) is None


def test_place_is_read_back_whatever_its_path() -> None:
    assert area_of(str(Area("/a:b:7", 1048576))) == Area("/a:b:7", 1048576)


def test_lease_of_a_disk_and_of_a_client_have_one_key(tmp_path: Path) -> None:
    """So that the lock table excludes a VM of libvirt's lockd plugin and one of its sanlock plugin."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        directory = tmp_path / "leases"
        disk = tmp_path / "disk.img"
        disk.touch()
        lockd = s.alpha.backend(directory)
        beside = s.alpha.area_backend(beside=lockd)
        name = lease_file(directory, disk).name
        beside.areas.put(name, Area(str(directory / name), 0))
        of_disk = await lockd.open(Resource("", str(disk)), create=Creation.NONE)
        of_client = await beside.open(resource_in(SPACE, name), create=Creation.NONE)
        assert not isinstance(of_disk, IoFailed)
        assert not isinstance(of_client, IoFailed)
        assert of_disk.keys[0] == of_client.keys[0]

    play(scene)


def test_lease_that_a_backend_beside_is_giving_up_is_not_opened(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        beside = s.alpha.area_backend(beside=s.one)
        beside.areas.put("vol-1", s.area)
        held = assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        s.one.unsettled(held._holding, held._found)  # type: ignore[attr-defined]
        with pytest.raises(LeaseUnusable, match="still giving it up"):
            await tried(beside)
        await held.release()
        await assert_held(await tried(beside)).release()

    play(scene)


TERM = (HostId(1), Generation(1))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("theirs", list(Mode))
def test_a_word_takes_over_what_a_host_that_is_off_has_at_a_place_that_a_client_names(
    tmp_path: Path, theirs: Mode, mode: Mode
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        broken: list[str] = []
        assert_held(await tried(s.one, theirs))
        sees_silent(s.beta, 1, no_timeout=False, silent_s=10.0)
        word = OffWord(TERM, HostTimestamp(101), lambda lease, proof: broken.append(f"{lease}: {proof}"))
        both_share = theirs is mode is Mode.SHARED
        if not both_share:
            assert isinstance(await tried(s.two, mode), HeldElsewhere)
        s.two.believe(word)
        await assert_held(await tried(s.two, mode)).release()
        assert ["attested to be off" in each for each in broken] == [True] * (not both_share)

    play(scene)


@pytest.mark.parametrize(
    "word",
    [OffWord(TERM, HostTimestamp(99), print), OffWord((HostId(1), Generation(2)), HostTimestamp(101), print)],
)
def test_a_word_about_another_record_than_the_one_that_stands_counts_never_again(
    tmp_path: Path, word: OffWord
) -> None:
    """The host has renewed since it was given, and is silent once more."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await tried(s.one))
        sees_silent(s.beta, 1, no_timeout=False, silent_s=10.0)
        s.two.believe(word)
        assert isinstance(await tried(s.two), HeldElsewhere)
        assert s.two._words == {}
        assert s.leader().owner_id == 1

    play(scene)


def test_a_word_frees_nothing_for_a_client_that_wants_one_version(tmp_path: Path) -> None:
    """Freeing a lease makes its next version, so the one that the client wants is over."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases")
        assert_held(await tried(s.one))
        sees_silent(s.beta, 1, no_timeout=False, silent_s=10.0)
        s.two.believe(OffWord(TERM, HostTimestamp(101), print))
        lver = s.leader().lver
        s.two.areas.put("vol-1", s.area._replace(wanted_lver=lver))
        assert isinstance(await tried(s.two), HeldElsewhere)
        assert s.leader().lver == lver

    play(scene)
