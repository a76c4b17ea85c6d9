"""`python -m lab.readme`: README's commands one by one, then how alpha may end, each step with its seconds."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

from lab import readme
from lab.fencing.guests import Guests, LabError
from lab.readme.hosts import GuestHost, Storage, build_images, prepare, wait
from lab.readme.verdict import CAUSES, NOISE_S, Cause, Takeover
from tests.support.readme import RELEASES, Page, build_packages, one_vm_one_host, open_page, protect
from tests.systemd.root_host import SUITE

from holdfast.cli.setup.profiles import PROFILES

PROFILE = "balanced"
ADDED = f"--profile {PROFILE} --yes"
"""What these hosts add to README's `holdfast setup`: no question, and the shortest timeouts that hosts as slow as these can
keep. With "fast" (10 s for the watchdog) a reload there is refused, or resets the host."""
TIMING = PROFILES[PROFILE]
PROTECTED_WITHIN_S = 400.0
"""A real host's bound is 120 s. Here a processor is emulated, and other work may have most of it."""
REBOOT_S = 180.0
UNEXPLAINED_S = 20.0
"""A last look at the host takes longer here."""


class Lab:
    """One run."""

    def __init__(self, place: Path, variables: dict[str, str], packages: Path) -> None:
        self._place = place
        self._packages = packages
        self.guests = Guests(place / "guests", place, 512, (8,), variables=variables)
        self.alpha, self.beta = (GuestHost(self.guests, name) for name in ("alpha", "beta"))
        self.storage = Storage(self.guests)
        self._began = self._said = time.monotonic()

    def say(self, text: str) -> None:
        """With the seconds of all and of this step."""
        now = time.monotonic()
        print(f"readme: {now - self._began:5.0f} s (+{now - self._said:.1f})  {text}", flush=True)
        self._said = now

    def run(self, causes: tuple[Cause, ...]) -> None:
        self.guests.mh("up", "3", timeout_s=300)
        self.storage.serve(self._place)
        for host in (self.alpha, self.beta):
            host.await_boot()
        self.say("alpha and beta have booted, store serves their directory")
        for host in (self.alpha, self.beta):
            prepare(host, self._packages)
        self.say("the directory is mounted, web1 is defined, the packages are there")
        self.follow()
        for cause in causes:
            if cause == "reboot":
                self.reboot()
            else:
                self.take_over(cause)

    def follow(self) -> None:
        """README's lines, up to the one that vouches for a dead host: nobody does, the bound is waited for."""
        page = Page()
        protect(page, self.alpha, self.beta, ADDED, within_s=PROTECTED_WITHIN_S, unexplained_s=UNEXPLAINED_S)
        self.say("both hosts are protected")
        for host in (self.alpha, self.beta):
            self.has_watchdog(host)
        one_vm_one_host(page, self.alpha, self.beta, self.storage.await_writes)
        self.say("web1 runs on alpha, and beta is refused")
        open_page(page, (self.alpha, self.beta))
        self.say("the page and /metrics answer on both")
        vouched = page.next("beta", "holdfast host fenced alpha")
        assert "without it: once alpha is dead by its record" in vouched.note, vouched
        self.start = page.next("beta", "virsh start").command
        assert page.is_done()

    def has_watchdog(self, host: GuestHost) -> None:
        """holdfastd has the device open, with the profile's fire timeout."""
        holder = host.run(
            "basename $(readlink -f /proc/$(systemctl show -P MainPID holdfastd)/fd/* | grep -m1 watchdog)"
        )
        armed = host.run(
            "cat /sys/class/watchdog/watchdog0/state /sys/class/watchdog/watchdog0/timeout"
        ).split()
        if not holder.startswith("watchdog") or armed != ["active", str(TIMING.fire_timeout_s)]:
            raise LabError(f"{host.name}: holdfastd does not feed the watchdog: {holder}, {armed}")

    def take_over(self, cause: Cause) -> None:
        """alpha ends with web1; beta starts it after the bound; alpha comes back, and both say why it ended."""
        self.storage.await_writes()
        boot = self.alpha.boot()
        self.say(f"== {cause}: {CAUSES[cause]}")
        struck, struck_wall = time.monotonic(), time.time()
        if cause == "power":
            self.guests.mh("kill", "h1")
        elif cause == "freeze":
            self.guests.mh("freeze", "h1")
        else:
            self.guests.mh("link", "h1", "down")
        takeover = self._start_on_beta(cause, struck, struck_wall)
        fired = takeover.fired
        reset = f"; the watchdog fired after {fired:.1f} s" if fired else ""
        self.say(
            f"web1 runs on beta, {takeover.ended:.1f} s after that, by try {len(takeover.refusals) + 1}{reset}"
        )
        if broken := takeover.broken(TIMING):
            raise LabError("; ".join(broken))
        self.storage.await_writes()
        self._back(cause, boot, was_reset=fired is not None)

    def reboot(self) -> None:
        """alpha shuts its VM down and leaves the lockspace while its storage is still there: beta need not wait for the
        dead bound. Then alpha joins again, and web1 moves back.
        """
        self.storage.await_writes()
        wait(
            lambda: self._state("alpha") == "LIVE", "alpha to be LIVE for beta", TIMING.claim_held_s[1] + 60.0
        )
        boot = self.alpha.boot()
        self.say(f"== reboot: {CAUSES['reboot']}")
        struck, struck_wall = time.monotonic(), time.time()
        self.alpha.try_run("systemctl reboot")
        takeover = self._start_on_beta("reboot", struck, struck_wall)
        self.say(f"web1 runs on beta, {takeover.ended:.1f} s after that, by try {len(takeover.refusals) + 1}")
        if broken := takeover.broken(TIMING):
            raise LabError("; ".join(broken))
        self.storage.await_writes()
        self.alpha.await_boot(boot)
        self.say("alpha has booted again")
        if (fired := self.guests.fired("h1", struck_wall)) is not None:
            raise LabError(f"alpha's watchdog fired {fired - struck_wall:.1f} s after its reboot was ordered")
        self._await_joined()
        self._explained("orderly")
        refused = self.alpha.try_run("virsh start web1")
        if refused.returncode == 0 or "on host beta" not in refused.stderr:
            raise LabError(f"alpha was not refused web1, which runs on beta: {refused}")
        self.beta.run("virsh destroy web1")
        self.alpha.run("virsh start web1")
        self.storage.await_writes()
        self.say("web1 runs on alpha again")

    def _start_on_beta(self, cause: Cause, struck: float, struck_wall: float) -> Takeover:
        """Try after try until it was started, or for far too long."""
        refusals: list[str] = []
        while True:
            began = time.monotonic() - struck
            done = self.beta.try_run(self.start)
            ended = time.monotonic() - struck
            if done.returncode == 0:
                print(f"beta: the last refusal: {refusals[-1:]}", flush=True)
                fired = self.guests.fired("h1", struck_wall)
                since = None if fired is None else fired - struck_wall
                return Takeover(cause, began, ended, since, tuple(refusals))
            refusals.append(f"{began:.1f} s: {' '.join(done.stderr.split())}")
            if began > TIMING.takeover_s[1] + 2 * NOISE_S:
                raise LabError(f"beta does not get web1: {refusals}")

    def _back(self, cause: Cause, boot: str, *, was_reset: bool) -> None:
        """alpha joins again, is refused web1, and says why it ended; then web1 moves back there."""
        if cause == "power":
            self.guests.mh("start", "h1", timeout_s=300)
        elif cause == "network":
            self.guests.mh("link", "h1", "up")
        if cause == "power" or was_reset:
            self.alpha.await_boot(boot)
            self.say("alpha has booted again")
        self._await_joined()
        if cause == "network" and not was_reset:
            # Its VM was paused for the lost lockspace, and has no lock any more.
            state = self.alpha.run("virsh domstate web1").strip()
            resumed = self.alpha.try_run("virsh resume web1")
            if state != "paused" or resumed.returncode == 0 or "on host beta" not in resumed.stderr:
                raise LabError(f"web1 is {state} on alpha, and its resume was not refused: {resumed}")
            self.alpha.run("virsh destroy web1")
        refused = self.alpha.try_run("virsh start web1")
        if refused.returncode == 0 or "on host beta" not in refused.stderr:
            raise LabError(f"alpha was not refused web1, which runs on beta: {refused}")
        if cause == "power" or was_reset:
            # Of a lost lockspace there is a note, of a processor that stopped the device's word, of a power cut nothing.
            self._explained("unexplained" if cause == "power" else "watchdog")
        self.beta.run("virsh destroy web1")
        self.alpha.run("virsh start web1")
        self.storage.await_writes()
        self.say("web1 was moved back to alpha")

    def _await_joined(self) -> None:
        bound_s = TIMING.claim_held_s[1] + 60.0
        wait(
            lambda: "joined" in self.alpha.try_run("holdfast lockspace list").stdout, "alpha to join", bound_s
        )
        wait(lambda: self._state("alpha") == "LIVE", "alpha to be LIVE for beta", bound_s)
        self.say("alpha is in the lockspace again")

    def _state(self, name: str) -> str:
        """Of the host, as beta sees it."""
        listed = self.beta.run("holdfast host list")
        found = re.search(rf"^\d+\t{name}\.\w+\t(\w+)\t", listed, re.MULTILINE)
        if found is None:
            raise LabError(f"beta does not list {name}: {listed}")
        return found[1]

    def _explained(self, expected: str) -> None:
        """What alpha says of itself, and beta of alpha."""
        said = json.loads(self.alpha.run("holdfast explain-reset --json"))
        print(f"alpha: holdfast explain-reset: {said['text']}", flush=True)
        by_beta = self.beta.run("holdfast explain-reset alpha")
        print(f"beta: holdfast explain-reset alpha: {by_beta}", flush=True)
        if said["cause"] != expected or said["text"][:60] not in by_beta:
            raise LabError(f"explain-reset says {said['cause']}, not {expected}, or beta says something else")
        self.say("both say how alpha's last boot ended")

    def logs(self) -> None:
        for host in (self.alpha, self.beta):
            done = host.try_run(
                "journalctl --no-pager -b -u holdfastd -u libvirtd | grep -v Unknown.key | tail -n 60; "
                "holdfast host list | grep -v FREE; holdfast list; mount -t nfs4"
            )
            print(f"--- {host.name}\n{done.stdout}{done.stderr}", flush=True)


def main() -> int:
    causes, suite = _asked()
    began = time.monotonic()
    variables = build_images(suite)
    with tempfile.TemporaryDirectory(prefix="holdfast-readme-") as directory:
        place = Path(directory)
        lab = Lab(place, variables, build_packages(place, suite))
        try:
            lab.run(causes)
        except (LabError, AssertionError) as e:
            print(f"FAILED: {e}\n{traceback.format_exc()}", flush=True)
            lab.logs()
            return 1
        finally:
            lab.guests.down()
    print(
        f"README was followed on {suite}, and {len(causes)} times alpha's end: "
        f"{(time.monotonic() - began) / 60:.0f} minutes"
    )
    return 0


def _asked() -> tuple[tuple[Cause, ...], str]:
    """The cases, and the hosts' release."""
    about = "\n".join(f"  {name:8} {text}" for name, text in CAUSES.items())
    parser = argparse.ArgumentParser(
        prog="python -m lab.readme",
        description=f"{readme.__doc__}\ncases:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--distro", choices=RELEASES, default=SUITE,
        help="the hosts' Debian release; of another one than this machine's, packages of what is committed",
    )  # fmt: skip
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    asked = parser.parse_args()
    words = asked.cases
    if unknown := set(words) - set(CAUSES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    return tuple(cause for cause in CAUSES if not words or cause in words), asked.distro


if __name__ == "__main__":
    sys.exit(main())
