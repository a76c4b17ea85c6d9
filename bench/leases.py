"""Leases beside Debian's sanlock, on the same lease files in the same run.

python -m bench.leases

Acquire+release pairs per second and the latency of an acquire, with one client and with four; what a renewal reads; a
boot's worth of leases; what an idle lockspace costs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.lease_peers import IO_TIMEOUT_S, Client, LeaseDirectory, LeasePeer, LeasingHoldfastd, Sanlock
from bench.peers import end, raise_descriptor_limit, status_number
from bench.vms import fork_vms, speak

ROUNDS = 15
ROUND_S = 0.5
TARGET_RATIO = {2000: 1.2, 64: 4.0}
CLIENTS = (1, 4)
IDLE_S = 30.0
RENEWAL_S = 2 * IO_TIMEOUT_S
DEFAULT_RENEWALS_PER_HOUR = 3600 / 20


@contextmanager
def both(hosts_max: int) -> Iterator[tuple[LeasingHoldfastd, Sanlock]]:
    """Both daemons in one lockspace."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name, ExitStack() as stack:
        directory = LeaseDirectory(Path(name) / "x", hosts_max)
        ours = LeasingHoldfastd(directory)
        stack.callback(ours.stop)
        theirs = Sanlock(directory)
        stack.callback(theirs.stop)
        theirs.wait_joined()
        ours.wait_joined()
        yield ours, theirs


def run(clients: Sequence[Client], pairs: int) -> tuple[float, float]:
    """Pairs per second of all clients together, and the median of their median latencies."""
    begin = time.perf_counter()
    for client in clients:
        client.begin(pairs)
    latencies = [float(client.result()) for client in clients]
    return pairs * len(clients) / (time.perf_counter() - begin), statistics.median(latencies)


def pairs_per_second(peers: tuple[LeasingHoldfastd, Sanlock]) -> None:
    hosts_max = peers[0].directory.hosts_max
    with ExitStack() as stack:
        clients: dict[str, list[Client]] = {}
        for peer in peers:  # ours first: it makes the leases
            clients[peer.name] = [Client(peer, peer.directory.disk(n)) for n in range(max(CLIENTS))]
            for client in clients[peer.name]:
                stack.callback(client.end)
            run(clients[peer.name], 2)
        for count in CLIENTS:
            rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
            waits: dict[str, list[float]] = {peer.name: [] for peer in peers}
            lengths = {peer.name: 5 for peer in peers}
            for number in range(ROUNDS + 1):
                for name, some in clients.items():
                    rate, wait = run(some[:count], lengths[name])
                    if number == 0:
                        lengths[name] = max(3, int(rate / count * ROUND_S))
                    else:
                        rates[name].append(rate)
                        waits[name].append(wait)
            ratio = statistics.median(
                a / b for a, b in zip(rates["holdfastd"], rates["sanlock"], strict=True)
            )
            ours, theirs = (statistics.median(rates[name]) for name in ("holdfastd", "sanlock"))
            wait_ms, their_wait_ms = (statistics.median(waits[n]) * 1e3 for n in ("holdfastd", "sanlock"))
            print(
                f"{hosts_max:>6} {count:>8} {ours:>12.0f} {theirs:>10.0f} {ratio:>6.1f}x "
                f"{TARGET_RATIO[hosts_max]:>6.1f}x {wait_ms:>11.2f} {their_wait_ms:>11.2f}",
                flush=True,
            )


def read_bytes(pid: int) -> int:
    """Bytes that a process had read from storage (proc(5), /proc/PID/io)."""
    for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise KeyError("read_bytes")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def idle(peers: Sequence[LeasePeer]) -> None:
    """What one lockspace costs while nothing happens."""
    before = {peer.name: (read_bytes(peer.pid), cpu_s(peer.pid)) for peer in peers}
    begin = time.monotonic()
    time.sleep(IDLE_S)
    waited_s = time.monotonic() - begin
    per_hour = {}
    for peer in peers:
        renewals = waited_s / RENEWAL_S
        read, cpu = read_bytes(peer.pid) - before[peer.name][0], cpu_s(peer.pid) - before[peer.name][1]
        per_hour[peer.name] = read / renewals * DEFAULT_RENEWALS_PER_HOUR
        print(
            f"idle, one lockspace for {peer.directory.hosts_max} hosts: {peer.name} reads "
            f"{per_hour[peer.name] / 1e6:.1f} MB/h (io_timeout 10), {100 * cpu / waited_s:.2f} % CPU "
            f"(io_timeout {IO_TIMEOUT_S})"
        )
    share = per_hour["holdfastd"] / per_hour["sanlock"]
    print(
        f"  holdfastd reads {share:.3f} of what sanlock reads (target: at most 0.1); CPU target: at most 0.2 %"
    )


def boot(peer: LeasingHoldfastd, vms_count: int = 500) -> None:
    """Leases of VMs that all start at once, made and taken."""
    vms = fork_vms(vms_count, [peer.socket], peer.directory.place)
    try:
        for attempt in ("made and taken", "taken"):
            begin = time.perf_counter()
            for vm in vms:
                speak(peer.socket, vm.acquire)
            rate = 2 * vms_count / (time.perf_counter() - begin)
            print(f"{2 * vms_count} leases of {vms_count} VMs {attempt}: {rate:.0f} leases/s", flush=True)
            if attempt == "taken":
                break
            for vm in vms:
                speak(peer.socket, vm.release)
        resident = status_number(peer.pid, "VmRSS") / 1024
        print(f"resident memory with {2 * vms_count} leases: {resident:.1f} MiB (target: at most 80 MiB)")
    finally:
        end([vm.pid for vm in vms])


def main() -> int:
    raise_descriptor_limit()
    print("acquire+release pairs per second on the same leases (512-byte sectors, 1 MiB); medians")
    print(
        f"{'hosts':>6} {'clients':>8} {'holdfastd/s':>12} {'sanlock/s':>10} {'ratio':>7} {'target':>7} "
        f"{'acquire ms':>11} {'sanlock ms':>11}"
    )
    for hosts_max in TARGET_RATIO:
        with both(hosts_max) as peers:
            pairs_per_second(peers)
            if hosts_max == min(TARGET_RATIO):
                idle(peers)
                boot(peers[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
