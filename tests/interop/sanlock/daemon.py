"""A real sanlock daemon without privileges, watchdog and real-time priority, alone or beside holdfastd."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.sanlock.programs import Program, installed
from tests.support.daemon import Holdfastd
from tests.support.polling import wait_until

_START_TIMEOUT_S = 20
_ACQUIRE_TIMEOUT_S = 120
_LOG_TAIL_CHARACTERS = 4000


def installed_version() -> tuple[int, ...]:
    """Of the real sanlock here: what it does differs, and tests assert what each does."""
    return installed().version


class SanlockDaemon:
    """One daemon process, one host."""

    def __init__(
        self,
        directory: Path,
        host_name: str,
        program: Program | None = None,
        *,
        options: tuple[str, ...] = (),
    ) -> None:
        self._program = (program or installed()).command
        self._run_dir = directory / "run"
        self._run_dir.mkdir(exist_ok=True)
        self._environment = {
            **os.environ,
            "SANLOCK_PRIVILEGED": "0",
            "SANLOCK_RUN_DIR": str(self._run_dir),
        }
        arguments = ["-D", "-w", "0", "-l", "0", "-h", "0", "-U", "root", "-G", "root", "-o", "1"]
        self._holders: list[Holder] = []
        self._log = (directory / f"{host_name[:8]}.log").open("wb")
        self._command = [*self._program, "daemon", *arguments, "-e", host_name, *options]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=self._log
        )
        self._wait(lambda: "daemon" in self.client("status", check=False), "the daemon to answer")

    def client(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._program, "client", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_ACQUIRE_TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{arguments}: {done.stdout}{done.stderr}\n{Path(self._log.name).read_text()[-_LOG_TAIL_CHARACTERS:]}"
        )
        return done.stdout + done.stderr

    def hold(self, resource: str) -> "Holder | str":
        """Run a process that holds `resource`; the refusal if it is refused."""
        process = subprocess.Popen(
            [*self._program, "client", "command", "-r", resource, "-c", "/bin/sleep", "300"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT_S
        while process.poll() is None:
            assert time.monotonic() < deadline, f"no answer for {resource}"
            if Path(f"/proc/{process.pid}/comm").read_text().strip() == "sleep":
                self._holders.append(Holder(self, resource, process))
                return self._holders[-1]
            time.sleep(0.05)
        text, _ = process.communicate()
        return text or f"exit status {process.returncode}"

    @property
    def socket_path(self) -> Path:
        return self._run_dir / "sanlock.sock"

    def stalls(self) -> int:
        """How often a request of its to storage has taken longer than its I/O timeout, as its log says."""
        return Path(self._log.name).read_text(errors="replace").count("aio timeout")

    def kill(self) -> None:
        """The daemon alone: processes that hold leases by it run on."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Under the same name, as systemd does."""
        self.kill()
        self._start()

    def stop(self) -> None:
        for holder in self._holders:
            holder.end()
        if self._process.poll() is None:
            self.client("shutdown", "-f", "1", check=False)
            try:
                self._process.wait(_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not happened():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            assert self._process.poll() is None, "the daemon exited"
            time.sleep(0.1)


class Holder:
    """A process that holds a lease through the real daemon."""

    def __init__(self, daemon: SanlockDaemon, resource: str, process: "subprocess.Popen[str]") -> None:
        self._daemon = daemon
        self._resource = resource
        self._process = process

    def release(self) -> None:
        self._daemon.client("release", "-r", self._resource, "-p", str(self._process.pid))
        self.end()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def runs(self) -> bool:
        return self._process.poll() is None

    def wait_ended(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)


@contextmanager
def beside_holdfastd(
    place: Path, leases: str, lockspace: str, io_timeout_s: int, *, identity: str = "auto", more: str = ""
) -> Iterator[tuple[SanlockDaemon, Holdfastd]]:
    """A real sanlock daemon as host 1 and holdfastd as host 2 of a lockspace, both joined.

    `leases`: what the table of holdfastd's backend says beside that; `lockspace`: as sanlock names its place; `more`:
    other tables of holdfastd's.
    """
    holdfastd = Holdfastd(
        place / "d",
        f'[backend.leases]\ndriver = "paxos"\n{leases}\nhost_id = 2\nwatchdog = "none"\n'
        f'io_timeout_s = {io_timeout_s}\n[[disk]]\nmatch = "*"\nbackend = "leases"\n'
        f'identity = "{identity}"\n{more}\n',
    ).start()
    sanlock = SanlockDaemon(place, "the-real-one")
    try:
        sanlock.client("add_lockspace", "-s", lockspace, "-o", str(io_timeout_s))
        wait_until(lambda: "generation" in holdfastd.log_text(), "holdfastd to join")
        yield sanlock, holdfastd
    finally:
        holdfastd.stop_all()
        sanlock.stop()
        shutil.rmtree(place, ignore_errors=True)


def held(outcome: Holder | str) -> Holder:
    assert isinstance(outcome, Holder), outcome
    return outcome


def as_holder(outcome: Holder | str) -> Holder | None:
    """None if it was refused."""
    return outcome if isinstance(outcome, Holder) else None
