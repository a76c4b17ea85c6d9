"""`holdfast doctor` on a made-up root: silence that it must break."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.support.leases import SPACE, make_lockspace

from holdfast.cli.doctor import Finding, Scene, daemon, examine, try_locks
from holdfast.control_api import MIGRATION_PROBLEM, StatusInfo


class Host:
    """A root directory with libvirt's and holdfastd's configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "etc/libvirt/qemu").mkdir(parents=True)
        self.config = root / "holdfast.toml"
        self.configure("")
        self.qemu('lock_manager = "lockd"\n')

    def configure(self, text: str, top: str = "") -> None:
        self.config.write_text(
            f'run_dir = "{self.root}/run"\nstate_dir = "{self.root}/state"\n{top}\n'
            f'[virtlockd]\nsocket = "{self.root}/sock"\n{text}'
        )

    def qemu(self, text: str) -> None:
        (self.root / "etc/libvirt/qemu.conf").write_text(text)

    def lockd(self, text: str) -> None:
        (self.root / "etc/libvirt/qemu-lockd.conf").write_text(text)

    def domain(self, disk: str) -> None:
        (self.root / "etc/libvirt/qemu/web.xml").write_text(
            f"<domain><name>web</name><devices><disk type='block'><source dev='{disk}'/></disk></devices></domain>"
        )

    def problems(self) -> list[Finding]:
        return [f for f in examine(str(self.config), None, str(self.root)) if f.level == "problem"]

    def told(self) -> str:
        return "\n".join(f"{f.check}: {f.text} | {f.fix}" for f in self.problems())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_missing_daemon_and_socket_are_problems_with_a_fix(host: Host) -> None:
    assert "daemon: holdfastd does not answer" in host.told()
    assert "nobody listens at" in host.told()
    assert all(f.fix for f in host.problems())


@pytest.mark.parametrize("text", ["", '#lock_manager = "lockd"\n', 'lock_manager = "sanlock"\n'])
def test_libvirt_that_asks_nobody_is_a_problem(host: Host, text: str) -> None:
    assert "libvirt asks nobody" not in host.told()
    host.qemu(text)
    assert "libvirt asks nobody" in host.told()


def test_disks_that_libvirt_does_not_lock_are_a_problem(host: Host) -> None:
    host.lockd("auto_disk_leases = 0\n")
    assert "auto_disk_leases = 0: disks are not locked" in host.told()


def test_virtlockd_that_starts_at_boot_is_a_problem(host: Host) -> None:
    wants = host.root / "etc/systemd/system/sockets.target.wants"
    wants.mkdir(parents=True)
    os.symlink("/lib/systemd/system/virtlockd.socket", wants / "virtlockd.socket")
    assert "starts a real virtlockd at the next boot" in host.told()


def test_block_device_under_a_host_local_lock_is_a_problem(host: Host) -> None:
    host.domain("/dev/vg/web")
    assert "storage that other hosts may reach, but the lock stays on this host" in host.told()


def test_lock_directory_that_is_missing_is_a_problem(host: Host) -> None:
    host.configure(f'[backend.shared]\ndriver = "file"\ndirectory = "{host.root}/locks"\n')
    assert f"{host.root}/locks (backend 'shared') is not there" in host.told()
    (host.root / "locks").mkdir()
    assert "is not there" not in host.told()
    assert "locks do not work" not in host.told()


def test_disk_with_less_protection_than_demanded_is_a_problem(host: Host) -> None:
    host.domain("/dev/vg/web")
    host.configure("", top="require_protection = 3")
    assert "less protection than require_protection demands" in host.told()


LOCK_DIRECTORY = (
    '[backend.shared]\ndriver = "file"\ndirectory = "{root}/leases"\n'
    '[[disk]]\nmatch = "*"\nbackend = "shared"\n'
)


@pytest.mark.parametrize("table", ["lease", "lock directory", "libvirt's hashes", "the disk itself"])
def test_disk_by_another_name_is_a_problem_where_locks_are_named_by_path(host: Host, table: str) -> None:
    (host.root / "web.img").touch()
    (host.root / "disk.0").symlink_to("web.img")
    (host.root / "leases").mkdir()
    make_lockspace(host.root / "leases" / SPACE)
    texts = {"lease": LEASES.replace("/dev/*", "*"), "lock directory": LOCK_DIRECTORY}
    host.configure(texts.get(table, "").format(root=host.root))
    if table == "libvirt's hashes":
        host.lockd(f'file_lockspace_dir = "{host.root}/leases"\n')
    host.domain(f"{host.root}/web.img")
    assert "disk name:" not in host.told()
    host.domain(f"{host.root}/disk.0")
    if table == "the disk itself":
        assert "disk name:" not in host.told()
        return
    (problem,) = (f for f in host.problems() if f.check == "disk name")
    assert f"{host.root}/disk.0 of web is another name of {host.root}/web.img" in problem.text
    # The name of a running VM's lock does not change with its definition: first it has to be down, everywhere.
    assert problem.fix.startswith("shut down every VM that has this disk, on all hosts, and only then write")


def test_configuration_that_cannot_be_used_is_the_first_problem(host: Host) -> None:
    host.configure("[nonsense]\n")
    assert "nonsense: is not known" in host.told()


def test_locks_are_tried_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert try_locks(str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    assert "no file can be made there" in try_locks(str(tmp_path / "none"))


LEASES = (
    '[backend.san]\ndriver = "paxos"\ndirectory = "{root}/leases"\nhost_id = 1\nwatchdog = "wdmd"\ncross_host = true\n'
    '[[disk]]\nmatch = "/dev/*"\nbackend = "san"\nrequire_protection = 3\n'
)


@pytest.fixture
def with_leases(host: Host) -> Host:
    host.configure(LEASES.format(root=host.root))
    (host.root / "leases").mkdir()
    make_lockspace(host.root / "leases" / SPACE)
    return host


def chrony(host: Host, text: str, path: str = "etc/chrony/chrony.conf") -> None:
    (host.root / path).parent.mkdir(parents=True, exist_ok=True)
    (host.root / path).write_text(text)


def test_leases_promise_what_a_disk_demands_although_nobody_has_joined_yet(with_leases: Host) -> None:
    with_leases.domain("/dev/vg/web")
    told = with_leases.told()
    assert "require_protection" not in told
    assert "lock directory" not in told
    (with_leases.root / "leases" / SPACE).unlink()
    assert f"lockspace: {with_leases.root}/leases/{SPACE} (backend 'san') is not there" in with_leases.told()
    assert "mount its storage." in with_leases.told()
    assert "--name" not in with_leases.told(), "a lockspace made on an empty mount point is another one"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("pool ntp.example iburst\n", "83333.3"),
        ("maxslewrate 501\n", "501"),
        ("maxslewrate 500\nMaxSlewRate 1000.5\n", "1000.5"),  # the last one counts
        ("# maxslewrate 100\n! maxslewrate 100\n", "83333.3"),
        ("maxslewrate 100\nconfdir /etc/chrony/conf.d\n", "2000"),
        ("include /etc/chrony/conf.d/*.conf\n", "2000"),
        ("include /etc/chrony/chrony.conf\nmaxslewrate 600\n", "600"),  # that ends, too
    ],
)
def test_chrony_that_may_slew_faster_than_leases_allow_is_a_problem(
    with_leases: Host, text: str, rate: str
) -> None:
    chrony(with_leases, text)
    chrony(with_leases, "maxslewrate 2000\n", "etc/chrony/conf.d/site.conf")
    told = with_leases.told()
    assert f"clock rate: chrony may slew this host's clocks by {rate}" in told
    assert "| write 'maxslewrate 500' into" in told


def test_seconds_that_slewing_costs_are_of_the_configured_dead_bound(with_leases: Host) -> None:
    chrony(with_leases, "maxslewrate 83333.333\n", "etc/chrony.conf")
    assert "11.7 s in the 140 s after which another host takes over" in with_leases.told()
    with_leases.configure(
        LEASES.format(root=with_leases.root).replace("host_id", "io_timeout_s = 20\nhost_id")
    )
    assert "18.3 s in the 220 s after which" in with_leases.told()


def test_clocks_that_keep_their_rate_and_hosts_without_leases_are_fine(with_leases: Host) -> None:
    assert "clock rate" not in with_leases.told()  # no chrony
    chrony(with_leases, "confdir /etc/chrony/conf.d /etc/chrony/more\n")
    chrony(with_leases, "maxslewrate 500\n", "etc/chrony/conf.d/site.conf")
    chrony(with_leases, "maxslewrate 9000\n", "etc/chrony/more/site.conf")  # hidden by the first of that name
    assert "clock rate" not in with_leases.told()
    chrony(with_leases, "")
    with_leases.configure("")
    assert "clock rate" not in with_leases.told()


def test_migrations_to_hosts_that_ask_once_are_a_note_with_their_price(host: Host) -> None:
    def notes() -> list[Finding]:
        return [f for f in examine(str(host.config), None, str(host.root)) if f.check == "migrations"]

    assert notes() == []
    host.configure("", top='migration_peers = "any"')
    (note,) = notes()
    assert note.level == "note"
    assert "the target dies before QEMU has handed over" in note.text
    assert 'migration_peers = "holdfast"' in note.fix


def test_words_of_libvirt_that_are_not_known_have_a_fix_of_their_own(host: Host) -> None:
    status = StatusInfo(
        version="1", host="h", pid=1, started=0.0, owners=0, locks=0, locks_lost=0, connections=0, connections_max=1,
        lockspaces=[], backends=[], default_backend="file", virtlockd_socket="", journal="ok", descriptor_store=False,
        storage_waiting=[], config_files=[], last_event=0, problems=[f"{MIGRATION_PROBLEM}web1 has the phase 'perform4'"],
    )  # fmt: skip
    nothing = cast(Any, None)
    scene = Scene(str(host.root), nothing, nothing, nothing, [], status, [], [], None, "")
    scene.config = cast(Any, SimpleNamespace(run_dir="/run/holdfast"))
    (problem,) = [f for f in daemon(scene) if f.level == "problem"]
    assert "perform4" in problem.text
    assert problem.fix.startswith("update holdfast")
