"""`make test`'s pytest: tier by tier, in two lanes that take about as long, because much of it is waiting: for a real
sanlock's timeouts, and for leases that daemons lose.

    tools/run_tests.py                      all tiers, without the tests that wait for minutes (marked `long`)
    tools/run_tests.py --all                those too: beyond the budgets, with the whole machine to itself
    tools/run_tests.py --tiers unit,daemon  those tiers, as far as they are not long
    tools/run_tests.py ARGUMENTS...         pytest with these arguments, for one test or a few

The second lane's output is shown when it has ended, then a table: each tier's seconds beside its budget, and pytest's own
closing line. A tier beyond its budget is marked, and no failure: machines differ. The exit status is 0 only if all are well.

Peers and daemons are tested with timeouts of a second, which a machine that stands still for longer breaks. So a few
failures of a tier that waits for real clocks are run once more when both lanes have ended, with nothing beside them. What
passes then is listed as flaky: its first output stands above. It is a fault of a test or of the product, still to be found.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(".pytest_cache")
MOST_FLAKY = 5
"""So many failures of a tier are run once more; more than that are no accident."""
TESTS_FAILED = 1
"""pytest's exit status when tests failed and nothing else went wrong."""


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    budget_s: int
    """About one and a half times what it takes on two idle cores, beside the other lane."""
    processes: int = 1
    """How many run its tests at once: of those that mostly wait, for leases that expire and for daemons that start."""
    spread: str = "load"
    """pytest-xdist's --dist: one process runs all tests of a file or group, where they share what a host has once."""
    clocks: bool = False
    """Its tests wait for real programs and real time."""

    @property
    def cache(self) -> Path:
        """Of its own: two lanes write at once."""
        return CACHE / self.name

    def failures(self) -> list[str]:
        """The tests that failed in the run that has just ended."""
        try:
            return sorted(json.loads((self.cache / "v/cache/lastfailed").read_text()))
        except FileNotFoundError:
            return []


LANES = (
    (
        Tier("unit", 120),
        Tier("planted", 420),
        Tier("daemon", 800, processes=5, clocks=True),
        Tier("systemd", 450, clocks=True),
    ),
    (
        Tier("contract", 120),
        Tier("interop", 400, processes=3, spread="loadgroup", clocks=True),
        Tier("sim", 650),
        Tier("e2e", 600, processes=2, spread="loadfile", clocks=True),
    ),
)


@dataclass(slots=True)
class Ran:
    """One tier that has ended."""

    tier: Tier
    status: int
    seconds: float
    cpu_s: float
    """Processor time of its processes, as far as their parents waited for them."""
    closing: str

    def __str__(self) -> str:
        mark = " " if self.seconds <= self.tier.budget_s else "!"
        took = f"{self.seconds:6.0f} s of {self.tier.budget_s:4} s {mark} processor {self.cpu_s:4.0f} s"
        return f"{self.tier.name:10}{took}  {self.closing}"


@dataclass(slots=True)
class Lane:
    tiers: list[Tier]
    live: bool
    long_too: bool = False
    output: bytearray = field(default_factory=bytearray)
    ran: list[Ran] = field(default_factory=list)

    def run(self) -> None:
        for tier in self.tiers:
            self._show(f"=== {tier.name} (budget {tier.budget_s} s)\n".encode())
            began = time.monotonic()
            process = subprocess.Popen(
                [*_pytest(tier), "--cache-clear", *_spread(tier), *self._chosen(), f"tests/{tier.name}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdout is not None
            last = b""
            try:
                while piece := os.read(process.stdout.fileno(), 65536):
                    self._show(piece)
                    last = (last + piece)[-4096:]
                _, waited, used = os.wait4(process.pid, 0)
                status = process.returncode = os.waitstatus_to_exitcode(waited)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()
            lines = last.decode(errors="replace").strip().splitlines()
            closing = lines[-1] if lines else "no output"
            self.ran.append(
                Ran(tier, status, time.monotonic() - began, used.ru_utime + used.ru_stime, closing)
            )

    def _chosen(self) -> list[str]:
        return [] if self.long_too else ["-m", "not long"]

    def _show(self, piece: bytes) -> None:
        if self.live:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        else:
            self.output += piece


def _pytest(tier: Tier) -> list[str]:
    return [sys.executable, "-m", "pytest", "-o", f"cache_dir={tier.cache}"]


def passed_alone(ran: Ran) -> list[str]:
    """Run the few failures of a tier with real clocks once more, and nothing beside them: those, if all passed."""
    failed = ran.tier.failures() if ran.tier.clocks and ran.status == TESTS_FAILED else []
    if not 0 < len(failed) <= MOST_FLAKY:
        return []
    print(f"=== {ran.tier.name}: {len(failed)} failed, once more with nothing beside", flush=True)
    again = [
        *_pytest(ran.tier),
        "--last-failed",
        "--last-failed-no-failures",
        "none",
        f"tests/{ran.tier.name}",
    ]
    return failed if subprocess.run(again, check=False).returncode == 0 else []


def _spread(tier: Tier) -> list[str]:
    if tier.processes == 1:
        return []
    return ["-n", str(tier.processes), "--dist", tier.spread]


def lanes_of(names: list[str]) -> tuple[list[Tier], list[Tier]]:
    """The tiers of these names. Where few are wanted, one of the second lane goes to the first if that evens them out."""
    first, second = ([tier for tier in lane if tier.name in names] for lane in LANES)
    budgets = [sum(tier.budget_s for tier in lane) for lane in (first, second)]
    if len(second) > 1 and budgets[0] + second[0].budget_s < budgets[1]:
        first.append(second.pop(0))
    return first, second


def main(arguments: list[str]) -> int:
    names = [tier.name for lane in LANES for tier in lane]
    long_too = arguments[:1] == ["--all"]
    if long_too:
        arguments = arguments[1:]
    if arguments[:1] == ["--tiers"]:
        wanted = " ".join(arguments[1:]).replace(",", " ").split()
        if unknown := [name for name in wanted if name not in names]:
            print(f"there is no tier {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
            return 2
        names = wanted
    elif arguments:
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
    for folder in ("src", "tests"):
        # An environment may forbid Python to keep bytecode: hundreds of daemons would compile every module at their start.
        compileall.compile_dir(folder, quiet=2)
    os.sync()  # what was just installed is written back now, not under leases with timeouts of a second
    first, second = (Lane(tiers, live=n == 0, long_too=long_too) for n, tiers in enumerate(lanes_of(names)))
    beside = threading.Thread(target=second.run)
    beside.start()
    first.run()
    beside.join()
    sys.stdout.buffer.write(bytes(second.output))
    sys.stdout.buffer.flush()
    ran = first.ran + second.ran
    flaky = {each.tier.name: passed_alone(each) for each in ran}
    print("\n".join(map(str, ran)))
    for names in flaky.values():
        for name in names:
            print(f"flaky: {name} failed, and passed alone")
    return max((each.status for each in ran if not flaky[each.tier.name]), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
