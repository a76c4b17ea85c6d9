"""Each planted bug is seen by the test that is named with it: run against a copy of the source that has the bug."""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from tests.planted.bugs import BUGS, Planted
from tests.sim.mutations import MUTATIONS, ROOT, mutated, source_of

TESTS_FAILED = 1
"""pytest's exit code when tests ran and some failed; a test that can't be found or imported is another one."""

Runs = Mapping[str, "Future[subprocess.CompletedProcess[str]]"]


def run_with(bug: Planted, place: Path) -> subprocess.CompletedProcess[str]:
    """Its test, in a process that imports the copy with the bug, as do the processes that the test starts."""
    source = place / bug.mutation.name
    shutil.copytree(ROOT / "src", source)
    module = (source / Path(*bug.mutation.module.split("."))).with_suffix(".py")
    module.write_text(mutated(bug.mutation, module.read_text()))
    Path(importlib.util.cache_from_source(str(module))).unlink(missing_ok=True)
    # A directory for temporary files of its own: pytest removes old ones, and stumbles over another that does the same.
    temporary = f"--basetemp={source}.tmp"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", temporary, bug.test],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All that were asked for, twice as many at a time as there are processors: half of their time they wait."""
    place = tmp_path_factory.mktemp("planted")
    # The copies have the bytecode, too: their daemons start in half the time.
    compileall.compile_dir(ROOT / "src", quiet=2)
    wanted = [
        cast(Planted, item.callspec.params["bug"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "runs" in item.fixturenames
    ]
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        yield {bug.mutation.name: pool.submit(run_with, bug, place) for bug in wanted}


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=bug.mutation.name, marks=[pytest.mark.long] if bug.is_long else [])
        for bug in BUGS
    ],
)
def test_a_planted_bug_fails_the_test_that_is_named_with_it(bug: Planted, runs: Runs) -> None:
    done = runs[bug.mutation.name].result()
    name = bug.test.split("::")[1]
    assert done.returncode == TESTS_FAILED, f"{bug.mutation.bug}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert f"FAILED {bug.test.split('::')[0]}::{name}" in done.stdout


def test_each_bug_has_one_place_and_a_name_of_its_own() -> None:
    names = [m.name for m in MUTATIONS] + [bug.mutation.name for bug in BUGS]
    assert len(set(names)) == len(names)
    for bug in BUGS:
        source = source_of(bug.mutation)
        assert mutated(bug.mutation, source) != source
