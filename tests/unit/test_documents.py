"""Documents lead where they say: links, the list of decisions, and the specifications that the code cites."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SPECIFICATION = re.compile(
    r"\b((?:virtlockd|libvirt|sanlock|newer|scsi)-(?:rpc|integration|disk|socket|sanlock|libvirt|hooks-lvm|reservations))\.md"
)


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_every_decision_is_listed_with_its_title() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    for path in sorted((ROOT / "docs" / "adr").glob("0*.md")):
        number = path.name[:4]
        rows = [line for line in index.splitlines() if line.startswith(f"| [{number}]({path.name}) |")]
        assert len(rows) == 1, f"docs/adr/README.md has no row for {path.name}"
        title = path.read_text().splitlines()[0].removeprefix("# ")[4:].lstrip(".: ")
        assert title.casefold() in rows[0].casefold(), f"docs/adr/README.md has another title for {number}"


def test_specifications_that_the_code_cites_are_in_the_repository() -> None:
    cited = {
        name
        for folder in ("src", "tests", "lab", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for name in SPECIFICATION.findall(path.read_text())
    }
    assert len(cited) >= 5
    assert all((ROOT / "docs" / "specs" / f"{name}.md").exists() for name in cited), cited


def test_every_module_is_named_in_its_row_of_the_architecture() -> None:
    rows = {
        room: row
        for row in (ROOT / "ARCHITECTURE.md").read_text().splitlines()
        if row.startswith("| `")
        for room in re.findall(r"`([a-z_/]+/)`", row.split("|")[1])
    }
    missing = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        if path.name == "__init__.py":
            continue
        parts = path.relative_to(ROOT / "src").parts
        room = "holdfast_sim/" if parts[0] == "holdfast_sim" else "".join(f"{part}/" for part in parts[1:-1])
        if room and f"`{path.stem}`" not in rows.get(room, ""):
            missing.append(f"{room}{path.stem}")
    assert not missing, "ARCHITECTURE.md has no word about these"
