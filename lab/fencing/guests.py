"""The running guests, by the commands of `lab/micro-hosts/mh`."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAB = Path(__file__).resolve().parents[1]
MICRO_HOSTS = LAB / "micro-hosts"
HOSTS = ("h1", "h2")
HOST_IDS = {"h1": 1, "h2": 2}
LEASE_DISK_MIB, OWNED_DISK_MIB = 256, 8
COMMAND_TIMEOUT_S = 180.0


class LabError(Exception):
    """The lab did not do what the scenario needs."""


def install_holdfast(python: Path) -> None:
    """What the guests run: this checkout and what it needs, in one directory that they share."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
        "--target",
        str(python),
    ]
    subprocess.run([*pip, str(LAB.parent)], check=True, stderr=subprocess.DEVNULL)


class Guests:
    """h1 and h2, with disks that both see: one for leases and one that is owned, if nothing else is asked for."""

    def __init__(
        self,
        place: Path,
        python: Path,
        sector_bytes: int,
        disks_mib: tuple[int, ...] = (LEASE_DISK_MIB, OWNED_DISK_MIB),
        *,
        shares: Sequence[Path] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`shares`: more directories that the guests see; `variables`: of `mh`, beside those that are set here."""
        self.run_dir = place
        self.python = python
        self.environment = {
            **os.environ,
            "MH_RUN": str(place),
            "MH_DISKS": ",".join(f"{mib}:{sector_bytes}" for mib in disks_mib),
            "MH_SHARE": ",".join(map(str, (python, LAB / "fencing" / "in_guest", *shares))),
            **(variables or {}),
        }

    def disk(self, number: int) -> Path:
        """The file outside that a shared disk is."""
        return self.run_dir / f"disk{number}.raw"

    def command(self, *arguments: str) -> list[str]:
        """The words of a call of `mh`; it needs `environment`."""
        return [str(MICRO_HOSTS / "mh"), *arguments]

    def mh(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
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

    def put(self, host: str, command: str, raw: bytes) -> None:
        """A command that reads `raw`."""
        done = subprocess.run(
            self.command("sh", "-i", "-t", "150", host, command),
            env=self.environment,
            input=raw,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"{host}: {command}: {done.returncode}\n{done.stderr.decode()}")

    def try_sh(self, host: str, command: str) -> str | None:
        """None if it failed or the host is away."""
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            return self.sh(host, command)
        return None

    def boot(self, host: str) -> str:
        return self.mh("boot", host).split()[0]

    def fired(self, host: str, since: float) -> float | None:
        """When the watchdog of a guest fired first, by the clock outside."""
        rows = (line.split(" ") for line in self.mh("events", host).splitlines())
        times = [float(at) for at, _, event, *_ in rows if event == "WATCHDOG" and float(at) >= since]
        return min(times, default=None)

    def down(self) -> None:
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            self.mh("down")
