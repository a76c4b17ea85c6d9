"""sanlock's socket, asked by the same client: Debian's sanlock and holdfastd in turn, on files of one directory.

    sudo .venv/bin/python bench/sanlock_clients.py [--hosts 2000 64] [--clients 1 4 16] [--pairs 30] [--rounds 8]

A pair is ACQUIRE and RELEASE of one lease by a registered process, through sanlock's own library; each client is a process
with a lease of its own. In each round each program serves the same number of pairs; the ratio is of the medians of the
rounds. Leases lie on this machine's disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.interop.sanlock_socket.scene import Scene  # noqa: E402

from bench.lease_peers import CallsOf, Client, LeasePlace, libsanlock_calls  # noqa: E402
from holdfast.wire.sanlock import requests as r  # noqa: E402
from holdfast.wire.sanlock import structures as s  # noqa: E402
from holdfast.wire.sanlock.result import Result  # noqa: E402

PROGRAMS = ("sanlock", "holdfast")
CALLS = 1000
"""INQUIREs and registrations of a round."""
MEASURED_ROUNDS_FROM = 1
"""The first one warms both up, and is not counted."""


class Served:
    """A program under test, as a process asks it through sanlock's library."""

    def __init__(self, program: str, place: Path) -> None:
        place.mkdir()
        self.scene = Scene(program, place)
        self._leases: dict[str, s.Resource] = {}

    def connect(self) -> CallsOf:
        """Registers the calling process."""
        os.environ["SANLOCK_RUN_DIR"] = str(self.scene.one.daemon.socket_path.parent)
        return libsanlock_calls(self._place_of)

    def _place_of(self, name: str) -> LeasePlace:
        lease = self._leases[name]
        disk = lease.disks[0]
        return LeasePlace(self.scene.lockspace.name.text, name, disk.path, disk.offset_bytes)

    def format(self, hosts: int, count: int) -> list[str]:
        """Free leases for so many hosts; returns their names."""
        made = [self.scene.lease(hosts=hosts) for _ in range(count)]
        self.scene.close_clients()
        names = [lease.name.text for lease in made]
        self._leases |= dict(zip(names, made, strict=True))
        return names


def round_of(clients: Sequence[Client], pairs: int) -> tuple[float, float]:
    """Pairs a second of all clients together, and the median of their median seconds for an ACQUIRE."""
    begun = time.monotonic()
    for client in clients:
        client.begin(pairs)
    acquired_s = [float(client.result()) for client in clients]
    return pairs * len(clients) / (time.monotonic() - begun), statistics.median(acquired_s)


def compare(served: dict[str, Served], hosts: int, crowds: Sequence[int], pairs: int, rounds: int) -> None:
    """One line for each number of clients."""
    leases = {program: each.format(hosts, max(crowds)) for program, each in served.items()}
    for crowd in crowds:
        with ExitStack() as stack:
            clients: dict[str, list[Client]] = {}
            for program, each in served.items():
                clients[program] = [Client(each, lease) for lease in leases[program][:crowd]]
                for client in clients[program]:
                    stack.callback(client.end)
            found: dict[str, list[tuple[float, float]]] = {program: [] for program in PROGRAMS}
            for _ in range(rounds + MEASURED_ROUNDS_FROM):
                for program in PROGRAMS:
                    found[program].append(round_of(clients[program], pairs))
        rates, acquired_s = (
            {p: statistics.median(each[n] for each in found[p][MEASURED_ROUNDS_FROM:]) for p in PROGRAMS}
            for n in (0, 1)
        )
        print(
            f"{hosts} hosts, {crowd} clients: "
            + "; ".join(f"{p} {rates[p]:.0f} pairs/s, acquire {acquired_s[p] * 1e3:.2f} ms" for p in PROGRAMS)
            + f"; holdfast / sanlock {rates['holdfast'] / rates['sanlock']:.2f}",
            flush=True,
        )


def inquiries(scene: Scene, count: int) -> float:
    """INQUIREs a second, of a process that holds one lease."""
    process, lease = scene.one.process(), scene.lease()
    assert process.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
    begun = time.monotonic()
    for _ in range(count):
        assert process.client.result(r.Inquire(0, r.OWN)) == Result.OK
    rate = count / (time.monotonic() - begun)
    scene.close_clients()
    return rate


def registrations(scene: Scene, count: int) -> float:
    """Connections a second that register, ask for the version and close."""
    begun = time.monotonic()
    for _ in range(count):
        client = scene.one.client()
        client.send(r.Register())
        assert client.result(r.Version()) == Result.OK
        client.close()
    return count / (time.monotonic() - begun)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="*", default=[2000, 64])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--pairs", type=int, default=30, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(arguments)
    calls: tuple[tuple[str, Callable[[Scene, int], float]], ...] = (
        ("INQUIRE", inquiries),
        ("REGISTER", registrations),
    )
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place, ExitStack() as stack:
        served = {}
        for program in PROGRAMS:
            served[program] = Served(program, Path(place) / program)
            stack.callback(served[program].scene.close)
        for hosts in options.hosts:
            compare(served, hosts, options.clients, options.pairs, options.rounds)
        for what, measure in calls:
            found: dict[str, list[float]] = {program: [] for program in PROGRAMS}
            for _ in range(options.rounds):
                for program in PROGRAMS:
                    found[program].append(measure(served[program].scene, CALLS))
            ours, theirs = (statistics.median(found[program]) for program in ("holdfast", "sanlock"))
            print(f"{what}: sanlock {theirs:.0f}/s; holdfast {ours:.0f}/s; ratio {ours / theirs:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
