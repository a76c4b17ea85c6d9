"""What the kernel calls the daemon and its workers: people find the daemon by `pgrep holdfastd`, and by the name of a worker
the next daemon reads in which storage a thread of a dead one still is.

A name has room for 15 bytes, so a worker's is a digest of the pool's name: a daemon that knows a pool finds its threads, and
no two pools are taken for one another.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib

PROCESS = "holdfastd"
PREFIX = "hf."
_DIGITS = 12
"""Of the digest: with the prefix the 15 bytes that the kernel keeps (proc_pid_comm(5)); 48 bits for a few hundred pools."""


@functools.lru_cache(maxsize=1024)
def of_pool(pool: str) -> str:
    """The name of a thread that works for this pool."""
    return PREFIX + hashlib.sha256(pool.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


def name_this_process() -> None:
    """A daemon that a reload has executed was called by its interpreter's name. Best effort."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as f:
        f.write(PROCESS)


def name_this_thread(pool: str) -> None:
    """Best effort: a thread without a name counts as one that may be in any storage."""
    with contextlib.suppress(OSError), open("/proc/thread-self/comm", "w", encoding="ascii") as f:
        f.write(of_pool(pool))
