"""The words of the control socket: what server and client of io.holdfast.Control say to each other.

Plain dataclasses, because both asyncvarlink (the daemon) and msgspec (the command) turn them into JSON.
No `from __future__ import annotations` here: asyncvarlink reads the types at run time.
"""

from dataclasses import dataclass, field

INTERFACE = "io.holdfast.Control"
ERROR_REFUSED = f"{INTERFACE}.Refused"
ERROR_NOT_PERMITTED = f"{INTERFACE}.NotPermitted"
CONFIGURATION_PROBLEM = "the configuration on disk "
"""How those of `StatusInfo.problems` begin that say that it is not in force."""
MIGRATION_PROBLEM = "libvirt's status file of "
"""How those of `StatusInfo.problems` begin that name words of libvirt which the daemon does not know."""
IDENTITY_PROBLEM = "the disk "
MOVED_PROBLEM = "the lock on "
"""How those begin that name a disk whose rule names another backend than that of its lock; they end with the fix."""
ERROR_PROTOCOL = f"{INTERFACE}.ProtocolViolation"
"""What was sent is no Varlink call; the connection is closed."""
ERROR_TOO_MANY = f"{INTERFACE}.TooManyConnections"
"""The user has as many connections as it may have; this one is closed."""
ERROR_METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"
"""A daemon of an earlier release, or the read-only socket, does not offer it."""
ERROR_INTERNAL = f"{INTERFACE}.InternalError"
VENDOR, PRODUCT, URL = "Holdfast", "holdfastd", "https://github.com/holdfast"


@dataclass
class BackendInfo:
    name: str
    driver: str
    capabilities: list[str]


@dataclass
class StatusInfo:
    """One look at the daemon.  Times are seconds since the epoch."""

    version: str
    host: str
    pid: int
    started: float
    owners: int
    locks: int
    locks_lost: int
    connections: int
    connections_max: int
    lockspaces: list[str]
    backends: list[BackendInfo]
    default_backend: str
    virtlockd_socket: str
    journal: str
    """``ok``, or why it can't be written."""
    descriptor_store: bool
    storage_waiting: list[str]
    config_files: list[str]
    last_event: int
    locks_unknown: int = 0
    """Locks held for owners that could not be attributed after a restart."""
    locks_departing: int = 0
    """Of the locks: released for a migration, and held until that is over."""
    doubt: str = ""
    """Why the last daemon's journal is not all that was held; empty if it is."""
    problems: list[str] = field(default_factory=list)
    """What an operator has to put right; a daemon of an earlier release says nothing here."""
    maintenance_since: float | None = None
    """No VM begins on this host since then; absent if it is not in maintenance."""
    maintenance_by: str = ""
    maintenance_reason: str = ""
    log_level: str = ""
    """Now; it may be another one than the configuration's."""


@dataclass
class HolderInfo:
    """One owner's claim on one resource.  Unknown facts are empty, 0 or absent."""

    resource: str
    lockspace: str
    name: str
    mode: str
    owner: str
    owner_uuid: str
    pid: int
    host: str
    since: float | None
    backend: str
    path: str
    protection: int
    protection_word: str
    protection_note: str
    held: bool
    lost_reason: str
    source: str = "holdfastd"
    number: int = 0
    """Of the lock, for `SettleLock`."""
    unknown: str = ""
    """Why its owner could not be attributed; empty for a known one."""
    until: str = ""
    """What ends it, for one that its owner has released already: a migration; else empty."""
    identity: str = ""
    """What the disk is, if its owner has the lease of that too; then no other path leads around the lock."""
    known_by: str = ""
    """Of a disk with a lease: "identity", or "path": another path leads around the lock; "name" of a disk that is reached
    over a network; else empty.
    """


@dataclass
class OwnerInfo:
    name: str
    uuid: str
    domain_id: int
    pid: int
    alive: bool
    stopping: str
    connections: int
    locks: int
    protection: int | None
    """The weakest of its locks; absent if it has none."""
    protection_word: str


@dataclass
class EventInfo:
    number: int
    time: float
    kind: str
    owner: str
    owner_uuid: str
    pid: int
    resource: str
    mode: str
    detail: str


@dataclass
class HostInfo:
    """A host of a lockspace as this daemon sees it."""

    host_id: int
    name: str
    state: str
    generation: int
    io_timeout_s: int
    unchanged_s: float
    dead_in_s: float | None
    """Until its leases can be taken over, if it does not renew meanwhile; absent where that doesn't arise."""
    note: str
    node: str = ""
    """Its whole name, as it says itself; empty if it says nothing that can be believed."""
    version: str = ""
    """Of its holdfastd; likewise."""
    fire_timeout_s: int = 0
    """Of its watchdog; likewise 0."""
    identities: bool = False
    """Whether it says that it has locks on what disks are, beside those of their paths."""


@dataclass
class LeaseSpaceInfo:
    """A lockspace of leases.  Unknown facts are empty, 0 or absent."""

    name: str
    path: str
    state: str
    reason: str
    seconds_left: float | None
    host_id: int
    host_name: str
    generation: int
    renewed_s_ago: float | None
    fails_in_s: float | None
    fenced: bool
    backends: list[str]
    leases: int
    hosts: list[HostInfo]
    fire_timeout_s: int = 0
    """This host's."""
    misfits: str = ""
    """Hosts whose timeouts don't fit this one's, and what to do; empty if there are none."""
    io_timeout_s: int = 0
    """This host's, by which its lease is counted now."""
    next_io_timeout_s: int = 0
    """To which it is being changed; 0: it is not."""


@dataclass
class HistogramInfo:
    """Counts by upper bounds (seconds), each value in one bucket; the last count is of what is above all bounds."""

    bounds: list[float]
    counts: list[int]
    sum_s: float


@dataclass
class RenewalInfo:
    """One renewal that succeeded; the join itself is one of 0 ms."""

    s_ago: float
    read_ms: int
    write_ms: int
    failed_since: int
    """Renewals that failed between it and the next one that succeeded."""


@dataclass
class LeaseSpaceMeasures:
    """Renewals of one lockspace."""

    name: str
    io_timeout_s: int
    latency: HistogramInfo
    """Of those that succeeded since the daemon's start, read and write together."""
    failures: int
    """Since the daemon's start."""
    recent: list[RenewalInfo]
    """Oldest first, of the present membership."""


@dataclass
class MeasuresInfo:
    """What the daemon has counted and measured since its start, which a reload is too."""

    events: dict[str, int]
    """By kind; kinds that have not occurred may be absent."""
    loop_delay: HistogramInfo
    """How late timers of the event loop were."""
    watchdog_feeds: int
    watchdog_fed_s_ago: float | None
    """Absent before the first feed, and without a watchdog."""
    lockspaces: list[LeaseSpaceMeasures]


@dataclass
class CollectedLease:
    """One lease of a collection; ``kept_because`` is empty if it was removed, or would be."""

    backend: str
    name: str
    kept_because: str


@dataclass
class FencedLease:
    """A lease of a host that was said to be off; ``freed`` or not, and the proof or the reason."""

    backend: str
    lease: str
    resource: str
    """The disk, if this daemon has met it."""
    freed: bool
    detail: str


@dataclass
class FencedHost:
    """One term of the host, in one lockspace. Nothing was done anywhere if ``refused`` says why, for any of them."""

    lockspace: str
    host_id: int
    host_name: str
    generation: int
    timestamp: int
    """A number by that host's own clock: each renewal brings another one."""
    io_timeout_s: int
    unchanged_s: float
    seconds_left: float | None
    """Until it has been silent for long enough; absent where it has been, or need not be."""
    refused: str
    leases: list[FencedLease]
    mark: str = ""
    """What came of marking the record as dead for all hosts; empty in a lockspace that has no marks."""
    node: str = ""
    """Its whole name, as far as it is known."""
    on_demand: bool = False
    """Leases of sanlock's clients, whose places only they know, are taken over when a client of this host asks for them."""


@dataclass
class DiskWish:
    """One disk of an Acquire: an absolute path, shared or exclusive."""

    path: str
    shared: bool = False


@dataclass
class VolumeUser:
    """A VM, or another program, that uses a volume on this host."""

    name: str
    pid: int
    role: str
    """What it is to its disks: `owner`, `source` of a migration, `target`, ...; `program` for what is no VM."""
    writes: bool


@dataclass
class VolumeInfo:
    """A logical volume that holdfastd of this host has to do with (`driver = "lvm"`)."""

    path: str
    uuid: str
    held: str
    """`exclusive`, `shared`, or empty: this host has no lock on it."""
    active: bool
    pinned: bool
    """An operator has activated it, and no VM uses it yet."""
    users: list[VolumeUser] = field(default_factory=list)
    problem: str = ""
    """Why `held` is not known."""


HOOK_TAKES = "prepare"
HOOK_ARRIVES = "migrate"
HOOK_ENDS = "release"
"""The operations of libvirt's hook that holdfastd is asked about (libvirt-hooks-lvm.md 1.1)."""


@dataclass
class Starter:
    """The libvirtd that called the hook: its pid, and its start time in clock ticks since boot."""

    pid: int
    start_ticks: int


@dataclass
class Holders:
    holders: list[HolderInfo] = field(default_factory=list)
