"""Many registered clients with leases each, beside Debian's sanlock: memory, and what a crash of the daemon costs.

    sudo .venv/bin/python bench/sanlock_crowd.py [--clients 1000] [--leases 8]

Each client is a process that has connected by itself. Their leases have room for 2000 hosts, in one sparse file.
holdfastd is killed (SIGKILL) and started; the time runs from the kill until every lease is held again, for the process that
had it. sanlock has no such time: its end has the watchdog reset the host.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.interop.sanlock.direct import blank_file, write_at  # noqa: E402
from tests.interop.sanlock_socket.client import SocketClient  # noqa: E402
from tests.interop.sanlock_socket.scene import NAME, HoldfastDaemon, Host, Scene  # noqa: E402
from tests.support.polling import wait_until  # noqa: E402

from holdfast.ondisk import areas  # noqa: E402
from holdfast.ondisk.geometry import DEFAULT, MIB  # noqa: E402
from holdfast.wire.sanlock import requests as r  # noqa: E402
from holdfast.wire.sanlock import structures as s  # noqa: E402
from holdfast.wire.sanlock.result import Result, described  # noqa: E402

PROGRAMS = ("sanlock", "holdfast")
THREADS = 4
DESCRIPTORS = 16_384

_CROWD = """
import os, signal, socket, sys
path, ours, count = sys.argv[1], socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])
for _ in range(count):
    if os.fork() == 0:
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        socket.send_fds(ours, [os.getpid().to_bytes(4, "little")], [made.fileno()])
        made.close()
        ours.close()
        while True:
            signal.pause()
    ours.recv(1)
signal.pause()
"""


class Crowd:
    """Registered processes; this program alone has their connections."""

    def __init__(self, path: Path, count: int) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _CROWD, str(path), str(theirs.fileno()), str(count)],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.clients: dict[int, SocketClient] = {}
        for _ in range(count):
            raw, (descriptor,), _, _ = socket.recv_fds(ours, 4, 1)
            client = SocketClient(path, socket.socket(fileno=descriptor))
            client.send(r.Register())
            self.clients[int.from_bytes(raw, "little")] = client
            ours.send(b".")
        ours.close()

    def close(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
        for client in self.clients.values():
            client.close()


def formatted(place: Path, count: int) -> list[s.Resource]:
    """Free leases, each with its leader alone on storage: the rest of its area is a hole."""
    path = blank_file(place / "crowd", count * MIB)
    made = []
    for number in range(count):
        leader = areas.fresh_leader(DEFAULT, NAME, f"R{number}")
        write_at(path, number * MIB, areas.lease_area(leader)[: DEFAULT.sector_bytes])
        made.append(s.Resource.of(NAME, f"R{number}", s.Disk(str(path), number * MIB)))
    return made


def acquire_all(crowd: Crowd, leases: list[s.Resource], each: int) -> float:
    """All leases of a client in one call; the seconds that it took for all clients."""
    jobs = list(enumerate(crowd.clients.values()))

    def work(first: int) -> None:
        for number, client in jobs[first::THREADS]:
            wanted = tuple(leases[number * each : (number + 1) * each])
            done = client.result(r.Acquire(0, r.OWN, wanted))
            assert done == Result.OK, described(done)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.monotonic() - begun


def resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def held(daemon: HoldfastDaemon) -> dict[int, int]:
    """By process: how many leases it holds now."""
    found: dict[int, int] = {}
    with daemon.admin() as admin:
        for lock in admin.locks():
            if lock.held:
                found[lock.pid] = found.get(lock.pid, 0) + 1
    return found


def crash(host: Host, crowd: Crowd, each: int) -> tuple[float, float]:
    """Seconds from the kill until it serves, and until every lease is held again for its process."""
    daemon = host.daemon
    assert isinstance(daemon, HoldfastDaemon)
    wanted = dict.fromkeys(crowd.clients, each)
    assert held(daemon) == wanted
    begun = time.monotonic()
    daemon.kill()
    daemon.start()
    serves_s = time.monotonic() - begun
    wait_until(lambda: held(daemon) == wanted, "all leases to be held again")
    all_s = time.monotonic() - begun
    assert "lost" not in daemon.log_text().split("is ready")[-1]
    return serves_s, all_s


def pid_of(host: Host) -> int:
    if isinstance(host.daemon, HoldfastDaemon):
        return host.daemon.pid
    run = host.daemon.socket_path.parent / "sanlock.pid"
    return int(run.read_text())


def measure(program: str, place: Path, clients: int, each: int) -> dict[str, object]:
    scene = Scene(program, place)
    crowd = None
    try:
        host, leases = scene.one, formatted(place, clients * each)
        before_kib = resident_kib(pid_of(host))
        crowd = Crowd(host.daemon.socket_path, clients)
        took_s = acquire_all(crowd, leases, each)
        found: dict[str, object] = {
            "program": program,
            "leases_per_s": round(clients * each / took_s),
            "resident_mib_before": round(before_kib / 1024, 1),
            "resident_mib": round(resident_kib(pid_of(host)) / 1024, 1),
        }
        if program == "holdfast":
            serves_s, all_s = crash(host, crowd, each)
            found |= {"serves_after_kill_s": round(serves_s, 2), "all_held_after_kill_s": round(all_s, 2)}
        return found
    finally:
        if crowd is not None:
            crowd.close()
        scene.close()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--leases", type=int, default=8)
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        for program in PROGRAMS:
            (Path(place) / program).mkdir()
            found = measure(program, Path(place) / program, options.clients, options.leases)
            print(
                json.dumps({"clients": options.clients, "leases_each": options.leases, **found}), flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
