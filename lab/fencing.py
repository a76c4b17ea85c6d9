"""A host that can't renew its lease is made harmless before another takes over, and the other does not wait too long.

Two guests with their own kernel and watchdog (micro-hosts) share a raw disk; holdfastd on both, `watchdog = "device"`.
h1 holds a disk, then something happens to h1, and h2 tries to take the disk over, again and again:

    cause ──► h1 can't renew …… its lease fails ──► its owner is ended, or its watchdog fires ──► h2 is granted
    |<------------------ 8 io_timeouts + fire timeout after the last renewal, not earlier ------>|

    lab/fencing.py [--io-timeout S] [--fire-timeout S] [--sector 512|4096] [CAUSE ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAB = Path(__file__).resolve().parent
MICRO_HOSTS = LAB / "micro-hosts"
CAUSES = ("kill9", "hang", "error", "freeze", "power")
DISK = "/srv/web.raw"
LEASES = "/dev/disk/by-id/virtio-disk0"
ENDED = "/srv/owner-ended"
"""Written in a guest when its owner has ended: the guest's time."""
ALIVE = re.compile(r"alive (\d+) s ago")
CONTROL_S = 30.0
"""With nothing wrong no host may be reset for so long: else a later reset proves nothing."""
JOIN_TIMEOUT_S = 120.0
SLACK_S = 6.0
"""Emulated guests on two cores: a command takes a second, and h2 asks once a second."""


class LabError(Exception):
    """The lab did not do what the scenario needs."""


class Lab:
    """The running guests."""

    def __init__(self, place: Path, sector: int) -> None:
        self.place = place
        self.python = place / "python"
        self._environment = {
            **os.environ,
            "MH_RUN": str(place / "run"),
            "MH_DISKS": f"256:{sector}",
            "MH_SHARE": str(self.python),
        }

    def mh(self, *arguments: str, timeout_s: float = 180.0) -> str:
        done = subprocess.run(
            [str(MICRO_HOSTS / "mh"), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise LabError(f"mh {shlex.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def sh(self, host: str, command: str) -> str:
        return self.mh("sh", "-t", "150", host, command)

    def try_sh(self, host: str, command: str) -> str | None:
        """None if it failed or the host is away."""
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            return self.sh(host, command)
        return None

    def holdfast(self, *arguments: str) -> str:
        return f"PYTHONPATH={self.python} python3 -m holdfast.cli.main {shlex.join(arguments)}"

    def events(self, host: str, name: str, since: float) -> list[float]:
        """When QEMU told of an event of that name, as seconds since the epoch."""
        lines = (line.split(" ") for line in self.mh("events", host).splitlines())
        return [float(at) for at, _, event, *_ in lines if event == name and float(at) >= since]


class Scenario:
    """holdfastd on both hosts; h1 has the disk."""

    def __init__(self, lab: Lab, io_timeout_s: int, fire_timeout_s: int) -> None:
        self.lab = lab
        self.renewal_s = 2 * io_timeout_s
        self.dead_s = 8 * io_timeout_s + fire_timeout_s
        self._config = (
            'run_dir = "/run/holdfast"\nstate_dir = "/var/lib/holdfast"\n'
            '[virtlockd]\nsocket = "/run/holdfast/virtlockd-sock"\n'
            f'[backend.san]\ndriver = "paxos"\ndevice = "{LEASES}"\nlockspace = "lab"\nhost_id = "auto"\n'
            f'watchdog = "device"\nio_timeout_s = {io_timeout_s}\nfire_timeout_s = {fire_timeout_s}\nhosts_max = 64\n'
            '[[disk]]\nmatch = "*"\nbackend = "san"\n'
        )

    def prepare(self) -> None:
        self.lab.sh(
            "h1",
            self.lab.holdfast(
                "lockspace", "init", LEASES, "--name", "lab", "--hosts-max", "64", "--index", "16"
            ),
        )
        for host in ("h1", "h2"):
            self.start(host)

    def start(self, host: str) -> None:
        """holdfastd on a host that has none."""
        self.lab.sh(
            host,
            f"modprobe -q i6300esb; mkdir -p /srv /run/holdfast /var/lib/holdfast; touch {DISK}; hostname {host}; "
            f"printf %s {shlex.quote(self._config)} > /srv/holdfast.toml; "
            f"PYTHONPATH={self.lab.python} setsid python3 -m holdfast.daemon --config /srv/holdfast.toml "
            ">/srv/holdfastd.log 2>&1 </dev/null & echo $! > /srv/holdfastd.pid",
        )
        self.wait_joined(host)

    def wait_joined(self, host: str) -> None:
        until = time.monotonic() + JOIN_TIMEOUT_S
        while "joined" not in (self.lab.try_sh(host, self.holdfast_c("lockspace", "list")) or ""):
            if time.monotonic() > until:
                raise LabError(f"{host} did not join:\n{self.lab.sh(host, 'cat /srv/holdfastd.log')}")
            time.sleep(1)

    def holdfast_c(self, *arguments: str) -> str:
        return f"HOLDFAST_CONFIG=/srv/holdfast.toml {self.lab.holdfast(*arguments)}"

    def hold(self, host: str) -> None:
        run = self.holdfast_c("run", "--disk", DISK, "--name", f"vm-on-{host}", "--", "sleep", "3600")
        self._ahead_s = float(self.lab.sh(host, "date +%s.%N")) - time.time()
        whole = f"({run}; date +%s.%N > {ENDED}) >/srv/run.log 2>&1 </dev/null &"
        self.lab.sh(host, f"rm -f {ENDED}; {whole} sleep 4; cat /srv/run.log")

    def refusal(self, host: str) -> str:
        return self.lab.sh(
            host, f"{self.holdfast_c('run', '--disk', DISK, '--', 'true')} 2>&1 || true"
        ).strip()

    def strike(self, cause: str) -> None:
        """What happens to h1."""
        if cause == "kill9":
            self.lab.sh("h1", "kill -9 $(cat /srv/holdfastd.pid)")
        elif cause in ("hang", "error"):
            self.lab.mh("disk", "h1", cause)
        elif cause == "freeze":
            self.lab.mh("freeze", "h1")
        else:
            self.lab.mh("kill", "h1")

    def show(self, cause: str) -> dict[str, object]:
        """One cause from start to end; raises `LabError` when a bound is broken."""
        self.hold("h1")
        told = self.refusal("h2")
        if "h1" not in told:
            raise LabError(f"h2's refusal does not name h1: {told}")
        boots = {host: self.lab.mh("boot", host).split()[0] for host in ("h1", "h2")}
        struck_at = time.time()
        self.strike(cause)
        granted_at, seen_at = 0.0, struck_at
        while not granted_at and time.time() - struck_at < 4 * self.dead_s:
            asked_at = time.time()
            told_now = self.refusal("h2")
            if not told_now:
                granted_at = asked_at
            elif alive := ALIVE.search(told_now):
                # A renewal that hung may land late, and h2 counts anew: that is as it must be.
                seen_at = max(seen_at, asked_at - float(alive[1]) - 1)
        counted_s = granted_at - seen_at
        by, gone_s = self._gone(cause, struck_at)
        found: dict[str, object] = {
            "cause": cause,
            "refusal": told,
            "made harmless by": by,
            "after_s": round(gone_s, 1),
            "takeover_s": round(granted_at - struck_at, 1) if granted_at else None,
            "after_last_sign_of_life_s": round(counted_s, 1),
            "not_before_s": self.dead_s - self.renewal_s,
            "not_after_s": self.dead_s + self.renewal_s + SLACK_S,
        }
        print(json.dumps(found), flush=True)
        if not granted_at or counted_s > self.dead_s + self.renewal_s + SLACK_S:
            raise LabError(f"{cause}: h2 got the disk too late or never")
        if min(counted_s, granted_at - struck_at) < self.dead_s - self.renewal_s:
            raise LabError(f"{cause}: h2 got the disk too early")
        if gone_s > granted_at - struck_at:
            raise LabError(f"{cause}: h2 got the disk before h1 was harmless")
        if self.lab.mh("boot", "h2").split()[0] != boots["h2"]:
            raise LabError(f"{cause}: h2 was reset too")
        if by == "the power":
            self.lab.mh("start", "h1")
        if by == "the watchdog":
            self.lab.mh("wait", "-t", "90", "h1", boots["h1"])
        if by == "the ladder":
            self.wait_joined("h1")
        else:
            self.start("h1")
        return found

    def _gone(self, cause: str, struck_at: float) -> tuple[str, float]:
        """What made h1's owner harmless, and how many seconds after the cause."""
        if cause == "power":
            return "the power", 0.0
        if cause in ("hang", "error"):
            self.lab.mh("disk", "h1", "ok")  # a host whose disk hangs would hang in its next boot
        if fired := self.lab.events("h1", "WATCHDOG", struck_at):
            return "the watchdog", fired[0] - struck_at
        ended = self.lab.try_sh("h1", f"test -s {ENDED} && cat {ENDED}")
        if ended is None:
            raise LabError(f"{cause}: h1 was not reset, and its owner still runs")
        return "the ladder", float(ended) - self._ahead_s - struck_at


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("causes", nargs="*", metavar="CAUSE", help=f"of {', '.join(CAUSES)}; default: all")
    parser.add_argument("--io-timeout", type=int, default=2)
    parser.add_argument("--fire-timeout", type=int, default=10)
    parser.add_argument("--sector", type=int, choices=(512, 4096), default=512)
    options = parser.parse_args()
    causes = options.causes or list(CAUSES)
    if wrong := set(causes) - set(CAUSES):
        parser.error(f"unknown cause {', '.join(sorted(wrong))}; known: {', '.join(CAUSES)}")
    subprocess.run([str(MICRO_HOSTS / "build")], check=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as name:
        lab = Lab(Path(name), options.sector)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "-q",
            "--target",
            str(lab.python),
        ]
        subprocess.run([*pip, str(LAB.parent)], check=True, stderr=subprocess.DEVNULL)
        try:
            print(lab.mh("up", "2"), end="", flush=True)
            scenario = Scenario(lab, options.io_timeout, options.fire_timeout)
            scenario.prepare()
            started = time.time()
            scenario.hold("h1")
            time.sleep(CONTROL_S)
            if any(lab.events(host, "WATCHDOG", started) for host in ("h1", "h2")):
                raise LabError("a host was reset with nothing wrong")
            print(f"control: no reset in {CONTROL_S:.0f} s with nothing wrong", flush=True)
            lab.sh("h1", "pkill -x sleep; sleep 1")  # what `holdfast run` runs
            for cause in causes:
                scenario.show(cause)
        except LabError as e:
            print(f"FAILED {e}", file=sys.stderr)
            for host in ("h1", "h2"):
                print(
                    f"--- holdfastd on {host}\n{lab.try_sh(host, 'tail -30 /srv/holdfastd.log')}",
                    file=sys.stderr,
                )
            return 1
        finally:
            with contextlib.suppress(LabError):
                lab.mh("down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
