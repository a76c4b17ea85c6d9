"""A disk whose lock reaches other hosts has a second one, named after what the disk is: no path leads around it (ADR 0197).

Leases and lock files are named by paths, as sanlock's and libvirt's are: two hosts that call one image /srv/pool/a and
/srv/link/a have one each. The *identity* of a disk (`system/files/strong_identity`) is the same on every host that can reach
it, and so is its lock:

    acquire    the identity, then the path: of two aliases one always wins, and hosts that know the path alone (sanlock.so,
               an older Holdfast) still exclude and are excluded
    weaken     the path, then the identity
    release    the path, then the identity, when no other name of the owner leads to the disk

The identity's lock is in the table and the journal like any other, under `IDENTITY_LOCKSPACE`, which no client can name. A
disk without such an identity has the lock of its path only, and so has one with identity = "path" in its rule.

A rule may have a *guard* (`Route.guard`, driver lvm, ADR 0232): then the identity's lock is a lease of that backend,
whatever holds the disk by its path, and a disk without an identity is refused.

A virtual machine that runs with the lease of its path only (started by an older version, or while its identity could not be
read) gets the second one in the background. If another host has it, the machine is not touched: `problems` names both. There
an identity is released, too, whose path was released before a restarted daemon knew that they belong together.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Iterator

from holdfast.backends.base import Held
from holdfast.control.api import IDENTITY_PROBLEM
from holdfast.errors import LockError, Refused, ResourceBusy
from holdfast.manager.acquire import Outcome
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.lock_table import LockTable
from holdfast.manager.owners import Owner
from holdfast.manager.repeated_attempts import RepeatedAttempts
from holdfast.model import DIRECT_LOCKSPACE, IDENTITY_LOCKSPACE, AcquireRequest, Mode, Resource, printable
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

ALIAS_NOTE = (
    "; that VM calls the disk by another path, and locks go by what a disk is. If they are two disks all the same (a "
    'clone that kept its identity), set identity = "path" in the [[disk]] rule of this path, on all hosts'
)


class IdentityLocks:
    """The second lease of disks. On the event loop."""

    def __init__(self, manager: LockManager, *, clock: Clock) -> None:
        self._manager = manager
        self._begun = False
        routes = (manager.routing.default, *(rule.route for rule in manager.routing.rules))
        self._is_wanted = any(route.by_identity for route in routes)
        self._attempts = RepeatedAttempts(
            self._all_have_one,
            clock=clock,
            is_closing=lambda: manager.closing,
            failed="running machines get no lease of their disks' identity any more",
        )
        self._of_paths: dict[int, dict[Resource, Resource]] = {}
        """By owner and path: the identity of each claim of this owner, as far as it was read since the start."""
        self._parted: set[tuple[int, Resource]] = set()
        """By owner and path: released paths, the identity of which was not known then."""
        self._under_way: set[tuple[int, Resource]] = set()
        """By owner and identity: acquires that have not got as far as the path."""
        self._refused: dict[tuple[int, Resource], str] = {}
        """By owner and path: why a running machine has no lease of its disk's identity."""
        manager.acquirer.identities = manager.releaser.identities = self

    # --- with the lock of the path ---

    async def acquire(self, owner: Owner, want: AcquireRequest) -> Outcome:
        """Acquire a disk by its identity and by its path; raises as `LockManager.acquire`, and then nothing has changed."""
        manager = self._manager
        identity = await self._of(want.resource)
        if identity is None:
            if (guard := self._guard(want.resource)) is not None:
                raise Refused(
                    reason=f"disk '{want.resource.name}' gets no lease of backend '{guard}', its guard, as nothing says on "
                    "this host what the disk is: is it active here?"
                )
            return await manager.acquire_one(owner, want)
        key = (owner.id, identity)
        is_first = key not in self._under_way
        self._under_way.add(key)
        try:
            outcome = await self._acquire_both(owner, want, identity)
        finally:
            if is_first:
                self._under_way.discard(key)
        if manager.claimed(owner, want.resource) is not None:
            self._of_paths.setdefault(owner.id, {})[want.resource] = identity
        return outcome

    async def _acquire_both(self, owner: Owner, want: AcquireRequest, identity: Resource) -> Outcome:
        manager = self._manager
        second = AcquireRequest(identity, want.mode, path=want.resource.name)
        before = manager.claimed(owner, identity)
        if before is not None and before > want.mode:
            outcome = await manager.acquire_one(owner, want)
            await manager.acquire_one(owner, second)
            return outcome
        try:
            await manager.acquire_one(owner, second)
        except ResourceBusy as busy:
            is_alias = self._guard(want.resource) is None and _is_alias(busy, want.resource)
            note = ALIAS_NOTE if is_alias else ""
            raise ResourceBusy(want.resource, busy.holders, note) from None
        except LockError as error:
            error.add(f"; {identity.name} is what {printable(want.resource.name)} is")
            raise
        try:
            return await manager.acquire_one(owner, want)
        except (Exception, asyncio.CancelledError):
            await self._as_before(owner, second, before)
            raise

    async def _as_before(self, owner: Owner, second: AcquireRequest, before: Mode | None) -> None:
        """Undo the acquire of an identity whose path was refused."""
        manager = self._manager
        lock = manager.table.named(second.resource)
        if lock is None or second.resource not in lock.claims.get(owner.id, {}) or owner.gone:
            return
        if before is None:
            await manager.release_one(owner, lock, second.resource)
        elif before is not second.mode:
            await manager.acquire_one(owner, second._replace(mode=before))

    def _guard(self, resource: Resource) -> str | None:
        """The backend with the lease that a disk must have beside its own lock; None if it needs none."""
        guard = self._manager.routing.route(resource).guard if not resource.lockspace else None
        return guard.name if guard is not None else None

    def _of_another_guard(self, path: Resource, identity: Resource) -> str:
        """The backend of the lease that a disk has by an earlier rule, if that is not its guard; else empty."""
        guard, lock = self._guard(path), self._manager.table.named(identity)
        return lock.backend if guard is not None and lock is not None and lock.backend != guard else ""

    async def _of(self, resource: Resource) -> Resource | None:
        """The identity of a disk that has a lease by its path; None if it has none, or need not have one."""
        if resource.lockspace != DIRECT_LOCKSPACE or not resource.name.startswith("/"):
            return None
        route = self._manager.routing.route(resource)
        identify = self._manager.routing.identities.get(route.backend.name)
        if identify is None or not route.by_identity:
            return None
        return await identify(resource)

    def beside(self, owner: Owner, lock: HostLock, path: Resource) -> HostLock | None:
        """The lock of what the disk at a path is, if the owner has it."""
        known = self._of_paths.get(owner.id, {}).get(path)
        if known is not None and (found := self._manager.table.named(known)) is not None:
            return found if owner.id in found.claims else None
        others = self._manager.table.others_on_disk(owner.id, lock)
        return next((other for other in others if identity_in(other, owner.id) is not None), None)

    def released_with(self, owner: Owner, lock: HostLock, path: Resource) -> tuple[HostLock, Resource] | None:
        """The identity's lock, with its name, that is released after the last path of an owner to its disk."""
        if path.lockspace == IDENTITY_LOCKSPACE:
            return None
        table, of_paths = self._manager.table, self._of_paths.get(owner.id, {})
        known = of_paths.pop(path, None)
        if not of_paths:
            self._of_paths.pop(owner.id, None)
        if owner.id in lock.claims or known in of_paths.values():
            return None
        found = table.named(known) if known is not None else None
        for other in table.others_on_disk(owner.id, lock):
            if identity_in(other, owner.id) is None:
                return None  # another path of this owner leads to the disk
            found = other
        identity = identity_in(found, owner.id) if found is not None else None
        if found is not None and identity is not None:
            return found, identity
        if not owner.gone and any(identity_in(other, owner.id) for other in table.of_owner(owner.id)):
            self._parted.add((owner.id, path))  # the lock was found without the keys of its disk
            self._attempts.begin()
        return None

    # --- machines that run already ---

    def begin(self) -> None:
        """Begin, when all restored locks are in the table."""
        self._begun = True
        self.joined()

    def joined(self) -> None:
        """A lockspace was joined, or locks became known: try for those that have no lease of their identity."""
        if self._begun and self._is_wanted and any(True for _ in self._paths()):
            self._attempts.begin()

    def problems(self) -> list[str]:
        """Messages for operators: each running machine whose disk another path may lead to, and why."""
        return [
            self._problem(owner, resource, why)
            for owner, resource, _ in self._paths()
            if (why := self._refused.get((owner.id, resource), ""))
        ]

    def _problem(self, owner: Owner, resource: Resource, why: str) -> str:
        disk = printable(resource.name)
        who = f"if two VMs have it, end one of them in good order: holdfast who {shlex.quote(resource.name)}"
        if (guard := self._guard(resource)) is not None:
            return (
                f"{IDENTITY_PROBLEM}{disk} of {owner} has no lease of backend '{guard}', its guard: {why}; until it has one "
                f"this host does not share the volume, so that VM is not migrated live; {who}"
            )
        return (
            f"{IDENTITY_PROBLEM}{disk} of {owner} has the lock of its path, and not that of what it is: {why}; a host that "
            f"calls the disk by another path can start a second VM on it; {who}"
        )

    def _paths(self) -> Iterator[tuple[Owner, Resource, Mode]]:
        """The claims of living, known owners on leases by path."""
        manager = self._manager
        for lock in manager.table:
            if lock.backend not in manager.routing.identities:
                continue
            for owner_id, names in list(lock.claims.items()):
                owner = manager.owners.get(owner_id)
                if owner is None or owner.gone or owner.unknown is not None:
                    continue
                for resource, mode in list(names.items()):
                    if resource.lockspace == DIRECT_LOCKSPACE:
                        yield owner, resource, mode

    async def _all_have_one(self) -> bool:
        """One attempt for every claim; whether nothing is left to do."""
        done = True
        for gone in [each for each in self._of_paths if self._manager.owners.get(each) is None]:
            del self._of_paths[gone]
        for owner, resource, mode in list(self._paths()):
            done = await self._has_one(owner, resource, mode) and done
        for owner_id, path in list(self._parted):
            done = await self._identity_goes_with(owner_id, path) and done
        return done

    async def _identity_goes_with(self, owner_id: int, path: Resource) -> bool:
        """Whether nothing is left to do for a path whose RELEASE came before its identity was known. In doubt the identity
        stays held until the owner ends: only a release that was seen frees anything.
        """
        manager, owner = self._manager, self._manager.owners.get(owner_id)
        if owner is not None and not owner.gone and manager.unknown.locks:
            return False  # another path of this owner may still be found
        identity, paths = await self._of(path), self._paths_of(owner_id)
        others = [await self._of(other) for other in paths]
        if paths != self._paths_of(owner_id):
            return False
        self._parted.discard((owner_id, path))
        lock = manager.table.named(identity) if identity is not None else None
        is_needed = identity in others or None in others or (owner_id, identity) in self._under_way
        if owner is not None and lock is not None and identity is not None and not is_needed:
            await manager.release_one(owner, lock, identity)
        return True

    def _paths_of(self, owner_id: int) -> list[Resource]:
        """Every claim of an owner but those of identities."""
        names = [name for lock in self._manager.table.of_owner(owner_id) for name in lock.claims[owner_id]]
        return [name for name in names if name.lockspace != IDENTITY_LOCKSPACE]

    async def _has_one(self, owner: Owner, resource: Resource, mode: Mode) -> bool:
        """Whether nothing is left to do for this claim."""
        manager, key = self._manager, (owner.id, resource)
        lock = manager.table.named(resource)
        if lock is not None and (lock.held is None or key in lock.departing):
            # It is lost, and may be held again; or goes with the VM, which runs on here if its migration fails.
            return False
        identity = await self._of(resource)
        if identity is not None and manager.claimed(owner, resource) is not None:
            self._of_paths.setdefault(owner.id, {})[resource] = identity
        if identity is None or (manager.claimed(owner, identity) or 0) >= mode:
            if identity is not None and (other := self._of_another_guard(resource, identity)):
                self._refused[key] = f"it is of backend '{other}' until the VM is suspended and resumed"
                return False
            self._refused.pop(key, None)
            return True
        try:
            await manager.acquire_one(owner, AcquireRequest(identity, mode, path=resource.name))
        except LockError as e:
            if self._refused.get(key) != str(e):
                log.error("%s of %s has no lease of what it is: %s", resource, owner, e)
            self._refused[key] = str(e)
            return False
        self._refused.pop(key, None)
        if manager.claimed(owner, resource) is None:  # released meanwhile
            await self._as_before(owner, AcquireRequest(identity, mode), None)
        else:
            log.info("%s of %s: the lease of what it is (%s) is held too", resource, owner, identity.name)
        return True


def identity_in(lock: HostLock, owner_id: int) -> Resource | None:
    """The identity that an owner claims by a lock; None if it is the lock of a path."""
    names = lock.claims.get(owner_id, ())
    return next((name for name in names if name.lockspace == IDENTITY_LOCKSPACE), None)


def is_shown_with_a_path(table: LockTable[Held], owner_id: int, lock: HostLock) -> bool:
    """Whether a lock is that of an identity, and its owner has a path to the same disk."""
    return identity_in(lock, owner_id) is not None and any(table.others_on_disk(owner_id, lock))


def disks(table: LockTable[Held]) -> Iterator[HostLock]:
    """The locks as people count them: an identity goes with its path."""
    for lock in table:
        if not lock.claims or not all(
            is_shown_with_a_path(table, owner_id, lock) for owner_id in lock.claims
        ):
            yield lock


def _is_alias(busy: ResourceBusy, path: Resource) -> bool:
    """Whether the holders call the disk otherwise, as far as they say."""
    return any(holder.disk.startswith("/") and holder.disk != path.name for holder in busy.holders)
