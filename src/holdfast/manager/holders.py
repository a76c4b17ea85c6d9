"""Describes holders, for refusals and lists, from what this daemon knows of its owners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.backends.base import Held
from holdfast.manager.lock_table import Key, Lock, LockTable
from holdfast.manager.owners import BEING_STARTED, Owners
from holdfast.model import Holder, Resource


class HolderDescriptions:
    """Describes holders from the lock table and the owners."""

    def __init__(self, table: LockTable[Held], owners: Owners, host: str) -> None:
        self._table = table
        self._owners = owners
        self._host = host

    def holders(self, lock: Lock[Held]) -> list[Holder]:
        """Everybody with a claim on a lock."""
        return [self.holder(i, None, lock.keys, lock) for i in lock.claims]

    def holder(
        self, owner_id: int, resource: Resource | None, keys: Sequence[Key], lock: Lock[Held] | None = None
    ) -> Holder:
        """An owner that has the disk with these keys, by whatever name."""
        owner = self._owners.get(owner_id)
        if owner is None:
            return Holder(host=self._host)
        if lock is None:
            theirs = self._table.of_owner(owner_id)
            named = self._table.named(resource) if resource is not None else None
            lock = next(
                (each for each in theirs if each is named or not set(keys).isdisjoint(each.keys)), None
            )
        return Holder(
            name=owner.name.name,
            uuid=owner.name.uuid,
            pid=owner.pid or None,
            remark=BEING_STARTED if owner.prepared is not None else "",
            host=self._host,
            mode=lock.mode_of(owner_id) if lock is not None else None,
            since_wall_s=lock.since_wall_s if lock is not None else None,
        )

    def with_programs(self, holders: Iterable[Holder]) -> list[Holder]:
        """A backend's holders; those that are known by pid only get their program's name."""
        return [self._name_program(h) for h in holders]

    def _name_program(self, holder: Holder) -> Holder:
        if holder.source != "kernel" or holder.pid is None:
            return holder
        program = self._owners.program(holder.pid)
        return Holder(
            pid=holder.pid, host=holder.host, mode=holder.mode, source=holder.source, program=program
        )
