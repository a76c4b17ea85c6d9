"""A host's configuration of sanlock becomes a holdfast.toml that loads; what it can't have is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.cli.exits import BAD_CONFIG
from holdfast.cli.main import cli
from holdfast.cli.sanlock_settings import options_of
from holdfast.config import Config, load
from holdfast.daemon.check_config import check_config

PLUGIN = """auto_disk_leases = 1
disk_lease_dir = "/srv/leases"
host_id = 7
io_timeout = 5
require_lease_for_disks = 1
user = "sanlock"
group = "disk"
"""
OPTIONS = "-U root -G root"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def imported(root: Path) -> tuple[Config, str]:
    """The configuration that the printed text is, with every rule kept; and the notes."""
    done = CliRunner().invoke(cli, ["import-sanlock", "--root", str(root)])
    assert done.exit_code == 0, done.stderr
    file = root / "holdfast.toml"
    file.write_text(done.stdout)
    return load(str(file), environ={}, uid=0), done.stderr


def test_every_setting_is_carried_over_or_named(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        {
            "etc/libvirt/qemu-sanlock.conf": PLUGIN,
            "etc/default/sanlock": f'# comment\nsanlock_opts="-o 20 {OPTIONS} -e alpha"\n',
        },
    )
    config, notes = imported(root)
    assert config.backend["leases"] == {
        "driver": "paxos",
        "directory": "/srv/leases",
        "lockspace": "__LIBVIRT__DISKS__",
        "host_id": 7,
        "io_timeout_s": 5,
        "fire_timeout_s": 60,
        "watchdog": "wdmd",
    }
    assert [(rule.match, rule.backend) for rule in config.disk] == [("*", "leases")]
    table = config.sanlock
    assert (table.socket, table.user, table.group) == ("/run/sanlock/sanlock.sock", "root", "root")
    assert (table.io_timeout_s, table.fire_timeout_s, table.watchdog) == (20, 60, "wdmd")
    for said in ("require_lease_for_disks = 1", "user = sanlock, group = disk", "our_host_name is not used"):
        assert said in notes
    assert len(notes.splitlines()) == 3
    _, problems = check_config(str(root / "holdfast.toml"))
    assert not problems


def test_without_a_watchdog_it_says_so(tmp_path: Path) -> None:
    """Debian's own file: sanlock runs there without one."""
    root = written(
        tmp_path,
        {
            "etc/libvirt/qemu-sanlock.conf": "auto_disk_leases = 1\nhost_id = 2\n",
            "etc/default/sanlock": f'sanlock_opts="-w 0 {OPTIONS}"\n',
        },
    )
    config, notes = imported(root)
    assert config.sanlock.watchdog == config.backend["leases"]["watchdog"] == "none"
    assert config.backend["leases"]["directory"] == "/var/lib/libvirt/sanlock"
    assert config.backend["leases"]["io_timeout_s"] == 10
    assert "no watchdog resets this host" in notes


def test_missing_host_id_is_never_invented(tmp_path: Path) -> None:
    for text in ("auto_disk_leases = 1\n", "auto_disk_leases = 1\nhost_id = 2001\n"):
        root = written(tmp_path, {"etc/libvirt/qemu-sanlock.conf": text})
        done = CliRunner().invoke(cli, ["import-sanlock", "--root", str(root)])
        assert "\nhost_id" not in done.stdout
        assert "[backend.leases]" in done.stdout
        assert "host_id is missing" in done.stderr


def test_leases_of_elements_alone_have_no_backend(tmp_path: Path) -> None:
    root = written(tmp_path, {"etc/libvirt/qemu-sanlock.conf": "host_id = 2\nunheard_of = 1\n"})
    config, notes = imported(root)
    assert "leases" not in config.backend
    assert not config.disk
    assert "auto_disk_leases is not 1" in notes
    assert "unheard_of" in notes


def test_files_win_in_the_order_of_our_unit(tmp_path: Path) -> None:
    files = {
        "etc/sysconfig/sanlock": f'SANLOCKOPTS="-o 3 {OPTIONS}"\n',
        "etc/default/sanlock": f"SANLOCKOPTS='-o 4 {OPTIONS}'\n",
        "etc/sanlock/sanlock.conf": "io_timeout = 5\nwatchdog_fire_timeout = 90\n",
    }
    config, _ = imported(written(tmp_path, files))
    assert (config.sanlock.io_timeout_s, config.sanlock.fire_timeout_s) == (4, 90)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("etc/libvirt/qemu-sanlock.conf", "host_id = \n", "line 1"),
        ("etc/default/sanlock", 'SANLOCKOPTS="-w\n', "No closing quotation"),
        ("etc/default/sanlock", "SANLOCKOPTS=-x\n", "option -x"),
    ],
)
def test_what_can_not_be_used_is_refused(tmp_path: Path, name: str, text: str, why: str) -> None:
    root = written(tmp_path, {name: text})
    done = CliRunner().invoke(cli, ["import-sanlock", "--root", str(root)])
    assert done.exit_code == BAD_CONFIG
    assert why in done.stderr
    assert not done.stdout


def test_json_has_both(tmp_path: Path) -> None:
    root = written(tmp_path, {"etc/libvirt/qemu-sanlock.conf": PLUGIN})
    done = CliRunner().invoke(cli, ["import-sanlock", "--root", str(root), "--json"])
    found = json.loads(done.stdout)
    assert "host_id = 7" in found["toml"]
    assert found["remarks"]


def test_last_assignment_counts_as_in_a_shell() -> None:
    text = (
        'SANLOCKOPTS=-w\\ 1\n  export SANLOCKOPTS="-w 0 -o 5" # here\n#SANLOCKOPTS="-o 9"\nOTHER=\'-o 7\'\n'
    )
    assert options_of([text]) == ["-w", "0", "-o", "5"]
    assert options_of([text, "sanlock_opts=-D", "SANLOCKOPTS="]) == ["-D"]
