"""What the second lease of a disk, by what it is, adds to an acquire and a release.

python -m bench.identity

Two daemons, one after the other in turn on directories of their own: one with the lease of the path alone, one with both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.lease_peers import LeaseDirectory, LeasingHoldfastd

HOSTS_MAX = 64
PAIRS = 200
WARM_UP = 10
KINDS = {"path": "the path's lease alone", "auto": "the identity's, too"}


def measure() -> dict[str, tuple[list[float], list[float]]]:
    """By kind: seconds of each acquire, and of each release."""
    found: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name, ExitStack() as stack:
        calls = {}
        for kind in KINDS:
            directory = LeaseDirectory(Path(name) / kind, HOSTS_MAX)
            daemon = LeasingHoldfastd(directory, identity=kind)
            stack.callback(daemon.stop)
            daemon.wait_joined()
            calls[kind] = daemon.connect()(directory.disk(0))
        for number in range(WARM_UP + PAIRS):
            for kind, (acquires, releases) in found.items():
                begin = time.perf_counter()
                refused = calls[kind].acquire()
                between = time.perf_counter()
                if refused or (refused := calls[kind].release()):
                    raise RuntimeError(f"refused: {refused}")
                if number >= WARM_UP:
                    acquires.append(between - begin)
                    releases.append(time.perf_counter() - between)
    return found


def main() -> None:
    print("| leases of a disk | acquire, median | release, median |\n|---|---|---|")
    medians = {}
    for kind, times in measure().items():
        medians[kind] = [1e3 * statistics.median(each) for each in times]
        print(f"| {KINDS[kind]} | {medians[kind][0]:.2f} ms | {medians[kind][1]:.2f} ms |")
    ratios = [auto / path for auto, path in zip(medians["auto"], medians["path"], strict=True)]
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
