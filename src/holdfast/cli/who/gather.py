"""Reads every source that says who holds a disk, each of which works without the others, into `Evidence`:

* the daemon: exact, for this host; while it does not run, the journal that it has left;
* the lock file: the owner record in it names the holder, also one on another host; the kernel says whether it is locked;
* the kernel's lock table: which process of this host has byte 0 of the disk or of its lock file: a virtlockd, another
  holdfastd; and a trial, which the file system answers for other hosts too;
* leases on shared storage: which host and VM hold it across hosts, and whether that host lives;
* QEMU's own image locks: some process has the disk open, whatever the lock managers think;
* libvirt's files: VMs that use it without a lock of their own.

Storage may hang, so it is read by a child process with a bound (`bounded_question`). What can't be read becomes
`Unreadable`; nothing here raises for it, and nothing here judges.
"""

from __future__ import annotations

import os
import socket as sockets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any, TypeVar

from holdfast.backends.file import owner_record
from holdfast.backends.naming import indirect_name
from holdfast.cli.libvirt_files import domains, lease_paths, libvirt_lockspaces, libvirt_names, lockable_paths
from holdfast.cli.who.client_leases import ClientLease, at_start_of
from holdfast.cli.who.disk_users import no_disk, users, users_of_name
from holdfast.cli.who.evidence import (
    Evidence,
    ImageLocks,
    JournalClaim,
    KernelLocks,
    LeaseSeen,
    Missing,
    NotRunning,
    OwnerRecords,
    Trial,
    Unreadable,
)
from holdfast.config import Config
from holdfast.control.api import HolderInfo, LeaseSpaceInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.manager.journal_replay import SavedState, replay
from holdfast.model import IDENTITY_LOCKSPACE, SANLOCK_PREFIX, Resource
from holdfast.network_disk import names_network_disk
from holdfast.system.files.bounded_question import ANSWER_S, Silent, answer_in_time
from holdfast.system.files.disk_identity import DiskIdentity, SystemDiskIdentities
from holdfast.system.files.proc_locks import locks_on, processes_with, refused_by
from holdfast.system.files.regular_file import open_regular
from holdfast.system.host.process import boot_id, start_ticks
from holdfast.system.libvirt.domains import SUFFIX, Domain

T = TypeVar("T")

LEASES_ANSWER_S = 15.0
"""For all leases that one disk may have in a backend: each takes a few requests."""
DAEMON_ANSWER_S = 10.0
DAEMON = "the daemon's list of locks"
JOURNAL = "the journal"

Claims = tuple[HolderInfo, ...] | NotRunning | Unreadable


class Sources:
    """The sources of one question; connects to the daemon once."""

    def __init__(self, config: Config, socket: str, root: str) -> None:
        self._config = config
        self._root = root
        self.host = sockets.gethostname()
        self.is_root = os.geteuid() == 0
        self._daemon: ControlClient | NotRunning | Unreadable
        try:
            self._daemon = ControlClient(socket, timeout_s=DAEMON_ANSWER_S)
        except DaemonUnreachable as e:
            self._daemon = NotRunning(str(e)) if e.not_running else Unreadable(DAEMON, str(e))
        self._connected = isinstance(self._daemon, ControlClient)
        self._silent: set[str] = set()
        """Directories that did not answer."""
        self._reports: dict[str, dict[str, str] | str] = {}
        """Of volumes, by their paths, as LVM has answered."""

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._daemon, ControlClient):
            self._daemon.close()

    # --- a VM, a key ---

    def locks_named(self, name: str) -> list[HolderInfo]:
        """Claims of this host by the key of a `<lease>`, or by a hash."""
        return [h for h in self._locks if h.name == name] if isinstance(self._locks, tuple) else []

    def claims_of(self, vm: str) -> Claims:
        """By its name or UUID."""
        if not isinstance(self._locks, tuple):
            return self._locks
        return tuple(h for h in self._locks if vm in (h.owner, h.owner_uuid))

    def disks_of(self, vm: str, claims: Claims) -> list[str]:
        """Paths of its disks, by its definition and its claims."""
        disks = set(lockable_paths(vm, self._root))
        hashes = {indirect_name(d) for d in disks}
        if isinstance(claims, tuple):
            # A claim in a hash lockspace is one of the disks that we know by path.
            disks |= {c.resource for c in claims if c.name not in hashes}
        return sorted(disks)

    def domain(self, vm: str) -> Domain | Unreadable | None:
        """What libvirt's file says of a VM; None if there is no such VM here."""
        unread: list[str] = []
        every = list(domains(self._root, unread))
        found = next((each for each in every if vm in (each.name, each.uuid)), None)
        if found is not None and found.pid is not None:
            return found
        for path in unread:
            name = os.path.basename(path).removesuffix(SUFFIX)
            if name == vm or (found is not None and name == found.name):
                return Unreadable(
                    "libvirt's file about it", f"{path} can't be read: which disks it has is not known"
                )
        return found

    def lease_files(self, key: str) -> list[str]:
        """The files that stand for `<lease>` elements with that key."""
        return lease_paths(key, self._root)

    def client_lease(self, lease: ClientLease) -> Evidence:
        """A lease of sanlock's clients. One that is named without its place is known if this host holds it."""
        key = (SANLOCK_PREFIX + lease.lockspace, lease.name)
        ours = self._locks
        if isinstance(ours, tuple):
            ours = tuple(h for h in ours if (h.lockspace, h.name) == key)
        if not lease.path and isinstance(ours, tuple) and ours:
            lease = lease.at(ours[0].path)
        if not lease.path:
            return Evidence(str(lease), self.host, self.is_root, daemon=ours, place_wanted=True)
        from holdfast.cli.who import leases

        try:
            seen = answer_in_time(
                partial(leases.look_at, lease, self._space(lease.lockspace)), LEASES_ANSWER_S
            )
        except Silent:
            reason = "its storage did not answer in time"
            seen = leases.unreadable_at(lease, reason)
        return Evidence(str(lease), self.host, self.is_root, daemon=ours, leases=(seen,))

    def has_lockspace(self, name: str) -> bool:
        return self._space(name) is not None

    def _space(self, name: str) -> LeaseSpaceInfo | None:
        """As this host's daemon sees it; None if it does not."""
        return next((each for each in self._spaces if each.name == name), None)

    @cached_property
    def _spaces(self) -> list[LeaseSpaceInfo]:
        """Empty if the daemon does not answer: it would only add whether the hosts live."""
        spaces = self._ask(lambda client: client.lease_spaces())
        return spaces if isinstance(spaces, list) else []

    # --- a disk ---

    def disk_without_path(self, name: str) -> Evidence:
        """By a name such as ``rbd:pool/image``."""
        uses = users_of_name(name, self._root)
        globs = (rule.match for rule in self._config.disk if rule.match is not None)
        if not names_network_disk(globs, name):
            return Evidence(name, self.host, self.is_root, never_locked=True, uses=uses)
        holders = self._ask(lambda client: client.holders(name))
        daemon = tuple(holders) if isinstance(holders, list) else holders
        held = isinstance(daemon, tuple) and any(h.held for h in daemon)
        return Evidence(
            name,
            self.host,
            self.is_root,
            daemon=daemon,
            journal=() if self._connected else self._journal_claims(name),
            leases=self._leases(name, DiskIdentity(), ""),
            uses=() if held else uses,
        )

    def disk(self, path: str, *, is_lock_file: bool = False) -> Evidence:
        """`is_lock_file`: it stands for a `<lease>`, so what is written in it is an owner's record, and no guest's."""
        if kind := no_disk(path):
            return Evidence(path, self.host, self.is_root, no_disk=kind)
        disk, strong = _identity_of(path)
        strong = strong or self._guarded_identity(path)
        lock_files, directories = self._lock_files(path, strong)
        lock_files += [path] * is_lock_file
        holders = self._ask(lambda client: client.holders(path))
        daemon = tuple(holders) if isinstance(holders, list) else holders
        leases = self._leases(path, disk, strong)
        files = {
            file: _in_time(file, is_lock_file=file in lock_files)
            for file in dict.fromkeys([path, *lock_files])
        }
        files[path] = self._of_inactive_volume(path, files[path])
        held = isinstance(daemon, tuple) and any(h.held for h in daemon)
        return Evidence(
            path,
            self.host,
            self.is_root,
            daemon=daemon,
            journal=() if self._connected else self._journal_claims(path),
            directories=tuple(directories),
            records=tuple(files[file].record for file in lock_files),
            kernel=tuple(each.kernel for each in files.values()),
            images=tuple(each.images for each in files.values()),
            leases=leases,
            trial=() if leases else tuple(files[file].trial for file in lock_files or [path]),
            uses=() if held else users(path, _pids(files), self._root),
            lease_here=files[path].lease_here,
        )

    def _lock_files(self, path: str, strong: str) -> tuple[list[str], list[Unreadable]]:
        """Lock files that stand for a disk: in the configured directories, and where libvirt keeps its own."""
        names = [indirect_name(path)]
        if strong:
            names.append(indirect_name(str(Resource(IDENTITY_LOCKSPACE, strong))))
        directories = [
            str(t["directory"]) for t in self._config.backend.values() if isinstance(t.get("directory"), str)
        ]
        directories += libvirt_lockspaces(self._root)
        directories += self._lockspaces
        found: list[str] = []
        unread: list[Unreadable] = []
        for directory in dict.fromkeys(directories):
            for file in (f"{directory}/{name}" for name in names):
                try:
                    answer_in_time(partial(_stat, file), ANSWER_S)
                    found.append(file)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as e:
                    unread.append(Unreadable(directory, f"{file}: {e.strerror}"))
                    break
                except Silent:
                    self._silent.add(directory)
                    reason = (
                        f"{directory} did not answer within {ANSWER_S:g} s: a lock file there may say more"
                    )
                    unread.append(Unreadable(directory, reason))
                    break
        return found, unread

    @cached_property
    def _lockspaces(self) -> list[str]:
        """Directories that virtlockd's clients have named: the daemon knows them, or its journal does."""
        status = self._ask(lambda client: client.status())
        if not isinstance(status, NotRunning | Unreadable):
            return status.lockspaces
        return list(self._saved.lockspaces) if isinstance(self._saved, SavedState) else []

    @cached_property
    def _locks(self) -> Claims:
        locks = self._ask(lambda client: client.locks())
        return tuple(locks) if isinstance(locks, list) else locks

    def _ask(self, question: Callable[[ControlClient], T]) -> T | NotRunning | Unreadable:
        """The daemon's answer. One that has failed to answer is not asked again: each call would wait as long."""
        if not isinstance(self._daemon, ControlClient):
            return self._daemon
        try:
            return question(self._daemon)
        except CallRefused as e:
            return Unreadable(DAEMON, str(e))
        except DaemonUnreachable as e:
            self._daemon.close()
            self._daemon = Unreadable(DAEMON, str(e))
            return self._daemon

    @cached_property
    def _saved(self) -> SavedState | Unreadable | None:
        """None if there is no journal: no daemon has run here."""
        path = self._config.journal_path
        try:
            with open(open_regular(path, os.O_RDONLY), "rb") as f:
                return replay(f.read())
        except FileNotFoundError:
            return None
        except OSError as e:
            return Unreadable(JOURNAL, f"{path}: {e.strerror}")

    def _journal_claims(self, path: str) -> tuple[JournalClaim, ...] | Unreadable:
        saved = self._saved
        if saved is None:
            return ()
        if isinstance(saved, Unreadable):
            return saved
        names = (path, indirect_name(path))
        found: list[JournalClaim] = []
        if saved.boot == boot_id():
            for lock in saved.locks.values():
                for owner_id, claimed in lock.claims.items():
                    if any(resource.name in names for resource in claimed):
                        owner = saved.owners[owner_id]
                        alive = start_ticks(owner.process.pid) == owner.process.start_ticks
                        found.append(JournalClaim(lock.mode, owner.name.name, owner.process.pid, alive))
        if not found and saved.boot in ("", boot_id()) and saved.doubt:
            return Unreadable(JOURNAL, f"{self._config.journal_path}: {saved.doubt}")
        return tuple(found)

    def _leases(self, path: str, disk: DiskIdentity, strong: str) -> tuple[LeaseSeen, ...]:
        """What storage says in every backend whose locks are leases."""
        volume = self._of_volume(path)
        tables = {n: t for n, t in self._config.backend.items() if t.get("driver") == "paxos"}
        if not tables:
            return volume
        from holdfast.cli.who import leases

        resources = libvirt_names(path, disk, self._root)
        found: list[LeaseSeen] = []
        for name, table in tables.items():
            where = str(table.get("directory") or table.get("device"))
            try:
                if where in self._silent:
                    raise Silent
                reading = partial(leases.look, name, table, resources, disk, self._spaces, strong)
                found += answer_in_time(reading, LEASES_ANSWER_S)
            except Silent:
                reason = "its storage did not answer in time"
                found.append(LeaseSeen(name, where, unreadable=leases.unreadable(where, reason)))
        return (*found, *volume)

    def _of_volume(self, path: str) -> tuple[LeaseSeen, ...]:
        """What storage says of LVM's lock, of a disk whose rule names driver lvm."""
        backend, table = self._of_rule(path)
        if table.get("driver") != "lvm":
            return ()
        from holdfast.backends.lvm.config import SHARED
        from holdfast.cli.who import volume_leases

        try:
            shares = table.get("activation") == SHARED
            looking = partial(volume_leases.look, backend, path, self._report(path), shares=shares)
            return (answer_in_time(looking, LEASES_ANSWER_S),)
        except Silent:
            return (volume_leases.unreadable(backend, path, volume_leases.NO_ANSWER),)

    def _guarded_identity(self, path: str) -> str:
        """What a volume is whose guard lease is named after that, and that is not active here; else empty."""
        _, table = self._of_rule(path)
        if table.get("driver") != "lvm" or not table.get("guard"):
            return ""
        from holdfast.cli.who import volume_leases

        return volume_leases.identity_of(self._report(path))

    def _report(self, path: str) -> dict[str, str] | str:
        """LVM's report of a volume, or why there is none. LVM is asked once: its answer takes long on a busy host."""
        from holdfast.cli.who import volume_leases

        if path not in self._reports:
            try:
                self._reports[path] = answer_in_time(partial(volume_leases.report, path), LEASES_ANSWER_S)
            except Silent:
                self._reports[path] = volume_leases.NO_ANSWER
        return self._reports[path]

    def _of_inactive_volume(self, path: str, read: _FileRead) -> _FileRead:
        """With what a device that is not there means for a volume. One that LVM does not know may be a wrong name."""
        is_known = isinstance(self._reports.get(path), dict)
        if not (is_known and isinstance(read.kernel, Missing)):
            return read
        from holdfast.cli.who import volume_leases

        absent = Missing(volume_leases.inactive(path))
        return replace(read, kernel=absent, images=absent, trial=absent)

    def _of_rule(self, path: str) -> tuple[str, Mapping[str, Any]]:
        """The backend of a path's rule, and its table."""
        rules = ((rule.match, rule.backend) for rule in self._config.disk if rule.match is not None)
        of_default = self._config.default_backend
        backend = next((name for glob, name in rules if fnmatchcase(path, glob)), of_default)
        return backend, self._config.backend.get(backend, {})


def _identity_of(path: str) -> tuple[DiskIdentity, str]:
    """What the disk at a path is on this host, and on every host."""
    identities = SystemDiskIdentities()
    try:
        disk = answer_in_time(partial(identities.look, path), ANSWER_S)
        return disk, answer_in_time(partial(identities.strong, path), ANSWER_S)
    except Silent:
        return DiskIdentity(), ""  # as for a path that is not there; `_in_time` says that it does not answer


# --- one file ---


@dataclass(frozen=True, slots=True)
class _FileRead:
    """What one file says. `record` is of a lock file alone: what is in a disk is the guest's."""

    record: OwnerRecords | Missing | Unreadable
    kernel: KernelLocks | Missing | Unreadable
    images: ImageLocks | Missing | Unreadable
    trial: Trial | Missing | Unreadable
    lease_here: str = ""
    """As `Evidence` has it."""


def _in_time(file: str, *, is_lock_file: bool) -> _FileRead:
    """By a child process with a bound."""
    try:
        return answer_in_time(partial(_read, file, is_lock_file), ANSWER_S)
    except Silent:
        silent = Unreadable(file, f"{file} did not answer within {ANSWER_S:g} s: a lock on it can't be seen")
        return _FileRead(silent, silent, silent, silent)


def _read(file: str, is_lock_file: bool) -> _FileRead:
    kernel, images = _locks(file)
    record = _or_failure(file, f"the lock file {file}", f"{file}: ", partial(_record, file))
    trial = _or_failure(
        file, f"the lock of {file}", f"{file}: can't be asked for its lock: ", partial(_trial, file)
    )
    record = record if is_lock_file else OwnerRecords(file, ())
    return _FileRead(record, kernel, images, trial, at_start_of(file))


def _or_failure(file: str, source: str, before: str, read: Callable[[], T]) -> T | Missing | Unreadable:
    try:
        return read()
    except FileNotFoundError as e:
        return Missing(f"{before}{e.strerror}")
    except OSError as e:
        return Unreadable(source, f"{before}{e.strerror}")


def _record(file: str) -> OwnerRecords:
    with open(file, "rb") as f:
        return OwnerRecords(file, tuple(owner_record.decode(f.read(owner_record.RECORD_FILE_BYTES_MAX))))


def _trial(file: str) -> Trial:
    return Trial(file, refused_by(file) is not None)


def _locks(
    file: str,
) -> tuple[KernelLocks | Missing | Unreadable, ImageLocks | Missing | Unreadable]:
    def read() -> tuple[KernelLocks, ImageLocks]:
        locks = [k for k in locks_on(file) if k.of_lock_manager or k.of_qemu]
        processes = processes_with(file, locks)
        managers = tuple(p for p in processes if p.lock.of_lock_manager)
        qemus = tuple(p for p in processes if not p.lock.of_lock_manager)
        unseen = not managers and any(k.of_lock_manager for k in locks)
        return KernelLocks(file, managers, unseen), ImageLocks(file, qemus)

    found = _or_failure(file, f"the kernel's locks on {file}", f"{file}: ", read)
    return found if isinstance(found, tuple) else (found, found)


def _pids(files: dict[str, _FileRead]) -> set[int]:
    """The QEMUs that have one of the files open."""
    return {
        p.pid for each in files.values() if isinstance(each.images, ImageLocks) for p in each.images.processes
    }


def _stat(path: str) -> None:
    os.stat(path)
