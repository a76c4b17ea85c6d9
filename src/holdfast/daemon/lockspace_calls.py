"""Answers the lockspace calls of the control socket: `holdfast lockspace`, `lease` and `host`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from holdfast.control.api import CollectedLease, FencedHost, FencedLease, HostInfo, LeaseSpaceInfo
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.errors import Refused
from holdfast.lease_admin.breaking import LeaseBreaker
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.lease_admin.host_fencing import HostFencer
from holdfast.protocol.host_status import HostView
from holdfast.protocol.timing import IO_TIMEOUT_MAX_S, IO_TIMEOUT_MIN_S
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.system import eager_tasks

LEAVE_CALL_WAIT_S = 30.0
"""Freeing a host id is two requests; longer means that storage hangs."""


class LeaseSpaceCalls:
    """Lockspace calls of the control socket. `leases` counts the locks of some backends."""

    def __init__(
        self,
        host: HostLockspaces,
        leases: Callable[[Iterable[str]], int],
        now: Callable[[], float],
        collector: LeaseCollector,
        breaker: LeaseBreaker,
        fencer: HostFencer,
    ) -> None:
        self._collector = collector
        self._breaker = breaker
        self._fencer = fencer
        self._host = host
        self._leases = leases
        self._now = now

    def infos(self) -> list[LeaseSpaceInfo]:
        return [self._info(supervisor) for supervisor in self._host.supervisors]

    def join(self, name: str) -> None:
        self._keeper(name).join()

    def set_io_timeout(self, name: str, io_timeout_s: int) -> None:
        """Raises `Refused`."""
        if not IO_TIMEOUT_MIN_S <= io_timeout_s <= IO_TIMEOUT_MAX_S:
            raise Refused(
                reason=f"io_timeout is {IO_TIMEOUT_MIN_S} to {IO_TIMEOUT_MAX_S} s, not {io_timeout_s}"
            )
        watchdog = self._host.watchdog
        too_slow = watchdog.too_slow_for(io_timeout_s) if watchdog is not None else ""
        if refused := too_slow or self._keeper(name).change_io_timeout(io_timeout_s):
            raise Refused(reason=f"io_timeout of lockspace '{name}' is not changed: {refused}")

    async def leave(self, name: str) -> None:
        supervisor = self._keeper(name)
        backends = self._host.backends_of(name)
        if held := self._leases(backends):
            raise Refused(
                reason=f"{held} leases of lockspace '{name}' are held here: stop or migrate their VMs first"
            )
        if supervisor.state is LockspaceState.LOST:
            raise Refused(reason=f"lockspace '{name}' is lost; it is joined again when its users are gone")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._host.leave(supervisor, partial(eager_tasks.resolve, done, None))
        await asyncio.wait((done,), timeout=LEAVE_CALL_WAIT_S)

    async def collect(self, dry_run: bool) -> list[CollectedLease]:
        found = await self._collector.collect(dry_run=dry_run)
        return [CollectedLease(each.backend, each.name, each.kept_because) for each in found]

    async def break_lease(self, path: str, attest_off: str, operator: str) -> str:
        return await self._breaker.break_lease(path, attest_off=attest_off, operator=operator)

    async def fence_host(self, host: str, operator: str, lockspace: str) -> list[FencedHost]:
        spaces = [self._keeper(lockspace)] if lockspace else self._host.supervisors
        return [
            FencedHost(
                lockspace=each.lockspace,
                host_id=each.view.host_id,
                host_name=each.view.name,
                generation=each.view.generation or 0,
                timestamp=each.view.timestamp.written if each.view.timestamp else 0,
                io_timeout_s=each.view.io_timeout_s,
                unchanged_s=each.view.unchanged_s,
                seconds_left=each.seconds_left,
                mark=each.mark,
                node=each.node,
                on_demand=each.on_demand,
                refused=each.refused,
                leases=[
                    FencedLease(le.backend, le.lease, le.resource, le.freed, le.detail) for le in each.leases
                ],
            )
            for each in await self._fencer.fence(spaces, host, operator)
        ]

    def _keeper(self, name: str) -> LockspaceSupervisor:
        for supervisor in self._host.supervisors:
            if supervisor.name == name:
                return supervisor
        known = ", ".join(k.name for k in self._host.supervisors) or "none"
        raise Refused(reason=f"no backend names a lockspace '{name}'; known: {known}")

    def _info(self, supervisor: LockspaceSupervisor) -> LeaseSpaceInfo:
        renewed_at = supervisor.renewed_at
        member = supervisor.membership()
        joined = not isinstance(member, NotAMember)
        return LeaseSpaceInfo(
            name=supervisor.name,
            path=supervisor.spec.path,
            state=supervisor.state.value,
            reason=supervisor.reason,
            seconds_left=member.seconds_left if isinstance(member, NotAMember) else None,
            host_id=supervisor.host_id or 0,
            host_name=supervisor.host_name,
            generation=supervisor.generation or 0,
            renewed_s_ago=None if renewed_at is None else max(0.0, self._now() - renewed_at),
            fails_in_s=supervisor.fails_in_s if joined else None,
            fenced=supervisor.fences,
            backends=sorted(self._host.backends_of(supervisor.name)),
            leases=self._leases(self._host.backends_of(supervisor.name)),
            hosts=[_host_info(view, supervisor.records) for view in supervisor.hosts()],
            fire_timeout_s=supervisor.timing.fire_timeout_s,
            misfits=supervisor.records.misfits if supervisor.records is not None else "",
            io_timeout_s=supervisor.timing.io_timeout_s,
            next_io_timeout_s=supervisor.incarnation.next_io_timeout_s
            if joined and supervisor.incarnation
            else 0,
        )


def _host_info(view: HostView, records: HostRecords | None) -> HostInfo:
    said = records.of(view) if records is not None else None
    return HostInfo(
        host_id=view.host_id,
        name=view.name,
        state=view.state.name,
        generation=view.generation or 0,
        io_timeout_s=view.io_timeout_s,
        unchanged_s=view.unchanged_s,
        dead_in_s=view.dead_in_s,
        note=view.note,
        node=said.node if said is not None else "",
        version=said.version if said is not None else "",
        fire_timeout_s=said.fire_timeout_s if said is not None else 0,
        identities=said is not None and said.identities,
    )
