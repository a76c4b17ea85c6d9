"""Journal lines for the manager's objects."""

from __future__ import annotations

from typing import Any

from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal_kinds import text_of
from holdfast.manager.lock_table import Lock
from holdfast.manager.owners import Hold, Owner
from holdfast.model import Mode, Resource


def owner_lines(owner: Owner) -> list[jn.Line]:
    """An owner's line, then lines if it is unknown or being started, if it keeps locks for its descendants or orphans, and
    for what only the hook asks for or what is to outlive it.
    """
    process, name = owner.process_id, owner.name
    line = jn.OwnerLine(
        owner.id, process.pid, process.start_ticks, text_of(name.name), name.uuid, name.domain_id
    )
    lines: list[jn.Line] = [line]
    if owner.until_closed:
        lines.append(until_closed_line(owner))
    if owner.prepared is not None:
        lines.append(jn.PreparedLine(owner.id, owner.prepared.pid, owner.prepared.start_ticks))
    if owner.unknown is not None:
        lines.append(jn.UnknownLine(owner.id, text_of(owner.unknown.why), owner.unknown.unseen))
    if owner.keeps_orphans:
        lines.append(jn.OrphansLine(owner.id))
    if owner.registered:
        lines.append(client_line(owner))
    lines.extend(unasked_line(owner.id, resource, mode) for resource, mode in owner.unasked.items())
    lines.extend(persistent_line(owner.id, resource) for resource in sorted(owner.persistent))
    lines.extend(hold_line(owner.id, *key, hold) for key, hold in owner.holds.items())
    return lines


def client_line(owner: Owner) -> jn.Line:
    wishes = owner.wishes
    return jn.ClientLine(
        owner.id,
        restricted=wishes.restricted,
        killpath_flags=wishes.killpath_flags,
        killpath=text_of(wishes.killpath),
        arguments=text_of(wishes.arguments),
    )


def persistent_line(owner_id: int, resource: Resource, *, stays: bool = True) -> jn.Line:
    return jn.PersistentLine(owner_id, text_of(resource.lockspace), text_of(resource.name), stays)


def hold_line(owner_id: int, client_id: int, resource: Resource, hold: Hold) -> jn.Line:
    hold = hold._replace(path=text_of(hold.path))
    return jn.HoldLine(owner_id, client_id, text_of(resource.lockspace), text_of(resource.name), *hold)


def unasked_line(owner_id: int, resource: Resource, mode: Mode) -> jn.Line:
    return jn.UnaskedLine(owner_id, text_of(resource.lockspace), text_of(resource.name), int(mode))


def asked_line(owner_id: int, resource: Resource) -> jn.Line:
    return jn.AskedLine(owner_id, text_of(resource.lockspace), text_of(resource.name))


def until_closed_line(owner: Owner) -> jn.Line:
    return jn.UntilClosedLine(owner.id, text_of(owner.family.path if owner.family is not None else ""))


def lock_line(lock: Lock[Any]) -> jn.Line:
    return jn.LockLine(
        lock.id, lock.backend, text_of(lock.path), lock.create, int(lock.mode), lock.keys, lock.since_wall_s
    )


def claim_line(lock: Lock[Any], owner_id: int, resource: Resource, mode: Mode) -> jn.Line:
    return jn.ClaimLine(lock.id, owner_id, text_of(resource.lockspace), text_of(resource.name), int(mode))


def unclaim_line(lock: Lock[Any], owner_id: int, resource: Resource) -> jn.Line:
    return jn.UnclaimLine(lock.id, owner_id, text_of(resource.lockspace), text_of(resource.name))


def departing_line(lock: Lock[Any], owner_id: int, resource: Resource) -> jn.Line:
    return jn.DepartingLine(lock.id, owner_id, text_of(resource.lockspace), text_of(resource.name))


def lent_line(owner_id: int, resource: Resource, mode: Mode, create: bool) -> jn.Line:
    return jn.LentLine(owner_id, text_of(resource.lockspace), text_of(resource.name), int(mode), create)


def lent_over_line(owner_id: int, resource: Resource) -> jn.Line:
    return jn.LentOverLine(owner_id, text_of(resource.lockspace), text_of(resource.name))
