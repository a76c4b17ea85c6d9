"""Which connections of an earlier daemon are taken over, and which are closed."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from holdfast.daemon.kept_clients import MEMORY_NAME, KeptClients
from holdfast.frontends.sanlock.connection_slots import (
    BROKEN,
    GOOD,
    REGISTERED,
    SLOTS_BYTES,
    Entry,
    Slots,
)
from holdfast.system.host.descriptors import Inherited, ReexecState, SavedClient
from holdfast.system.host.kept_memory import KeptMemory, inode_of


@dataclass
class Store:
    stores = True
    removed: list[str] = field(default_factory=list)

    def store(self, name: str, fd: int | None, *, until_removed: bool = False) -> None:
        if fd is None:
            self.removed.append(name)

    def mark(self, name: str) -> None:
        raise AssertionError(name)


class Earlier:
    """A daemon that has ended: its memory and connections, each with the other end."""

    def __init__(self) -> None:
        self.memory = KeptMemory(SLOTS_BYTES)
        self.slots = Slots(self.memory.raw)
        self.named = [(MEMORY_NAME, os.dup(self.memory.fd)), ("conn-4-7", -1)]
        self.peers: list[socket.socket] = []

    def connection(self, client_id: int, state: int, *, inode: int = 0, request: int = 0) -> int:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.peers.append(theirs)
        slot = self.slots.of(client_id)
        assert slot is not None
        slot.write(
            Entry(
                state,
                REGISTERED,
                request=request,
                inode=inode or inode_of(ours.fileno()),
                owner=3,
                name=b"vm",
            )
        )
        fd = ours.detach()
        self.named.append((f"conn-{client_id}-0", fd))
        return fd

    def close(self, kept: KeptClients) -> None:
        for each in (*self.peers, *(found.sock for found in kept.found)):
            each.close()

    def is_closed(self, number: int) -> bool:
        try:
            return not self.peers[number].recv(1)
        except BlockingIOError:
            return False


def test_connections_in_doubt_are_closed() -> None:
    earlier, store = Earlier(), Store()
    earlier.connection(2, GOOD, request=9)
    earlier.connection(3, BROKEN)
    earlier.connection(4, GOOD, inode=1)
    inherited = Inherited(named=list(earlier.named))
    kept = KeptClients(inherited, store, served=True)
    assert [(each.client_id, each.entry.name) for each in kept.found] == [(2, b"vm")]
    assert [earlier.is_closed(number) for number in range(3)] == [False, True, True]
    assert store.removed == ["conn-3-0", "conn-4-0"]
    assert inherited.named == [("conn-4-7", -1)], "one of virtlockd's"
    assert kept.pending == {9}
    assert kept.owners == {(3, os.getpid()): 1}
    earlier.close(kept)


def test_numbers_of_requests_go_on() -> None:
    earlier = Earlier()
    numbers = [earlier.slots.next_request() for _ in range(3)]
    kept = KeptClients(Inherited(named=list(earlier.named)), Store(), served=True)
    assert kept.slots.next_request() == numbers[-1] + 1


def test_without_their_memory_all_are_closed() -> None:
    earlier = Earlier()
    earlier.connection(2, GOOD)
    kept = KeptClients(Inherited(named=earlier.named[1:]), Store(), served=True)
    assert not kept.found
    assert earlier.is_closed(0)
    earlier.close(kept)


def test_without_a_socket_for_them_all_are_closed() -> None:
    earlier = Earlier()
    earlier.connection(2, GOOD)
    store = Store()
    kept = KeptClients(Inherited(named=list(earlier.named)), store, served=False)
    assert not kept.found
    assert store.removed == [MEMORY_NAME, "conn-2-0"]
    assert earlier.is_closed(0)
    earlier.close(kept)


def test_the_rest_of_an_answer_goes_on_over_a_reexec_alone() -> None:
    earlier = Earlier()
    fd = earlier.connection(2, BROKEN)
    state = ReexecState(
        1,
        {},
        [],
        {},
        [],
        b"",
        [],
        -1,
        clients=[SavedClient(2, fd, b"rest", True)],
        client_slots=earlier.memory.fd,
    )
    kept = KeptClients(Inherited(reexec=state), Store(), served=True)
    assert [each.left and (each.left.unsent, each.left.closes) for each in kept.found] == [(b"rest", True)]
    earlier.close(kept)
