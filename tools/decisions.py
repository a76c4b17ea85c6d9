"""Writes the rows of docs/adr/README.md from the titles of the decisions; a status that stands there stays."""

from __future__ import annotations

import re
from pathlib import Path

ADR = Path(__file__).parents[1] / "docs" / "adr"
HEAD = "| number | decision | status |\n|---|---|---|\n"


def main() -> None:
    index = ADR / "README.md"
    text = index.read_text()
    before, _, rows = text.partition(HEAD)
    statuses = dict(re.findall(r"^\| \[(\d{4})\].*\| ([^|]+) \|$", rows, re.MULTILINE))
    lines = []
    for path in sorted(ADR.glob("[0-9]*.md")):
        number = path.name[:4]
        title = path.read_text().splitlines()[0].removeprefix("# ")[4:].lstrip(".: ")
        lines.append(
            f"| [{number}]({path.name}) | {title[0].upper()}{title[1:]} | {statuses.get(number, 'in force')} |\n"
        )
    index.write_text(before + HEAD + "".join(lines))


if __name__ == "__main__":
    main()
