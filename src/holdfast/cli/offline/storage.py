"""What the offline commands need of shared storage: open it, read of it what is there, choose the sizes.

Nothing here asks a daemon. A refusal (`UsageError`) names the option or argument it is about, what is wrong, and what
to do; with --json it is printed as an object of the same three.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from holdfast.cli import exits
from holdfast.cli.offline import identify
from holdfast.cli.who.disk_users import no_disk
from holdfast.ondisk import geometry as geometries
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import GEOMETRIES, MIB, SECTOR_4096, Geometry
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import NEWER_FIX
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.ondisk.rindex import RindexHeader
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.blocking_ports import run_blocking
from holdfast.system.block_io.disk import BlockingDisk, open_blocking
from holdfast.system.block_io.disk_file import DiskFacts
from holdfast.system.block_io.worker_pool import WorkerPool

CLOSE_PATIENCE_S = 1.0
"""Storage that does not close a file in that time is left to the kernel when the command ends."""
READ_TIMEOUT_S = 30.0
"""A person waits; storage that takes longer is said to hang."""
_FIXES = {
    errno.ENOENT: "check the path; 'lockspace init' and 'lease init' make missing files",
    errno.EACCES: "run it as root, or as a user who may read and write the path",
    errno.EPERM: "run it as root",
    errno.EROFS: "mount it writable",
    errno.EISDIR: "name a file in that directory",
    errno.ENOTBLK: "name a regular file or a block device",
    errno.EBUSY: "the device is mounted or part of another device; name one that nobody uses",
    errno.ETIMEDOUT: "the storage does not answer; check its paths",
    errno.EINVAL: "the device's sectors are larger than the format's; use --sector 4096",
}


class UsageError(Exception):
    """Why a command does not do what it was asked."""

    def __init__(self, field: str, problem: str, fix: str, code: int = exits.FAILED) -> None:
        super().__init__(f"{field}: {problem}; {fix}")
        self.field, self.problem, self.fix, self.code = field, problem, fix, code


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Turn `UsageError` into one line on stderr, or one object on stdout, and an exit code."""
    try:
        yield
    except UsageError as e:
        if as_json:
            from holdfast.cli import render

            render.as_json({"ok": False, "field": e.field, "error": e.problem, "fix": e.fix, "exit": e.code})
        else:
            click.echo(f"holdfast: {e}", err=True)
        sys.exit(e.code)


def failed(path: str, what: str, failure: IoFailed) -> UsageError:
    fix = _FIXES.get(failure.errno, "check the storage and the kernel's log")
    if failure.errno in (errno.ENOTBLK, errno.EISDIR) and (kind := no_disk(path)):
        return UsageError("PATH", f"{what} {path}: it is {kind}", fix)
    return UsageError("PATH", f"{what} {path}: {os.strerror(failure.errno)}", fix)


def not_an_area(disk: BlockingDisk) -> UsageError:
    """For a path that holds nothing of the format: what it holds instead, as far as its beginning shows."""
    facts, head = disk.facts, read(disk, 0, SECTOR_4096)
    if facts.is_block_device:
        kind = f"a block device of {facts.size_bytes} bytes"
    elif not facts.size_bytes:
        kind = "an empty file"
    elif isinstance(found := identify.identify(head), identify.Foreign) and found.is_known:
        kind = found.what
    else:
        text = head and all(each in _TEXT for each in head)
        kind = f"a {'text file' if text else 'file'} of {facts.size_bytes} bytes"
    if head and not any(head):
        kind += " that begins with zeros"
    problem = f"{facts.path} is {kind}; it holds no lease, lockspace or index"
    return UsageError(
        "PATH", problem, "name a path that 'lockspace init' or 'lease init' has made", exits.UNKNOWN
    )


_TEXT = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r") | frozenset(range(0x80, 0x100))


@contextmanager
def opened(path: str, *, writable: bool = False, create: bool = False) -> Iterator[BlockingDisk]:
    """The disk at `path`. To be written, a block device must not be mounted or part of another one."""
    made = create and not os.path.lexists(path)
    if made:
        _create(path)
    try:
        with _existing(path, writable) as disk:
            yield disk
    except UsageError:
        if made:
            os.unlink(path)  # a refused command leaves nothing behind
        raise


@contextmanager
def _existing(path: str, writable: bool) -> Iterator[BlockingDisk]:
    pool = WorkerPool(path)
    disk = open_blocking(path, pool, writable=writable, exclusive=writable)
    if isinstance(disk, IoFailed):
        pool.close()
        raise failed(path, "cannot open", disk)
    try:
        yield disk
    finally:
        closed = threading.Event()
        disk.close(closed.set)
        pool.close()
        # A device that is still open can't be opened exclusively by the next caller.
        closed.wait(CLOSE_PATIENCE_S)


def _create(path: str) -> None:
    if os.path.abspath(path).startswith("/dev/"):
        # A misspelt volume must not become a file in memory that looks like shared storage.
        raise UsageError("PATH", f"{path} does not exist", "make the device first (for example: lvcreate)")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o660))
    except OSError as e:
        raise failed(path, "cannot make", IoFailed(e.errno or errno.EIO)) from None


def read(disk: BlockingDisk, offset_bytes: int, length_bytes: int) -> bytes:
    """As much of that as lies before the end; whole sectors only."""
    size = disk.facts.size_bytes - disk.facts.size_bytes % geometries.SECTOR_512
    length_bytes = min(length_bytes, size - offset_bytes)
    if length_bytes <= 0:
        return b""
    raw = run_blocking(disk.read(offset_bytes, length_bytes, timeout_s=READ_TIMEOUT_S))
    if isinstance(raw, IoFailed):
        raise failed(disk.facts.path, f"cannot read {length_bytes} bytes at {offset_bytes} of", raw)
    return raw


def choose_geometry(
    facts: DiskFacts, sector: str | None, align: str | None, hosts_max: int | None
) -> Geometry:
    """The pair of sizes asked for; what is left open as sanlock chooses it, or as small as serves the hosts."""
    sector_bytes = int(sector) if sector else facts.logical_sector_bytes or geometries.SECTOR_512
    if sector_bytes < facts.logical_sector_bytes:
        raise UsageError(
            "--sector",
            f"{sector_bytes} is less than the {facts.logical_sector_bytes} bytes that {facts.path} writes at once",
            f"use --sector {facts.logical_sector_bytes}",
        )
    fitting = [each for each in GEOMETRIES if each.sector_bytes == sector_bytes]
    if hosts_max is not None and hosts_max < 1:
        raise UsageError("--hosts-max", f"{hosts_max} hosts", "name at least 1")
    if align is not None:
        fitting = [each for each in fitting if each.align_bytes == int(align[:-1]) * MIB]
        if not fitting:
            valid = ", ".join(str(each) for each in GEOMETRIES)
            raise UsageError(
                "--align", f"no area of {align} has sectors of {sector_bytes}", f"use one of {valid}"
            )
    if hosts_max is None:
        return fitting[-1]
    for each in fitting:
        if each.hosts_max >= hosts_max:
            return each
    most = max(fitting, key=lambda each: each.hosts_max)
    fix = (
        "use --align 8M"
        if align and most.hosts_max < geometries.HOSTS_MAX_LIMIT
        else "name no more than that"
    )
    raise UsageError("--hosts-max", f"{hosts_max} hosts, but {most} serves {most.hosts_max}", fix)


def check_aligned(geometry: Geometry, offset_bytes: int) -> None:
    if geometry.is_aligned(offset_bytes):
        return
    below = offset_bytes - offset_bytes % geometry.align_bytes
    raise UsageError(
        "--offset",
        f"{offset_bytes} is not a multiple of the area size {geometry.align_bytes // MIB}M",
        f"use {below // MIB}M or {(below + geometry.align_bytes) // MIB}M",
    )


def check_name(field: str, name: str, bytes_max: int = NAME_BYTES) -> str:
    """Names are as long as the format has room; one that would be cut makes two locks one."""
    try:
        PaddedName.of(name, bytes_max)
    except ValueError as e:
        raise UsageError(field, str(e), f"choose a name of 1 to {bytes_max} bytes") from None
    if not name:
        raise UsageError(field, "the name is empty", f"choose a name of 1 to {bytes_max} bytes")
    return name


def require_room(disk: BlockingDisk, geometry: Geometry, offset_bytes: int, *, force: bool) -> str:
    """Refuse to make an area over anything but zeros and cleared leases; with `force`, say what is overwritten."""
    facts, end = disk.facts, offset_bytes + geometry.align_bytes
    check_aligned(geometry, offset_bytes)
    if facts.is_block_device and end > facts.size_bytes:
        raise UsageError(
            "--offset",
            f"an area of {geometry.align_bytes // MIB}M at {offset_bytes} ends beyond the {facts.size_bytes} "
            f"bytes of {facts.path}",
            "make the device larger, or choose a smaller offset or --align",
        )
    there = _around(disk, offset_bytes) or _inside(disk, geometry, offset_bytes)
    if there and not force:
        fix = "choose another place, or --force to destroy it (stop all its users on all hosts first)"
        if there.is_newer:
            fix = f"choose another place; {NEWER_FIX}"
        raise UsageError("PATH", f"{facts.path} holds {there.what}", fix, exits.REFUSED)
    return there.what if there else ""


@dataclass(frozen=True, slots=True)
class _There:
    """What is where an area is to be made."""

    what: str
    is_newer: bool = False


def _around(disk: BlockingDisk, offset_bytes: int) -> _There | None:
    """A larger area that begins before this offset and reaches over it."""
    for align_bytes in sorted({each.align_bytes for each in GEOMETRIES}):
        begin = offset_bytes - offset_bytes % align_bytes
        if begin == offset_bytes:
            continue
        raw = read(disk, begin, SECTOR_4096)
        found = identify.identify(raw)
        if isinstance(found, DeltaLease | Leader | RindexHeader):
            if begin % found.geometry.align_bytes:
                continue  # a record from the midst of a lockspace, whose begin is yet to be looked at
            areas = 2 if isinstance(found, RindexHeader) else 1
            if begin + areas * found.geometry.align_bytes > offset_bytes:
                what = identify.describe(found, raw)
                return _There(f"{what}, which begins at {begin} and reaches over {offset_bytes}")
    return None


def _inside(disk: BlockingDisk, geometry: Geometry, offset_bytes: int) -> _There | None:
    """Whatever begins within the area to be made."""
    raw = read(disk, offset_bytes, geometry.align_bytes)
    for at in range(0, len(raw), MIB):
        found = identify.identify(raw[at : at + MIB])
        if not identify.is_reusable(found):
            what = f"{identify.describe(found, raw[at:])} (at {offset_bytes + at})"
            return _There(what, isinstance(found, identify.Newer))
    size = disk.facts.size_bytes
    if size % geometries.SECTOR_512 and offset_bytes < size < offset_bytes + geometry.align_bytes:
        return _There(f"a file of {size} bytes, which is no whole number of sectors")
    return None
