"""What `holdfast setup` proposes, and which steps it finds in the facts."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from holdfast.backends.paxos.config import lockspace_spec
from holdfast.cli.doctor.findings import found
from holdfast.cli.setup.facts import Facts, HostThere, Proposal, SpaceSeen, Watchdog, Wishes
from holdfast.cli.setup.plan import plan
from holdfast.cli.setup.profiles import PROFILES, words
from holdfast.cli.setup.proposal import propose
from holdfast.cli.setup.steps import Plan, Run, Switch, SwitchLive, WriteFile
from holdfast.protocol.timing import Timing

DIRECTORY = "/srv/shared/leases"
EMPTY = SpaceSeen(DIRECTORY, f"{DIRECTORY}/__LIBVIRT__DISKS__", False)
WATCHDOG = Watchdog(device=True)


def there(*hosts: HostThere, unused: int = 10, hosts_max: int = 2000) -> SpaceSeen:
    return SpaceSeen(
        DIRECTORY,
        f"{DIRECTORY}/__LIBVIRT__DISKS__",
        False,
        name="__LIBVIRT__DISKS__",
        hosts_max=hosts_max,
        unused_io_timeout_s=unused,
        hosts=hosts,
    )


def facts(**changes: Any) -> Facts:
    """A host that is set up without leases, but for the changes."""
    made: dict[str, Any] = {
        "config_file": "/etc/holdfast/holdfast.toml",
        "qemu_conf": "/etc/libvirt/qemu.conf",
        "lock_manager": "lockd",
        "holdfastd_runs": True,
        "libvirt_active": ("libvirtd.service",),
        **changes,
    }
    return Facts(**made)


def planned(proposal: Proposal | None = None, **changes: Any) -> Plan:
    return plan(Wishes(), facts(**changes), proposal or Proposal(), None)


def ids(found: Plan) -> list[str]:
    return [each.id for each in found.steps]


# --- profiles ---


def test_profiles_say_what_the_protocol_computes() -> None:
    """The seconds by hand: 8 io_timeouts + fire, 7 io_timeouts more at most, and 4 io_timeouts of stall."""
    said = {name: words(timing, has_watchdog=True) for name, timing in PROFILES.items()}
    assert "takeover of a dead host in 140 to 210 s, survives a storage stall of 40 s" in said["sanlock"]
    assert "takeover of a dead host in 70 to 105 s, survives a storage stall of 20 s" in said["balanced"]
    assert "takeover of a dead host in 26 to 40 s, survives a storage stall of 8 s" in said["fast"]
    assert "VMs are killed at once" in said["fast"]
    assert all(not timing.broken() for timing in PROFILES.values())
    assert "nothing resets a host that hangs" in words(PROFILES["fast"], has_watchdog=False)


# --- proposals ---


def test_first_host_gets_a_configuration_that_can_be_used_with_the_same_rule_as_every_other_host() -> None:
    made = propose(Wishes(leases=DIRECTORY, profile="balanced"), EMPTY, WATCHDOG)
    assert made.refusals == ()
    tree = tomllib.loads(made.text)
    assert lockspace_spec(tree["backend"]["leases"]).timing == Timing(5, 30)
    assert tree["backend"]["leases"]["watchdog"] == "device"
    assert tree["disk"] == [{"match": "*", "backend": "leases"}]
    assert "on_loss" not in made.text
    second = propose(Wishes(join=DIRECTORY), there(HostThere(1, "alpha", 5, 30)), WATCHDOG)
    assert second.text == made.text


@pytest.mark.parametrize(("watchdog", "resets"), [("device", True), ("none", False)])
def test_late_writes_of_killed_vms_are_reset_away_where_they_are_possible(
    watchdog: str, resets: bool
) -> None:
    space = replace(EMPTY, outlives_its_writers=True)
    made = propose(Wishes(leases=DIRECTORY, profile="balanced", watchdog=watchdog), space, WATCHDOG)
    assert tomllib.loads(made.text)["backend"]["leases"].get("on_loss") == ("reset" if resets else None)
    assert any("may land after another host has its disk" in reason for reason in made.reasons) is resets


def test_joining_host_takes_the_timeouts_that_the_lockspace_records() -> None:
    alone = propose(Wishes(join=DIRECTORY), there(unused=2), WATCHDOG)
    assert alone.timing == Timing(2, 10)
    sanlocks = propose(Wishes(join=DIRECTORY), there(HostThere(1, "s", 5)), WATCHDOG)
    assert sanlocks.timing == Timing(5, 60), "sanlock's own"


def test_hosts_of_holdfast_that_do_not_say_their_fire_timeout_leave_it_to_the_operator() -> None:
    """On a device there is no place where they could say it, and one that counts less than another takes over too early."""
    silent = there(HostThere(1, "a", 5, by_holdfast=True))
    assert "give --profile" in propose(Wishes(join=DIRECTORY), silent, WATCHDOG).refusals[0]
    assert propose(Wishes(join=DIRECTORY, profile="balanced"), silent, WATCHDOG).timing == Timing(5, 30)
    before = Wishes(join=DIRECTORY, timing=Timing(5, 60))
    assert propose(before, silent, WATCHDOG).timing == Timing(5, 60), "an earlier run has decided it"


@pytest.mark.parametrize(
    ("wishes", "space", "watchdog", "reason"),
    [
        (Wishes(join=DIRECTORY), EMPTY, WATCHDOG, "no lockspace to join"),
        (Wishes(join=DIRECTORY, profile="fast"), there(HostThere(1, "a", 10, 60)), WATCHDOG, "does not fit"),
        (
            Wishes(join=DIRECTORY),
            there(HostThere(1, "a", 10, 60), HostThere(2, "b", 5, 60)),
            WATCHDOG,
            "do not agree",
        ),
        (
            Wishes(join=DIRECTORY),
            there(HostThere(1, "a", 10, 60), HostThere(2, "b", 10, 30)),
            WATCHDOG,
            "do not agree",
        ),
        (Wishes(join=DIRECTORY), there(HostThere(1, "a", 10), hosts_max=1), WATCHDOG, "are in use"),
        (Wishes(leases=DIRECTORY), EMPTY, Watchdog(), "there is no /dev/watchdog"),
        (Wishes(leases=DIRECTORY), EMPTY, Watchdog(True, ("systemd (pid 1)",)), "systemd (pid 1) has /dev/watchdog"),
        (Wishes(leases=DIRECTORY), EMPTY, Watchdog(True, nowayout=True), "nowayout=1"),
        (Wishes(leases=DIRECTORY), EMPTY, Watchdog(True, timeout_max_s=30), "counts to 30 s"),
        (Wishes(leases=DIRECTORY, profile="fast"), EMPTY, Watchdog(wdmd=True), "Holdfast's own watchdog driver"),
        (Wishes(leases=DIRECTORY, watchdog="wdmd"), EMPTY, WATCHDOG, "wdmd does not run"),
        (
            Wishes(leases=DIRECTORY),
            SpaceSeen(DIRECTORY, DIRECTORY, False, fault="/srv holds a qcow2 image", fix="choose another"),
            WATCHDOG,
            "holds a qcow2 image",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(
    wishes: Wishes, space: SpaceSeen, watchdog: Watchdog, reason: str
) -> None:
    made = propose(wishes, space, watchdog)
    assert any(reason in each for each in made.refusals), made.refusals
    assert made.text == ""
    assert plan(wishes, facts(), made, space).steps == ()


def test_no_watchdog_is_taken_only_when_it_is_asked_for() -> None:
    made = propose(Wishes(leases=DIRECTORY, watchdog="none"), EMPTY, Watchdog())
    assert 'watchdog = "none"' in made.text
    assert any("NOTHING resets" in each for each in made.reasons)


# --- plans ---


def test_host_that_is_set_up_needs_nothing() -> None:
    assert planned() == Plan((), (), (), ())


def test_default_host_with_virtlockd_is_switched_before_libvirt_reads_its_files() -> None:
    made = planned(
        lock_manager=None,
        holdfastd_runs=False,
        virtlockd_units=("virtlockd.socket",),
        findings=(found("HF030", "x", "y"), found("HF021", "systemd listens at s for virtlockd", "z")),
    )
    assert ids(made) == ["qemu-conf", "switch", "libvirt"]
    assert made.steps[1].action == Switch(("virtlockd.socket",))
    assert made.by_hand == ()


def test_virtlockd_with_locks_of_vms_becomes_holdfastd_where_it_can() -> None:
    made = planned(
        virtlockd_pid=7,
        virtlockd_users=("web 1", "db"),
        virtlockd_units=("virtlockd.service",),
        virtlockd_not_live="",
        direct_backend="file",
    )
    assert made.refusals == ()
    step = made.steps[0]
    assert (step.id, step.action) == ("switch", SwitchLive(("virtlockd.service",), "file"))
    assert "web 1, db" in step.reason
    assert ids(made) == ["switch", "libvirt"]


def test_locks_of_somebody_unknown_are_taken_over_too() -> None:
    found: dict[str, Any] = {
        "virtlockd_pid": 7,
        "virtlockd_files": ("/srv/a",),
        "virtlockd_units": ("virtlockd.service",),
    }
    made = planned(**found, virtlockd_not_live="", direct_backend="file")
    assert isinstance(made.steps[0].action, SwitchLive)
    assert "holdfast who" in planned(**found, virtlockd_not_live="a stranger").refusals[0]


def test_vm_that_virtlockd_would_kill_is_named_and_nothing_is_done_about_it() -> None:
    made = planned(
        virtlockd_pid=7,
        virtlockd_users=("web 1",),
        virtlockd_units=("virtlockd.service",),
        virtlockd_not_live="it can't",
    )
    (refusal,) = made.refusals
    assert "KILLS 1 VMs" in refusal
    assert "virsh suspend -- 'web 1' && holdfast setup; virsh resume -- 'web 1'" in refusal


def test_lock_of_virtlockds_that_no_known_vm_has_is_a_refusal_too() -> None:
    (refusal,) = planned(virtlockd_pid=7, virtlockd_files=("/srv/x.img",)).refusals
    assert "/srv/x.img" in refusal


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_root": False}, "sudo"),
        ({"systemd": False}, "systemctl does not answer"),
        ({"units_there": False}, "not installed"),
        ({"libvirt_here": False}, "install libvirt's QEMU driver"),
        ({"config_broken": "it is not TOML"}, "correct /etc/holdfast/holdfast.toml"),
        ({"lock_manager": "sanlock"}, "docs/sanlock.md"),
        ({"lock_manager": None, "cannot_edit": "apt-get install augeas-tools"}, "augeas-tools"),
        ({"findings": (found("HF067", "local leases", "mount it"),)}, "local leases; mount it"),
        ({"findings": (found("HF032", "qemu.conf, line 3", "correct it"),)}, "line 3"),
    ],
)
def test_host_that_is_not_ready_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert any(reason in each for each in planned(**changes).refusals)


def test_configuration_of_somebody_else_is_never_overwritten() -> None:
    proposal = propose(Wishes(leases=DIRECTORY), EMPTY, WATCHDOG)
    foreign = planned(proposal=proposal, config_text="# mine\n")
    assert "configuration" not in ids(foreign)
    assert "was not written by setup" in foreign.refusals[0]
    assert planned(config_text="# mine\n").refusals == (), "it is used as it is"
    not_joined = planned(config_text="# mine\n", findings=(found("HF064", "vms is not joined", "wait"),))
    assert not_joined.by_hand[0].id == "HF064"
    for changes in ({"config_text": None}, {"config_text": "old", "config_is_ours": True}):
        ours = planned(proposal=proposal, **changes)
        (step,) = (each for each in ours.steps if each.id == "configuration")
        assert isinstance(step.action, WriteFile)
        assert step.action.text == proposal.text
        assert "reload" in ids(ours)


def test_what_no_step_mends_is_left_to_a_person_with_doctors_fix() -> None:
    made = planned(findings=(found("HF111", "mpatha queues", "no_path_retry fail"), found("HF030", "x", "y")))
    (hand,) = made.by_hand
    assert (hand.id, hand.facts, hand.fix) == ("HF111", "mpatha queues", "no_path_retry fail")


def test_local_locks_on_shared_devices_lead_to_leases() -> None:
    made = planned(findings=(found("HF080", "/dev/vg/web of web1", "a rule"),))
    assert "holdfast setup --leases" in made.by_hand[0].fix


def test_clock_rate_is_mended_where_chrony_reads_a_directory_and_else_left_to_a_person() -> None:
    finding = (found("HF070", "chrony slews", "write maxslewrate"),)
    mended = planned(
        findings=finding, chrony_drop_in="/etc/chrony/conf.d/zz.conf", chrony_unit="chrony.service"
    )
    assert ids(mended) == ["clock-rate"]
    assert mended.by_hand == ()
    left = planned(findings=finding)
    assert ids(left) == []
    assert left.by_hand[0].id == "HF070"


def test_leases_of_deleted_disks_are_collected_where_the_timer_is_installed() -> None:
    leases, finding = (
        propose(Wishes(leases=DIRECTORY), EMPTY, WATCHDOG),
        (found("HF072", "no timer", "enable it"),),
    )
    config = {"config_text": leases.text, "findings": finding}
    assert ids(planned(leases, gc_timer_there=True, **config)) == ["lease-gc"]
    without = planned(leases, **config)
    assert (ids(without), without.by_hand[0].id) == ([], "HF072")


def test_hook_is_installed_once_after_holdfastd_serves() -> None:
    asked = Wishes(hook=True)
    made = plan(asked, facts(hook_source="/usr/share/x", holdfastd_runs=False), Proposal(), None)
    assert ids(made) == ["start", "hook"]
    assert ids(plan(asked, facts(hook_source="/x", hook_there=True), Proposal(), None)) == []
    assert "leave --hook out" in plan(asked, facts(), Proposal(), None).refusals[0]


def test_libvirt_that_setup_has_stopped_is_started_again() -> None:
    assert ids(planned(libvirt_active=(), libvirt_stopped=("libvirtd.socket",))) == ["libvirt"]
    assert ids(planned(findings=(found("HF035", "changed", "restart"),))) == ["libvirt"]


def test_sockets_of_a_libvirt_that_idles_are_started_again_after_the_switch() -> None:
    made = planned(libvirt_active=("libvirtd.socket",), virtlockd_units=("virtlockd.socket",))
    assert ids(made) == ["switch", "libvirt"]
    assert made.steps[1].action == Run((("systemctl", "restart", "libvirtd.socket"),))
    assert ids(planned(libvirt_active=("libvirtd.socket",), lock_manager=None)) == ["qemu-conf"]
