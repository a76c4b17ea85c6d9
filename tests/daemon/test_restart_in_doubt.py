"""Restarts that can't trust what they find: a journal or state file that is lost, damaged, cut or of another version.

Doubt is not "free": whatever the last daemon may have held stays held, another host and other VMs of this host are
refused, no VM is touched, and the daemon says so. What can be attributed is; the rest is settled by proof.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.support.daemon import Factory, bystander, exists, make_disk, refusal
from tests.support.leases import SPACE, leases_in
from tests.support.polling import wait_until
from tests.support.service_manager import ServiceManager

from holdfast.testing.virtlockd_client import CallFailed

Damage = Callable[[Path], None]


def cut_first_line(journal: Path) -> None:
    raw = journal.read_bytes()
    journal.write_bytes(b"\0" * 8 + raw[8:])


def remove(journal: Path) -> None:
    journal.unlink()


def empty(journal: Path) -> None:
    journal.write_bytes(b"")


def version_two(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'["start",1,', b'["start",2,', 1))


def damage_owner_lines(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'["owner"', b'["ow\0er"'))


def damage_lock_lines(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'["lock"', b'["lo\0k"'))


def damage_claim_lines(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'["claim"', b'["cl\0im"'))


def change_pids(journal: Path) -> None:
    """Every line can be read, and the owners look as if they had ended: only the checksum tells."""
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    for line in lines:
        if line[0] == "owner":
            line[3] += 1
    journal.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def cut_in_half(journal: Path) -> None:
    raw = journal.read_bytes()
    journal.write_bytes(raw[: len(raw) // 2])


def cut_after_first_line(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])


def other_boot(journal: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    raw = journal.read_bytes()
    lines = [json.loads(line) for line in raw.replace(boot.encode(), b"0" * len(boot)).splitlines()]
    journal.write_bytes(
        b"".join(json.dumps(line).encode() + b"\n" for line in lines if line[0] not in ("sum", "incarnation"))
    )


DAMAGES: list[Damage] = [
    cut_first_line,
    remove,
    empty,
    version_two,
    damage_owner_lines,
    damage_lock_lines,
    damage_claim_lines,
    change_pids,
    cut_in_half,
    cut_after_first_line,
    other_boot,
]


@contextlib.contextmanager
def opened(disk: Path) -> Iterator[int]:
    """A process has the disk open, as a VM would whose owner nobody can name; its pid."""
    with disk.open("r+b") as file:
        process = subprocess.Popen(["sleep", "infinity"], stdin=file)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_journal_frees_no_lease_of_a_running_vm(
    make_host: MakeHost, place: Path, damage: Damage
) -> None:
    alpha, beta = make_host("a", 1).start(), make_host("b", 2).start()
    disk = make_disk(place)
    for host in (alpha, beta):
        host.says("generation")
    vm = alpha.vm([disk], name="web1")
    alpha.kill()
    damage(alpha.run_dir / "journal")
    alpha.start()
    alpha.says("gone on with")
    # The last daemon's word about who holds it is gone; what storage says of it isn't.
    for _ in range(10):
        assert refusal(beta, disk)
    wait_until(lambda: bool(alpha.holders(disk)), "the lease to be held again")
    assert refusal(alpha, disk)
    assert refusal(beta, disk)
    assert exists(vm)
    alpha.end_vm(vm)
    wait_until(lambda: not refusal(beta, disk), "the lease to be free when its VM has ended")
    assert not refusal(alpha, disk)


def test_lost_journal_is_said_in_status_and_doctor_until_all_is_attributed(
    make_host_by_path: MakeHost, place: Path
) -> None:
    """The note of a lease that an older daemon took has no start time: its process can't be told from a later one."""
    alpha = make_host_by_path("a", 1).start()
    disk = make_disk(place)
    alpha.says("generation")
    vm = alpha.vm([disk], name="web1")
    alpha.kill()
    (alpha.run_dir / "journal").unlink()
    _forget_start_times(place / "leases")
    alpha.start()
    wait_until(lambda: alpha.cli_json("status")["locks_unknown"] == 1, "the unknown lock to be shown")
    status = alpha.cli("status")
    assert status.returncode == 6
    assert "UNKNOWN" in status.stdout
    assert "reset of this host" in status.stdout
    assert "UNKNOWN" in alpha.cli("list").stdout
    assert "could not be attributed" in alpha.cli("doctor").stdout
    refused = alpha.cli("settle", str(disk), "--operator", "J. Doe")
    assert refused.returncode == 0 or "known owner" not in refused.stderr
    alpha.end_vm(vm)


def _forget_start_times(leases: Path) -> None:
    for lease in leases_in(leases):
        raw = lease.read_bytes()
        at = raw.find(b',"start":')
        assert at > 0
        end = raw.index(b",", at + 1)
        # Same length: the note is JSON, and blanks between its fields mean nothing.
        lease.write_bytes(raw[:at] + b" " * (end - at) + raw[end:])


def test_unknown_owner_that_asks_again_gets_its_own_lock(make_host_by_path: MakeHost, place: Path) -> None:
    """A guest that reboots, or is resumed: libvirt asks again for the very process that holds the lease."""
    alpha, beta = make_host_by_path("a", 1).start(), make_host_by_path("b", 2).start()
    disk = make_disk(place)
    for host in (alpha, beta):
        host.says("generation")
    pid = bystander(3)
    with alpha.client() as client:
        client.register(pid=pid, name="web1")
        client.acquire(str(disk))
        alpha.kill()
    (alpha.run_dir / "journal").unlink()
    _forget_start_times(place / "leases")
    alpha.start()
    wait_until(lambda: alpha.cli_json("status")["locks_unknown"] == 1, "the lock to be held as unknown")
    assert refusal(alpha, disk)
    with alpha.client() as client:
        client.register(pid=pid, name="web1")
        client.acquire(str(disk))
        assert alpha.cli_json("status")["locks_unknown"] == 0
        assert [owner for owner, _, _ in alpha.holders(disk)] == ["web1"]
        assert refusal(beta, disk)
        client.release(str(disk))
    wait_until(lambda: not refusal(beta, disk), "the lease to be free")


def test_unknown_lock_may_be_released_by_the_owner_that_its_note_names(
    make_host_by_path: MakeHost, place: Path
) -> None:
    alpha, beta = make_host_by_path("a", 1).start(), make_host_by_path("b", 2).start()
    disk = make_disk(place)
    for host in (alpha, beta):
        host.says("generation")
    pid = bystander(3)
    with alpha.client() as client:
        client.register(pid=pid, name="web1")
        client.acquire(str(disk))
        alpha.kill()
    (alpha.run_dir / "journal").unlink()
    _forget_start_times(place / "leases")
    alpha.start()
    wait_until(lambda: alpha.cli_json("status")["locks_unknown"] == 1, "the lock to be held as unknown")
    with alpha.client() as client:
        client.register(pid=pid, name="web1")
        client.release(str(disk))
    wait_until(lambda: not refusal(beta, disk), "the lease to be free")


def test_unknown_lock_is_not_settled_while_a_process_has_the_disk_open(
    make_host_by_path: MakeHost, place: Path
) -> None:
    alpha, beta = make_host_by_path("a", 1).start(), make_host_by_path("b", 2).start()
    disk = make_disk(place)
    for host in (alpha, beta):
        host.says("generation")
    vm = alpha.vm([disk], name="web1")
    with opened(disk) as pid:
        alpha.kill()
        (alpha.run_dir / "journal").unlink()
        alpha.end_vm(vm)
        alpha.start()
        wait_until(lambda: alpha.cli_json("status")["locks_unknown"] == 1, "the lock to be held as unknown")
        refused = alpha.cli("settle", str(disk), "--operator", "J. Doe")
        assert refused.returncode == 75
        assert str(pid) in refused.stderr
        assert refusal(beta, disk)
    wait_until(lambda: not refusal(beta, disk), "the lock to be settled when nobody has the disk open")
    assert alpha.cli("status").returncode == 0


@pytest.mark.parametrize("state", ["damaged", "missing", "both missing", "all missing"])
def test_lost_state_file_kills_no_vm(make_host: MakeHost, place: Path, state: str) -> None:
    alpha, beta = make_host("a", 1).start(), make_host("b", 2).start()
    disk = make_disk(place)
    for host in (alpha, beta):
        host.says("generation")
    vm = alpha.vm([disk], name="web1")
    alpha.kill(signal.SIGTERM)
    copies = [place / "a" / "state" / f"lockspace-{SPACE}.json", alpha.run_dir / f"lockspace-{SPACE}.json"]
    assert all(copy.exists() for copy in copies)
    if state == "damaged":
        copies[0].write_bytes(b"\0" * 100)
    elif state == "missing":
        copies[0].unlink()
    else:
        for copy in copies:
            copy.unlink()
        if state == "all missing":
            journal = alpha.run_dir / "journal"
            lines = journal.read_bytes().splitlines(keepends=True)
            journal.write_bytes(b"".join(line for line in lines if not line.startswith((b'["inc', b'["sum'))))
    alpha.start()
    alpha.says("gone on with")
    assert exists(vm)
    assert "LOST" not in alpha.log_text()
    assert refusal(beta, disk)
    assert [held for _, _, held in alpha.holders(disk)] == [True]
    alpha.end_vm(vm)
    wait_until(lambda: not refusal(beta, disk), "the lease to be free when its VM has ended")


def test_lockspace_that_was_left_in_peace_is_joined_although_the_journal_is_lost(
    make_host: MakeHost, place: Path
) -> None:
    """The record says that the last daemon gave its host id back, which it does only when nobody uses the lockspace."""
    alpha = make_host("a", 1).start()
    alpha.says("joined as")
    alpha.kill(signal.SIGTERM)
    (alpha.run_dir / "journal").unlink()
    alpha.start()
    wait_until(lambda: alpha.count("joined as") == 2, "the lockspace to be joined again")
    assert "LOST" not in alpha.log_text()
    wait_until(lambda: alpha.cli("status").returncode == 0, "nothing to be in doubt")
    assert not refusal(alpha, make_disk(place))


def test_no_lock_is_granted_on_an_incarnation_that_cannot_be_written_down(
    make_host: MakeHost, place: Path
) -> None:
    alpha = make_host("a", 1)
    state = place / "a" / "state"
    # As a full file system: the new file can't be made.
    in_the_way = state / f"lockspace-{SPACE}.json.new"
    in_the_way.mkdir(parents=True)
    alpha.start()
    alpha.says("generation")
    disk = make_disk(place)
    assert "incarnation can't be written" in refusal(alpha, disk)
    in_the_way.rmdir()
    wait_until(lambda: not refusal(alpha, disk), "locks to be granted when it is written down")
    vm = alpha.vm([disk], name="web1")
    alpha.kill(signal.SIGTERM)
    alpha.start()
    alpha.says("gone on with")
    assert exists(vm)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_journal_lets_go_of_no_kept_descriptor(
    service: ServiceManager, place: Path, damage: Damage
) -> None:
    """The file driver with systemd's descriptor store: the descriptor carries the lock over the restart."""
    daemon = service.daemon
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    with opened(disk):
        daemon.kill()
        damage(daemon.run_dir / "journal")
        service.start()
        assert exists(vm)
        for _ in range(10):
            assert refusal(daemon, disk)
        assert [held for _, _, held in daemon.holders(disk)] == [True]
        is_unknown = daemon.cli_json("status")["locks_unknown"] == 1
        daemon.end_vm(vm)
        # An owner that could be read ends with its process; of an unknown one nobody knows more than who has the disk.
        assert not is_unknown or refusal(daemon, disk)
    wait_until(lambda: not refusal(daemon, disk), "the disk to be free when nobody has it open")


def test_owner_that_was_never_visible_keeps_its_lock_over_a_restart(
    make_daemon: Factory, place: Path
) -> None:
    """Its process is in another PID namespace, and its connection was not kept: nothing proves that it has ended."""
    daemon = make_daemon().start()
    disk = make_disk(place)
    unseen = 2**22 - 7
    with daemon.client() as client:
        client.register(pid=unseen, name="web1")
        client.acquire(str(disk))
        daemon.kill()
    daemon.start()
    assert refusal(daemon, disk)
    assert daemon.cli_json("status")["locks_unknown"] == 1
    with daemon.client() as client:
        client.register(pid=unseen, name="web1")
        with pytest.raises(CallFailed):
            client.acquire(str(disk))
    done = daemon.cli("settle", str(disk), "--operator", "J. Doe")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not refusal(daemon, disk), "the lock to be settled on the operator's word")
    assert "J. Doe" in (place / "d" / "state" / "settled-locks.log").read_text()


def test_owner_that_cannot_be_stopped_gets_no_lease(make_host: MakeHost, place: Path) -> None:
    alpha = make_host("a", 1).start()
    alpha.says("generation")
    disk = make_disk(place)
    with alpha.client() as client:
        client.register(pid=2**22 - 7, name="web1")
        with pytest.raises(CallFailed, match="not visible"):
            client.acquire(str(disk))


def test_file_locks_are_taken_again_from_lock_files_when_the_journal_is_lost(
    make_daemon: Factory, place: Path
) -> None:
    """No descriptor store: the kernel let go with the daemon, and only the lock file says whose it was."""
    locks = place / "locks"
    locks.mkdir()
    daemon = make_daemon(
        f'[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n[[disk]]\nmatch = "*"\n'
        'backend = "shared"\n'
    ).start()
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    daemon.kill()
    (daemon.run_dir / "journal").unlink()
    daemon.start()
    assert refusal(daemon, disk)
    assert [lock["owner"] for lock in daemon.cli_json("list")] == ["web1"]
    daemon.end_vm(vm)
    wait_until(lambda: not refusal(daemon, disk), "the lock to go with its owner")
    assert list(locks.iterdir()) == []
