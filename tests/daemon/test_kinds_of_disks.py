"""Disks that libvirt never locks, and volumes without a lock, by the commands beside a real daemon (scripts r10, r11)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import BIN, Holdfastd, bystander, make_disk, with_status_files

from holdfast.cli import exits

FIXTURES = Path(__file__).parents[1] / "data"
Command = Callable[..., Any]


@pytest.fixture
def command(daemon: Holdfastd, place: Path) -> Command:
    """A command that sees libvirt's status files in `place`; its JSON and exit code."""
    status = place / "status"
    status.mkdir()

    def run(*arguments: str) -> tuple[Any, int]:
        done = subprocess.run(
            [str(BIN / "holdfast"), "--config", str(daemon.config), *arguments, "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=with_status_files(status),
        )
        return json.loads(done.stdout), done.returncode

    return run


def running(place: Path, version: str, name: str, *, image: Path | None = None) -> int:
    """The pid of a VM that has a status file as that libvirt wrote it."""
    pid = bystander(7)
    text = (FIXTURES / f"libvirt-{version}" / f"running-{name}.xml").read_text()
    text = text.replace("pid='4242'", f"pid='{pid}'")
    (place / f"status/{name}.xml").write_text(
        text.replace("/srv/pool/web.img", str(image)) if image else text
    )
    return pid


def ids(findings: list[dict[str, str]], subject: str) -> set[str]:
    return {each["id"] for each in findings if subject in each["facts"]}


@pytest.mark.parametrize("version", ["9.0", "11.3"])
def test_vm_with_an_nbd_disk_is_named_by_every_command(
    daemon: Holdfastd, command: Command, place: Path, version: str
) -> None:
    pid = running(place, version, "nbd")
    name = "nbd://localhost:10809/export1 (vda)"
    assert ids(command("doctor")[0], name) == {"HF083"}
    listed = {each["resource"]: each for each in command("list")[0]}
    assert (listed[name]["owner"], listed[name]["protection"]) == ("nbd", 0)
    assert listed[name]["protection_note"] == "libvirt's lock plugin never asks for it"
    assert {each["disk"] for each in command("status")[0]["unlocked_disks"]} == set(listed)
    with daemon.client() as libvirt:
        libvirt.register(pid=pid, name="nbd")
        (owner,) = command("list", "--owners")[0]
        assert (owner["name"], owner["protection"]) == ("nbd", 0), (
            "libvirt registers it, and asks for nothing"
        )
    answer, code = command("who", "nbd")
    assert (answer["verdict"], code) == ("held", exits.OK)
    assert name in answer["headline"]


@pytest.mark.parametrize("version", ["9.0", "11.3"])
def test_running_vm_with_a_volume_and_no_lock_is_found(
    daemon: Holdfastd, command: Command, place: Path, version: str
) -> None:
    """9.0 does not note the volume's path, and its pool is gone: still the VM has no lock."""
    image = make_disk(place, "web.img")
    pid = running(place, version, "volume", image=image)
    assert "HF090" in ids(command("doctor")[0], f"volume (pid {pid}) runs without any lock")
    with daemon.client() as libvirt:
        libvirt.register(pid=pid, name="volume")
        assert "HF091" in ids(command("doctor")[0], f"volume (pid {pid}) has no lock on")
        libvirt.acquire(str(image))
        assert not ids(command("doctor")[0], f"volume (pid {pid})")
