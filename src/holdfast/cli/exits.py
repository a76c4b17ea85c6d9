"""Exit codes, the same for all commands (75 and 69 are EX_TEMPFAIL and EX_UNAVAILABLE of <sysexits.h>)."""

from __future__ import annotations

OK = 0
NEGATIVE = 1
USAGE = 2
UNKNOWN = 4
UNREACHABLE = 69
REFUSED = 75
NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNAL_BASE = 128
