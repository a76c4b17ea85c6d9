"""What sanlock's clients may know of this host's lockspaces and set in them: `LockspaceFacts` over their supervisors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from holdfast.daemon.client_lockspaces import ClientLockspaces
from holdfast.frontends.sanlock.engine_ports import LockspaceView, Uses
from holdfast.ondisk.delta import Event
from holdfast.protocol.host_status import HostView
from holdfast.protocol.types import HostId
from holdfast.supervision.lockspace_supervisor import LockspaceState, LockspaceSupervisor
from holdfast.supervision.named_lockspace import Standing
from holdfast.supervision.renewal import RenewalLoop, RenewalTimes

log = logging.getLogger(__name__)

_USED, _USED_BY_ORPHANS = 1, 2


class ClientFacts:
    """`examine` reads the request records of one lease of a lockspace, or of all."""

    def __init__(self, lockspaces: ClientLockspaces, *, examine: Callable[[str, str], None]) -> None:
        self._lockspaces = lockspaces
        self._examine = examine

    def views(self) -> Sequence[LockspaceView]:
        return [_view(supervisor, standing) for supervisor, standing in self._lockspaces.present]

    def _supervisor(self, lockspace: str) -> LockspaceSupervisor | None:
        for supervisor, _ in self._lockspaces.present:
            if supervisor.name == lockspace:
                return supervisor
        return None

    def _renewal(self, lockspace: str) -> RenewalLoop | None:
        supervisor = self._supervisor(lockspace)
        return supervisor.renewal if supervisor is not None else None

    def hosts(self, lockspace: str) -> Sequence[HostView]:
        supervisor = self._supervisor(lockspace)
        return supervisor.hosts() if supervisor is not None else ()

    def renewals(self, lockspace: str) -> Sequence[RenewalTimes]:
        renewal = self._renewal(lockspace)
        return list(renewal.history) if renewal is not None else []

    def uses(self, lockspace: str) -> Uses:
        number = self._lockspaces.uses(lockspace)
        return Uses(bool(number & _USED), bool(number & _USED_BY_ORPHANS))

    def set_uses(self, lockspace: str, uses: Uses) -> None:
        number = _USED * uses.used | _USED_BY_ORPHANS * uses.used_by_orphans
        self._lockspaces.set_uses(lockspace, number)

    def set_io_timeout(self, lockspace: str, io_timeout_s: int) -> bool:
        """Whether it is so, or is under way: the next renewals show it."""
        supervisor = self._supervisor(lockspace)
        refused = (
            supervisor.change_io_timeout(io_timeout_s)
            if supervisor is not None
            else "there is none of that name"
        )
        if refused:
            log.warning(
                "refused to change io_timeout of lockspace %s to %d s for a client: %s",
                lockspace,
                io_timeout_s,
                refused,
            )
        return not refused

    def post_event(self, lockspace: str, event: Event) -> None:
        if (renewal := self._renewal(lockspace)) is not None:
            renewal.post_event(event)

    def notify(self, lockspace: str, host_id: HostId) -> None:
        if (renewal := self._renewal(lockspace)) is not None:
            renewal.notify(host_id)

    def notify_no_more(self, lockspace: str, host_id: HostId) -> None:
        if (renewal := self._renewal(lockspace)) is not None:
            renewal.notify_no_more(host_id)

    def examine(self, lockspace: str, resource: str) -> None:
        self._examine(lockspace, resource)


def _view(supervisor: LockspaceSupervisor, standing: Standing) -> LockspaceView:
    member, renewal, term = supervisor.member, supervisor.renewal, supervisor.incarnation
    area = member.lockspace if member is not None else None
    renewed_at = int(supervisor.renewed_at or 0)
    return LockspaceView(
        name=supervisor.name,
        path=supervisor.spec.path,
        offset_bytes=supervisor.spec.offset_bytes,
        host_id=supervisor.host_id or 0,
        standing=standing,
        io_timeout_s=supervisor.timing.io_timeout_s,
        generation=supervisor.generation or 0,
        geometry=area.geometry if area is not None else None,
        version=area.version if area is not None else 0,
        failing=supervisor.state is LockspaceState.LOST,
        renewal_fails=bool(renewal is not None and renewal.trouble),
        acquired_at_s=int(term.joined_at) if term is not None else 0,
        renewal_began_at_s=renewed_at,
        renewed_at_s=renewed_at,
    )
