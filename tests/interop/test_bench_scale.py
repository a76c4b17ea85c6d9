"""The bench of growing lockspaces runs, beside a real sanlock: a row of figures for each daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_a_small_run_prints_figures_of_both_daemons() -> None:
    options = ("--hosts", "--lockspaces", "--leases", "6", "--renewals", "1", "--no-takeovers")
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {words[3]: words for line in done.stdout.splitlines() if len(words := line.split()) > 16}
    ours, theirs = rows["holdfastd"], rows["sanlock"]
    for words in (ours, theirs):
        assert words[:3] == ["10", "1", "6"]
        read, written = (int(words[at].replace(",", "")) for at in (5, 6))
        assert read >= 10 * 512
        assert written >= 512
    assert int(theirs[5].replace(",", "")) >= 2000 * 512
    assert float(ours[13]) <= 0.1, "a renewal reads at most a tenth of what sanlock reads"
    assert all(re.fullmatch(r"-?\d+\.\d+", words) for words in ours[14:16]), "memory, joining"
