"""Commands that ask about lockspaces and the daemon, answered from memory (sanlock-socket.md 2.6, 2.9)."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.frontends.sanlock.engine_ports import Daemon, LockspaceFacts, LockspaceView
from holdfast.frontends.sanlock.lockspace_commands import LockspaceCommands
from holdfast.frontends.sanlock.lockspace_records import (
    daemon_record,
    host_of,
    host_record,
    listed,
    lockspace_records,
    never_seen,
    renewal_record,
)
from holdfast.frontends.sanlock.service import DaemonState
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import GetHostsFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import StateRecord
from holdfast.wire.sanlock.structures import Lockspace

LOG_BYTES_MAX = 1 << 20
"""Of a LOG_DUMP: sanlock's ring has so many."""


class LockspaceQuestions:
    """`resources` gives STATUS's records of leases, as a version of sanlock has them."""

    def __init__(
        self,
        commands: LockspaceCommands,
        facts: LockspaceFacts,
        daemon: Daemon,
        *,
        clock: Clock,
        resources: Callable[[int], tuple[StateRecord, ...]],
    ) -> None:
        self._commands = commands
        self._facts = facts
        self._daemon = daemon
        self._clock = clock
        self._resources = resources

    def status(self) -> DaemonState:
        facts, views = self._daemon.facts(), self._commands.views()
        uses = {view.name: self._facts.uses(view.name) for view in views}
        return DaemonState(
            daemon=daemon_record(facts, int(self._clock.now())),
            lockspaces=lockspace_records(views, uses, facts.version),
            resources=self._resources(facts.version),
        )

    def log_dump(self) -> replies.Log:
        return replies.Log(self._daemon.log_text()[-LOG_BYTES_MAX:])

    def lockspaces(self) -> replies.Lockspaces:
        return replies.Lockspaces(Result.OK, listed(self._commands.views()))

    def hosts(self, request: r.GetHosts) -> replies.Hosts:
        view = self._commands.joined(request.lockspace)
        if view is None:
            return replies.Hosts(Result.ENOENT)
        seen = {int(each.host_id): each for each in self._facts.hosts(view.name)}
        if not seen:
            return replies.Hosts(Result.EAGAIN)
        wanted = view.host_id if request.flags & GetHostsFlag.LOCAL else request.lockspace.host_id
        if wanted in seen:
            return replies.Hosts(Result.OK, (host_of(seen[wanted]),))
        if wanted:
            return replies.Hosts(Result.OK, (never_seen(wanted),) if _has(view, wanted) else ())
        hosts = (host_of(each) for _, each in sorted(seen.items()))
        return replies.Hosts(Result.OK, tuple(host for host in hosts if host.timestamp))

    def host_status(self, request: r.HostStatus) -> replies.Records:
        view = self._commands.joined(request.lockspace)
        if view is None:
            return replies.Records(Result.ENOSPC)
        version = self._daemon.facts().version
        hosts = self._facts.hosts(view.name)
        return replies.Records(Result.OK, tuple(host_record(each, view.host_id, version) for each in hosts))

    def renewal(self, request: r.Renewal) -> replies.Records:
        view = self._commands.joined(request.lockspace)
        if view is None:
            return replies.Records(Result.ENOSPC)
        records = tuple(map(renewal_record, self._facts.renewals(view.name)))
        return replies.Records(Result.OK, records, view.io_timeout_s)

    def event_lockspace(self, lockspace: Lockspace) -> replies.Plain:
        joined = self._commands.joined(lockspace) is not None
        return replies.Plain(Result.OK if joined else Result.ENOENT)


def _has(view: LockspaceView, host_id: int) -> bool:
    return view.geometry is None or host_id <= view.geometry.hosts_max
