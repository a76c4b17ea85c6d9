"""Hosts of one lockspace on real files, with memberships that are simply there: for tests of what rests on them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from holdfast.backends.base import Turn
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.device_store import DeviceStore, IndexChange
from holdfast.backends.paxos.directory_store import DirectoryStore
from holdfast.backends.paxos.lease_jobs import HoldingPorts
from holdfast.backends.paxos.lease_store import LeaseStore
from holdfast.model import LockFailureAction, Protection
from holdfast.ondisk import areas, delta, rindex
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, Geometry
from holdfast.ondisk.host_record import is_record_name
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, PaddedName
from holdfast.protocol.host_status import HostState, HostView, SeenTerm
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system import eager_tasks
from holdfast.system.block_io.disk import BlockingDisk, open_blocking
from holdfast.system.block_io.disk_file import REAL_KERNEL, Kernel
from holdfast.system.block_io.inflight_writes import InflightByDevice
from holdfast.system.block_io.lease_files import SystemLeaseStorage
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import SystemDiskIdentities
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.testing.fakes import SimulatedClock

SPACE = "__LIBVIRT__DISKS__"
TIMING = Timing(1, 60)


@dataclass
class StandingPresence:
    """Joined as long as `member` is one."""

    member: Membership | NotAMember
    name: str = SPACE
    fences: bool = True

    def membership(self) -> Membership | NotAMember:
        return self.member

    def refuses_new(self) -> str:
        return ""


def make_lockspace(
    path: Path,
    geometry: Geometry = DEFAULT,
    *,
    index_entries: int = 0,
    name: str = SPACE,
    version: int = delta.VERSION,
    flags: int = 0,
    io_timeout_s: int = TIMING.io_timeout_s,
) -> None:
    """A lockspace, and right behind it an index with so many entries."""
    area, first = areas.lockspace_area(geometry, name, io_timeout_s, version=version, flags=flags)
    raw = first + area[len(first) :]
    if index_entries:
        header = areas.rindex_header(geometry, name, geometry.align_bytes, index_entries)
        raw += areas.rindex_area(header) + areas.lease_area(areas.internal_leader(header))
    path.write_bytes(raw)
    if index_entries:
        with path.open("r+b") as f:
            f.truncate((3 + index_entries) * geometry.align_bytes)


def lease_file(directory: Path, disk: Path) -> Path:
    """The lease of a disk that is named by its path, as libvirt's sanlock plugin names it."""
    return directory / hashlib.md5(str(disk).encode()).hexdigest()


def leases_in(directory: Path) -> list[Path]:
    """The lease files of a directory: neither the lockspace nor the records of its hosts."""
    return sorted(p for p in directory.iterdir() if p.name != SPACE and not is_record_name(p.name, SPACE))


def make_sparse_lease(directory: Path, disk: Path, *, hosts_max: int) -> None:
    """A lease as the daemon makes it, but with holes: thousands of them fit on any disk."""
    path = lease_file(directory, disk)
    raw = areas.lease_area(areas.fresh_leader(DEFAULT, SPACE, path.name, hosts_max))
    with path.open("wb") as f:
        f.write(raw[: len(raw.rstrip(b"\0"))])
        f.truncate(len(raw))


_joined: list[tuple[BlockingDisk, WorkerPool]] = []


def close_all() -> None:
    """What the hosts of a test had open: their tests are many, and a process may have 1024 descriptors."""
    for disk, pool in _joined:
        disk.close()
        pool.close()
    _joined.clear()


@dataclass
class HostLockspaces:
    """One host: its record says that it lives, and everybody sees that it does."""

    lockspace: Path
    host_id: int
    name: str
    generation: int = 1
    geometry: Geometry = DEFAULT
    kernel: Kernel = REAL_KERNEL
    clock: Clock = field(default_factory=SimulatedClock)
    state_of: dict[int, HostState] = field(default_factory=dict)
    terms_of: dict[int, tuple[SeenTerm, ...]] = field(default_factory=dict)
    turn: Turn[IndexChange] = field(default_factory=Turn)
    may_write: bool = True
    version: int = delta.VERSION
    flags: int = 0
    """Of its record, beside the align flag."""

    def __post_init__(self) -> None:
        self.pool = WorkerPool(self.name)
        self.devices = InflightByDevice()
        self.storage = SystemLeaseStorage(self.pool, kernel=self.kernel, devices=self.devices)
        self.presence = StandingPresence(self.join())

    def join(self) -> Membership:
        """Write the record of this generation; the membership of it."""
        self.write_record(timestamp=100 + self.generation)
        disk = open_blocking(str(self.lockspace), self.pool, kernel=self.kernel, devices=self.devices)
        assert not isinstance(disk, IoFailed), disk
        _joined.append((disk, self.pool))
        return Membership(
            lockspace=LockspaceArea(disk, 0, self.geometry, SPACE, self.version),
            host_id=HostId(self.host_id),
            generation=Generation(self.generation),
            ended_generation=self.generation - 1,  # this host has had the id all the time
            bounds=lambda: TIMING,
            may_write=lambda: self.may_write,
            view=self._view,
        )

    def write_record(self, *, timestamp: int) -> None:
        record = DeltaLease(
            geometry=self.geometry,
            space_name=PaddedName.of(SPACE),
            io_timeout_s=1,
            owner_id=self.host_id,
            generation=self.generation,
            host_name=PaddedName.of(self.name, HOST_NAME_BYTES_MAX),
            timestamp=timestamp,
            version=self.version,
            flags=self.geometry.align_flag | self.flags,
        )
        with self.lockspace.open("r+b") as f:
            f.seek(self.geometry.delta_offset_bytes(self.host_id))
            f.write(record.sector())

    def _view(self, host_id: HostId) -> HostView:
        state = self.state_of.get(host_id, HostState.LIVE)
        return HostView(
            host_id=host_id,
            state=state,
            changed_at_latest_look=state is HostState.LIVE,
            terms=self.terms_of.get(host_id, ()),
        )

    def backend(
        self,
        directory: Path | None = None,
        *,
        name_by: NameBy = NameBy.PATH_MD5,
        spawn: Callable[..., object] = eager_tasks.start,
        num_hosts: int | None = 8,
    ) -> PaxosBackend:
        """On lease files in a directory, else on the device that the lockspace is on."""
        places: LeaseStore
        ports = HoldingPorts(offload=self.storage, clock=self.clock, rng=Random(self.host_id), spawn=spawn)
        if directory is not None:
            places = DirectoryStore(str(directory), str(self.lockspace), self.storage, num_hosts)
        else:
            places = DeviceStore(str(self.lockspace), self.storage, num_hosts, ports, self.turn)
        return PaxosBackend(
            "leases",
            presence=self.presence,
            places=places,
            name_by=name_by,
            on_lockfailure=LockFailureAction.PAUSE,
            reach=Protection.CROSS_HOST,
            reach_note="",
            ports=ports,
            storage=InlineStorage(),
            identities=SystemDiskIdentities(),
        )

    def area_backend(
        self, *, beside: PaxosBackend | None = None, spawn: Callable[..., object] = eager_tasks.start
    ) -> AreaBackend:
        """For leases of sanlock's clients."""
        return AreaBackend(
            presence=self.presence,
            leases=self.storage,
            ports=HoldingPorts(offload=self.storage, clock=self.clock, rng=Random(self.host_id), spawn=spawn),
            storage=InlineStorage(),
            identities=SystemDiskIdentities(),
            beside=beside,
        )


def make_area(
    path: Path, offset_bytes: int, name: str, geometry: Geometry = DEFAULT, *, space: str = SPACE
) -> None:
    """A free lease at a place, as `sanlock client init` makes it."""
    raw = areas.lease_area(areas.fresh_leader(geometry, space, name, None))
    with path.open("r+b" if path.exists() else "w+b") as f:
        f.seek(offset_bytes)
        f.write(raw)


def entry_count(path: Path, geometry: Geometry = DEFAULT) -> int:
    """Used entries of the index behind a lockspace."""
    raw = path.read_bytes()[geometry.align_bytes : 2 * geometry.align_bytes]
    header = rindex.RindexHeader.decode(raw)
    assert isinstance(header, rindex.RindexHeader), header
    return len(list(rindex.entries(header, raw)))


def twin(host: HostLockspaces, **changes: object) -> HostLockspaces:
    """The same host in another life."""
    return dataclasses.replace(host, **changes)  # type: ignore[arg-type]
