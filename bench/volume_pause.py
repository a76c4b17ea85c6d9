"""How long a guest stands still in a live migration, and how long a start takes: with driver "lvm", alone and with a guard
lease beside it, with locks in files, and with virtlockd.

    sudo .venv/bin/python bench/volume_pause.py [--runs 20]

Two real libvirt hosts with QEMU on this machine's kernel and clock, as the end-to-end tests have them; lvmlockd is the fake
and LVM a stand-in (`tests/e2e/test_shared_volumes.py`). The pause is from QEMU's event STOP on the source to RESUME on the
target, as `virsh qemu-monitor-event` prints them; a start is `virsh start`, from its beginning to its end. All ways have the
same guest on the same hosts, in two rounds, so that a load that changes is in each.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from tests.e2e.lab.daemons import Kind  # noqa: E402
from tests.e2e.lab.domains import Disk  # noqa: E402
from tests.e2e.lab.hosts import Host  # noqa: E402
from tests.e2e.lab.lab import Lab  # noqa: E402
from tests.e2e.lab.polling import until  # noqa: E402
from tests.e2e.lab.programs import Programs  # noqa: E402
from tests.e2e.lab.vms import Vm  # noqa: E402
from tests.e2e.test_shared_volumes import VolumeLab  # noqa: E402

EVENT = re.compile(r"^\d+-\d+-\d+ (\d+):(\d+):(\d+\.\d+).*event (STOP|RESUME)", re.MULTILINE)
DAY_S = 86400
ROUNDS = 2
WAYS = {"driver lvm": "", "with a guard": "exclusive", 'guard, activation "shared"': "shared"}
"""Of volumes, and the activation that `VolumeLab` takes."""
Times = dict[str, list[float]]
"""Milliseconds, by way."""


class Events:
    """What QEMUs of a host say, from now on."""

    def __init__(self, host: Host) -> None:
        self._log = host.folder / "events.log"
        self._log.write_text("")
        command = (
            "stdbuf",
            "-oL",
            "virsh",
            "-c",
            "qemu:///system",
            "qemu-monitor-event",
            "--loop",
            "--timestamp",
        )
        self._spawned = host.spawn("events", *command)

    def times(self, event: str) -> list[float]:
        """Of each so far, in seconds of the day."""
        return [
            int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            for hours, minutes, seconds, name in EVENT.findall(self._log.read_text())
            if name == event
        ]

    def next(self, event: str, after: int) -> float:
        """The one after so many."""
        until(lambda: len(self.times(event)) > after, f"event {event}")
        return self.times(event)[after]

    def close(self) -> None:
        self._spawned.process.kill()
        self._spawned.wait()


def pauses(lab: Lab, vm: Vm, runs: int) -> list[float]:
    """Milliseconds of each migration, there and back in turn."""
    events = {host: Events(host) for host in (lab.alpha, lab.beta)}
    found = []

    def is_watched() -> bool:
        vm.virsh("suspend")
        vm.virsh("resume")
        return bool(events[vm.host].times("RESUME"))

    try:
        until(is_watched, "virsh to see events")
        for _ in range(runs):
            source = vm.host
            target = lab.beta if source is lab.alpha else lab.alpha
            before = len(events[source].times("STOP")), len(events[target].times("RESUME"))
            vm.migrate(target, "--p2p")
            stopped = events[source].next("STOP", before[0])
            resumed = events[target].next("RESUME", before[1])
            found.append((resumed - stopped) % DAY_S * 1000)
            vm.assert_writes()
    finally:
        for each in events.values():
            each.close()
    return found


def starts(vm: Vm, runs: int) -> list[float]:
    """Milliseconds of each `virsh start`. The guest runs before and afterwards; each start finds what the last end has left
    done, as `virsh destroy` returns when libvirt's hook has.
    """
    found = []
    for _ in range(runs):
        vm.destroy()
        began = time.monotonic()
        vm.virsh("start")
        found.append((time.monotonic() - began) * 1000)
        vm.assert_writes()
    return found


@contextmanager
def lab_of(base: Path, programs: Programs, kind: Kind) -> Iterator[Lab]:
    """Two hosts with that lock daemon."""
    folder = base / kind
    lab = Lab(
        folder=folder, cache=base / "cache", programs=programs, kinds=(kind, kind), mode="direct", hook=True
    )
    lab.up()
    try:
        yield lab
    finally:
        lab.down()


def measure(lab: Lab, vm: Vm, way: str, runs: int, paused: Times, started: Times) -> None:
    """So many migrations and starts, one round's share of each, and the guest's end."""
    share = runs // ROUNDS
    started.setdefault(way, []).extend(starts(vm, share))
    paused.setdefault(way, []).extend(pauses(lab, vm, share))
    vm.destroy()


def show(what: str, found: Times) -> None:
    for way, times in found.items():
        print(
            f"{what}  {way:26} median {statistics.median(times):6.1f} ms ({min(times):.1f} to {max(times):.1f}), "
            f"{len(times)} times, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    paused: Times = {}
    started: Times = {}
    with tempfile.TemporaryDirectory(prefix="hf") as name:
        base = Path(name)
        programs = Programs.build(base)
        with lab_of(base, programs, "holdfastd") as lab:
            for _ in range(ROUNDS):
                for way, activation in WAYS.items():
                    volumes = VolumeLab(lab, activation)
                    vm = lab.vm(lab.alpha, "web1", Disk(volumes.image)).start()
                    measure(lab, vm, way, runs, paused, started)
                    lab.reset()
                    volumes.close()
                vm = lab.vm(lab.alpha, "web2", Disk(lab.device("sdb"))).start()
                measure(lab, vm, "driver file", runs, paused, started)
                lab.reset()
        with lab_of(base, programs, "virtlockd") as lab:
            vm = lab.vm(lab.alpha, "web3", Disk(lab.device("sdb"))).start()
            measure(lab, vm, "virtlockd", ROUNDS * runs, paused, started)
    show("pause", paused)
    show("start", started)


if __name__ == "__main__":
    main()
