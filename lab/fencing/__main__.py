"""`python -m lab.fencing`, which is `make lab`: the cases that were named, their times in a table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import fencing
from lab.fencing import planted
from lab.fencing.guests import HOSTS, MICRO_HOSTS, LabError, install_holdfast
from lab.fencing.scenario import Scenario
from lab.fencing.suites import CAUSES, SUITES, Cause, Suite, chosen
from lab.fencing.verdict import Case, table


def main() -> int:
    options = _options()
    cases = chosen(options.cases)
    began = time.monotonic()
    subprocess.run([str(MICRO_HOSTS / "build")], check=True)
    expected_s = sum(suite.expected_s() * len(causes) / len(suite.causes) for suite, causes in cases)
    print(f"{sum(len(causes) for _, causes in cases)} cases, about {expected_s / 60:.0f} minutes", flush=True)
    found: list[Case] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-lab-") as place:
        python = Path(place) / "python"
        install_holdfast(python)
        if options.plant:
            planted.plant(options.plant, python)
        for suite, causes in cases:
            failed += _run(suite, causes, Path(place), python, found, control=not options.plant)
    print(table(found))
    print(f"{len(found)} cases in {(time.monotonic() - began) / 60:.0f} minutes, {len(failed)} failures")
    return 1 if failed else 0


def _run(
    suite: Suite, causes: tuple[Cause, ...], place: Path, python: Path, found: list[Case], *, control: bool
) -> list[str]:
    """What failed. One that fails ends its suite: the guests are in no known state then."""
    program = f"h1 {suite.holder}, h2 {suite.taker}"
    print(f"== {suite.name}: {suite.about} ({program}; {suite.timing.dead_s} s)", flush=True)
    scenario = Scenario(suite, place / suite.name, python)
    at = "control"
    try:
        scenario.prepare()
        if control:
            scenario.control()
            print(f"{suite.name}/control: no reset in {suite.control_s:.0f} s with nothing wrong", flush=True)
        for cause in causes:
            at = cause
            case = scenario.run(cause)
            found.append(case)
            print(json.dumps(case.facts()), flush=True)
            if broken := case.broken():
                raise LabError("; ".join(broken))
            print("  ".join(case.row()), flush=True)
    except LabError as e:
        text = f"FAILED {suite.name}/{at}: {e}"
        print(text, flush=True)
        for host in HOSTS:
            print(
                f"--- {scenario.managers[host].program} on {host}\n{scenario.managers[host].log()}",
                flush=True,
            )
        return [text]
    finally:
        scenario.close()
    return []


def _options() -> argparse.Namespace:
    suites = "\n".join(f"  {s.name:13} {s.about}: {', '.join(s.causes)}" for s in SUITES)
    causes = "\n".join(f"  {name:13} {about}" for name, about in CAUSES.items())
    parser = argparse.ArgumentParser(
        prog="python -m lab.fencing",
        description=f"{fencing.__doc__}\nsuites:\n{suites}\n\ncauses:\n{causes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="SUITE, CAUSE or SUITE/CAUSE; default: all")
    parser.add_argument(
        "--plant", choices=sorted(planted.BUGS), help="with a deliberate bug in the guests' code"
    )
    options = parser.parse_args()
    try:
        chosen(options.cases)
    except ValueError as e:
        parser.error(f"there is no case {e}")
    return options


if __name__ == "__main__":
    sys.exit(main())
