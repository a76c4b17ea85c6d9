"""Frees a lease by an operator's order: with a proof, or by the attestation of a named person, and with a record.

The record is written first, so that no break is without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable

from holdfast.backends.lease_backend import NOBODY_HELD, LeaseBackend
from holdfast.errors import LockError, NotOnLease, Refused, ResourceBusy
from holdfast.lease_admin.host_meant import Space, candidates_of, meant
from holdfast.manager import events as ev
from holdfast.manager.lock_manager import LockManager
from holdfast.model import Resource
from holdfast.supervision.host_names import is_called
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)


class LeaseBreaker:
    """Breaks leases. `record` appends one line permanently, or raises OSError; `spaces`: the lockspaces of this host."""

    def __init__(
        self,
        manager: LockManager,
        *,
        clock: Clock,
        record: Callable[[str], None],
        spaces: Callable[[], Iterable[Space]],
    ) -> None:
        self._manager = manager
        self._spaces = spaces
        self._clock = clock
        self._record = record

    async def break_lease(self, path: str, *, attest_off: str, operator: str) -> str:
        """Break the lease of a disk; returns the proof. Raises a `LockError` with the reason if there is none."""
        if attest_off and not operator:
            raise Refused(reason="who attests that a host is off has to give a name (--operator)")
        resource = Resource("", path)
        route = self._manager.routing.route(resource)
        if (guard := route.guard) is not None:
            if (of_volume := await guard.names.identity(resource)) is None:
                raise Refused(
                    reason=f"what disk '{path}' is can't be read on this host: make it active first"
                )
            return await self._break(of_volume, guard, f"{path} ({of_volume.name})", attest_off, operator)
        backend = route.backend
        if not isinstance(backend, LeaseBackend):
            raise Refused(
                reason=f"disk '{path}' has no lease: backend '{backend.name}' holds it by other means"
            )
        identity = await backend.names.identity(resource) if route.by_identity else None
        if identity is None:
            return await self._break(resource, backend, path, attest_off, operator)
        proofs: list[str] = []
        not_on_it: NotOnLease | None = None
        for each, called in ((resource, path), (identity, f"{path} ({identity.name})")):
            try:
                proofs.append(await self._break(each, backend, called, attest_off, operator))
            except NotOnLease as e:  # the host may have called the disk by another path
                not_on_it = not_on_it or e
        if not_on_it is not None and not proofs:
            raise not_on_it
        proven = dict.fromkeys(proof for proof in proofs if proof != NOBODY_HELD)
        return "; ".join(proven) or NOBODY_HELD

    async def _break(
        self, resource: Resource, backend: LeaseBackend, path: str, attest_off: str, operator: str
    ) -> str:
        """Break one lease of a disk, by its path or its identity; `path` is for the record."""
        manager = self._manager
        lease, _ = await backend.names.of(resource)
        key = backend.names.key(lease)
        lock = manager.table.of_lock_file(key)
        if lock is not None:
            raise ResourceBusy(resource, manager.descriptions.holders(lock), note=": stop or migrate that VM")
        if manager.key_locks.is_locked(key):
            raise Refused(reason=f"disk '{path}' is being taken on this host")
        self.write("ordered", path, attest_off, operator, "")
        try:
            off = self._host_meant(attest_off, backend)
            proof = await manager.key_locks.holding((key,), backend.maintenance.break_lease(resource, off))
        except LockError as e:
            self.write("refused", path, attest_off, operator, str(e))
            raise
        self.write("broken", path, attest_off, operator, proof)
        self.broken(resource, operator, proof)
        return proof

    def _host_meant(self, attest_off: str, backend: LeaseBackend) -> str:
        """The name, if it means one host of the lockspace, or its host id if its record has another name; raises `Refused`.

        Two hosts of a name are known here although one alone holds the lease: the other one may be the one that is off.
        """
        known = [
            each
            for space in self._spaces()
            if space.name == backend.presence.name
            for each in candidates_of(space)
        ]
        found = [each for each in meant(attest_off, known) if not each.has_left] if attest_off else []
        views = [each.view for each in found]
        if not views or is_called(attest_off, views[0].host_id, views[0].name):
            return attest_off
        return str(views[0].host_id)

    def broken(self, resource: Resource, operator: str, proof: str) -> None:
        """Log and announce a broken lease."""
        by, about = operator or "proof alone", ev.logged(ev.LEASE_BROKEN, None, resource)
        log.critical("lease of %s was broken by %s: %s", resource, by, proof, extra=about)
        self._manager.events.emit(
            ev.LEASE_BROKEN, resource=resource, detail=f"{operator}: {proof}" if operator else proof
        )

    def write(self, what: str, path: str, attest_off: str, operator: str, detail: str) -> None:
        """One line of the record; an order that can't be recorded is refused."""
        line = {
            "time": round(self._clock.wall(), 3),
            "what": what,
            "disk": path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
            "attest_off": attest_off,
            "operator": operator,
            "detail": detail,
        }
        try:
            self._record(json.dumps(line))
        except OSError as e:
            if what == "ordered":
                raise Refused(reason=f"it can't be recorded, so it is not done: {e.strerror}") from None
            log.error("what became of a break can't be recorded: %s: %s", e.strerror, line)
