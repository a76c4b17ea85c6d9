"""Records of hosts beside a lockspace's file, as a port: read and replaced by a worker pool of their own.

They are for information, so everything here is bounded and fails quietly: a reason instead of an answer. A lockspace on a
block device has no records (docs/specs/host-records.md).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Protocol

from holdfast.ondisk.host_record import RECORD_BYTES_MAX, is_record_name, path_of
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.pool_calls import on_worker
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.files.regular_file import Unreadable, read_regular, replace_regular

ANSWER_S = 5.0
"""A record is one small file; storage that takes longer has other trouble, and nobody waits for this."""
RECORDS_MAX = 2000
"""As many as a lockspace has host ids."""
NO_PLACE = "a lockspace on a block device has no place for records of hosts"


class HostRecordFiles(Protocol):
    """The port, for the records of one lockspace."""

    async def read_all(self) -> Mapping[int, bytes] | str:
        """What is there, by host id; why that is not known."""

    async def replace(self, host_id: int, raw: bytes) -> str:
        """Make it the record of that host; why that failed, `NO_PLACE` if it can't be; empty if it is."""


class SystemHostRecordFiles:
    """Files beside the lockspace's file at ``path``."""

    def __init__(self, path: str, pool: WorkerPool) -> None:
        self._path = path
        self._pool = pool

    async def read_all(self) -> Mapping[int, bytes] | str:
        found = await on_worker(self._pool, lambda: read_records(self._path), ANSWER_S)
        return os.strerror(found.errno) if isinstance(found, IoFailed) else found

    async def replace(self, host_id: int, raw: bytes) -> str:
        failed = await on_worker(self._pool, lambda: replace_record(self._path, host_id, raw), ANSWER_S)
        return os.strerror(failed.errno) if isinstance(failed, IoFailed) else failed


def read_records(lockspace_path: str) -> Mapping[int, bytes] | str:
    """By host id; `NO_PLACE`; raises OSError. Blocks as long as the storage does."""
    if not stat.S_ISREG(os.stat(lockspace_path).st_mode):
        return NO_PLACE
    directory, name = os.path.split(os.path.realpath(lockspace_path))
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if is_record_name(entry.name, name)][:RECORDS_MAX]
    contents = {
        int(each.rpartition("-")[2]): read_regular(os.path.join(directory, each), RECORD_BYTES_MAX)
        for each in found
    }
    return {host_id: raw for host_id, raw in contents.items() if not isinstance(raw, Unreadable)}


def replace_record(lockspace_path: str, host_id: int, raw: bytes) -> str:
    """Empty, or `NO_PLACE`; raises OSError and leaves what was there. Blocks as long as the storage does."""
    like = os.stat(lockspace_path)
    if not stat.S_ISREG(like.st_mode):
        return NO_PLACE
    replace_regular(path_of(os.path.realpath(lockspace_path), host_id), raw, like=like)
    return ""
