"""Which shared volume a path leads to: path, block device, device mapper's UUID, volume, and what LVM reports of it.

    /dev/vg/web ─ (sysfs) ─ LVM-<vg><lv> ─ known already? ─ yes ─ the volume
         │ not active                            └ no ─┐
         └──────────────────────────────────── lvs PATH ┴─ refused, or the volume: remembered

Two paths to one volume are one. Refused with the reason and the fix: what is no volume of LVM, an inner device of one, a
volume group that is not shared, and a snapshot, which has no lock of its own. A volume that only one host can have active
(`Volume.why_not_shared`) can be used, and its VM is not migrated live: for a thin one the lock is its pool's
(libvirt-hooks-lvm.md 3.1, 3.7; lvmlockd(8) for the other kinds).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Protocol

from holdfast.backends.lvm.ports import LvId, Refused, Volume
from holdfast.system.files.disk_identity import lvm_uuids_of
from holdfast.system.files.mapped_device import MappedDevices, NotMapped

FIELDS = "vg_name,vg_uuid,vg_lock_type,vg_lock_args,lv_name,lv_uuid,lv_lockargs,lv_layout,lv_role,pool_lv,pool_lv_uuid"
"""Of one `lvs --reportformat json -o … PATH`; the keys of its answer are these, whatever alias was asked for."""
LOCK_TYPES = ("sanlock", "dlm")
OTHER_NAME = re.compile(r"/dev/(mapper/|dm-\d)")
"""Of a volume: what no rule for /dev/VG/* matches."""
LAYOUTS_SHARED = frozenset(("linear", "striped"))
"""Kinds of volumes that may be active on two hosts: those without a state of their own beside the data."""
VOLUMES_MAX = 10_000
"""That are remembered; when full, all are forgotten."""


class LvReports(Protocol):
    """The port: LVM's report of the volume at a path."""

    async def report(self, path: str) -> str | Refused:
        """What `lvs --reportformat json -o FIELDS PATH` prints."""


@dataclass(frozen=True, slots=True)
class NoVolume:
    """Why a path can't be locked as a volume, in one sentence with the fix."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def row_of(text: str) -> dict[str, str] | None:
    """The one volume of a report, as LVM's names to values; None if it is not understood."""
    try:
        (row,) = json.loads(text)["report"][0]["lv"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS.split(",")):
        return None
    return {name: row[name] for name in FIELDS.split(",")}


def volume_of(path: str, row: dict[str, str], pool: dict[str, str] | None) -> Volume | NoVolume:
    """The volume of a report's row, or why it is none. `pool`: the row of its pool, if it is in one."""
    vg, lv, kind = row["vg_name"], row["lv_name"], row["vg_lock_type"]
    if kind in ("", "none"):
        return NoVolume(
            f"{path}: volume group {vg} is not shared, so LVM excludes no other host: vgchange --lock-type sanlock {vg} "
            "(all its volumes must be inactive), or a rule with another backend"
        )
    if kind not in LOCK_TYPES:
        return NoVolume(
            f"{path}: volume group {vg} has lock type '{kind}', and this driver knows {' and '.join(LOCK_TYPES)}"
        )
    if "thicksnapshot" in row["lv_role"].split(","):
        return NoVolume(
            f"{path} is a snapshot, and LVM has no lock for one: copy it to a volume of its own, or use a thin volume"
        )
    lock = pool if pool is not None else row
    if kind == "sanlock" and not lock["lv_lockargs"]:
        return NoVolume(
            f"{path}: LVM has no lock for {vg}/{lock['lv_name']}, although {vg} is shared; lvs -o +lv_lockargs {vg}"
        )
    in_pool = "" if pool is None else f"{vg}/{pool['lv_name']}"
    return Volume(
        id=LvId(row["vg_uuid"], row["lv_uuid"]),
        vg_name=vg,
        lv_name=lv,
        lock_type=kind,
        vg_lock_args=row["vg_lock_args"],
        lv_lock_args=lock["lv_lockargs"],
        lock_lv=(lock["lv_name"], lock["lv_uuid"]),
        why_not_shared=why_one_host(row["lv_layout"], row["lv_role"], in_pool),
    )


def why_one_host(layout: str, roles: str, pool: str) -> str:
    """Why a volume can be active on one host alone, as a sentence; empty if it can be on two. `layout`, `roles`: LVM's
    lv_layout and lv_role. `pool`: the pool that it is in, as VG/LV; empty if it is in none.
    """
    layouts = layout.split(",")
    if pool:
        return f"its {'thin pool' if 'thin' in layouts else 'pool'} {pool} can't be active on two hosts"
    if not LAYOUTS_SHARED & set(layouts):
        return f"a volume of type {layout} can't be active on two hosts"
    if "thicksnapshot" in roles.split(","):
        return "LVM has no lock for a snapshot"
    if any("origin" in each for each in roles.split(",")):
        return "a volume that has snapshots can't be active on two hosts"
    return ""


class Volumes:
    """The volumes that paths lead to, remembered by their UUIDs."""

    def __init__(self, devices: MappedDevices, reports: LvReports) -> None:
        self._devices = devices
        self._reports = reports
        self._by_id: dict[LvId, Volume] = {}
        self._by_path: dict[str, LvId] = {}

    def at(self, path: str) -> Volume | None:
        """The volume at a path if it is known, without waiting. While the device is missing, the one that was there last."""
        mapped = self._devices.uuid(path)
        if isinstance(mapped, NotMapped):
            lv = self._by_path.get(path) if mapped.missing else None
        else:
            uuids = lvm_uuids_of(mapped)
            lv = LvId(*uuids) if uuids is not None else None
        return self._by_id.get(lv) if lv is not None else None

    async def find(self, path: str) -> Volume | NoVolume | Refused:
        """The volume at a path, by LVM's report unless its device is there and known; may take as long as an LVM command."""
        mapped = self._devices.uuid(path)
        if isinstance(mapped, NotMapped):
            if not mapped.missing or not path.startswith("/dev/"):
                return NoVolume(f"{path} {mapped.reason}, and driver lvm locks logical volumes alone")
        elif lvm_uuids_of(mapped) is None:
            return NoVolume(
                f"{path} is no logical volume but '{mapped}' of the device mapper: give the VM the volume itself, /dev/VG/LV"
            )
        elif (known := self.at(path)) is not None:
            self._by_path[path] = known.id
            return known
        row = await self._row(path)
        if isinstance(row, Refused | NoVolume):
            return row
        pool: dict[str, str] | None = None
        if row["pool_lv"]:
            of_pool = await self._row(f"{row['vg_name']}/{row['pool_lv'].strip('[]')}")
            if isinstance(of_pool, Refused | NoVolume):
                return of_pool
            pool = of_pool
        found = volume_of(path, row, pool)
        if isinstance(found, Volume):
            self.remember(found, path)
        return found

    def remember(self, volume: Volume, path: str = "") -> None:
        """A volume that was reported earlier, to this daemon or to the last one."""
        if len(self._by_id) >= VOLUMES_MAX:
            self._by_id.clear()
            self._by_path.clear()
        self._by_id[volume.id] = volume
        self._by_path[path or str(volume)] = volume.id

    async def _row(self, path: str) -> dict[str, str] | Refused | NoVolume:
        text = await self._reports.report(path)
        if isinstance(text, Refused):
            return text
        row = row_of(text)
        return row if row is not None else NoVolume(f"LVM's report of {path} is not understood: {text[:200]}")
