"""Who holds a volume, by its lease on storage: lvmlockd's leases are sanlock's (libvirt-hooks-lvm.md 3.3).

    device      /dev/mapper/VG-lvmlock, dashes in VG doubled         lockspace     lvm_VG
    place       OFFSET of lv_lockargs, `1.0.0:OFFSET`                lease         the volume's UUID, with dashes
    exclusive   the leader has an owner                              shared        marks in the blocks of hosts
    hosts       delta leases at offset 0, with sanlock's host names

No lock and no LVM command: reads of the leader with the blocks, and of one sector for each host that seems to hold it. A
host that has come back since, with a higher generation, holds nothing by its earlier one. One read does not show whether
a host lives, so one that has died counts until lvmlockd, too, calls it dead. With dlm nothing of this is on storage.
"""

from __future__ import annotations

from holdfast.backends.lvm.ports import LeaseSeen, Problem, Refused, Volume
from holdfast.model import Mode
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.holders import claims_of, holders_of
from holdfast.protocol.lease_area import LeaseArea, Snapshot
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.ports import Disk
from holdfast.protocol.types import HostId, IoFailed

READ_S = 10.0
"""For one read. lvmlockd's own answers take as long at most."""
LOWEST = HostId(1)
"""The reader's place in the lease does not matter: it votes for nothing."""


def lease_device(vg_name: str) -> str:
    """The device with the leases of a volume group; lvmlockd has it active while the group is started."""
    return f"/dev/mapper/{vg_name.replace('-', '--')}-lvmlock"


def lockspace_of(vg_name: str) -> str:
    """lvmlockd's name of a group's lockspace."""
    return f"lvm_{vg_name}"


def lease_offset(lv_lock_args: str) -> int | None:
    """Where a volume's lease is on that device, in bytes; None if that is not understood."""
    version, _, offset = lv_lock_args.partition(":")
    known = version.split(".")[0] == "1" and offset.isascii() and offset.isdigit()
    return int(offset) if known else None


def lease_at(volume: Volume) -> int | Refused:
    """Where on its group's `lease_device` the lock of a volume is, in bytes; locks of dlm are on no storage."""
    offset = lease_offset(volume.lv_lock_args)
    if volume.lock_type == "sanlock" and offset is not None:
        return offset
    return Refused(
        Problem.FAILED, f"{volume.lock_type} with '{volume.lv_lock_args}' has no lease that can be read"
    )


async def lease_of(disk: Disk, volume: Volume, own_host_id: int) -> LeaseSeen | Refused:
    """Who holds the lock of a volume. `disk`: its group's `lease_device`; `own_host_id`: this host's in that lockspace."""
    offset = lease_at(volume)
    if isinstance(offset, Refused):
        return offset
    space = lockspace_of(volume.vg_name)
    area = LeaseArea(disk, offset, DEFAULT, space, volume.lock_lv[1] or volume.id.lv_uuid)
    seen = await area.look(LOWEST, READ_S)
    if not isinstance(seen, Snapshot):
        return _failed(f"the lease of {volume}", seen)
    hosts = LockspaceArea(disk, 0, seen.leader.geometry, space)
    mode: Mode | None = None
    others: list[str] = []
    held_s: float | None = None
    for claim in claims_of(holders_of(seen.leader, seen.blocks)):
        host_id, generation = claim.term
        record = await hosts.read_record(host_id, READ_S)
        if isinstance(record, IoFailed):
            return _failed(f"the record of host_id {host_id} in {space}", record)
        name = ""
        if not isinstance(record, Malformed):
            if record.generation > generation:
                continue
            name = record.host_name.text
        mode = max(mode or claim.mode, claim.mode)
        if host_id != own_host_id:
            others.append(name or f"host_id {host_id}")
            if claim.mode is Mode.EXCLUSIVE and not isinstance(record, Malformed):
                held_s = exclusively_for_s(seen.leader, record)
    return LeaseSeen(mode, tuple(others), held_s)


def exclusively_for_s(leader: Leader, record: DeltaLease) -> float | None:
    """How long a lease's owner had it at the last renewal of its host: both times are readings of that host's one clock.

    None where they are not: another host wrote the leader, or the host has joined again since. `record`: the owner's.
    """
    owner = (leader.owner_id, leader.owner_generation)
    is_one_clock = owner == (leader.write_id, leader.write_generation) == (record.owner_id, record.generation)
    if leader.is_free or not is_one_clock or record.timestamp < leader.timestamp:
        return None
    return float(record.timestamp - leader.timestamp)


def _failed(what: str, why: Malformed | IoFailed) -> Refused:
    return Refused(Problem.STORAGE_FAILED if isinstance(why, IoFailed) else Problem.FAILED, f"{what}: {why}")
