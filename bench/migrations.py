"""How often a target that asks once comes too early: live migrations from holdfastd to Debian's virtlockd.

    sudo .venv/bin/python bench/migrations.py [--rounds 100] [--mode indirect|direct] [--source holdfastd|virtlockd]

holdfastd on the source lets go of a lock when libvirt's status file says that the guest has left; virtlockd on the target
is asked some milliseconds later, and refuses at once what is still held. Each round migrates one guest to the virtlockd
host (direct and peer to peer in turn) and back; what the target refused is counted, with idle processors and with a busy
loop on each of them. Two real libvirt hosts with QEMU, as the end-to-end tests have them: root, and their packages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.e2e.lab.daemons import Kind, LockMode  # noqa: E402
from tests.e2e.lab.hosts import CommandError  # noqa: E402
from tests.e2e.lab.lab import Lab  # noqa: E402
from tests.e2e.lab.programs import Programs  # noqa: E402
from tests.e2e.lab.vms import Vm  # noqa: E402

BUSY = "while True: pass"


@contextmanager
def processors(*, busy: bool) -> Iterator[None]:
    """Every processor has something else to do, or nothing of ours."""
    count = len(os.sched_getaffinity(0)) if busy else 0
    loops = [subprocess.Popen([sys.executable, "-I", "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def migrate(lab: Lab, vm: Vm, number: int) -> str:
    """One round there and back; what the user of the first migration read, empty if it went well."""
    how = ["--p2p"] if number % 2 else []
    try:
        vm.migrate(lab.beta, *how)
    except CommandError as failed:
        vm.wait_state("running")
        return failed.stderr.strip()
    vm.migrate(lab.alpha, *how)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--mode", choices=("indirect", "direct"), default="indirect")
    parser.add_argument("--source", choices=("holdfastd", "virtlockd"), default="holdfastd")
    parser.add_argument("--loads", nargs="+", choices=("idle", "busy"), default=["idle", "busy"])
    chosen = parser.parse_args()
    mode: LockMode = "direct" if chosen.mode == "direct" else "indirect"
    source: Kind = "virtlockd" if chosen.source == "virtlockd" else "holdfastd"
    with tempfile.TemporaryDirectory(prefix="migrations-") as name:
        base = Path(name)
        programs = Programs.build(base)
        lab = Lab(
            folder=base / "lab",
            cache=base / "cache",
            programs=programs,
            kinds=(source, "virtlockd"),
            mode=mode,
        )
        lab.up()
        try:
            for load in chosen.loads:
                vm = lab.vm(lab.alpha, f"vm-{load}", lab.storage.image(load)).start()
                with processors(busy=load == "busy"):
                    begun = time.monotonic()
                    said = [migrate(lab, vm, number) for number in range(chosen.rounds)]
                    took_s = time.monotonic() - begun
                early = [text for text in said if "resource busy" in text]
                other = [text for text in said if text and "resource busy" not in text]
                print(
                    f"{mode:8} {load:4}: {chosen.rounds} migrations to virtlockd, {len(early)} asked too early, "
                    f"{len(other)} failed otherwise; {took_s / chosen.rounds:.2f} s a round, "
                    f"load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
                for text in sorted(set(early + other)):
                    print(f"    {text}", flush=True)
                vm.destroy()
        finally:
            lab.down()


if __name__ == "__main__":
    main()
