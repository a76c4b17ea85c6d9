"""The lockspace that is about to be overwritten: that no host renews there, and which generations it has used.

A lockspace that is made again under a running host takes its leases away without a word. And if its host ids counted from
0 again, another host would get the very host id and generation of that one (safety.md A3).
"""

from __future__ import annotations

import time

import click

from holdfast.cli import exits
from holdfast.cli.offline import storage
from holdfast.cli.offline.identify import hosts_of, identify, shown
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.system.block_io.blocking_ports import BlockingClock, run_blocking
from holdfast.system.block_io.disk import BlockingDisk

WATCH_IO_TIMEOUTS = 3
"""A healthy host renews within two io_timeouts, and a request takes one at most."""


def generation_above(disk: BlockingDisk, offset_bytes: int, *, quiet: bool) -> int:
    """What the host ids of a new lockspace count from: above every one that was there, and the seconds since 1970.

    Takes 3 io_timeouts if a host has an id there now, and raises `UsageError` if any of them renews meanwhile. `quiet`: say
    nothing while it takes time.
    """
    now = int(time.time())
    first = identify(storage.read(disk, offset_bytes, SECTOR_4096))
    if not isinstance(first, DeltaLease):
        return now
    before = _records(disk, offset_bytes, first)
    held = [record for record in before.values() if isinstance(record, DeltaLease) and not record.is_free]
    if held:
        watch_s = WATCH_IO_TIMEOUTS * max(record.io_timeout_s for record in held)
        if not quiet:
            click.echo(f"watching the {len(held)} host ids in use there for {watch_s} s", err=True)
        run_blocking(BlockingClock().sleep(watch_s))
        after = _records(disk, offset_bytes, first)
        for host_id, record in after.items():
            if record != before.get(host_id):
                _refuse(disk, first, host_id, record)
    used = [record.generation for record in before.values() if isinstance(record, DeltaLease)]
    return max(now, *(generation + 1 for generation in used), 0)


def _records(disk: BlockingDisk, offset_bytes: int, first: DeltaLease) -> dict[int, object]:
    return dict(hosts_of(storage.read(disk, offset_bytes, first.geometry.align_bytes), first.geometry))


def _refuse(disk: BlockingDisk, first: DeltaLease, host_id: int, record: object) -> None:
    who = shown(record.host_name) if isinstance(record, DeltaLease) else "a host"
    raise storage.UsageError(
        "PATH",
        f"{disk.facts.path} holds lockspace {shown(first.space_name)!r}, and {who} (host_id {host_id}) renews there: "
        "its VMs would lose their leases",
        "end or migrate the VMs of that host and have it leave ('holdfast lockspace leave' there), then try again",
        exits.REFUSED,
    )
