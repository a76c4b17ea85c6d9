"""What the manager's things look like in the journal."""

from __future__ import annotations

from typing import Any

from holdfast.manager import journal as jn
from holdfast.manager.journal import text_of
from holdfast.manager.lock_table import Lock
from holdfast.manager.owners import Owner
from holdfast.model import Mode, Resource


def owner_line(owner: Owner) -> jn.Line:
    process, name = owner.process_id, owner.name
    return jn.OwnerLine(
        owner.id, process.pid, process.start_ticks, text_of(name.name), name.uuid, name.domain_id
    )


def unknown_line(owner: Owner) -> list[jn.Line]:
    """What marks an unknown owner, behind its own line; nothing for a known one."""
    if owner.unknown is None:
        return []
    return [jn.UnknownLine(owner.id, text_of(owner.unknown.why), owner.unknown.unseen)]


def lock_line(lock: Lock[Any]) -> jn.Line:
    return jn.LockLine(
        lock.id, lock.backend, text_of(lock.path), lock.create, int(lock.mode), lock.keys, lock.since_wall_s
    )


def claim_line(lock: Lock[Any], owner_id: int, resource: Resource, mode: Mode) -> jn.Line:
    return jn.ClaimLine(lock.id, owner_id, text_of(resource.lockspace), text_of(resource.name), int(mode))


def unclaim_line(lock: Lock[Any], owner_id: int, resource: Resource) -> jn.Line:
    return jn.UnclaimLine(lock.id, owner_id, text_of(resource.lockspace), text_of(resource.name))
