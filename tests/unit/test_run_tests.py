"""tools/run_tests.py: which failures are run once more, and what that changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import run_tests

FLAKY = """
from pathlib import Path

def test_flaky():
    ran = Path("ran-{}")
    first = not ran.exists()
    ran.touch()
    assert not first

def test_passes():
    assert not Path("ran-once").exists()
    Path("ran-once").touch()
"""
MANY_FLAKY = f"""
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({run_tests.MOST_FLAKY + 1}))
def test_flaky(number):
    ran = Path(f"ran-{{number}}")
    first = not ran.exists()
    ran.touch()
    assert not first
"""
BROKEN = "def test_broken():\n    raise AssertionError\n"


def played(place: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, clocks: bool) -> int:
    """The exit status of a tier whose one file has that content."""
    tests = place / "tests/daemon"
    tests.mkdir(parents=True)
    (tests / "test_one.py").write_text(source)
    monkeypatch.chdir(place)
    monkeypatch.setattr(run_tests, "LANES", ((run_tests.Tier("daemon", 60, clocks=clocks),), ()))
    monkeypatch.setattr("compileall.compile_dir", lambda *_, **__: True)
    monkeypatch.setattr("os.sync", lambda: None)
    return run_tests.main([])


def test_failure_that_passes_alone_is_listed_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert played(tmp_path, monkeypatch, FLAKY, clocks=True) == 0
    out = capfd.readouterr().out
    assert "1 failed, 1 passed" in out
    assert out.splitlines()[-1] == "flaky: tests/daemon/test_one.py::test_flaky failed, and passed alone"


@pytest.mark.parametrize(
    ("source", "clocks"),
    [
        pytest.param(BROKEN, True, id="fails again"),
        pytest.param(FLAKY + BROKEN, True, id="one of two fails again"),
        pytest.param(FLAKY, False, id="no clocks"),
        pytest.param(MANY_FLAKY, True, id="too many"),
        pytest.param("raise OSError", True, id="no tests"),
    ],
)
def test_other_failures_stay(
    source: str,
    clocks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert played(tmp_path, monkeypatch, source, clocks=clocks) != 0
    assert "flaky: " not in capfd.readouterr().out
