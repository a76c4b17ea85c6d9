"""Frees all leases of a host that was switched off, by one order.

The caller (an operator, or a fencing agent after STONITH) attests that the host is off. Each lease is then broken as by an
order for it alone (`breaking`), with the same proof: the attestation counts only if this daemon has seen the host's record
unchanged for 3 of its io_timeouts. A host that renews in one lockspace is not off in another, so nothing is done anywhere
before it is silent everywhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from holdfast.backends.lease_backend import LeaseBackend, OffWord, TakesOverByWord
from holdfast.errors import HostNotKnown, LeaseUnusable, LockError, LockspaceAbsent, Refused
from holdfast.lease_admin.breaking import LeaseBreaker
from holdfast.lease_admin.host_meant import Candidate, Space, candidates_of, meant
from holdfast.manager import events as ev
from holdfast.manager.lock_manager import LockManager
from holdfast.model import Resource
from holdfast.protocol.dead_mark import Marked, NotMarked, can_be_marked
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.membership import Membership
from holdfast.protocol.takeover import silence_s
from holdfast.protocol.types import Generation, IoFailed
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.system.block_io.lease_files import UNFINISHED_PREFIX
from holdfast.system.block_io.offload import TimedOut

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseFreed:
    """One lease of the host; `detail` is the proof, or why it stays."""

    backend: str
    lease: str
    resource: str
    freed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class HostFenced:
    """One incarnation of the host in one lockspace. `seconds_left`: until the attestation may be accepted."""

    lockspace: str
    view: HostView
    seconds_left: float | None
    node: str = ""
    """Its whole name, as far as it is known."""
    leases: tuple[LeaseFreed, ...] = ()
    mark: str = ""
    """What came of marking its record; empty in a lockspace that has no marks."""
    on_demand: bool = False
    """Whether leases of it are taken over when sanlock's clients ask for them: only they know where those are."""

    @property
    def refused(self) -> str:
        if self.seconds_left is None:
            return ""
        return (
            f"its record changed {self.view.unchanged_s:.0f} s ago: it has to be silent for {self.seconds_left:.0f} s more; "
            "a host that renews is not off"
        )


class HostFencer:
    """Frees the leases of fenced hosts."""

    def __init__(self, manager: LockManager, breaker: LeaseBreaker) -> None:
        self._manager = manager
        self._breaker = breaker

    async def fence(self, spaces: Iterable[Space], host: str, operator: str) -> list[HostFenced]:
        """The results for each incarnation of that host; raises a `LockError` if the order can't be accepted."""
        if not host:
            raise Refused(reason="name the host that is off: its name or host id")
        if not operator:
            raise Refused(reason="who attests that a host is off has to give a name (--operator)")
        found = self._terms(list(spaces), host)
        if not found:
            raise HostNotKnown(host=host)
        if any(term.seconds_left is not None for _, term in found):
            return [term for _, term in found]
        self._breaker.write("host ordered", "", host, operator, "")
        fenced = []
        for space, term in found:
            mark = await self._marked(space, term, operator)
            leases = await self._leases(space, term, operator)
            on_demand = self._believed(space, term.view, operator)
            freed = sum(each.freed for each in leases)
            detail = (
                f"{operator}: {term.node} (host_id {term.view.host_id}) in {space.name}: {freed} leases freed"
            )
            detail += f", {len(leases) - freed} not" if freed < len(leases) else ""
            detail += "; those of sanlock's clients when they are asked for" * on_demand
            log.critical("host fenced by %s", detail, extra=ev.logged(ev.HOST_FENCED, host=term.view.name))
            self._manager.events.emit(ev.HOST_FENCED, detail=detail)
            fenced.append(HostFenced(space.name, term.view, None, term.node, tuple(leases), mark, on_demand))
        return fenced

    def _terms(self, spaces: Sequence[Space], host: str) -> list[tuple[Space, HostFenced]]:
        """The incarnations of the named host, in each of these lockspaces where it has one."""
        members: dict[str, Membership] = {}
        candidates: list[Candidate] = []
        for space in spaces:
            member = space.membership()
            if isinstance(member, NotAMember):
                raise LockspaceAbsent(name=f"host {host}", lockspace=space.name, reason=str(member))
            members[space.name] = member
            candidates += candidates_of(space)
        found = []
        by_name = {space.name: space for space in spaces}
        for each in meant(host, candidates):
            member, view = members[each.lockspace], each.view
            if view.host_id == member.host_id:
                raise Refused(
                    reason=f"host {view.name} (host_id {view.host_id}) of lockspace {each.lockspace} is this very host"
                )
            if view.generation is None:
                raise Refused(
                    reason=f"the record of host_id {view.host_id} in lockspace {each.lockspace} can't be read: {view.fault}"
                )
            fenced = HostFenced(each.lockspace, view, _seconds_left(member, view), each.node)
            found.append((by_name[each.lockspace], fenced))
        return found

    async def _marked(self, space: Space, term: HostFenced, operator: str) -> str:
        """Mark the incarnation as dead where the format has a mark: hosts with sanlock then free its leases too, and its
        leases of other backends are free to all.
        """
        member, view = space.membership(), term.view
        backends = self._backends_in(space)
        if isinstance(member, NotAMember) or not backends or not can_be_marked(member.lockspace):
            return ""
        if view.generation is None or view.timestamp is None or view.state is HostState.FREE:
            return ""
        outcome = await backends[0].maintenance.mark_dead(
            member, view.host_id, view.generation, view.timestamp
        )
        match outcome:
            case Marked():
                came = "marked as dead (DEAD_EXT) for all hosts"
            case NotMarked(reason):
                came = f"not marked as dead: {reason}"
            case IoFailed(number):
                came = f"not marked as dead: {os.strerror(number)}"
            case TimedOut():
                came = "not marked as dead yet: storage does not answer"
            case _:
                assert_never(outcome)
        self._breaker.write("marking", "", str(view.host_id), operator, came)
        return came

    def _backends_in(self, space: Space) -> list[LeaseBackend]:
        """Those whose leases are in that lockspace now; a client may add or remove lockspaces meanwhile."""
        backends = self._manager.backends.values()
        return [b for b in backends if isinstance(b, LeaseBackend) and b.presence.name == space.name]

    def _believed(self, space: Space, view: HostView, operator: str) -> bool:
        """Pass the word on to the backends that don't know all leases of that lockspace; whether there is one."""
        if view.generation is None or view.timestamp is None or view.state is HostState.FREE:
            return False
        backends = [each for each in self._backends_in(space) if isinstance(each, TakesOverByWord)]
        for backend in backends:
            broken = partial(self._broken_for_client, backend.name, view, operator)
            backend.believe(OffWord((view.host_id, Generation(view.generation)), view.timestamp, broken))
        return bool(backends)

    def _broken_for_client(self, backend: str, view: HostView, operator: str, lease: str, proof: str) -> None:
        self._broken(Resource(backend, lease), view, operator, proof)

    def _broken(self, resource: Resource, view: HostView, operator: str, proof: str) -> None:
        self._breaker.write("broken", str(resource), str(view.host_id), operator, proof)
        self._breaker.broken(resource, operator, proof)

    async def _leases(self, space: Space, term: HostFenced, operator: str) -> list[LeaseFreed]:
        found: list[LeaseFreed] = []
        for backend in self._backends_in(space):
            # One after the other, as the record is read for each: a host that comes back meanwhile keeps the rest.
            for name in await backend.maintenance.all_names():
                if not name.startswith(UNFINISHED_PREFIX):
                    found += await self._free(backend, name, term.view, operator)
        return found

    async def _free(
        self, backend: LeaseBackend, name: str, view: HostView, operator: str
    ) -> list[LeaseFreed]:
        """The result for one lease; empty if it is not that host's."""
        manager, key = self._manager, backend.names.key(name)
        resource = Resource("", backend.names.path_of(name))
        term = (view.host_id, Generation(view.generation or 0))
        try:
            terms = await backend.maintenance.claims_of_term(name, term, older_too=view.no_timeout)
            if not terms:
                return []
            resource = Resource("", backend.names.path_of(name))  # known if its holder's note names the disk
            if manager.table.of_lock_file(key) is not None:
                raise Refused(reason="it is shared with a VM of this host, which goes on holding it")
            if manager.key_locks.is_locked(key):
                raise Refused(reason="it is being taken on this host; run this again")
            proof = await manager.key_locks.holding((key,), backend.maintenance.break_of(name, terms))
        except LockError as e:
            if isinstance(e, LeaseUnusable) and not backend.names.makes(name):
                return []  # not a lease, but something else that is kept there
            self._breaker.write("refused", resource.name, str(view.host_id), operator, str(e))
            return [LeaseFreed(backend.name, name, resource.name, False, str(e))]
        if not proof:
            return []  # it was released just now
        self._broken(resource, view, operator, proof)
        return [LeaseFreed(backend.name, name, resource.name, True, proof)]


def _seconds_left(member: Membership, view: HostView) -> float | None:
    """Seconds until an attestation about this host may be accepted; None if it may be now or the host is proven gone."""
    if view.state in (HostState.FREE, HostState.DEAD):
        return None
    bound_s = silence_s(member.timing.of_host(view.io_timeout_s, view.name, view.disputed), view)
    if view.unchanged_s > bound_s and not view.changed_at_latest_look:
        return None
    return max(0.0, bound_s - view.unchanged_s) + member.timing.renewal_s / 2  # a read has to show it
