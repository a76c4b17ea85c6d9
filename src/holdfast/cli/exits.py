"""Exit codes, the same for all commands: each means one thing (69, 75, 77, 78 are those of <sysexits.h>).

docs/doctor.md has the table for operators; a test compares the two.
"""

from __future__ import annotations

OK = 0
FAILED = 1
"""The command could not do what it was asked, and says why. Python's own code for an error in a program, too."""
USAGE = 2
FREE = 3
UNKNOWN = 4
PROBLEMS = 5
DEGRADED = 6
UNREACHABLE = 69
REFUSED = 75
NOT_PERMITTED = 77
BAD_CONFIG = 78
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNAL_BASE = 128

MEANINGS = {
    OK: "done; nothing is wrong; somebody holds the disk (`who`)",
    FAILED: "the command could not do it; the text on stderr says why",
    USAGE: "the command line is wrong",
    FREE: "nobody holds the disk (`who`); nothing was refused or lost (`why`)",
    UNKNOWN: "it can't be determined, or there is no such host",
    PROBLEMS: "there is something to fix (`doctor`, `setup`; `check-config`: this host lacks what the configuration names)",
    DEGRADED: "protection is degraded now (`status`, `lockspace list`, `lockspace join`), or part of an order was not done "
    "(`host fenced`)",
    UNREACHABLE: "no holdfastd answers",
    REFUSED: "refused: somebody else holds it, or a rule forbids it",
    NOT_PERMITTED: "this user may not ask: be root, or a member of `control.group`",
    BAD_CONFIG: "the configuration can't be used (`check-config`, `holdfastd`)",
    NOT_EXECUTABLE: "`run`: the command can't be executed",
    NOT_FOUND: "`run`: the command can't be found",
}
