"""What `holdfast support-dump` removes from what it gathers, and what it says of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.cli import exits
from holdfast.cli.commands import support_dump
from holdfast.cli.commands.support_dump import Item, without_secrets
from holdfast.cli.main import cli


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('password = "hunter2"', "password = REMOVED"),
        ('"admin_passwd": "a b"', '"admin_passwd": REMOVED'),
        ("rw,username=vm,password=x,vers=3", "rw,username=vm,password=REMOVED,vers=3"),
        (
            "rbd:pool/image:id=a:key=AQ==:auth_supported=cephx",
            "rbd:pool/image:id=a:key=REMOVED:auth_supported=REMOVED",
        ),
        ("iscsi://vm:geheim@10.0.0.1/iqn", "iscsi://vm:REMOVED@10.0.0.1/iqn"),
        ("API_KEY: 'k'", "API_KEY: REMOVED"),
        ("lockspace S: io_timeout_s = 10", "lockspace S: io_timeout_s = 10"),
        ("http://10.0.0.1:8080/x", "http://10.0.0.1:8080/x"),
    ],
)
def test_secrets_go_and_all_else_stays(text: str, kept: str) -> None:
    assert without_secrets(text) == kept


def _items(_: object) -> Iterator[Item]:
    def gone() -> bytes:
        raise FileNotFoundError("gone")

    yield Item("kept.txt", lambda: b"kept")
    yield Item("gone.txt", gone)


def test_what_could_not_be_gathered_is_named_and_no_file_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_dump, "items", _items)
    written = CliRunner().invoke(cli, ["support-dump", str(tmp_path / "x.tar.gz")])
    assert written.exit_code == exits.OK
    assert "say why: gone.txt. Read it" in written.output
    again = CliRunner().invoke(cli, ["support-dump", str(tmp_path / "x.tar.gz")])
    assert again.exit_code == exits.FAILED and "is there already" in again.stderr
    directory = CliRunner().invoke(cli, ["support-dump", str(tmp_path)])
    assert directory.exit_code == exits.FAILED and "is a directory: name a file" in directory.stderr
