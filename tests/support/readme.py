"""README's block "Two hosts, from the package", read as commands, and the steps that any two hosts can play.

`tests/systemd/test_readme.py` plays them in root file systems on one kernel, `lab/readme` in guests with a kernel and a
watchdog each. What a host lacks is added to README's commands by who plays them, and said there.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PROJECT = Path(__file__).resolve().parents[2]
HERE = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
RELEASES = {"bookworm": "12", "trixie": "13"}
"""As the packages' versions have them."""
BLOCK = "## Two hosts, from the package"
PROTECTED_WITHIN_S = 120.0
UNEXPLAINED_S = 3.0
"""A last look at the host takes up to that; the wait for a lease that has just been claimed is longer."""


class Host(Protocol):
    """Where commands run, as root, in /root."""

    @property
    def name(self) -> str:
        """README's name of it."""

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]: ...

    def run(self, command: str) -> str:
        """Both outputs; raises an `AssertionError` if the command fails."""

    def lines(self, command: str) -> list[tuple[float, str]]:
        """The same by lines, with the seconds since the command was begun."""


def timed_lines(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[int, list[tuple[float, str]]]:
    """A program's exit status, and the lines of both its outputs with the seconds since it began."""
    began = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = [(time.monotonic() - began, line.rstrip("\n")) for line in process.stdout]
    return process.returncode, said


@dataclass(frozen=True, slots=True)
class Line:
    """One of README's commands: `who` is the host's name, or "both"; `note` is what the page says of it."""

    command: str
    who: str
    note: str


def lines_of_readme() -> list[Line]:
    """The commands of the block, in their order."""
    text = (PROJECT / "README.md").read_text()
    block = text.split(f"{BLOCK}\n", 1)[1].split("\n## ", 1)[0]
    found = []
    for line in block.splitlines():
        if not line.startswith("    "):
            continue
        command, _, note = line.strip().partition(" # ")
        who = re.match(r"\w+", note.strip())
        assert who, f"README does not say where {command!r} is run"
        found.append(Line(command.strip(), who[0], note.strip()))
    return found


class Page:
    """README's commands are taken from it one by one, so that none is left out and none is made up."""

    def __init__(self) -> None:
        self._lines = lines_of_readme()

    def next(self, who: str, begin: str) -> Line:
        line = self._lines.pop(0)
        assert (line.who, line.command[: len(begin)]) == (who, begin), f"README says {line}"
        return line

    def is_done(self) -> bool:
        return not self._lines


@dataclass(frozen=True, slots=True)
class Protected:
    """How long it took from the package to a protected host: its parts, in seconds."""

    name: str
    apt_s: float
    setup_s: float
    """Without the wait for the lease."""
    lease_s: float

    @property
    def took_s(self) -> float:
        """Without the wait for the lease."""
        return self.apt_s + self.setup_s

    def __str__(self) -> str:
        return (
            f"{self.name}: protected {self.took_s + self.lease_s:.1f} s after the package (apt {self.apt_s:.1f} s, "
            f"setup {self.setup_s:.1f} s, lease {self.lease_s:.1f} s)"
        )


def build_packages(place: Path, suite: str = HERE) -> Path:
    """`place` gets `build/deb`, as `make deb` leaves it in a checkout. For another release than this one only what is
    committed takes part.
    """
    there = [] if suite == HERE else [f"DISTRO={suite}"]
    made = subprocess.run(
        ["make", "-s", "deb", *there], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True, timeout=900
    ).stdout.split()
    (place / "build/deb").mkdir(parents=True)
    ours = f"+deb{RELEASES[suite]}_" if suite in RELEASES else ""
    for each in made:
        if each.endswith(".deb") and ours in each:
            shutil.copy(PROJECT / each, place / "build/deb")
    return place


def show(host: Host, said: list[tuple[float, str]]) -> None:
    for at, line in said:
        print(f"{host.name} {at:6.1f} s  {line}", flush=True)


def protect(
    page: Page,
    alpha: Host,
    beta: Host,
    added: str,
    *,
    within_s: float = PROTECTED_WITHIN_S,
    unexplained_s: float = UNEXPLAINED_S,
) -> list[Protected]:
    """From the package to two protected hosts. `added`: what these hosts add to README's `holdfast setup`. The bounds are
    those of a real machine; an emulated one has others.
    """
    install = page.next("both", "apt install ")
    leases = page.next("alpha", "holdfast setup --leases ")
    join = page.next("beta", "holdfast setup --join ")
    found = []
    for host, command in ((alpha, leases.command), (beta, join.command)):
        began = time.monotonic()
        host.run(install.command.replace("apt install", "apt-get install -y", 1))
        installed = time.monotonic()
        waited = _setup(host, f"{command} {added}", unexplained_s)
        took = time.monotonic() - installed
        found.append(Protected(host.name, installed - began, took - waited, waited))
        print(found[-1], flush=True)
        assert found[-1].took_s < within_s, found[-1]
    return found


def _setup(host: Host, command: str, unexplained_s: float) -> float:
    """Carries README's setup out and shows it; the seconds that its lease needed, which it gives a reason for."""
    said = host.lines(command)
    show(host, said)
    assert "this host is set up" in said[-1][1], said
    joining = next((at for at, line in said if re.match(r"\d+/\d+ .*join", line)), None)
    if joining is None:
        return 0.0  # the steps before have taken longer than the lease needed
    reasons = [line for at, line in said if at >= joining and re.match(r"    \w+: .", line)]
    ended = said[-1][0]
    assert reasons or ended - joining < unexplained_s, f"the wait for the lockspace has no reason: {said}"
    return ended - joining


def one_vm_one_host(page: Page, alpha: Host, beta: Host, await_writes: Callable[[], None]) -> None:
    """The VM runs on alpha, and beta is refused with the holder's name."""
    alpha.run(page.next("alpha", "virsh start").command)
    await_writes()
    second = page.next("beta", "virsh start")
    refused = beta.try_run(second.command)
    print(f"beta: {second.command}: {refused.stderr.strip()}", flush=True)
    assert refused.returncode != 0
    assert "locked by VM web1" in refused.stderr
    assert "on host alpha" in refused.stderr


def open_page(page: Page, hosts: Sequence[Host]) -> None:
    """The page and the metrics of each host answer."""
    enable = page.next("both", "systemctl enable --now holdfast-web")
    [url] = re.findall(r"http://\S+", enable.note)
    for host in hosts:
        host.run(enable.command)
        shown = host.run(
            f"curl --silent --show-error --fail --retry 20 --retry-connrefused --retry-delay 1 {url}"
        )
        assert "<title>" in shown.lower()
        metrics = host.run(f"curl --silent --show-error --fail {url}metrics")
        assert "holdfast_" in metrics
