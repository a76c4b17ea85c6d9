"""Everyone who asks who holds a lease gets the same answer, from the same sectors, through the shipping code.

The table is in `tests.support.lease_images`. On commit b4c5068 three of the six disagreed (review, HOUSE.md 4.1): between
a release's two writes `who` said free, `lease dump` exclusive, and a start was refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support.lease_images import OWNER, Image, images
from tests.support.leases import SPACE, HostLockspaces, make_lockspace

from holdfast.backends.base import Creation, Held, HeldElsewhere
from holdfast.backends.naming import NameBy, indirect_name, lease_name
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.cli.libvirt_files import LOCKD_CONF, scsi_id_of
from holdfast.cli.offline import dump, storage
from holdfast.cli.who.evidence import LeaseSeen
from holdfast.cli.who.inquiry import ask
from holdfast.cli.who.leases import look
from holdfast.config import Config
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode, Resource
from holdfast.protocol.holders import Claim, Exclusive, claims_of
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.system.files.disk_identity import DiskIdentity
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.testing.conformance import NOTE

T = TypeVar("T")


class Scene:
    """A lease file with an image in it, its hosts alive, and host 5 that asks."""

    def __init__(self, directory: Path, image: Image) -> None:
        self.image = image
        self.disk = directory / "disk.img"
        self.disk.touch()
        self.resource = Resource("", str(self.disk))
        self.leases = directory / "leases"
        self.leases.mkdir()
        self.lockspace = self.leases / SPACE
        make_lockspace(self.lockspace)
        self.name = lease_name(self.resource, NameBy.PATH_MD5, DiskIdentity())
        self.path = self.leases / self.name
        for host_id in (1, 2, 3):
            HostLockspaces(self.lockspace, host_id, f"host{host_id}")
        self.asker = HostLockspaces(self.lockspace, 5, "asker")
        self.owner = HostLockspaces(self.lockspace, OWNER[0], "host1")

    def backend(self, host: HostLockspaces) -> PaxosBackend:
        """On the image as it is: what others have done to it is undone."""
        self.path.write_bytes(self.image.area())
        return host.backend(self.leases)

    def who(self) -> LeaseSeen:
        self.path.write_bytes(self.image.area())
        table = {"driver": "paxos", "directory": str(self.leases), "lockspace": SPACE}
        (seen,) = look("san", table, [self.resource], DiskIdentity(), [])
        return seen

    def dumped(self) -> dict[str, Any]:
        self.path.write_bytes(self.image.area())
        with storage.opened(str(self.path)) as disk:
            return dump.dump(disk, None, {}).areas[0].told


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def scene_of(tmp_path: Path, position: int) -> Scene:
    names = images(SPACE, "x")
    scene = Scene(tmp_path, names[position])
    scene.image = images(SPACE, scene.name)[position]
    return scene


positions = pytest.mark.parametrize(
    "position", range(len(images("LS", "R"))), ids=[image.name for image in images("LS", "R")]
)


@positions
def test_the_callers_agree_on_every_image(tmp_path: Path, position: int) -> None:
    s = scene_of(tmp_path, position)
    image, claims = s.image, claims_of(s.image.known)
    hosts = [claim.term[0] for claim in claims]

    # `holdfast who`
    seen = s.who()
    assert [(h.host_id, h.mode) for h in seen.holders] == [(c.term[0], c.mode) for c in claims]
    assert bool(seen.unreadable) == bool(image.damaged)
    assert any(line.startswith("free at version") for line in seen.lines) == (not image.is_held)

    # `holdfast lease dump`
    answer = s.dumped()
    assert [(o["host_id"], o["mode"]) for o in answer["owners"]] == [(c.term[0], c.mode.word) for c in claims]
    assert answer["unclear"] == list(image.damaged)

    # a start, and what its refusal says
    started = run(_started(s))
    assert (started is None) == (not image.is_held)
    if isinstance(image.known, Exclusive) and started is not None and not isinstance(started, str):
        assert [h.host_id for h in started.holders] == hosts[:1]
    elif claims and not image.damaged:
        assert isinstance(started, HeldElsewhere)
        assert [h.host_id for h in started.holders] == hosts

    # `lease gc`, `break` and fencing
    stays, claimed = run(_upkeep(s))
    assert bool(stays) == image.is_held
    if image.damaged:
        assert isinstance(claimed, str)  # why it can't be said
    else:
        assert claimed == [claim.term for claim in claims]

    # adoption by the owner's next daemon
    adopted, left_behind = run(_adoption(s))
    assert adopted == image.adopted
    if not image.damaged:
        assert left_behind == _has(claims, OWNER[0])


async def _started(s: Scene) -> HeldElsewhere | str | None:
    """None if it is granted."""
    candidate = await s.backend(s.asker).open(s.resource, create=Creation.NONE)
    assert not isinstance(candidate, IoFailed)
    try:
        outcome = await candidate.take(Mode.EXCLUSIVE, NOTE)
    except LeaseUnusable as e:
        return str(e)
    if isinstance(outcome, HeldElsewhere):
        return outcome
    assert not isinstance(outcome, IoFailed)
    held: Held = outcome  # type: ignore[assignment]
    await held.release()
    return None


async def _upkeep(s: Scene) -> tuple[str, object]:
    backend = s.backend(s.asker)
    try:
        stays = await backend.maintenance.take_out(s.name, dry_run=True)
    except LeaseUnusable as e:
        stays = str(e)
    return stays, await (await _holding(s, backend)).claims()


async def _adoption(s: Scene) -> tuple[bool, object]:
    holding = await _holding(s, s.backend(s.owner))
    left_behind = await holding.is_left_behind()
    taken = await holding.resume(Mode.EXCLUSIVE)
    holding.forget()
    return isinstance(taken, Lease) and taken.mode is LeaseMode.EXCLUSIVE, left_behind


async def _holding(s: Scene, backend: PaxosBackend) -> Any:
    member = backend.member(s.resource)
    found = await backend.look_up(member, s.resource, s.name)
    assert not isinstance(found, IoFailed)
    return backend.holding(found, member)


def _has(claims: tuple[Claim, ...], host_id: int) -> bool:
    return any(claim.term[0] == host_id for claim in claims)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("file_lockspace_dir", lambda s: indirect_name(str(s.disk))),
        ("", lambda s: str(s.disk)),
    ],
)
def test_who_asks_every_lease_that_libvirt_may_name_for_a_disk(
    tmp_path: Path, setting: str, name: Callable[[Scene], str]
) -> None:
    """On another host: no daemon, no lock file; the lease file alone says who has it (review, F4)."""
    s = scene_of(tmp_path, [image.name for image in images("LS", "R")].index("exclusive"))
    lockspace = "/var/lib/libvirt/lockd" if setting else ""
    resource = Resource(lockspace, name(s))
    conf = tmp_path / "root" / LOCKD_CONF
    conf.parent.mkdir(parents=True)
    conf.write_text(f'{setting} = "{lockspace}"\n' if setting else "")
    lease = lease_name(resource, NameBy.PATH_MD5, DiskIdentity())
    image = next(each for each in images(SPACE, lease) if each.name == "exclusive")
    (s.leases / lease).write_bytes(image.area())
    config = Config(
        run_dir=f"{tmp_path}/run",
        state_dir=f"{tmp_path}/state",
        backend={"san": {"driver": "paxos", "directory": str(s.leases), "host_id": 5, "watchdog": "none"}},
    )
    answer = ask(config, f"{tmp_path}/no socket", str(s.disk), root=f"{tmp_path}/root")
    assert answer.verdict == "held"
    assert "host1 (host_id 1)" in answer.headline

    (s.leases / lease).unlink()
    answer = ask(config, f"{tmp_path}/no socket", str(s.disk), root=f"{tmp_path}/root")
    assert answer.verdict == "free"

    s.lockspace.unlink()
    answer = ask(config, f"{tmp_path}/no socket", str(s.disk), root=f"{tmp_path}/root")
    assert answer.verdict == "unknown"
    assert any("see whether its storage is mounted" in note for note in answer.notes)


def test_scsi_lockspace_names_are_what_udevs_scsi_id_prints() -> None:
    assert scsi_id_of("naa.6001405abcdef") == "36001405abcdef"
    assert scsi_id_of("eui.0025385b") == "20025385b"
    assert scsi_id_of("t10.ATA     QEMU HARDDISK   QM00001 ") == "1ATA_QEMU_HARDDISK_QM00001"
    assert scsi_id_of("36001405abcdef") == "36001405abcdef"
    assert scsi_id_of("") == scsi_id_of("nvme.1234") == ""
