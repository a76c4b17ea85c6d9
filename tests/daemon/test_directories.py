"""Directories of locks and leases in which others may write: a planted link leads nowhere, and the admin hears of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.support.daemon import Factory, Holdfastd, bystander, locked, make_disk, refusal

from holdfast.backends.naming import indirect_name


@pytest.fixture
def locks(place: Path) -> Path:
    directory = place / "locks"
    directory.mkdir()
    return directory


def with_lock_directory(make_daemon: Factory, locks: Path, name: str = "d") -> Holdfastd:
    return make_daemon(
        f'[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n',
        name=name,
        top='default_backend = "shared"',
    )


def test_link_that_somebody_planted_for_a_lock_file_is_not_followed(
    make_daemon: Factory, locks: Path, place: Path
) -> None:
    private, disk = place / "private", make_disk(place)
    private.mkdir(mode=0o700)
    planted = locks / indirect_name(str(disk))
    planted.symlink_to(private / "new")
    daemon = with_lock_directory(make_daemon, locks).start()
    assert "a symbolic link has the name of the lock file" in refusal(daemon, disk)
    assert list(private.iterdir()) == []
    planted.unlink()
    planted.symlink_to(make_disk(private))
    assert "a symbolic link has the name of the lock file" in refusal(daemon, disk)
    assert not locked(private / "disk.img")
    planted.unlink()
    assert refusal(daemon, disk) == ""


def test_lock_file_that_is_exchanged_for_a_link_to_itself_is_not_taken_for_it(
    make_daemon: Factory, locks: Path, place: Path
) -> None:
    """Somebody who removes the link later would take the lock's name away: a second host would get a new file."""
    disk = make_disk(place)
    daemon, other = (with_lock_directory(make_daemon, locks, name).start() for name in ("a", "b"))
    daemon.vm([disk], name="web1")
    file = locks / indirect_name(str(disk))
    file.rename(locks / "elsewhere")
    file.symlink_to(locks / "elsewhere")
    assert "a symbolic link has the name of the lock file" in refusal(other, disk)


@pytest.mark.parametrize(
    ("mode", "gid", "who"),
    [(0o777, 0, "every user of this host"), (0o1777, 0, "every user"), (0o770, 4, "group 4")],
)
def test_lock_directory_that_others_may_write_is_warned_about_once_and_by_doctor(
    make_daemon: Factory, locks: Path, place: Path, mode: int, gid: int, who: str
) -> None:
    os.chown(locks, 0, gid)
    os.chmod(locks, mode)
    daemon = with_lock_directory(make_daemon, locks).start()
    for name in ("one.img", "two.img"):
        assert refusal(daemon, make_disk(place, name)) == ""
    daemon.says_once("may write in")
    daemon.says(f"WARNING backend 'shared': {who}")
    found = [f for f in daemon.cli_json("doctor") if f["id"] == "HF051"]
    assert [f["severity"] for f in found] == ["problem"]


def test_lock_directory_of_root_alone_is_nothing_to_warn_about(
    make_daemon: Factory, locks: Path, place: Path
) -> None:
    daemon = with_lock_directory(make_daemon, locks).start()
    assert refusal(daemon, make_disk(place)) == ""
    assert "may write" not in daemon.log_text()
    assert not [f for f in daemon.cli_json("doctor") if f["id"] == "HF051"]


def test_new_leases_are_refused_where_everybody_may_write_and_held_ones_stay(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    host = make_host("a", 1).start()
    host.says("joined as host_id")
    held, disk = make_disk(place, "held.img"), make_disk(place)
    vm = host.vm([held], name="web1")
    os.chmod(leases, 0o1777)
    assert f"chmod o-w {leases}" in refusal(host, disk)
    host.reexec()
    assert host.holders(held) == [("web1", vm, True)]
    problems = [f for f in host.cli_json("doctor") if f["check"] == "lease directory"]
    assert [f["id"] for f in problems] == ["HF062"]
    os.chmod(leases, 0o755)
    assert refusal(host, disk) == ""


def test_lease_directory_of_a_group_is_served_and_noted(
    make_host: MakeHost, leases: Path, place: Path
) -> None:
    """sanlock and vdsm run as users of their own, and so do their directories."""
    os.chown(leases, 4, 4)
    os.chmod(leases, 0o770)
    host = make_host("a", 1).start()
    host.says("joined as host_id")
    with host.client() as client:
        client.register(pid=bystander(), name="vm")
        client.acquire(str(make_disk(place)))
    host.says("may write in")
