"""Answers libvirt's hook about a VM: acquires the disks of a start, all or none, and checks those of an arriving guest.

A `prepare` that follows `migrate` of the same guest is an *incoming* migration: its disks are held by the source until the
switch-over. So nothing is taken yet, and it is only checked that the guest of each known holder is this one. Its disks are
taken in `finish3`, when libvirt connects again (`unasked_disks`), also those that it never asks for; until then the journal
has them. That a guest arrives is remembered in memory alone: a daemon that was restarted between `migrate` and `prepare`
treats it as a start, which takes nothing that another host holds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Protocol

from holdfast.errors import Refused, ResourceBusy, StorageFailed
from holdfast.manager.all_or_none import acquire_all
from holdfast.manager.hook_policy import HookPolicy
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.owners import Owner
from holdfast.manager.queries import Inspection
from holdfast.model import HOST_LOCKSPACE, AcquireRequest, Instant, Mode, OwnerName, ProcessId, Resource
from holdfast.system.clock import Clock
from holdfast.system.files.mounts import MountTable

INCOMING_S = 60.0
"""Between `migrate` and `prepare` libvirt needs milliseconds; if no `prepare` comes, the next start is an ordinary one."""
INCOMING_MAX = 1000
"""Guests that arrive at once; a host runs hundreds."""


class PreparesVolumes(Protocol):
    """Disks that have to be made active before libvirt looks for them (driver lvm)."""

    def arrives(self, uuid: str, libvirtd: ProcessId) -> str:
        """A VM is about to arrive; empty, or why it can't."""

    async def why_not_live(self, wants: Sequence[AcquireRequest]) -> str:
        """Why a VM with these disks can't be migrated live, whatever its source does; empty, or in one sentence."""

    async def prepare(self, uuid: str, libvirtd: ProcessId, wants: Sequence[AcquireRequest]) -> str:
        """Have its disks active; empty, or why the VM must not be started."""

    async def ended(self, uuid: str, libvirtd: ProcessId) -> None:
        """Nothing of it runs here."""


class HookOperations:
    """What libvirt's hook asks for. `volumes` None: no disk has to be made active."""

    def __init__(
        self,
        manager: LockManager,
        inspection: Inspection,
        clock: Clock,
        *,
        mounts: MountTable,
        policy: HookPolicy,
        volumes: PreparesVolumes | None = None,
    ) -> None:
        self._manager = manager
        self._inspection = inspection
        self._clock = clock
        self._mounts = mounts
        self._policy = policy
        self._volumes = volumes
        self._incoming: dict[tuple[str, ProcessId], Instant] = {}

    def own_files(self, paths: Sequence[str]) -> list[AcquireRequest]:
        """The locks on a VM's own files (NVRAM, TPM state): of those on a local file system, for the others have none."""
        return [
            AcquireRequest(Resource(HOST_LOCKSPACE, path), Mode.EXCLUSIVE)
            for path in paths
            if not self._mounts.locate(path)[0].may_block
        ]

    def over_network(self, wants: Sequence[AcquireRequest]) -> list[AcquireRequest]:
        """The disks that are reached over a network and have a lock: those that a rule names."""
        return [want for want in wants if self._manager.routing.locks_network_disk(want.resource)]

    def must_connect(self, guest: str, wants: Sequence[AcquireRequest], unasked: str) -> None:
        """`migrate`: raises `Refused` for a guest with disks that only the hook protects if libvirt does not connect when it
        is about to run, for the reason in `unasked`.
        """
        if unasked and (found := self.over_network(wants)):
            raise Refused(
                reason=f"{guest} would run on this host without a lock on {found[0].resource.name}: {unasked}"
            )

    async def may_arrive(self, name: OwnerName, wants: Sequence[AcquireRequest]) -> None:
        """`migrate`: raises `Refused` for a guest with a disk that can't be on two hosts, before anything is done for it."""
        if self._volumes is not None and (why := await self._volumes.why_not_live(wants)):
            raise Refused(reason=f"{name.name}: {why}")

    def arrives(self, uuid: str, libvirtd: ProcessId) -> None:
        """`migrate`: the next `prepare` of this guest by this libvirtd is incoming. Raises `Refused`."""
        if self._volumes is not None and (why := self._volumes.arrives(uuid, libvirtd)):
            raise Refused(reason=why)
        self._incoming[uuid, libvirtd] = self._clock.now()
        while len(self._incoming) > INCOMING_MAX:
            del self._incoming[next(iter(self._incoming))]

    async def prepare(self, name: OwnerName, libvirtd: ProcessId, wants: Sequence[AcquireRequest]) -> Owner:
        """`prepare`: hold these disks for the VM until its process registers; those of an incoming guest from `finish3` on.

        Raises an error of the `LockError` tree; then nothing has changed.
        """
        if not name.uuid:
            raise Refused(reason=f"VM {name.name} has no UUID: locks are prepared for a UUID")
        self._policy.check(wants)
        prepared = self._manager.prepared
        since = self._incoming.pop((name.uuid, libvirtd), None)
        arrives = since is not None and self._clock.now() - since < INCOMING_S
        prepared.release(name.uuid, libvirtd)  # of a start that came to nothing
        if self._volumes is not None and (why := await self._volumes.prepare(name.uuid, libvirtd, wants)):
            raise Refused(reason=why)
        self._manager.room_for_another()
        owner = prepared.begin(name, libvirtd)
        owner.connections += 1
        try:
            await self._acquire(owner, self._policy.at_arrival(wants) if arrives else list(wants))
            await self._check_holders(owner, wants)
            self._remember(owner, wants, arrives=arrives)
        except BaseException:
            prepared.abandon(owner)
            raise
        finally:
            owner.connections -= 1
        if not owner.unasked:
            prepared.abandon(owner)  # none of its disks is there
        return owner

    def _remember(self, owner: Owner, wants: Sequence[AcquireRequest], *, arrives: bool) -> None:
        there = {
            want.resource: want.mode
            for want in wants
            if arrives or self._manager.claimed(owner, want.resource) is not None
        }
        if not there or owner.gone:
            return
        try:
            self._manager.book.wanted_by_hook(owner, there)
        except OSError as e:
            raise Refused(
                reason=f"the journal can't record the disks: {e.strerror}; free space for it"
            ) from e

    async def _acquire(self, owner: Owner, wants: list[AcquireRequest]) -> None:
        """All disks that exist: libvirt itself refuses a VM without one of its disks, or drops the disk."""
        while True:
            try:
                return await acquire_all(self._manager, owner, wants)
            except StorageFailed as error:
                there = [want for want in wants if want.resource.name != error.facts["path"]]
                if error.errno != errno.ENOENT or len(there) == len(wants):
                    raise
                wants = there

    def release(self, uuid: str, libvirtd: ProcessId) -> None:
        """Its prepared locks are over."""
        self._incoming.pop((uuid, libvirtd), None)
        self._manager.prepared.release(uuid, libvirtd)

    async def ended(self, uuid: str, libvirtd: ProcessId) -> None:
        """`release`: nothing of this guest runs here. Waits until its volumes are given up, or that was refused once."""
        self.release(uuid, libvirtd)
        if self._volumes is not None:
            await self._volumes.ended(uuid, libvirtd)

    async def _check_holders(self, asking: Owner, wants: Sequence[AcquireRequest]) -> None:
        """Raises `ResourceBusy` for a disk that another VM of this host has by any name, also by the hash of its path."""
        for want in wants:
            for lock in await self._inspection.locks_of(want.resource.name):
                others = [
                    self._manager.descriptions.holder(owner.id, None, lock.keys, lock)
                    for owner_id in lock.claims
                    if (owner := self._manager.owners.get(owner_id)) is not None and owner.alive()
                    if owner.name.uuid != asking.name.uuid
                    and Mode.EXCLUSIVE in (lock.mode_of(owner_id), want.mode)
                ]
                if others:
                    busy = ResourceBusy(want.resource, others)
                    self._manager.report_refusal(asking, want, busy)
                    raise busy
