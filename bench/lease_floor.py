"""How fast a lease can be at all in Python, beside Debian's sanlock.

python -m bench.lease_floor

A server that only does what cannot be left out: it reads a request, makes the disk requests of holdfastd (of a lease that
this host had last: read, write, read, write; then write, read, write) with records of their size and checksum on a worker,
and answers. No lock table, no journal, no check of anything: nothing that is worth a lock. What it reaches is a bound for
every daemon in Python that keeps storage away from its event loop.
"""

from __future__ import annotations

import collections
import gc
import mmap
import os
import queue
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from bench.lease_peers import Client, LeaseDirectory, LeasePeer, LeasingHoldfastd, lease_name
from bench.leases import CLIENTS, both, run
from bench.peers import wait_for_socket
from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire

HOSTS = 64
ROUNDS = 12
PAIRS = {"sanlock": 60}
PAIRS_DEFAULT = 150
WORKERS = 4
SECTOR = 512
SPAN = (2 + HOSTS) * SECTOR
BEYOND = 100 * SECTOR
"""A sector that no host of the lease has: the leader stays as it is."""
_RECORD = struct.Struct("<48sQQQQQQQQ")


class _Lease:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)
        pages = memoryview(mmap.mmap(-1, SPAN + 2 * mmap.PAGESIZE))
        self._span, self._sector = pages[:SPAN], pages[SPAN : SPAN + SECTOR]
        self._count = 0

    def _write(self, offset: int) -> None:
        self._count += 1
        record = _RECORD.pack(b"lease", *range(7), self._count)
        self._sector[: _RECORD.size] = record
        self._sector[200:204] = sanlock_crc32c(record).to_bytes(4, "little")
        os.pwritev(self._fd, [self._sector], offset)

    def acquire(self) -> None:
        os.preadv(self._fd, [self._span], 0)
        self._write(BEYOND)
        os.preadv(self._fd, [self._span], 0)
        self._write(BEYOND)

    def release(self) -> None:
        self._write(BEYOND)
        os.preadv(self._fd, [self._sector], 0)
        self._write(BEYOND)


def serve(path: str, leases: str) -> None:
    gc.disable()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(wake, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    held: dict[int, _Lease] = {}
    asked: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    answered: collections.deque[tuple[int, bytes]] = collections.deque()

    def work() -> None:
        while True:
            fd, request = asked.get()
            message = rpc.whole_message(request)
            assert message is not None
            call = wire.decode(message.header.procedure, message.payload)
            if isinstance(call, wire.ResourceCall):
                lease = held.get(fd) or held.setdefault(fd, _Lease(f"{leases}/{lease_name(call.name)}"))
                lease.acquire() if message.header.procedure == wire.PROC_ACQUIRE_RESOURCE else lease.release()
            answered.append((fd, rpc.ok_reply(message.header)))
            os.eventfd_write(wake, 1)

    for _ in range(WORKERS):
        threading.Thread(target=work, daemon=True).start()
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                epoll.register(client.fileno(), select.EPOLLIN)
            elif fd == wake:
                os.eventfd_read(wake)
                while answered:
                    to, reply = answered.popleft()
                    clients[to].send(reply)
            elif request := clients[fd].recv(960):
                asked.put((fd, request))
            else:
                epoll.unregister(fd)
                clients.pop(fd).close()


class Floor(LeasingHoldfastd):
    """The server in a process of its own; its clients are those of holdfastd."""

    name = "floor"

    def __init__(self, directory: LeaseDirectory) -> None:
        self.directory = directory
        self.socket = str(directory.place / "floor")
        command = [sys.executable, "-m", "bench.lease_floor", self.socket, str(directory.leases)]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        wait_for_socket(self.socket, self.process)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def main() -> int:
    if len(sys.argv) == 3:
        serve(sys.argv[1], sys.argv[2])
    with both(HOSTS) as peers, ExitStack() as stack:
        floor = Floor(peers[0].directory)
        stack.callback(floor.stop)
        clients: dict[str, list[Client]] = {}
        everybody: tuple[LeasePeer, ...] = (*peers, floor)
        for peer in everybody:  # holdfastd first: it makes the leases
            clients[peer.name] = [Client(peer, peer.directory.disk(n)) for n in range(max(CLIENTS))]
            for client in clients[peer.name]:
                stack.callback(client.end)
            run(clients[peer.name], 2)
        print(f"pairs per second on leases for {HOSTS} hosts; medians of {ROUNDS} rounds")
        for count in CLIENTS:
            rates: dict[str, list[float]] = {name: [] for name in clients}
            for _ in range(ROUNDS):
                for name, some in clients.items():
                    rates[name].append(run(some[:count], PAIRS.get(name, PAIRS_DEFAULT))[0])
            for name, found in rates.items():
                ratio = statistics.median(a / b for a, b in zip(found, rates["sanlock"], strict=True))
                print(f"{count} clients  {name:>10} {statistics.median(found):>8.0f}/s {ratio:>6.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
