"""Every row of the specification's tables, played to a real daemon: answers field by field (issue 15, part 2).

The same scripts are for Holdfast's own socket, once there is one: `PROGRAMS` gets its name then.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.interop.sanlock_socket import commands, recovery, results, table
from tests.interop.sanlock_socket.scene import START, Scene

from holdfast.wire.sanlock.command import Command, Served, served

pytestmark = pytest.mark.interop

PROGRAMS = [
    name if name in ("sanlock", "holdfast") else pytest.param(name, marks=pytest.mark.long) for name in START
]
SCRIPT_S = 100
TRIES = 3
"""Of a script during which the machine's storage took longer than the I/O timeout, a second: its answers are of that."""
SCRIPTS: dict[str, Callable[[Scene], None]] = {
    name: getattr(module, name)
    for module in (recovery, results, commands)
    for name in dict.fromkeys(each for names in table.PLAYED.values() for each in names)
    if hasattr(module, name)
}
LONG = [name for name in SCRIPTS if hasattr(recovery, name)]


@pytest.fixture(scope="module", params=PROGRAMS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))  # a socket's path has 107 bytes
    stage = Scene(request.param, place)
    try:
        yield stage
    finally:
        stage.close()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def beside(scene: Scene) -> Iterator[dict[str, Future[None]]]:
    """The scripts that take long, played while the others are."""
    with ThreadPoolExecutor(len(LONG)) as pool:
        yield {name: pool.submit(_played, SCRIPTS[name], scene) for name in LONG}


def _played(script: Callable[[Scene], None], scene: Scene) -> None:
    """Play it, and again if it failed while the machine's storage stood still for longer than the I/O timeout."""
    for left in reversed(range(TRIES)):
        stalls = scene.stalls()
        try:
            script(scene)
            return
        except (AssertionError, TimeoutError):
            if not left or scene.stalls() == stalls:
                raise


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in LONG])
def test_script_is_answered_as_the_specification_says(name: str, scene: Scene) -> None:
    def closing_its_clients(scene: Scene) -> None:
        try:
            SCRIPTS[name](scene)
        finally:
            scene.close_clients()

    _played(closing_its_clients, scene)


@pytest.mark.parametrize("name", LONG)
def test_script_beside_them_is_answered_as_well(name: str, beside: dict[str, Future[None]]) -> None:
    beside[name].result(timeout=SCRIPT_S)


def test_every_row_has_a_script_or_a_reason_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table.rows()
    assert len(rows) == len(set(rows))
    without = [row for row in rows if not table.scripts_of(row) and row not in table.NOT_PLAYED]
    assert not without, f"no script plays these rows: {without}"
    both = [row for row in rows if table.scripts_of(row) and row in table.NOT_PLAYED]
    assert not both, f"these rows have a script and a reason not to have one: {both}"
    named = {row.split(" ")[0] for row in rows}
    stale = (table.PLAYED.keys() | table.NOT_PLAYED.keys()) - named
    assert not stale, f"the page has no such rows: {stale}"
    by_reason: dict[str, list[str]] = {}
    for row, reason in table.NOT_PLAYED.items():
        by_reason.setdefault(reason, []).append(row)
    with capsys.disabled():
        print(f"\n{len(rows)} rows of sanlock-socket.md, {len(table.NOT_PLAYED)} of them not played:")
        for reason, names in by_reason.items():
            print(f"  {', '.join(names)}: {reason}")


def test_page_says_what_the_code_does_with_the_connection() -> None:
    letters = {
        "M keeps": Served.KEEPS,
        "M": Served.CLOSES,
        "W": Served.WORKER,
        "R": Served.CLIENT,
        "R (own only)": Served.CLIENT,
    }
    rows = table.command_rows()
    assert [(row.number, row.name) for row in rows] == [(c.value, c.name) for c in Command if c <= len(rows)]
    assert {row.name: letters[row.how] for row in rows} == {
        row.name: served(Command(row.number)) for row in rows
    }
