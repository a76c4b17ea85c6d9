"""Who holds a logical volume of a shared group, from storage alone: LVM says where its lease is, and the lease says who.

A volume that is active on another host alone has no device here, so it is LVM that is asked for it by its path.
"""

from __future__ import annotations

import subprocess

from holdfast.backends.lvm.lvm_commands import refusal
from holdfast.backends.lvm.volume_leases import lease_device, lease_offset
from holdfast.backends.lvm.volumes import FIELDS, NoVolume, row_of, volume_of
from holdfast.cli.offline import storage
from holdfast.cli.who import leases
from holdfast.cli.who.evidence import LeaseSeen, Unreadable

LVS_S = 10.0


def look(backend: str, path: str) -> LeaseSeen:
    """The lease of the volume at a path. May block on storage."""
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
        return unreadable(backend, path, f"lvs: {e}")
    if done.returncode != 0:
        return unreadable(backend, path, str(refusal(done.returncode, done.stdout + done.stderr)))
    row = row_of(done.stdout[max(done.stdout.find("{"), 0) :])
    if row is None:
        return unreadable(backend, path, "the report of lvs is not understood")
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
        with storage.opened(device) as disk:
            return leases.read(backend, place, disk, offset, disk, None)
    except storage.UsageError as e:
        return unreadable(backend, place, str(e))


def unreadable(backend: str, place: str, reason: str) -> LeaseSeen:
    """A lease that may be held, and can't be read."""
    return LeaseSeen(backend, place, unreadable=Unreadable("its volume's lock", f"{place}: {reason}"))
