"""`holdfast doctor` on a made-up root: silence that it must break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.cli.doctor import Finding, examine, try_locks


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


def test_configuration_that_cannot_be_used_is_the_first_problem(host: Host) -> None:
    host.configure("[nonsense]\n")
    assert "nonsense: is not known" in host.told()


def test_locks_are_tried_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert try_locks(str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    assert "no file can be made there" in try_locks(str(tmp_path / "none"))
