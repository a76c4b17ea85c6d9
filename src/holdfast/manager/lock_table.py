"""The lock table: the locks and claims of this host, and which claims are compatible.

A `Lock` is what a backend holds once for the whole host: one lock file or lease. Owners have *claims* on it, by resource
name: one name is claimed once however often it is acquired, and two names of one file are two claims on one lock, so that
the release of one name keeps the other protected. The lock's mode is the strongest mode claimed.

Locks are found by name and by key. The first key of a lock is that of its lock file: the same first key is the same lock.
Any further common key means the same disk under different lock files: each keeps its lock file, but their claims exclude one
another.

No I/O, no clock, no tasks: `lock_manager` does everything between the decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from holdfast.model import Mode, Resource

Key = tuple[int, int]
HeldT = TypeVar("HeldT")


class Lock(Generic[HeldT]):
    """One lock of this host with all claims on it."""

    __slots__ = (
        "backend",
        "claims",
        "create",
        "departing",
        "doubt",
        "held",
        "id",
        "keys",
        "lost_for_certain",
        "lost_reason",
        "mode",
        "path",
        "since_wall_s",
        "stands_for",
    )

    def __init__(
        self,
        *,
        lock_id: int,
        backend: str,
        held: HeldT | None,
        path: str,
        create: bool,
        mode: Mode,
        keys: tuple[Key, ...],
        since_wall_s: float,
    ) -> None:
        self.id = lock_id
        self.backend = backend
        self.held = held
        """None while the lock is lost: claimed, but not held (see lost_reason)."""
        self.path = path
        self.create = create
        self.mode = mode
        self.keys = keys
        self.since_wall_s = since_wall_s
        self.lost_reason = ""
        self.lost_for_certain = False
        """Whether it certainly has another holder now; False if that is not known."""
        self.stands_for = ""
        """Of a placeholder: the locks that may be held and can't be named (all leases of a lost journal, say)."""
        self.doubt = ""
        """Of a placeholder: why they can't be named."""
        self.claims: dict[int, dict[Resource, Mode]] = {}
        self.departing: set[tuple[int, Resource]] = set()
        """Claims (owner, name) whose RELEASE was answered and held back: they stand until a migration is over."""

    def mode_of(self, owner_id: int) -> Mode | None:
        """The strongest mode that an owner claims; None if it claims nothing."""
        names = self.claims.get(owner_id)
        return max(names.values()) if names else None

    def names(self) -> Iterator[Resource]:
        for names in self.claims.values():
            yield from names


class Join(NamedTuple):
    """The claim fits the lock as it is."""


class Convert(NamedTuple):
    """The claim fits once the lock has this mode."""

    mode: Mode


class Conflict(NamedTuple):
    """The claims of these owners exclude it."""

    owner_ids: tuple[int, ...]


Decision = Join | Convert | Conflict
JOIN = Join()


class Unclaimed(NamedTuple):
    """What remains of a lock after a claim was released: nothing, or a mode that suffices."""

    last: bool
    mode_needed: Mode | None


_LAST = Unclaimed(last=True, mode_needed=None)


class LockTable(Generic[HeldT]):
    """All locks of this host."""

    def __init__(self) -> None:
        self._by_name: dict[Resource, Lock[HeldT]] = {}
        self._by_key: dict[Key, list[Lock[HeldT]]] = {}
        self._by_owner: dict[int, dict[Lock[HeldT], None]] = {}
        self._locks: dict[int, Lock[HeldT]] = {}
        self._last_id = 0

    def next_id(self) -> int:
        """A number that no lock has had, including those restored from the journal."""
        self._last_id += 1
        return self._last_id

    def reserve(self, numbers: Iterable[int]) -> None:
        """Don't use these numbers: locks that will be restored have them."""
        self._last_id = max(self._last_id, *numbers, 0)

    def __len__(self) -> int:
        return len(self._locks)

    def __iter__(self) -> Iterator[Lock[HeldT]]:
        return iter(list(self._locks.values()))

    def named(self, resource: Resource) -> Lock[HeldT] | None:
        return self._by_name.get(resource)

    def knows_none(self, keys: Iterable[Key]) -> bool:
        """Whether no lock has any of these keys, so that no claim can conflict."""
        return self._by_key.keys().isdisjoint(keys)

    def of_lock_file(self, key: Key) -> Lock[HeldT] | None:
        """The lock whose own file (first key) this is."""
        for lock in self._by_key.get(key, ()):
            if lock.keys[0] == key:
                return lock
        return None

    def with_key(self, key: Key) -> list[Lock[HeldT]]:
        """Every lock of one disk, by the key of its lock file or of the disk."""
        return list(self._by_key.get(key, ()))

    def of_owner(self, owner_id: int) -> list[Lock[HeldT]]:
        return list(self._by_owner.get(owner_id, ()))

    def others_on_disk(self, owner_id: int, lock: Lock[HeldT]) -> Iterator[Lock[HeldT]]:
        """The other locks of an owner that lead to the disk of a lock, by the keys behind their first."""
        for other in self.of_owner(owner_id):
            if other is not lock and not set(other.keys[1:]).isdisjoint(lock.keys):
                yield other

    def holds_any(self, owner_id: int) -> bool:
        return owner_id in self._by_owner

    # --- decisions ---

    def decide(self, lock: Lock[HeldT], owner_id: int, resource: Resource, mode: Mode) -> Decision:
        """Decides an owner's request for this lock under this name."""
        others = self.in_the_way(owner_id, mode, keys=lock.keys, lock=lock)
        if others:
            return Conflict(others)
        needed = mode
        for claimant, names in lock.claims.items():
            for name, claimed in names.items():
                if (claimant, name) != (owner_id, resource) and claimed > needed:
                    needed = claimed
        return JOIN if needed is lock.mode else Convert(needed)

    def in_the_way(
        self, owner_id: int, mode: Mode, *, keys: Iterable[Key], lock: Lock[HeldT] | None = None
    ) -> tuple[int, ...]:
        """Owners other than this one whose claims on this lock, or on the disk with these keys, exclude `mode`."""
        found: dict[int, None] = {}
        if lock is not None:
            self._collect(lock, owner_id, mode, found)
        for key in keys:
            for other in self._by_key.get(key, ()):
                if other is not lock:
                    self._collect(other, owner_id, mode, found)
        return tuple(found)

    @staticmethod
    def _collect(lock: Lock[HeldT], owner_id: int, mode: Mode, found: dict[int, None]) -> None:
        for claimant, names in lock.claims.items():
            if claimant != owner_id and (mode is Mode.EXCLUSIVE or Mode.EXCLUSIVE in names.values()):
                found[claimant] = None

    # --- changes ---

    def insert(self, lock: Lock[HeldT]) -> None:
        self._locks[lock.id] = lock
        self._last_id = max(self._last_id, lock.id)
        for key in lock.keys:
            self._by_key.setdefault(key, []).append(lock)

    def learn(self, lock: Lock[HeldT], keys: Iterable[Key]) -> None:
        """Add keys that another name of the lock's file has shown, such as that of the disk; they count from now on."""
        new = tuple(key for key in keys if key not in lock.keys)
        lock.keys += new
        for key in new:
            self._by_key.setdefault(key, []).append(lock)

    def claim(self, lock: Lock[HeldT], owner_id: int, resource: Resource, mode: Mode) -> None:
        lock.claims.setdefault(owner_id, {})[resource] = mode
        self._by_name[resource] = lock
        self._by_owner.setdefault(owner_id, {})[lock] = None

    def unclaim(self, lock: Lock[HeldT], owner_id: int, resource: Resource) -> Unclaimed:
        """Remove one claim, and names without any claim."""
        names = lock.claims[owner_id]
        del names[resource]
        lock.departing.discard((owner_id, resource))
        if not names:
            del lock.claims[owner_id]
            mine = self._by_owner[owner_id]
            del mine[lock]
            if not mine:
                del self._by_owner[owner_id]
        gone = all(resource not in each for each in lock.claims.values())
        if gone and self._by_name.get(resource) is lock:  # a damaged journal may give one name to two locks
            del self._by_name[resource]
        if not lock.claims:
            return _LAST
        return Unclaimed(
            last=False, mode_needed=max(m for each in lock.claims.values() for m in each.values())
        )

    def remove(self, lock: Lock[HeldT]) -> None:
        """Remove a lock without claims from the table."""
        del self._locks[lock.id]
        for key in lock.keys:
            left = self._by_key[key]
            left.remove(lock)
            if not left:
                del self._by_key[key]
