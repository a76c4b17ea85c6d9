"""The manual pages are made from the commands' help and the docs: each command and key is in one, and groff reads all."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest
from tools import man_pages

from holdfast.cli.main import cli

PAGES = man_pages.pages()
ROOT = Path(__file__).parents[2]


def shown(page: str) -> str:
    """A page as plain text in one line, as a terminal without a width would show it."""
    command = ["groff", "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=200n"]
    done = subprocess.run(command, input=page.encode(), capture_output=True, check=True)
    assert done.stderr == b"", done.stderr.decode()
    return " ".join(done.stdout.decode().split())


def names(command: click.Command, name: str) -> list[str]:
    """Its page and those of the commands below it."""
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [f"{name}.1", *(page for word, each in below for page in names(each, f"{name}-{word}"))]


def test_each_command_has_a_page_and_each_page_is_of_something() -> None:
    others = {
        "holdfastd.8",
        "holdfast-web.8",
        "holdfast-qemu-hook.8",
        "holdfast-sanlockd.8",
        "holdfast-virtlockd-switch.8",
        "holdfast.toml.5",
    }
    assert set(PAGES) == {*names(cli, "holdfast"), *others}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_groff_reads_a_page_without_a_warning(name: str) -> None:
    text = shown(PAGES[name])
    assert f"{name[:-2].upper()}({name[-1]})" in text
    assert "SEE ALSO" in text


def test_options_and_examples_of_a_command_are_in_its_page() -> None:
    text = shown(PAGES["holdfast-break.1"])
    for said in (
        "--attest-off HOST A host that you know to be off",
        "holdfast break /srv/images/web.img --attest-off",
        "Exit 0: free now; 75: refused.",
    ):
        assert said in text


def test_each_key_of_the_configuration_is_in_its_page() -> None:
    rows = re.findall(r"^\| ([^|\n]*`[^|\n]*) \|", (ROOT / "docs" / "configuration.md").read_text(), re.M)
    text = shown(PAGES["holdfast.toml.5"])
    assert len(rows) > 40
    for row in rows:
        assert row.replace("`", "") in text, row
