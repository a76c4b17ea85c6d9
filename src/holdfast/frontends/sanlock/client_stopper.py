"""Stops clients whose leases have to end: a signal, or their killpath, as each client has asked (sanlock-socket.md 3.3).

    the lockspace is lost     SIGTERM, or the killpath once; SIGKILL when the grace is over (`LockspaceLoss` has the clock)
    a client removes it       SIGKILL, once a second
    another host asks         the killpath or SIGTERM where it asks gracefully, else SIGKILL; once
    RESTRICT                  the one signal in place of the other

A killpath is run by the daemon's command process, which is no child of the event loop.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence

from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.killpath_command import command_of
from holdfast.manager.owners import Owner
from holdfast.protocol.paxos_request import Force
from holdfast.system import eager_tasks
from holdfast.system.clock import Clock
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import RestrictFlag

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Between two signals to a client that does not end."""
SIGNALS_MAX = 100
"""To one client; after that it counts as stuck, and its leases stay held until it ends."""
KILLPATH_TIMEOUT_S = 60.0
"""After that nobody waits for the end of a killpath any more."""


class ClientStopper:
    """`clients_in` returns the clients with a lease in a lockspace, `clients_of` the registered ones of a process,
    `killpath_of` what one wants run, `owner_of` the owner of a process. `run` runs a command, for so many seconds.
    """

    def __init__(
        self,
        *,
        clients_in: Callable[[str], Iterable[Client]],
        clients_of: Callable[[int], Iterable[Client]],
        killpath_of: Callable[[Client], r.Killpath | None],
        owner_of: Callable[[int], Owner | None],
        run: Callable[[Sequence[str], float], Awaitable[object]],
        clock: Clock,
    ) -> None:
        self._clients_in = clients_in
        self._clients_of = clients_of
        self._killpath_of = killpath_of
        self._owner_of = owner_of
        self._run = run
        self._clock = clock

    def lost(self, owner: Owner, number: signal.Signals) -> bool:
        """A lockspace is lost, and this owner is to get this signal. False if it is no client's process."""
        clients = list(self._clients_of(owner.pid)) if owner.registered else []
        for client in clients:
            killpath = self._killpath_of(client)
            if number is signal.SIGTERM and killpath is not None:
                if not client.kill_count:
                    self._count(client)
                    self._start(client, killpath, client.pid)
            else:
                self._signal(client, number)
        return bool(clients)

    async def stop_all(self, lockspace: str) -> None:
        """A client removes the lockspace: kill every client with a lease there; returns when none has one any more."""
        while clients := list(self._clients_in(lockspace)):
            for client in clients:
                if client.kill_count < SIGNALS_MAX:
                    self._signal(client, signal.SIGKILL)
            await self._clock.sleep(AGAIN_S)

    def asked(self, client: Client, force: Force) -> None:
        """Another host asks for a lease of this client."""
        killpath = self._killpath_of(client)
        if force is Force.GRACEFUL and killpath is not None:
            self._start(client, killpath, None)
        elif force is Force.GRACEFUL:
            self._send(client, signal.SIGTERM)
        else:
            self._send(client, signal.SIGKILL)

    def _start(self, client: Client, killpath: r.Killpath, pid: int | None) -> None:
        command = command_of(killpath, pid)
        log.warning("running the killpath of %s: %s", client, " ".join(command))
        eager_tasks.start(self._ran(client, command))

    async def _ran(self, client: Client, command: Sequence[str]) -> None:
        log.info("killpath of %s: %s", client, await self._run(command, KILLPATH_TIMEOUT_S))

    def _signal(self, client: Client, number: signal.Signals) -> None:
        self._count(client)
        self._send(client, number)

    def _count(self, client: Client) -> None:
        client.kill_count += 1
        client.kill_last_s = int(self._clock.now())

    def _send(self, client: Client, number: signal.Signals) -> None:
        if number is signal.SIGKILL and client.restricted & RestrictFlag.SIGKILL:
            number = signal.SIGTERM
        elif number is signal.SIGTERM and client.restricted & RestrictFlag.SIGTERM:
            number = signal.SIGKILL
        owner = self._owner_of(client.pid)
        if owner is not None:
            owner.signal(number)
            log.critical("%s has to give up its leases: %s", client, number.name)
