"""The faults that a reviewer seeded on real hosts (operator.md, section 3), each on a machine that is healthy otherwise.

What an operator must act on makes doctor red under a stable id; what does no harm, and a healthy host, must not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.leases import SPACE, make_lockspace
from tests.unit.doctor.machine import FakeMounts, Machine, space

from holdfast import config as configuration
from holdfast.cli.doctor.scene import Program

LEASES = (
    '[backend.san]\ndriver = "paxos"\ndirectory = "{root}/leases"\nhost_id = 1\nwatchdog = "device"\n'
    '[[disk]]\nmatch = "*"\nbackend = "san"\n'
)
LOCK_DIRECTORY = '[backend.shared]\ndriver = "file"\ndirectory = "{root}/locks"\n[[disk]]\nmatch = "*"\nbackend = "shared"\n'
SHARED_DISK = "/srv/images/web.img"


def leases(m: Machine, text: str = LEASES, **changes: Any) -> None:
    """Leases on NFS, joined, with a watchdog."""
    m.configure(text)
    make_lockspace(m.root / "leases" / SPACE, io_timeout_s=10)
    m.file(f"leases/{SPACE}.host-1")  # what a host says of itself
    m.mounts.add(m.root / "leases", "nfs4")
    m.file("dev/watchdog")
    m.spaces = [space(SPACE, **changes)]
    m.enable("timers", "holdfast-lease-gc.timer")


def virtlockd(m: Machine) -> None:
    """Instead of holdfastd, with a VM that holds its lock."""
    m.host.processes = [Program(1, "systemd"), Program(540, "virtlockd")]
    m.host.listens = 540
    m.status, m.unreachable = None, "holdfastd does not answer at X: No such file or directory"
    m.start("web1", SHARED_DISK)
    m.host.locked[SHARED_DISK] = [540]


# --- the faults, by the row of the table ---


def no_lock_manager(m: Machine) -> None:
    m.qemu('#lock_manager = "lockd"\n')


def sanlock_is_asked(m: Machine) -> None:
    m.qemu('lock_manager = "sanlock"\n')


def nop_comes_first(m: Machine) -> None:
    m.qemu('lock_manager = "nop"\nlock_manager = "lockd"\n')


def disks_are_not_locked(m: Machine) -> None:
    m.lockd("auto_disk_leases = 0\n")


def value_without_quotes(m: Machine) -> None:
    m.qemu("lock_manager = lockd\n")


def other_syntax_error(m: Machine) -> None:
    m.qemu('lock_manager = "lockd"\nuser = "root\n')


def changed_since_libvirt_started(m: Machine) -> None:
    m.program(800, "libvirtd", age_s=1000)
    os.utime(m.root / "etc/libvirt/qemu.conf", (time.time(), time.time()))


def virtlockd_is_enabled(m: Machine) -> None:
    m.enable("sockets", "virtlockd.socket")


def not_enabled_at_boot(m: Machine) -> None:
    (m.root / "etc/systemd/system/multi-user.target.wants/holdfastd.service").unlink()


def socket_failed(m: Machine) -> None:
    m.host.units["holdfastd.socket"].update(ActiveState="failed", Result="start-limit-hit")


def block_device_under_a_host_lock(m: Machine) -> None:
    m.define("web", "/dev/vg/web")


def lock_directory_is_missing(m: Machine) -> None:
    m.configure(LOCK_DIRECTORY)
    (m.root / "locks").rmdir()


def lock_directory_is_local(m: Machine) -> None:
    m.configure(LOCK_DIRECTORY)


def tmpfs_is_vouched_for(m: Machine) -> None:
    m.configure(LOCK_DIRECTORY.replace("directory", "cross_host = true\ndirectory"))
    m.mounts.add(m.root / "locks", "tmpfs")


def leases_are_local(m: Machine) -> None:
    leases(m)
    m.mounts = FakeMounts()


def leases_are_on_an_unknown_fuse(m: Machine) -> None:
    leases(m)
    m.mounts = FakeMounts()
    m.mounts.add(m.root / "leases", "fuse")


def image_on_nfs_without_locks(m: Machine) -> None:
    m.mounts.add("/srv/nfs", "nfs", "rw,nolock")
    m.define("web", "/srv/nfs/web.img")


def local_leases_are_vouched_for(m: Machine) -> None:
    leases(m, LEASES.replace("host_id", "cross_host = true\nhost_id"))
    m.mounts = FakeMounts()


def lease_directory_is_open_to_all(m: Machine) -> None:
    leases(m)
    (m.root / "leases").chmod(0o777)


def lock_directory_is_open_to_all(m: Machine) -> None:
    m.configure(LOCK_DIRECTORY)
    m.mounts.add(m.root / "locks", "nfs4")
    (m.root / "locks").chmod(0o777)


def lease_files_are_open_to_all(m: Machine) -> None:
    leases(m)
    (m.root / "leases" / SPACE).chmod(0o666)


def edited_and_not_loaded(m: Machine) -> None:
    m.in_force = configuration.load(str(m.config), environ={}, uid=0)
    m.configure("", top='log_level = "debug"')


def another_watchdog_than_in_force(m: Machine) -> None:
    leases(m, LEASES.replace('"device"', '"none"'))
    m.in_force = configuration.load(str(m.config), environ={}, uid=0)
    m.configure(LEASES)


def no_watchdog_device(m: Machine) -> None:
    leases(m, state="not joined", reason="watchdog: /dev/watchdog: No such file or directory")
    (m.root / "dev/watchdog").unlink()


def no_wdmd(m: Machine) -> None:
    leases(
        m, LEASES.replace('"device"', '"wdmd"'), state="not joined", reason="watchdog: wdmd does not answer"
    )


def watchdog_is_in_use(m: Machine) -> None:
    leases(m, state="not joined", reason="watchdog: /dev/watchdog: Device or resource busy")
    m.program(99, "corosync")
    m.host.opened["/dev/watchdog"] = [99]


def one_host_id_twice(m: Machine) -> None:
    leases(
        m,
        state="joining",
        reason=f"host id 1 of lockspace {SPACE} is held by host alpha (generation 2): give ...",
    )


def fire_timeouts_differ(m: Machine) -> None:
    leases(
        m, misfits="watchdogs differ in their fire timeout: host beta (host_id 2) 10 s, and this host 60 s"
    )


def multipath_queues(m: Machine) -> None:
    block_device(m)
    m.host.outputs["dmsetup"] = "mpatha: 0 20 multipath 1 queue_if_no_path 0 1 1 service-time 0 1 2 8:16 1\n"


def multipath_is_configured_to_queue(m: Machine) -> None:
    block_device(m)
    m.file("etc/multipath.conf", "# no_path_retry 5\ndefaults {\n  no_path_retry queue\n}\n")


def block_device(m: Machine) -> None:
    """Under leases, with no fault."""
    leases(m)
    m.define("web", "/dev/vg/web")


def chrony_slews(m: Machine) -> None:
    leases(m)
    m.file("etc/chrony/chrony.conf", "pool ntp.example iburst\n")


def lease_storage_is_unmounted(m: Machine) -> None:
    leases(m)
    (m.root / "leases" / SPACE).unlink()


def vm_without_a_lock(m: Machine) -> None:
    m.start("web1", SHARED_DISK)


def lock_of_the_backend_before(m: Machine) -> None:
    leases(m)
    m.start("old", SHARED_DISK)
    m.lock("old", SHARED_DISK, backend="file")


def shareable_and_cached(m: Machine) -> None:
    m.define(
        "web",
        f"<disk type='file'><driver cache='writeback'/><source file='{SHARED_DISK}'/><shareable/></disk>",
    )


def shareable_in_one_only(m: Machine) -> None:
    m.define("web", SHARED_DISK)
    m.define(
        "other", f"<disk type='file'><driver cache='none'/><source file='{SHARED_DISK}'/><shareable/></disk>"
    )


def two_domains_with_one_disk(m: Machine) -> None:
    m.define("web", SHARED_DISK)
    m.define("copy", SHARED_DISK)


def network_disk(m: Machine) -> None:
    m.define(
        "ceph", "<disk type='network'><source protocol='rbd' name='pool/image'/><target dev='vda'/></disk>"
    )


def qemu_outside_libvirt(m: Machine) -> None:
    image = m.file("web.img")
    m.program(77, "qemu-system-x86", "qemu-system-x86_64", "-drive", f"file={image},format=raw")


def session_domains(m: Machine) -> None:
    m.program(78, "qemu-system-x86", "qemu-system-x86_64", "-name", "guest=mine", uid=1000)
    text = "<domstatus state='running' pid='78'><domain><name>mine</name></domain></domstatus>"
    m.file("run/user/1000/libvirt/qemu/run/mine.xml", text)


def strange_files_beside_leases(m: Machine) -> None:
    leases(m)
    m.file("leases/backup.tar")


def lvm_activates(m: Machine) -> None:
    block_device(m)
    m.host.outputs["vgs"] = "  vg|enabled\n"


def no_timer(m: Machine) -> None:
    leases(m)
    (m.root / "etc/systemd/system/timers.target.wants/holdfast-lease-gc.timer").unlink()


def nolock_mount(m: Machine) -> None:
    m.mounts.add("/srv/nfs", "nfs", "rw,nolock")


def run_directory_is_hidden(m: Machine) -> None:
    m.status, m.unreachable = None, "holdfastd does not answer at X: No such file or directory"
    m.mounts.add(m.root / "run/holdfast", "tmpfs")


RED: dict[str, tuple[Callable[[Machine], None], str]] = {
    "1": (no_lock_manager, "HF030"),
    "2": (sanlock_is_asked, "HF031"),
    "3": (nop_comes_first, "HF031"),
    "4": (disks_are_not_locked, "HF034"),
    "6": (value_without_quotes, "HF032"),
    "6, elsewhere": (other_syntax_error, "HF032"),
    "7": (changed_since_libvirt_started, "HF035"),
    "8": (virtlockd, "HF022"),
    "8, at boot": (virtlockd_is_enabled, "HF023"),
    "9": (not_enabled_at_boot, "HF024"),
    "10": (socket_failed, "HF025"),
    "11": (block_device_under_a_host_lock, "HF080"),
    "11, nolock": (image_on_nfs_without_locks, "HF080"),
    "12": (lock_directory_is_missing, "HF050"),
    "13": (lock_directory_is_local, "HF054"),
    "13, tmpfs": (tmpfs_is_vouched_for, "HF055"),
    "14": (leases_are_local, "HF067"),
    "14, fuse": (leases_are_on_an_unknown_fuse, "HF067"),
    "14, vouched for": (local_leases_are_vouched_for, "HF055"),
    "15, leases": (lease_directory_is_open_to_all, "HF062"),
    "15, locks": (lock_directory_is_open_to_all, "HF051"),
    "15, files": (lease_files_are_open_to_all, "HF056"),
    "17": (edited_and_not_loaded, "HF002"),
    "18": (no_watchdog_device, "HF073"),
    "18, wdmd": (no_wdmd, "HF073"),
    "19, in force": (another_watchdog_than_in_force, "HF002"),
    "20": (watchdog_is_in_use, "HF068"),
    "21": (one_host_id_twice, "HF069"),
    "22": (fire_timeouts_differ, "HF100"),
    "23": (multipath_queues, "HF111"),
    "23, configured": (multipath_is_configured_to_queue, "HF111"),
    "24": (chrony_slews, "HF070"),
    "25": (lease_storage_is_unmounted, "HF060"),
    "26": (vm_without_a_lock, "HF090"),
    "27": (lock_of_the_backend_before, "HF092"),
    "28": (shareable_and_cached, "HF085"),
    "28, one of two": (shareable_in_one_only, "HF086"),
    "29": (network_disk, "HF083"),
    "30": (qemu_outside_libvirt, "HF093"),
    "31": (session_domains, "HF037"),
    "34, LVM": (lvm_activates, "HF110"),
    "34, nolock": (nolock_mount, "HF057"),
    "35": (run_directory_is_hidden, "HF027"),
}


@pytest.mark.parametrize("row", RED)
def test_seeded_fault_is_a_problem_with_facts_and_a_fix(machine: Machine, row: str) -> None:
    seed, id = RED[row]
    seed(machine)
    findings = [each for each in machine.findings() if each.id == id]
    assert findings, machine.findings()
    assert all(each.severity == "problem" and each.facts and each.fix for each in findings)
    assert "HF012" not in machine.ids()


def no_watchdog_by_configuration(m: Machine) -> None:
    leases(m, LEASES.replace('"device"', '"none"'))


NOTED: dict[str, tuple[Callable[[Machine], None], str]] = {
    "19": (no_watchdog_by_configuration, "HF065"),
    "28, two domains": (two_domains_with_one_disk, "HF084"),
    "33": (strange_files_beside_leases, "HF071"),
    "34, timer": (no_timer, "HF072"),
}


@pytest.mark.parametrize("row", NOTED)
def test_seeded_fault_that_harms_nobody_yet_is_a_note(machine: Machine, row: str) -> None:
    seed, id = NOTED[row]
    seed(machine)
    assert machine.one(id).severity == "note"
    assert machine.one(id).fix
    assert machine.problems() == set()


HOOK = "etc/libvirt/hooks/qemu.d/holdfast"


@pytest.mark.parametrize("text", ["", 'lock_manager = "nop"\n', 'lock_manager = "sanlock"\n'])
def test_hook_without_lock_manager_is_a_problem(machine: Machine, text: str) -> None:
    machine.qemu(text)
    assert "HF041" not in machine.ids()
    machine.file(HOOK)
    assert machine.one("HF041").severity == "problem"
    assert "lock_manager" in machine.one("HF041").fix


def healthy(m: Machine) -> None:
    m.define("spare", SHARED_DISK)


def healthy_with_leases(m: Machine) -> None:
    block_device(m)
    m.start("web", "/dev/vg/web")
    m.lock("web", "/dev/vg/web", backend="san")
    m.file("etc/chrony/chrony.conf", "maxslewrate 500\n")
    m.host.outputs["vgs"] = "  vg|\n"
    m.host.outputs["dmsetup"] = "mpatha: 0 20 multipath 0 0 1 1 service-time 0 1 2 8:16 1\n"


def healthy_with_the_hook(m: Machine) -> None:
    m.file(HOOK)


def require_lease_is_harmless(m: Machine) -> None:
    m.lockd("require_lease_for_disks = 0\n")


def single_quotes(m: Machine) -> None:
    m.qemu("lock_manager = 'lockd'\n")


def sanlock_is_configured_beside(m: Machine) -> None:
    m.file("etc/libvirt/qemu-sanlock.conf", "auto_disk_leases = 1\n")


FINE = {
    "a healthy host": healthy,
    "a healthy host with leases": healthy_with_leases,
    "a healthy host with the hook": healthy_with_the_hook,
    "5": require_lease_is_harmless,
    "6b": single_quotes,
    "32": sanlock_is_configured_beside,
}


@pytest.mark.parametrize("row", FINE)
def test_what_does_no_harm_is_not_reported(machine: Machine, row: str) -> None:
    FINE[row](machine)
    assert machine.ids() == set(), machine.findings()


def test_34_of_36_rows_are_covered() -> None:
    """Row 16, a configuration with a mistake, has a test of its own (test_checks)."""
    rows = {name.split(",")[0] for name in (*RED, *NOTED)} | {"16"}
    assert rows >= {str(n) for n in range(1, 36)} - {"5", "32"}
