"""What holdfastd costs while nothing happens, and how fast it is back: memory, wake-ups, re-adoption, `holdfast who`.

python -m bench.footprint
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers import Holdfastd, Virtlockd, end, raise_descriptor_limit, status_number
from bench.vms import Vm, fork_vms, speak
from holdfast.testing.virtlockd_client import VirtlockdClient

Daemon = Holdfastd | Virtlockd
IDLE_S = 10.0
REPEATS = 5


@contextmanager
def loaded(daemon: Daemon, directory: Path, count: int) -> Iterator[list[Vm]]:
    """A daemon with `count` VMs that each hold two disks."""
    daemon.start()
    vms: list[Vm] = []
    try:
        vms = fork_vms(count, [daemon.socket], directory)
        for vm in vms:
            speak(daemon.socket, vm.acquire)
        yield vms
    finally:
        daemon.kill(signal.SIGKILL)
        end([vm.pid for vm in vms])


def memory(count: int = 2000) -> None:
    for kind in (Holdfastd, Virtlockd):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
            daemon = kind(Path(name))
            with loaded(daemon, Path(name), count):
                resident = status_number(daemon.pid, "VmRSS") / 1024
                target = "  (target: at most 64 MiB)" if kind is Holdfastd else ""
                print(
                    f"resident memory with {count} VMs and {2 * count} locks: "
                    f"{daemon.name} {resident:.1f} MiB{target}",
                    flush=True,
                )


def idle(count: int = 500) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        daemon = Holdfastd(Path(name))
        with loaded(daemon, Path(name), count):
            time.sleep(6)  # threads that served the start have ended by then
            before = wake_ups(daemon.pid)
            time.sleep(IDLE_S)
            per_second = (wake_ups(daemon.pid) - before) / IDLE_S
            print(
                f"idle with {count} VMs: {per_second:.2f} wake-ups a second (target: at most 1)", flush=True
            )


def wake_ups(pid: int) -> int:
    """Voluntary context switches of all threads: each is one return from sleep."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def readoption(count: int = 1000) -> None:
    seconds = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        daemon = Holdfastd(Path(name))
        with loaded(daemon, Path(name), count):
            for _ in range(REPEATS):
                daemon.kill(signal.SIGKILL)
                begin = time.perf_counter()
                daemon.start()
                with VirtlockdClient(daemon.socket) as client:
                    client.create_lockspace("")  # the first answer
                seconds.append(time.perf_counter() - begin)
            told = subprocess.run(
                [str(Path(sys.executable).with_name("holdfast")), "--config", str(daemon.config), "status"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert f"locks        {2 * count}, of {count} owners" in told, told
    print(
        f"back after kill -9, {count} VMs with {2 * count} locks: median {statistics.median(seconds):.2f} s, "
        f"from start to first answer (target: under 2 s)",
        flush=True,
    )


def who(count: int = 500) -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        daemon = Holdfastd(Path(name))
        with loaded(daemon, Path(name), count):
            command = [
                str(Path(sys.executable).with_name("holdfast")),
                "--config",
                str(daemon.config),
                "who",
                f"{name}/7-a.img",
            ]
            seconds = []
            for _ in range(REPEATS * 2 + 1):
                begin = time.perf_counter()
                subprocess.run(command, capture_output=True, check=True)
                seconds.append(time.perf_counter() - begin)
    print(
        f"holdfast who with {count} VMs: median {statistics.median(seconds) * 1e3:.0f} ms (target: under 200 ms)",
        flush=True,
    )


def main() -> int:
    raise_descriptor_limit()
    memory()
    idle()
    readoption()
    who()
    return 0


if __name__ == "__main__":
    sys.exit(main())
