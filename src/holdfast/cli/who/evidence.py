"""What each source says about a disk or a VM: frozen values, which `gather` reads and `verdict` judges.

A source that could not be read is a value of its own, `Unreadable`: it may hide a holder, so nothing beside it is free.
One that has nothing because the file it is about is not there is `Missing`: it holds nothing, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from holdfast.model import Holder, Mode
from holdfast.protocol.holders import Exclusive, Free, Known, Released, Shared, Unclear

if TYPE_CHECKING:
    from holdfast.control.api import HolderInfo
    from holdfast.system.files.proc_locks import LockingProcess
    from holdfast.system.libvirt.domain_disks import DomainDisk
    from holdfast.system.libvirt.domains import Domain


@dataclass(frozen=True, slots=True)
class Unreadable:
    """It counts as held. `source` names it in a sentence (``its lease``); `reason` is the whole note about it."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Missing:
    """The file is not there. `reason` is the whole note about it."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotRunning:
    """No daemon serves the control socket, so the journal speaks for it. `reason` is the whole note about it."""

    reason: str


@dataclass(frozen=True, slots=True)
class JournalClaim:
    """A claim on the disk that a daemon which no longer runs has left in the journal of this boot."""

    mode: Mode
    owner: str
    pid: int
    alive: bool
    """Its process still runs, so the next daemon acquires the lock again."""


@dataclass(frozen=True, slots=True)
class OwnerRecords:
    """The owner records in one lock file: a hint about who has its lock, which a crash may have left."""

    file: str
    owners: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class KernelLocks:
    """Locks of this host on byte 0 of one file, where lock managers lock it: /proc/locks, and who has them."""

    file: str
    processes: tuple[LockingProcess, ...]
    unseen: bool = False
    """A process that this user can't see has a lock there."""


@dataclass(frozen=True, slots=True)
class ImageLocks:
    """QEMU's own locks on one file: these processes have the image open, whatever the lock managers know."""

    file: str
    processes: tuple[LockingProcess, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """Whether an exclusive lock on byte 0 of the file would be refused now, by a lock of this host or another one."""

    file: str
    refused: bool


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """One hold that a lease's sectors show. `over`: its incarnation is proven over, so it holds nothing."""

    holder: Holder
    mode: Mode
    over: bool = False
    only_active: bool = False
    """LVM's lock in shared mode where every host may have that: a guard's lease says who writes, and this does not."""

    def __str__(self) -> str:
        if self.over:
            return f"left by {self.holder}: that term of the host is over, so the next start may take it"
        if self.only_active:
            return f"active by {self.holder}; its guard's lease says who writes"
        return f"{self.mode.word} lease of {self.holder}"


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """One lease of a disk, as storage has it. `known` is None if nothing of it could be read."""

    backend: str
    place: str
    version: int = 0
    known: Known | Unclear | None = None
    claims: tuple[LeaseClaim, ...] = ()
    unreadable: Unreadable | None = None
    """A lease of which a part can't be read has claims besides."""

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Those whose incarnations are not over, and that say who may write."""
        return tuple(claim.holder for claim in self.claims if not (claim.over or claim.only_active))

    @property
    def lines(self) -> list[str]:
        """For people: each claim, and what the sectors say besides."""
        return [*map(str, self.claims), *self._state()]

    def _state(self) -> list[str]:
        match self.known:
            case None | Exclusive(releasing=False) | Shared():
                return []
            case Free():
                return [f"free at version {self.version}"]
            case Released((host_id, _)):
                return [f"free at version {self.version}: host_id {host_id} gave it up"]
            case Exclusive((host_id, _)):
                return [
                    f"host_id {host_id} gave it up, but its last write has not reached storage: it counts as held until "
                    "that host repeats the write, or is proven dead"
                ]
            case Unclear():
                return [str(self.known)]
            case _:
                assert_never(self.known)


@dataclass(frozen=True, slots=True)
class Use:
    """A running VM that has the disk without a lock of its own on it. `how`: as the image below its own, or to read."""

    vm: str
    pid: int | None
    how: str
    writes: bool = False
    """It is the VM's own file (NVRAM, a data file), which it writes."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """About one disk: a field for each source, empty where it was not asked."""

    subject: str
    """The path, as the commands that we print name it."""
    host: str = ""
    """This host's name, as owner records have it."""
    is_root: bool = True
    no_disk: str = ""
    """What the path is, if no VM can have it as a disk; then nothing else was asked."""
    never_locked: bool = False
    """The subject is the name of a disk without a path (``rbd:pool/image``); then only `uses` was asked."""
    daemon: tuple[HolderInfo, ...] | NotRunning | Unreadable = ()
    """The control socket: every claim on the disk at this host, lost ones too."""
    journal: tuple[JournalClaim, ...] | Unreadable = ()
    """Asked only while no daemon serves the control socket."""
    directories: tuple[Unreadable, ...] = ()
    """Those in which a lock file of the disk may be, if that could not be found out."""
    records: tuple[OwnerRecords | Missing | Unreadable, ...] = ()
    """One for each lock file that stands for the disk, by its hash in a directory."""
    kernel: tuple[KernelLocks | Missing | Unreadable, ...] = ()
    """For the disk and each lock file."""
    images: tuple[ImageLocks | Missing | Unreadable, ...] = ()
    """For the disk and each lock file; what could not be read there is what `kernel` could not read."""
    leases: tuple[LeaseSeen, ...] = ()
    """One for each name that libvirt may give the disk, in every backend with leases, if that lease was made."""
    trial: tuple[Trial | Missing | Unreadable, ...] = ()
    """For each lock file, or else for the disk; not asked where the disk has a lease, which says more."""
    uses: tuple[Use, ...] | Unreadable = ()
    """libvirt's files about running VMs; not asked while the daemon knows a holder."""
    place_wanted: bool = False
    """It is a lease of sanlock's clients that this host does not hold, and nobody says where on storage it is."""
    lease_here: str = ""
    """The lease that the file or device begins with, as `who` wants it named. It may be what a guest wrote there."""

    @property
    def holders(self) -> tuple[HolderInfo, ...]:
        """The daemon's; none if it did not answer."""
        return self.daemon if isinstance(self.daemon, tuple) else ()

    @property
    def journal_claims(self) -> tuple[JournalClaim, ...]:
        return self.journal if isinstance(self.journal, tuple) else ()

    @property
    def owners(self) -> list[Holder]:
        """Of all owner records."""
        return [owner for each in self.records if isinstance(each, OwnerRecords) for owner in each.owners]

    @property
    def lock_managers(self) -> list[LockingProcess]:
        """Processes of this host that have a lock where lock managers have theirs."""
        return [p for each in self.kernel if isinstance(each, KernelLocks) for p in each.processes]

    @property
    def qemus(self) -> list[LockingProcess]:
        return [p for each in self.images if isinstance(each, ImageLocks) for p in each.processes]

    def unread(self) -> Iterator[Unreadable]:
        """Every source that could not be read, but for leases, which have a verdict of their own."""
        several = (*self.directories, *self.records, *self.kernel, *self.trial)
        for each in (self.daemon, self.journal, *several, self.uses):
            if isinstance(each, Unreadable):
                yield each


@dataclass(frozen=True, slots=True)
class Judged:
    """A disk of a VM, with the verdict about it."""

    path: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class VmEvidence:
    """About one VM."""

    name: str
    host: str
    daemon: tuple[HolderInfo, ...] | NotRunning | Unreadable
    """The control socket: its claims."""
    disks: tuple[Judged, ...] = ()
    """Of its definition, or known by its claims."""
    unasked: int = 0
    """How many more disks it has: only so many are asked about."""
    domain: Domain | Unreadable | None = None
    """libvirt's file about it."""
    runs: bool = False
    """Its QEMU does, by that file."""

    @property
    def unlocked(self) -> tuple[DomainDisk, ...]:
        """Disks without a lock for their kind, whether it runs or not."""
        return () if self.domain is None or isinstance(self.domain, Unreadable) else self.domain.unlocked


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from the evidence. `state`: held, free or unknown; `next_step`: what may safely be done."""

    state: str
    headline: str
    next_step: str
    notes: tuple[str, ...] = ()
