"""Who holds a volume, from the bytes that lvmlockd's sanlock has on storage: the layout of libvirt-hooks-lvm.md 3.3."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from typing import Any

import pytest

from holdfast.backends.lvm.host_locks import HostLvLocks
from holdfast.backends.lvm.ports import LeaseSeen, Problem, Refused, Volume
from holdfast.backends.lvm.volume_leases import exclusively_for_s, lease_device, lease_of, lease_offset
from holdfast.model import Mode
from holdfast.ondisk import areas
from holdfast.ondisk.geometry import GEOMETRIES, MIB, SECTOR_512, Geometry
from holdfast.ondisk.host_block import Dblock, HostBlock, ModeBlock
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.types import IoFailed
from holdfast_sim.volumes.shared_locks import volume_named

LV = "WWQyxV-tyfN-1qjW-eUPt-c15t-i2M6-STfxvE"
OWN = 1
SIZES = [GEOMETRIES[0], GEOMETRIES[4]]


class Leases:
    """The device of a volume group's leases: hosts h1 to h4, each in its second generation, and one volume."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        # As lvmlockd places them: the global lease, the group's, and volumes from the 68th area on.
        at = 67 * geometry.align_bytes
        self.volume: Volume = dataclasses.replace(
            volume_named("lv1"), lock_lv=("lv1", LV), lv_lock_args=f"1.0.0:{at}"
        )
        self.at = at
        self.content: dict[int, bytes] = {}
        self.failing = False
        for host_id in range(1, 5):
            record = areas.fresh_delta_lease(geometry, "lvm_vg", 10, 2)
            record = dataclasses.replace(
                record, owner_id=host_id, timestamp=100, host_name=PaddedName.of(f"h{host_id}")
            )
            self._write(geometry.delta_offset_bytes(host_id), record.sector())
        self.leader = areas.fresh_leader(geometry, "lvm_vg", LV, 250)
        self._write(at, self.leader.sector())

    def _write(self, at: int, content: bytes) -> None:
        for begin in range(0, len(content), SECTOR_512):
            self.content[at + begin] = content[begin : begin + SECTOR_512]

    async def read(self, offset_bytes: int, length_bytes: int, *, timeout_s: float) -> bytes | IoFailed:
        if self.failing:
            return IoFailed(errno.EIO)
        zeros = bytes(SECTOR_512)
        sectors = range(offset_bytes, offset_bytes + length_bytes, SECTOR_512)
        return b"".join(self.content.get(at, zeros) for at in sectors)[:length_bytes]

    async def write(self, offset_bytes: int, content: bytes, *, timeout_s: float) -> IoFailed | None:
        raise AssertionError("nothing is written here")

    def in_flight(self, offset_bytes: int, length_bytes: int) -> bool:
        return False

    async def settled(self, offset_bytes: int, length_bytes: int) -> None:
        return None

    def owned(self, host_id: int, generation: int = 2) -> None:
        leader = dataclasses.replace(
            self.leader,
            owner_id=host_id,
            owner_generation=generation,
            timestamp=7,
            lver=24,
            write_id=host_id,
            write_generation=generation,
            write_timestamp=7,
        )
        self._write(self.at, leader.sector())

    def shared(self, host_id: int, generation: int = 2) -> None:
        block = HostBlock(dblock=Dblock(mbal=host_id, lver=24), mode=ModeBlock.shared(generation))
        self._write(
            self.at + self.geometry.host_block_offset_bytes(host_id), block.sector(self.geometry.sector_bytes)
        )

    def damage(self, at: int) -> None:
        self._write(at, b"\x01" * SECTOR_512)

    def seen(self) -> LeaseSeen | Refused:
        return asyncio.run(lease_of(self, self.volume, OWN))


@pytest.fixture(params=SIZES, ids=str)
def leases(request: pytest.FixtureRequest) -> Leases:
    return Leases(request.param)


def test_free_lease(leases: Leases) -> None:
    assert leases.seen() == LeaseSeen(None)


def test_exclusive_lease_of_another_host_and_of_this_one(leases: Leases) -> None:
    leases.owned(2)
    assert leases.seen() == LeaseSeen(Mode.EXCLUSIVE, ("h2",), held_s=93)
    leases.owned(OWN)
    assert leases.seen() == LeaseSeen(Mode.EXCLUSIVE)


@pytest.mark.parametrize(
    "change",
    [
        {"write_id": 3},  # that host's clock
        {"write_generation": 1},
        {"timestamp": 101},  # after the host's last renewal
        {"owner_generation": 1, "write_generation": 1},  # another boot's clock
        {"timestamp": 0},  # free
    ],
    ids=str,
)
def test_age_of_a_hold_is_not_known_by_times_of_two_clocks(leases: Leases, change: dict[str, Any]) -> None:
    record = dataclasses.replace(
        areas.fresh_delta_lease(leases.geometry, "lvm_vg", 10, 2), owner_id=2, timestamp=100
    )
    leader = dataclasses.replace(
        leases.leader, owner_id=2, owner_generation=2, timestamp=7, write_id=2, write_generation=2
    )
    assert exclusively_for_s(leader, record) == 93
    assert exclusively_for_s(dataclasses.replace(leader, **change), record) is None


def test_shared_lease_names_the_other_hosts(leases: Leases) -> None:
    leases.shared(OWN)
    assert leases.seen() == LeaseSeen(Mode.SHARED)
    leases.shared(3)
    leases.shared(4)
    assert leases.seen() == LeaseSeen(Mode.SHARED, ("h3", "h4"))


def test_host_that_came_back_holds_nothing_by_its_earlier_generation(leases: Leases) -> None:
    leases.owned(2, generation=1)
    leases.shared(3, generation=1)
    assert leases.seen() == LeaseSeen(None)
    leases.shared(4)
    assert leases.seen() == LeaseSeen(Mode.SHARED, ("h4",))


def test_holder_whose_own_record_can_not_be_read_holds_it(leases: Leases) -> None:
    leases.owned(2)
    leases.damage(leases.geometry.delta_offset_bytes(2))
    assert leases.seen() == LeaseSeen(Mode.EXCLUSIVE, ("host_id 2",))


def test_lease_in_doubt_is_refused_and_not_free(leases: Leases) -> None:
    leases.damage(leases.at + leases.geometry.host_block_offset_bytes(3))
    assert isinstance(refused := leases.seen(), Refused)
    assert refused.problem is Problem.FAILED
    leases.failing = True
    assert isinstance(refused := leases.seen(), Refused)
    assert refused.problem is Problem.STORAGE_FAILED


def test_lease_of_another_volume_at_that_place_is_refused(leases: Leases) -> None:
    leases.volume = dataclasses.replace(leases.volume, lock_lv=("lv2", "other"))
    assert isinstance(leases.seen(), Refused)


@pytest.mark.parametrize(
    ("arguments", "offset"),
    [("1.0.0:70254592", 67 * MIB), ("", None), ("1.0.0", None), ("2.0.0:1", None), ("1.0.0:-1", None)],
)
def test_place_of_a_lease(arguments: str, offset: int | None) -> None:
    assert lease_offset(arguments) == offset


def test_lease_that_is_not_on_storage_is_refused(leases: Leases) -> None:
    leases.volume = dataclasses.replace(leases.volume, lock_type="dlm", lv_lock_args="")
    assert isinstance(leases.seen(), Refused)


def test_lock_of_dlm_is_refused_by_its_type_before_a_device_is_asked(leases: Leases) -> None:
    """Its group has no device with leases, and "no such file" reads as a failure of the storage."""
    nothing: Any = None
    locks = HostLvLocks(client=nothing, commands=nothing, devices=nothing, storage=nothing, leases=nothing)
    volume = dataclasses.replace(leases.volume, lock_type="dlm", lv_lock_args="dlm")
    assert "dlm" in str(asyncio.run(locks.lease(volume)))


def test_device_of_a_volume_group() -> None:
    assert lease_device("vg") == "/dev/mapper/vg-lvmlock"
    assert lease_device("my-vg") == "/dev/mapper/my--vg-lvmlock"
