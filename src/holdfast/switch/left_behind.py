"""What virtlockd had, as a file on /run: for a holdfastd that finds no process with the descriptors any more (ADR 0227).

Written before the first lock is converted. It goes when virtlockd keeps its locks, or when holdfastd has each of them in its
journal. Until then whatever is killed leaves one of two behind: a process that has the descriptors, or this file, by which
holdfastd takes each lock again, and finds out which ones somebody else has by now.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace

import msgspec

from holdfast.switch import place
from holdfast.switch.as_reexec import Facts, as_reexec, users
from holdfast.switch.virtlockd_state import STATE_BYTES_MAX, STATE_FILE, Unusable, VirtlockdState, decode
from holdfast.system.files.ofd_lock import key_of
from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.host.descriptors import REEXEC_BYTES_MAX, ReexecState, decode_state, encode_state
from holdfast.system.host.process import boot_id, host_name, lives, start_ticks


class LeftBehind(msgspec.Struct, frozen=True):
    """`pid` and `start`: of the process that was virtlockd. `locks`: for people, a line for each."""

    pid: int
    start: int
    locks: list[str]
    state: bytes

    def is_in_use(self) -> bool:
        """Whether that process is still there: it has the locks, or gives them to a keeper just now."""
        return lives(self.pid, self.start)

    def without_descriptors(self) -> ReexecState:
        """Owners and locks as one holdfastd passes them to the next, which has to take each lock again."""
        return decode_state(self.state)


def write(state: VirtlockdState, facts: Facts, pid: int) -> None:
    """`pid`: virtlockd's. Raises OSError."""
    whole = as_reexec(state, facts, listens=False)
    bare = msgspec.structs.replace(whole, locks={}, connections=[])
    lines = [f"{users(state, each.owners)}: {each.path or each.resource}" for each in state.locks]
    place.write(place.LOCKS, LeftBehind(pid, start_ticks(pid), lines, encode_state(bare)))


def write_of(pid: int, backend: str) -> list[place.LockResult]:
    """Of a virtlockd that was killed right after its re-exec: by its own state file. Raises OSError if that can't be had."""
    raw = read_regular(STATE_FILE, STATE_BYTES_MAX)
    state = decode(raw, pid) if not isinstance(raw, Unreadable) else raw
    if isinstance(state, Unreadable | Unusable):
        raise OSError(f"{STATE_FILE}: {state.reason}")
    keys = {}
    for each in state.locks:
        with contextlib.suppress(OSError):
            keys[each.fd] = key_of(os.stat(each.path))
    there = replace(state, locks=tuple(each for each in state.locks if each.fd in keys))
    write(there, Facts(boot_id(), host_name(), backend, time.time(), start_ticks, keys), pid)
    return as_before(state)


def as_before(state: VirtlockdState) -> list[place.LockResult]:
    """Each lock as virtlockd had it."""
    return [
        place.LockResult(
            each.path or str(each.resource), users(state, each.owners), each.mode.word, each.mode.word
        )
        for each in state.locks
    ]


def read(path: str = "") -> LeftBehind | None:
    """This host's, or that at another path; None if there is none. Raises OSError if there is one that can't be read."""
    path = path or place.LOCKS
    raw = read_regular(path, 2 * REEXEC_BYTES_MAX)
    if isinstance(raw, Unreadable):
        if raw.missing:
            return None
        raise OSError(f"{path}: {raw.reason}")
    try:
        return msgspec.json.decode(raw, type=LeftBehind)
    except msgspec.DecodeError as e:
        raise OSError(f"{path}: {e}") from None


def remove() -> None:
    """Nobody needs it any more; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.LOCKS)
