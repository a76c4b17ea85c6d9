"""Connections of sanlock's clients from one daemon to the next: by a re-exec, or by systemd's descriptor store (ADR 0203).

Each has the name ``conn-CLIENT_ID-0`` in the store. A release that knows no such connections takes that for one of
virtlockd's clients whose owner has ended, as no owner has the number 0: it closes it, and its client notices.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from holdfast.frontends.listener import Peer, peer_of
from holdfast.frontends.sanlock.connection import Leftovers
from holdfast.frontends.sanlock.connection_slots import (
    BROKEN,
    GOOD,
    REGISTERED,
    SLOT_BYTES,
    SLOTS_BYTES,
    Entry,
    Slots,
)
from holdfast.system.host.descriptors import DescriptorStore, Inherited, SavedClient
from holdfast.system.host.kept_memory import KeptMemory, inode_of

log = logging.getLogger(__name__)

MEMORY_NAME = "sanlock-slots"


class FoundClient(NamedTuple):
    """A connection that an earlier daemon had. `left`: what a re-exec has passed on with it."""

    client_id: int
    sock: socket.socket
    peer: Peer
    entry: Entry
    left: Leftovers | None


class KeptClients:
    """Takes them out of `inherited`. Those that nobody can go on with are closed; so are all without `served`."""

    def __init__(self, inherited: Inherited, store: DescriptorStore, *, served: bool) -> None:
        self._store = store
        reexec = inherited.reexec
        saved = list(reexec.clients) if reexec is not None else []
        memories = [fd for name, fd in inherited.named if name == MEMORY_NAME]
        for name, fd in inherited.named:
            client_id = _client_id(name)
            if client_id is not None:
                saved.append(SavedClient(client_id, fd))
        inherited.named = [
            (name, fd) for name, fd in inherited.named if name != MEMORY_NAME and _client_id(name) is None
        ]
        if reexec is not None and reexec.client_slots >= 0:
            memories.append(reexec.client_slots)
        for fd in memories[:-1]:
            os.close(fd)
        size_bytes = SLOTS_BYTES if served else SLOT_BYTES
        self._memory = KeptMemory(size_bytes, memories[-1] if memories else -1)
        if memories and not self._memory.was_there:
            store.store(MEMORY_NAME, None)
        if served and not self._memory.was_there:
            store.store(MEMORY_NAME, self._memory.fd)
        self.slots = Slots(self._memory.raw)
        self.found: list[FoundClient] = []
        for each in saved:
            self._find(each, by_reexec=reexec is not None, served=served)
        self.slots.free_all_but({each.client_id for each in self.found})

    def _find(self, saved: SavedClient, *, by_reexec: bool, served: bool) -> None:
        sock = socket.socket(fileno=saved.fd)
        slot = self.slots.of(saved.client_id) if served else None
        entry = slot.read() if slot is not None else Entry(BROKEN)
        is_good = entry.state == GOOD or (by_reexec and bool(saved.unsent))
        is_its_own = entry.inode == inode_of(saved.fd)
        if served and self._memory.was_there and is_good and is_its_own:
            left = Leftovers(saved.client_id, saved.fd, saved.unsent, saved.closes) if by_reexec else None
            self.found.append(FoundClient(saved.client_id, sock, peer_of(sock), entry, left))
            return
        log.warning(
            "the connection of a sanlock client (pid %d) ends: this daemon can't take it over",
            peer_of(sock).pid,
        )
        sock.close()
        self.keep(saved.client_id, None)

    def keep(self, client_id: int, fd: int | None) -> None:
        """Put a connection into the descriptor store, or remove it."""
        # Also when its client has closed it: the next daemon has to notice.
        self._store.store(f"conn-{client_id}-0", fd, until_removed=True)

    @property
    def owners(self) -> Counter[tuple[int, int]]:
        """How many registered connections each owner has, by its number and pid."""
        registered = (each for each in self.found if each.entry.kind & REGISTERED)
        return Counter((each.entry.owner, each.peer.pid) for each in registered)

    @property
    def pending(self) -> set[int]:
        """The numbers of requests that were begun and not answered."""
        return {each.entry.request for each in self.found} - {0}

    def passed_on(self, connections: Iterable[Leftovers]) -> tuple[list[SavedClient], int]:
        """For a re-exec: the connections, and the descriptor of their memory."""
        return [SavedClient(*each) for each in connections], self._memory.fd


def _client_id(name: str) -> int | None:
    kind, _, rest = name.partition("-")
    number, _, owner = rest.partition("-")
    return int(number) if kind == "conn" and owner == "0" and number.isdigit() else None
