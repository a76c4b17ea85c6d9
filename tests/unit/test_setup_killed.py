"""`holdfast setup` and `--undo`, killed (SIGKILL) at any of their system calls and commands: no file is half edited, another
run goes on to the same end, and an undo brings every file back.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.doctor.machine import status
from tests.unit.test_setup_host import Site

from holdfast.cli.setup import execute
from holdfast.cli.setup import undo as undoing
from holdfast.cli.setup.record import Record

CALLS = ("unlink", "write", "fsync", "rename", "chmod", "chown", "mkdir", "rmdir")
"""By which the two change anything, beside commands."""
Snapshot = Mapping[str, tuple[int, bytes | str]]


def killed_at(site: Site, number: int, action: Callable[[], Any]) -> bool:
    """Runs that in a process of its own, which is killed at its nth call; False if it made fewer."""
    memory = site.root / "systemd.pickle"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _count_calls(site, number, memory)
            action()
            _remember(site, memory)
            code = 0
        finally:
            os._exit(code)
    ended = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0, "it failed"
    units, active, listens = pickle.loads(memory.read_bytes())
    memory.unlink()
    site.systemd.units, site.systemd.listens = units, listens
    site.machine.status = status() if active else None
    return os.WIFSIGNALED(ended)


def _count_calls(site: Site, number: int, memory: Path) -> None:
    calls = 0
    own = {each: getattr(os, each) for each in CALLS}

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            for name, was in own.items():
                setattr(os, name, was)
            _remember(site, memory)
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(was: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            count()
            return was(*values, **named)

        return call

    for name, was in own.items():
        setattr(os, name, counted(was))
    command = site.systemd.run

    def run(words: Any) -> None:
        count()
        command(words)
        count()

    for module in (execute, undoing):
        setattr(module, "run", run)  # noqa: B010


def _remember(site: Site, memory: Path) -> None:
    """What the machine is like when the process ends: systemd goes on without it."""
    kept = (site.systemd.units, site.machine.status is not None, site.systemd.listens)
    with memory.open("wb") as f:
        f.write(pickle.dumps(kept))


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for that of a socket."""
    path = Path(tempfile.mkdtemp(prefix="hf-"))
    yield path
    shutil.rmtree(path)


def files(site: Site) -> Snapshot:
    """Without what was not renamed yet, and without the link that says that virtlockd is enabled."""
    return {
        each: state
        for each, state in site.snapshot().items()
        if not each.endswith(".new") and "virtlockd.socket" not in each
    }


def play(root: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, back: bool) -> bool:
    """One setup (or one undo after it) that is killed at that call, and what comes after it."""
    root.mkdir()
    site = Site(root, monkeypatch)
    before = files(site)
    site.setup()
    done = files(site)
    if not back:
        site.undo()
        assert files(site) == before
    killed = killed_at(site, number, site.undo if back else site.setup)
    now = files(site)
    assert all(state in (before.get(each), done.get(each)) for each, state in now.items()), f"call {number}"
    if number % 2:
        site.setup()
        assert files(site) == done, f"call {number}"
        assert site.plan().steps == ()
    if Record(str(site.root)).exists:
        site.undo()
    assert files(site) == before, f"call {number}"
    for name in ("virtlockd.socket", "libvirtd.service", "libvirtd.socket"):
        assert site.systemd.units[name]["ActiveState"] == "active", f"call {number}: {name}"
    return killed


@pytest.mark.parametrize("back", [False, True], ids=["setup", "undo"])
def test_a_kill_at_some_calls_leaves_no_file_half_edited(
    short: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    numbers = (3, 10, 17, 24)
    killed = [play(short / str(each), monkeypatch, each, back=back) for each in numbers]
    assert killed[:2] == [True, True]


@pytest.mark.long
@pytest.mark.parametrize("back", [False, True], ids=["setup", "undo"])
def test_a_kill_at_each_call_leaves_no_file_half_edited(
    short: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    number = 1
    while play(short / str(number), monkeypatch, number, back=back):
        number += 1
    assert number > 10


def test_a_file_that_setup_makes_is_there_with_its_mode_or_not_at_all(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, number = True, 0
    while killed:
        number += 1
        root = short / str(number)
        root.mkdir()
        site = Site(root, monkeypatch)
        hook = root / "etc/libvirt/hooks/qemu"

        def write(site: Site = site, hook: Path = hook) -> None:
            Record(str(site.root)).replace(str(hook), b"#!hook", mode=0o755)

        killed = killed_at(site, number, write)
        assert not hook.exists() or (hook.stat().st_mode & 0o7777, hook.read_bytes()) == (0o755, b"#!hook")
        if hook.exists():
            assert [each.path for each in Record(str(root)).kept.files] == [str(hook)], "the undo knows it"
    assert number > 8
