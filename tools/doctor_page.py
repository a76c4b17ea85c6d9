"""Writes docs/doctor.md from the table of findings and the table of exit codes. `--check`: says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from holdfast.cli import exits
from holdfast.cli.doctor.rules import RULES, page_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "doctor.md"
_HEAD = """# What `holdfast doctor` finds

<!-- Written by tools/doctor_page.py from src/holdfast/cli/doctor/rules.py and cli/exits.py. -->

Each finding has an id, a severity, the facts of this host, and a fix. Ids stay the same over releases, so monitoring
can name them: `holdfast doctor --json` gives a list of objects with `id`, `severity` (`ok`, `note`, `problem`),
`check`, `facts` and `fix`; what is in order has an empty `id`. A *problem* makes the exit code 5; a *note* does not.
`holdfast doctor --explain ID` prints the text below, and `holdfast doctor --only ID` reports these findings alone.

Fixes can be pasted: one line of commands goes no further than the first that fails, and none stops a lock daemon
while a VM depends on it.
"""


def page() -> str:
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in exits.MEANINGS.items())
    pages = "\n".join(page_of(rule) for rule in RULES.values())
    return (
        f"{_HEAD}\n## Exit codes of every command\n\n| code | meaning |\n|---|---|\n{codes}\n"
        f"| 128+N | `run`: signal N ended the command |\n\n## Findings\n\n{pages}"
    )


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0 if PAGE.read_text() == page() else f"{PAGE} is not up to date: run python tools/doctor_page.py"
        )
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
