"""`holdfast doctor` on a made-up root: what each check says, word by word where somebody acts on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until
from tests.unit.doctor.machine import Machine, space, status

from holdfast.backends.file import host_files
from holdfast.backends.naming import indirect_name
from holdfast.cli import doctor
from holdfast.cli.doctor import examine
from holdfast.cli.doctor.findings import Finding, fine
from holdfast.cli.doctor.lock_directories import try_locks
from holdfast.cli.doctor.scene import Program, Scene, ThisHost
from holdfast.control.api import MIGRATION_PROBLEM, MOVED_PROBLEM, HostInfo
from holdfast.model import HOST_LOCKSPACE
from holdfast.switch.left_behind import LeftBehind


def told(machine: Machine) -> str:
    return "\n".join(f"{f.check}: {f.facts} | {f.fix}" for f in machine.findings() if f.severity == "problem")


def test_missing_daemon_and_socket_are_problems_with_a_fix(machine: Machine) -> None:
    machine.status, machine.unreachable, machine.host.listens = (
        None,
        "holdfastd does not answer at X",
        None,
    )
    machine.host.processes = [Program(1, "systemd")]
    assert machine.one("HF003").fix == "systemctl enable --now holdfastd.socket holdfastd.service"
    assert "nobody listens at" in machine.one("HF020").facts


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", "has no lock_manager: libvirt uses no lock manager"),
        ('#lock_manager = "lockd"\n', "has no lock_manager: libvirt uses no lock manager"),
        ('lock_manager = "sanlock"\n', "libvirt asks sanlock, not holdfastd"),
        ('lock_manager = "nop"\n', "lock_manager = 'nop' (line 1): libvirt asks nobody"),
        (
            "lock_manager = 'nop'\nlock_manager = \"lockd\"\n",
            "lock_manager = 'nop' (line 1): libvirt asks nobody",
        ),
    ],
)
def test_libvirt_that_asks_somebody_else_is_a_problem_with_the_truth(
    machine: Machine, text: str, facts: str
) -> None:
    assert "libvirt:" not in told(machine)
    machine.qemu(text)
    assert facts in told(machine)


@pytest.mark.parametrize("value", ['"lockd"', "'lockd'", '"""lockd"""'])
@pytest.mark.parametrize("later", ["", 'lock_manager = "nop"\n'])
def test_value_that_libvirt_reads_as_lockd_is_fine(machine: Machine, value: str, later: str) -> None:
    machine.qemu(f"  lock_manager={value} # the first line counts\n{later}")
    assert machine.ids() == ({"HF033"} if later else set())


def test_line_that_only_the_lens_of_libvirt_refuses_is_a_note(machine: Machine) -> None:
    machine.qemu('lock_manager = "lockd"\nlock_manger = "x"\n')
    file = machine.root / "etc/libvirt/qemu.conf"
    machine.host.outputs["augtool"] = f'/augeas/files{file}/error/line = "2"\n'
    assert machine.ids() == {"HF040"}
    assert f"{file}, line 2: " in machine.one("HF040").facts


def test_mistake_in_a_file_of_libvirt_is_named_with_its_line(machine: Machine) -> None:
    machine.qemu("# c\nlock_manager = lockd\n")
    assert (
        'line 2: expected a value: a number, or text in quotes such as "lockd"' in machine.one("HF032").facts
    )
    machine.qemu('lock_manager = "lockd"\n')
    machine.lockd("\n")
    assert (
        "qemu-lockd.conf, line 2: expected a name at the begin of a statement" in machine.one("HF032").facts
    )


def test_disks_that_libvirt_does_not_lock_are_a_problem(machine: Machine) -> None:
    machine.lockd("auto_disk_leases = 0\n")
    assert "auto_disk_leases = 0: disks are not locked" in told(machine)


def test_virtlockd_that_starts_at_boot_is_a_problem(machine: Machine) -> None:
    link = machine.enable("sockets", "virtlockd.socket")
    finding = machine.one("HF023")
    assert "starts a real virtlockd at the next boot" in finding.facts
    # Nothing that runs is stopped, and no alias of holdfastd is disabled.
    assert finding.fix == f"rm -- {link} && systemctl daemon-reload"
    alias = machine.root / "etc/systemd/system/virtlockd.socket"
    alias.symlink_to("/lib/systemd/system/holdfastd.socket")
    assert machine.ids() == set(), "with the alias it is holdfastd that starts"


def test_block_device_under_a_host_local_lock_is_a_problem(machine: Machine) -> None:
    machine.define("web", "/dev/vg/web")
    assert "storage that other hosts may reach, but the lock stays on this host" in told(machine)


def test_lock_directory_that_is_missing_is_a_problem(machine: Machine) -> None:
    machine.configure(LOCK_DIRECTORY.replace("leases", "locks"))
    (machine.root / "locks").rmdir()
    assert machine.one("HF050").fix.startswith("mount its storage. Only if it is to be on /, ")
    assert f"{machine.root}/locks (backend 'shared') is not there" in told(machine)
    (machine.root / "locks").mkdir()
    assert "is not there" not in told(machine)
    assert "locks do not work" not in told(machine)


def test_disk_with_less_protection_than_demanded_is_a_problem(machine: Machine) -> None:
    machine.define("web", "/dev/vg/web")
    machine.configure("", top="require_protection = 3")
    assert "less protection than require_protection demands" in told(machine)


LOCK_DIRECTORY = (
    '[backend.shared]\ndriver = "file"\ndirectory = "{root}/leases"\n'
    '[[disk]]\nmatch = "*"\nbackend = "shared"\n'
)


@pytest.mark.parametrize("table", ["lease", "lock directory", "libvirt's hashes", "the disk itself"])
def test_disk_by_another_name_is_a_problem_where_locks_are_named_by_path(
    machine: Machine, table: str
) -> None:
    (machine.root / "web.img").touch()
    (machine.root / "disk.0").symlink_to("web.img")
    make_lockspace(machine.root / "leases" / SPACE, io_timeout_s=10)
    texts = {"lease": LEASES.replace("/dev/*", "*"), "lock directory": LOCK_DIRECTORY}
    machine.configure(texts.get(table, ""))
    if table == "libvirt's hashes":
        machine.lockd(f'file_lockspace_dir = "{machine.root}/leases"\n')
    machine.define("web", f"{machine.root}/web.img")
    assert "disk name:" not in told(machine)
    machine.define("web", f"{machine.root}/disk.0")
    if table == "the disk itself":
        assert "disk name:" not in told(machine)
        return
    problem = machine.one("HF082")
    assert f"{machine.root}/disk.0 of web is another name of {machine.root}/web.img" in problem.facts
    # The name of a running VM's lock does not change with its definition: first it has to be down, everywhere.
    assert problem.fix.startswith("shut down every VM that has this disk, on all hosts, and only then write")


def test_configuration_that_cannot_be_used_is_the_first_problem(machine: Machine) -> None:
    machine.configure("[nonsense]\n")
    first = examine(str(machine.config), None, str(machine.root))[0]
    assert (first.id, first.severity) == ("HF001", "problem")
    assert "nonsense: is not known" in first.facts


def test_locks_are_tried_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert try_locks(str(tmp_path)) == ""
    assert list(tmp_path.iterdir()) == []
    assert "no file can be made there" in try_locks(str(tmp_path / "none"))


LEASES = (
    '[backend.san]\ndriver = "paxos"\ndirectory = "{root}/leases"\nhost_id = 1\nwatchdog = "wdmd"\ncross_host = true\n'
    '[[disk]]\nmatch = "/dev/*"\nbackend = "san"\nrequire_protection = 3\n'
)


@pytest.fixture
def with_leases(machine: Machine) -> Machine:
    machine.configure(LEASES)
    machine.mounts.add(machine.root / "leases", "nfs4")
    make_lockspace(machine.root / "leases" / SPACE, io_timeout_s=10)
    return machine


def chrony(m: Machine, text: str, path: str = "etc/chrony/chrony.conf") -> None:
    m.file(path, text)


def test_leases_promise_what_a_disk_demands_although_nobody_has_joined_yet(with_leases: Machine) -> None:
    with_leases.define("web", "/dev/vg/web")
    said = told(with_leases)
    assert "require_protection" not in said
    assert "lock directory" not in said
    (with_leases.root / "leases" / SPACE).unlink()
    assert f"lockspace: {with_leases.root}/leases/{SPACE} (backend 'san') is not there" in told(with_leases)
    assert "mount its storage." in told(with_leases)
    assert "--name" not in told(with_leases), "a lockspace made on an empty mount point is another one"


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
    with_leases: Machine, text: str, rate: str
) -> None:
    chrony(with_leases, text)
    chrony(with_leases, "maxslewrate 2000\n", "etc/chrony/conf.d/site.conf")
    said = told(with_leases)
    assert f"clock rate: chrony may slew this host's clocks by {rate}" in said
    assert "| write 'maxslewrate 500' into" in said


def test_seconds_that_slewing_costs_are_of_the_configured_dead_bound(with_leases: Machine) -> None:
    chrony(with_leases, "maxslewrate 83333.333\n", "etc/chrony.conf")
    assert "11.7 s in the 140 s after which another host takes over" in told(with_leases)
    with_leases.configure(LEASES.replace("host_id", "io_timeout_s = 20\nhost_id"))
    assert "18.3 s in the 220 s after which" in told(with_leases)


def test_clocks_that_keep_their_rate_and_hosts_without_leases_are_fine(with_leases: Machine) -> None:
    assert "clock rate" not in told(with_leases)  # no chrony
    chrony(with_leases, "confdir /etc/chrony/conf.d /etc/chrony/more\n")
    chrony(with_leases, "maxslewrate 500\n", "etc/chrony/conf.d/site.conf")
    chrony(with_leases, "maxslewrate 9000\n", "etc/chrony/more/site.conf")  # hidden by the first of that name
    assert "clock rate" not in told(with_leases)
    chrony(with_leases, "")
    with_leases.configure("")
    assert "clock rate" not in told(with_leases)


def test_migrations_to_hosts_that_ask_once_are_a_note_with_their_price(machine: Machine) -> None:
    assert machine.ids() == set()
    machine.configure("", top='migration_peers = "any"')
    note = machine.one("HF094")
    assert note.severity == "note"
    assert "the target dies before QEMU has handed over" in note.facts
    assert 'migration_peers = "holdfast"' in note.fix


def test_words_of_libvirt_that_are_not_known_have_a_fix_of_their_own(machine: Machine) -> None:
    machine.status = status(problems=[f"{MIGRATION_PROBLEM}web1 has the phase 'perform4'"])
    problem = machine.one("HF011")
    assert "perform4" in problem.facts
    assert problem.fix.startswith("update holdfast")


def test_check_that_fails_is_a_problem_and_hides_no_other(machine: Machine) -> None:
    def broken(scene: Scene) -> Iterator[Finding]:
        yield fine("x", "before")
        raise KeyError("phase")

    said = doctor.run(broken, machine.scene())
    assert [each.id for each in said] == ["", "HF012"]
    assert "could not be done: KeyError: 'phase'" in said[1].facts


# --- virtlockd and units ---


def beside_virtlockd(machine: Machine) -> None:
    machine.host.processes = [Program(1, "systemd"), Program(540, "virtlockd")]
    machine.host.listens = 540
    machine.status, machine.unreachable = None, "holdfastd does not answer at X"


def test_switch_from_virtlockd_names_and_suspends_the_vms_that_it_would_kill(machine: Machine) -> None:
    beside_virtlockd(machine)
    machine.start("web1", "/srv/web1.img", pid=1001)
    machine.start("it's", "/srv/other.img", pid=1002)
    machine.start("asleep", "/srv/asleep.img", pid=1003, state="paused")
    machine.host.locked["/srv/web1.img"] = [540]
    finding = machine.one("HF022")
    assert "KILLS 2 VMs" in finding.facts
    assert "it's, web1" in finding.facts
    assert finding.fix.startswith(
        "virsh suspend -- 'it'\"'\"'s' && virsh suspend -- web1 && holdfast doctor --only HF022 && systemctl disable --now "
        "virtlockd.socket virtlockd-admin.socket virtlockd.service && "
    )
    assert finding.fix.endswith("{ virsh resume -- 'it'\"'\"'s'; virsh resume -- web1; }")
    # When they are suspended the way is free, and one that still has a lock is not forgotten.
    machine.start("web1", "/srv/web1.img", pid=1001, state="paused")
    machine.start("it's", "/srv/other.img", pid=1002, state="paused")
    assert "KILLS 1 VMs that hold locks in it, or may: web1." in machine.one("HF022").facts
    machine.host.locked = {}
    assert "HF022" not in machine.ids()
    assert machine.one("HF028").fix.startswith("systemctl disable --now virtlockd.socket")


def test_locks_that_a_killed_switch_has_left_behind_are_a_problem_until_holdfastd_runs(
    machine: Machine,
) -> None:
    left = LeftBehind(4711, 1, ["web1: /srv/web1.img", "web2: /srv/web2.img"], b"")
    path = machine.file("run/holdfast-switch/locks")
    path.write_bytes(msgspec.json.encode(left))
    assert machine.ids() == set(), "holdfastd runs"
    machine.status = None
    finding = machine.one("HF029")
    assert "2 locks, of web1: /srv/web1.img, web2: /srv/web2.img" in finding.facts
    assert "VMs run WITHOUT these locks" in finding.facts
    assert finding.fix.startswith("holdfast setup")
    machine.program(900, "python3", "python3", "/usr/bin/holdfast-virtlockd-switch", "--holdfast-keep")
    assert "a keeper (pid 900) has them" in machine.one("HF029").facts
    raw = path.read_bytes()
    path.write_text("{")
    assert str(path) in machine.one("HF029").facts
    # Any connection starts a virtlockd by its socket: it has none of these locks, and its stop kills nobody.
    path.write_bytes(raw)
    beside_virtlockd(machine)
    machine.start("web1", "/srv/web1.img")
    assert {"HF028", "HF029"} <= machine.ids()
    assert "HF022" not in machine.ids()
    machine.host.files_locked[540] = ["/srv/other.img"]
    assert "KILLS 1 VMs" in machine.one("HF022").facts
    # The virtlockd that is being switched just now.
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(left, pid=540)))
    assert "HF029" not in machine.ids()


def test_vm_whose_lock_is_a_file_of_libvirts_directory_is_one_that_virtlockd_kills(machine: Machine) -> None:
    beside_virtlockd(machine)
    machine.lockd(f'file_lockspace_dir = "{machine.root}/locks"\n')
    machine.start("web1", "/srv/web1.img", state="paused")
    assert "HF022" not in machine.ids()
    machine.host.locked[f"{machine.root}/locks/{indirect_name('/srv/web1.img')}"] = [540]
    assert "web1" in machine.one("HF022").facts


def test_no_fix_starts_or_stops_anything_beside_a_virtlockd_with_vms(machine: Machine) -> None:
    beside_virtlockd(machine)
    machine.start("web1", "/srv/web1.img")
    machine.host.units["holdfastd.socket"].update(ActiveState="inactive")
    machine.host.units["holdfastd.service"].update(MainPID="540")
    (machine.root / "etc/systemd/system/sockets.target.wants/holdfastd.socket").unlink()
    machine.enable("sockets", "virtlockd.socket")
    findings = machine.findings()
    assert {"HF003", "HF021", "HF022", "HF023", "HF024", "HF026"} <= {each.id for each in findings}
    for finding in findings:
        if finding.id != "HF022":
            assert "--now" not in finding.fix, finding
            assert not re.search(r"systemctl (re)?(start|stop)|virtlockd\.service", finding.fix), finding


def test_unit_that_systemd_merged_with_virtlockd_is_not_called_holdfastd(machine: Machine) -> None:
    beside_virtlockd(machine)
    machine.host.listens = 1
    machine.host.units["holdfastd.service"]["MainPID"] = "540"
    assert "systemd takes virtlockd (pid 540) for holdfastd.service" in machine.one("HF026").facts
    assert "virtlockd serves" in machine.one("HF021").facts


def test_socket_of_systemd_is_asked_for_the_service_behind_it(machine: Machine) -> None:
    machine.host.listens = 1
    assert machine.ids() == set()
    machine.host.units["holdfastd.socket"]["ActiveState"] = "inactive"
    assert {"HF021", "HF025"} <= machine.ids()


def test_socket_unit_that_failed_has_a_fix_that_starts_it(machine: Machine) -> None:
    machine.host.units["holdfastd.socket"].update(ActiveState="failed", Result="start-limit-hit")
    finding = machine.one("HF025")
    assert "failed (start-limit-hit): libvirtd.service requires it" in finding.facts
    assert finding.fix.endswith("systemctl start holdfastd.socket")


# --- VMs that run ---


def test_vm_without_a_lock_is_not_sent_to_a_resume_that_takes_none(machine: Machine) -> None:
    machine.start("web1", "/srv/web1.img")
    assert machine.one("HF090").fix == "virsh suspend -- web1 && virsh resume -- web1"
    machine.qemu('lock_manager = "nop"\n')
    assert "virsh" not in machine.one("HF090").fix


def test_disk_of_a_running_vm_that_no_lock_names_is_a_problem(machine: Machine) -> None:
    machine.start("web1", "/srv/web1.img", "/srv/data.img")
    machine.lock("web1", "/srv/web1.img")
    assert "web1 (pid 4242) has no lock on /srv/data.img" in machine.one("HF091").facts
    machine.lock("web1", "/srv/data.img")
    assert machine.ids() == set()


def test_vm_with_disks_of_unlocked_kinds_only_is_not_called_known(machine: Machine) -> None:
    """public-reports.md 5: nothing was said of its disks, and doctor was content."""
    machine.start(
        "nbd", "<disk type='network'><source protocol='nbd' name='export'/><target dev='vda'/></disk>"
    )
    findings = machine.findings()
    assert "nbd:export (vda) of nbd" in machine.one("HF083").facts
    assert not [each for each in findings if each.check in ("running VMs", "disks")]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("network", "<source protocol='rbd' name='pool/image'/>"),
        ("nvme", "<source type='pci' namespace='1'/>"),
        ("vhostuser", "<source type='unix' path='/run/vhost.sock'/>"),
        ("vhostvdpa", "<source dev='/dev/vhost-vdpa-0'/>"),
    ],
)
def test_every_kind_that_libvirt_does_not_lock_is_named(machine: Machine, kind: str, source: str) -> None:
    machine.define("web", f"<disk type='{kind}'>{source}</disk>")
    assert "HF083" in machine.problems()
    machine.define("web", f"<disk type='{kind}'>{source}<readonly/></disk>")
    assert machine.ids() == set()


def test_volume_of_a_pool_is_the_file_that_libvirt_locks(machine: Machine) -> None:
    machine.start("web1", "<disk type='volume'><source pool='images' volume='web1.img'/></disk>")
    assert "images/web1.img of web1" in machine.one("HF087").facts
    assert "web1 (pid 4242) runs without any lock" in machine.one("HF090").facts, "script r11"
    machine.lock("web1", "/srv/images/web1.img")
    assert machine.ids() == {"HF087"}, "it has as many locks as volumes"
    machine.locks.clear()
    assert "web1 (pid 4242) has no lock on images/web1.img" in machine.one("HF091").facts
    machine.owners.clear()
    pool = "<pool type='dir'><name>images</name><target><path>/srv/images</path></target></pool>"
    machine.file("etc/libvirt/storage/images.xml", pool)
    assert "HF087" not in machine.ids()
    assert machine.ids() == {"HF090"}, "it runs without a lock on that file"
    machine.lock("web1", "/srv/images/web1.img")
    assert machine.ids() == set()


def test_disk_of_a_kind_that_is_not_known_is_named_with_its_reason(machine: Machine) -> None:
    machine.start("web1", "<disk type='ram'><source size='1'/><target dev='vda'/></disk>")
    finding = machine.one("HF083")
    assert "type='ram' (vda) of web1: whether libvirt asks a lock for it is not known" in finding.facts
    assert "virsh dumpxml" in finding.fix


def test_what_no_lock_guards_beside_the_disks_is_a_note(machine: Machine) -> None:
    chain = "<backingStore type='file'><source file='/srv/base.img'/></backingStore>"
    disk = f"<disk type='file'><source file='/srv/top.img'/>{chain}<target dev='vda'/></disk>"
    machine.start("web1", disk)
    machine.lock("web1", "/srv/top.img")
    assert machine.problems() == set()
    assert "backing image of vda /srv/base.img (web1): not locked" in machine.one("HF089").facts
    machine.host.processes.pop()
    assert "HF089" not in machine.ids(), "it has ended"


def test_tpm_state_that_is_held_within_the_host_is_no_finding(machine: Machine) -> None:
    tpm = "<tpm model='tpm-crb'><backend type='emulator'><source type='dir' path='/var/tpm'/></backend></tpm>"
    machine.start("web1", tpm)
    assert "TPM state /var/tpm (web1)" in machine.one("HF089").facts
    machine.lock("web1", "/var/tpm", space=HOST_LOCKSPACE, backend=host_files.NAME)
    assert "HF089" not in machine.ids()
    assert machine.problems() == set()


def test_status_file_that_can_not_be_read_is_a_problem(machine: Machine) -> None:
    path = machine.file("run/libvirt/qemu/web1.xml", "<domstatus pid='4242'><domain>")
    facts = machine.one("HF095").facts
    assert facts.startswith(f"{path} can't be read (it is no XML: no element found")
    path.write_text("<domstatus/>")
    assert "there is no domain in it" in machine.one("HF095").facts


def test_lock_of_a_backend_that_was_only_renamed_is_fine(machine: Machine) -> None:
    machine.start("web1", "/srv/web1.img")
    machine.lock("web1", "/srv/web1.img", backend="before")
    assert machine.one("HF092").fix == "virsh suspend -- web1 && virsh resume -- web1"
    config = machine.scene().config
    machine.in_force = msgspec.structs.replace(config, backend={"before": config.backend["file"]})
    assert "HF092" not in machine.ids()


def test_qemu_that_holdfast_run_started_is_none_outside_libvirt(machine: Machine) -> None:
    image = machine.file("web.img")
    machine.program(os.getpid(), "qemu-system-x86", "qemu-system-x86_64", "-hda", str(image))
    assert f"has {image}, and no lock manager knows of it" in machine.one("HF093").facts
    machine.lock("run", str(image), pid=os.getppid())
    assert "HF093" not in machine.ids()


def test_user_who_is_not_root_is_told_so_first(machine: Machine) -> None:
    machine.host.is_root = False
    machine.not_permitted = True
    machine.status, machine.unreachable = None, "this user may not connect to holdfastd at X"
    (machine.root / "etc/libvirt/qemu.conf").unlink()
    findings = [each for each in machine.findings() if each.id]
    assert findings[0].id == "HF004"
    assert findings[0].fix == "sudo holdfast doctor"
    assert "HF003" not in machine.ids(), "it may well answer, but not to this user"


def test_backend_that_locks_nothing_is_not_called_what_disks_need(machine: Machine) -> None:
    machine.define("web", "/srv/web.img")
    assert any(each.check == "disks" and each.severity == "ok" for each in machine.findings())
    machine.configure('[backend.none]\ndriver = "nop"\n', top='default_backend = "none"')
    assert 'driver = "nop" locks nothing' in machine.one("HF088").facts
    assert not any(each.check == "disks" and each.severity == "ok" for each in machine.findings())


def test_disk_that_the_daemon_calls_moved_is_reported_once_with_its_command(machine: Machine) -> None:
    machine.start("web1", "/srv/web1.img")
    machine.lock("web1", "/srv/web1.img", backend="before")
    machine.status = status(
        problems=[
            f"{MOVED_PROBLEM}/srv/web1.img of web1 (pid 4242) is of backend 'before'; virsh suspend web1"
        ]
    )
    assert machine.one("HF092").fix == "virsh suspend web1"


def test_device_in_whose_lockspace_nobody_else_was_seen_is_noted(machine: Machine) -> None:
    machine.configure(
        '[backend.san]\ndriver = "paxos"\ndevice = "/dev/null"\nhost_id = 1\nwatchdog = "device"\nlockspace = "vms"\n'
    )
    machine.enable("timers", "holdfast-lease-gc.timer")
    machine.spaces = [space("vms")]
    assert machine.ids() == {"HF074"}
    machine.spaces[0].hosts.append(HostInfo(2, "beta", "LIVE", 1, 10, 1.0, None, ""))
    assert machine.ids() == set()


def test_daemons_of_containers_are_none_of_this_host(machine: Machine) -> None:
    """Seen: another host in namespaces of the same kernel, and doctor advised to stop its virtlockd."""
    machine.host.processes.append(Program(540, "virtlockd", elsewhere=True))
    machine.host.processes.append(Program(541, "libvirtd", started=0.0, elsewhere=True))
    assert machine.ids() == set()
    machine.host.processes.append(Program(542, "virtlockd"))
    assert machine.ids() == {"HF028"}


def test_vm_in_a_mount_namespace_of_its_own_runs_all_the_same(machine: Machine) -> None:
    """libvirt gives each QEMU one."""
    machine.start("web1", "/srv/web1.img")
    qemu = machine.host.processes.pop()
    machine.host.processes.append(Program(qemu.pid, qemu.name, qemu.arguments, elsewhere=True))
    assert machine.ids() == {"HF090"}


def test_hashed_names_of_disks_with_leases_are_noted(with_leases: Machine) -> None:
    assert "HF120" not in with_leases.ids()
    with_leases.lockd('file_lockspace_dir = "/srv/lockd"\n')
    finding = with_leases.one("HF120")
    assert "file_lockspace_dir" in finding.facts
    assert "backend 'san' has leases" in finding.facts


def test_hashed_names_of_disks_without_leases_are_no_finding(machine: Machine) -> None:
    machine.lockd('file_lockspace_dir = "/srv/lockd"\n')
    assert "HF120" not in machine.ids()


def test_records_with_another_io_timeout_are_noted_with_both_figures(with_leases: Machine) -> None:
    assert "HF075" not in with_leases.ids()
    make_lockspace(with_leases.root / "leases" / SPACE, io_timeout_s=3)
    facts = with_leases.one("HF075").facts
    assert "io_timeout_s = 10 (backend 'san') is what this host goes by" in facts
    assert "say 3 s" in facts


def test_a_process_that_has_ended_and_that_nobody_has_waited_for_does_not_run() -> None:
    """A virtlockd that was killed would be a second one, or bar holdfastd."""
    with subprocess.Popen(["sleep", "100"]) as process:
        assert process.pid in [each.pid for each in ThisHost().programs()]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in [each.pid for each in ThisHost().programs()]


def test_a_killed_process_with_a_thread_in_the_kernel_runs() -> None:
    """A QEMU whose storage hangs looks like that, and still writes: its first thread has ended, and another one has not."""
    first_ends = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", first_ends]) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        try:
            wait_until(lambda: ") Z" in stat.read_text(), "the first thread to end")
            assert process.pid in [each.pid for each in ThisHost().programs()]
        finally:
            process.kill()
