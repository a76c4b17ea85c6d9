"""A history in two columns: the host that a violation is about on the left, the others on the right.

12.481  joined space1 as host_id 1 generation 1
13.002                                           host2: is suspended for 7.1 s
14.730  holds disk1a exclusive
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

Line = tuple[float, str, str]

COLUMN_CHARS = 56
LINES_MAX = 80
"""So many lines at the end of a history are shown; earlier ones rarely matter."""


def drawn(lines: Sequence[Line], parties: Sequence[str], lines_max: int = LINES_MAX) -> Iterator[str]:
    """The last lines of a history, as text."""
    left = parties[0] if parties else next((who for _, who, _ in reversed(lines) if who), "")
    yield f"{'true time':>10}  {left:<{COLUMN_CHARS}}  others"
    for moment, who, what in lines[-lines_max:]:
        text = what if who in (left, "") else f"{who}: {what}"
        indent = "" if who == left else " " * (COLUMN_CHARS + 2)
        for number, part in enumerate(textwrap.wrap(text, COLUMN_CHARS) or [""]):
            yield f"{moment:10.3f}  {indent}{part}" if number == 0 else f"{'':12}{indent}  {part}"
