"""VM cycles per second and start latency beside Debian's virtlockd, with N VM processes connected to both.

python -m bench.cycles [N ...]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.libvirtd_side import LibvirtdSide, build, write_frames
from bench.peers import Holdfastd, Virtlockd, end, raise_descriptor_limit
from bench.vms import fork_vms

ROUNDS = 25
ROUND_S = 0.25
"""Short rounds alternate between the daemons, so that a slow spell of the machine hits both; the ratio is the
median of the rounds' own ratios."""

TARGET_RATIO = {100: 2.0, 1000: 7.0, 2000: 12.0}


@dataclass
class Figures:
    """Medians of the rounds: cycles per second, seconds of a start, and the rounds' ratio."""

    ours: float
    theirs: float
    ratio: float
    start_s: float
    their_start_s: float


def measure(count: int) -> Figures:
    """Both daemons with `count` VMs connected to each."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        directory = Path(name)
        program = build(directory)
        daemons = (Holdfastd(directory), Virtlockd(directory))
        for daemon in daemons:
            daemon.start()
        pids: list[int] = []
        clients: dict[str, LibvirtdSide] = {}
        try:
            vms = fork_vms(count, [d.socket for d in daemons], directory)
            pids = [vm.pid for vm in vms]
            frames = write_frames(vms, directory)
            clients.update((d.name, LibvirtdSide(program, frames, d.socket)) for d in daemons)
            rates: dict[str, list[float]] = {d.name: [] for d in daemons}
            starts: dict[str, list[float]] = {d.name: [] for d in daemons}
            lengths = {d.name: 5 for d in daemons}
            for number in range(ROUNDS + 1):
                for daemon in daemons:
                    length = lengths[daemon.name]
                    seconds, start_s = clients[daemon.name].cycles(length, number * 7919)
                    if number == 0:  # a first round warms up and tells how many cycles fill a round
                        lengths[daemon.name] = max(5, int(length / seconds * ROUND_S))
                    else:
                        rates[daemon.name].append(length / seconds)
                        starts[daemon.name].append(start_s)
            pairs = zip(rates["holdfastd"], rates["virtlockd"], strict=True)
            return Figures(
                ours=statistics.median(rates["holdfastd"]),
                theirs=statistics.median(rates["virtlockd"]),
                ratio=statistics.median(ours / theirs for ours, theirs in pairs),
                start_s=statistics.median(starts["holdfastd"]),
                their_start_s=statistics.median(starts["virtlockd"]),
            )
        finally:
            for client in clients.values():
                client.end()
            end(pids)
            for daemon in daemons:
                daemon.kill()


def main(arguments: list[str]) -> int:
    raise_descriptor_limit()
    counts = [int(a) for a in arguments] or sorted(TARGET_RATIO)
    print("VM cycles (connect, REGISTER, 2 x ACQUIRE, close, connect, REGISTER, 2 x RELEASE, close); medians")
    print(
        f"{'N VMs':>6} {'holdfastd/s':>12} {'virtlockd/s':>12} {'ratio':>7} {'target':>7} "
        f"{'start ms':>9} {'virtlockd ms':>13}"
    )
    first_start = 0.0
    for count in counts:
        found = measure(count)
        first_start = first_start or found.start_s
        print(
            f"{count:>6} {found.ours:>12.0f} {found.theirs:>12.0f} {found.ratio:>6.2f}x "
            f"{TARGET_RATIO.get(count, 0):>6.0f}x {found.start_s * 1e3:>9.3f} {found.their_start_s * 1e3:>13.3f}",
            flush=True,
        )
        if count == counts[-1] and count != counts[0]:
            print(
                f"start latency at N={count}: {found.start_s / first_start:.2f} times that at N={counts[0]} (target: <= 2)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
