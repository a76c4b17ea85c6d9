"""What libvirt's hook adds to the start and to the end of a VM: two labs of real libvirt hosts, one with it and one without.

    sudo .venv/bin/python bench/hook.py [--rounds 20] [--modes direct leases]

In each round each lab starts a VM with one disk and destroys it, in turn, a second apart. libvirt runs the hook for five
operations of a start and two of an end; each is a new process. Medians, with the smallest and the greatest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.e2e.lab.daemons import LockMode  # noqa: E402
from tests.e2e.lab.lab import Lab  # noqa: E402
from tests.e2e.lab.programs import Programs  # noqa: E402
from tests.e2e.lab.vms import Vm  # noqa: E402

PAUSE_S = 1.0
MODES: tuple[LockMode, ...] = ("direct", "leases")


def timed_ms(vm: Vm, *command: str) -> float:
    """One command of virsh."""
    begun = time.monotonic()
    vm.virsh(*command)
    return (time.monotonic() - begun) * 1e3


def shown(what: str, times_ms: Sequence[float]) -> str:
    middle = statistics.median(times_ms)
    return f"{what:24} {middle:6.0f} ms  ({min(times_ms):.0f} .. {max(times_ms):.0f})"


def measure(mode: LockMode, base: Path, programs: Programs, rounds: int) -> None:
    """Prints the figures of one kind of locks."""
    with ExitStack() as stack:
        vms = {}
        for hook in (False, True):
            lab = Lab(
                folder=base / f"{mode}-{hook}",
                cache=base / "cache",
                programs=programs,
                kinds=("holdfastd", "holdfastd"),
                mode=mode,
                hook=hook,
            )
            lab.up()
            stack.callback(lab.down)
            vms[hook] = lab.vm(lab.alpha, "web1", lab.storage.image("web"))
        times: dict[tuple[str, bool], list[float]] = {
            (what, hook): [] for what in ("start", "destroy") for hook in (False, True)
        }
        for _ in range(rounds + 1):
            for hook, vm in vms.items():
                times["start", hook].append(timed_ms(vm, "start"))
                time.sleep(PAUSE_S)
                times["destroy", hook].append(timed_ms(vm, "destroy"))
                time.sleep(PAUSE_S)
        print(f"{mode}: {rounds} rounds, load {os.getloadavg()[0]:.1f}")
        for what in ("start", "destroy"):
            without, having = (times[what, hook][1:] for hook in (False, True))
            print(f"  {shown(f'{what}, no hook', without)}")
            print(f"  {shown(f'{what}, hook', having)}")
            added_ms = statistics.median(having) - statistics.median(without)
            print(f"  the hook adds {added_ms:.0f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hook-") as name:
        base = Path(name)
        programs = Programs.build(base)
        for mode in chosen.modes:
            measure(mode, base, programs, chosen.rounds)


if __name__ == "__main__":
    main()
