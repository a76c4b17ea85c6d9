"""Several locks for one owner at once: all of them, or none."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from holdfast.errors import LockError, Refused
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.owners import Owner
from holdfast.model import AcquireRequest, Resource

log = logging.getLogger(__name__)

LOCKS_PER_ACQUIRE_MAX = 1000
"""Disks of one all-or-nothing acquire; a VM has tens."""


async def acquire_all(manager: LockManager, owner: Owner, wants: Sequence[AcquireRequest]) -> None:
    """Hold all of these or none: if one is refused, those that were not held before are released."""
    if len(wants) > LOCKS_PER_ACQUIRE_MAX:
        raise Refused(reason=f"more than {LOCKS_PER_ACQUIRE_MAX} disks in one request")
    taken: list[Resource] = []
    changed: list[AcquireRequest] = []
    try:
        for want in sorted(wants):
            before = manager.claimed(owner, want.resource)
            if await manager.acquire(owner, want):
                if before is None:
                    taken.append(want.resource)
                else:
                    changed.append(AcquireRequest(want.resource, before, want.create))
    except BaseException:
        for resource in reversed(taken):
            await manager.release(owner, resource)
        for want in changed:
            try:
                await manager.acquire(owner, want)
            except LockError as e:
                log.error("%s could not be given back its old mode: %s", want.resource, e)
        raise
