"""`make bench`: all figures of this checkout beside Debian's virtlockd and sanlock, in one run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import cycles, footprint, leases


def main() -> int:
    if os.geteuid() != 0:
        print(
            "the bench needs root: virtlockd's socket path is fixed, so it runs in a mount namespace",
            file=sys.stderr,
        )
        return 1
    return cycles.main([]) or footprint.main() or leases.main()


if __name__ == "__main__":
    sys.exit(main())
