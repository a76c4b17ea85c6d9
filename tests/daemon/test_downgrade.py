"""Forth to an older release and back, with VMs running: neither takes the other's journal for one that frees them.

The older release is the one before unknown owners, as it was (`tests/data`). It runs on Python 3.11 alone: on later versions
it grants no lease at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
from tests.daemon.conftest import MakeHost
from tests.support.daemon import Holdfastd, exists, make_disk, refusal

from holdfast.backends.paxos.names import LEASE_KEY_DEVICE
from holdfast.manager import journal_kinds as jn

RELEASED = Path(__file__).parents[1] / "data" / "released-b4c5068.tar.xz"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the older release."""
    directory = tmp_path_factory.mktemp("released")
    with tarfile.open(RELEASED) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(directory, filter="data")
        else:
            archive.extractall(directory)  # Debian 12's Python 3.11.2 has no filters; the archive is our own
    return directory / "src"


def started(host: Holdfastd, *, by: Path | None) -> None:
    """The next daemon: of the older release, or the present one; the lease is held again before it serves."""
    host.kill(signal.SIGKILL)
    # A key that the older release does not know; on a real host it has its default, and is in no file.
    host.config.write_text(
        host.config.read_text().replace("host_locks", "# host_locks")
        if by is not None
        else host.config.read_text().replace("# host_locks", "host_locks")
    )
    host.start(environ={"PYTHONPATH": str(by)} if by is not None else None)


def version_of(host: Holdfastd) -> str:
    """Which source the running daemon has."""
    with open(f"/proc/{host.pid}/environ", "rb") as f:
        return next(
            (v.decode().partition("=")[2] for v in f.read().split(b"\0") if v.startswith(b"PYTHONPATH=")), ""
        )


def has_all(alpha: Holdfastd, beta: Holdfastd, disks: list[Path]) -> None:
    """alpha's VM has every disk, and nobody else gets one."""
    for disk in disks:
        # A release without identities lists the lease of what the disk is beside that of its path.
        assert {(name, held) for name, _, held in alpha.holders(disk)} == {("web1", True)}
        assert refusal(alpha, disk)
    assert refusal(beta, disks[0])


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the older release grants no lease on Python 3.12 and later"
)
def test_vm_keeps_its_disks_over_a_downgrade_and_back(
    make_host: MakeHost, place: Path, released: Path
) -> None:
    alpha, beta = make_host("a", 1).start(), make_host("b", 2).start()
    for host in (alpha, beta):
        host.says("generation")
    (place / "local").mkdir()
    disks = [make_disk(place), make_disk(place / "local", "own.img")]
    vm = alpha.vm(disks, name="web1")
    for by in (released, released, None, None):
        started(alpha, by=by)
        assert version_of(alpha) == (str(by) if by is not None else os.environ.get("PYTHONPATH", ""))
        has_all(alpha, beta, disks)
        assert exists(vm)
    assert alpha.cli_json("status")["locks_unknown"] == 0
    assert "LOST" not in alpha.log_text()
    alpha.end_vm(vm)


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the older release grants no lease on Python 3.12 and later"
)
def test_vm_keeps_its_disks_over_a_reload_to_the_present_layout(
    make_host: MakeHost, place: Path, released: Path
) -> None:
    """The release before ADR 0189 re-executes: its process becomes the present program, with all it has open."""
    alpha, beta = make_host("a", 1), make_host("b", 2).start()
    alpha.config.write_text(alpha.config.read_text().replace("host_locks", "# host_locks"))
    program = place / "program"
    program.symlink_to(released)
    alpha.start(environ={"PYTHONPATH": str(program)})
    for host in (alpha, beta):
        host.says("generation")
    (place / "local").mkdir()
    disks = [make_disk(place), make_disk(place / "local", "own.img")]
    vm = alpha.vm(disks, name="web1")
    pid, of_the_present = alpha.pid, alpha.run_dir / "host-files"
    assert not of_the_present.exists()
    program.unlink()
    program.symlink_to(Path(__file__).parents[2] / "src")
    alpha.reexec()
    assert alpha.pid == pid
    assert of_the_present.is_dir()
    has_all(alpha, beta, disks)
    assert exists(vm)
    assert alpha.cli_json("status")["locks_unknown"] == 0
    assert "LOST" not in alpha.log_text()
    alpha.end_vm(vm)


def test_older_release_has_the_leases_of_sanlocks_clients_by_their_journal(released: Path) -> None:
    """It skips the lines about connections, and frees nothing because of them."""
    lines = [
        jn.OwnerLine(7, os.getpid(), 5, "qemu", "", 0),
        jn.ClientLine(7),
        jn.HoldLine(7, 2, "sanlock:LS", "R1", 9),
        jn.LockLine(3, "sanlock:LS", "/leases:1048576", False, 2, ((LEASE_KEY_DEVICE, 4),), 1.0),
        jn.ClaimLine(3, 7, "sanlock:LS", "R1", 2),
        jn.HoldLine(7, 2, "sanlock:LS", "R2", 9, False, path="/leases:2097152"),
        jn.UnclaimLine(4, 7, "sanlock:LS", "R2"),
    ]
    raw = msgspec.json.Encoder().encode_lines([jn.StartLine(jn.VERSION, "boot", "host"), *lines])
    program = (
        "import sys\nfrom holdfast.manager.journal import replay\nstate = replay(sys.stdin.buffer.read())\n"
        "print([(lock.path, [*lock.claims]) for lock in state.locks.values()])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=raw,
        env={**os.environ, "PYTHONPATH": str(released)},
        capture_output=True,
        check=False,
    )
    assert ran.stdout.decode().strip() == "[('/leases:1048576', [7])]", ran.stderr.decode()
