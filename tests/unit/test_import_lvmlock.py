"""A host with libvirt-hook-lvmlock gets a rule for each shared volume group that its domains use; the rest is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.doctor.machine import domain_xml

from holdfast.cli.doctor.scene import ThisHost
from holdfast.cli.main import cli
from holdfast.config import load
from holdfast.system.libvirt.volume_hooks import (
    DEFAULT_ACTIONS,
    HOOK_BYTES_MAX,
    lvmlock_actions,
    lvmlock_hook,
    volume_hooks,
)

INI = """[log]
file = /var/log/libvirt/hooks/qemu.log
level = debug

[actions]
prepare = shared
started = exclusive
stopped = unlock
"""
KNOWN = '#!/usr/bin/python3\nread("/etc/libvirt/hooks/qemu.ini")\nrun("lvchange -an " + volume)\n'
"""What is recognized in its script."""
GROUPS = "  local \n  san   sanlock\n  web   dlm\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hooks = tmp_path / "etc/libvirt/hooks"
    hooks.mkdir(parents=True)
    (hooks / "qemu").write_text("#!/usr/bin/python3\nsubprocess.run(['lvchange'])\n")
    (hooks / "qemu").chmod(0o755)
    (hooks / "qemu.ini").write_text(INI)
    defined = tmp_path / "etc/libvirt/qemu"
    defined.mkdir()
    disks = {
        "one": ("/dev/san/one", "/srv/one.img"),
        "two": ("/dev/san/two", "/dev/local/two", "/dev/gone/two"),
        "three": ("/dev/web/three", "/dev/mapper/san-three", "/dev/disk/by-id/wwn-0x5"),
    }
    for name, paths in disks.items():
        (defined / f"{name}.xml").write_text(domain_xml(name, *paths))
    monkeypatch.setattr(ThisHost, "output", lambda _, *command: GROUPS if command[0] == "vgs" else "")
    return tmp_path


def test_shared_groups_of_domains_get_a_rule_and_the_rest_is_named(root: Path) -> None:
    done = CliRunner().invoke(cli, ["import-lvmlock", "--root", str(root)])
    assert done.exit_code == 0, done.stderr
    file = root / "holdfast.toml"
    file.write_text(done.stdout)
    config = load(str(file), environ={}, uid=0)
    assert config.backend["volumes"] == {"driver": "lvm"}
    assert [(rule.match, rule.backend) for rule in config.disk] == [
        ("/dev/san/*", "volumes"),
        ("/dev/web/*", "volumes"),
    ]
    for words in (
        "three has the disk /dev/mapper/san-three: write it as /dev/GROUP/VOLUME",
        "volume group local is not shared, and gets no rule: two",
        "volume group gone is not known to vgs here, and gets no rule: two",
        "qemu.ini: prepare = shared is not needed",
        "hooks/qemu has to go, on all hosts, before Holdfast's hook comes",
    ):
        assert words in done.stderr
    assert "wwn" not in done.stderr


def test_host_without_that_hook_and_without_shared_groups_gets_no_rule(root: Path) -> None:
    (root / "etc/libvirt/hooks/qemu.ini").unlink()
    for each in ("one", "two", "three"):
        (root / f"etc/libvirt/qemu/{each}.xml").unlink()
    found = json.loads(CliRunner().invoke(cli, ["import-lvmlock", "--root", str(root), "--json"]).stdout)
    assert "[[disk]]" not in found["toml"]
    assert found["remarks"] == ["no domain here has a disk on a shared volume group: the result has no rule"]


@pytest.mark.parametrize(
    "ini",
    ["", "[actions]\nprepare = exec\n", "[other]\nprepare = shared\n", "prepare = shared\n", "\0\xff[["],
)
def test_other_scripts_of_the_site_are_not_taken_for_that_hook(root: Path, ini: str) -> None:
    (root / "etc/libvirt/hooks/qemu.ini").write_text(ini)
    assert lvmlock_actions(str(root)) == {}
    assert lvmlock_hook(str(root)) == ""
    assert list(volume_hooks(str(root))) == [str(root / "etc/libvirt/hooks/qemu")]


@pytest.mark.parametrize("ini", [None, "", "[log]\nlevel = debug\n", "prepare = shared\n", "\0\xff[["])
@pytest.mark.parametrize("place", ["qemu", "qemu.d/lvmlock"])
def test_that_hook_does_as_its_defaults_say_without_its_section(
    root: Path, place: str, ini: str | None
) -> None:
    hooks = root / "etc/libvirt/hooks"
    (hooks / "qemu").unlink()
    known = root / "clone/qemu"
    known.parent.mkdir()
    known.write_text(KNOWN)
    known.chmod(0o755)
    (hooks / "qemu.d").mkdir()
    (hooks / place).symlink_to(known)
    (hooks / "qemu.ini").unlink()
    if ini is not None:
        (root / "clone/qemu.ini").write_text(ini)
        (hooks / "qemu.ini").symlink_to(root / "clone/qemu.ini")
    assert lvmlock_actions(str(root)) == DEFAULT_ACTIONS
    assert lvmlock_hook(str(root)) == str(hooks / place)


def test_that_hook_and_its_file_may_be_links(root: Path) -> None:
    ini = root / "etc/libvirt/hooks/qemu.ini"
    ini.rename(root / "qemu.ini")
    ini.symlink_to(root / "qemu.ini")
    assert lvmlock_actions(str(root)) == {"prepare": "shared", "started": "exclusive", "stopped": "unlock"}
    assert lvmlock_hook(str(root)) == str(root / "etc/libvirt/hooks/qemu")


def test_long_hook_is_known_by_its_beginning(root: Path) -> None:
    script = root / "etc/libvirt/hooks/qemu"
    script.write_text(KNOWN + "#" * HOOK_BYTES_MAX)
    (root / "etc/libvirt/hooks/qemu.ini").unlink()
    assert lvmlock_hook(str(root)) == str(script)
    assert list(volume_hooks(str(root))) == [str(script)]


def test_that_hook_with_nothing_to_do_is_none(root: Path) -> None:
    (root / "etc/libvirt/hooks/qemu").write_text(KNOWN)
    (root / "etc/libvirt/hooks/qemu.ini").write_text("[actions]\nprepare = none\n")
    assert lvmlock_actions(str(root)) == {}
    assert lvmlock_hook(str(root)) == ""


def test_script_that_libvirt_does_not_run_is_no_hook(root: Path) -> None:
    assert lvmlock_hook(str(root)) == str(root / "etc/libvirt/hooks/qemu")
    (root / "etc/libvirt/hooks/qemu").chmod(0o644)
    assert lvmlock_hook(str(root)) == ""
    assert list(volume_hooks(str(root))) == []
