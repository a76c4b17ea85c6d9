"""The AppArmor profiles: apparmor_parser accepts them, and they allow what the units and the defaults need."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from itertools import product
from pathlib import Path

import pytest

from holdfast.config import load
from holdfast.daemon.sanlockd import RUN_DIR

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "packaging" / "apparmor"
RULE = re.compile(r"^  (?:owner )?(/\S*) ([a-zA-Z]+),$", re.MULTILINE)


def expanded(pattern: str) -> list[str]:
    """AppArmor's {a,b} written out."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if at % 2 else [part] for at, part in enumerate(parts)]
    return ["".join(each) for each in product(*choices)]


def allows(profile: str, path: str, mode: str) -> bool:
    return any(
        mode in modes and any(fnmatch.fnmatch(path, each) for each in expanded(pattern))
        for pattern, modes in RULE.findall(profile)
    )


def why_not_parsed(file: Path) -> str:
    """What apparmor_parser has against it; empty if nothing. It loads nothing, and needs no kernel that has AppArmor."""
    command = ["/usr/sbin/apparmor_parser", "-Q", "--skip-kernel-load", "--skip-cache", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr or str(done.returncode) if done.returncode else ""


@pytest.mark.long
@pytest.mark.parametrize("name", ["holdfastd", "holdfast-web"])
def test_parser_accepts_the_profile(name: str) -> None:
    assert why_not_parsed(PROFILES / name) == ""


@pytest.mark.long
def test_parser_accepts_the_lines_for_libvirts_qemu_and_refuses_nonsense(tmp_path: Path) -> None:
    lines = (PROFILES / "libvirt-qemu.local").read_text()
    file = tmp_path / "profile"
    file.write_text(f"abi <abi/3.0>,\nprofile qemu {{\n{lines}}}\n")
    assert why_not_parsed(file) == ""
    file.write_text(f"abi <abi/3.0>,\nprofile qemu {{\n{lines}  signal (recieve) peer=holdfastd,\n}}\n")
    assert "at line 7" in why_not_parsed(file)


def test_lines_for_libvirts_qemu_name_the_profile() -> None:
    lines = (PROFILES / "libvirt-qemu.local").read_text()
    name = re.search(r"^profile (\S+)", (PROFILES / "holdfastd").read_text(), re.MULTILINE)
    assert name is not None
    found = re.findall(r"^  (signal|ptrace) \((?:receive|readby)\) peer=(\S+),", lines, re.MULTILINE)
    assert found == [("ptrace", name[1]), ("signal", name[1])]


def test_capabilities_are_those_of_the_unit() -> None:
    unit = (ROOT / "packaging/systemd/holdfastd.service").read_text()
    wanted = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert wanted is not None
    profile = (PROFILES / "holdfastd").read_text()
    found = re.findall(r"^  capability (\w+),$", profile, re.MULTILINE)
    assert {f"CAP_{each.upper()}" for each in found} == set(wanted[1].split())


@pytest.mark.parametrize(
    "path",
    [
        *("/run/holdfast/journal", "/run/holdfast/lockspaces/vms", "/var/lib/holdfast/notes"),
        *("/run/libvirt/virtlockd-sock", f"{RUN_DIR}/sanlock.sock", "/run/wdmd/wdmd.sock"),
        *("/dev/watchdog", "/dev/mapper/vg-web", "/srv/images/web.img", "/var/lib/libvirt/images/web.img"),
    ],
)
def test_daemon_may_lock_and_write_what_it_has_by_default(path: str) -> None:
    profile = (PROFILES / "holdfastd").read_text()
    assert allows(profile, path, "w") and allows(profile, path, "k")
    assert not allows(profile, "/etc/shadow", "w")
    assert not allows(profile, "/usr/bin/virsh", "w")


def test_directories_of_the_configuration_are_within_the_profile(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").touch()
    config = load(str(tmp_path / "holdfast.toml"), environ={}, uid=0)
    profile = (PROFILES / "holdfastd").read_text()
    for directory in (config.run_dir, config.state_dir, config.host_locks):
        assert allows(profile, f"{directory}/x", "w"), directory


def test_page_can_write_nothing_but_its_socket() -> None:
    profile = (PROFILES / "holdfast-web").read_text()
    assert [pattern for pattern, modes in RULE.findall(profile) if "w" in modes] == ["/{,var/}run/holdfast/*"]
    assert "capability" not in profile
