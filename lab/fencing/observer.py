"""The shared disks, read from outside: when a host renewed, when an owner wrote, whom the lease names.

Nothing that runs in a guest is asked, so nothing that a bug there could make it believe counts. What changed between
two looks happened in between: a change has an earliest and a latest time, one look apart. Looks are O_DIRECT, as the
guests' own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lab.fencing.guests import HOST_IDS, LabError

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import MIB
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.rindex import INTERNAL_LEASE_NAME

LOOK_EVERY_S = 0.03
LOOK_GAP_MAX_S = 1.5
"""Looks further apart than that measure nothing; only a machine that is badly overloaded brings it there."""
LEASE_AREAS = 64
"""So many areas of 1 MiB from the begin of the disk are searched for the lease: the index is far smaller."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Change:
    """Something on disk is new: it was not there at `earliest`, and it was at `latest`."""

    earliest: float
    latest: float


NEVER = Change(0.0, 0.0)


class DirectFile:
    """Reads 4096 bytes at a time past the page cache, where the file system can."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            self._fd = os.open(path, os.O_RDONLY)
        self._buffer = mmap.mmap(-1, _BLOCK)

    def read(self, offset: int, size: int) -> bytes:
        start = offset - offset % _BLOCK
        os.preadv(self._fd, [self._buffer], start)
        return self._buffer[offset - start : offset - start + size]

    def close(self) -> None:
        os.close(self._fd)
        self._buffer.close()


class Observer:
    """A thread that looks all the time; `find_lease` first, then `start`."""

    def __init__(self, leases: Path, owned: Path, sector_bytes: int) -> None:
        self._leases, self._owned = DirectFile(leases), DirectFile(owned)
        self._sector = sector_bytes
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._renewed = dict.fromkeys(HOST_IDS, NEVER)
        self._wrote = dict.fromkeys(HOST_IDS, NEVER)
        self._owned_since = NEVER
        self._owner = 0
        self._gap_s = 0.0
        self._failed: BaseException | None = None
        self.lease_name, self.lease_offset = "", 0

    def find_lease(self) -> None:
        """The one lease of this lab, which some host has made."""
        for area in range(1, LEASE_AREAS):
            leader = self._leader(area * MIB)
            if leader is not None and leader.resource_name.text != INTERNAL_LEASE_NAME:
                self.lease_name, self.lease_offset = leader.resource_name.text, area * MIB
                return
        raise LabError("nobody has made the lease")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with contextlib.suppress(RuntimeError):
            self._thread.join()
        self._leases.close()
        self._owned.close()

    def host_name(self, host: str) -> str:
        """Who has the host id that the lab thinks is this host's."""
        record = self._delta(host)
        return record.host_name.text if record is not None else ""

    # --- what was seen; each may be asked from any thread ---

    def renewed(self, host: str) -> Change:
        """The latest renewal of a host, or claim of its id, that landed."""
        with self._lock:
            return self._renewed[host]

    def wrote(self, host: str) -> Change:
        """The latest write of a host's owner to the disk that the lease is about."""
        with self._lock:
            return self._wrote[host]

    def owner(self) -> tuple[int, Change]:
        """Which host id the lease names as its owner (0: it is free), and since when."""
        with self._lock:
            return self._owner, self._owned_since

    def take_gap(self) -> float:
        """The longest time between two looks since the last question."""
        with self._lock:
            if self._failed is not None:
                raise LabError(f"the observer failed: {self._failed!r}")
            gap, self._gap_s = self._gap_s, 0.0
            return gap

    # --- looking ---

    def _run(self) -> None:
        try:
            self._look_on()
        except BaseException as e:
            with self._lock:
                self._failed = e

    def _look_on(self) -> None:
        before = time.time()
        records: dict[str, bytes | int] = {}
        while not self._stopping.wait(LOOK_EVERY_S):
            begun = time.time()
            look: dict[str, bytes | int] = {}
            for host, host_id in HOST_IDS.items():
                record = self._delta(host)
                look[f"renewed {host}"] = record.timestamp if record is not None else -1
                look[f"wrote {host}"] = self._owned.read(host_id * self._sector, 64)
            leader = self._leader(self.lease_offset)
            look["owner"] = leader.owner_id if leader is not None and leader.timestamp else 0
            change = Change(before, time.time())
            with self._lock:
                self._gap_s = max(self._gap_s, change.latest - change.earliest)
                for host in HOST_IDS:
                    if look[f"renewed {host}"] != records.get(f"renewed {host}"):
                        self._renewed[host] = change
                    if look[f"wrote {host}"] != records.get(f"wrote {host}"):
                        self._wrote[host] = change
                if look["owner"] != records.get("owner"):
                    self._owner, self._owned_since = int(look["owner"]), change
            records, before = look, begun

    def _delta(self, host: str) -> DeltaLease | None:
        raw = self._leases.read((HOST_IDS[host] - 1) * self._sector, DeltaLease.BYTES)
        record = DeltaLease.decode(raw)
        return record if isinstance(record, DeltaLease) else None

    def _leader(self, offset: int) -> Leader | None:
        record = Leader.decode(self._leases.read(offset, Leader.BYTES))
        return record if isinstance(record, Leader) else None
