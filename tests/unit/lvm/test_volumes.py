"""Which volume a path leads to, from sysfs and LVM's report, and what is refused with which fix."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from holdfast.backends.lvm.kept import Announced, Kept, NotUnderstood, decode
from holdfast.backends.lvm.ports import LvId, Problem, Refused, Volume
from holdfast.backends.lvm.volumes import FIELDS, NoVolume, Volumes, row_of, volume_of
from holdfast.backends.lvm.write_rules import Grant, Holding, Vm
from holdfast.model import Mode, ProcessId
from holdfast.system.files.disk_identity import lvm_uuid_of, lvm_uuids_of
from holdfast.system.files.mapped_device import NotMapped, SysfsMappedDevices

VG, LV = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg", "WWQyxV-tyfN-1qjW-eUPt-c15t-i2M6-STfxvE"
MAPPED = f"LVM-{VG.replace('-', '')}{LV.replace('-', '')}"
ROW = {
    "vg_name": "vg",
    "vg_uuid": VG,
    "vg_lock_type": "sanlock",
    "vg_lock_args": "1.0.0:lvmlock",
    "lv_name": "lv1",
    "lv_uuid": LV,
    "lv_lockargs": "1.0.0:70254592",
    "lv_layout": "linear",
    "lv_role": "public",
    "pool_lv": "",
    "pool_lv_uuid": "",
}


def report(**changes: str) -> str:
    return json.dumps({"report": [{"lv": [ROW | changes]}]})


class Devices:
    def __init__(self, **uuids: str | NotMapped) -> None:
        self.uuids = uuids

    def uuid(self, path: str) -> str | NotMapped:
        return self.uuids.get(path.rpartition("/")[2], NotMapped("is not there", missing=True))


class Reports:
    def __init__(self, **texts: str | Refused) -> None:
        self.texts = texts
        self.asked: list[str] = []

    async def report(self, path: str) -> str | Refused:
        self.asked.append(path)
        return self.texts[path.rpartition("/")[2]]


def find(volumes: Volumes, *paths: str) -> list[Volume | NoVolume | Refused]:
    async def each() -> list[Volume | NoVolume | Refused]:
        return [await volumes.find(path) for path in paths]

    return asyncio.run(each())


def test_two_paths_to_one_volume_are_one_and_it_is_reported_once() -> None:
    reports = Reports(lv1=report())
    volumes = Volumes(Devices(lv1=MAPPED, **{"vg-lv1": MAPPED}), reports)
    one, two, three = find(volumes, "/dev/vg/lv1", "/dev/mapper/vg-lv1", "/dev/vg/lv1")
    assert isinstance(one, Volume)
    assert one is two is three
    assert (one.id, str(one), one.lv_lock_args) == (LvId(VG, LV), "/dev/vg/lv1", "1.0.0:70254592")
    assert one.has_own_lock
    assert one.why_not_shared == ""
    assert reports.asked == ["/dev/vg/lv1"]
    assert volumes.at("/dev/mapper/vg-lv1") is one


def test_volume_that_is_not_active_is_reported_and_then_known_by_its_path() -> None:
    reports = Reports(lv1=report())
    devices = Devices()
    volumes = Volumes(devices, reports)
    assert volumes.at("/dev/vg/lv1") is None
    (found,) = find(volumes, "/dev/vg/lv1")
    assert volumes.at("/dev/vg/lv1") is found
    # Removed and made again under the name: reported again, as the device may be another one by now.
    devices.uuids["lv1"] = f"LVM-{'x' * 64}"
    assert volumes.at("/dev/vg/lv1") is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"vg_lock_type": ""},
            "volume group vg is not shared, so LVM excludes no other host: vgchange --lock-type",
        ),
        ({"vg_lock_type": "none"}, "is not shared"),
        ({"vg_lock_type": "clvm"}, "lock type 'clvm'"),
        ({"lv_role": "public,snapshot,thicksnapshot"}, "is a snapshot, and LVM has no lock for one"),
        ({"lv_lockargs": ""}, "LVM has no lock for vg/lv1"),
    ],
)
def test_what_lvm_does_not_exclude_is_refused(changes: dict[str, str], says: str) -> None:
    (found,) = find(Volumes(Devices(), Reports(lv1=report(**changes))), "/dev/vg/lv1")
    assert isinstance(found, NoVolume)
    assert says in str(found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lv_layout": "striped"}, ""),
        ({"lv_layout": "raid,raid1"}, "a volume of type raid,raid1 can't be active on two hosts"),
        ({"lv_layout": "cache"}, "a volume of type cache can't be active on two hosts"),
        (
            {"lv_role": "public,origin,thickorigin"},
            "a volume that has snapshots can't be active on two hosts",
        ),
    ],
)
def test_kinds_that_only_one_host_can_have_active(changes: dict[str, str], why: str) -> None:
    (found,) = find(Volumes(Devices(), Reports(lv1=report(**changes))), "/dev/vg/lv1")
    assert isinstance(found, Volume)
    assert found.why_not_shared == why


def test_thin_volume_has_the_lock_of_its_pool() -> None:
    thin = report(lv_lockargs="", lv_layout="thin,sparse", pool_lv="pool")
    pool = report(lv_name="pool", lv_uuid="pool-uuid", lv_layout="thin,pool")
    reports = Reports(lv1=thin, pool=pool)
    (found,) = find(Volumes(Devices(), reports), "/dev/vg/lv1")
    assert isinstance(found, Volume)
    assert (found.lock_lv, found.lv_lock_args) == (("pool", "pool-uuid"), "1.0.0:70254592")
    assert found.lock_type == "sanlock", "lvmlockd refuses another type than that of the group"
    assert not found.has_own_lock
    assert found.why_not_shared == "its thin pool vg/pool can't be active on two hosts"
    assert reports.asked == ["/dev/vg/lv1", "vg/pool"]
    failed = Refused(Problem.NO_ANSWER)
    assert find(Volumes(Devices(), Reports(lv1=thin, pool=failed)), "/dev/vg/lv1") == [failed]


@pytest.mark.parametrize(
    ("mapped", "says"),
    [
        (NotMapped("is no block device"), "is no block device, and driver lvm locks logical volumes alone"),
        ("mpath-3600", "is no logical volume but 'mpath-3600'"),
        (f"{MAPPED}-real", "is no logical volume but 'LVM-"),
    ],
)
def test_device_that_is_no_volume_is_refused_without_asking_lvm(mapped: str | NotMapped, says: str) -> None:
    (found,) = find(Volumes(Devices(lv1=mapped), Reports()), "/dev/vg/lv1")
    assert isinstance(found, NoVolume)
    assert says in str(found)


def test_path_that_can_be_no_volume_is_not_given_to_lvm() -> None:
    (found,) = find(Volumes(Devices(), Reports()), "-x")
    assert isinstance(found, NoVolume)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"report": []}', '{"report": [{"lv": []}]}', '{"report": [{"lv": [{"lv_name": "a"}]}]}'],
)
def test_report_that_is_not_understood_is_refused(text: str) -> None:
    assert row_of(text) is None
    (found,) = find(Volumes(Devices(), Reports(lv1=text)), "/dev/vg/lv1")
    assert isinstance(found, NoVolume)
    assert "is not understood" in str(found)


def test_report_without_an_answer_is_passed_on() -> None:
    refused = Refused(Problem.NO_ANSWER, "lvs")
    assert find(Volumes(Devices(), Reports(lv1=refused)), "/dev/vg/lv1") == [refused]


def test_fields_are_lvms_and_the_uuids_of_a_device_are_both_there() -> None:
    assert set(FIELDS.split(",")) == set(ROW)
    assert lvm_uuids_of(MAPPED) == (VG, LV)
    assert lvm_uuid_of(MAPPED) == LV
    assert lvm_uuids_of(f"{MAPPED}-real") is None
    assert lvm_uuid_of("mpath-x") == ""


def test_name_of_a_device_is_read_from_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = SysfsMappedDevices(str(tmp_path))
    file = tmp_path / "file"
    file.touch()
    assert devices.uuid(str(file)) == NotMapped("is no block device")
    assert devices.uuid(str(tmp_path / "gone")) == NotMapped("is not there", missing=True)
    device = tmp_path / "dev" / "block" / "253:4"
    block = os.stat_result((stat.S_IFBLK, *[0] * 9), {"st_rdev": os.makedev(253, 4)})
    monkeypatch.setattr(os, "stat", lambda _: block)
    assert devices.uuid("/dev/vg/lv1") == NotMapped("is no device of the device mapper")
    (device / "dm").mkdir(parents=True)
    (device / "dm" / "uuid").write_text(f"{MAPPED}\n")
    assert devices.uuid("/dev/vg/lv1") == MAPPED


def test_record_is_read_as_it_was_written() -> None:
    volume = volume_of("/dev/vg/lv1", ROW, None)
    assert isinstance(volume, Volume)
    kept = Kept(
        announced={"uuid-1": Announced(True, ProcessId(1, 2), [volume.id])},
        volumes={volume.id: volume},
        holdings={volume.id: [Holding(Vm("uuid-1", 7), "v1", Mode.SHARED, Grant.YIELDED)]},
    )
    assert decode(kept.encode()) == kept
    assert decode(b"") == Kept()


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_damaged_record_is_no_empty_one(cut: int) -> None:
    with pytest.raises(NotUnderstood):
        decode(Kept().encode()[:cut] if cut < 40 else b'{"format": 2}')
