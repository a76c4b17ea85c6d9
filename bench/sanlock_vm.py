"""A VM through libvirt's sanlock plugin: one host with Debian's sanlock, one with holdfastd in its place.

    sudo .venv/bin/python bench/sanlock_vm.py [--rounds 8]

In each round each host starts a VM with one disk, suspends it, resumes it and destroys it, in turn. Starting and resuming
ask for the lease, suspending gives it back; the rest of each is libvirt's and QEMU's own. Medians, with the smallest and the
greatest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.e2e.lab.lab import Lab  # noqa: E402
from tests.e2e.lab.programs import Programs  # noqa: E402

from bench.hook import shown, timed_ms  # noqa: E402

COMMANDS = ("start", "suspend", "resume", "destroy")
PAUSE_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="vm-") as name, ExitStack() as stack:
        base = Path(name)
        lab = Lab(
            folder=base / "lab",
            cache=base / "cache",
            programs=Programs.build(base),
            kinds=("in sanlock's place", "sanlock"),
            mode="leases with sanlock's times",
        )
        lab.up()
        stack.callback(lab.down)
        names = {lab.alpha: "holdfast", lab.beta: "sanlock"}
        vms = {host: lab.vm(host, f"vm{host.number}", lab.storage.image(host.name)) for host in names}
        times: dict[tuple[str, str], list[float]] = {
            (what, program): [] for what in COMMANDS for program in names.values()
        }
        for _ in range(rounds + 1):
            for host, vm in vms.items():
                for what in COMMANDS:
                    times[what, names[host]].append(timed_ms(vm, what))
                    time.sleep(PAUSE_S)
        print(f"{rounds} rounds, load {os.getloadavg()[0]:.1f}")
        for (what, program), found in times.items():
            print(shown(f"{what}, {program}", found[1:]))


if __name__ == "__main__":
    main()
