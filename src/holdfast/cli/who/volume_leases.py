"""Who holds a logical volume of a shared group: LVM says where its lease is, and the lease says which host, and how long.

A volume that is active on another host alone has no device here, so it is LVM that is asked for it by its path. Whether a
host lives, this host's lock manager says. Which VM uses the volume there is nowhere on storage: lvmlockd takes the lock,
and a lease of sanlock's has no place for more than a host.
"""

from __future__ import annotations

import dataclasses
import subprocess

from holdfast.backends.lvm.lvm_commands import refusal
from holdfast.backends.lvm.volume_leases import exclusively_for_s, lease_device, lease_offset, lockspace_of
from holdfast.backends.lvm.volumes import FIELDS, NoVolume, row_of, volume_of
from holdfast.cli.offline import storage
from holdfast.cli.who import leases
from holdfast.cli.who.evidence import LeaseClaim, LeaseSeen, Unreadable
from holdfast.control.api import HostInfo, LeaseSpaceInfo
from holdfast.model import LVMLOCKD, Mode
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed
from holdfast.protocol.timing import Timing
from holdfast.system.block_io.disk import BlockingDisk
from holdfast.system.files.strong_identity import VOLUME_IDENTITY
from holdfast.system.lvm.lockspace_hosts import SOCKET_PATH, HostSeen, lockspace_seen

LVS_S = 10.0
NO_ANSWER = "LVM or its storage did not answer in time"
NOT_SAID = f"whether that host lives is not known: no lock manager answers on {SOCKET_PATH}"


def look(backend: str, path: str, row: dict[str, str] | str, *, shares: bool = False) -> LeaseSeen:
    """The lease of the volume at a path, of which LVM has reported `row`. `shares`: every host may have it in shared mode,
    and a guard's lease says who writes. May block on storage.
    """
    if isinstance(row, str):
        return unreadable(backend, path, row)
    if row["pool_lv"]:
        return unreadable(
            backend, path, f"its lock is that of its pool: lvs -o +lv_lockargs {row['vg_name']}"
        )
    volume = volume_of(path, row, None)
    if isinstance(volume, NoVolume):
        return unreadable(backend, path, volume.reason)
    offset = lease_offset(volume.lv_lock_args)
    if volume.lock_type != "sanlock" or offset is None:
        return unreadable(backend, path, f"{volume.lock_type} has no lease on storage")
    device = lease_device(volume.vg_name)
    place = f"{device}:{offset}"
    try:
        space = _space(volume.vg_name, device)
        with storage.opened(device) as disk:
            seen = leases.read(backend, place, disk, offset, disk, space)
            leader = Leader.decode(storage.read(disk, offset, SECTOR_4096))
            claims = tuple(
                in_its_sense(_of_lvmlockd(claim, leader, disk), shares=shares) for claim in seen.claims
            )
            return dataclasses.replace(seen, claims=claims)
    except storage.UsageError as e:
        return unreadable(backend, place, str(e))


def in_its_sense(claim: LeaseClaim, *, shares: bool) -> LeaseClaim:
    """A hold of LVM's lock. A volume that only one host can have active is in an exclusive one, whatever the others do."""
    return dataclasses.replace(claim, only_active=shares and claim.mode is Mode.SHARED)


def identity_of(row: dict[str, str] | str) -> str:
    """What a volume is, as its guard's lease is named after it; empty if LVM does not say."""
    return "" if isinstance(row, str) else f"{VOLUME_IDENTITY}{row['lv_uuid']}"


def inactive(path: str) -> str:
    """Of a volume that LVM knows, and that has no device here."""
    return f"{path} is not active on this host: no program here has it open"


def report(path: str) -> dict[str, str] | str:
    """LVM's report of a volume, or why there is none. May block on storage."""
    try:
        done = subprocess.run(
            ("lvs", "--reportformat", "json", "-o", FIELDS, path),
            capture_output=True,
            text=True,
            timeout=LVS_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"lvs: {e}"
    if done.returncode != 0:
        return str(refusal(done.returncode, done.stdout + done.stderr))
    return row_of(done.stdout[max(done.stdout.find("{"), 0) :]) or "the report of lvs is not understood"


def _of_lvmlockd(claim: LeaseClaim, leader: Leader | Malformed, disk: BlockingDisk) -> LeaseClaim:
    """With how long the host has it, if that is known."""
    holder = dataclasses.replace(claim.holder, program=LVMLOCKD)
    if holder.remark == leases.ONE_LOOK:
        holder = dataclasses.replace(holder, remark=NOT_SAID)
    if claim.mode is Mode.EXCLUSIVE and isinstance(leader, Leader) and holder.host_id is not None:
        record = leases.record_of(disk, holder.host_id)
        held_s = exclusively_for_s(leader, record) if record is not None else None
        if held_s is not None:
            since = f"exclusively for {held_s:.0f} s or longer"
            holder = dataclasses.replace(holder, remark=", ".join(filter(None, (since, holder.remark))))
    return dataclasses.replace(claim, holder=holder)


def _space(vg_name: str, device: str) -> LeaseSpaceInfo | None:
    """The group's lockspace as this host's lock manager sees it."""
    seen = lockspace_seen(lockspace_of(vg_name))
    if seen is None:
        return None
    own = next((each for each in seen.hosts if each.host_id == seen.host_id), None)
    return LeaseSpaceInfo(
        name=lockspace_of(vg_name),
        path=device,
        state="",
        reason="",
        seconds_left=None,
        host_id=seen.host_id,
        host_name=own.name if own is not None else "",
        generation=own.generation if own is not None else 0,
        renewed_s_ago=own.unchanged_s if own is not None else None,
        fails_in_s=None,
        fenced=False,
        backends=[],
        leases=0,
        hosts=[
            HostInfo(
                host_id=each.host_id,
                name=each.name,
                state=each.state,
                generation=each.generation,
                io_timeout_s=each.io_timeout_s,
                unchanged_s=each.unchanged_s,
                dead_in_s=_dead_in_s(each),
                note="",
            )
            for each in seen.hosts
        ],
    )


def _dead_in_s(host: HostSeen) -> float | None:
    """Until sanlock calls it dead, if it does not renew meanwhile."""
    if host.state not in ("FAIL", "UNKNOWN"):
        return None
    return max(0.0, Timing(host.io_timeout_s).dead_s - host.unchanged_s)


def unreadable(backend: str, place: str, reason: str) -> LeaseSeen:
    """A lease that may be held, and can't be read."""
    return LeaseSeen(backend, place, unreadable=Unreadable("its volume's lock", f"{place}: {reason}"))
