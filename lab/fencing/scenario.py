"""One pair of guests: nothing wrong for a while, then one cause after the other, each from hold to hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lab.fencing.guests import HOST_IDS, HOSTS, Guests, LabError
from lab.fencing.managers import LEASES, Holdfast, Manager, Sanlock, check_wdmd
from lab.fencing.observer import NEVER, Observer
from lab.fencing.suites import IO_TIMEOUT_S, Cause, Suite
from lab.fencing.verdict import Case

HOLD_TIMEOUT_S = 60.0
"""Until a free lease is ours and its owner writes; after a reset the host joins first."""
WATCH_ON_S = 4.0
"""After the takeover h1 is watched for so long: an owner that only paused would write again."""
BOOT_TIMEOUT_S = 120


class Scenario:
    """See the module. `prepare` first, `close` last."""

    def __init__(self, suite: Suite, place: Path, python: Path) -> None:
        self.suite = suite
        self.guests = Guests(place, python, suite.sector_bytes)
        self.managers = {"h1": self._manager("h1"), "h2": self._manager("h2")}
        self._observer: Observer | None = None

    def _manager(self, host: str) -> Manager:
        suite = self.suite
        program = suite.holder if host == "h1" else suite.taker
        if program == "sanlock":
            return Sanlock(
                self.guests,
                host,
                io_timeout_s=IO_TIMEOUT_S,
                sector_bytes=suite.sector_bytes,
                wdmd_of=suite.wdmd_of,
            )
        # Beside sanlock, whose ids are fixed, "auto" may take one of a host that is down.
        beside_sanlock = "sanlock" in (suite.holder, suite.taker)
        return Holdfast(
            self.guests,
            host,
            timing=suite.timing,
            watchdog=suite.watchdog,
            sector_bytes=suite.sector_bytes,
            host_id=HOST_IDS[host] if beside_sanlock else "auto",
            wdmd_of=suite.wdmd_of,
        )

    @property
    def observer(self) -> Observer:
        if self._observer is None:
            raise LabError("not prepared")
        return self._observer

    def prepare(self) -> None:
        """Both hosts in one lockspace, h1 with host id 1, and one lease."""
        print(self.guests.mh("up", "2"), end="", flush=True)
        if self.suite.watchdog == "wdmd":
            check_wdmd(self.guests, "h1", self.suite.wdmd_of)
        holdfast = next(m for m in self.managers.values() if isinstance(m, Holdfast))
        holdfast.init_lockspace()
        for manager in self.managers.values():
            manager.start()
        if told := holdfast.refusal():
            raise LabError(f"the lease could not be made: {told}")
        self._observer = Observer(self.guests.disk(0), self.guests.disk(1), self.suite.sector_bytes)
        self._observer.find_lease()
        for host, manager in self.managers.items():
            if not self._observer.host_name(host).startswith(host):
                raise LabError(
                    f"host id {HOST_IDS[host]} is {self._observer.host_name(host)}'s, not {host}'s"
                )
            if isinstance(manager, Sanlock):
                manager.lease = f"{self._observer.lease_name}:{LEASES}:{self._observer.lease_offset}"
        self._observer.start()

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
        self.guests.down()

    def control(self) -> None:
        """Nothing is wrong, h2 asks all the time: nobody is reset, and h1 keeps the lease."""
        self._hold("h1")
        began = time.time()
        self.managers["h2"].ask()
        time.sleep(self.suite.control_s)
        if any(self.guests.fired(host, began) for host in HOSTS):
            raise LabError("a host was reset with nothing wrong")
        owner, since = self.observer.owner()
        if owner != HOST_IDS["h1"] or since.latest > began:
            raise LabError("h1 lost its lease with nothing wrong")
        if self.observer.wrote("h1").latest < time.time() - 2:
            raise LabError("h1's owner was stopped with nothing wrong")
        self.managers["h2"].stop()

    def run(self, cause: Cause) -> Case:
        """One cause, until everything is as it was before; bounds are for the caller to judge."""
        self._hold("h1")
        told = self.managers["h2"].refusal()
        if not told or (self.suite.taker == "holdfastd" and "h1" not in told):
            raise LabError(f"h2's refusal does not name h1: {told!r}")
        boots = {host: self.guests.boot(host) for host in HOSTS}
        self.managers["h2"].ask()
        self.observer.take_gap()
        wrote_before = self.observer.wrote("h1")
        struck_at = time.time()
        self._strike(cause)
        taken = self._wait(lambda: self._owns("h2"), 3 * self.suite.timing.dead_s + HOLD_TIMEOUT_S)
        takeover = self.observer.owner()[1] if taken else NEVER
        time.sleep(WATCH_ON_S)
        if not taken and cause == "freeze":
            self.guests.mh("thaw", "h1")
        case = Case(
            suite=self.suite,
            cause=cause,
            struck_at=struck_at,
            wrote_before=wrote_before,
            last_write=self.observer.wrote("h1"),
            last_renewal=self.observer.renewed("h1"),
            takeover=takeover,
            fired_at=self.guests.fired("h1", struck_at),
            taker_fired_at=self.guests.fired("h2", struck_at),
            look_gap_s=self.observer.take_gap(),
        )
        if self.guests.boot("h2") != boots["h2"]:
            raise LabError(f"{cause}: h2 has booted anew")
        if taken and not case.broken():
            self._restore(case, boots["h1"])
        return case

    def _owns(self, host: str) -> bool:
        return self.observer.owner()[0] == HOST_IDS[host]

    def _hold(self, host: str) -> None:
        """The lease is this host's, and its owner writes."""
        if not self._owns(host):
            self.managers[host].ask()
        began = time.time()

        def writes() -> bool:
            return self._owns(host) and self.observer.wrote(host).earliest > began

        if not self._wait(writes, HOLD_TIMEOUT_S):
            raise LabError(f"{host} does not get the lease, or its owner does not write")

    @staticmethod
    def _wait(happened: Callable[[], bool], timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _strike(self, cause: Cause) -> None:
        """What happens to h1."""
        if cause == "kill9":
            self.managers["h1"].kill()
        elif cause in ("hang", "error"):
            self.guests.mh("disk", "h1", cause)
        elif cause == "freeze":
            self.guests.mh("freeze", "h1")
        else:
            self.guests.mh("kill", "h1")

    def _restore(self, case: Case, boot: str) -> None:
        """h1 is in the lockspace again, and the lease is free."""
        if case.cause in ("hang", "error"):
            self.guests.mh("disk", "h1", "ok")  # a host whose disk hangs would hang in its next boot
        if case.made_harmless_by == "power":
            self.guests.mh("start", "h1")
        elif case.made_harmless_by == "watchdog":
            self.guests.mh("wait", "-t", str(BOOT_TIMEOUT_S), "h1", boot)
        if case.made_harmless_by == "ladder":
            self.managers["h1"].rejoin()
        else:
            self.managers["h1"].start()
        self.managers["h2"].stop()
        if not self._wait(lambda: not self._owns("h2"), HOLD_TIMEOUT_S):
            raise LabError("h2's lease did not get free when its owner ended")
