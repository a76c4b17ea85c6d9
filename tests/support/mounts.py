"""File systems that a test mounts for itself, as root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[None]:
    """`mount ARGUMENTS AT`, for so long. Taken away lazily: who failed inside may still have files open there,
    and a mount left behind would fail pytest when it cleans its directories up.
    """
    subprocess.run(["mount", *arguments, str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)
