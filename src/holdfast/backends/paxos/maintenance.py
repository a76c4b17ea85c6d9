"""Maintenance of leases not held here: break, garbage-collect, release after a crash.

The caller ensures that no lock of this host has the lease, before and during the call: to a host its own leases are free.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from holdfast.backends.base import HeldElsewhere, LeftBehind
from holdfast.backends.lease_backend import NOBODY_HELD, UNACCOUNTED, LeftLease
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.breaking import UNPROVEN, Claimant, HoldStands, clear_holds
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.backends.paxos.lease_jobs import area_in, member_in
from holdfast.backends.paxos.lease_store import Found, StorageFailed, Unusable
from holdfast.backends.paxos.refusals import TAKEN_OUT
from holdfast.errors import AttemptLeft, LeaseUnusable, NotOnLease, ResourceBusy, storage_failed
from holdfast.model import SANLOCK_PREFIX, Mode, ProcessId, Resource, printable, resource_of
from holdfast.ondisk.delta import FLAGS_MEAN_FROM, DeltaLease
from holdfast.ondisk.record_layout import major_of
from holdfast.protocol import types
from holdfast.protocol.dead_mark import Marked, NotMarked, mark_dead
from holdfast.protocol.holders import HostTerm
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_release import Lease
from holdfast.protocol.resource_index import UnindexedLease
from holdfast.protocol.takeover import Attested
from holdfast.protocol.types import Generation, HostId, HostTimestamp
from holdfast.system.block_io.offload import TimedOut
from holdfast.system.files.ofd_lock import IoFailed

if TYPE_CHECKING:
    from holdfast.backends.paxos.backend import PaxosBackend

T = TypeVar("T")

FREED_THERE = "'holdfast lease gc' on that host frees it if no VM there has it"
LVB_KEPT = "its sector 2002 has to outlive it (libvirt keeps there which VM owns the disk)"


def _listed(found: list[T] | Unusable | StorageFailed) -> list[T]:
    if isinstance(found, list):
        return found
    if isinstance(found, Unusable):
        raise LeaseUnusable(name="", place=found.place, reason=found.reason)
    raise storage_failed(IoFailed("Unable to list leases", found.place, found.failed.errno))


class PaxosMaintenance:
    """Maintenance of one backend's leases. Every method raises a `LockError` where storage or the lockspace refuses."""

    def __init__(self, backend: PaxosBackend) -> None:
        self._backend = backend

    # --- breaking ---

    async def break_lease(self, resource: Resource, attest_off: str) -> str:
        """Free a lease whose holders are proven or attested to be off; returns the proof. Raises a `LockError`."""

        def attest(hosts: Sequence[Claimant]) -> Attested:
            attested = frozenset(host.term for host in hosts if attest_off and host.is_called(attest_off))
            if attest_off and not attested:
                named = ", ".join(str(host) for host in hosts) or "nobody"
                place = self._backend.places.place(lease)
                reason = f"host {attest_off} is not on it, but {named}"
                raise NotOnLease(name=resource.name, place=place, reason=reason)
            if len({host_id for host_id, _ in attested}) > 1:
                named = " or ".join(str(host) for host in hosts if host.term in attested)
                place = self._backend.places.place(lease)
                reason = f"{attest_off} may be {named}: say the host id of the one that is meant"
                raise LeaseUnusable(name=resource.name, place=place, reason=reason)
            return attested

        lease, _ = await self._backend.names.of(resource)
        return await self._break(resource, lease, attest) or NOBODY_HELD

    async def claims_of_term(
        self, lease: str, incarnation: HostTerm, *, older_too: bool
    ) -> frozenset[HostTerm]:
        """The claims of another host's incarnation that one read shows on a lease, with `older_too` also those of its older
        ones; raises a `LockError`.

        If there are any, the disk's name from its holder's note is known from then on (`names.path_of`).
        """
        resource = Resource("", self._backend.names.path_of(lease))
        member = self._backend.member(resource)
        found = await self._backend.look_up(member, resource, lease)
        if isinstance(found, IoFailed):
            raise storage_failed(found)
        try:
            claims = await self._backend.holding(found, member).claims()
            if isinstance(claims, str):
                raise LeaseUnusable(name=resource.name, place=found.place, reason=claims)
            host_id, generation = incarnation
            found_terms = frozenset(
                claim
                for claim in claims
                if claim == incarnation or (older_too and claim[0] == host_id and claim[1] < generation)
            )
            if not found_terms:
                return found_terms
            self._backend.names.hint(
                lease, owner_note.disk_of(await self._note(found, member, incarnation[0]))
            )
            return found_terms
        finally:
            found.disk.close()

    async def break_of(self, lease: str, terms: Attested) -> str:
        """Free a lease that one of these incarnations has, which are attested to be over; returns the proof, empty if none
        has it.
        """
        return await self._break(
            Resource("", self._backend.names.path_of(lease)),
            lease,
            lambda hosts: terms if any(host.term in terms for host in hosts) else None,
        )

    async def _break(
        self, resource: Resource, lease: str, attest: Callable[[Sequence[Claimant]], Attested | None]
    ) -> str:
        """The proof; empty if no host has it, or if `attest` returns None: then it is not changed."""
        member = self._backend.member(resource)
        found = await self._backend.look_up(member, resource, lease)
        if isinstance(found, IoFailed):
            raise storage_failed(found)
        with self._backend.trying(found, member) as holding:
            claims = await holding.claims()
            if isinstance(claims, str):
                raise LeaseUnusable(name=resource.name, place=found.place, reason=claims)
            hosts = [await self._claimant(found, member, incarnation) for incarnation in claims]
            attested = attest(hosts)
            if attested is None:
                return ""
            outcome = await holding.acquire_unless_held(Mode.EXCLUSIVE, attested)
            if isinstance(outcome, LeftBehind):
                raise LeaseUnusable(name=resource.name, place=found.place, reason=UNACCOUNTED)
            if not isinstance(outcome, Lease):
                refused = await self._backend.refusal(found, holding, outcome)
                if isinstance(refused, HeldElsewhere):
                    raise ResourceBusy(resource, refused.holders, note=UNPROVEN)
                raise storage_failed(refused)
            failed = await self._clear_holds(found, holding, attested)
            if isinstance(failed, HoldStands):
                raise LeaseUnusable(name=resource.name, place=found.place, reason=str(failed))
            if failed is not None:
                raise storage_failed(IoFailed("Unable to clear a shared hold in", found.place, failed.errno))
            return "; ".join(host.proof(attested) for host in hosts)

    async def _clear_holds(
        self, found: Found, holding: HeldLease, attested: Attested
    ) -> types.IoFailed | HoldStands | None:
        """Clear shared holds and release the lease, but not while a write to another host's block is in flight."""
        timeout_s = holding.member.io_timeout_s
        result = await self._backend.ports.offload.run(
            lambda job: clear_holds(area_in(job, found.area), member_in(job, holding.member), attested),
            timeout_s,
        )
        if isinstance(result, TimedOut):
            self._backend.ports.spawn(self._released_late(holding, result))
            return types.IoFailed(errno.ETIMEDOUT, in_flight=True)
        await holding.release()
        return result

    async def _released_late(
        self, holding: HeldLease, silent: TimedOut[types.IoFailed | HoldStands | None]
    ) -> None:
        await silent.over
        await holding.release()
        self._backend.tidy(holding)

    async def _claimant(
        self, found: Found, member: Membership, incarnation: tuple[HostId, Generation]
    ) -> Claimant:
        vm = owner_note.vm_of(await self._note(found, member, incarnation[0]))
        return Claimant(
            incarnation, await self._record(member, incarnation[0]), member.view(incarnation[0]), vm
        )

    async def _note(self, found: Found, member: Membership, host_id: HostId) -> bytes:
        """The note after a host's block; empty if that can't be read."""
        timeout_s = member.io_timeout_s
        read = await self._backend.ports.answer(
            lambda job: area_in(job, found.area).read_note(host_id, timeout_s), timeout_s
        )
        return read[1] if isinstance(read, tuple) else b""

    async def own_note(self, found: Found, member: Membership) -> bytes:
        """The note after our own block; empty if it can't be read."""
        return await self._note(found, member, member.host_id)

    async def _record(self, member: Membership, host_id: HostId) -> DeltaLease | None:
        timeout_s = member.io_timeout_s
        record = await self._backend.ports.answer(
            lambda job: member_in(job, member).lockspace.read_record(host_id, timeout_s), timeout_s
        )
        return record if isinstance(record, DeltaLease) else None

    async def mark_dead(
        self, member: Membership, host_id: HostId, generation: Generation, timestamp: HostTimestamp
    ) -> Marked | NotMarked | types.IoFailed | TimedOut[Marked | NotMarked | types.IoFailed]:
        """See `LeaseMaintenance`."""
        return await self._backend.ports.offload.run(
            lambda job: mark_dead(member_in(job, member), host_id, generation, timestamp), member.io_timeout_s
        )

    # --- removing leases ---

    async def lease_names(self) -> list[str]:
        """Leases that this backend may have made, judged by their names; raises a `LockError`."""
        return [name for name in await self.all_names() if self._backend.names.makes(name)]

    @property
    def lists_all(self) -> bool:
        return self._backend.places.lists_all

    async def all_names(self) -> list[str]:
        """All leases, including those that others named; raises a `LockError`."""
        return _listed(await self._backend.places.names(self._backend.member(Resource("", ""))))

    async def unindexed(self) -> list[UnindexedLease]:
        """Leases that this backend may have made, whose names do not lead to them any more; raises a `LockError`."""
        found = _listed(await self._backend.places.unindexed(self._backend.member(Resource("", ""))))
        return [unindexed for unindexed in found if self._backend.names.makes(unindexed.name)]

    async def take_out(self, name: str, *, dry_run: bool) -> str:
        """Remove a lease that no host holds, proven by taking it; empty, or why it stays."""
        resource = Resource("", name)
        member = self._backend.member(resource)
        found = await self._backend.look_up(member, resource, name)
        if isinstance(found, IoFailed):
            return os.strerror(found.errno)
        return await self._removed(member, found, dry_run=dry_run)

    async def take_out_stray(
        self, unindexed: UnindexedLease, *, dry_run: bool, has_ended: Callable[[ProcessId], bool]
    ) -> str:
        """Remove an unindexed lease that no host holds, proven by taking it; empty, or why it stays.

        A late write of another host's ballot can name this host as holder again, after it has removed the lease (simulator,
        seed 106003634). Only this host can free that then, and does if its own note is of maintenance, or of a process that
        `has_ended`.
        """
        member = self._backend.member(Resource("", unindexed.name))
        found = await self._backend.look_up_stray(member, unindexed)
        if isinstance(found, IoFailed):
            return os.strerror(found.errno)
        return await self._removed(member, found, dry_run=dry_run, has_ended=has_ended)

    async def _removed(
        self,
        member: Membership,
        found: Found,
        *,
        dry_run: bool,
        has_ended: Callable[[ProcessId], bool] | None = None,
    ) -> str:
        """`has_ended`: for an unindexed lease."""
        name = found.area.resource_name
        with self._backend.trying(found, member) as holding:
            if dry_run:
                return await holding.who_holds() or await self._kept_by_lvb(found, member)
            outcome = await holding.acquire_unless_held(Mode.EXCLUSIVE)
            if isinstance(outcome, LeftBehind):
                if has_ended is None or not await self._is_of_nobody(found, member, has_ended):
                    return UNACCOUNTED
                outcome = await holding.acquire(Mode.EXCLUSIVE)
            if not isinstance(outcome, Lease):
                result = await self._backend.refusal(found, holding, outcome)
                if not isinstance(result, HeldElsewhere):
                    return str(result)
                holders = "; ".join(map(str, result.holders))
                return holders if has_ended is None else f"{holders}; {FREED_THERE}"
            if has_ended is None and not await self._backend.still_there(found, holding):
                return TAKEN_OUT
            if belongs := await self._kept_by_lvb(found, member):
                await holding.release()
                return belongs
            kept = await self._backend.places.remove(member, found, name, outcome.leader)
            if kept is None:
                holding.forget()
                return ""
            await holding.release()
            return kept.reason if isinstance(kept, Unusable) else os.strerror(kept.failed.errno)

    async def _is_of_nobody(
        self, found: Found, member: Membership, has_ended: Callable[[ProcessId], bool]
    ) -> bool:
        """Whether our own note says that no owner of this host has the lease. One that can't be read says nothing."""
        note = await self.own_note(found, member)
        process = owner_note.noted(note).process
        return owner_note.is_of_upkeep(note) or (process is not None and has_ended(process))

    async def _kept_by_lvb(self, found: Found, member: Membership) -> str:
        """Why a lease that no host holds must stay; empty if it may be removed."""
        timeout_s = member.io_timeout_s
        lvb = await self._backend.ports.answer(
            lambda job: area_in(job, found.area).read_lvb(timeout_s), timeout_s
        )
        if isinstance(lvb, types.IoFailed):
            return os.strerror(lvb.errno)
        return f"{LVB_KEPT}: {printable(lvb.decode('utf-8', 'replace'))}" if lvb else ""

    async def free_left_behind(self, name: str) -> bool:
        """Release a lease that storage shows as this incarnation's; whether it was. Raises a `LockError`: `StorageFailed`
        if storage does not answer, `AttemptLeft` if other hosts prevent the withdrawal of an attempt.

        A daemon left it that was killed before it could record the lease in its journal, or during its release.
        """
        resource = Resource("", name)
        member = self._backend.member(resource)
        found = await self._backend.look_up(member, resource, name)
        if isinstance(found, IoFailed):
            raise storage_failed(found)
        with self._backend.trying(found, member) as holding:
            left = await holding.is_left_behind()
            if left is False:
                return False
            # Shared, as others may share a hold that was left.
            taken = await holding.acquire(Mode.SHARED) if left is True else left
            if isinstance(taken, types.IoFailed):
                raise storage_failed(IoFailed("Unable to free lease", found.place, taken.errno))
            if not isinstance(taken, Lease):
                # An attempt that is not withdrawn stays: another host's ballot could make us its owner (found by seed 1057).
                refused = await self._backend.refusal(found, holding, taken)
                raise AttemptLeft(name=name, place=found.place, reason=str(refused))
            await holding.release()
            return True

    async def take_up(self, name: str) -> LeftLease | None:
        """Hold a lease that storage shows as this incarnation's, for the owner that its note names.

        None if no VM may depend on it: remains of an attempt or a release are freed then. Raises as `free_left_behind`.
        """
        member = self._backend.member(Resource("", name))
        found = await self._backend.look_up(member, Resource("", name), name)
        if isinstance(found, IoFailed):
            raise storage_failed(found)
        mode = await self._held_mode(found, member)
        note = b"" if mode is None else await self._read_own_note(found, member)
        if mode is None or owner_note.is_of_upkeep(note):
            found.disk.close()
            await self.free_left_behind(name)
            return None
        noted = owner_note.noted(note)
        disk = owner_note.disk_of(note) or self._backend.names.path_of(name)
        is_clients = disk.startswith(SANLOCK_PREFIX)
        lockspace = self._backend.presence.name
        resource = Resource(SANLOCK_PREFIX + lockspace, name) if is_clients else resource_of(disk)
        holding = self._backend.holding(found, member)
        self._backend.unsettled(holding, found)
        resumed = await holding.resume(mode)
        if not isinstance(resumed, Lease):
            self._backend.tidy(holding)
            failed = resumed.errno if isinstance(resumed, types.IoFailed) else errno.EAGAIN
            raise storage_failed(IoFailed("Unable to resume lease", found.place, failed))
        holding.area = replace(holding.area, note=note)
        held = self._backend.handed_out(found, holding, resource)
        area = f"{found.disk.facts.path}:{found.area.offset_bytes}"
        return LeftLease(held, resource, mode, noted, area)

    async def noted_process(self, name: str) -> ProcessId | None:
        """The process that the note after our own block names; None without a note. Raises as `free_left_behind`."""
        member = self._backend.member(Resource("", name))
        found = await self._backend.look_up(member, Resource("", name), name)
        if isinstance(found, IoFailed):
            raise storage_failed(found)
        note = await self._read_own_note(found, member)
        found.disk.close()
        return owner_note.noted(note).process

    async def _read_own_note(self, found: Found, member: Membership) -> bytes:
        """The note after our own block. If storage doesn't return it, its owner is not known: that raises `StorageFailed`,
        and the disk of `found` is closed.
        """
        timeout_s = member.io_timeout_s
        read = await self._backend.ports.answer(
            lambda job: area_in(job, found.area).read_note(member.host_id, timeout_s), timeout_s
        )
        if not isinstance(read, tuple):
            found.disk.close()
            raise storage_failed(IoFailed("Unable to read lease", found.place, errno.EIO))
        return read[1]

    async def _held_mode(self, found: Found, member: Membership) -> Mode | None:
        mode = await self._backend.holding(found, member).held_mode()
        if isinstance(mode, types.IoFailed):
            found.disk.close()
            raise storage_failed(IoFailed("Unable to read lease", found.place, mode.errno))
        return mode

    async def free_own(self) -> None:
        """Release what an earlier daemon of this incarnation may have held only to make or remove a lease; raises a
        `LockError`.
        """
        failed = await self._backend.places.free_own(self._backend.member(Resource("", "")))
        if failed is not None:
            raise storage_failed(IoFailed("Unable to free lease", failed.place, failed.failed.errno))

    async def free_of_older_terms(self) -> None:
        """As `free_own` for earlier incarnations of this host, where leases never expire by time and no other host gets
        them; raises a `LockError`.
        """
        member = self._backend.presence.membership()
        if not isinstance(member, Membership) or major_of(member.lockspace.version) < FLAGS_MEAN_FROM:
            return
        if member.view(member.host_id).no_timeout:
            await self.free_own()
