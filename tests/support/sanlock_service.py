"""A `SanlockService` in memory: it grants what it is asked for, notes requests, and can be made to wait or fail."""

from __future__ import annotations

import asyncio
from typing import Any

from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.service import DaemonState
from holdfast.ondisk.padded_name import PaddedName
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import ReleaseFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import RecordType, StateRecord
from holdfast.wire.sanlock.structures import Host, Lockspace, Resource


class FakeService:
    """`lockspaces`: joined ones by name; `held`: leases by client id; ACQUIRE waits for `gate`, ADD for `joining`."""

    def __init__(self) -> None:
        self.lockspaces: dict[str, Lockspace] = {}
        self.held: dict[int, list[Resource]] = {}
        self.value_blocks: dict[str, bytes] = {}
        self.died: list[int] = []
        self.closed: list[int] = []
        self.seen: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.joining = asyncio.Event()
        self.joining.set()
        self.exits = asyncio.Event()
        self.fails = False

    def client_registered(self, client: Client, kept: Client | None) -> None:
        pass

    def client_restricted(self, client: Client) -> None:
        pass

    def client_died(self, client: Client) -> None:
        self.died.append(client.pid)

    def client_closed(self, client: Client) -> None:
        self.closed.append(client.pid)
        self.held.pop(client.client_id, None)

    def _note(self, request: Any) -> None:
        self.seen.append(request)
        if self.fails:
            raise RuntimeError("planted")

    def _joined(self, name: PaddedName, otherwise: Result) -> Result:
        return Result.OK if name.text in self.lockspaces else otherwise

    # --- registered clients ---

    async def acquire(self, client: Client, request: r.Acquire | r.Acquire2) -> replies.Plain:
        self._note(request)
        await self.gate.wait()
        for resource in request.resources:
            if self._joined(resource.lockspace, Result.ENOSPC):
                return replies.Plain(Result.ENOSPC)
        self.held.setdefault(client.client_id, []).extend(request.resources)
        return replies.Plain(Result.ENOTTY if client.dead else Result.OK)

    async def acquire2(self, client: Client, request: r.Acquire2) -> replies.Plain | replies.Holder:
        done = await self.acquire(client, request)
        if done.result:
            return replies.Holder(done.result, Host(3, 4, 5, 0, 3), PaddedName.of("other"))
        return done

    async def release(self, client: Client, request: r.Release) -> replies.Plain:
        self._note(request)
        held = self.held.setdefault(client.client_id, [])
        if request.flags & ReleaseFlag.ALL:
            held.clear()
            return replies.Plain()
        result = Result.OK
        for named in request.resources:
            found = [each for each in held if (each.lockspace, each.name) == (named.lockspace, named.name)]
            if not found:
                result = Result.FAILED
            for each in found:
                held.remove(each)
        return replies.Plain(result)

    async def inquire(self, client: Client, request: r.Inquire) -> replies.ClientState:
        self._note(request)
        return replies.ClientState.of(tuple(self.held.get(client.client_id, ())))

    async def convert(self, client: Client, request: r.Convert) -> replies.Plain:
        self._note(request)
        return replies.Plain(Result.ENOENT)

    async def killpath(self, client: Client, request: r.Killpath) -> replies.Plain:
        self._note(request)
        return replies.Plain()

    # --- answered at once ---

    def shutdown(self, request: r.Shutdown) -> None:
        self._note(request)

    def status(self) -> DaemonState:
        return DaemonState(
            daemon=StateRecord(RecordType.DAEMON, name=PaddedName.of("host"), text="our_host_name=host"),
            lockspaces=tuple(
                StateRecord(RecordType.LOCKSPACE, name=each.name, text="list=spaces", attached=each)
                for each in self.lockspaces.values()
            ),
            resources=tuple(
                StateRecord(RecordType.RESOURCE, name=each.name, text="list=held", attached=each)
                for held in self.held.values()
                for each in held
            ),
        )

    def log_dump(self) -> replies.Log:
        return replies.Log(b"2026-01-01 one line\n" * 20_000)

    def host_status(self, request: r.HostStatus) -> replies.Records:
        return replies.Records(self._joined(request.lockspace.name, Result.ENOSPC))

    def renewal(self, request: r.Renewal) -> replies.Records:
        return replies.Records(self._joined(request.lockspace.name, Result.ENOSPC), (), 1)

    def get_lockspaces(self, request: r.GetLockspaces) -> replies.Lockspaces:
        self._note(request)
        return replies.Lockspaces(Result.OK, tuple(self.lockspaces.values()))

    def get_hosts(self, request: r.GetHosts) -> replies.Hosts:
        result = self._joined(request.lockspace.name, Result.ENOENT)
        return replies.Hosts(result, () if result else (Host(1, 1, 7, 1, 3),))

    def set_config(self, request: r.SetConfig) -> replies.Plain:
        return replies.Plain(self._joined(request.lockspace.name, Result.ENOENT))

    def event_lockspace(self, lockspace: Lockspace) -> replies.Plain:
        return replies.Plain(self._joined(lockspace.name, Result.ENOENT))

    # --- what takes its time ---

    async def shutdown_wait(self, request: r.ShutdownWait) -> replies.Plain:
        if self.lockspaces and not request.force:
            return replies.Plain(Result.EBUSY)
        await self.exits.wait()
        return replies.Plain()

    async def add_lockspace(self, request: r.AddLockspace) -> replies.Plain:
        self._note(request)
        await self.joining.wait()
        self.lockspaces[request.lockspace.name.text] = request.lockspace
        return replies.Plain()

    async def rem_lockspace(self, request: r.RemLockspace) -> replies.Plain:
        return replies.Plain(self._joined(request.lockspace.name, Result.ENOENT))

    async def add_lockspace_again(self, request: r.AddLockspace) -> replies.Plain:
        return await self.add_lockspace(request)

    async def rem_lockspace_again(self, request: r.RemLockspace) -> replies.Plain:
        return await self.rem_lockspace(request)

    async def inq_lockspace(self, request: r.InqLockspace) -> replies.Plain:
        self._note(request)
        return replies.Plain(self._joined(request.lockspace.name, Result.ENOENT))

    async def examine_lockspace(self, request: r.ExamineLockspace) -> replies.Plain:
        return replies.Plain()

    async def examine_resource(self, request: r.ExamineResource) -> replies.Plain:
        return replies.Plain()

    async def set_event(self, request: r.SetEvent) -> replies.Plain:
        return replies.Plain(self._joined(request.lockspace.name, Result.ENOENT))

    async def request(self, request: r.Request) -> replies.Plain:
        return replies.Plain(self._joined(request.resource.lockspace, Result.ENOSPC))

    async def align(self, request: r.Align) -> replies.Plain:
        return replies.Plain(1 << 20)

    async def write_lockspace(self, request: r.WriteLockspace) -> replies.Plain:
        self._note(request)
        return replies.Plain()

    async def read_lockspace(self, request: r.ReadLockspace) -> replies.LockspaceRead:
        return replies.LockspaceRead(Result.OK, request.lockspace, 10)

    async def read_lockspace_host(self, request: r.ReadLockspaceHost) -> replies.LockspaceHostRead:
        return replies.LockspaceHostRead(Result.OK, request.lockspace, Host(1, 2, 3, 10), 10)

    async def init_lockspace_host(self, request: r.InitLockspaceHost) -> replies.Plain:
        return replies.Plain()

    async def set_host(self, request: r.SetHost) -> replies.Plain:
        return replies.Plain(Result.VERSION_INCOMPAT)

    async def write_resource(self, request: r.WriteResource) -> replies.Plain:
        return replies.Plain()

    async def read_resource(self, request: r.ReadResource) -> replies.ResourceRead:
        return replies.ResourceRead(Result.OK, request.resource)

    async def read_resource_owners(self, request: r.ReadResourceOwners) -> replies.OwnersRead:
        return replies.OwnersRead(Result.OK, request.resource, (Host(1, 2, 3),))

    async def set_lvb(self, request: r.SetLvb) -> replies.Plain:
        self.value_blocks[request.resource.name.text] = request.value_block
        return replies.Plain()

    async def get_lvb(self, request: r.GetLvb) -> replies.ValueBlock:
        block = self.value_blocks.get(request.resource.name.text)
        return replies.ValueBlock(Result.ENOENT) if block is None else replies.ValueBlock(Result.OK, block)

    async def format_rindex(self, request: r.FormatRindex) -> replies.Plain:
        return replies.Plain()

    async def rebuild_rindex(self, request: r.RebuildRindex) -> replies.Plain:
        return replies.Plain()

    async def update_rindex(self, request: r.UpdateRindex) -> replies.IndexEntry:
        return replies.IndexEntry(Result.OK, request.entry)

    async def lookup_rindex(self, request: r.LookupRindex) -> replies.IndexEntry:
        return replies.IndexEntry(Result.OK, request.entry)

    async def create_resource(self, request: r.CreateResource) -> replies.IndexEntry:
        return replies.IndexEntry(Result.OK, request.entry)

    async def delete_resource(self, request: r.DeleteResource) -> replies.IndexEntry:
        return replies.IndexEntry(Result.OK, request.entry)
