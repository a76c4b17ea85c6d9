"""holdfast-qemu-hook as libvirt calls it, against the real daemon over its sockets.

The tests' own process is the libvirtd: the hook's parent. A libvirtd that ends is a process between them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import BIN, Factory, Holdfastd, bystander, locked, make_disk, refusal
from tests.support.polling import wait_until

from holdfast.config import CONTROL_SOCKET_NAME
from holdfast.control.api import DiskWish, HolderInfo, Starter
from holdfast.control.client import CallRefused
from holdfast.hooks import qemu as hook
from holdfast.model import HOST_LOCKSPACE
from holdfast.system.host.process import start_ticks
from holdfast.testing.virtlockd_client import CallFailed

HOOK = str(BIN / "holdfast-qemu-hook")
SCRIPT = Path(__file__).parents[2] / "packaging" / "libvirt" / "qemu-hook"
WEB, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
ALL = (
    "migrate",
    "restore",
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "reconnect",
    "attach",
    "new",
)


def xml(name: str, vm: uuid.UUID, *disks: Path | str, flag: str = "") -> bytes:
    listed = "".join(
        f"<disk type='file' device='disk'><source file='{disk}'/>{flag}<target dev='vd{n}'/></disk>"
        for n, disk in enumerate(disks)
    )
    return f"<domain type='kvm' id='1'><name>{name}</name><uuid>{vm}</uuid><devices>{listed}</devices></domain>".encode()


def with_own_files(text: bytes, nvram: str, tpm: str = "") -> bytes:
    """The same VM with an NVRAM file, and with a TPM whose state is in a directory."""
    backend = f"<backend type='emulator'><source type='dir' path='{tpm}'/></backend>" if tpm else ""
    devices = f"<devices><tpm model='tpm-crb'>{backend}</tpm>" if tpm else "<devices>"
    os_element = f"<os><nvram template='/usr/share/vars.fd'>{nvram}</nvram></os>" if nvram else ""
    return text.replace(b"<devices>", f"{os_element}{devices}".encode())


def call(
    daemon: Holdfastd,
    operation: str,
    text: bytes,
    *,
    name: str = "web1",
    between: bool = False,
    qemu_conf: str | None = 'lock_manager = "lockd"\n',
) -> subprocess.CompletedProcess[bytes]:
    """libvirt's call. `between`: by a libvirtd that has ended when this returns. `qemu_conf`: libvirt's, if it has one."""
    conf = Path(daemon.control).with_name("qemu.conf")
    conf.parent.mkdir(exist_ok=True)
    conf.unlink(missing_ok=True)
    if qemu_conf is not None:
        conf.write_text(qemu_conf)
    command = [HOOK, "--socket", daemon.control, "--qemu-conf", str(conf), name, operation, "begin", "-"]
    if between:
        command = ["sh", "-c", '"$@"; exit $?', "libvirtd", *command]
    return subprocess.run(command, input=text, capture_output=True, timeout=100, check=False)


def prepared(daemon: Holdfastd, disk: Path, *, between: bool = False) -> None:
    done = call(daemon, "prepare", xml("web1", WEB, disk), between=between)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def disk(place: Path) -> Path:
    return make_disk(place)


@pytest.fixture
def qemu() -> Iterator[int]:
    """A process that stands for a VM's QEMU."""
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    yield process.pid
    process.kill()
    process.wait()


def test_second_start_is_refused_with_the_holders_name_before_qemu_is_there(
    daemon: Holdfastd, disk: Path
) -> None:
    prepared(daemon, disk)
    assert locked(disk)
    done = call(daemon, "prepare", xml("web2", OTHER, disk), name="web2")
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"holdfast: Lockspace resource '{disk}' is locked by VM web1 (uuid {WEB})"), line
    assert "being started" in line
    assert call(daemon, "release", xml("web2", OTHER, disk), name="web2").returncode == 0
    assert locked(disk), "it is web1's"
    assert call(daemon, "release", xml("web1", WEB, disk)).returncode == 0
    wait_until(lambda: not locked(disk), "the disk to be free")


def test_prepared_disks_are_qemus_once_it_registers(daemon: Holdfastd, disk: Path, qemu: int) -> None:
    prepared(daemon, disk)
    with daemon.client() as libvirt:
        libvirt.register(pid=qemu, name="web1", uuid=str(WEB))
        assert [(each.owner, each.pid) for each in admin_locks(daemon)] == [("web1", qemu)]
        libvirt.acquire(str(disk))
        assert "web1" in refusal(daemon, disk)
        libvirt.release(str(disk))
        assert not locked(disk)


def admin_locks(daemon: Holdfastd) -> list[HolderInfo]:
    with daemon.admin() as admin:
        return list(admin.locks())


@pytest.mark.parametrize("end", ["kill", "reload"])
def test_prepared_disks_stay_over_the_end_of_the_daemon(
    daemon: Holdfastd, disk: Path, qemu: int, end: str
) -> None:
    prepared(daemon, disk)
    if end == "kill":
        daemon.kill()
        daemon.start()
    else:
        daemon.reexec()
    assert "web1" in refusal(daemon, disk)
    with daemon.client() as libvirt:
        libvirt.register(pid=qemu, name="web1", uuid=str(WEB))
        libvirt.acquire(str(disk))
        os.kill(qemu, signal.SIGKILL)
        wait_until(lambda: not locked(disk), "the disk to be free once QEMU has ended")


@pytest.mark.parametrize("dies", [False, True])
def test_end_of_libvirtd_frees_what_it_prepared(daemon: Holdfastd, disk: Path, dies: bool) -> None:
    prepared(daemon, disk, between=True)
    if dies:
        daemon.kill()
        daemon.start()
    wait_until(lambda: not locked(disk), "the disk to be free")


def test_only_the_process_that_calls_the_hook_can_be_its_libvirtd(daemon: Holdfastd, disk: Path) -> None:
    other = bystander()
    for libvirtd in (
        Starter(other, start_ticks(other)),
        Starter(os.getppid(), 1),
        Starter(1, start_ticks(1)),
    ):
        with (
            daemon.admin() as client,
            pytest.raises(CallRefused, match="is not the one that called the hook"),
        ):
            client.hook("prepare", name="web1", uuid=str(WEB), libvirtd=libvirtd, disks=[DiskWish(str(disk))])
    assert not locked(disk)


def test_disks_that_are_shared_or_only_read(daemon: Holdfastd, place: Path, disk: Path) -> None:
    for vm, name in ((WEB, "web1"), (OTHER, "web2")):
        done = call(daemon, "prepare", xml(name, vm, disk, flag="<shareable/>"), name=name)
        assert done.returncode == 0, done.stderr
    image = make_disk(place, "install.iso")
    assert call(daemon, "prepare", xml("web1", WEB, image, flag="<readonly/>")).returncode == 0
    assert not locked(image)
    done = call(daemon, "prepare", xml("web1", WEB, image, flag="<transient/>"))
    assert (done.returncode, locked(image)) == (0, False), "libvirt locks its overlay"


def test_arriving_guest_takes_nothing(daemon: Holdfastd, disk: Path) -> None:
    assert call(daemon, "migrate", xml("web1", WEB, disk)).returncode == 0
    prepared(daemon, disk)
    assert not locked(disk)


@pytest.mark.parametrize(
    ("qemu_conf", "has"),
    [
        ("# nothing\n", "has no lock_manager"),
        ('lock_manager = "nop"\n', "has lock_manager = 'nop', line 1"),
        ('user = "root"\nlock_manager = "sanlock"\n', "has lock_manager = 'sanlock', line 2"),
        ('user = root\nlock_manager = "lockd"\n', "line 1: expected"),
        (None, "can't be read: it is not there"),
    ],
)
def test_guest_does_not_arrive_where_libvirt_asks_nobody_for_locks(
    daemon: Holdfastd, place: Path, disk: Path, qemu_conf: str | None, has: str
) -> None:
    done = call(daemon, "migrate", xml("web1", WEB, disk), qemu_conf=qemu_conf)
    assert (done.returncode, done.stdout) == (1, b""), done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert "web1 would run on this host without a lock on its 1 writable disks" in line
    assert has in line
    assert line.endswith("""write lock_manager = "lockd" into that file, then: systemctl restart libvirtd""")
    assert call(daemon, "prepare", xml("web1", WEB, disk), qemu_conf=qemu_conf).returncode == 0
    assert locked(disk), "it is a start: no guest arrives"
    for without in (xml("web2", OTHER), xml("web2", OTHER, disk, flag="<readonly/>")):
        assert call(daemon, "migrate", without, name="web2", qemu_conf=qemu_conf).returncode == 0


@pytest.mark.parametrize("which", ["nvram", "tpm", "alias", "as a disk"])
def test_second_vm_with_the_same_nvram_or_tpm_state_is_refused(
    daemon: Holdfastd, place: Path, disk: Path, which: str
) -> None:
    nvram, tpm = place / "vars.fd", place / "tpm"
    nvram.write_bytes(b"vars")
    done = call(daemon, "prepare", with_own_files(xml("web1", WEB, disk), str(nvram), str(tpm)))
    assert done.returncode == 0, done.stderr
    alias = place / "alias.fd"
    alias.symlink_to(nvram)
    own = make_disk(place, "own.img")
    second = {
        "nvram": with_own_files(xml("web2", OTHER, own), str(nvram)),
        "tpm": with_own_files(xml("web2", OTHER, own), "", str(tpm)),
        "alias": with_own_files(xml("web2", OTHER, own), str(alias)),
        "as a disk": xml("web2", OTHER, own, nvram),
    }[which]
    done = call(daemon, "prepare", second, name="web2")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert f"is locked by VM web1 (uuid {WEB})" in line, line
    assert not locked(own), "all or none"
    assert call(daemon, "release", xml("web1", WEB)).returncode == 0
    done = call(daemon, "prepare", second, name="web2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["kill", "reload", "none"])
def test_nvram_and_tpm_state_are_held_until_qemu_ends_and_are_listed(
    daemon: Holdfastd, place: Path, disk: Path, qemu: int, end: str
) -> None:
    nvram, tpm = place / "vars.fd", place / "tpm"
    text = with_own_files(xml("web1", WEB, disk), str(nvram), str(tpm))
    assert call(daemon, "prepare", text).returncode == 0
    with daemon.client() as libvirt:
        libvirt.register(pid=qemu, name="web1", uuid=str(WEB))
        libvirt.acquire(str(disk))
        libvirt.release(str(disk))
    if end == "kill":
        daemon.kill()
        daemon.start()
    elif end == "reload":
        daemon.reexec()
    found = {each.name: each for each in admin_locks(daemon)}
    assert set(found) == {str(nvram), str(tpm)}
    for path in (nvram, tpm):
        each = found[str(path)]
        assert (each.resource, each.owner, each.pid, each.held) == (str(path), "web1", qemu, True)
        assert (each.backend, each.protection, each.protection_note) == (
            "this host",
            1,
            "only this host has the file",
        )
    with daemon.admin() as admin:
        assert [owner.protection for owner in admin.owners()] == [None], "they are no disks"
        assert [each.name for each in admin.status().backends] == ["file"]
    done = call(daemon, "prepare", with_own_files(xml("web2", OTHER), str(nvram)), name="web2")
    assert done.returncode == 1
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: not admin_locks(daemon), "all locks to be free")
    wait_until(lambda: not list(Path(daemon.control).with_name("host-files").iterdir()), "no lock file left")


def test_policy_of_the_site_is_told_in_virshs_error(make_daemon: Factory, place: Path) -> None:
    daemon = make_daemon(
        "[[hook.actions]]\nmatch = '*/alone-*'\nprepare = 'exclusive'\nmigrate = 'exclusive'\n"
    ).start()
    disk, other = make_disk(place, "alone-1.img"), make_disk(place, "other.img")
    done = call(daemon, "prepare", xml("web1", WEB, disk, flag="<shareable/>"))
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert f"{disk} is <shareable/> in the domain's XML, and hook.actions[1] '*/alone-*'" in line
    for vm, name in ((WEB, "web1"), (OTHER, "web2")):
        assert call(daemon, "migrate", xml(name, vm, disk, other), name=name).returncode == 0
    prepared(daemon, disk)
    assert locked(disk), "an arriving guest must have it before QEMU is there"
    done = call(daemon, "prepare", xml("web2", OTHER, disk), name="web2")
    assert b"is locked by VM web1" in done.stderr


def test_client_can_not_name_an_own_file(daemon: Holdfastd, place: Path, qemu: int) -> None:
    nvram = place / "vars.fd"
    nvram.write_bytes(b"vars")
    with daemon.client() as libvirt:
        libvirt.register(pid=qemu, name="web1", uuid=str(WEB))
        with pytest.raises(CallFailed, match="must not contain '/'"):
            libvirt.acquire(str(nvram), lockspace=HOST_LOCKSPACE)
    assert not admin_locks(daemon)


def test_without_a_daemon_a_start_fails_with_the_fix(make_daemon: Factory, disk: Path) -> None:
    daemon = make_daemon()
    done = call(daemon, "prepare", xml("web1", WEB, disk))
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "holdfastd does not answer at" in line
    assert "systemctl start holdfastd.socket holdfastd.service" in line
    assert call(daemon, "prepare", xml("web1", WEB)).returncode == 0, "it has no disk to be locked"


def test_daemon_that_does_not_answer_fails_a_start_in_time(
    daemon: Holdfastd, place: Path, disk: Path
) -> None:
    conf = place / "qemu.conf"
    conf.write_text('lock_manager = "lockd"\n')
    daemon.send_signal(signal.SIGSTOP)
    limited = (
        f"import sys; from holdfast.hooks import qemu; qemu.LIMIT_S = 0.5; sys.argv[1:] = ['--socket', "
        f"{daemon.control!r}, '--qemu-conf', {str(conf)!r}, 'web1', sys.argv[1], 'begin', '-']; qemu.main()"
    )
    for operation, code in (("prepare", 1), ("release", 0), ("migrate", 0)):
        done = subprocess.run(
            [sys.executable, "-c", limited, operation],
            input=xml("web1", WEB, disk),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert b"within 0.5 s" in done.stderr or b"in time" in done.stderr
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: not locked(disk), "what was asked for too late to be free")


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("stdin", ["garbage", "nothing", "closed", "long"])
def test_no_other_operation_than_prepare_fails_in_doubt(
    make_daemon: Factory, operation: str, stdin: str
) -> None:
    daemon = make_daemon()
    text = {"garbage": b"<domain", "long": b" " * (hook.XML_BYTES_MAX + 1)}.get(stdin, b"")
    words = ["web1", operation, "begin", "-"]
    for command in ([HOOK, "--socket", daemon.control, *words], [str(SCRIPT), *words]):
        called = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&-', "sh", *command] if stdin == "closed" else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        )
        output, errors = called.communicate(text, timeout=100)
        assert output == b""
        if operation != "prepare":
            assert called.returncode == 0, errors
        elif command[0] == HOOK:
            assert called.returncode == 1
            assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("streams", [">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_full_disk_and_closed_streams_change_no_exit_code(
    make_daemon: Factory, disk: Path, streams: str
) -> None:
    daemon = make_daemon()
    for operation in ALL:
        words = ["--socket", daemon.control, "--qemu-conf", "/nonexistent", "web1", operation, "begin", "-"]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {streams}', "sh", HOOK, *words],
            input=xml("web1", WEB, disk),
            timeout=100,
            check=False,
        )
        assert done.returncode == (1 if operation in ("prepare", "migrate") else 0), operation


def test_socket_that_is_asked_without_options_is_the_default_one() -> None:
    assert f"/run/holdfast/{CONTROL_SOCKET_NAME}" == hook.CONTROL_SOCKET
