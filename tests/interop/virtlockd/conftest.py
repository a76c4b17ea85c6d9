"""A real virtlockd and a holdfastd side by side."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import Holdfastd
from tests.support.virtlockd import Virtlockd


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("a real virtlockd in a namespace of its own needs root: run 'make test' as root")
    path = Path(tempfile.mkdtemp(prefix="hf-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def theirs(place: Path) -> Iterator[Virtlockd]:
    daemon = Virtlockd(place / "theirs")
    yield daemon
    daemon.stop()


@pytest.fixture(scope="session")
def ours(place: Path) -> Iterator[Holdfastd]:
    daemon = Holdfastd(place / "ours").start()
    yield daemon
    daemon.stop_all()
