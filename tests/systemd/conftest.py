"""What suites of two hosts have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuse_storage import FaultyStorage


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[FaultyStorage]:
    """What both hosts mount, under the type of a cluster file system: on one kernel any file system is one."""
    storage = FaultyStorage(tmp_path / "storage", tmp_path / "mounted", "fuse.glusterfs")
    yield storage
    storage.close()
