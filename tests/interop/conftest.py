"""Which tests one process runs, where several share them: those of a file, and of the daemon that scripts are played to."""

from __future__ import annotations

from pathlib import Path

import pytest

APART = ("test_holdfastd_beside_sanlock.py",)
"""Files whose tests share nothing, and wait for a dead bound each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if isinstance(item, pytest.Function) and here in item.path.parents:
            played_to = item.callspec.params.get("scene", "") if hasattr(item, "callspec") else ""
            part = item.name if item.path.name in APART else played_to
            item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {part}".strip()))
