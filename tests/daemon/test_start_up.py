"""What a command loads before it answers: most of the time that a person waits for it is that (bench/commands.py)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import Holdfastd, make_disk

from holdfast import config as configuration
from holdfast.backends.naming import indirect_name
from holdfast.cli.who.evidence import OwnerRecords
from holdfast.cli.who.gather import Sources

OF_THE_DAEMON = {"asyncio", "asyncvarlink", "ssl", "holdfast.backends.base", "holdfast.daemon.build"}
OF_A_CALL = {"msgspec", "holdfast.config", "holdfast.control.client"}


def loaded_by(daemon: Holdfastd, *words: str) -> set[str]:
    """The modules that a command imports, as Python's own list has them (-X importtime)."""
    shown = daemon.cli(*words, environ={"PYTHONPROFILEIMPORTTIME": "1"})
    lines = [line for line in shown.stderr.splitlines() if line.startswith("import time:")]
    found = {line.rpartition("|")[2].strip() for line in lines}
    assert "holdfast.cli.main" in found, shown.stderr
    return found


def test_help_loads_nothing_that_asks_the_daemon(daemon: Holdfastd) -> None:
    assert not loaded_by(daemon, "--help") & (OF_THE_DAEMON | OF_A_CALL)


@pytest.mark.parametrize("words", [["status"], ["list"], ["events"]])
def test_commands_that_ask_load_nothing_that_only_the_daemon_needs(
    daemon: Holdfastd, words: list[str]
) -> None:
    found = loaded_by(daemon, *words)
    assert found >= OF_A_CALL
    assert not found & OF_THE_DAEMON


def test_who_loads_nothing_that_only_the_daemon_needs(daemon: Holdfastd, tmp_path: Path) -> None:
    found = loaded_by(daemon, "who", str(make_disk(tmp_path)))
    assert "holdfast.cli.who.inquiry" in found
    assert not found & OF_THE_DAEMON


def test_an_edit_is_still_compared_with_what_this_version_makes_of_the_kept_file(daemon: Holdfastd) -> None:
    daemon.config.write_text(f"{daemon.config.read_text()}[limits]\nowners_max = 9\n")
    assert "holdfast.daemon.kept_config" in loaded_by(daemon, "status")


def test_who_learns_of_libvirts_lockspaces_from_the_daemon_and_reads_no_journal(
    daemon: Holdfastd, tmp_path: Path
) -> None:
    """That of a thousand VMs takes longer than the rest of the answer; of a daemon that is down it is read."""
    disk, space = make_disk(tmp_path), tmp_path / "space"
    space.mkdir()
    (space / indirect_name(str(disk))).touch()
    with daemon.client() as client:
        client.create_lockspace(str(space))
    config = configuration.load(str(daemon.config), environ=os.environ, uid=0)
    opened: list[str] = []
    watching = True

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(heard)
    try:
        for is_up in (True, False):
            opened.clear()
            with Sources(config, config.control_socket, "/") as sources:
                records = sources.disk(str(disk)).records
            assert str(space / indirect_name(str(disk))) in {
                each.file for each in records if isinstance(each, OwnerRecords)
            }
            assert (config.journal_path in opened) is not is_up
            if is_up:
                daemon.kill()
    finally:
        watching = False
