"""Processes, named so that a signal never hits a stranger.

A pid is reused, so a process here is a pid *and* its start time.  Hosts have their own pid namespaces, as
real hosts have; the pid in a host's pid file is translated before anybody acts on it.  A zombie counts as
gone: it runs no code and holds no file open.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.lab.polling import until


@dataclass(frozen=True, slots=True)
class Process:
    """One running process, under its number in the test runner's own pid namespace."""

    pid: int
    start_time: str

    @classmethod
    def of_pid(cls, pid: int) -> "Process":
        """The process that has this pid right now."""
        fields = _stat_fields(pid)
        if fields is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, fields[19])

    def is_younger_than(self, other: "Process") -> bool:
        """Which of two was started later."""
        return int(self.start_time) > int(other.start_time)

    def is_alive(self) -> bool:
        """Whether it still runs code."""
        fields = _stat_fields(self.pid)
        return fields is not None and fields[19] == self.start_time and fields[0] not in {"Z", "X"}

    def send(self, number: signal.Signals) -> None:
        """Signal this process, and never another one that got its pid."""
        pidfd = os.pidfd_open(self.pid)
        try:
            if self.is_alive():
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Return once it has ended."""
        until(lambda: not self.is_alive(), f"process {self.pid} to end")

    def image_identity(self) -> bytes:
        """Bytes that differ after every execve (addresses are randomised); none once it has ended."""
        try:
            return Path(f"/proc/{self.pid}/auxv").read_bytes()
        except OSError:
            return b""


def find_in_namespace(pid_namespace: str, inner_pid: int) -> Process | None:
    """The process that a pid namespace (as its link reads) knows under `inner_pid`."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/pid") != pid_namespace:
                continue
            status = Path(f"/proc/{name}/status").read_text()
            inner = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
            if int(inner) == inner_pid:
                return Process.of_pid(int(name))
        except OSError:
            continue  # it ended while we looked
    return None


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat after the command name: state first, start time at index 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
