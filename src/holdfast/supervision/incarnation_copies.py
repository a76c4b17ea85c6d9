"""Where this host remembers its incarnation in a lockspace: several copies, each enough by itself.

An incarnation is a host id, a generation and a name. A daemon that forgets it cannot renew its lease, and the VMs that
depend on the lease have to be stopped. So it is kept in files of different life time, and beside the locks themselves:

    state_dir/lockspace-NAME.json   survives a reboot: the next boot claims the same id
    RUN_DIR/lockspace-NAME.json     survives the daemon; gone after a reboot, as the VMs are
    the journal, a re-exec's state  travels with the locks that depend on it

Of the copies that can be read, one of this boot counts more than one of an earlier boot, then the latest one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from holdfast.supervision.host_identity import Incarnation, decode_term, encode_term
from holdfast.system.files.state_file import StatePort


def copy_path(directory: str, lockspace: str) -> str:
    """The file in a state_dir or run_dir that keeps a daemon's incarnation in a lockspace."""
    return f"{directory}/lockspace-{lockspace}.json"


class IncarnationCopies:
    """The copies of one lockspace. `carried`: further ones that are only read, such as the journal's."""

    def __init__(
        self,
        lockspace: str,
        files: Sequence[StatePort],
        carried: Callable[[], Sequence[bytes]] = tuple,
    ) -> None:
        self._lockspace = lockspace
        self._files = files
        self._carried = carried

    def newest(self, boot: str) -> Incarnation | None:
        """The incarnation that this host had last, according to the copies that can be read; None if there is none."""
        raw = [*(file.read() for file in self._files), *self._carried()]
        found = [term for each in raw if (term := decode_term(each)) is not None]
        ours = [term for term in found if term.lockspace == self._lockspace]
        return max(ours, key=lambda term: (term.boot == boot, term.joined_at), default=None)

    def write(self, term: Incarnation) -> str:
        """Write every file. Returns why one of them could not be written; empty if all were.

        A file that can't be written but has this very incarnation is good enough, as after a restart on a full disk: only
        `joined_at` may differ.
        """
        raw = encode_term(term).encode()
        failed = ""
        for file in self._files:
            try:
                file.replace(raw)
            except OSError as e:
                if not self._has(file, term):
                    failed = failed or f"{e.filename or 'its state file'}: {e.strerror or e}"
        return failed

    @staticmethod
    def _has(file: StatePort, term: Incarnation) -> bool:
        found = decode_term(file.read())
        return found is not None and msgspec.structs.replace(found, joined_at=term.joined_at) == term
