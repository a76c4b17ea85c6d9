"""Members of control.group lock what they may open themselves; nobody makes the daemon open what is no disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd, locked, make_disk, refusal
from tests.support.mounts import mounted
from tests.support.users import ADM, NOBODY, NOGROUP, OWN_PID, Call, ask_as_nobody

from holdfast.system.logs.log_limit import LINES_PER_PERIOD


@pytest.fixture
def daemon(make_daemon: Factory) -> Holdfastd:
    return make_daemon('[control]\ngroup = "nogroup"\n').start()


@pytest.fixture
def own(place: Path) -> Path:
    """A directory of the user's own."""
    directory = place / "own"
    directory.mkdir()
    os.chown(directory, NOBODY, NOGROUP)
    return directory


def asked_by_nobody(daemon: Holdfastd, *paths: Path | str, shared: bool = False, **more: object) -> list[str]:
    """For each path "granted", or why not."""
    calls: list[Call] = [
        (
            "Acquire",
            {"pid": OWN_PID, "name": "mine", "disks": [{"path": str(path), "shared": shared}], **more},
        )
        for path in paths
    ]
    return [
        reply.get("parameters", {}).get("message", "") if reply.get("error") else "granted"
        for reply in ask_as_nobody(daemon, *calls, groups=(NOGROUP, ADM))
    ]


def test_user_locks_disks_of_its_own_and_those_of_its_groups(
    daemon: Holdfastd, own: Path, place: Path
) -> None:
    mine, of_my_group = make_disk(own), make_disk(place, "group.img")
    os.chown(mine, NOBODY, NOGROUP)
    os.chmod(mine, 0o600)
    os.chown(of_my_group, 0, ADM)
    os.chmod(of_my_group, 0o660)
    assert asked_by_nobody(daemon, mine, of_my_group) == ["granted", "granted"]


def test_user_who_may_only_read_a_disk_shares_it_and_has_it_never_exclusively(
    daemon: Holdfastd, place: Path
) -> None:
    disk = make_disk(place)
    os.chmod(disk, 0o644)
    assert asked_by_nobody(daemon, disk, shared=True) == ["granted"]
    assert asked_by_nobody(daemon, disk) == [
        f"Unable to open resource {disk}: user {NOBODY} may not read and write it"
    ]


def test_user_is_refused_what_only_root_may_open(daemon: Holdfastd, own: Path, place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    inside = make_disk(private)
    os.chmod(inside, 0o666)
    secret = make_disk(place, "secret")
    os.chmod(secret, 0o600)
    (own / "link").symlink_to(secret)
    may_not = f"user {NOBODY} may not read and write it"
    for path in (inside, secret, own / "link", Path("/etc/shadow"), Path("/etc/passwd")):
        (answer,) = asked_by_nobody(daemon, path)
        assert answer == f"Unable to open resource {path}: {may_not}"
        assert not locked(path)
    (answer,) = asked_by_nobody(daemon, private / "missing", shared=True)
    assert may_not.replace(" and write", "") in answer, "nor does it learn what is there"


@pytest.fixture
def things(place: Path, own: Path) -> Iterator[dict[str, Path]]:
    """What may have the path of a disk and is none, open to everybody."""
    os.mkfifo(own / "fifo")
    os.mknod(own / "watchdog", 0o666 | stat.S_IFCHR, os.makedev(10, 130))
    for name in ("fifo", "watchdog"):
        os.chmod(own / name, 0o666)
    yield {
        "a FIFO": own / "fifo",
        "a character device": own / "watchdog",
        "a character device ": Path("/dev/null"),
        "a character device  ": Path("/dev/ptmx"),
        "the kernel's own": Path("/proc/self/mem"),
        "the kernel's own ": Path("/proc/sys/kernel/core_pattern"),
        "Is a directory": own,
    }


def test_nobody_makes_the_daemon_open_what_is_no_disk(daemon: Holdfastd, things: dict[str, Path]) -> None:
    """For root by libvirt's way as by the control socket. Opening alone arms a watchdog."""
    things = {**things, "the kernel's own  ": Path(f"/proc/{daemon.pid}/mem")}
    for kind, path in things.items():
        assert kind.strip() in refusal(daemon, path), path
    for path in things.values():
        (answer,) = asked_by_nobody(daemon, path)
        assert answer.startswith(f"Unable to open resource {path}: "), answer
    opened = set()
    for fd in os.listdir(f"/proc/{daemon.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            opened.add(os.readlink(f"/proc/{daemon.pid}/fd/{fd}"))
    assert opened.isdisjoint({str(path) for path in things.values()} - {"/dev/null"})


def test_device_that_a_user_may_open_is_found_on_the_kernel_s_own_numbers(
    daemon: Holdfastd, own: Path
) -> None:
    """A block device is a disk as any file is: here one of a loop device that the user was given."""
    image = make_disk(own)
    os.truncate(image, 1 << 20)
    device = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        node = own / "node"
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
        assert "may not" in asked_by_nobody(daemon, node)[0]
        os.chown(node, NOBODY, NOGROUP)
        assert asked_by_nobody(daemon, node) == ["granted"]
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_user_speaks_for_no_process_and_no_control_group_of_others(daemon: Holdfastd, own: Path) -> None:
    mine = make_disk(own)
    os.chown(mine, NOBODY, NOGROUP)
    assert "not one of your user's" in asked_by_nobody(daemon, mine, pid=os.getpid())[0]
    assert "not one of your user's" in asked_by_nobody(daemon, mine, pid=1 << 40)[0]
    (answer,) = asked_by_nobody(daemon, mine, until_closed=True, family="/sys/fs/cgroup/holdfast-run-1")
    assert answer == "control group /sys/fs/cgroup/holdfast-run-1 is not one of your user's"


def test_lock_directory_of_the_daemon_serves_users_too(make_daemon: Factory, place: Path, own: Path) -> None:
    locks = place / "locks"
    locks.mkdir(mode=0o700)
    daemon = make_daemon(
        f'[control]\ngroup = "nogroup"\n[backend.shared]\ndriver = "file"\ndirectory = "{locks}"\n',
        top='default_backend = "shared"',
    ).start()
    mine, secret = make_disk(own), make_disk(place, "secret")
    os.chown(mine, NOBODY, NOGROUP)
    os.chmod(secret, 0o600)
    granted, refused = asked_by_nobody(daemon, mine, secret)
    assert granted == "granted"
    assert "may not read and write" in refused


def test_path_on_a_read_only_mount_is_refused_to_root_as_before(daemon: Holdfastd, place: Path) -> None:
    point = place / "mounted"
    point.mkdir()
    with mounted(point, "-t", "tmpfs", "tmpfs"):
        disk = make_disk(point)
        subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
        assert "Read-only file system" in refusal(daemon, disk)


def test_users_leave_descriptors_for_the_disks_of_vms(make_daemon: Factory, own: Path, place: Path) -> None:
    """Each lock is a descriptor: here of 256, and a quarter is as far as users get."""
    limit = (256, 256)
    daemon = make_daemon('[control]\ngroup = "nogroup"\n').start(
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    )
    disks = [make_disk(own, f"{number}.img") for number in range(80)]
    for disk in disks:
        os.chown(disk, NOBODY, NOGROUP)
    answers = asked_by_nobody(daemon, *disks)
    assert answers[:64] == ["granted"] * 64
    assert {"only root gets further ones" in answer for answer in answers[64:]} == {True}


def test_user_who_asks_in_a_loop_does_not_fill_the_log(daemon: Holdfastd, own: Path) -> None:
    disk = make_disk(own)
    os.chown(disk, NOBODY, NOGROUP)
    daemon.vm([disk], name="web1")
    answers = asked_by_nobody(daemon, *[disk] * 10 * LINES_PER_PERIOD)
    assert all("web1" in answer for answer in answers)
    assert 1 <= daemon.count("WARNING refused") <= 2 * LINES_PER_PERIOD


# --- what the unit leaves the daemon ---

UNIT = Path(__file__).parents[2] / "packaging/systemd/holdfastd.service"
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_RESOURCE": 24,
}
"""<linux/capability.h>, those that the unit names."""
PR_CAPBSET_DROP, CAPABILITIES_MAX = 24, 64


def capabilities_of_the_unit() -> set[str]:
    (line,) = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    return set(line.partition("=")[2].split())


def drop_all_but(names: set[str]) -> None:
    """In a child before it executes the daemon, as systemd does for CapabilityBoundingSet=."""
    libc = ctypes.CDLL(None)
    for number in set(range(CAPABILITIES_MAX)) - {CAPABILITIES[name] for name in names}:
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # fails for those that this kernel doesn't know


@pytest.mark.parametrize("lacks", ["", "CAP_SETUID", "CAP_SETGID"])
def test_capabilities_of_the_unit_are_enough_and_each_that_is_missing_is_named(
    make_daemon: Factory, place: Path, own: Path, lacks: str
) -> None:
    left = capabilities_of_the_unit() - {lacks}
    daemon = make_daemon('[control]\ngroup = "nogroup"\n').start(preexec_fn=lambda: drop_all_but(left))
    mine = make_disk(own)
    os.chown(mine, NOBODY, NOGROUP)
    (answer,) = asked_by_nobody(daemon, mine)
    if lacks:
        assert f"it lacks {lacks}; add it to CapabilityBoundingSet= of holdfastd.service" in answer
        assert refusal(daemon, mine) == "", "root needs none of them"
    else:
        assert answer == "granted"
