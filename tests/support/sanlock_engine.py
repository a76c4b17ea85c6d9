"""The engine of sanlock's clients with a daemon around it that tests write: lockspaces come and go as they say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from holdfast.frontends.sanlock.engine import SanlockEngine
from holdfast.frontends.sanlock.engine_ports import (
    NO_USES,
    DaemonFacts,
    ForeignAreas,
    LockspaceView,
    Uses,
)
from holdfast.ondisk.delta import Event
from holdfast.ondisk.geometry import DEFAULT
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.types import Generation, HostId, HostTimestamp
from holdfast.supervision.join_errors import NotJoined
from holdfast.supervision.lockspace_port import LockspaceSpec
from holdfast.supervision.named_lockspace import Named, Removal, Standing
from holdfast.supervision.renewal import RenewalTimes
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from tests.support.leases import SPACE, TIMING
from tests.support.sanlock_clients import Site, Storage

METHODS: dict[type[r.AnyRequest], str] = {
    r.Align: "align",
    r.WriteLockspace: "write_lockspace",
    r.ReadLockspace: "read_lockspace",
    r.ReadLockspaceHost: "read_lockspace_host",
    r.InitLockspaceHost: "init_lockspace_host",
    r.SetHost: "set_host",
    r.WriteResource: "write_resource",
    r.ReadResource: "read_resource",
    r.ReadResourceOwners: "read_resource_owners",
    r.FormatRindex: "format_rindex",
    r.RebuildRindex: "rebuild_rindex",
    r.UpdateRindex: "update_rindex",
    r.LookupRindex: "lookup_rindex",
    r.CreateResource: "create_resource",
    r.DeleteResource: "delete_resource",
}
"""The engine's methods of commands on areas."""


def host_view(
    host_id: int, *, state: HostState = HostState.LIVE, generation: int = 1, timestamp: int = 50
) -> HostView:
    return HostView(
        host_id=HostId(host_id),
        state=state,
        name=f"host-{host_id}",
        generation=Generation(generation),
        timestamp=HostTimestamp(timestamp),
        io_timeout_s=TIMING.io_timeout_s,
    )


def view_of(
    name: str, path: str, *, host_id: int = 1, standing: Standing = Standing.JOINED, offset_bytes: int = 0
) -> LockspaceView:
    return LockspaceView(
        name=name,
        path=path,
        offset_bytes=offset_bytes,
        host_id=host_id,
        standing=standing,
        io_timeout_s=TIMING.io_timeout_s,
        generation=1,
        geometry=DEFAULT,
    )


@dataclass
class FakeLockspaces:
    """`Lockspaces` and `LockspaceFacts` in memory. A join waits for `joining` and ends with `fails`, if that is set."""

    known: dict[str, LockspaceView] = field(default_factory=dict)
    in_the_way: dict[str, str] = field(default_factory=dict)
    seen_hosts: dict[str, list[HostView]] = field(default_factory=dict)
    history: dict[str, list[RenewalTimes]] = field(default_factory=dict)
    marks: dict[str, Uses] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    fails: NotJoined | None = None
    removal: Removal = Removal.DONE

    def __post_init__(self) -> None:
        self.joining = asyncio.Event()
        self.joining.set()
        self.stopping = asyncio.Event()
        self.stopping.set()

    # --- Lockspaces ---

    def standing(self, named: Named) -> Standing:
        others = Standing.ABSENT
        for view in self.known.values():
            same_place = (view.path, view.offset_bytes) == (named.path, named.offset_bytes)
            if view.name == named.name and same_place and named.host_id in (0, view.host_id):
                return view.standing
            if view.name == named.name or same_place:
                others = Standing.OTHER
        return others

    async def add(self, spec: LockspaceSpec) -> NotJoined | Standing | None:
        self.calls.append(("add", spec))
        view = view_of(spec.name, spec.path, host_id=spec.host_id or 0, standing=Standing.ADDING)
        self.known[spec.name] = replace(
            view, offset_bytes=spec.offset_bytes, io_timeout_s=spec.timing.io_timeout_s
        )
        await self.joining.wait()
        if self.fails is not None:
            self.known.pop(spec.name, None)
            return self.fails
        self.known[spec.name] = replace(self.known[spec.name], standing=Standing.JOINED)
        return None

    async def remove(self, named: Named) -> Removal:
        self.calls.append(("remove", named.name))
        if self.removal is Removal.DONE:
            del self.known[named.name]
        return self.removal

    def why_not_removed(self, lockspace: str) -> str:
        return self.in_the_way.get(lockspace, "")

    async def stop_clients(self, lockspace: str) -> None:
        self.calls.append(("stop", lockspace))
        await self.stopping.wait()

    # --- LockspaceFacts ---

    def views(self) -> list[LockspaceView]:
        return list(self.known.values())

    def hosts(self, lockspace: str) -> list[HostView]:
        return self.seen_hosts.get(lockspace, [])

    def renewals(self, lockspace: str) -> list[RenewalTimes]:
        return self.history.get(lockspace, [])

    def uses(self, lockspace: str) -> Uses:
        return self.marks.get(lockspace, NO_USES)

    def set_uses(self, lockspace: str, uses: Uses) -> None:
        self.marks[lockspace] = uses

    def set_io_timeout(self, lockspace: str, io_timeout_s: int) -> bool:
        self.calls.append(("io_timeout", lockspace, io_timeout_s))
        return True

    def post_event(self, lockspace: str, event: Event) -> None:
        self.calls.append(("event", lockspace, event))

    def notify(self, lockspace: str, host_id: HostId) -> None:
        self.calls.append(("notify", lockspace, host_id))

    def notify_no_more(self, lockspace: str, host_id: HostId) -> None:
        self.calls.append(("notify_no_more", lockspace, host_id))

    def examine(self, lockspace: str, resource: str) -> None:
        self.calls.append(("examine", lockspace, resource))


@dataclass
class FakeDaemon:
    """`Daemon` in memory; `ended` counts the calls that end it."""

    log: bytes = b"2026-01-01 a line\n"
    stays: str = ""
    ended: int = 0
    io_timeout_s: int = 10
    version: int = 0x03090500

    def facts(self) -> DaemonFacts:
        return DaemonFacts(
            host_name="host-1",
            version=self.version,
            use_watchdog=True,
            io_timeout_s=self.io_timeout_s,
            fire_timeout_s=TIMING.fire_timeout_s,
            kill_grace_s=TIMING.grace_s,
            renewal_history=180,
        )

    def log_text(self) -> bytes:
        return self.log

    def why_not_ended(self) -> str:
        return self.stays

    async def end(self) -> None:
        self.ended += 1


class EngineSite(Site):
    """A host in SPACE, with real leases, the lock manager, and the engine."""

    def __init__(
        self,
        storage: Storage,
        *,
        host_id: int = 1,
        lockd: bool = False,
        areas: ForeignAreas | None = None,
    ) -> None:
        super().__init__(storage, host_id=host_id, lockd=lockd)
        self.spaces = FakeLockspaces()
        self.spaces.known[SPACE] = view_of(SPACE, str(storage.lockspace), host_id=host_id)
        self.spaces.seen_hosts[SPACE] = [host_view(1), host_view(2)]
        self.daemon = FakeDaemon()
        self.gone: list[str] = []
        self.engine = SanlockEngine(
            lockspaces=self.spaces,
            facts=self.spaces,
            daemon=self.daemon,
            leases=self.leases,
            backends=self,
            areas=areas or self.host.storage,
            clock=self.world.clock,
            gone=self.gone.append,
        )

    async def ask(self, request: r.AnyRequest) -> replies.Reply:
        """A command on an area."""
        reply: replies.Reply = await getattr(self.engine, METHODS[type(request)])(request)
        return reply


def blank(path: Path, length_bytes: int) -> Path:
    """A file of zeros."""
    with path.open("wb") as f:
        f.truncate(length_bytes)
    return path
