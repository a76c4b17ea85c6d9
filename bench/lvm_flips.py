"""What a conversion of an LV's lock costs, exclusive to shared and back: by lvmlockd's socket, and by `lvchange`.

    sudo .venv/bin/python -m bench.lvm_flips [--rounds 20]

The real lvm2 and lvmlockd of this machine on two hosts, as tests/interop/lvmlockd has them: over the real sanlock, and over
Holdfast in its place. lvm2 is kept from device-mapper, so `lvchange` is without its work on the device: with that it
takes longer. Medians, with the smallest and the greatest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.interop.lvmlockd.hosts import VG, build_device_mapper, site  # noqa: E402

from holdfast.system.lvm.lvmlockd_client import LvLock, LvmlockdClient, Mode  # noqa: E402

PROGRAMS: tuple[Literal["sanlock", "holdfast"], ...] = ("sanlock", "holdfast")


def timed(what: str, rounds: int, work: Callable[[], object]) -> float:
    """Print the times of so many; return their median, in milliseconds."""
    times_ms = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times_ms.append((time.perf_counter() - begun) * 1e3)
    middle = statistics.median(times_ms)
    print(f"{what:40} {middle:7.1f} ms ({min(times_ms):.1f} to {max(times_ms):.1f})", flush=True)
    return middle


def measure(program: Literal["sanlock", "holdfast"], rounds: int) -> None:
    """One pair of hosts."""
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as name:
        place = Path(name)
        with site(place, (program, program), 512, build_device_mapper(place)) as made:
            one, volume = made.hosts[0], made.new_lv("lv1")
            lock = LvLock(VG, volume.name, volume.uuid, volume.vg_args, volume.lv_args)
            one.done("lvchange", "-aey", volume.path)
            with LvmlockdClient(str(one.lvmlockd_socket)) as client:

                def by_socket() -> None:
                    client.lock_lv(lock, Mode.SHARED)
                    client.lock_lv(lock, Mode.EXCLUSIVE)

                def by_command() -> None:
                    one.done("lvchange", "-asy", volume.path)
                    one.done("lvchange", "-aey", volume.path)

                socket_ms = timed(f"{program}: lvmlockd's socket", rounds, by_socket)
                command_ms = timed(f"{program}: lvchange, twice", rounds, by_command)
            print(f"{program}: {command_ms / socket_ms:.0f} times", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(f"{options.rounds} rounds, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
    for program in PROGRAMS:
        measure(program, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
