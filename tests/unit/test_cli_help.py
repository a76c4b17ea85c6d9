"""What `holdfast --help` lists: what each command does, in a whole sentence, and where a daemon is missing what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from holdfast.cli import exits
from holdfast.cli.main import cli


def _groups(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            if isinstance(command := group.get_command(ctx, name), click.Group):
                yield from _groups(command, (*words, name))


@pytest.mark.parametrize("words", list(_groups(cli)), ids=" ".join)
def test_a_list_of_commands_cuts_no_sentence(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    listed = shown.output.split("Commands:\n", 1)[1].split("\n\n", 1)[0]
    assert "..." not in listed
    assert all(len(line) <= 80 for line in listed.splitlines())


def test_without_a_daemon_the_next_step_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--socket", str(tmp_path / "none"), "list"])
    assert done.exit_code == exits.UNREACHABLE
    assert "holdfast setup" in done.stderr and "systemctl status holdfastd" in done.stderr
