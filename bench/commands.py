"""How long a person waits for `holdfast`, and libvirt for holdfastd to listen.

    .venv/bin/python -m bench.commands [--vms 1000] [--runs 8]

Medians: seconds by the clock, from exec to the end of a command or to a connection that is accepted, and seconds of
processor time, which other work on the machine changes less. A Python that does nothing stands beside them: no command can
be faster. `status` and `who` ask a holdfastd that holds two disks for each VM. Bytecode is there before the first run, as
pip installs it: a checkout under PYTHONDONTWRITEBYTECODE compiles every module each time, which takes as long again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.footprint import loaded
from bench.lease_peers import program
from bench.peers import Holdfastd, raise_descriptor_limit
from bench.scale import counters

TARGET_S = {"--help": 0.1, "status": 0.15, "who": 0.2}
START_TARGET_S = 0.4


def spent(command: Sequence[str]) -> tuple[float, float]:
    """Seconds by the clock and of processor time; whatever the exit code is."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took_s = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    return took_s, usage.ru_utime + usage.ru_stime


def started(daemon: Holdfastd) -> tuple[float, float]:
    """The same of a daemon, until it listens."""
    begin = time.perf_counter()
    daemon.start()
    return time.perf_counter() - begin, counters(daemon.pid).cpu_s


def show(what: str, runs: Sequence[tuple[float, float]], target_s: float | None = None) -> None:
    by_clock, processor = (statistics.median(column) for column in zip(*runs, strict=True))
    target = f"{target_s:>7.2f}" if target_s is not None else f"{'':>7}"
    print(f"{what:<42} {by_clock:>7.3f} {processor:>9.3f} {target}", flush=True)


def start_times(daemon: Holdfastd, runs: int) -> list[tuple[float, float]]:
    """Of a daemon that is killed each time, and finds the locks that the one before held."""
    found = []
    for _ in range(runs):
        daemon.kill(signal.SIGKILL)
        found.append(started(daemon))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=8)
    chosen = parser.parse_args(arguments)
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        measure(chosen.vms, chosen.runs)
    return 0


def measure(vms_count: int, runs: int) -> None:
    print(f"{'medians of ' + str(runs) + ' runs':<42} {'s':>7} {'CPU s':>9} {'target':>7}")
    spent([program("holdfast"), "doctor", "--explain", "all"])
    spent([program("holdfastd"), "--help"])
    show("python -c pass", [spent([sys.executable, "-c", "pass"]) for _ in range(runs)])
    for vms in (0, vms_count):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            place = Path(folder)
            daemon = Holdfastd(place)
            with loaded(daemon, place, vms):
                holdfast = [program("holdfast"), "--config", str(daemon.config)]
                for words in (["--help"], ["status"], ["who", f"{place}/0-a.img"]):
                    spent([*holdfast, *words])
                    times = [spent([*holdfast, *words]) for _ in range(runs)]
                    show(f"holdfast {words[0]}, {vms} VMs", times, TARGET_S[words[0]])
                times = start_times(daemon, runs)
                show(f"holdfastd: exec to listening, {vms} VMs", times, START_TARGET_S)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    sys.exit(main())
