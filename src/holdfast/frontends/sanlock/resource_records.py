"""STATUS's records of resources (sanlock-socket.md 2.9): one for each holder, the newest first."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.backends.paxos.area_store import area_of
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.frontends.sanlock.held_resources import HeldResource, HeldResources
from holdfast.manager.lock_registry import HostLock
from holdfast.model import SANLOCK_PREFIX, Mode
from holdfast.model import Resource as Key
from holdfast.wire.sanlock.flags import SIZE_FLAGS, SIZES, ResourceFlag
from holdfast.wire.sanlock.state_records import PID_NONE, RecordType, StateRecord, key_words
from holdfast.wire.sanlock.structures import Disk, Resource

_SIZES_OF = {int(flags): sizes for sizes, flags in SIZES.items()}


def records_of(held: HeldResources, orphans: Iterable[tuple[Key, HostLock]]) -> tuple[StateRecord, ...]:
    """In sanlock's order: held, being added, being released, orphans."""
    records = [_of_holder(each, "held") for each in held.newest_first()]
    records += [_record(resource, client.pid, "add") for client, resource in held.adding.values()]
    records += [_of_holder(each, "rem") for each in held.releasing.values()]
    records += [_record(_orphan(key, lock), 0, "orphan") for key, lock in orphans]
    return tuple(records)


def _of_holder(held: HeldResource, kind: str) -> StateRecord:
    return _record(held.described(), held.client.pid, kind)


def _orphan(key: Key, lock: HostLock) -> Resource:
    area = area_of(lock.path)
    disk = Disk() if area is None else Disk(area.path, area.offset_bytes)
    resource = Resource.of(key.lockspace.removeprefix(SANLOCK_PREFIX), key.name, disk)
    flags = int(ResourceFlag.PERSISTENT) | (ResourceFlag.SHARED if lock.mode is Mode.SHARED else 0)
    lease: object = lock.held
    if not isinstance(lease, PaxosHeld):
        return resource._replace(flags=flags)
    sizes = SIZES[lease.geometry.sector_bytes, lease.geometry.align_bytes]
    return resource._replace(flags=flags | sizes, lver=lease.lver)


def _record(resource: Resource, pid: int, kind: str) -> StateRecord:
    sector_bytes, align_bytes = _SIZES_OF.get(resource.flags & SIZE_FLAGS, (0, 0))
    words: dict[str, object] = {
        "list": kind,
        "flags": f"{resource.flags & ~SIZE_FLAGS:x}",
        "sector_size": sector_bytes,
        "align_size": align_bytes,
        "lver": resource.lver,
        "reused": 0,
        "res_id": 0,
        "token_id": 0,
    }
    return StateRecord(
        RecordType.RESOURCE,
        data32=pid & PID_NONE,
        data64=resource.lver,
        name=resource.name,
        text=key_words(RecordType.RESOURCE, words),
        attached=resource,
    )
