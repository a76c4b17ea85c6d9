"""Where this host remembers its incarnation in a lockspace: several copies, each enough by itself.

An incarnation is a host id, a generation and a name. A daemon that forgets it cannot renew its lease, and the VMs that
depend on the lease have to be stopped. So it is kept in files of different life time, and beside the locks themselves:

    state_dir/lockspace-NAME.json   survives a reboot: the next boot claims the same id
    RUN_DIR/lockspace-NAME.json     survives the daemon; gone after a reboot, as the VMs are
    the journal, a re-exec's state  travels with the locks that depend on it

Of the copies that can be read, one of this boot counts more than one of an earlier boot, then the latest one counts.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Sequence

import msgspec

from holdfast.supervision.host_identity import REMOVED, Incarnation, decode_term, encode_term
from holdfast.system.files.state_file import StatePort


def copy_path(directory: str, lockspace: str) -> str:
    """The file in a state_dir or run_dir that keeps a daemon's incarnation in a lockspace. Clients of sanlock may use any
    name: a slash is percent-encoded.
    """
    return f"{directory}/{_PREFIX}{lockspace.replace('%', '%25').replace('/', '%2F')}{_SUFFIX}"


def lockspace_of_copy(file_name: str) -> str:
    """The lockspace whose incarnation a file of that name keeps; empty if it is no such file."""
    if not (file_name.startswith(_PREFIX) and file_name.endswith(_SUFFIX)):
        return ""
    return urllib.parse.unquote(file_name[len(_PREFIX) : -len(_SUFFIX)], errors="surrogateescape")


_PREFIX, _SUFFIX = "lockspace-", ".json"


class IncarnationCopies:
    """The copies of one lockspace. `carried`: further ones that are only read, such as the journal's. `clients_place`: see
    `Incarnation`, of one that is joined now.
    """

    def __init__(
        self,
        lockspace: str,
        files: Sequence[StatePort],
        carried: Callable[[], Sequence[bytes]] = tuple,
        clients_place: Callable[[], str] = str,
    ) -> None:
        self._lockspace = lockspace
        self._files = files
        self._carried = carried
        self.clients_place = clients_place

    def newest(self, boot: str) -> Incarnation | None:
        """The incarnation that this host had last, according to the copies that can be read; None if there is none."""
        raw = [*(file.read() for file in self._files), *self._carried()]
        found = [term for each in raw if (term := decode_term(each)) is not None]
        ours = [term for term in found if term.lockspace == self._lockspace]
        return max(ours, key=lambda term: (term.boot == boot, term.joined_at), default=None)

    def of_boot(self, boot: str) -> Incarnation | None:
        """The newest one, if it is of that boot: its processes may live."""
        term = self.newest(boot)
        return term if term is not None and term.boot == boot else None

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

    def forget_place(self, boot: str, now: float) -> Incarnation | None:
        """Record that nobody is to join a lockspace again that clients had added, as it was left: the incarnation as it is
        written now, with what can be written; None if no copy of this boot says that clients had added it.
        """
        term = self.of_boot(boot)
        if term is None or term.clients_place in ("", REMOVED):
            return None
        left = msgspec.structs.replace(term, clients_place=REMOVED, joined_at=now)
        self.write(left)
        return left

    @staticmethod
    def _has(file: StatePort, term: Incarnation) -> bool:
        found = decode_term(file.read())
        return found is not None and msgspec.structs.replace(found, joined_at=term.joined_at) == term
