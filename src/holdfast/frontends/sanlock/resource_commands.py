"""Commands about leases of sanlock's clients: ACQUIRE, RELEASE, INQUIRE, CONVERT, value blocks, requests (2.3 to 2.5).

A client's lease is a claim of its process in the lock table (`manager/client_leases`), and one lease table decides for all
frontends. What sanlock counts by connection is counted here: who has which lease, and what is just being acquired.

    ACQUIRE   every lockspace is joined ─ one lease after the other: not here, else on storage ─ the first refusal gives
              those of this call back ─ the client lives, and its lockspaces are joined still ─ answer
    the end   what is persistent and the last hold of this host becomes an orphan, all else is released
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from holdfast.backends.paxos.area_backend import AreaBackend, resource_in
from holdfast.backends.paxos.area_store import Area, area_of
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.errors import HoldfastError, ResourceBusy
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.engine_ports import LeasesOfLockspaces
from holdfast.frontends.sanlock.held_resources import HeldResource, HeldResources
from holdfast.frontends.sanlock.holder_request import ask_holder
from holdfast.frontends.sanlock.lease_results import (
    may_end_by_time,
    of_errno,
    of_error,
    of_release,
)
from holdfast.frontends.sanlock.named_holder import named_holder
from holdfast.frontends.sanlock.resource_records import records_of
from holdfast.frontends.sanlock.restored_clients import RestoredClients
from holdfast.frontends.sanlock.value_blocks import ValueBlocks
from holdfast.manager.client_leases import ClientLeases
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import Owner, Wishes
from holdfast.model import SANLOCK_PREFIX, AcquireRequest, Mode
from holdfast.model import Resource as Key
from holdfast.protocol.types import HostId
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import (
    SIZES,
    AcquireFlag,
    ConvertFlag,
    ReleaseFlag,
    ResourceFlag,
)
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import StateRecord
from holdfast.wire.sanlock.structures import Resource

log = logging.getLogger(__name__)

DEAD_OWNER_POLL_S = 1.0
"""How often an ACQUIRE that waits for a dead owner tries again, as often as sanlock reads that host's record."""


class _Refused(NamedTuple):
    result: int
    holder: replies.Holder | None = None


class ResourceCommands:
    """`notify` sets the bit of a host in our record of that lockspace, which has it read its request records.
    `has_codes_of_5`: clients are answered as by sanlock 5.
    """

    def __init__(
        self,
        leases: ClientLeases,
        lockspaces: LeasesOfLockspaces,
        *,
        clock: Clock,
        notify: Callable[[str, HostId], None],
        has_codes_of_5: bool = False,
    ) -> None:
        self._leases = leases
        self._lockspaces = lockspaces
        self._clock = clock
        self._notify = notify
        self._has_codes_of_5 = has_codes_of_5
        self.held = HeldResources()
        self.killpaths: dict[Client, r.Killpath] = {}
        """What the clients want run when their leases are to end."""
        self._owners: dict[Client, Owner] = {}
        self._value_blocks = ValueBlocks(self.held, leases)
        self._restored = RestoredClients(leases, self.held, self._owners, self.killpaths)

    # --- clients ---

    def client_registered(self, client: Client, kept: Client | None) -> None:
        """`kept`: the same process as an earlier daemon had it; what it has is this connection's now."""
        try:
            owner = self._owner(client, "")
        except HoldfastError as error:
            log.warning("%s is registered without an owner: %s", client, error)
            return
        self.client_restricted(client)
        if kept is not None:
            self._owners.pop(kept, None)
            self.killpaths.pop(kept, None)
            for held in self.held.of(kept):
                self.held.remove(held)
                held.client, held.owner = client, owner
                self.held.add(held)
                self._leases.moves_hold(owner, kept.client_id, held.key, client.client_id)

    def client_restricted(self, client: Client) -> None:
        """Have the next daemon know how this client wants to be stopped."""
        owner, killpath = self._owners.get(client), self.killpaths.get(client)
        if owner is not None:
            command = (killpath.flags, killpath.path, killpath.arguments) if killpath is not None else ()
            self._leases.wishes(owner, Wishes(client.restricted, *command))

    def restore(
        self, owner: Owner, connected: Sequence[Client], pending: Collection[int], keep: Callable[[], Client]
    ) -> None:
        """When a daemon begins: `RestoredClients.restore`."""
        self._restored.restore(owner, connected, pending, keep)

    def kept_ended(self, owner: Owner) -> None:
        """Its locks are the manager's to release."""
        for client in [each for each, of in self._owners.items() if of is owner and each.kept]:
            for held in self.held.of(client):
                self.held.remove(held)
            del self._owners[client]
            self.killpaths.pop(client, None)

    def client_died(self, client: Client) -> None:
        """An ACQUIRE that waits sees `Client.dead`."""

    def client_closed(self, client: Client) -> None:
        self.killpaths.pop(client, None)
        if client in self._owners:
            eager_tasks.start(self._end(client))

    async def _end(self, client: Client) -> None:
        for held in self.held.of(client):
            if held.persistent and not self.held.others(held):
                self._becomes_orphan(held)
            else:
                await self._give_up(held)
        self._leases.closed(self._owners.pop(client))

    def _owner(self, client: Client, name: str) -> Owner:
        owner = self._owners.get(client)
        if owner is None:
            owner = self._owners[client] = self._leases.opened(client.pid, name)
            client.owner_id = owner.id
        else:
            self._leases.renamed(owner, name)
        return owner

    async def killpath(self, client: Client, request: r.Killpath) -> replies.Plain:
        before = self.killpaths.get(client)
        sticky = before.flags if before is not None else 0
        self.killpaths[client] = request._replace(flags=request.flags | sticky)
        self.client_restricted(client)
        return replies.Plain()

    # --- ACQUIRE ---

    async def acquire(self, client: Client, request: r.Acquire) -> replies.Plain:
        refused = await self._acquire_all(client, request)
        return replies.Plain(Result.OK if refused is None else refused.result)

    async def acquire2(self, client: Client, request: r.Acquire2) -> replies.Plain | replies.Holder:
        refused = await self._acquire_all(client, request)
        if refused is None:
            return replies.Plain()
        return refused.holder or replies.Plain(refused.result)

    async def _acquire_all(self, client: Client, request: r.Acquire | r.Acquire2) -> _Refused | None:
        for resource in request.resources:
            if (result := self._not_possible(resource)) is not None:
                return _Refused(result)
        if any(self._joined(resource.lockspace.text) is None for resource in request.resources):
            return _Refused(Result.ENOSPC)
        if not request.resources:
            return None
        try:
            owner = self._owner(client, request.options.owner_name.text)
        except HoldfastError as error:
            log.warning("refused ACQUIRE to %s: %s", client, error)
            return _Refused(of_error(error))
        self._leases.forget_released(owner, client.client_id, client.request)
        taken: list[HeldResource] = []
        for resource in request.resources:
            got = await self._acquire_one(client, owner, resource, request.flags)
            if isinstance(got, _Refused):
                await self._give_back(taken)
                return got
            taken.append(got)
        if client.dead:
            await self._give_back(taken)
            return _Refused(Result.ENOTTY)
        if any(self._joined(resource.lockspace.text) is None for resource in request.resources):
            await self._give_back(taken)
            return _Refused(Result.ENOSPC)
        return None

    def _not_possible(self, resource: Resource) -> Result | None:
        if len(resource.disks) > 1:
            log.warning("refused %s: a lease on several disks is not supported", resource.name)
            return Result.EINVAL
        if resource.flags & ResourceFlag.NUM_HOSTS:
            log.warning("refused %s: its number of hosts is not changed by ACQUIRE here", resource.name)
            return Result.EINVAL
        return None

    def _joined(self, lockspace: str) -> AreaBackend | None:
        backend = self._lockspaces.backend_of(lockspace)
        if backend is None or isinstance(backend.presence.membership(), NotAMember):
            return None
        return backend

    async def _acquire_one(
        self, client: Client, owner: Owner, resource: Resource, flags: int
    ) -> HeldResource | _Refused:
        key = resource_in(resource.lockspace.text, resource.name.text)
        mode = Mode.SHARED if resource.flags & ResourceFlag.SHARED else Mode.EXCLUSIVE
        if key in self.held.releasing:
            return _Refused(Result.EAGAIN)
        if key in self.held.adding:
            return _Refused(Result.EBUSY)
        mine = self.held.one(client, key)
        if mine is not None and mine.by_request and mine.by_request == client.request:
            return await self._got_before(mine, resource, flags)
        holders = self.held.holders(key)
        if holders and (
            mode is Mode.EXCLUSIVE
            or any(each.mode is Mode.EXCLUSIVE or each.client is client for each in holders)
        ):
            return _Refused(Result.EEXIST)
        keeper = self._leases.keeper(key) if not holders else None
        if (result := self._why_no_orphan(keeper, key, mode, flags)) is not None:
            return _Refused(result)
        try:
            self._leases.begins_to_hold(
                owner,
                client.client_id,
                key,
                client.request,
                value_block=bool(flags & AcquireFlag.LVB),
                was_orphan=keeper is not None,
            )
        except HoldfastError as error:
            return _Refused(of_error(error))
        if keeper is not None:
            orphan = self._leases.take_up(keeper, owner, key)
            return await self._got(client, owner, resource, mode, flags, orphan, was_orphan=True)
        self.held.adding[key] = client, resource
        try:
            locked = await self._acquire_new(client, owner, AcquireRequest(key, mode), resource, flags)
            if isinstance(locked, _Refused):
                self._leases.holds_no_more(owner, client.client_id, key, client.request)
                return locked
            return await self._got(client, owner, resource, mode, flags, locked)
        finally:
            del self.held.adding[key]

    def _why_no_orphan(self, keeper: Owner | None, name: Key, mode: Mode, flags: int) -> Result | None:
        """Why the client can't have the orphan of that name, or can't have it without there being one."""
        wants_orphans = flags & (AcquireFlag.ORPHAN | AcquireFlag.ORPHAN_ONLY)
        if keeper is None:
            none_here = not self.held.holders(name)
            return Result.ENOENT if flags & AcquireFlag.ORPHAN_ONLY and none_here else None
        if not wants_orphans or self._leases.claimed(keeper, name) is not mode:
            return Result.EUCLEAN
        lock = self._leases.held(name)
        # Without a lease it is being taken again after a restart.
        return Result.EAGAIN if lock is None or lock.held is None else None

    async def _got_before(
        self, held: HeldResource, resource: Resource, flags: int
    ) -> HeldResource | _Refused:
        """This very request has brought it, and an earlier daemon ended before the answer."""
        held.by_request = 0
        held.wire, held.has_value_block = resource, bool(flags & AcquireFlag.LVB)
        held.persistent = bool(resource.flags & ResourceFlag.PERSISTENT)
        lock = self._leases.held(held.key)
        if lock is None or lock.held is None:
            await self._undo(held)
            return _Refused(Result.EAGAIN)  # it could not be taken again
        return await self._complete(held, lock)

    async def _acquire_new(
        self, client: Client, owner: Owner, want: AcquireRequest, resource: Resource, flags: int
    ) -> HostLock | _Refused:
        """Acquire what no client has; waits for an owner that may be dead."""
        backend = self._joined(resource.lockspace.text)
        if backend is None:
            return _Refused(Result.ENOSPC)
        if self._leases.with_key(backend.names.key(want.resource.name)) is None:
            disk = resource.disks[0]
            lver = resource.lver if resource.flags & ResourceFlag.LVER else 0
            backend.areas.put(want.resource.name, Area(disk.path, disk.offset_bytes, lver))
        persistent = bool(resource.flags & ResourceFlag.PERSISTENT)
        return await self._patiently(
            client, owner, want, persistent, nowait=bool(flags & AcquireFlag.OWNER_NOWAIT), backend=backend
        )

    async def _patiently(
        self,
        client: Client,
        owner: Owner,
        want: AcquireRequest,
        persistent: bool,
        *,
        nowait: bool,
        backend: AreaBackend,
    ) -> HostLock | _Refused:
        while True:
            try:
                return await self._leases.acquire(owner, want, persistent=persistent)
            except HoldfastError as error:
                cause = error.cause if isinstance(error, ResourceBusy) else None
                left_s = may_end_by_time(cause)
                if left_s is None or nowait or client.dead:
                    log.warning("refused %s to %s: %s", want.resource, client, error)
                    self._leases.refused(owner, want, str(error))
                    result = of_error(error, shared=want.mode is Mode.SHARED)
                    return _Refused(result, named_holder(result, error, backend))
            await self._clock.sleep(min(max(left_s, 0.0) + 0.1, DEAD_OWNER_POLL_S))

    async def _got(
        self,
        client: Client,
        owner: Owner,
        resource: Resource,
        mode: Mode,
        flags: int,
        lock: HostLock,
        *,
        was_orphan: bool = False,
    ) -> HeldResource | _Refused:
        """A client has a lease by the table; enter it here, with its value block."""
        held = HeldResource(
            client=client,
            owner=owner,
            key=resource_in(resource.lockspace.text, resource.name.text),
            wire=resource,
            mode=mode,
            lver=0,
            persistent=bool(resource.flags & ResourceFlag.PERSISTENT),
            was_orphan=was_orphan,
            has_value_block=bool(flags & AcquireFlag.LVB),
        )
        self.held.add(held)
        return await self._complete(held, lock)

    async def _complete(self, held: HeldResource, lock: HostLock) -> HeldResource | _Refused:
        client = held.client
        if not held.persistent:
            self._leases.no_more_persistent(held.owner, held.key)
        lease: object = lock.held
        if not isinstance(lease, PaxosHeld):
            await self._undo(held)
            return _Refused(Result.ERROR)
        held.lver = lease.lver if held.mode is Mode.EXCLUSIVE else held.wire.lver
        sizes = lease.geometry
        held.size_flags = SIZES[sizes.sector_bytes, sizes.align_bytes]
        if held.has_value_block:
            if not sizes.has_lvb:
                log.warning("refused %s to %s: a lease of %s has no value block", held.key, client, sizes)
                await self._undo(held)
                return _Refused(Result.EINVAL)
            read = await lease.read_value_block()
            if isinstance(read, IoFailed):
                await self._undo(held)
                return _Refused(of_errno(read.errno))
            held.read_block = read
        return held

    async def _give_back(self, taken: Sequence[HeldResource]) -> None:
        for held in reversed(taken):
            await self._undo(held)

    async def _undo(self, held: HeldResource) -> None:
        """The call is refused: a lease that was an orphan before is one again, and not free."""
        if held.was_orphan:
            self._becomes_orphan(held)
        else:
            await self._give_up(held)

    def _becomes_orphan(self, held: HeldResource) -> None:
        self.held.remove(held)
        self._leases.holds_no_more(held.owner, held.client.client_id, held.key, held.client.request)
        self._leases.orphan(held.owner, held.key)

    # --- RELEASE ---

    async def release(self, client: Client, request: r.Release) -> replies.Plain:
        if request.flags & ReleaseFlag.ORPHAN:
            return await self._release_orphans(request.resources)
        if request.flags & ReleaseFlag.NO_DISK:
            log.warning("refused RELEASE of %s: to forget a lease that stays on storage", client)
            return replies.Plain(Result.EINVAL)
        if request.flags & ReleaseFlag.RENAME:
            before = self._released_before(client)
            return replies.Plain(await self._release_renamed(client, request.resources, before))
        result = Result.OK
        before = self._released_before(client)
        if request.flags & ReleaseFlag.ALL:
            for held in self.held.of(client):
                done = await self._give_up(held)
                result = done if done is not Result.OK else result
            for key, path in before.items():
                await self._release_on_storage(client, key, path)
        else:
            for each in request.resources:
                done = await self._release_one(client, each, before)
                result = done if done is not Result.OK else result
        if not self.held.of(client):
            client.kill_count = 0  # it has saved itself
        return replies.Plain(result)

    async def _release_one(self, client: Client, named: Resource, before: Mapping[Key, str]) -> Result:
        key = resource_in(named.lockspace.text, named.name.text)
        held = self.held.one(client, key)
        if held is not None:
            return await self._give_up(held)
        if key not in before:
            return Result.FAILED
        await self._release_on_storage(client, key, before[key])
        return Result.OK

    async def _release_on_storage(self, client: Client, key: Key, path: str, *, new_name: str = "") -> None:
        """An earlier daemon may have ended between the journal and the write: then this host has the lease for nobody."""
        owner, area = self._owners.get(client), area_of(path)
        backend = self._joined(key.lockspace.removeprefix(SANLOCK_PREFIX))
        if owner is None or area is None or backend is None or self._leases.held(key) is not None:
            return
        backend.areas.put(key.name, area)
        try:
            lock = await self._leases.acquire(owner, AcquireRequest(key, Mode.EXCLUSIVE), persistent=False)
        except HoldfastError as error:
            log.info("%s was released for %s before: %s", key, client, error)
        else:
            lease: object = lock.held
            if new_name and isinstance(lease, PaxosHeld):
                lease.rename_at_release(new_name)
            await self._leases.release(owner, key)
        backend.areas.forget(key.name)

    def _released_before(self, client: Client) -> Mapping[Key, str]:
        """What this very request has released already, if an earlier daemon had begun with it; with the locks' paths."""
        if (owner := self._owners.get(client)) is None:
            return {}
        self._leases.forget_released(owner, client.client_id, client.request)
        return self._leases.released_by(owner, client.client_id, client.request)

    async def _release_renamed(
        self, client: Client, resources: Sequence[Resource], before: Mapping[Key, str]
    ) -> Result:
        """The first one is released, and is a free lease of the second one's name then."""
        if len(resources) != 2 or not resources[1].name.text:
            return Result.EINVAL
        old, new = resources
        key = resource_in(old.lockspace.text, old.name.text)
        held = self.held.one(client, key)
        if held is None and key in before:
            await self._release_on_storage(client, key, before[key], new_name=new.name.text)
            return Result.OK
        if held is None:
            return Result.FAILED
        lock = self._leases.held(held.key)
        lease: object = lock.held if lock is not None else None
        if held.mode is not Mode.EXCLUSIVE or not isinstance(lease, PaxosHeld):
            return Result.EINVAL
        lease.rename_at_release(new.name.text)
        return await self._give_up(held)

    async def _give_up(self, held: HeldResource) -> Result:
        """End one client's hold; the lease is released with the last hold of its process."""
        if self.held.one(held.client, held.key) is not held:
            return Result.FAILED
        lock = self._leases.held(held.key)
        lease: object = lock.held if lock is not None else None
        await self._value_blocks.write(held)
        others = self.held.others(held)
        self.held.remove(held)
        self._leases.holds_no_more(held.owner, held.client.client_id, held.key, held.client.request)
        if any(each.owner is held.owner for each in others):
            return Result.OK
        if not others:
            self.held.releasing[held.key] = held
        try:
            await self._leases.release(held.owner, held.key)
        finally:
            self.held.releasing.pop(held.key, None)
        backend = self._lockspaces.backend_of(held.wire.lockspace.text)
        if backend is None or isinstance(backend.presence.membership(), NotAMember):
            return Result.OK  # nothing is written any more
        if self._leases.held(held.key) is None:
            backend.areas.forget(held.key.name)
        if backend.is_giving_up(held.key.name):
            return Result.AIO_TIMEOUT
        if not isinstance(lease, PaxosHeld):
            return Result.OK
        return of_release(held.lver, lease.found_instead, has_codes_of_5=self._has_codes_of_5)

    async def _release_orphans(self, resources: Sequence[Resource]) -> replies.Plain:
        """How many are released."""
        count = 0
        for wanted in resources[:1]:
            for keeper, key, _ in self._leases.orphans(SANLOCK_PREFIX + wanted.lockspace.text):
                if not wanted.name.text or key.name == wanted.name.text:
                    eager_tasks.start(self._leases.release_orphan(keeper, key))
                    count += 1
        return replies.Plain(count)

    # --- STATUS, INQUIRE, CONVERT ---

    def resource_records(self, version: int) -> tuple[StateRecord, ...]:
        """Those of STATUS, as that version of sanlock has them; also of orphans in lockspaces that this host has left."""
        orphans = [
            (key, lock)
            for lockspace in self._leases.lockspaces()
            for _, key, lock in self._leases.orphans(lockspace)
        ]
        return records_of(self.held, orphans, version)

    async def inquire(self, client: Client, request: r.Inquire) -> replies.ClientState:
        return replies.ClientState.of(tuple(held.described() for held in self.held.of(client)))

    async def convert(self, client: Client, request: r.Convert) -> replies.Plain:
        resource = request.resource
        key = resource_in(resource.lockspace.text, resource.name.text)
        held = self.held.one(client, key)
        if held is None:
            return replies.Plain(Result.ENOENT)
        mode = Mode.SHARED if resource.flags & ResourceFlag.SHARED else Mode.EXCLUSIVE
        if mode is held.mode:
            by_this = held.by_request and held.by_request == client.request
            return replies.Plain(Result.OK if by_this else Result.EALREADY)
        backend = self._joined(resource.lockspace.text)
        if backend is None:
            return replies.Plain(Result.ENOSPC)
        if mode is Mode.EXCLUSIVE and self.held.others(held):
            return replies.Plain(Result.EAGAIN)
        if mode is Mode.SHARED:
            await self._value_blocks.write(held)
        try:
            self._leases.begins_to_hold(
                held.owner,
                client.client_id,
                key,
                client.request,
                value_block=held.has_value_block,
                was_orphan=held.was_orphan,
            )
        except HoldfastError as error:
            return replies.Plain(of_error(error))
        self.held.adding[key] = client, resource
        try:
            lock = await self._patiently(
                client,
                held.owner,
                AcquireRequest(key, mode),
                held.persistent,
                nowait=bool(request.flags & ConvertFlag.OWNER_NOWAIT),
                backend=backend,
            )
        finally:
            del self.held.adding[key]
        if isinstance(lock, _Refused):
            on_this_host = lock.result == Result.EEXIST
            return replies.Plain(Result.EAGAIN if on_this_host else lock.result)
        held.mode = mode
        lease: object = lock.held
        if isinstance(lease, PaxosHeld) and mode is Mode.EXCLUSIVE:
            held.lver = lease.lver
        return replies.Plain()

    # --- value blocks, requests ---

    async def set_lvb(self, request: r.SetLvb) -> replies.Plain:
        return await self._value_blocks.set_lvb(request)

    async def get_lvb(self, request: r.GetLvb) -> replies.ValueBlock:
        return await self._value_blocks.get_lvb(request)

    async def request(self, request: r.Request) -> replies.Plain:
        if (impossible := self._not_possible(request.resource)) is not None:
            return replies.Plain(impossible)
        backend = self._joined(request.resource.lockspace.text)
        if backend is None:
            return replies.Plain(Result.ENOSPC)
        return replies.Plain(await ask_holder(backend, request, self._notify))
