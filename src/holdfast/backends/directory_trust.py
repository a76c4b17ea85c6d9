"""Warns once of each directory of lock files or leases in which others than root may write; refuses leases where everybody
may.

If a lock file or lease is removed while it is held, the next host makes it again and then holds it as well.
"""

from __future__ import annotations

import logging
import shlex

from holdfast.system.files.directory_writers import Writers
from holdfast.system.files.ofd_lock import LockFiles

log = logging.getLogger(__name__)

MET_MAX = 10_000
"""Directories that are remembered so as to warn once of each; then all are forgotten."""


class DirectoryTrust:
    """The checked directories of one backend."""

    def __init__(self, backend: str, files: LockFiles) -> None:
        self._backend = backend
        self._files = files
        self._met: set[str] = set()

    def meet(self, directory: str) -> None:
        """Log who else may write there, once. May block on the directory's storage."""
        if directory in self._met:
            return
        if len(self._met) >= MET_MAX:
            self._met.clear()
        self._met.add(directory)
        writers = self._files.writers(directory)
        if writers.who:
            text, fix = untrusted(directory, writers)
            log.warning("backend '%s': %s: %s", self._backend, text, fix)

    def refusal_of_leases(self, directory: str) -> str:
        """Why no new lease is taken there; empty if one may be. May block."""
        self.meet(directory)
        writers = self._files.writers(directory)
        return ": ".join(untrusted(directory, writers)) if writers.everybody else ""


def untrusted(directory: str, writers: Writers) -> tuple[str, str]:
    """What is wrong with the directory, and the fix, as two texts for people."""
    text = f"{writers.who} may write in {directory}; a file that one of them removes there lets another host have the disk"
    quoted = shlex.quote(directory)
    return (
        text,
        f"chmod o-w {quoted}" if writers.everybody else f"let only root write there (ls -ld {quoted})",
    )
