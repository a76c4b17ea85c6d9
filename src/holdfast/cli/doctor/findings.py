"""What a check of `holdfast doctor` yields: facts under a stable id, and a fix that can be pasted.

The id leads to the rule (`rules`), which has the severity, the subject and the page's text; a check adds what it has seen on
this host. What was checked and is in order is a finding without an id.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.cli.doctor.rules import RULES

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """``id`` is empty for what is in order; ``check`` is the subject; ``severity``: ok, note (know it), problem (fix it)."""

    id: str
    severity: str
    check: str
    facts: str
    fix: str = ""


def found(rule: str, facts: str, fix: str) -> Finding:
    """One case of a rule: what was seen on this host, and what puts it right there."""
    of = RULES[rule]
    return Finding(rule, of.severity, of.check, facts, fix)


def fine(check: str, facts: str) -> Finding:
    """What was checked and is in order."""
    return Finding("", OK, check, facts)
