"""Disks that are reached over a network: libvirt asks for none of them, its hook asks for those that a rule names."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.conftest import MakeHost
from tests.daemon.test_qemu_hook import OTHER, WEB, call
from tests.support.daemon import Factory, Holdfastd, bystander
from tests.support.polling import wait_until

from holdfast.cli import exits

RULE = '[[disk]]\nmatch = "nbd:*"\nbackend = "leases"\nrequire_protection = 2\n'
NAME = "nbd://store.example:10809/web"
JOINED = "joined as host_id"


def guest(name: str, vm: uuid.UUID, *, host: str = "store.example", flag: str = "") -> bytes:
    """A VM with one NBD disk."""
    source = f"<source protocol='nbd' name='web'><host name='{host}' port='10809'/></source>"
    disk = f"<disk type='network' device='disk'>{source}{flag}<target dev='vda'/></disk>"
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{vm}</uuid><devices>{disk}</devices></domain>".encode()
    )


def refused(daemon: Holdfastd, operation: str = "prepare", text: bytes = b"", **conf: str | None) -> str:
    """What virsh would show of a start of another VM with that disk; empty if it is granted."""
    done = call(daemon, operation, text or guest("web2", OTHER), name="web2", **conf)  # type: ignore[arg-type]
    assert (done.returncode, done.stdout) == (1 if done.stderr else 0, b"")
    return done.stderr.decode()


@pytest.fixture
def hosts(make_host: MakeHost) -> Iterator[tuple[Holdfastd, Holdfastd]]:
    alpha, beta = make_host("alpha", 1, RULE).start(), make_host("beta", 2, RULE).start()
    for host in (alpha, beta):
        host.says(JOINED)
    yield alpha, beta


def test_second_start_is_refused_on_both_hosts_and_named_everywhere(
    hosts: tuple[Holdfastd, Holdfastd],
) -> None:
    alpha, beta = hosts
    assert call(alpha, "prepare", guest("web1", WEB, host="STORE.example")).returncode == 0
    for host in hosts:
        assert f"'{NAME}' is locked by VM web1 (uuid {WEB}" in refused(host)
        answer = host.cli_json("who", NAME)
        assert (answer["verdict"], "web1" in answer["headline"]) == ("held", True)
    (lock,) = alpha.cli_json("list")
    assert (lock["name"], lock["owner"], lock["protection"], lock["known_by"]) == (NAME, "web1", 2, "name")
    assert call(alpha, "release", guest("web1", WEB)).returncode == 0
    assert beta.cli_json("who", NAME)["verdict"] == "free"
    assert refused(beta) == ""


def test_disk_stays_held_until_qemu_ends_also_over_a_kill(hosts: tuple[Holdfastd, Holdfastd]) -> None:
    alpha, beta = hosts
    assert call(alpha, "prepare", guest("web1", WEB)).returncode == 0
    with alpha.client() as libvirt:
        libvirt.register(pid=bystander(31), name="web1", uuid=str(WEB))
    alpha.kill()
    assert "web1" in refused(beta)
    alpha.start()
    alpha.says("gone on with as host_id")
    wait_until(lambda: len(alpha.cli_json("list")) == 1, "the lock to be held again")
    for host in hosts:
        assert "is locked by VM web1" in refused(host)


def test_arriving_guest_gets_its_disk_when_it_is_about_to_run(hosts: tuple[Holdfastd, Holdfastd]) -> None:
    alpha, beta = hosts
    assert call(alpha, "prepare", guest("web1", WEB)).returncode == 0
    assert call(beta, "migrate", guest("web1", WEB)).returncode == 0
    assert call(beta, "prepare", guest("web1", WEB)).returncode == 0
    assert beta.cli_json("list") == []
    assert call(alpha, "release", guest("web1", WEB)).returncode == 0
    # libvirt's switch-over takes longer than this; the lease is released on storage meanwhile.
    wait_until(lambda: beta.cli("who", NAME).returncode == exits.FREE, "the lease to be released")
    with beta.client() as libvirt:
        libvirt.register(pid=bystander(32), name="web1", uuid=str(WEB))
    (lock,) = beta.cli_json("list")
    assert (lock["name"], lock["owner"]) == (NAME, "web1")
    assert "is locked by VM web1" in refused(alpha)


@pytest.mark.parametrize("runs_on", [True, False])
def test_lock_whose_journal_is_lost_lasts_as_long_as_the_process_of_its_note(
    hosts: tuple[Holdfastd, Holdfastd], runs_on: bool
) -> None:
    alpha, beta = hosts
    for operation in ("migrate", "prepare"):
        assert call(beta, operation, guest("web1", WEB)).returncode == 0
    qemu = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    with beta.client() as libvirt:
        libvirt.register(pid=qemu.pid, name="web1", uuid=str(WEB))
    beta.kill()
    for file in Path(beta.control).parent.glob("journal*"):
        file.unlink()
    if not runs_on:
        qemu.kill()
        qemu.wait()
    beta.start()
    if runs_on:
        beta.says(f"{NAME} is held for web1")
        assert "is locked by VM web1" in refused(alpha)
        qemu.kill()
        qemu.wait()
    wait_until(lambda: refused(alpha) == "", "the lock to end with its process")


def test_guest_does_not_arrive_where_libvirt_will_not_connect(hosts: tuple[Holdfastd, Holdfastd]) -> None:
    alpha, _ = hosts
    said = refused(alpha, "migrate", qemu_conf="# nothing\n")
    assert f"web2 would run on this host without a lock on {NAME}: libvirt does not ask" in said
    assert refused(alpha, "migrate", guest("web2", OTHER, flag="<readonly/>"), qemu_conf="# nothing\n") == ""


def test_readers_and_disks_that_no_rule_names_are_not_asked_for(
    hosts: tuple[Holdfastd, Holdfastd], make_host: MakeHost
) -> None:
    alpha, beta = hosts
    plain = make_host("gamma", 3).start()
    plain.says(JOINED)
    for host, text in ((alpha, guest("web1", WEB, flag="<readonly/>")), (plain, guest("web1", WEB))):
        assert call(host, "prepare", text).returncode == 0
        assert host.cli_json("list") == []
    shared = guest("web1", WEB, flag="<shareable/>")
    assert call(alpha, "prepare", shared).returncode == 0
    assert refused(beta, text=guest("web2", OTHER, flag="<shareable/>")) == ""
    assert "is locked" in refused(alpha, text=guest("web2", OTHER))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            'match = "rbd:*"\nbackend = "file"',
            "disk[1].backend: 'file' can't lock disks that are reached over",
        ),
        ('match = "rdb:*"\nbackend = "leases"', "'rdb:*' can't match: paths are absolute"),
        (
            'match = "nbd:*"\nbackend = "leases"\n[[disk]]\nmatch = "nbd://a/*"\nbackend = "leases"',
            "can't match",
        ),
        ('match = "*"\nbackend = "file"\n[[disk]]\nmatch = "iscsi:*"\nbackend = "leases"', ""),
    ],
)
def test_rule_that_can_not_lock_a_network_disk_is_named(
    make_daemon: Factory, leases: Path, rule: str, says: str
) -> None:
    daemon = make_daemon(
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = 1\nwatchdog = "none"\n'
        f"cross_host = true\n[[disk]]\n{rule}\n"
    )
    checked = daemon.cli("check-config")
    assert says in checked.stdout + checked.stderr
    assert (checked.returncode == 0) is (not says), checked.stdout + checked.stderr
