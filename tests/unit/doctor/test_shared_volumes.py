"""What doctor finds of hosts with driver lvm: one thing is broken in each case."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.doctor.machine import Machine

LVM = '[backend.san]\ndriver = "lvm"\n[[disk]]\nmatch = "/dev/vg/*"\nbackend = "san"\n'
UUID = "1parGL-KnFF-TLkv-UqLu-PhWB-7d8R-Lbwgeb"
LVS = f"  vg|web|{UUID}|sanlock|linear|public|\n  local|root|x|none|linear|public|\n"
GUARD = '[backend.leases]\ndriver = "paxos"\ndirectory = "/srv/leases"\nhost_id = 1\nwatchdog = "none"\n'
HOOK = "etc/libvirt/hooks/qemu.d/holdfast"


@pytest.fixture
def host(machine: Machine) -> Machine:
    """As it should be, with a VM on a volume."""
    machine.configure(LVM)
    machine.program(50, "lvmlockd", "/sbin/lvmlockd", "--adopt", "1", "--gl-type=sanlock")
    machine.host.outputs |= {
        "lvmconfig": 'host_id=1\nlvmlockctl_kill_command="/usr/bin/holdfast lvm kill"\n',
        "lvs": LVS,
        "lvmlockctl": f"VG vg lock_type=sanlock x\nLS sanlock lvm_vg\nLK LV ex {UUID}\n",
    }
    machine.file("dev/vg/web", "")
    machine.file(HOOK, "#!/bin/sh\n").chmod(0o755)
    machine.start("web1", "/dev/vg/web")
    machine.lock("web1", "/dev/vg/web", backend="san")
    return machine


def ids(machine: Machine) -> set[str]:
    return {each for each in machine.ids() if each >= "HF130"}


def test_host_as_it_should_be_has_nothing_to_fix(host: Machine) -> None:
    assert ids(host) == set()


def test_volume_that_all_hosts_have_active_is_idle_only_where_it_is_exclusive(host: Machine) -> None:
    host.configure(
        LVM.replace('driver = "lvm"\n', 'driver = "lvm"\nactivation = "shared"\nguard = "leases"\n') + GUARD
    )
    idle = UUID.replace("1par", "2par")
    host.host.outputs["lvs"] = LVS + f"  vg|idle|{idle}|sanlock|linear|public|\n"
    host.file("dev/vg/idle", "")
    host.host.outputs["lvmlockctl"] = f"LK LV sh {UUID}\nLK LV sh {idle}\n"
    assert "HF142" not in host.ids()
    host.host.outputs["lvmlockctl"] = f"LK LV sh {UUID}\nLK LV ex {idle}\n"
    assert "HF142" in host.ids()


def test_nothing_is_asked_where_the_driver_is_not_configured(host: Machine) -> None:
    host.configure("")
    host.host.outputs["lvmconfig"] = ""
    assert ids(host) == set()


def without_lvmlockd(m: Machine) -> None:
    m.host.processes = [each for each in m.host.processes if each.name != "lvmlockd"]


def lvmlockd(*words: str) -> Callable[[Machine], None]:
    def seed(m: Machine) -> None:
        without_lvmlockd(m)
        m.program(50, "lvmlockd", "/sbin/lvmlockd", *words)

    return seed


def says(command: str, text: str) -> Callable[[Machine], None]:
    def seed(m: Machine) -> None:
        m.host.outputs[command] = text

    return seed


def without_hook(m: Machine) -> None:
    (m.root / HOOK).chmod(0o644)


def installed_late(m: Machine) -> None:
    m.program(51, "libvirtd", "/usr/sbin/libvirtd", age_s=-10.0)
    assert "HF143" not in ids(m), "it was started after the hook was installed"
    m.program(52, "virtqemud", "/usr/sbin/virtqemud", age_s=10.0)


def other_hook(m: Machine) -> None:
    m.file("etc/libvirt/hooks/qemu", "#!/usr/bin/python3\n# reads lvmlock.ini\n").chmod(0o755)


def hashes(m: Machine) -> None:
    m.lockd('lvm_lockspace_dir = "/srv/lockd"\n')


def pool(m: Machine) -> None:
    m.file(
        "etc/libvirt/storage/san.xml",
        "<pool type='logical'><name>san</name><source><device path='/dev/sdb'/><name>vg</name></source></pool>",
    )


def mapper(m: Machine) -> None:
    m.define("db1", "/dev/mapper/vg-db")


def idle(m: Machine) -> None:
    """By its device: an lvs that waits for no lock says nothing of lv_active."""
    m.host.outputs["lvs"] = LVS + "vg|old|y|sanlock|linear|public|\n"
    assert ids(m) == set(), "it is not active"
    m.file("dev/vg/old", "")


def kind(layout: str, roles: str = "public", pool: str = "") -> Callable[[Machine], None]:
    return says("lvs", f"vg|web|{UUID}|sanlock|{layout}|{roles}|{pool}\n")


SEEDED = {
    "no lvmlockd": (without_lvmlockd, "HF130"),
    "no adoption": (lvmlockd("--gl-type", "sanlock"), "HF131"),
    "adoption is off": (lvmlockd("-A0"), "HF131"),
    "short timeout": (lvmlockd("-A1", "-o2"), "HF132"),
    "no host id": (says("lvmconfig", 'lvmlockctl_kill_command="x"\n'), "HF133"),
    "no kill command": (says("lvmconfig", 'host_id=1\nlvmlockctl_kill_command=""\n'), "HF134"),
    "no hook": (without_hook, "HF135"),
    "other hook": (other_hook, "HF136"),
    "hashes": (hashes, "HF137"),
    "pool": (pool, "HF138"),
    "mapper": (mapper, "HF139"),
    "thin": (kind("thin,sparse", pool="pool"), "HF140"),
    "raid": (kind("raid,raid1"), "HF140"),
    "cache": (kind("cache", pool="[fast_cpool]"), "HF140"),
    "has snapshots": (kind("linear", "public,origin,thickorigin"), "HF140"),
    "snapshot": (kind("linear", "public,snapshot,thicksnapshot"), "HF140"),
    "no lock": (says("lvmlockctl", f"LK LV un {UUID}\n"), "HF141"),
    "idle": (idle, "HF142"),
    "late hook": (installed_late, "HF143"),
}


@pytest.mark.parametrize("row", SEEDED)
def test_seeded_fault_is_found_alone(host: Machine, row: str) -> None:
    seed, id = SEEDED[row]
    seed(host)
    assert ids(host) == {id}
    if id == "HF140":
        facts = next(each.facts for each in host.findings() if each.id == id)
        assert "two hosts" in facts or "no lock for a snapshot" in facts
    assert all(each.facts and each.fix for each in host.findings() if each.id == id)
    assert "HF012" not in host.ids()


@pytest.mark.parametrize(
    "words",
    [
        ("-fA1",),
        ("-A", "1", "-p", "/run/-A0"),
        ("--adopt=0", "-A1"),
        ("--later-option=x", "--adopt", "1"),
    ],
    ids=" ".join,
)
def test_adoption_is_read_as_lvmlockd_reads_its_options(host: Machine, words: tuple[str, ...]) -> None:
    lvmlockd(*words)(host)
    assert "HF131" not in ids(host)


@pytest.mark.parametrize("words", [("-A1", "-A0"), ("-p", "-A1"), ("-g", "sanlock", "-f")], ids=" ".join)
def test_adoption_that_is_off_is_seen_whatever_stands_beside_it(
    host: Machine, words: tuple[str, ...]
) -> None:
    lvmlockd(*words)(host)
    assert ids(host) == {"HF131"}


def test_kill_command_is_asked_for_where_sanlock_calls_it(host: Machine) -> None:
    host.host.outputs["lvmconfig"] = "host_id=1\n"
    host.host.outputs["lvs"] = LVS.replace("sanlock", "dlm")
    assert ids(host) == set()
    host.host.outputs["lvs"] = LVS + "  vg2|db|y|dlm|linear|public|\n"
    assert ids(host) == {"HF134"}
    assert "sanlock's watchdog" in next(each.facts for each in host.findings() if each.id == "HF134")
    host.host.outputs["lvs"] = ""
    assert "HF134" in ids(host), "no volume yet: the type is not known"


@pytest.mark.parametrize("activation", ["exclusive", "shared"])
def test_guarded_volume_has_the_protection_that_its_leases_promise(host: Machine, activation: str) -> None:
    keys = f'driver = "lvm"\nactivation = "{activation}"\nguard = "leases"\n'
    guard = GUARD.replace("host_id = 1\n", "host_id = 1\ncross_host = true\n")
    host.configure(LVM.replace('driver = "lvm"\n', keys) + guard, top="require_protection = 2")
    assert not host.ids() & {"HF080", "HF081"}
