"""`vm list`, `config show`, `version` and `support-dump` beside a real daemon, and without one."""

from __future__ import annotations

import json
import signal
import tarfile
from pathlib import Path

from tests.support.daemon import Factory, make_disk

from holdfast import __version__, config
from holdfast.cli import exits
from holdfast.cli.json_schema import JSON_VERSION


def test_commands_for_operators(make_daemon: Factory, tmp_path: Path) -> None:
    host = make_daemon('[backend.secret]\ndriver = "nop"\n').start()
    disk = make_disk(tmp_path)
    host.vm([disk], name="web1")
    (vm,) = host.cli_json("vm", "list")
    assert vm["name"] == "web1"
    assert "web1" in host.cli("vm", "list").stdout
    assert host.cli_json("version") == {
        "ok": True,
        "holdfast": __version__,
        "holdfastd": __version__,
        "json": JSON_VERSION,
    }
    shown = host.cli("config", "show")
    loaded, problems = config.load_lenient(shown.stdout, "shown", environ={}, uid=0)
    assert not problems and loaded is not None and loaded.virtlockd.socket == host.socket
    assert host.cli_json("config", "show", "--in-force")["ok"]

    archive = tmp_path / "dump.tar.gz"
    written = host.cli("support-dump", str(archive))
    assert written.returncode == exits.OK, written.stderr
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as dump:
        found = {Path(each.name).name: dump.extractfile(each).read().decode() for each in dump}  # type: ignore[union-attr]
    locks, _, ended = found["holdfast-list-json.txt"].rpartition("\n[exit ")
    assert ended == "0]\n"
    assert [lock["owner"] for lock in json.loads(locks)] == ["web1"]
    assert "daemon-started" in found["flight-latest.jsonl"]
    assert host.cli("support-dump", str(archive)).returncode == exits.FAILED, "it must not exist"

    host.kill(signal.SIGTERM)
    version = host.cli("version")
    assert version.returncode == exits.OK and f"holdfast {__version__}" in version.stdout
    assert host.cli("config", "show").returncode == exits.OK
    assert host.cli("vm", "list").returncode == exits.UNREACHABLE
