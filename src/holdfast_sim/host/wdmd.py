"""wdmd on a simulated machine, as in docs/specs/sanlock-disk.md 5.3: it has the watchdog device, and tests its clients.

Every few seconds it tests each client's expiry. If none is near, it pings the device. If one will have expired by the next
test, it closes the device without the disarm character (which counts as a last ping) and tests again every second. It is a
separate program: it survives the death of holdfastd, and the last expiry of a dead client still counts. It is not stalled
here; a stall would move the bound, as the specification says of the real one.

Both generations are simulated: one has the device open by itself (here from the first connection on, which makes no
difference), the other opens it on request, closes it when its last client has gone, and silently accepts all other
messages meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.system.watchdog import wdmd
from holdfast_sim.host.machine import DAEMON

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast_sim.host.machine import Machine

CLOSED_LOOK_S = 1
"""Seconds between two tests while the device is closed."""
_FIRST_FD = 10


def looks_every_s(fire_timeout_s: int) -> int:
    return next((s for least, s in ((60, 10), (30, 5), (10, 2)) if fire_timeout_s >= least), 1)


@dataclass(eq=False)
class Client:
    """A connection, as wdmd sees it. `expire` 0: it has no expiry."""

    fd: int
    copies: set[str] = field(default_factory=set)
    """Holders of a copy of the descriptor: DAEMON, STORE. wdmd sees a close when the last copy is closed."""
    registered: bool = False
    kept: bool = False
    """Whether it has a reference in wdmd's count."""
    expire: int = 0


class SimulatedWdmd:
    """wdmd from one boot of its machine to the reset. `looked` is called after each access to the device."""

    def __init__(
        self, machine: Machine, fire_timeout_s: int, looked: Callable[[], None], *, opens_when_asked: bool
    ) -> None:
        self._machine = machine
        self._boot = machine.boots
        self._fire_timeout_s = fire_timeout_s
        self._looked = looked
        self._interval_s = looks_every_s(fire_timeout_s)
        self._opens_when_asked = opens_when_asked
        self._opened = 0
        """The number of the present opening of the device; 0 after a close that disarmed it."""
        self._openings = 0
        self._last_keepalive = 0
        self._closed_unclean = False
        self._clients: dict[int, Client] = {}
        self._fds = _FIRST_FD

    def connection(self, fd: int | None) -> WdmdConnection:
        """A new connection, or the one that an earlier program left open."""
        if fd is None:
            self._fds += 1
            return WdmdConnection(self, Client(self._fds, {DAEMON}))
        return WdmdConnection(self, self._clients[fd])

    def copied(self, fd: int, whose: str) -> None:
        if fd in self._clients:
            self._clients[fd].copies.add(whose)

    def close_copy(self, client: Client, whose: str) -> None:
        """Close one copy. After the last one, an entry with an expiry stays and will expire."""
        client.copies.discard(whose)
        if not client.copies and not client.expire:
            self._clients.pop(client.fd, None)
            if not self._clients and self._opens_when_asked and self._opened:
                self._opened, self._closed_unclean = 0, False
                self._machine.watchdog.off()

    def close_copies(self, whose: str, fd: int | None = None) -> None:
        """Close a holder's copies of all connections, or of one."""
        for client in [c for c in self._clients.values() if fd in (None, c.fd)]:
            self.close_copy(client, whose)

    @property
    def running(self) -> bool:
        return self._machine.up and self._machine.boots == self._boot and not self._machine.watchdog.missing

    def connected(self, client: Client) -> None:
        self._clients[client.fd] = client
        if not self._opens_when_asked:
            self._open(self._fire_timeout_s)

    def receive(self, client: Client, raw: bytes) -> bytes:
        """Handle a message; returns the reply, if there is one."""
        command, fire_s, _, expire, _ = wdmd.unpack(raw)
        match command:
            case wdmd.REGISTER:
                client.registered = True
            case wdmd.REFCOUNT_SET:
                client.kept = True
            case wdmd.REFCOUNT_CLEAR:
                client.kept = False
            case wdmd.TEST_LIVE:
                client.expire = expire
            case wdmd.OPEN_WATCHDOG:
                if self._opens_when_asked:
                    self._open(fire_s)
                    return wdmd.pack(command, fire_timeout_s=self._fire_timeout_s)
            case wdmd.STATUS:
                return wdmd.pack(
                    command, fire_timeout_s=self._fire_timeout_s, last_keepalive=self._last_keepalive
                )
            case _:
                raise ValueError(f"a message that nobody sends: {command}")
        return b""

    def _open(self, fire_timeout_s: int) -> None:
        if not self._opened:
            self._openings += 1
            self._opened, self._fire_timeout_s = self._openings, fire_timeout_s
            self._interval_s = looks_every_s(fire_timeout_s)
            self._ping()
            self._test_in(self._interval_s)

    def _ping(self) -> None:
        self._last_keepalive = int(self._machine.boottime())
        self._machine.watchdog.pet(self._fire_timeout_s)
        self._looked()

    def _test_in(self, seconds: int) -> None:
        opened = self._opened
        self._machine.world.after(seconds, lambda: self._test() if opened == self._opened else None)

    def _test(self) -> None:
        if not self._machine.up or self._machine.boots != self._boot:
            return
        now = int(self._machine.boottime())
        failing = any(c.expire and now >= c.expire - self._interval_s for c in self._clients.values())
        if not failing or not self._closed_unclean:
            self._ping()  # the close is a ping too
        self._closed_unclean = failing
        self._test_in(CLOSED_LOOK_S if failing else self._interval_s)


class WdmdConnection:
    """The `Connection` port of system.watchdog.wdmd. Messages arrive without delay; before, the sender may lose its CPU."""

    def __init__(self, server: SimulatedWdmd, client: Client) -> None:
        self._server = server
        self._client = client
        self._answers = b""

    def settimeout(self, seconds: float | None) -> None:
        """Answers are there at once."""

    def setblocking(self, flag: bool) -> None:
        """Answers are there at once."""

    def connect(self, path: str) -> None:
        self._server._machine.port()
        if not self._server.running:
            raise ConnectionRefusedError(111, "Connection refused")
        self._server.connected(self._client)

    def sendall(self, raw: bytes) -> None:
        self.send(raw)

    def send(self, raw: bytes, flags: int = 0) -> int:
        self._server._machine.port()
        for at in range(0, len(raw), wdmd.MESSAGE_BYTES):
            self._answers += self._server.receive(self._client, raw[at : at + wdmd.MESSAGE_BYTES])
        return len(raw)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._answers:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        answer, self._answers = self._answers[:size], self._answers[size:]
        return answer

    def close(self) -> None:
        self._server.close_copy(self._client, DAEMON)

    def fileno(self) -> int:
        return self._client.fd
