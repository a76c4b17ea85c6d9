"""Thousands of leases on one host: after kill -9 the next daemon holds each again, in time, and calls none of them lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.daemon.test_leases import joined
from tests.support.daemon import Factory, Holdfastd
from tests.support.leases import make_sparse_lease
from tests.support.polling import wait_until

IO_TIMEOUT_S = 5
FAIL_S = 8 * IO_TIMEOUT_S
HOSTS_MAX = 64
DISKS_OF_A_VM = 50


def host_of(make_daemon: Factory, leases: Path) -> Holdfastd:
    host = make_daemon(
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = 1\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nhosts_max = {HOSTS_MAX}\ncross_host = true\n"
        '[[disk]]\nmatch = "*"\nbackend = "leases"\n'
    )
    # A debug line for each request would be most of what is measured.
    host.config.write_text(host.config.read_text().replace('log_level = "debug"', 'log_level = "info"'))
    return host


@pytest.mark.parametrize("count", [1200, pytest.param(5000, marks=pytest.mark.long)])
def test_leases_are_held_again_after_a_kill_and_none_is_called_lost(
    make_daemon: Factory, leases: Path, place: Path, count: int
) -> None:
    disks = [place / f"{number}.img" for number in range(count)]
    for disk in disks:
        disk.write_bytes(b"x")
        make_sparse_lease(leases, disk, hosts_max=HOSTS_MAX)
    host = joined(host_of(make_daemon, leases).start())
    for first in range(0, count, DISKS_OF_A_VM):
        host.vm(disks[first : first + DISKS_OF_A_VM], name=f"vm{first}")
    host.kill()
    begun = time.monotonic()
    host.start()

    def held() -> bool:
        with host.admin() as admin:
            status = admin.status()
        assert status.locks == count
        return status.locks_lost == 0

    wait_until(held, "every lease to be held again")
    took_s = time.monotonic() - begun
    print(f"{count} leases: held again {took_s:.1f} s after the start")
    assert took_s < FAIL_S
    assert "LOCK LOST" not in host.log_text()
    assert "renewals are late" not in host.log_text()
