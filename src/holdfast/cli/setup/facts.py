"""PURE: what `holdfast setup` is asked for and what it knows of this host, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.cli.doctor.findings import Finding
from holdfast.protocol.timing import Timing


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options. `leases` makes a lockspace where there is none, `join` wants one that others have made."""

    leases: str = ""
    join: str = ""
    profile: str = ""
    watchdog: str = ""
    hosts_max: int = 64
    hook: bool = False
    timing: Timing | None = None
    """What the first look made of all this; later ones, also of other runs, must come to the same."""

    @property
    def place(self) -> str:
        """The directory, file or device of the lockspace; empty without leases."""
        return self.join or self.leases


@dataclass(frozen=True, slots=True)
class HostThere:
    """A host id that a host has: 0 for a fire timeout that it does not say."""

    host_id: int
    name: str
    io_timeout_s: int
    fire_timeout_s: int = 0
    by_holdfast: bool = False


@dataclass(frozen=True, slots=True)
class SpaceSeen:
    """What there is at the place of a lockspace.

    `place` is the directory of lease files or the device, `path` the lockspace itself. `fault`: why it can't be used.
    `name` is empty where there is no lockspace yet. `unused_io_timeout_s` is that of records which no host has.
    """

    place: str
    path: str
    is_device: bool
    has_directory: bool = True
    name: str = ""
    sizes: str = ""
    hosts_max: int = 0
    unused_io_timeout_s: int = 0
    hosts: tuple[HostThere, ...] = ()
    fault: str = ""
    fix: str = ""
    outlives_its_writers: bool = False
    """Whether requests of a process that was killed may still land there."""


@dataclass(frozen=True, slots=True)
class Watchdog:
    """`device`: the device is there. `used_by`: other programs that have it open. `wdmd`: wdmd's socket is there."""

    device: bool = False
    used_by: tuple[str, ...] = ()
    wdmd: bool = False
    nowayout: bool = False
    timeout_max_s: int = 0
    """The greatest one of the hardware; 0: it does not say."""


@dataclass(frozen=True, slots=True)
class SanlockPlugin:
    """qemu-sanlock.conf, with auto_disk_leases = 1: where libvirt's sanlock plugin has its leases. `host_id` 0: none."""

    directory: str
    host_id: int
    io_timeout_s: int


@dataclass(frozen=True, slots=True)
class Carried:
    """A setting of qemu-sanlock.conf or qemu-lockd.conf. `used`: in force with what setup proposes; else `fix` says what to
    do, and is empty where nothing is needed.
    """

    file: str
    setting: str
    used: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The configuration that the wishes come to; no text where the defaults are enough. `refusals`: why it can't be made."""

    text: str = ""
    reasons: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    timing: Timing | None = None
    profile: str = ""
    watchdog: str = ""
    lockspace: str = ""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where disks of domains lie. `shared`: other hosts may reach it; `level`: of the locks that its disks get now."""

    where: str
    kind: str
    disks: tuple[str, ...]
    shared: bool
    level: int
    backend: str


@dataclass(frozen=True, slots=True)
class Facts:
    """This host. Empty texts mean that there is nothing to say against it."""

    config_file: str
    qemu_conf: str
    """Paths of the two files."""
    is_root: bool = True
    systemd: bool = True
    units_there: bool = True
    cannot_edit: str = ""
    """Why libvirt's files can't be edited by its lenses."""
    lock_manager: str | None = None
    libvirt_here: bool = True
    virtlockd_users: tuple[str, ...] = ()
    virtlockd_files: tuple[str, ...] = ()
    """Locked by virtlockd for somebody who is none of libvirt's VMs that are known."""
    virtlockd_not_live: str = "it was not looked at"
    """Why virtlockd can't become holdfastd while these run; empty if it can (ADR 0211)."""
    direct_backend: str = ""
    """holdfastd's backend that locks files themselves, as virtlockd does."""
    virtlockd_pid: int = 0
    virtlockd_units: tuple[str, ...] = ()
    """Those of virtlockd's that run or are enabled, without aliases of ours."""
    holdfastd_runs: bool = False
    config_text: str | None = None
    """The configuration file as it is; None: there is none."""
    config_is_ours: bool = False
    """As `setup` has written it."""
    config_broken: str = ""
    libvirt_active: tuple[str, ...] = ()
    """Units of libvirt's that run: its sockets, and its daemon if it does not idle."""
    libvirt_stopped: tuple[str, ...] = ()
    """Those that ran when a setup began that is not finished, and don't run."""
    chrony_drop_in: str = ""
    """Where a setting for chrony goes; empty if its configuration reads no directory."""
    chrony_unit: str = ""
    gc_timer_there: bool = False
    """Whether the unit is installed."""
    hook_source: str = ""
    hook_path: str = ""
    hook_there: bool = False
    storages: tuple[Storage, ...] = ()
    lock_directories: tuple[str, ...] = ()
    """Of qemu-lockd.conf."""
    carried: tuple[Carried, ...] = ()
    """Every setting of libvirt's two lock managers."""
    joined: bool = True
    """Whether the lockspace of the proposal is joined."""
    findings: tuple[Finding, ...] = field(default=())
    """`holdfast doctor`'s, judged by the configuration that is proposed, or by the one that stays."""

    def has(self, *ids: str) -> bool:
        return any(each.id in ids for each in self.findings)
