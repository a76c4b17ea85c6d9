"""Checks of directories of lock files: are they there, do locks work in them, and do other hosts see the same directory?"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from functools import partial

from holdfast.backends.base import Backend
from holdfast.backends.directory_trust import untrusted
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Scene
from holdfast.cli.libvirt_files import libvirt_lockspaces
from holdfast.model import Mode, Protection
from holdfast.system.files.bounded_question import ANSWER_S, Silent, answer_in_time
from holdfast.system.files.directory_writers import Writers, writers_of
from holdfast.system.files.mounts import LOCAL_TYPES, Mount
from holdfast.system.files.ofd_lock import ForeignLock, SystemLockFiles

FILES_ASKED_MAX = 10_000
"""Lock files or leases of one directory whose modes are read."""
WHO_ELSE = "qemu-lockd.conf"


def lock_directories(scene: Scene) -> Iterator[Finding]:
    tables = scene.config.backend
    places = {
        str(t["directory"]): f"backend '{n}'"
        for n, t in tables.items()
        if t.get("directory") and t.get("driver") != "paxos"  # leases need no locks
    }
    places.update(dict.fromkeys(libvirt_lockspaces(scene.root), WHO_ELSE))
    for directory, whose in places.items():
        backend = next((b for n, b in scene.routing.backends.items() if whose == f"backend '{n}'"), None)
        try:
            yield from _one(scene, directory, whose, backend)
        except Silent:
            yield found(
                "HF061",
                f"the storage of {directory} ({whose}) did not answer within {ANSWER_S:g} s",
                "find out why it hangs (dmesg, the storage's own log)",
            )


def _one(scene: Scene, directory: str, whose: str, backend: Backend | None) -> Iterator[Finding]:
    there, writers, open_to_all = answer_in_time(partial(look_at, directory))
    if not there:
        yield found(
            "HF050",
            f"{directory} ({whose}) is not there",
            f"mount its storage. Only if it is to be on {scene.mounts.mount_of(directory).point}, and no host has "
            f"ever used it: "
            f"mkdir -m 700 -- {shlex.quote(directory)}",
        )
        return
    if writers.who:
        yield found("HF051", *untrusted(directory, writers))
    if open_to_all:
        yield writable_files(directory, open_to_all)
    mount, _ = scene.mounts.locate(directory)
    if mount.lock_warning:
        yield found(
            "HF052",
            f"{directory} ({whose}) is on {mount.point}, {mount.lock_warning}",
            f"mount {mount.point} with working locks, on all hosts",
        )
        return
    if reason := answer_in_time(partial(try_locks, directory)):
        yield found(
            "HF053",
            f"locks do not work in {directory} ({whose}): {reason}",
            "use a file system with byte-range locks; for NFSv3 start rpc.statd and the server's lockd",
        )
        return
    vouched = vouched_for_local(scene, directory, whose)
    if vouched is not None:
        yield vouched
        return
    level = mount.protection if backend is None else backend.protection(f"{directory}/x")[0]
    if level >= Protection.CROSS_HOST:
        yield fine(
            "lock directory", f"{directory} ({whose}): locks work, protection {int(level)} ({level.word})"
        )
    else:
        yield found("HF054", _local_storage(f"{directory} ({whose})", mount), shared_storage(directory))


def look_at(directory: str) -> tuple[bool, Writers, list[str]]:
    """Whether it is there, who else may write in it, and names of files in it to which everybody may write."""
    if not os.path.isdir(directory):
        return False, Writers(), []
    open_to_all = []
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= FILES_ASKED_MAX:
                    break
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
                    open_to_all.append(entry.name)
    except OSError:
        pass  # it can't be read: what follows says so
    return True, writers_of(directory), sorted(open_to_all)


def writable_files(directory: str, names: list[str]) -> Finding:
    return found(
        "HF056",
        f"every user of this host may write to {len(names)} files in {directory}, such as {names[0]}",
        f"find {shlex.quote(directory)} -maxdepth 1 -type f -perm -0002 -exec chmod o-w {{}} +",
    )


def vouched_for_local(scene: Scene, directory: str, whose: str) -> Finding | None:
    """`cross_host = true` beside a file system that no other host can have."""
    mount, _ = scene.mounts.locate(directory)
    vouching = [
        name
        for name, table in scene.config.backend.items()
        if table.get("cross_host") is True and whose == f"backend '{name}'"
    ]
    if not vouching or mount.type not in LOCAL_TYPES:
        return None
    return found(
        "HF055",
        f"{whose} has cross_host = true, but {directory} is on {mount.point} ({mount.type}), which no other host sees",
        f"mount the shared storage; or remove cross_host from [backend.{vouching[0]}], then: holdfast reload",
    )


def _local_storage(what: str, mount: Mount) -> str:
    return (
        f"{what} is on {mount.point} ({mount.type}), which is local to this host: it excludes no other host"
    )


def shared_storage(directory: str) -> str:
    return (
        f"mount the shared storage at {directory} or above it, or name a directory on shared storage, the same on "
        "all hosts"
    )


def try_locks(directory: str) -> str:
    """Why byte-range locks don't exclude in a directory; empty if they do."""
    files = SystemLockFiles()
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".holdfast-doctor-") as f:
            second = os.open(f.name, os.O_RDWR | os.O_CLOEXEC)
            try:
                first_try = files.lock(f.fileno(), Mode.EXCLUSIVE, f.name)
                if first_try is not None:
                    code = first_try.errno if not isinstance(first_try, ForeignLock) else errno.EAGAIN
                    return f"taking a lock fails: {os.strerror(code)}"
                if files.lock(second, Mode.EXCLUSIVE, f.name) is None:
                    return "two exclusive locks on one file are both granted"
            finally:
                os.close(second)
    except OSError as e:
        return f"no file can be made there: {e.strerror}"
    return ""


def mounts(scene: Scene) -> Iterator[Finding]:
    for mount in scene.mounts.all():
        if mount.lock_warning:
            yield found(
                "HF057",
                f"{mount.point} ({mount.type} from {mount.source}): {mount.lock_warning}",
                "mount it without that option if disks or lock files are on it",
            )
