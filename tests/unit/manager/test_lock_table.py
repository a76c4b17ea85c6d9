"""The lock table against a model that is nothing but a set of claims."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.manager.lock_table import Conflict, Convert, Join, Key, Lock, LockTable
from holdfast.model import Mode, Resource

OWNERS = (1, 2, 3)
DISK: Key = (7, 100)
KEYS: dict[Resource, tuple[Key, ...]] = {
    Resource("", "/a"): ((1, 1),),
    Resource("", "/link-to-a"): ((1, 1),),
    Resource("", "/b"): ((1, 2),),
    Resource("/locks", "hash-of-disk"): ((2, 1), DISK),
    Resource("/locks", "same-lock-file"): ((2, 1),),
    Resource("/other", "hash-of-disk"): ((2, 2), DISK),
    Resource("", "/disk"): (DISK,),
    Resource("", "unkeyed"): (),
}
"""Names and what they mean: aliases of one file, two lock files of one disk, the disk itself, a name without a file."""
NAMES = tuple(KEYS)


def same_disk(a: Resource, b: Resource) -> bool:
    return a == b or not set(KEYS[a]).isdisjoint(KEYS[b])


def incompatible(a: Mode, b: Mode) -> bool:
    return Mode.EXCLUSIVE in (a, b)


@dataclass
class Model:
    """Who claims what: (owner, name) -> mode, and the name under which each lock was made."""

    claims: dict[tuple[int, Resource], Mode] = field(default_factory=dict)


class LockTableMachine(RuleBasedStateMachine):
    """Does what the manager does around the table's decisions, with storage that always says yes."""

    @initialize()
    def start(self) -> None:
        self.table: LockTable[str] = LockTable()
        self.model = Model()
        self.last_id = 0

    def _lock_for(self, name: Resource) -> Lock[str] | None:
        lock = self.table.named(name)
        if lock is None and KEYS[name]:
            lock = self.table.of_lock_file(KEYS[name][0])
        return lock

    def _rivals(self, owner: int, name: Resource, mode: Mode) -> set[int]:
        """Whom the model sees in the way: directly, or on another name of the very lock that would be joined."""
        lock = self._lock_for(name)
        keys = set(KEYS[name]) | (set(lock.keys) if lock is not None else set())
        found = set()
        for (other, theirs), theirs_mode in self.model.claims.items():
            shares = not keys.isdisjoint(self._keys_held_by(theirs)) or theirs == name
            if other != owner and shares and incompatible(mode, theirs_mode):
                found.add(other)
        return found

    def _keys_held_by(self, name: Resource) -> set[Key]:
        lock = self.table.named(name)
        return set(lock.keys) if lock is not None else set(KEYS[name])

    @rule(
        owner=st.sampled_from(OWNERS),
        name=st.sampled_from(NAMES),
        mode=st.sampled_from((Mode.SHARED, Mode.EXCLUSIVE)),
    )
    def acquire(self, owner: int, name: Resource, mode: Mode) -> None:
        rivals = self._rivals(owner, name, mode)
        lock = self._lock_for(name)
        if lock is None:
            others = self.table.in_the_way(owner, mode, keys=KEYS[name])
            assert set(others) == rivals
            if others:
                return
            self.last_id += 1
            lock = Lock(
                lock_id=self.last_id,
                backend="b",
                held="held",
                path=str(name),
                create=False,
                mode=mode,
                keys=KEYS[name],
                since_wall_s=0.0,
            )
            self.table.insert(lock)
        else:
            self.table.learn(lock, KEYS[name])
            decision = self.table.decide(lock, owner, name, mode)
            if isinstance(decision, Conflict):
                assert set(decision.owner_ids) == rivals
                assert rivals
                return
            assert not rivals
            assert isinstance(decision, Join | Convert)
            if isinstance(decision, Convert):
                lock.mode = decision.mode
        self.table.claim(lock, owner, name, mode)
        self.model.claims[(owner, name)] = mode

    @precondition(lambda self: self.model.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        owner, name = data.draw(st.sampled_from(sorted(self.model.claims)))
        lock = self.table.named(name)
        assert lock is not None
        left = self.table.unclaim(lock, owner, name)
        del self.model.claims[(owner, name)]
        rest = [m for claims in lock.claims.values() for m in claims.values()]
        assert left.last == (not rest)
        if left.last:
            self.table.remove(lock)
        else:
            assert left.mode_needed == max(rest)
            lock.mode = left.mode_needed

    @invariant()
    def no_disk_has_two_owners_unless_all_share(self) -> None:
        claims = list(self.model.claims.items())
        for (owner, name), mode in claims:
            for (other, theirs), theirs_mode in claims:
                if owner != other and same_disk(name, theirs):
                    assert not incompatible(mode, theirs_mode), (owner, name, other, theirs)

    @invariant()
    def table_says_what_the_model_says(self) -> None:
        claims = {
            (owner, name): mode
            for lock in self.table
            for owner, names in lock.claims.items()
            for name, mode in names.items()
        }
        assert claims == self.model.claims

    @invariant()
    def every_lock_is_as_strong_as_its_strongest_claim_and_no_stronger(self) -> None:
        for lock in self.table:
            assert lock.mode is max(m for names in lock.claims.values() for m in names.values())

    @invariant()
    def every_way_to_find_a_lock_leads_to_it_and_nothing_else_does(self) -> None:
        for name in NAMES:
            lock = self.table.named(name)
            claimed = any(n == name for _, n in self.model.claims)
            assert (lock is not None) == claimed
            if lock is not None:
                assert name in set(lock.names())
        for owner in OWNERS:
            mine = self.table.of_owner(owner)
            assert {id(x) for x in mine} == {id(x) for x in self.table if owner in x.claims}
            assert self.table.holds_any(owner) == bool(mine)
        for key in {k for keys in KEYS.values() for k in keys}:
            assert {id(x) for x in self.table.with_key(key)} == {id(x) for x in self.table if key in x.keys}
            of_file = [x for x in self.table if x.keys and x.keys[0] == key]
            assert len(of_file) <= 1, "two locks of one lock file"
            assert self.table.of_lock_file(key) is (of_file[0] if of_file else None)


TestLockTable = LockTableMachine.TestCase
TestLockTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def lock_of(table: LockTable[str], name: Resource, mode: Mode, owner: int) -> Lock[str]:
    lock: Lock[str] = Lock(
        lock_id=len(table) + 1,
        backend="b",
        held="held",
        path=str(name),
        create=False,
        mode=mode,
        keys=KEYS[name],
        since_wall_s=0.0,
    )
    table.insert(lock)
    table.claim(lock, owner, name, mode)
    return lock


def test_same_owner_may_claim_again_and_it_stays_one_claim() -> None:
    table: LockTable[str] = LockTable()
    name = Resource("", "/a")
    lock = lock_of(table, name, Mode.EXCLUSIVE, 1)
    assert isinstance(table.decide(lock, 1, name, Mode.EXCLUSIVE), Join)
    table.claim(lock, 1, name, Mode.EXCLUSIVE)
    assert table.unclaim(lock, 1, name).last


def test_two_names_of_one_file_are_two_claims_on_one_lock() -> None:
    table: LockTable[str] = LockTable()
    lock = lock_of(table, Resource("", "/a"), Mode.EXCLUSIVE, 1)
    table.claim(lock, 1, Resource("", "/link-to-a"), Mode.EXCLUSIVE)
    assert not table.unclaim(lock, 1, Resource("", "/a")).last
    assert table.named(Resource("", "/link-to-a")) is lock


def test_sole_reader_may_become_writer_and_another_reader_is_in_the_way() -> None:
    table: LockTable[str] = LockTable()
    name = Resource("", "/a")
    lock = lock_of(table, name, Mode.SHARED, 1)
    assert table.decide(lock, 1, name, Mode.EXCLUSIVE) == Convert(Mode.EXCLUSIVE)
    table.claim(lock, 2, name, Mode.SHARED)
    assert table.decide(lock, 1, name, Mode.EXCLUSIVE) == Conflict((2,))


def test_two_lock_files_of_one_disk_exclude_each_other() -> None:
    table: LockTable[str] = LockTable()
    lock_of(table, Resource("/locks", "hash-of-disk"), Mode.EXCLUSIVE, 1)
    assert table.in_the_way(2, Mode.SHARED, keys=KEYS[Resource("/other", "hash-of-disk")]) == (1,)
    assert table.in_the_way(1, Mode.EXCLUSIVE, keys=KEYS[Resource("/other", "hash-of-disk")]) == ()


def test_name_that_knows_the_disk_teaches_a_lock_that_was_made_without_knowing_it() -> None:
    table: LockTable[str] = LockTable()
    first = lock_of(table, Resource("/locks", "same-lock-file"), Mode.SHARED, 2)
    lock_of(table, Resource("/other", "hash-of-disk"), Mode.SHARED, 1)
    hashed = Resource("/locks", "hash-of-disk")
    table.learn(first, KEYS[hashed])
    assert table.decide(first, 2, hashed, Mode.EXCLUSIVE) == Conflict((1,))
