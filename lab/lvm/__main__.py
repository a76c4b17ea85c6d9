"""`python -m lab.lvm [SUITE ...]`: what is shown in each suite, step by step, with its times."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab import lvm
from lab.fencing.guests import HOSTS, MICRO_HOSTS, Guests, LabError, install_holdfast
from lab.lvm.host import DEAD_S, DISK, IO_TIMEOUT_S, VG, Host, Program
from lab.lvm.page import PageSuite
from lab.lvm.vm_host import Guarded
from lab.lvm.volumes import PACKAGES, VolumeSuite, cache

SUITES: dict[str, tuple[tuple[Program, Program], int]] = {
    "holdfast": (("holdfast", "holdfast"), 512),
    "holdfast-4096": (("holdfast", "holdfast"), 4096),
    "mixed": (("holdfast", "sanlock"), 512),
    "sanlock": (("sanlock", "sanlock"), 512),
}
"""What serves sanlock's socket on h1 and h2; sector size."""
VOLUME_SUITES: dict[str, tuple[tuple[Program, Program], int]] = {
    "volumes": (("sanlock", "sanlock"), 512),
    "volumes-4096": (("sanlock", "sanlock"), 4096),
    "volumes-holdfast": (("holdfast", "holdfast"), 512),
    "volumes-guarded": (("sanlock", "sanlock"), 512),
    "volumes-shared": (("sanlock", "sanlock"), 512),
}
"""The same, for VMs on volumes (`lab.lvm.volumes`)."""
GUARDED: dict[str, Guarded] = {"volumes-guarded": "guarded", "volumes-shared": "shared"}
"""Those whose VMs have guard leases."""
PAGE = "page"
"""The commands of docs/shared-lvm.md (`lab.lvm.page`)."""
DISK_MIB = 2048
BOOT_TIMEOUT_S = 150
TEXT = "written-on-{0}"
RUNS = 5


class Suite:
    """One pair of guests; each step leaves things as the next one needs them."""

    def __init__(self, name: str, place: Path, python: Path) -> None:
        programs, sector_bytes = SUITES[name]
        self.name = name
        self.guests = Guests(place, python, sector_bytes, (DISK_MIB,))
        self.one, self.two = (
            Host(self.guests, host, program) for host, program in zip(HOSTS, programs, strict=True)
        )
        self._began = time.monotonic()
        self.uuid = ""

    def timed(self, what: str, step: Callable[[], object], times: int = 1) -> None:
        """Say the median, the least and the greatest of so many."""
        took_s = []
        for _ in range(times):
            began = time.monotonic()
            step()
            took_s.append(time.monotonic() - began)
        self.say(
            f"{what}: {statistics.median(took_s):.1f} s ({min(took_s):.1f} to {max(took_s):.1f}, {times} times)"
        )

    def say(self, text: str) -> None:
        print(f"{self.name}: {time.monotonic() - self._began:5.0f} s  {text}", flush=True)

    def run(self, *, hosts_die: bool) -> None:
        self.guests.mh("up", "2")
        self.say("two guests are up")
        for host in (self.one, self.two):
            host.start()
        self.set_up()
        self.activate()
        self.adopt()
        self.figures()
        if not hosts_die:
            return
        self.take_over("the power of h1 is cut", lambda: self.guests.mh("kill", "h1"))
        self.guests.mh("start", "h1")
        self.back()
        mh = self.guests.mh
        for cause, strike in (
            ("h1's lock manager is killed", lambda: self.one.sh("kill -9 $(cat /srv/manager.pid)")),
            ("h1's storage answers no more", lambda: mh("disk", "h1", "hang")),
            ("h1's processor stops", lambda: mh("freeze", "h1")),
        ):
            boot = self.guests.boot("h1")
            self.take_over(cause, strike)
            if "storage" in cause:
                mh("disk", "h1", "ok")  # a host whose disk hangs would hang in its next boot
            mh("wait", "-t", str(BOOT_TIMEOUT_S), "h1", boot)
            self.say("h1 was reset by its watchdog, and has booted")
            self.back()

    def set_up(self) -> None:
        one, two = self.one, self.two
        one.lvm(f"vgcreate --yes --shared {VG} {DISK}")
        one.lvm(f"vgchange --setautoactivation n {VG}")
        self.timed("vgchange --lock-start", two.start_vg)
        one.lvm(f"lvcreate --yes -an --size 64M --name lv1 {VG}")
        self.uuid = one.sh(f"lvs --noheadings -o lv_uuid {VG}/lv1 2>/dev/null")
        self.say("a shared VG is started on both, with an LV")

    def activate(self) -> None:
        one, two = self.one, self.two
        one.lvm(f"lvchange -aey {VG}/lv1")
        self.write(one)
        two.refused(f"lvchange -aey {VG}/lv1")
        two.refused(f"lvchange -asy {VG}/lv1")
        if two.sh(f"[ ! -e /dev/{VG}/lv1 ] && echo none") != "none":
            raise LabError("h2 has a device for what it may not have")
        self.say("h1 has the LV active and alone, h2 is refused and has no device")
        one.sh(f"setsid sleep 1000 <>/dev/{VG}/lv1 >/dev/null 2>&1 & echo $! > /srv/user.pid")
        one.converted("lv1", "sh")
        two.lvm(f"lvchange -asy {VG}/lv1")
        self.read(two, TEXT.format("h1"))
        one.refused(f"lvchange -aey {VG}/lv1")
        two.lvm(f"lvchange -an {VG}/lv1")
        one.converted("lv1", "ex")
        two.refused(f"lvchange -aey {VG}/lv1")
        one.sh("kill $(cat /srv/user.pid)")
        self.say("converted to shared and back while open, by lvmlockd's socket; h2 has read what h1 wrote")
        one.lvm(f"for n in 1 2 3 4 5; do lvchange -an {VG}/lv1 && break; sleep 1; done")
        two.lvm(f"lvchange -aey {VG}/lv1")
        self.write(two)
        one.refused(f"lvchange -aey {VG}/lv1")
        two.lvm(f"lvchange -an {VG}/lv1")
        one.lvm(f"lvchange -aey {VG}/lv1")
        self.read(one, TEXT.format("h2"))
        self.say("moved to h2 and back")

    def adopt(self) -> None:
        one, two = self.one, self.two
        one.kill_lvmlockd()
        two.refused(f"lvchange -aey {VG}/lv1")
        one.start_lvmlockd()
        one.wait(lambda: one.mode(self.uuid) == "ex", "the adoption")
        two.refused(f"lvchange -aey {VG}/lv1")
        one.lvm(f"lvchange -asy {VG}/lv1")
        one.lvm(f"lvchange -aey {VG}/lv1")
        self.say("lvmlockd of h1 was killed, and the next one has the lock")

    def figures(self) -> None:
        """h1 has it before and afterwards. Each with the way into an emulated guest, 0.1 s and more."""
        one, two = self.one, self.two
        self.timed("exclusive to shared and back by lvchange", self._flip, RUNS)
        self.timed("exclusive, refused", lambda: two.refused(f"lvchange -aey {VG}/lv1"), RUNS)
        self.timed("shared, refused", lambda: two.refused(f"lvchange -asy {VG}/lv1"), RUNS)
        one.lvm(f"lvchange -an {VG}/lv1")
        self.timed(
            "exclusive, and given up again",
            lambda: one.lvm(f"lvchange -aey {VG}/lv1 && lvchange -an {VG}/lv1"),
            RUNS,
        )
        one.lvm(f"lvchange -aey {VG}/lv1")

    def _flip(self) -> None:
        self.one.lvm(f"lvchange -asy {VG}/lv1 && lvchange -aey {VG}/lv1")

    def take_over(self, cause: str, strike: Callable[[], object]) -> None:
        """h1 has it and dies; h2 gets it when h1 is dead for sure, and has what h1 wrote."""
        one, two = self.one, self.two
        self.write(one)
        two.refused(f"lvchange -aey {VG}/lv1")
        self.say(f"{cause}, with the LV active and alone there")
        began = time.monotonic()
        strike()
        tries = 0
        while (said := two.sh(f"lvchange -aey {VG}/lv1 2>&1; echo status $?")) != "status 0":
            tries += 1
            if "LV locked by other host" not in said:
                raise LabError(f"h2 is refused for another reason: {said}")
            if time.monotonic() > began + 3 * DEAD_S:
                raise LabError(f"h2 did not get it: {said}")
        took_s = time.monotonic() - began
        self.read(two, TEXT.format("h1"))
        self.say(f"h2 has it {took_s:.0f} s later, after {tries} refusals (dead for sure: {DEAD_S} s)")
        if took_s < DEAD_S - 2 * IO_TIMEOUT_S - 1:
            raise LabError("that is too early")

    def back(self) -> None:
        """h1 has booted, and gets the LV from h2."""
        one, two = self.one, self.two
        one.wait(lambda: self.guests.try_sh("h1", "true") is not None, "its boot")
        one.start()
        one.start_vg()
        one.refused(f"lvchange -aey {VG}/lv1")
        two.lvm(f"lvchange -an {VG}/lv1")
        one.lvm(f"lvchange -aey {VG}/lv1")
        self.say("h1 has the VG started again, and the LV from h2")

    def write(self, host: Host) -> None:
        text = TEXT.format(host.name)
        host.sh(f"printf %-4096s {text} | dd of=/dev/{VG}/lv1 bs=4096 oflag=direct 2>/dev/null")

    def read(self, host: Host, expected: str) -> None:
        found = host.sh(f"dd if=/dev/{VG}/lv1 bs=4096 count=1 iflag=direct 2>/dev/null").split()
        if found != [expected]:
            raise LabError(f"{host.name} reads {found}, not {expected}")


def run_suite(name: str, place: Path, python: Path, *, hosts_die: bool) -> int:
    """How many failed: 0 or 1."""
    suite = Suite(name, place, python)
    try:
        suite.run(hosts_die=hosts_die)
        suite.say("done")
    except LabError as e:
        suite.say(f"FAILED: {e}")
        for host in (suite.one, suite.two):
            print(f"--- {host.program} on {host.name}\n{host.log()}", flush=True)
        return 1
    finally:
        suite.guests.down()
    return 0


def run_volumes(name: str, place: Path, python: Path, cases: list[str], logs: Path) -> int:
    """How many cases failed; 1 if the suite could not be set up."""
    programs, sector_bytes = VOLUME_SUITES[name]
    suite = VolumeSuite(name, place, python, programs, sector_bytes, guarded=GUARDED.get(name, ""))
    if unknown := [case for case in cases if case not in suite.cases]:
        raise SystemExit(f"there is no case {', '.join(unknown)}; there are {', '.join(suite.cases)}")
    try:
        failed = suite.run(cases, logs)
        suite.say(f"done, {failed} failed")
    except LabError as e:
        suite.say(f"FAILED: {e}")
        for host in (suite.one, suite.two):
            host.keep_logs(logs / name, suite.uuid)
        return 1
    finally:
        suite.guests.down()
    return failed


def run_page(place: Path, python: Path) -> int:
    """How many failed: 0 or 1."""
    suite = PageSuite(PAGE, place, python)
    try:
        suite.run()
        suite.say("done")
    except LabError as e:
        suite.say(f"FAILED: {e}")
        return 1
    finally:
        suite.guests.down()
    return 0


def main() -> int:
    suites = {**SUITES, **VOLUME_SUITES, PAGE: ((), 512)}
    parser = argparse.ArgumentParser(prog="python -m lab.lvm", description=lvm.__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites)}; default: all")
    parser.add_argument("--case", action="append", default=[], help="of the suites volumes*; default: all")
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"no host dies in the suites {', '.join(SUITES)}: two minutes each",
    )
    parser.add_argument(
        "--logs", type=Path, help="where the logs of failed cases go (default: a new temporary directory)"
    )
    options = parser.parse_args()
    wanted = options.suites or list(suites)
    if unknown := [name for name in wanted if name not in suites]:
        parser.error(f"there is no suite {', '.join(unknown)}")
    if any(name in SUITES for name in wanted):
        subprocess.run([str(MICRO_HOSTS / "build")], check=True)
    if any(name in VOLUME_SUITES or name == PAGE for name in wanted):
        images = {**os.environ, "MH_CACHE": cache(), "MH_EXTRA": PACKAGES}
        subprocess.run([str(MICRO_HOSTS / "build")], check=True, env=images)
    failed = 0
    logs = options.logs or Path(tempfile.mkdtemp(prefix="holdfast-lab-logs-"))
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as place:
        python = Path(place) / "python"
        install_holdfast(python)
        for name in wanted:
            if name == PAGE:
                failed += run_page(Path(place) / name, python)
            elif name in VOLUME_SUITES:
                failed += run_volumes(name, Path(place) / name, python, options.case, logs)
            else:
                failed += run_suite(name, Path(place) / name, python, hosts_die=not options.short)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
