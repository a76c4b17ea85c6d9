"""All clients of one Varlink socket: who may connect, how many at once, and which interface they get."""

import grp
import logging
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

from asyncvarlink import VarlinkInterface, VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from holdfast import __version__
from holdfast.control.api import (
    ERROR_TOO_MANY,
    PRODUCT,
    URL,
    VENDOR,
)
from holdfast.frontends.listener import Listener, Peer
from holdfast.frontends.varlink_connection import VarlinkConnection, refuse_client
from holdfast.frontends.varlink_read import ReadInterface
from holdfast.system.host.peer import peer_groups
from holdfast.system.logs.log_limit import LimitedLog

log = logging.getLogger(__name__)

RESERVED_PLACES = 8
"""Of the control socket, for root and the daemon's own user: some commands at once, while others have all the rest."""
READERS_MAX = 32
"""Clients of the read-only socket at once: each asks for short answers, and its places are none of the control socket's."""

over_quota = LimitedLog(log)


class Places:
    """Counts the control socket's connections by user.

    Root and the daemon's own user may have all of them. Any other user has at most a quarter, and all others together leave
    some free: an operator must be able to break a lease while a user's script holds connections.
    """

    def __init__(self, clients_max: int, privileged: tuple[int, ...]) -> None:
        self._privileged = privileged
        self._user_max = max(1, clients_max // 4)
        self._others_max = clients_max - min(RESERVED_PLACES, clients_max // 2)
        self._taken: Counter[int] = Counter()

    def refusal(self, uid: int) -> str:
        """Why this user gets no further connection; empty if it does."""
        if uid in self._privileged:
            return ""
        if self._taken[uid] >= self._user_max:
            return f"user {uid} has {self._taken[uid]} connections to this socket already; at most {self._user_max}"
        others = sum(n for user, n in self._taken.items() if user not in self._privileged)
        if others >= self._others_max:
            return (
                f"users other than root have {others} connections to this socket; at most {self._others_max}"
            )
        return ""

    def take(self, uid: int) -> None:
        self._taken[uid] += 1

    def give_back(self, uid: int) -> None:
        self._taken[uid] -= 1
        if not self._taken[uid]:
            del self._taken[uid]


class VarlinkFrontend(ABC):
    """The clients of one socket."""

    def __init__(
        self, name: str, *, uid: int, groups: Sequence[str], clients_max: int, idle_timeout_s: float
    ) -> None:
        """`uid`: the daemon's own user. `groups`: whose members may connect besides root; empty names are left out."""
        self._name = name
        self._uid = uid
        self._gids = {grp.getgrnam(group).gr_gid for group in groups if group}
        self._places = Places(clients_max, (0, uid))
        self._idle_timeout_s = idle_timeout_s
        self.connections: dict[VarlinkConnection, None] = {}
        self.listener: Listener | None = None

    @abstractmethod
    def offers(self, peer: Peer, sock: socket.socket) -> VarlinkInterface:
        """The interface for a client."""

    def is_privileged(self, peer: Peer) -> bool:
        return peer.uid in (0, self._uid)

    def admit(self, peer: Peer, sock: socket.SocketType) -> str:
        if self.is_privileged(peer) or peer.gid in self._gids:
            return ""
        if not self._gids.isdisjoint(peer_groups(sock.fileno())):
            return ""
        return "only root and the groups of [control] may use this socket"

    def serve(self, accepted: socket.SocketType, peer: Peer) -> None:
        sock = socket.socket(fileno=accepted.detach())
        sock.setblocking(False)
        if reason := self._places.refusal(peer.uid):
            over_quota.write("%s: refused client pid %d: %s", self._name, peer.pid, reason)
            refuse_client(sock, ERROR_TOO_MANY, {"message": f"{reason}; close some"})
            self._left()
            return
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(VarlinkServiceInterface(VENDOR, PRODUCT, __version__, URL, registry))
        registry.register_interface(self.offers(peer, sock))
        connection = VarlinkConnection(
            registry, sock, peer, idle_timeout_s=self._idle_timeout_s, gone=self._closed
        )
        self.connections[connection] = None
        self._places.take(peer.uid)
        connection.start()

    def _closed(self, connection: VarlinkConnection) -> None:
        del self.connections[connection]
        self._places.give_back(connection.peer.uid)
        self._left()

    def _left(self) -> None:
        if self.listener is not None:
            self.listener.left()

    def close_all(self) -> None:
        for connection in list(self.connections):
            connection.leave()


class ReadFrontend(VarlinkFrontend):
    """The clients of the read-only socket. Root changes nothing here either."""

    def __init__(
        self, interface: ReadInterface, *, uid: int, groups: Sequence[str], idle_timeout_s: float
    ) -> None:
        super().__init__(
            "read", uid=uid, groups=groups, clients_max=READERS_MAX, idle_timeout_s=idle_timeout_s
        )
        self._interface = interface

    def offers(self, peer: Peer, sock: socket.socket) -> ReadInterface:
        return self._interface
