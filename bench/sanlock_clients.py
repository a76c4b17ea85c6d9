"""sanlock's socket, asked by the same client: Debian's sanlock and holdfastd in turn, on files of one directory.

    sudo .venv/bin/python bench/sanlock_clients.py [--pairs 300] [--rounds 5] [--clients 1 4]

A pair is ACQUIRE and RELEASE of one lease of 2000 hosts by a registered process. In each round each program serves the same
number of pairs; the ratio is of the medians. Leases lie on this machine's disk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.interop.sanlock_socket.client import Process  # noqa: E402
from tests.interop.sanlock_socket.scene import Scene, head  # noqa: E402

from holdfast.wire.sanlock import requests as r  # noqa: E402
from holdfast.wire.sanlock import structures as s  # noqa: E402
from holdfast.wire.sanlock.result import Result  # noqa: E402

PROGRAMS = ("sanlock", "holdfast")


def pairs(process: Process, lease: s.Resource, count: int, times_s: list[float]) -> None:
    """Acquire and release, timed each."""
    for _ in range(count):
        begun = time.monotonic()
        assert process.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.OK
        assert process.client.result(r.Release(0, r.OWN, (head(lease),))) == Result.OK
        times_s.append(time.monotonic() - begun)


def round_of(scene: Scene, clients: int, count: int) -> tuple[float, list[float]]:
    """Pairs a second of all clients together, and the seconds of each pair."""
    processes = [scene.one.process() for _ in range(clients)]
    leases = [scene.lease() for _ in range(clients)]
    times_s: list[float] = []
    workers = [
        threading.Thread(target=pairs, args=(process, lease, count // clients, times_s))
        for process, lease in zip(processes, leases, strict=True)
    ]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = len(times_s) / (time.monotonic() - begun)
    scene.close_clients()
    return rate, times_s


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
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as place:
        scenes = {}
        try:
            for program in PROGRAMS:
                (Path(place) / program).mkdir()
                scenes[program] = Scene(program, Path(place) / program)
            for clients in options.clients:
                rates: dict[str, list[float]] = {program: [] for program in PROGRAMS}
                all_s: dict[str, list[float]] = {program: [] for program in PROGRAMS}
                for _ in range(options.rounds):
                    for program, scene in scenes.items():
                        rate, times_s = round_of(scene, clients, options.pairs)
                        rates[program].append(rate)
                        all_s[program] += times_s
                for program in PROGRAMS:
                    print(
                        f"{clients} clients  {program:9} {statistics.median(rates[program]):7.0f} pairs/s, "
                        f"median {statistics.median(all_s[program]) * 1e3:.2f} ms"
                    )
                ours, theirs = (statistics.median(rates[each]) for each in ("holdfast", "sanlock"))
                print(f"{clients} clients  holdfast / sanlock {ours / theirs:.2f}")
            for what, measure in (("INQUIRE", inquiries), ("REGISTER", registrations)):
                found = {program: measure(scene, 1000) for program, scene in scenes.items()}
                print(
                    f"{what:9} holdfast {found['holdfast']:.0f}/s, sanlock {found['sanlock']:.0f}/s, "
                    f"ratio {found['holdfast'] / found['sanlock']:.2f}"
                )
        finally:
            for scene in scenes.values():
                scene.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
