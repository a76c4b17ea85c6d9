"""Reads what other hosts ask of leases that clients hold here, when their bit for this host is seen, or a client says so.

Only an exclusive lease has a version, by which a request that stands is distinguished from an old one (`paxos_request`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from holdfast.backends.paxos.held import PaxosHeld
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.held_resources import HeldResource
from holdfast.manager.client_leases import ClientLeases
from holdfast.model import SANLOCK_PREFIX, Mode
from holdfast.protocol.paxos_request import Force
from holdfast.system import eager_tasks

log = logging.getLogger(__name__)


class HolderAsked:
    """`held` returns all leases of clients; `asked` stops a client for a request."""

    def __init__(
        self,
        leases: ClientLeases,
        *,
        held: Callable[[], Iterable[HeldResource]],
        asked: Callable[[Client, Force], None],
    ) -> None:
        self._leases = leases
        self._held = held
        self._asked = asked
        self._reading: set[str] = set()

    def examine(self, lockspace: str, name: str = "") -> None:
        """Read the request records of one lease, or of all in a lockspace; answers at once."""
        if lockspace not in self._reading:
            self._reading.add(lockspace)
            eager_tasks.start(self._examine(lockspace, name), lambda _: self._reading.discard(lockspace))

    async def _examine(self, lockspace: str, name: str) -> None:
        for each in list(self._held()):
            if each.key.lockspace != SANLOCK_PREFIX + lockspace or each.mode is not Mode.EXCLUSIVE:
                continue
            lock = self._leases.held(each.key)
            lease: object = lock.held if lock is not None else None
            if name not in ("", each.key.name) or not isinstance(lease, PaxosHeld):
                continue
            force = await lease.asked()
            if isinstance(force, Force):
                log.warning("another host asks for %s of %s: %s", each.key, each.client, force.name)
                self._asked(each.client, force)
