"""Locks of unknown owners: held until it is proven which owner has them, or that none has.

A journal, a state file or a descriptor store that is lost or damaged proves nothing about holders. So everything that the
next daemon finds and can't attribute (a lease of this host's incarnation, a descriptor that was kept, a line without its
owner) becomes a lock of an *unknown owner*. It excludes others like any lock, and no VM is touched.

Three things end it:

    attributed   a note names process and start time, and that process lives: it is the owner, at once; of a lease beside
                 which other hosts have shared holds, when those are proven to be over
    adopted      the asking owner of an ACQUIRE or RELEASE is that process; or the named process is over, the asker has
                 the disk open or libvirt's status file lists the disk for it, and no other process has it open. If the
                 asker has neither, the lock is settled for it at once, and it has to acquire it
    settled      the named process is over, and no process of this host has the disk open: checked again and again.
                 Or by an operator's order (`settle`), which is refused while a process has the disk open

A lease of a client of sanlock's may be an orphan, which outlives every process: where clients are served, one whose note
names no VM or disk is not settled by proof.

A process that doesn't have a disk open can't write to it, and one that opens it now has to ask for the lock first, which
an unknown owner holds. A process that can't be inspected counts as one that has it open.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace

from holdfast.backends.base import Held, MayHaveSharers, NotesOwner
from holdfast.errors import LockError, Refused
from holdfast.manager import events as ev
from holdfast.manager.events import Events
from holdfast.manager.lock_registry import HostLock, LockRegistry
from holdfast.manager.lock_table import Key, Lock, LockTable
from holdfast.manager.owners import Evidence, Owner, Owners
from holdfast.model import SANLOCK_PREFIX, Mode, OwnerName, ProcessId, Resource
from holdfast.network_disk import is_network_name
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.open_files import KEY_OF_BLOCK_DEVICE, OpenFiles, Users
from holdfast.system.libvirt.domains import DomainStatus

log = logging.getLogger(__name__)

SETTLE_S_MIN = 0.5
SETTLE_S_MAX = 10.0
"""Between two attempts to prove an end: soon after a restart, seldom on a host that waits for an operator."""

DiskKey = Callable[[str], Awaitable[FileKey | None]]
"""Identifies the file or device at a path, on the worker of its storage; None if that is not known."""


class Relation(enum.Enum):
    """The relation of an unknown owner to the asking owner."""

    NONE = "not known, or another one that lives"
    SAME = "the asking owner itself"
    OVER = "one that has ended"


class UnknownLocks:
    """Holds and settles locks of unknown owners. `end` releases everything of an owner that is over, `release` one claim of
    an owner; `audit` writes a line to the operators' record; `on_attributed` is called when a lock was found held for an
    owner that lives.
    """

    def __init__(
        self,
        *,
        table: LockTable[Held],
        owners: Owners,
        book: LockRegistry,
        events: Events,
        clock: Clock,
        open_files: OpenFiles,
        disk_key: DiskKey,
        domains: DomainStatus | None,
        end: Callable[[Owner], None],
        release: Callable[[Owner, HostLock, Resource], Awaitable[None]],
        audit: Callable[[str], None],
        is_closing: Callable[[], bool],
        on_attributed: Callable[[Owner], None],
    ) -> None:
        self._table = table
        self._owners = owners
        self._book = book
        self._events = events
        self._clock = clock
        self._open_files = open_files
        self._disk_key = disk_key
        self._domains = domains
        self._end = end
        self._release = release
        self._audit = audit
        self._is_closing = is_closing
        self._on_attributed = on_attributed
        self.on_known: Callable[[HostLock], None] = lambda _: None
        """Called with each lock that an owner has that is known, after it was found held or was held for an unknown one."""
        self.may_be_clients: Callable[[HostLock], bool] = lambda _: False
        """Whether sanlock's clients may have leases where that lock is."""
        self._settling = False

    # --- what there is ---

    def __len__(self) -> int:
        return sum(1 for owner in self._owners if owner.unknown is not None)

    @property
    def locks(self) -> list[HostLock]:
        """Every lock that an unknown owner claims, each once."""
        unknown = [owner for owner in self._owners if owner.unknown is not None]
        return list({lock.id: lock for owner in unknown for lock in self._locks_of(owner)}.values())

    def _locks_of(self, owner: Owner) -> list[HostLock]:
        return self._table.of_owner(owner.id)

    # --- they begin ---

    def owner(self, name: OwnerName, evidence: Evidence, *, owner_id: int = 0) -> Owner:
        """A new unknown owner."""
        self._start_settling()
        return self._owners.add_unknown(name, evidence, owner_id=owner_id)

    def becomes(self, owner: Owner, evidence: Evidence) -> None:
        """Make a known owner unknown, as its end can't be seen any more."""
        self._owners.forget(owner)
        self._owners.keep_unknown(owner, evidence)
        self._start_settling()
        for lock in self._locks_of(owner):
            for resource, mode in lock.claims[owner.id].items():
                self.report(owner, resource, mode)

    def attributed(self, name: OwnerName, evidence: Evidence) -> Owner:
        """The process that the evidence names, if it is known exactly and lives; else an unknown owner."""
        process = evidence.process
        if process is not None and process.start_ticks:
            known = self._owners.known_process(process, name)
            if known is not None:
                return known
        return self.owner(name, evidence)

    def hold(
        self,
        *,
        backend: str,
        held: Held,
        resource: Resource,
        mode: Mode,
        keys: tuple[Key, ...],
        name: OwnerName,
        evidence: Evidence,
        lock_id: int = 0,
        path: str = "",
    ) -> HostLock:
        """Enter a lock that was found held without a claim. `path`: where its backend finds it again; empty: `held` says
        that.
        """
        owner = self.owner(name, evidence) if _is_unasked(held) else self.attributed(name, evidence)
        lock: HostLock = Lock(
            lock_id=lock_id or self._table.next_id(),
            backend=backend,
            held=held,
            path=path or held.path,
            create=held.create,
            mode=mode,
            keys=keys,
            since_wall_s=self._clock.wall(),
        )
        self._table.insert(lock)
        self._table.claim(lock, owner.id, resource, mode)
        self._book.restored(lock, owner)
        if owner.unknown is None:
            log.warning("%s is held for %s, as its note says", resource, owner)
            if evidence.may_persist:
                self._persists(owner, resource)
            self._on_attributed(owner)
            self.on_known(lock)
        else:
            self.report(owner, resource, mode)
        return lock

    def hold_place(self, backend: str, what: str, why: str) -> None:
        """Enter a placeholder for all locks of a backend that may be held and are not known yet."""
        owner = self.owner(OwnerName(""), Evidence(why=why))
        lock: HostLock = Lock(
            lock_id=self._table.next_id(),
            backend=backend,
            held=None,
            path=what,
            create=False,
            mode=Mode.EXCLUSIVE,
            keys=(),
            since_wall_s=self._clock.wall(),
        )
        lock.stands_for = lock.lost_reason = what
        lock.doubt = why
        self._table.insert(lock)
        self._table.claim(lock, owner.id, Resource(what, backend), Mode.EXCLUSIVE)

    def has_place(self, backends: Collection[str]) -> bool:
        """Whether there is a placeholder for locks of one of these backends."""
        return any(lock.stands_for and lock.backend in backends for lock in self._table)

    def drop_place(self, backend: str) -> None:
        """Remove a backend's placeholder: all of its locks have entries by now."""
        for lock in self.locks:
            if lock.stands_for and lock.backend == backend:
                for owner_id in list(lock.claims):
                    for resource in list(lock.claims[owner_id]):
                        self._table.unclaim(lock, owner_id, resource)
                    if (owner := self._owners.get(owner_id)) is not None:
                        self._owners.forget(owner)
                self._table.remove(lock)
                self._book.doubt_is_over()

    def report(self, owner: Owner, resource: Resource, mode: Mode) -> None:
        assert owner.unknown is not None
        about = ev.logged(ev.UNKNOWN, owner.name, resource)
        log.error("%s is held for an unknown owner: %s", resource, owner.unknown.why, extra=about)
        self._events.emit(ev.UNKNOWN, owner.name, owner.pid, resource, mode, owner.unknown.why)

    async def read_note(self, lock: HostLock) -> None:
        """Attribute the unknown claims of a retaken lock by the note beside it, which names a process."""
        held = lock.held
        notes: object = held
        # Most locks have no unknown claimant, and to ask whether a class has the methods of a protocol takes longest.
        if not self._unknown_claimants(lock) or not isinstance(notes, NotesOwner) or _is_unasked(notes):
            return
        noted = await notes.noted_owner()
        process, name, disk = noted.process, noted.owner, noted.disk
        if process is None or lock.held is not held:
            return
        for owner in self._unknown_claimants(lock):
            known = self._owners.known_process(process, name) if process.start_ticks else None
            if known is not None:
                self._book.attributed(lock, owner, known)
                log.warning("%s is held for %s, as its note says", lock.path, known)
                if noted.may_persist:
                    for resource in lock.claims[known.id]:
                        self._persists(known, resource)
                self._on_attributed(known)
                self.on_known(lock)
                self._forget_if_idle(owner)
            elif owner.unknown is not None and owner.unknown.process is None:
                owner.unknown = replace(owner.unknown, process=process, disk=owner.unknown.disk or disk)

    async def read_whether_it_persists(self, lock: HostLock) -> None:
        """A journal that is not whole may have lost that a lease of sanlock's clients outlives them: its note says so."""
        held = lock.held
        notes: object = held
        if not self.may_be_clients(lock) or not isinstance(notes, NotesOwner) or _is_unasked(notes):
            return
        try:
            may_persist = (await notes.noted_owner()).may_persist
        except LockError:
            may_persist = True
        owners = [owner for i in lock.claims if (owner := self._owners.get(i)) is not None]
        for owner in owners if may_persist and lock.held is held else ():
            for resource in lock.claims[owner.id]:
                is_clients = resource.lockspace.startswith(SANLOCK_PREFIX)
                if is_clients and owner.unknown is None and resource not in owner.persistent:
                    self._persists(owner, resource)

    async def keep_for_noted(self, lock: HostLock, ended: Collection[ProcessId]) -> bool:
        """Keep a lock whose owners have ended by the journal, if the note beside it names another process that lives, or a
        client of sanlock's, whose lease may be an orphan: an older copy of the journal may have been restored, and the lock
        taken since. Whether it was kept.
        """
        held: object = lock.held
        if not isinstance(held, NotesOwner):
            return False
        noted = await held.noted_owner()
        process, name, disk = noted.process, noted.owner, noted.disk
        if process is None or process in ended:
            return False
        if not self._owners.process_lives(process) and not noted.may_persist:
            return False
        why = f"its note names process {process.pid}, and the journal others, which have ended"
        evidence = Evidence(why=why, process=process, disk=disk, may_persist=noted.may_persist)
        owner = self.owner(name, evidence) if _is_unasked(held) else self.attributed(name, evidence)
        self._has_it(lock, owner, why, instead_of=list(lock.claims), may_persist=noted.may_persist)
        return True

    async def hold_for_noted(self, lock: HostLock) -> None:
        """A journal that is not whole may be an older copy, whose owner lives on without a lock that another process has
        taken since. The note beside an exclusive one names who took it last: if that lives, the lock is held for it as well.
        """
        held = lock.held
        notes: object = held
        owners = [self._owners.get(owner_id) for owner_id in lock.claims]
        if lock.mode is not Mode.EXCLUSIVE or not isinstance(notes, NotesOwner) or _is_unasked(notes):
            return
        try:
            noted = await notes.noted_owner()
        except LockError:
            return  # the journal names who has it, and nothing names another one
        process, name = noted.process, noted.owner
        if process is None or lock.held is not held or not lock.claims:
            return
        if any(
            owner is None or owner.unknown is not None or _is_same(owner, process, name) for owner in owners
        ):
            return
        if not self._owners.process_lives(process) and not noted.may_persist:
            return
        why = f"its note names process {process.pid}, and a journal that is not whole another one, which lives too"
        evidence = Evidence(why=why, process=process, disk=noted.disk, may_persist=noted.may_persist)
        self._has_it(lock, self.attributed(name, evidence), why, may_persist=noted.may_persist)

    def _has_it(
        self, lock: HostLock, owner: Owner, why: str, *, instead_of: Collection[int] = (), may_persist: bool
    ) -> None:
        """An owner that the journal does not name gets every claim on a lock, also the one of each owner that it names."""
        for former, names in [(i, dict(names)) for i, names in lock.claims.items()]:
            for resource, mode in names.items():
                self._table.claim(lock, owner.id, resource, mode)
                if former in instead_of:
                    self._table.unclaim(lock, former, resource)
        self._book.restored(lock, owner)
        for resource, mode in lock.claims[owner.id].items():
            if owner.unknown is None:
                log.warning("%s is held for %s, as its note says, although %s", resource, owner, why)
                if may_persist:
                    self._persists(owner, resource)
            else:
                self.report(owner, resource, mode)
        self.on_known(lock)

    def _unknown_claimants(self, lock: HostLock) -> list[Owner]:
        owners = [owner for i in lock.claims if (owner := self._owners.get(i)) is not None]
        return [owner for owner in owners if owner.unknown is not None]

    # --- adopted by the asking owner ---

    async def adopt(
        self,
        asker: Owner,
        resource: Resource,
        lock: HostLock,
        *,
        to_release: bool = False,
        is_of_disk_only: bool = False,
    ) -> bool:
        """Give a lock's unknown claims to the asking owner if they are proven to be its own; end those that are proven to be
        over. Whether any were.

        The asker's own claims stay held throughout. Claims that are over are released: a daemon may have won the lease and
        been killed before it checked whether other hosts share it, so the asker has to acquire it. With a claim of a known
        owner on it, nothing changes. `is_of_disk_only`: the lock is on the same disk, but it is not the one that the
        resource would get (another path's, or that of what the disk is), so its claims keep their names. Raises `Refused`
        for a lease that other hosts may share, unless it is only released.
        """
        claimants = [
            owner for i in lock.claims if i != asker.id and (owner := self._owners.get(i)) is not None
        ]
        if not claimants or lock.stands_for or any(owner.unknown is None for owner in claimants):
            return False
        own: list[Owner] = []
        await self._ask_sharers(lock)
        for owner in claimants:
            match await self._relation(asker, resource, lock, owner):
                case Relation.NONE:
                    return False
                case Relation.SAME:
                    if _is_unasked(lock.held) and not to_release:
                        raise Refused(
                            reason=f"{resource.name} is held since an earlier daemon was killed, maybe before it had "
                            "asked whether other hosts share the lease; some still seem to, so it is not handed out"
                        )
                    own.append(owner)
                case Relation.OVER:
                    pass
        if any(owner.gone or owner.id not in lock.claims for owner in claimants) or asker.gone:
            return True  # settled meanwhile: ask again
        for owner in claimants:
            if owner not in own:
                self._settled(owner, f"{asker} asks for it, and no process of this host has its disk open")
                continue
            try:
                if is_of_disk_only:
                    self._book.attributed(lock, owner, asker)
                else:
                    self._book.adopted(lock, owner, asker, resource)
            except OSError as e:
                raise Refused(
                    reason=f"the journal can't record whose {resource.name} is: {e.strerror}; free space for it"
                ) from e
            log.warning("%s was held for an %s; it is %s's now", resource, owner, asker)
            self.on_known(lock)
            self._forget_if_idle(owner)
        return True

    async def _relation(self, asker: Owner, resource: Resource, lock: HostLock, owner: Owner) -> Relation:
        evidence = owner.unknown
        if evidence is None:
            return Relation.NONE
        process, me = evidence.process, asker.process_id
        if process is not None:
            same_start = process.start_ticks == me.start_ticks or (
                not process.start_ticks and owner.name.uuid == asker.name.uuid
            )
            if process.pid == me.pid and same_start and asker.process is not None:
                return Relation.SAME
            if self._owners.process_lives(process):
                return Relation.NONE
        users = await self._users(lock, (resource.name, evidence.disk))
        if users is None or not users.complete or set(users.pids) - {me.pid}:
            return Relation.NONE
        if await self._may_be_orphan(lock):
            return Relation.NONE  # it belongs to no process
        if me.pid in users.pids or self._is_listed(asker, resource):
            return Relation.SAME
        if await self._is_noted_for_another(lock, evidence, asker):
            return Relation.NONE
        return Relation.NONE if evidence.unseen else Relation.OVER

    def _is_listed(self, asker: Owner, resource: Resource) -> bool:
        """Whether libvirt's status file lists the disk for exactly this process."""
        if self._domains is None:
            return False
        domain = self._domains.look(asker.name.name, asker.name.uuid, asker.pid)
        return domain is not None and any(disk.path == resource.name for disk in domain.disks)

    def _forget_if_idle(self, owner: Owner) -> None:
        if not self._table.holds_any(owner.id):
            owner.gone = True
            self._book.owner_gone(owner)
            self._owners.forget(owner)

    # --- settled by proof ---

    def _start_settling(self) -> None:
        if not self._settling:
            self._settling = True
            eager_tasks.start(self._settle())

    async def _settle(self) -> None:
        pause_s = SETTLE_S_MIN
        while True:
            await self._clock.sleep(pause_s)
            if self._is_closing() or not len(self):
                break
            pause_s = min(2 * pause_s, SETTLE_S_MAX)
            for lock in self.locks:
                if _is_unasked(lock.held):
                    await self._ask_sharers(lock)
                    await self.read_note(lock)
            for owner in self._owners:
                if owner.unknown is not None and not owner.gone and await self._is_over(owner):
                    self._settled(owner, "no process of this host has its disks open")
        self._settling = False

    async def _ask_sharers(self, lock: HostLock) -> None:
        held: object = lock.held
        if isinstance(held, MayHaveSharers) and held.sharers_unasked:
            await held.ask_sharers()

    async def _is_over(self, owner: Owner) -> bool:
        """Whether the unknown owner has provably ended."""
        evidence = owner.unknown
        locks = self._locks_of(owner)
        if evidence is None or evidence.unseen or any(lock.stands_for for lock in locks):
            return False
        if evidence.process is not None and self._owners.process_lives(evidence.process):
            return False
        for lock in locks:
            users = await self._users(lock, (evidence.disk,))
            if users is None:
                # No disk is known. The key file of a <lease> has none, and one that is reached over a network is open in no
                # process of this host: then the end of the process is the only proof.
                named = evidence.process is not None and evidence.process.start_ticks != 0
                if not (named and _is_of_no_disk(lock)):
                    return False
            elif not users.none:
                return False
            if await self._may_be_orphan(lock) or await self._is_noted_for_another(lock, evidence):
                return False
        return not self._is_closing()

    async def _is_noted_for_another(
        self, lock: HostLock, evidence: Evidence, asker: Owner | None = None
    ) -> bool:
        """Whether the note beside a lock names a process that lives, and that is neither the evidence's nor the asking one:
        the journal is an older copy, and storage was silent when the lock was retaken. Such a process may not have its disk
        open yet. It gets the claim, if it is known exactly.
        """
        held = lock.held
        notes: object = held
        if not isinstance(notes, NotesOwner) or _is_unasked(notes):
            return False
        try:
            process = (await notes.noted_owner()).process
        except LockError:
            return True
        if process is None or process == evidence.process or not self._owners.process_lives(process):
            return False
        if asker is not None and process.pid == asker.pid:
            return False
        await self.read_note(lock)
        return True

    async def _may_be_orphan(self, lock: HostLock) -> bool:
        """Whether a client of sanlock's may have left the lease as an orphan, which outlives every process: of a client's
        lease nothing but the journal says so. Only a note that names a VM or its disk shows that it is none.
        """
        held: object = lock.held
        if held is None:  # storage has not said yet what it is
            return any(name.lockspace.startswith(SANLOCK_PREFIX) for name in lock.names())
        if not self.may_be_clients(lock) or not isinstance(held, NotesOwner):
            return False
        try:
            noted = await held.noted_owner()
        except LockError:
            return True
        return noted.may_persist or not (noted.owner.uuid or noted.disk)

    def _persists(self, owner: Owner, resource: Resource) -> None:
        """A lease that was attributed to a client by its note becomes an orphan with that client's end."""
        try:
            self._book.persists(owner, resource)
        except OSError:
            owner.persistent.add(resource)  # the note says so to the next daemon, too

    def _settled(self, owner: Owner, proof: str) -> None:
        for lock in self._locks_of(owner):
            for resource, mode in lock.claims[owner.id].items():
                about = ev.logged(ev.SETTLED, owner.name, resource)
                log.warning("%s was held for an %s; settled: %s", resource, owner, proof, extra=about)
                self._events.emit(ev.SETTLED, owner.name, owner.pid, resource, mode, proof)
        self._end(owner)

    async def _users(self, lock: HostLock, paths: Iterable[str]) -> Users | None:
        """The processes that have the disk of a lock open; None if it is not known which disk that is."""
        keys = set(_disk_keys(lock))
        for path in {*paths, *(name.name for name in lock.names() if not name.lockspace)}:
            if path.startswith("/") and (key := await self._disk_key(path)) is not None:
                keys.add(key)
        return await self._open_files.users(keys) if keys else None

    # --- settled by an operator ---

    async def settle(self, what: str, operator: str) -> str:
        """End the unknown claims on a lock, and those of orphans, by an operator's order. It is named by its number, path or
        resource. An orphan may have the name of a disk, if the journal was lost: then no client can release it.

        Returns a text about what was done. Raises `Refused` for a lock that has known owners only, for one whose disk a
        process beside these has open, and where that is not known.
        """
        if not operator.strip():
            raise Refused(
                reason="an operator's name is needed: the word that the lock's owner is over is recorded"
            )
        found = [lock for lock in (*self.locks, *self.orphans) if what in _names_of(lock)]
        if not found:
            others = [lock for lock in self._table if what in _names_of(lock)]
            reason = (
                f"{what} has a known owner: end that VM" if others else f"no unknown lock is called {what}"
            )
            raise Refused(reason=f"{reason}; 'holdfast list' shows the unknown ones")
        (lock, *more) = found
        if more:
            raise Refused(reason=f"{what} names {len(found)} locks: use a number, {_numbers(found)}")
        claimants = [owner for i in lock.claims if (owner := self._owners.get(i)) is not None]
        users = await self._users(lock, (each.unknown.disk for each in claimants if each.unknown))
        known = {each.pid for each in claimants if each.unknown is None and each.process is not None}
        if users is not None and (strangers := set(users.pids) - known):
            raise Refused(reason=f"{what} is open in {_processes(sorted(strangers))}: that may be its owner")
        if users is not None and not users.complete:
            unclear = _processes(users.unclear) if users.unclear else "some process"
            raise Refused(reason=f"{unclear} could not be inspected and may have {what} open; try again")
        shown = ", ".join(str(name) for name in lock.names())
        try:
            self._audit(f"{operator}: settled lock {lock.id}, {shown}, backend {lock.backend}, {lock.path}")
        except OSError as e:
            raise Refused(reason=f"the order can't be recorded: {e.strerror or e}; nothing was done") from e
        if lock.stands_for:
            self.drop_place(lock.backend)
        for owner_id in list(lock.claims):
            owner = self._owners.get(owner_id)
            if owner is not None and owner.unknown is not None:
                self._settled(owner, f"by {operator}'s word")
            elif owner is not None and owner.keeps_orphans:
                await self._end_orphan(owner, lock, f"by {operator}'s word")
        return f"{shown} is settled"

    @property
    def orphans(self) -> list[HostLock]:
        """Locks that a keeper of orphans claims, and no unknown owner."""
        return [
            lock
            for lock in self._table
            if any((owner := self._owners.get(i)) is not None and owner.keeps_orphans for i in lock.claims)
            and not self._unknown_claimants(lock)
        ]

    async def _end_orphan(self, keeper: Owner, lock: HostLock, proof: str) -> None:
        for resource, mode in dict(lock.claims.get(keeper.id, {})).items():
            about = ev.logged(ev.SETTLED, keeper.name, resource)
            log.warning("%s was an orphan of %s; settled: %s", resource, keeper, proof, extra=about)
            self._events.emit(ev.SETTLED, keeper.name, keeper.pid, resource, mode, proof)
            self._book.persists_no_more(keeper, resource)
            await self._release(keeper, lock, resource)
        if not self._table.holds_any(keeper.id):
            self._end(keeper)


def _is_same(owner: Owner, process: ProcessId, name: OwnerName) -> bool:
    """Whether a note may be of this owner: of its process, or of an earlier one of its VM."""
    return owner.pid == process.pid or owner.name == name or bool(name.uuid and owner.name.uuid == name.uuid)


def _is_unasked(held: object) -> bool:
    """Whether other hosts may share it: it is not proven that its owner was granted it."""
    return isinstance(held, MayHaveSharers) and held.sharers_unasked


def _disk_keys(lock: HostLock) -> list[FileKey]:
    """The keys of the disk itself, without those of a lease or of a lock file made for the lock."""
    first_is_disk = not lock.create and not any(name.lockspace for name in lock.names())
    keys = lock.keys if first_is_disk else lock.keys[1:]
    return [FileKey(*key) for key in keys if key[0] >= KEY_OF_BLOCK_DEVICE]


def _is_of_no_disk(lock: HostLock) -> bool:
    return not lock.create and all(name.lockspace or is_network_name(name.name) for name in lock.names())


def _names_of(lock: HostLock) -> set[str]:
    return {str(lock.id), lock.path, *(str(name) for name in lock.names()), *(n.name for n in lock.names())}


def _numbers(locks: Collection[HostLock]) -> str:
    return ", ".join(str(lock.id) for lock in locks)


def _processes(pids: Collection[int]) -> str:
    return f"process {', '.join(map(str, pids))}"
