"""Every command in README and docs: `holdfast` ones are run, of others the words that are ours are looked up.

In running text a command without arguments (`holdfast who`) is a mention: it has to exist. Any other one is run on a host
with a daemon, a lockspace and a VM, with the placeholders below put in; it may be refused, but is never a usage error.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.daemon.conftest import FIRE_TIMEOUT_S, IO_TIMEOUT_S
from tests.daemon.test_leases import joined
from tests.support.daemon import BIN, Holdfastd, make_disk
from tests.support.leases import SPACE, make_lockspace

from holdfast.cli import exits
from holdfast.cli.commands.setup import setup
from holdfast.cli.commands.switch import switch

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "situations").glob("*.md")),
]
PROGRAMS = ("holdfast", "holdfastd", "make", "systemctl", "install", "python3", "virsh", "ln")
FOLLOWS_S = 3.0
"""A command that follows events is ended after so long."""
OUTCOMES = set(exits.MEANINGS) - {exits.USAGE, exits.BAD_CONFIG, exits.NOT_PERMITTED}
LIBVIRT_UNITS = {
    "wdmd",
    "sanlock",
    "lvmlockd",
    "virtlockd",
    "virtlockd.service",
    "virtlockd.socket",
    "virtlockd-admin.socket",
    "libvirtd",
    "chrony",
    "sanlock.service",
    "holdfast-switch",
}
PLACEHOLDERS = {
    "DISK": "{disk}",
    "VM": "web1",
    "HOST": "alpha",
    "YOU": "me",
    "LOCKSPACE-PATH": "{space}",
    "SEED": "7",
    "ID": "HF022",
}


class Documented(NamedTuple):
    where: str
    text: str
    in_block: bool


def commands() -> list[Documented]:
    """Each in code blocks and in running text; what follows ` #` is a remark."""
    found: list[Documented] = []
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            block = line.startswith("    ")
            for text in [line.strip()] if block else re.findall(r"`([^`]+)`", line):
                parts = re.split(r"&&|;", re.split(r" #| > ", text)[0].replace("[", "").replace("]", ""))
                found += [
                    Documented(f"{page.relative_to(ROOT)}:{number}", command, block)
                    for command in map(str.strip, parts)
                    if command.split(" ")[0] in PROGRAMS and " " in command
                ]
    return found


FOUND = commands()


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[Holdfastd, Path]]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    (place / "leases").mkdir()
    make_lockspace(place / "leases" / SPACE)
    daemon = Holdfastd(
        place,
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{place}/leases"\nhost_id = 1\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\ncross_host = true\n"
        '[[disk]]\nmatch = "*/leased/*"\nbackend = "leases"\n',
    )
    joined(daemon.start())
    for path in ("srv", "path/of", "dev/vg"):
        (place / path).mkdir(parents=True)
    daemon.vm([make_disk(place / "srv", "web.img")], name="web1")
    yield daemon, place
    daemon.stop_all()
    shutil.rmtree(place, ignore_errors=True)


def test_commands_are_found() -> None:
    assert len(FOUND) > 40
    assert {each.text.split()[0] for each in FOUND} >= {"holdfast", "make", "systemctl", "virsh"}


@pytest.mark.parametrize("documented", FOUND, ids=[f"{each.where} {each.text}" for each in FOUND])
def test_documented_command_can_be_pasted(host: tuple[Holdfastd, Path], documented: Documented) -> None:
    daemon, place = host
    program, *words = shlex.split(documented.text)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "systemctl":
        ours = {path.name for path in (ROOT / "packaging").rglob("*.*")}
        ours |= {name.removesuffix(".service") for name in ours}
        units = [word for word in words[1:] if not word.startswith("-")]
        assert set(units) <= ours | LIBVIRT_UNITS
    elif program == "install":
        assert all((ROOT / word).is_file() for word in words if word.startswith("packaging/"))
    elif words[:1] == ["setup"]:
        # It is about this whole machine: its options are read, and nothing is run.
        setup.make_context("setup", words[1:])
    elif words[:1] == ["switch"]:
        switch.make_context("switch", words[1:])
    elif program in ("holdfast", "holdfastd") and (documented.in_block or not is_mention(program, words)):
        ours_run(daemon, place, program, words)


def is_mention(program: str, words: list[str]) -> bool:
    """Whether it is the name of a command, with nothing behind it."""
    if len(words) > 2 or any(word.startswith(("-", "/")) or word in PLACEHOLDERS for word in words):
        return False
    tried = subprocess.run([BIN / program, *words, "--help"], capture_output=True, check=False)
    return tried.returncode == exits.OK


def ours_run(daemon: Holdfastd, place: Path, program: str, words: list[str]) -> None:
    names = {"disk": str(place / "srv" / "web.img"), "space": str(place / "leases" / SPACE)}
    filled = [PLACEHOLDERS.get(word, word).format(**names) for word in words]
    # Nothing outside of the test's directory is touched.
    filled = [
        f"{place}{word}" if word.startswith("/") and str(place) not in word else word for word in filled
    ]
    command = [str(BIN / program), "--config", str(daemon.config), *filled]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=FOLLOWS_S if "-f" in words else 60
        )
    except subprocess.TimeoutExpired:
        assert "-f" in words, f"{words} does not end"
        return
    assert done.returncode in OUTCOMES, (filled, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
