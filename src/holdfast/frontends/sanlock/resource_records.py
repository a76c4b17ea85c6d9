"""STATUS's records of resources (sanlock-socket.md 2.9): one for each holder, the newest first."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.backends.paxos.area_store import area_of
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.held_resources import HeldResources
from holdfast.manager.lock_registry import HostLock
from holdfast.model import SANLOCK_PREFIX, Mode
from holdfast.model import Resource as Key
from holdfast.wire.sanlock.flags import SIZE_FLAGS, SIZES, ResourceFlag
from holdfast.wire.sanlock.state_records import NO_CAW, PID_NONE, RecordType, StateRecord, key_words
from holdfast.wire.sanlock.structures import Disk, Resource

_SIZES_OF = {int(flags): sizes for sizes, flags in SIZES.items()}


def records_of(
    held: HeldResources, orphans: Iterable[tuple[Key, HostLock]], version: int
) -> tuple[StateRecord, ...]:
    """In sanlock's order: held, being added, being released, orphans; as that version of it has them."""
    seen: list[tuple[Resource, Client | None, str]] = [
        *((each.described(), each.client, "held") for each in held.newest_first()),
        *((resource, client, "add") for client, resource in held.adding.values()),
        *((each.described(), each.client, "rem") for each in held.releasing.values()),
        *((_orphan(key, lock), None, "orphan") for key, lock in orphans),
    ]
    return tuple(_record(resource, client, kind, version) for resource, client, kind in seen)


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


def _record(resource: Resource, client: Client | None, kind: str, version: int) -> StateRecord:
    pid = client.pid if client is not None else 0
    sector_bytes, align_bytes = _SIZES_OF.get(resource.flags & SIZE_FLAGS, (0, 0))
    words: dict[str, object] = {
        "list": kind,
        "flags": f"{resource.flags & ~SIZE_FLAGS:x}",
        "sector_size": sector_bytes,
        "align_size": align_bytes,
        "lver": resource.lver,
        "reused": 0,
        "res_id": 0,
        **NO_CAW,
        "token_id": 0,
        "ci": client.client_id if client is not None else 0,
    }
    return StateRecord(
        RecordType.RESOURCE,
        data32=pid & PID_NONE,
        data64=resource.lver,
        name=resource.name,
        text=key_words(RecordType.RESOURCE, words, version),
        attached=resource,
    )
