"""Entry point of `holdfastd`: feeds the watchdog that an earlier program has left, before all that takes long (ADR 0242).

The name is that of releases before the layout of ADR 0189: a reload runs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from holdfast.system.watchdog import first_feeding


def main(arguments: Sequence[str] | None = None) -> int:
    first_feeding.begin(os.environ)
    from holdfast.daemon.main import main as daemon

    return daemon(arguments)


__all__ = ["main"]
