"""What a lockspace costs as it grows, beside Debian's sanlock in the same run: hosts, lockspaces, leases.

    .venv/bin/python -m bench.scale [--hosts 10 100 500 2000] [--lockspaces 5 20] [--leases 5000] [--renewals 30]
    .venv/bin/python -m bench.scale --small

holdfastd is host 1 and sanlock host 2 of each lockspace; the other hosts are records that a generator writes (`crowd`).
First all of them renew as hosts do ("renewing"). Then they fall silent, both daemons take over leases from some of them,
and when they are dead nothing changes any more ("silent"). Costs are those of a window that begins and ends with a renewal:
of 30 renewals, so that each has one of holdfastd's samples of the whole lockspace. io_timeout is 1 s: a host with the
default of 10 s renews a tenth as often.

The takeover columns: how long after the dead bound of the last renewal a lease was granted to a client that asks all the
time, and how long the call took that was granted; medians. sanlock's dead bound is fixed, so it is left out if ours
(`--fire-timeout`) is another one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import crowd
from bench.crowd import Crowd
from bench.lease_peers import FIRE_TIMEOUT_S, IO_TIMEOUT_S, CallsOf, LeasePeer, LeasingHoldfastd, Sanlock
from bench.peers import raise_descriptor_limit, status_number
from holdfast.protocol.timing import Timing

HOST_ID = {"holdfastd": 1, "sanlock": 2}
FEW_HOSTS = 10
TAKEOVERS = 4
"""Leases that each daemon takes over, of as many hosts."""
WANTED = 1_000_000
"""The number of the first disk whose lease is taken over."""
LEASES_PER_OWNER = 20
POLL_S = 0.05
TARGET_SHARE = 0.1
_HOUR_S = 3600
_SCHEDULER_CLOCK = 2
"""CPUCLOCK_SCHED of <linux/posix-timers.h>: the processor time of all threads, also of those that have ended."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One row of the table."""

    hosts: int
    lockspaces: int = 1
    leases: int = 0

    def __str__(self) -> str:
        return f"{self.hosts:>6} {self.lockspaces:>6} {self.leases:>7}"


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one process, since it began."""

    read: int
    written: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one daemon in one window. Bytes are those per renewal, and reach storage (proc(5), /proc/PID/io)."""

    renewals: int
    read: float
    written: float
    cpu_s_per_hour: float


@dataclass(slots=True)
class Found:
    """All figures of one daemon in one scene; a figure that was not measured is NaN."""

    join_s: float = float("nan")
    renewing: Cost | None = None
    silent: Cost | None = None
    resident_mib: float = float("nan")
    leases_per_s: float = float("nan")
    late_s: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)


def counters(pid: int) -> Counters:
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    io = {key: int(number) for key, number in (line.split(": ") for line in lines)}
    cpu_s = time.clock_gettime(~pid << 3 | _SCHEDULER_CLOCK)
    return Counters(io["read_bytes"], io["write_bytes"], cpu_s)


class _Progress:
    """How often one daemon renews, in all lockspaces, and what it had used at two renewals in the first of them."""

    def __init__(self, peer: LeasePeer, crowds: Sequence[Crowd]) -> None:
        self._peer, self._crowds = peer, crowds
        self._seen = self._timestamps()
        self._begin: tuple[float, Counters] | None = None
        self._of_first = 0
        self._of_all = 0
        self.cost: Cost | None = None

    def _timestamps(self) -> list[int]:
        return [each.timestamp_of(HOST_ID[self._peer.name]) for each in self._crowds]

    def poll(self, renewals: int) -> None:
        """Ends with a `cost` when the daemon has renewed so often."""
        now = self._timestamps()
        renewed = [a != b for a, b in zip(self._seen, now, strict=True)]
        self._seen = now
        if self._begin is None:
            if renewed[0]:
                self._begin = time.monotonic(), counters(self._peer.pid)
            return
        self._of_first += renewed[0]
        self._of_all += sum(renewed)
        if self._of_first < renewals or self.cost is not None:
            return
        began, before = self._begin
        used, seconds = counters(self._peer.pid), time.monotonic() - began
        self.cost = Cost(
            renewals=self._of_all,
            read=(used.read - before.read) / self._of_all,
            written=(used.written - before.written) / self._of_all,
            cpu_s_per_hour=(used.cpu_s - before.cpu_s) / seconds * _HOUR_S,
        )


def window(
    peers: Sequence[LeasePeer], crowds: Sequence[Crowd], renewals: int, *, renewing: bool
) -> dict[str, Cost]:
    """What each daemon uses in so many renewals, while the other hosts renew or are silent."""
    progress = {peer.name: _Progress(peer, crowds) for peer in peers}
    while any(each.cost is None for each in progress.values()):
        if renewing:
            renew(crowds)
        for each in progress.values():
            each.poll(renewals)
        time.sleep(POLL_S)
    return {name: each.cost for name, each in progress.items() if each.cost is not None}


def renew(crowds: Sequence[Crowd]) -> None:
    """As often as hosts do."""
    for each in crowds:
        if time.monotonic() - each.changed_at >= Timing(IO_TIMEOUT_S).renewal_s:
            each.advance()


def wait_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


class Owner:
    """A process that does something with leases as one owner, reports numbers, and holds them until it is ended."""

    def __init__(self, peer: LeasePeer, work: Callable[[CallsOf], Sequence[float]]) -> None:
        self._answer, answer = os.pipe()
        held, self._held = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._held)
                calls_of = peer.connect()  # the connection is open for as long as this is there
                numbers = work(calls_of)
                os.write(answer, " ".join(map(repr, numbers)).encode() + b"\n")
                os.read(held, 1)
                code = 0
            finally:
                os._exit(code)
        os.close(answer)
        os.close(held)

    def numbers(self) -> list[float]:
        """Waits for them."""
        with os.fdopen(self._answer, "rb") as f:
            line = f.readline()
        if not line:
            raise RuntimeError(f"owner {self.pid} failed")
        return [float(each) for each in line.split()]

    def end(self) -> None:
        os.write(self._held, b".")  # closing it would not do: owners that were forked later have it as well
        os.close(self._held)
        os.waitpid(self.pid, 0)


def hold(calls_of: CallsOf, disks: Sequence[str]) -> list[float]:
    for disk in disks:
        if refused := calls_of(disk).acquire():
            raise RuntimeError(refused)
    return []


def take_over(calls_of: CallsOf, disk: str, give_up_at: float) -> list[float]:
    """When the lease was granted, by time.monotonic(), and how long that call took."""
    calls = calls_of(disk)
    while True:
        begin = time.monotonic()
        refused = calls.acquire()
        end = time.monotonic()
        if not refused:
            return [end, end - begin]
        if end > give_up_at:
            raise TimeoutError(f"{disk} was not taken over: {refused}")
        time.sleep(POLL_S / 2)


@contextmanager
def owners_of_leases(peer: LeasePeer, disks: Sequence[str], found: Found) -> Iterator[None]:
    """Held while the body runs, by processes with some leases each."""
    owners: list[Owner] = []
    try:
        begin = time.monotonic()
        for at in range(0, len(disks), LEASES_PER_OWNER):
            some = disks[at : at + LEASES_PER_OWNER]
            owners.append(Owner(peer, lambda calls_of, some=some: hold(calls_of, some)))  # type: ignore[misc]
            owners[-1].numbers()
        if disks:
            found.leases_per_s = len(disks) / (time.monotonic() - begin)
        yield
    finally:
        for owner in owners:
            owner.end()


def taken_over(peer: LeasePeer, disks: Sequence[str], silent_since: float, dead_s: int, found: Found) -> None:
    """Each lease is asked for by a client of its own, from a little before it may be had."""
    dead_at = silent_since + dead_s
    wait_until(dead_at - Timing(IO_TIMEOUT_S).renewal_s)
    owners = [
        Owner(peer, lambda calls_of, disk=disk: take_over(calls_of, disk, dead_at + dead_s))  # type: ignore[misc]
        for disk in disks
    ]
    for owner in owners:
        granted_at, call_s = owner.numbers()
        found.late_s.append(granted_at - dead_at)
        found.call_s.append(call_s)
        owner.end()


def join_s(peer: LeasePeer) -> float:
    begin = time.monotonic()
    peer.wait_joined()
    return time.monotonic() - begin


def take_over_all(
    peers: Sequence[LeasePeer], first: Crowd, fire_timeout_s: int, found: Mapping[str, Found]
) -> None:
    """Leases of hosts that are silent from now on; returns when all hosts of the lockspace are dead."""
    silent_since, dead_s = first.changed_at, Timing(IO_TIMEOUT_S, fire_timeout_s).dead_s
    spread = max(1, len(first.host_ids) // (TAKEOVERS * len(peers)))
    victims = iter(list(first.host_ids)[::spread])
    with ThreadPoolExecutor(len(peers)) as both:
        jobs = []
        for number, peer in enumerate(peers):
            disks = [first.directory.disk(WANTED + number * TAKEOVERS + n) for n in range(TAKEOVERS)]
            for disk in disks:
                first.make_lease(disk, next(victims))
            if peer.name == "holdfastd" or fire_timeout_s == FIRE_TIMEOUT_S:
                jobs.append(both.submit(taken_over, peer, disks, silent_since, dead_s, found[peer.name]))
        for job in jobs:
            job.result()
    wait_until(silent_since + dead_s + 2 * Timing(IO_TIMEOUT_S).renewal_s)


def measure(scene: Scene, renewals: int, fire_timeout_s: int, *, takeovers: bool) -> dict[str, Found]:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder, ExitStack() as stack:
        place = Path(folder)
        crowds = [crowd.make(place / f"x{n}", scene.hosts, f"space{n}") for n in range(scene.lockspaces)]
        for each in crowds:
            stack.callback(each.close)
        first = crowds[0]
        directories = [each.directory for each in crowds]
        peers: list[LeasePeer] = [LeasingHoldfastd(*directories, fire_timeout_s=fire_timeout_s)]
        stack.callback(peers[0].stop)
        peers.append(Sanlock(*directories))
        stack.callback(peers[1].stop)
        found = {peer.name: Found() for peer in peers}
        with ThreadPoolExecutor(len(peers)) as both:
            for peer, took_s in zip(peers, both.map(join_s, peers), strict=True):
                found[peer.name].join_s = took_s
        for number, peer in enumerate(peers):
            disks = [first.directory.disk(number * scene.leases + n) for n in range(scene.leases)]
            for disk in disks:
                first.make_lease(disk)
            stack.enter_context(owners_of_leases(peer, disks, found[peer.name]))
        for name, cost in window(peers, crowds, renewals, renewing=True).items():
            found[name].renewing = cost
        if takeovers:
            take_over_all(peers, first, fire_timeout_s, found)
        for name, cost in window(peers, crowds, renewals, renewing=False).items():
            found[name].silent = cost
        for peer in peers:
            found[peer.name].resident_mib = status_number(peer.pid, "VmRSS") / 1024
        return found


HEAD = (
    f"{'hosts':>6} {'spaces':>6} {'leases':>7} {'daemon':>10} | {'read/renewal':>13} {'written':>8} {'CPU s/h':>8} "
    f"| {'read/renewal':>13} {'written':>8} {'CPU s/h':>8} | {'share':>6} {'MiB':>6} {'join s':>7} "
    f"{'late s':>7} {'call ms':>8} {'leases/s':>9}"
)


def _median(numbers: Sequence[float]) -> float:
    return statistics.median(numbers) if numbers else float("nan")


def show(scene: Scene, found: dict[str, Found]) -> None:
    def text(cost: Cost | None) -> str:
        assert cost is not None
        return f"{cost.read:>13,.0f} {cost.written:>8,.0f} {cost.cpu_s_per_hour:>8.1f}"

    for name, each in found.items():
        share = f"{share_of(found):>6.3f}" if name == "holdfastd" else f"{'':>6}"
        print(
            f"{scene} {name:>10} | {text(each.renewing)} | {text(each.silent)} | {share} {each.resident_mib:>6.1f} "
            f"{each.join_s:>7.1f} {_median(each.late_s):>7.2f} {_median(each.call_s) * 1e3:>8.1f} "
            f"{each.leases_per_s:>9.0f}",
            flush=True,
        )


def share_of(found: dict[str, Found]) -> float:
    """What holdfastd reads, of what sanlock reads: the greater of both windows'."""
    ours, theirs = found["holdfastd"], found["sanlock"]
    assert ours.renewing and ours.silent and theirs.renewing and theirs.silent
    return max(ours.renewing.read / theirs.renewing.read, ours.silent.read / theirs.silent.read)


def show_growth(scenes: dict[Scene, dict[str, Found]]) -> None:
    """From the least to the greatest number of hosts, in one lockspace without leases."""
    sizes = sorted((s for s in scenes if s.lockspaces == 1 and not s.leases), key=lambda s: s.hosts)
    if len(sizes) < 2:
        return
    least, greatest = sizes[0], sizes[-1]
    for name in HOST_ID:
        costs = [(scenes[s][name].renewing, scenes[s][name].silent) for s in (least, greatest)]
        (few, few_silent), (many, many_silent) = costs
        assert few and few_silent and many and many_silent
        print(
            f"{name}: {greatest.hosts / least.hosts:.0f} times the hosts take "
            f"{many_silent.cpu_s_per_hour / few_silent.cpu_s_per_hour:.1f} times the processor time while nothing changes, "
            f"{many.cpu_s_per_hour / few.cpu_s_per_hour:.1f} times while all renew"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, nargs="*", default=[10, 100, 500, 2000])
    parser.add_argument(
        "--lockspaces", type=int, nargs="*", default=[5, 20], help=f"of {FEW_HOSTS} hosts each"
    )
    parser.add_argument(
        "--leases", type=int, nargs="*", default=[5000], help=f"held, beside {FEW_HOSTS} hosts"
    )
    parser.add_argument("--renewals", type=int, default=30, help="in one window")
    parser.add_argument("--fire-timeout", type=int, default=FIRE_TIMEOUT_S)
    parser.add_argument(
        "--no-takeovers",
        action="store_true",
        help="and no waiting for the dead bound: the silent hosts are not dead",
    )
    parser.add_argument("--small", action="store_true", help="a row of each kind, in less than a minute")
    chosen = parser.parse_args(arguments)
    if chosen.small:
        chosen.hosts, chosen.lockspaces, chosen.leases = [100], [2], [40]
        chosen.renewals, chosen.no_takeovers = 1, True
    raise_descriptor_limit()
    scenes = [Scene(hosts) for hosts in chosen.hosts]
    scenes += [Scene(FEW_HOSTS, lockspaces=n) for n in chosen.lockspaces]
    scenes += [Scene(FEW_HOSTS, leases=n) for n in chosen.leases]
    print(
        f"{'':>33} | {'other hosts renew':^31} | {'nothing changes':^31} | target: share at most {TARGET_SHARE}"
    )
    print(HEAD)
    measured: dict[Scene, dict[str, Found]] = {}
    for scene in scenes:
        measured[scene] = measure(
            scene, chosen.renewals, chosen.fire_timeout, takeovers=not chosen.no_takeovers
        )
        show(scene, measured[scene])
    show_growth(measured)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
