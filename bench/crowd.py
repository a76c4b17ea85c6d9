"""The other hosts of a lockspace: records that one generator writes, and leases that these hosts hold.

A host is a record that changes: nothing else of it is seen by others. So two thousand hosts need no process. Host ids 1
and 2 stay free, for the daemons under test.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

from bench.lease_peers import IO_TIMEOUT_S, LeaseDirectory, lease_name
from holdfast.ondisk import areas
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.host_block import Dblock
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName

FIRST_ID = 3
GENERATION = 1
_SECTOR = DEFAULT.sector_bytes


class Crowd:
    """Hosts `FIRST_ID`..`directory.hosts_max` of a lockspace, which is written afresh with `IO_TIMEOUT_S` in all records."""

    def __init__(self, directory: LeaseDirectory) -> None:
        self.directory = directory
        self.host_ids = range(FIRST_ID, directory.hosts_max + 1)
        area, first = areas.lockspace_area(DEFAULT, directory.name, IO_TIMEOUT_S)
        directory.space.write_bytes(first + area[len(first) :])
        self._records = [self._record(host_id) for host_id in self.host_ids]
        self._timestamp = 1000
        self._fd = os.open(directory.space, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        self._sectors = mmap.mmap(-1, len(self.host_ids) * _SECTOR)
        self._one = mmap.mmap(-1, _SECTOR)
        self.changed_at = 0.0
        """When the records were last written, by time.monotonic()."""
        self.advance()

    def _record(self, host_id: int) -> DeltaLease:
        # A name of Holdfast's form: its dead bound is that of the daemon that judges, not sanlock's.
        name = PaddedName.of(f"host{host_id}.{host_id:012x}", HOST_NAME_BYTES_MAX)
        return DeltaLease(
            geometry=DEFAULT,
            space_name=PaddedName.of(self.directory.name),
            owner_id=host_id,
            generation=GENERATION,
            host_name=name,
            timestamp=1,
            io_timeout_s=IO_TIMEOUT_S,
        )

    def advance(self) -> None:
        """Every host renews."""
        self._timestamp += 1
        renewed = (replace(record, timestamp=self._timestamp).sector() for record in self._records)
        self._sectors[:] = b"".join(renewed)
        os.pwritev(self._fd, [self._sectors], DEFAULT.delta_offset_bytes(FIRST_ID))
        self.changed_at = time.monotonic()

    def timestamp_of(self, host_id: int) -> int:
        """In the record of a host as it stands on storage; 0 while the id is free."""
        os.preadv(self._fd, [self._one], DEFAULT.delta_offset_bytes(host_id))
        record = DeltaLease.decode(self._one[:])
        assert isinstance(record, DeltaLease), record
        return record.timestamp

    def make_lease(self, disk: str, owner_id: int = 0) -> None:
        """The lease of a disk, owned by one of these hosts or by nobody. The file has holes: thousands fit on any disk."""
        leader = areas.fresh_leader(DEFAULT, self.directory.name, lease_name(disk), self.directory.hosts_max)
        raw = bytearray(areas.lease_area(leader))
        if owner_id:
            stamp = self._timestamp
            owned = replace(
                leader,
                owner_id=owner_id,
                owner_generation=GENERATION,
                lver=1,
                timestamp=stamp,
                write_id=owner_id,
                write_generation=GENERATION,
                write_timestamp=stamp,
            )
            block = Dblock(
                mbal=owner_id, bal=owner_id, inp=owner_id, inp2=GENERATION, inp3=stamp, lver=1
            ).encode()
            raw[:_SECTOR] = owned.sector()
            at = DEFAULT.host_block_offset_bytes(owner_id)
            raw[at : at + len(block)] = block
        with (self.directory.leases / lease_name(disk)).open("wb") as f:
            f.write(raw[: len(raw.rstrip(b"\0"))])
            f.truncate(len(raw))

    def close(self) -> None:
        os.close(self._fd)


def make(place: Path, hosts_max: int, name: str) -> Crowd:
    """A lockspace with all its host ids but 1 and 2 in use."""
    return Crowd(LeaseDirectory(place, hosts_max, name))
