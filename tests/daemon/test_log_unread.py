"""A log that nobody reads: stderr is a full pipe, as with a journald that hangs on the disk that the leases are on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_leases import joined, record
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.polling import wait_until


class UnreadLog:
    """A daemon's stderr: read into its log file until `stall`, and not at all from then on."""

    def __init__(self, host: Holdfastd) -> None:
        self._reader, self._writer = os.pipe()
        self._reads = True
        self._thread = threading.Thread(target=self._read, args=(host.log,), daemon=True)
        self._thread.start()
        host.spawn(stdout=self._writer, stderr=self._writer)

    def _read(self, log: Path) -> None:
        with log.open("ab", buffering=0) as f:
            while self._reads and (part := os.read(self._reader, 65536)):
                if self._reads:
                    f.write(part)

    def stall(self) -> None:
        """Nobody reads any more, and the pipe is full."""
        self._reads = False
        os.write(self._writer, b"\n")
        self._thread.join()
        copy = os.open(f"/proc/self/fd/{self._writer}", os.O_WRONLY | os.O_NONBLOCK)  # its own flags
        try:
            for size in (4096, 1):
                try:
                    while True:
                        os.write(copy, b"x" * size)
                except BlockingIOError:
                    pass
        finally:
            os.close(copy)

    def close(self) -> None:
        os.close(self._writer)
        os.close(self._reader)


@pytest.fixture
def alpha(make_host: MakeHost) -> Holdfastd:
    return make_host("alpha", 1)


@pytest.fixture
def unread(alpha: Holdfastd) -> Iterator[UnreadLog]:
    unread = UnreadLog(alpha)
    yield unread
    unread.close()


def test_owner_of_a_lost_lease_is_stopped_although_nobody_reads_the_log(
    alpha: Holdfastd, unread: UnreadLog, place: Path, leases: Path
) -> None:
    (place / "local").mkdir()
    disk, local = make_disk(place), make_disk(place / "local")
    joined(alpha)
    vm = alpha.vm([disk], name="web1")
    unread.stall()

    before = record(leases, 1).timestamp
    wait_until(lambda: record(leases, 1).timestamp > before, "renewals to go on")
    os.rename(leases / SPACE, leases / "gone")

    wait_until(lambda: not exists(vm), "the owner to be stopped")
    assert refusal(alpha, local) == "", "virtlockd's socket serves other backends"
    with alpha.admin() as admin:
        kinds = [event.kind for event in admin.events(after=0, follow=False)]
    assert kinds.index("lockspace-lost") < kinds.index("lease-lost")


def test_daemon_ends_although_nobody_reads_its_last_lines(alpha: Holdfastd, unread: UnreadLog) -> None:
    joined(alpha)
    unread.stall()
    assert alpha.kill(signal.SIGTERM) == 0
