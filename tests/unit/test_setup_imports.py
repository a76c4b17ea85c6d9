"""What `holdfast setup` makes of qemu-sanlock.conf and qemu-lockd.conf: each setting is taken over, or named with a fix."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.libvirt_conf import parse
from holdfast.cli.setup.facts import Carried, HostThere, Proposal, SpaceSeen, Watchdog, Wishes
from holdfast.cli.setup.lock_settings import of_lockd, of_sanlock
from holdfast.cli.setup.proposal import propose
from holdfast.cli.setup.show import words_of_setting
from holdfast.cli.setup.survey import read_sanlock

DIRECTORY = "/srv/leases"
PLUGIN = """auto_disk_leases = 1
disk_lease_dir = "/srv/leases/"
host_id = 7
io_timeout = 5
require_lease_for_disks = 1
user = "sanlock"
group = "disk"
"""


def seen(place: str = DIRECTORY, *hosts: HostThere, name: str = "", **more: Any) -> SpaceSeen:
    return SpaceSeen(place, f"{place}/__LIBVIRT__DISKS__", False, name=name, hosts=hosts, **more)


def carried(
    root: Path,
    text: str,
    wishes: Wishes = Wishes(leases=DIRECTORY),  # noqa: B008
    space: SpaceSeen | None = seen(),  # noqa: B008
    *,
    manager: str = "lockd",
    configured: bool = False,
) -> tuple[Proposal, dict[str, Carried]]:
    (root / "etc/libvirt").mkdir(parents=True)
    (root / "etc/libvirt/qemu-sanlock.conf").write_text(text)
    sanlock = read_sanlock(str(root))
    made = propose(wishes, space, Watchdog(device=True), sanlock.plugin)
    lines = of_sanlock(sanlock, space, made, manager=manager, configured=configured)
    return made, {each.setting.split(" ")[0]: each for each in lines}


def leases_of(made: Proposal) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(made.text)["backend"]["leases"]
    return table


def test_settings_of_the_sanlock_plugin_are_in_the_proposal_or_named_with_the_fix(tmp_path: Path) -> None:
    made, lines = carried(tmp_path, PLUGIN)
    leases = leases_of(made)
    assert (leases["directory"], leases["host_id"], leases["io_timeout_s"]) == (DIRECTORY, 7, 5)
    assert leases["fire_timeout_s"] == 60, "sanlock's own"
    assert [name for name, each in lines.items() if each.used] == [
        *("auto_disk_leases", "disk_lease_dir", "host_id", "io_timeout", "require_lease_for_disks"),
    ]
    assert lines["user"].fix.endswith(f"chown -- sanlock {DIRECTORY}/__LIBVIRT__DISKS__")
    assert lines["group"].fix.endswith(f"chgrp -- disk {DIRECTORY}/__LIBVIRT__DISKS__")
    assert any("host_id = 7: this host's in qemu-sanlock.conf" in each for each in made.reasons)
    said = words_of_setting(lines["host_id"])
    assert said == "qemu-sanlock.conf: host_id = 7: taken over: so that no other host has it"


def test_what_the_lockspace_records_counts_more_than_the_file(tmp_path: Path) -> None:
    space = seen(
        DIRECTORY, HostThere(7, "beta", 10), name="__LIBVIRT__DISKS__", hosts_max=2000, unused_io_timeout_s=10
    )
    made, lines = carried(tmp_path, PLUGIN, Wishes(join=DIRECTORY), space)
    assert leases_of(made)["io_timeout_s"] == 10
    assert not lines["io_timeout"].used and "10 s" in lines["io_timeout"].reason
    assert any("beta has it now" in each for each in made.reasons)


def test_a_profile_that_is_asked_for_counts_more_than_the_file(tmp_path: Path) -> None:
    made, lines = carried(tmp_path, PLUGIN, Wishes(leases=DIRECTORY, profile="fast"))
    assert leases_of(made)["io_timeout_s"] == 2
    assert not lines["io_timeout"].used


def test_host_id_that_new_leases_would_not_serve_is_not_used(tmp_path: Path) -> None:
    """A host with an id above hosts_max could take no lease that another host has made."""
    made, lines = carried(tmp_path, PLUGIN.replace("= 7", "= 65"))
    assert leases_of(made)["host_id"] == "auto"
    assert not lines["host_id"].used and "--hosts-max" in lines["host_id"].fix


def test_host_id_of_another_lockspace_is_not_used(tmp_path: Path) -> None:
    made, lines = carried(tmp_path, PLUGIN, Wishes(leases="/srv/new"), seen("/srv/new"))
    leases = leases_of(made)
    assert (leases["host_id"], leases["io_timeout_s"]) == ("auto", 10)
    assert not any(lines[each].used for each in ("disk_lease_dir", "host_id", "io_timeout"))
    assert "DO NOT exclude each other" in lines["disk_lease_dir"].fix


@pytest.mark.parametrize(
    ("text", "manager", "configured", "space", "name", "words"),
    [
        (PLUGIN, "lockd", False, None, "disk_lease_dir", "holdfast setup --join /srv/leases"),
        (PLUGIN, "sanlock", False, None, "host_id", "holdfast import-sanlock"),
        (PLUGIN, "lockd", True, seen(), "host_id", "holdfast import-sanlock"),
        (PLUGIN + "check_disk_lease_owner = 1\n", "lockd", False, seen(), "check_disk_lease_owner", "not known"),
        (PLUGIN.replace("= 7", "= 0"), "lockd", False, seen(), "host_id", "no host id"),
        ("host_id = 7\n", "lockd", False, seen(), "host_id", "auto_disk_leases is not 1"),
        ("auto_disk_leases = 0\n", "lockd", False, seen(), "auto_disk_leases", "auto_disk_leases = 0 in qemu-lockd.conf"),
        ("require_lease_for_disks = 1\n", "lockd", False, seen(), "require_lease_for_disks", "into qemu-lockd.conf"),
        ("host_id = \n", "lockd", False, seen(), "", "line 1: expected a value"),
    ],
)  # fmt: skip
def test_what_is_not_taken_over_is_named(
    tmp_path: Path,
    text: str,
    manager: str,
    configured: bool,
    space: SpaceSeen | None,
    name: str,
    words: str,
) -> None:
    _, lines = carried(tmp_path, text, Wishes(), space, manager=manager, configured=configured)
    assert not lines[name].used
    assert words in words_of_setting(lines[name])


def test_statement_that_libvirt_ignores_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "etc/libvirt/qemu-sanlock.conf").write_text(PLUGIN + "host_id = 8\n")
    sanlock = read_sanlock(str(tmp_path))
    lines = of_sanlock(sanlock, None, Proposal(), manager="", configured=False)
    said = [words_of_setting(each) for each in lines]
    assert any("host_id = 8: NOT taken over: line 8" in each for each in said)


def test_no_file_and_a_file_of_comments_are_nothing(tmp_path: Path) -> None:
    assert list(of_sanlock(read_sanlock(str(tmp_path)), None, Proposal(), manager="", configured=False)) == []
    assert carried(tmp_path, "# host_id = 1\n") [1] == {}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "leases", "used", "words"),
    [
        ('file_lockspace_dir = "/srv/locks"\n', False, True, "lock files stay in /srv/locks"),
        ('file_lockspace_dir = "/srv/locks"\n', True, False, "remove it from qemu-lockd.conf"),
        ('lvm_lockspace_dir = "/srv/lvm"\n', True, False, "by hashes"),
        ('scsi_lockspace_dir = "/srv/scsi"\n', False, True, "hosts with virtlockd take part"),
        ("auto_disk_leases = 0\n", False, True, "no disk is locked"),
        ("auto_disk_leases = 1\n", False, True, "as before"),
        ("require_lease_for_disks = 1\n", True, True, "as before"),
        ("colour = 1\n", False, False, "not known"),
        ("auto_disk_leases\n", False, False, "line 1"),
    ],
)
def test_settings_of_the_lockd_plugin_are_named(text: str, leases: bool, used: bool, words: str) -> None:
    [line] = of_lockd(parse(text), leases=leases)
    assert line.used is used
    assert words in words_of_setting(line)
