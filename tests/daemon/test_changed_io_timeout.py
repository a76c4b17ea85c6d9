"""`holdfast lockspace set`: a real daemon changes its io_timeout while a VM has a lease, also over a crash in the midst."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.conftest import IO_TIMEOUT_S, MakeHost
from tests.daemon.test_leases import joined, record
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE
from tests.support.polling import wait_until

from holdfast.control.client import CallRefused

RAISED_S = 3 * IO_TIMEOUT_S


def io_timeouts(host: Holdfastd) -> tuple[int, int]:
    (info,) = host.cli_json("lockspace", "list")
    return info["io_timeout_s"], info["next_io_timeout_s"]


def test_io_timeout_is_raised_and_lowered_while_a_vm_has_a_lease(
    make_host: MakeHost, place: Path, leases: Path
) -> None:
    alpha, beta = joined(make_host("alpha", 1).start()), joined(make_host("beta", 2).start())
    disk = make_disk(place)
    vm = alpha.vm([disk], name="web1")
    done = alpha.cli("lockspace", "set", SPACE, "--io-timeout", str(RAISED_S))
    assert done.returncode == 0 and f"io_timeout is {RAISED_S} s on this host" in done.stdout, done.stderr
    assert record(leases, 1).io_timeout_s == RAISED_S and record(leases, 2).io_timeout_s == IO_TIMEOUT_S
    # A crash while it is lowered: the next daemon resumes the term, and continues the change.
    lowered = alpha.cli_json("lockspace", "set", SPACE, "--io-timeout", str(IO_TIMEOUT_S), "--no-wait")
    assert lowered == {"ok": True, "lockspace": SPACE, "io_timeout_s": IO_TIMEOUT_S, "changed": False}
    assert io_timeouts(alpha) == (RAISED_S, IO_TIMEOUT_S)
    refused = alpha.cli("lockspace", "set", SPACE, "--io-timeout", "9")
    assert refused.returncode == 75 and f"being changed to {IO_TIMEOUT_S} s" in refused.stderr
    alpha.kill()
    alpha.start()
    wait_until(lambda: "gone on with" in alpha.log_text(), "the term to be resumed")
    wait_until(lambda: record(leases, 1).io_timeout_s == IO_TIMEOUT_S, "the record to be lowered")
    wait_until(lambda: io_timeouts(alpha) == (IO_TIMEOUT_S, 0), "the end of the change")
    assert exists(vm)
    assert "is locked by VM web1" in refusal(beta, disk)


def test_io_timeout_that_can_not_be_is_refused(make_host: MakeHost) -> None:
    alpha = joined(make_host("alpha", 1).start())
    assert "known: " + SPACE in alpha.cli("lockspace", "set", "other", "--io-timeout", "5").stderr
    assert alpha.cli("lockspace", "set", SPACE, "--io-timeout", "0").returncode == 2
    with alpha.admin() as admin, pytest.raises(CallRefused, match="io_timeout is 1 to 255 s, not 256"):
        admin.set_io_timeout(SPACE, 256)
    alpha.cli("lockspace", "leave", SPACE)
    assert "is not joined: left" in alpha.cli("lockspace", "set", SPACE, "--io-timeout", "5").stderr
