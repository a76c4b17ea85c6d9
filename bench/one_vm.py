"""What a user feels: the lock calls of one VM on an idle host, one at a time and seconds apart, beside Debian's virtlockd.

    sudo .venv/bin/python -m bench.one_vm [--rounds 40] [--pause 2] [--libvirt]

After a pause caches are cold and the daemon has to be woken, which rates of calls per second (`bench.cycles`) don't show.
The neutral client in C connects, sends REGISTER and two ACQUIRE (a start, a resume), or two RELEASE (a suspend), to the two
daemons in turn; in direct mode the locks are on the images, in the other one on files of a lock directory, named by hashes.
With --libvirt the same through two labs of real libvirt hosts with QEMU: the time of `virsh suspend` and `virsh resume`,
in which the lock calls are the only difference.  Medians, in milliseconds, and the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.lab.daemons import Kind, LockMode
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.programs import Programs
from tests.e2e.lab.vms import Vm as Guest

from bench.libvirtd_side import LibvirtdSide, build, write_frames
from bench.peers import Holdfastd, Virtlockd, end
from bench.vms import Vm, fork_vms, frame
from holdfast.testing.virtlockd_client import VirtlockdClient
from holdfast.wire import virtlockd as wire

MODES: tuple[LockMode, ...] = ("direct", "indirect")
PEERS = ("holdfastd", "virtlockd")

Times = dict[tuple[str, str], list[float]]
"""Milliseconds by what was done and by the daemon."""


def in_directory(vm: Vm, locks: Path, images: Path) -> Vm:
    """The same VM as libvirt asks with a lock directory: hashes in a lockspace, and files that are made when asked for."""
    calls = [
        (hashlib.sha256(str(images / f"{vm.number}-{letter}.img").encode()).hexdigest(), number)
        for number, letter in enumerate("ab", 1)
    ]
    acquire, release = wire.PROC_ACQUIRE_RESOURCE, wire.PROC_RELEASE_RESOURCE
    place, make = str(locks), wire.ACQUIRE_AUTOCREATE
    return Vm(
        vm.number,
        vm.pid,
        (
            vm.acquire[0],
            *(frame(acquire, n, wire.ResourceCall(place, name, make).encode()) for name, n in calls),
        ),
        (
            vm.release[0],
            *(frame(release, n, wire.ResourceCall(place, name, 0).encode()) for name, n in calls),
        ),
    )


def by_the_client(mode: LockMode, rounds: int, pause_s: float) -> Times:
    """One VM with two disks; a round is one start and one suspend for each daemon."""
    times: Times = {(what, peer): [] for what in ("acquire", "release") for peer in PEERS}
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        daemons = (Holdfastd(directory), Virtlockd(directory))
        for daemon in daemons:
            daemon.start()
            stack.callback(daemon.kill)
        (vm,) = fork_vms(1, [daemon.socket for daemon in daemons], directory)
        stack.callback(end, [vm.pid])
        if mode == "indirect":
            locks = directory / "locks"
            locks.mkdir()
            for daemon in daemons:
                with VirtlockdClient(daemon.socket) as client:
                    client.register(pid=vm.pid, name="vm0", domain_id=1)
                    client.create_lockspace(str(locks))
            vm = in_directory(vm, locks, directory)
        frames = write_frames([vm], directory)
        clients = {}
        for daemon in daemons:
            clients[daemon.name] = LibvirtdSide(build(directory), frames, daemon.socket)
            stack.callback(clients[daemon.name].end)
        for number in range(rounds + 1):
            for peer in PEERS if number % 2 else PEERS[::-1]:
                time.sleep(pause_s)
                both_s, acquire_s = clients[peer].cycles(1, 0)
                if number:
                    times["acquire", peer].append(acquire_s * 1e3)
                    times["release", peer].append((both_s - acquire_s) * 1e3)
    return times


def by_libvirt(mode: LockMode, rounds: int, pause_s: float, base: Path, programs: Programs) -> Times:
    """One running guest with one disk on a host of each kind."""
    times: Times = {(what, peer): [] for what in ("suspend", "resume") for peer in PEERS}
    with ExitStack() as stack:
        guests: dict[str, Guest] = {}
        for peer in PEERS:
            kind: Kind = "holdfastd" if peer == "holdfastd" else "virtlockd"
            lab = Lab(
                folder=base / f"{mode}-{peer}",
                cache=base / "cache",
                programs=programs,
                kinds=(kind, kind),
                mode=mode,
            )
            lab.up()
            stack.callback(lab.down)
            guests[peer] = lab.vm(lab.alpha, "web1", lab.storage.image("web")).start()
        for number in range(rounds + 1):
            for what in ("suspend", "resume"):
                for peer in PEERS if number % 2 else PEERS[::-1]:
                    time.sleep(pause_s)
                    begun = time.monotonic()
                    guests[peer].virsh(what)
                    if number:
                        times[what, peer].append((time.monotonic() - begun) * 1e3)
    return times


def show(where: str, times: Times) -> None:
    for what in dict.fromkeys(what for what, _ in times):
        ours, theirs = times[what, "holdfastd"], times[what, "virtlockd"]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        figures = f"{statistics.median(ours):>10.2f} {statistics.median(theirs):>10.2f} {ratio:>6.2f}"
        print(f"{where:24} {what:8} {figures}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two requests")
    parser.add_argument("--libvirt", action="store_true", help="through real libvirt, too")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print("this needs root: virtlockd's socket path is fixed, so it runs in a mount namespace")
        return 1
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds; ratio: holdfastd's time in virtlockd's")
    print(f"{'':24} {'':8} {'holdfastd':>10} {'virtlockd':>10} {'ratio':>6}")
    for mode in MODES:
        show(f"C client, {mode}", by_the_client(mode, chosen.rounds, chosen.pause))
    if chosen.libvirt:
        with tempfile.TemporaryDirectory(prefix="one-vm-") as name:
            programs = Programs.build(Path(name))
            for mode in MODES:
                times = by_libvirt(mode, chosen.rounds, chosen.pause, Path(name), programs)
                show(f"libvirt, {mode}", times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
