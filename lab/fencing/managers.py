"""What manages leases on a guest: holdfastd, or the real sanlock; each with the watchdog driver of its suite."""

from __future__ import annotations

import json
import shlex
import time
from typing import Protocol

from lab.fencing.guests import HOST_IDS, LAB, Guests, LabError
from lab.fencing.suites import WDMD_VERSIONS, Release

from holdfast.protocol.timing import Timing

SPACE = "lab"
LEASES = "/dev/disk/by-id/virtio-disk0"
OWNED = "/dev/disk/by-id/virtio-disk1"
IN_GUEST = LAB / "fencing" / "in_guest"
CONFIG = "/srv/holdfast.toml"
RUN_DIR = "/run/holdfast"
OWNER_PID = "/srv/owner.pid"
ASK_LOG = "/srv/ask.log"
JOIN_TIMEOUT_S = 150.0
"""A free host id takes 2 to 5 io_timeouts, one of a dead host the dead bound."""


def _start_wdmd(release: Release) -> str:
    """The wdmd of that release, unless one runs: it does not outlive a boot, and its socket doesn't either."""
    return (
        f"[ -S /run/wdmd/wdmd.sock ] || /opt/wdmd/{release}/run -G sanlock; "
        "for _ in $(seq 100); do [ -S /run/wdmd/wdmd.sock ] && break; sleep .1; done"
    )


def check_wdmd(guests: Guests, host: str, release: Release) -> None:
    """A lab that ran another wdmd than it says would prove nothing about this one."""
    said = guests.sh(host, f"/opt/wdmd/{release}/run -V")
    if WDMD_VERSIONS[release] not in said:
        raise LabError(f"the guests' wdmd of {release} is {said.strip()!r}, not {WDMD_VERSIONS[release]}x")


class Manager(Protocol):
    """One guest's, from outside."""

    @property
    def program(self) -> str: ...

    def start(self) -> None:
        """On a guest that has booted anew; returns when it is in the lockspace."""

    def wait_joined(self) -> None: ...

    def refusal(self) -> str:
        """What somebody is told who asks for the lease now; empty if it was granted (and given back at once)."""

    def ask(self) -> None:
        """From now on ask for the lease again and again, and run the owner with it."""

    def stop(self) -> None:
        """Nobody asks any more, and the owner ends, if there is one."""

    def rejoin(self) -> None:
        """After a loss that the host has survived."""

    def kill(self) -> None:
        """SIGKILL to the daemon; nobody starts it again."""

    def log(self) -> str: ...


def owner_command(host: str, sector_bytes: int) -> list[str]:
    words = ["/usr/bin/python3", "-S", "-E", f"{IN_GUEST}/owner.py"]
    return [*words, OWNED, str(HOST_IDS[host]), str(sector_bytes), OWNER_PID]


def _stop(asker: str) -> str:
    """First who asks, or he would ask again; SIGKILL, as `holdfast run` keeps signals for the command it runs."""
    kill = f"[ ! -e {OWNER_PID} ] || kill $(cat {OWNER_PID}) 2>/dev/null"
    return f"pkill -9 -f {shlex.quote(asker)}; {kill}; rm -f {OWNER_PID}"


class Holdfast:
    """holdfastd, and `holdfast run` (or what it is made of) as the client."""

    program = "holdfastd"

    def __init__(
        self,
        guests: Guests,
        host: str,
        *,
        timing: Timing,
        watchdog: str,
        sector_bytes: int,
        host_id: int | str,
        wdmd_of: Release,
    ) -> None:
        self._guests = guests
        self._host = host
        self._watchdog = watchdog
        self._wdmd_of = wdmd_of
        self._owner = owner_command(host, sector_bytes)
        self._config = (
            f'run_dir = "{RUN_DIR}"\nstate_dir = "/var/lib/holdfast"\n'
            f'[virtlockd]\nsocket = "{RUN_DIR}/virtlockd-sock"\n'
            f'[backend.san]\ndriver = "paxos"\ndevice = "{LEASES}"\nlockspace = "{SPACE}"\n'
            f"host_id = {json.dumps(host_id)}\n"
            f'watchdog = "{watchdog}"\nio_timeout_s = {timing.io_timeout_s}\n'
            f"fire_timeout_s = {timing.fire_timeout_s}\nhosts_max = 64\n"
            '[[disk]]\nmatch = "*"\nbackend = "san"\n'
        )

    def init_lockspace(self) -> None:
        words = ["lockspace", "init", LEASES, "--name", SPACE, "--hosts-max", "64", "--index", "16"]
        self._guests.sh(self._host, self._python("-m", "holdfast.cli.main", *words))

    def start(self) -> None:
        before = "modprobe -q i6300esb" if self._watchdog == "device" else _start_wdmd(self._wdmd_of)
        self._guests.sh(
            self._host,
            f"{before}; mkdir -p {RUN_DIR} /var/lib/holdfast; hostname {self._host}; "
            f"printf %s {shlex.quote(self._config)} > {CONFIG}; "
            f"setsid {self._python('-m', 'holdfast.daemon.main', '--config', CONFIG)} "
            ">>/srv/holdfastd.log 2>&1 </dev/null & echo $! > /srv/holdfastd.pid",
        )
        self.wait_joined()

    def wait_joined(self) -> None:
        until = time.monotonic() + JOIN_TIMEOUT_S
        while "joined" not in (self._guests.try_sh(self._host, self._holdfast("lockspace", "list")) or ""):
            if time.monotonic() > until:
                raise LabError(f"{self._host} did not join")
            time.sleep(1)

    def refusal(self) -> str:
        asked = self._holdfast("run", "--disk", OWNED, "--", "true")
        return self._guests.sh(self._host, f"{asked} 2>&1 || true").strip()

    def ask(self) -> None:
        name = f"vm-on-{self._host}"
        asking = self._python(
            f"{IN_GUEST}/ask.py", f"{RUN_DIR}/io.holdfast.Control", OWNED, name, *self._owner
        )
        self._guests.sh(self._host, f"setsid {asking} >>{ASK_LOG} 2>&1 </dev/null &")

    def stop(self) -> None:
        self._guests.sh(self._host, _stop("ask.p[y]"))

    def rejoin(self) -> None:
        self.wait_joined()  # holdfastd does it itself when its owners are gone

    def kill(self) -> None:
        self._guests.sh(self._host, "kill -9 $(cat /srv/holdfastd.pid)")

    def log(self) -> str:
        return (
            self._guests.try_sh(self._host, f"tail -30 /srv/holdfastd.log; tail -5 {ASK_LOG}; true") or "away"
        )

    def _python(self, *arguments: str) -> str:
        return f"env PYTHONPATH={self._guests.python} python3 {shlex.join(arguments)}"

    def _holdfast(self, *arguments: str) -> str:
        return f"HOLDFAST_CONFIG={CONFIG} {self._python('-m', 'holdfast.cli.main', *arguments)}"


class Sanlock:
    """Debian's sanlock and wdmd; the lease and where it is are told, for sanlock has no index of its own to ask."""

    program = "sanlock"

    def __init__(
        self, guests: Guests, host: str, *, io_timeout_s: int, sector_bytes: int, wdmd_of: Release
    ) -> None:
        self._guests = guests
        self._host = host
        self._io_timeout_s = io_timeout_s
        self._wdmd_of = wdmd_of
        self._owner = owner_command(host, sector_bytes)
        self.lease = ""
        """NAME:PATH:OFFSET, known when somebody has made it."""

    def start(self) -> None:
        self._guests.sh(
            self._host,
            f"{_start_wdmd(self._wdmd_of)}; hostname {self._host}; mkdir -p /run/sanlock; "
            f"sanlock daemon -w 1 -U sanlock -G sanlock -e {self._host} </dev/null >/srv/sanlock.out 2>&1; "
            "for _ in $(seq 100); do sanlock client status >/dev/null 2>&1 && break; sleep .1; done",
        )
        self._join()
        self.wait_joined()

    def _join(self) -> None:
        space = f"{SPACE}:{HOST_IDS[self._host]}:{LEASES}:0"
        adding = f"sanlock client add_lockspace -s {space} -o {self._io_timeout_s}"
        self._guests.sh(self._host, f"setsid {adding} >/srv/join.log 2>&1 </dev/null &")

    def wait_joined(self) -> None:
        until = time.monotonic() + JOIN_TIMEOUT_S
        joined = f"s {SPACE}:"
        while joined not in (told := self._guests.try_sh(self._host, "sanlock client status") or "") or any(
            word in line for line in told.splitlines() if joined in line for word in (":ADD", " ADD")
        ):
            if time.monotonic() > until:
                raise LabError(f"{self._host} did not join: {told}")
            time.sleep(1)

    def refusal(self) -> str:
        done = self._guests.sh(
            self._host, f"{self._command('/bin/true')} >/srv/refusal.log 2>&1; echo $?; cat /srv/refusal.log"
        )
        status, _, told = done.partition("\n")
        return "" if status == "0" else f"sanlock: {status} {' '.join(told.split())}"

    def ask(self) -> None:
        asking = f"until {self._command(*self._owner)}; do sleep .3; done"
        self._guests.sh(self._host, f"setsid sh -c {shlex.quote(asking)} >>{ASK_LOG} 2>&1 </dev/null &")

    def stop(self) -> None:
        self._guests.sh(self._host, _stop("[s]anlock client command"))

    def rejoin(self) -> None:
        self.stop()
        self._join()
        self.wait_joined()

    def kill(self) -> None:
        self._guests.sh(self._host, "kill -9 $(cat /run/sanlock/sanlock.pid)")

    def log(self) -> str:
        return (
            self._guests.try_sh(self._host, f"sanlock client log_dump | tail -30; tail -5 {ASK_LOG}")
            or "away"
        )

    def _command(self, *command: str) -> str:
        return f"sanlock client command -r {SPACE}:{self.lease} -c {shlex.join(command)}"
