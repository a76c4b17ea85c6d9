"""The JSON Schema that ships: made of the types, one definition for each command, and true of what commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.support.json_schema import why_not
from tests.unit.test_top import EVENT, STATUS

from holdfast.cli import json_schema
from holdfast.cli.context import Context
from holdfast.cli.json_schema import COMMANDS, FILE
from holdfast.cli.main import cli
from holdfast.control.api import EventInfo, FencedHost, FencedLease, StatusInfo

OTHERS = {"run"}
"""It prints errors alone."""


def commands(group: click.Group, before: str = "") -> Iterator[str]:
    """Those that have --json."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        elif any("--json" in parameter.opts for parameter in command.params):
            yield before + name


def test_file_that_ships_is_made_of_the_present_types() -> None:
    assert FILE.read_text() == json_schema.written(), "python -m holdfast.cli.json_schema; and JSON_VERSION?"


def test_each_command_with_json_has_a_definition_and_each_definition_a_command() -> None:
    found = set(commands(cli))
    assert found - OTHERS == {name for name in COMMANDS if name in found}
    for name in COMMANDS:
        assert name == "failed" or any(name == each or name.startswith(f"{each} ") for each in found), name


def test_schema_refuses_what_is_not_so() -> None:
    good = {"ok": True, "holdfast": "1", "holdfastd": None, "json": 1}
    assert why_not("version", good) == ""
    assert "'json' is a required property" in why_not(
        "version", {k: v for k, v in good.items() if k != "json"}
    )
    assert "more" in why_not("version", {**good, "more": 1})
    assert "is not of type" in why_not("lockspace list", {})


class Daemon:
    """Answers what a test's daemon would say only after an accident."""

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        pass

    def break_lease(self, path: str, **_: str) -> str:
        return "its host is DEAD"

    def settle_lock(self, lock: str, **_: str) -> str:
        return "let go"

    def fence_host(self, host: str, **_: str) -> list[FencedHost]:
        leases = [FencedLease("leases", "aa", "/srv/a.img", freed=True, detail="silent")]
        return [FencedHost("vms", 2, host, 3, 4, 10, 50.0, None, "", leases)]

    def events(self, *, after: int, follow: bool) -> list[EventInfo]:
        return [EVENT]

    def status(self) -> StatusInfo:
        return STATUS


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("break", ["break", "/srv/a.img"]),
        ("settle", ["settle", "/srv/a.img", "--operator", "me"]),
        ("host fenced", ["host", "fenced", "beta", "--operator", "me", "--yes-i-know-it-is-off"]),
        ("why", ["why", "web2"]),
    ],
)
def test_answers_after_an_accident(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "connect", lambda _: Daemon())
    known = {option for each in _command(command).params for option in each.opts}
    given = [word for word in words if not word.startswith("--") or word in known]
    done = CliRunner().invoke(cli, [*given, "--json"])
    assert done.exit_code == 0, done.output
    assert why_not(command, _object(done.stdout)) == ""


def _command(name: str) -> click.Command:
    found: click.Command = cli
    for word in name.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def _object(text: str) -> Any:
    return json.loads(text)
