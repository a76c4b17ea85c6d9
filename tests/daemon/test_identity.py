"""One disk under two paths, on two hosts: the second start is refused (ADR 0197).

Both daemons run on one kernel, so a file has the same handle for both, as on NFS.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.support.daemon import Factory, Holdfastd, bystander, exists, make_disk, refusal
from tests.support.polling import wait_until

from holdfast.testing.virtlockd_client import SHARED

JOINED = "joined as host_id"


@pytest.fixture
def disk(place: Path) -> Path:
    (place / "images").mkdir()
    (place / "link").symlink_to("images")
    return make_disk(place / "images")


def alias_of(disk: Path) -> Path:
    return disk.parent.parent / "link" / disk.name


def two(make_host: MakeHost) -> tuple[Holdfastd, Holdfastd]:
    alpha, beta = make_host("alpha", 1).start(), make_host("beta", 2).start()
    alpha.says(JOINED)
    beta.says(JOINED)
    return alpha, beta


def test_second_path_to_a_disk_is_refused_with_the_holder_and_the_way_out(
    make_host: MakeHost, disk: Path
) -> None:
    alpha, beta = two(make_host)
    vm = alpha.vm([disk], name="web1")
    refused = refusal(beta, alias_of(disk))
    assert f"'{alias_of(disk)}' is locked by VM web1" in refused
    assert "calls the disk by another path" in refused
    assert 'identity = "path"' in refused
    plain = refusal(beta, disk)
    assert "is locked by VM web1" in plain
    assert "another path" not in plain
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, alias_of(disk)) == "", "both leases to be free")
    assert refusal(alpha, disk) == "", "what was refused or released left nothing"


def test_path_that_is_held_by_its_path_alone_is_refused_and_leaves_its_identity_free(
    make_host: MakeHost, disk: Path
) -> None:
    """A host that knows paths only (sanlock.so, an older version) excludes and is excluded."""
    alpha, beta = make_host("alpha", 1, identity="path").start(), make_host("beta", 2).start()
    for host in (alpha, beta):
        host.says(JOINED)
    vm = alpha.vm([disk], name="web1")
    assert "is locked by VM web1" in refusal(beta, disk)
    assert beta.cli_json("list") == []
    assert refusal(beta, alias_of(disk)) == "", "as before: the other host does not know it by what it is"
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, disk) == "", "the lease of the path")


def test_owner_with_two_paths_keeps_what_the_disk_is_until_it_has_released_both(
    make_host: MakeHost, disk: Path
) -> None:
    alpha, beta = two(make_host)
    with alpha.client() as libvirt:
        libvirt.register(pid=bystander(11), name="web1")
        libvirt.acquire(str(disk))
        libvirt.acquire(str(alias_of(disk)))
        libvirt.release(str(disk))
        assert "is locked by VM web1" in refusal(beta, disk)
        libvirt.release(str(alias_of(disk)))
    assert refusal(beta, disk) == ""


def test_sharers_share_by_any_path_and_exclude_who_wants_it_alone(make_host: MakeHost, disk: Path) -> None:
    alpha, beta = two(make_host)
    with alpha.client() as one, beta.client() as other:
        one.register(pid=bystander(12), name="web1")
        other.register(pid=bystander(13), name="web2")
        one.acquire(str(disk), flags=SHARED)
        other.acquire(str(alias_of(disk)), flags=SHARED)
        assert "web" in refusal(beta, disk)
        other.release(str(alias_of(disk)))
        one.acquire(str(disk))  # alone, now
        assert "is locked by" in refusal(beta, alias_of(disk), flags=SHARED)
        one.acquire(str(disk), flags=SHARED)
        assert refusal(beta, alias_of(disk), flags=SHARED) == ""
        one.release(str(disk))
    assert refusal(beta, alias_of(disk)) == ""


def test_both_leases_outlive_a_kill_and_are_shown_as_one_disk(make_host: MakeHost, disk: Path) -> None:
    alpha, beta = two(make_host)
    vm = alpha.vm([disk], name="web1")
    (shown,) = alpha.cli_json("list")
    assert (shown["name"], shown["owner"]) == (str(disk), "web1")
    assert shown["identity"]
    assert shown["known_by"] == "identity"
    assert alpha.cli("list").stdout.splitlines()[-1].endswith("\tidentity")
    assert "web1" in beta.cli("who", str(alias_of(disk))).stdout
    alpha.kill(signal.SIGKILL)
    alpha.start()
    alpha.says("gone on with as")
    wait_until(lambda: len(alpha.cli_json("list")) == 1, "the locks to be held again")
    assert "is locked by VM web1" in refusal(beta, alias_of(disk))
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, alias_of(disk)) == "", "both leases to be free")


def test_running_vm_gets_the_second_lease_or_is_left_alone_and_named(make_host: MakeHost, disk: Path) -> None:
    """The rule said "path" when it was started, and another host started a VM by another path meanwhile."""
    alpha, beta = make_host("alpha", 1, identity="path").start(), make_host("beta", 2).start()
    for host in (alpha, beta):
        host.says(JOINED)
    first = alpha.vm([disk], name="web1")
    assert alpha.cli("list").stdout.splitlines()[-1].endswith("\tpath")
    second = beta.vm([alias_of(disk)], name="web2")
    alpha.config.write_text(alpha.config.read_text().replace('identity = "path"', ""))
    alpha.reexec()

    def problem() -> str:
        return alpha.cli("doctor").stdout

    wait_until(lambda: "has the lock of its path" in problem(), "the disk to be named")
    assert "web2" in problem()
    assert "web1" in problem()
    assert exists(first)
    assert exists(second)
    beta.end_vm(second)
    wait_until(lambda: "has the lock of its path" not in problem(), "the second lease")
    assert "is locked by VM web1" in refusal(beta, alias_of(disk))


def test_running_vm_gets_the_second_lease_without_a_rule_for_its_disk(
    make_host: MakeHost, disk: Path
) -> None:
    """Its disk goes by the default backend."""
    alpha, beta = make_host("alpha", 1, identity="path").start(), make_host("beta", 2).start()
    for host in (alpha, beta):
        host.says(JOINED)
    alpha.vm([disk], name="web1")
    backends, _, _ = alpha.config.read_text().partition("[[disk]]")
    alpha.config.write_text(f'default_backend = "leases"\n{backends}')
    alpha.reexec()
    alpha.says("the lease of what it is")  # no rival asks before: each would have the lease for a moment
    assert "is locked by VM web1" in refusal(beta, alias_of(disk))


def started_again_without_journal(host: Holdfastd, disk: Path, number: int) -> int:
    """A VM got the disk, and its host's daemon was killed and lost the journal; the VM's pid."""
    pid = bystander(number)
    with host.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.acquire(str(disk))
        host.kill(signal.SIGKILL)
    (host.run_dir / "journal").unlink()
    host.start()
    return pid


def is_free_when_the_path_is_released(host: Holdfastd, other: Holdfastd, disk: Path, pid: int) -> None:
    with host.client() as libvirt:
        libvirt.register(pid=pid, name="web1")
        libvirt.release(str(disk))
        wait_until(lambda: refusal(other, alias_of(disk)) == "", "both locks to be free, while the VM runs")
    assert exists(pid)


def test_identity_is_released_with_its_path_after_the_journal_was_lost(
    make_host: MakeHost, disk: Path
) -> None:
    """Locks that are found by their notes come without the keys of their disk."""
    alpha, beta = two(make_host)
    pid = started_again_without_journal(alpha, disk, 14)
    wait_until(lambda: len(alpha.cli_json("list")) > 0, "the locks to be found")
    assert "is locked by VM web1" in refusal(beta, alias_of(disk))
    is_free_when_the_path_is_released(alpha, beta, disk, pid)


@pytest.fixture
def in_directory(make_daemon: Factory, place: Path) -> tuple[Holdfastd, Holdfastd]:
    """Two hosts with one lock directory, as on NFS."""
    (place / "locks").mkdir()
    shared = f'[backend.shared]\ndriver = "file"\ndirectory = "{place}/locks"\ncross_host = true\n'
    rule = '[[disk]]\nmatch = "*"\nbackend = "shared"\n'
    return make_daemon(shared + rule, name="alpha").start(), make_daemon(shared + rule, name="beta").start()


def test_second_path_is_refused_in_a_lock_directory_also_over_a_kill(
    in_directory: tuple[Holdfastd, Holdfastd], disk: Path, place: Path
) -> None:
    alpha, beta = in_directory
    vm = alpha.vm([disk], name="web1")
    assert len(list((place / "locks").iterdir())) == 2
    (shown,) = alpha.cli_json("list")
    assert (shown["name"], shown["known_by"]) == (str(disk), "identity")
    for again in (False, True):
        if again:
            alpha.kill(signal.SIGKILL)
            alpha.start()
            wait_until(lambda: len(alpha.cli_json("list")) == 1, "the locks to be held again")
        refused = refusal(beta, alias_of(disk))
        assert f"'{alias_of(disk)}' is locked by VM web1" in refused
        assert "calls the disk by another path" in refused
        assert "web1" in beta.cli("who", str(alias_of(disk))).stdout
        assert "another path" not in refusal(beta, disk)
    alpha.end_vm(vm)
    wait_until(lambda: refusal(beta, alias_of(disk)) == "", "both locks to be free")
    wait_until(lambda: not list((place / "locks").iterdir()), "the lock files to be removed")


def test_both_locks_of_a_directory_are_found_without_the_journal(
    in_directory: tuple[Holdfastd, Holdfastd], disk: Path
) -> None:
    alpha, beta = in_directory
    pid = started_again_without_journal(alpha, disk, 15)
    wait_until(lambda: "web1" in refusal(beta, alias_of(disk)), "the locks to be found")
    is_free_when_the_path_is_released(alpha, beta, disk, pid)


def test_lock_directory_of_one_host_has_one_file_for_a_disk(
    make_daemon: Factory, disk: Path, place: Path
) -> None:
    (place / "locks").mkdir()
    host = make_daemon(
        f'[backend.own]\ndriver = "file"\ndirectory = "{place}/locks"\n[[disk]]\nmatch = "*"\nbackend = "own"\n'
    ).start()
    vm = host.vm([disk], name="web1")
    assert len(list((place / "locks").iterdir())) == 1
    assert "web1" in refusal(host, alias_of(disk)), "the inode excludes"
    host.end_vm(vm)
