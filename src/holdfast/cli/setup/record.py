"""What `holdfast setup` has done on this host, and what was there before: to continue after a stop, and for `--undo`.

Written before each change, on stable storage: whatever a stop leaves behind, a file is as it was, as setup wrote it, or was
edited by somebody since.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence

import msgspec

from holdfast.cli.setup.facts import Wishes
from holdfast.cli.setup.steps import Step
from holdfast.system.files.regular_file import (
    Unreadable,
    open_regular,
    read_regular,
    replace_regular,
    require_regular,
)

DIRECTORY = "var/lib/holdfast/setup"
FILE = "done.json"
VERSION = 1
BYTES_MAX = 4 << 20


class FileKept(msgspec.Struct):
    """A file that setup changed. `backup`: the name of the copy of what was there, empty if nothing was."""

    path: str
    backup: str
    before: str
    """SHA-256 of what was there; empty if nothing was."""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    after: list[str] = []
    """SHA-256 of what setup wrote, in order."""
    run: list[str] = []
    """A command after it was restored."""


class StepDone(msgspec.Struct):
    id: str
    title: str
    at: float


class Kept(msgspec.Struct):
    version: int = VERSION
    wishes: Wishes = Wishes()
    libvirt_active: list[str] = []
    enabled: list[str] = []
    active: list[str] = []
    """Units of virtlockd's and of Holdfast's before the first step."""
    files: list[FileKept] = []
    steps: list[StepDone] = []
    under_way: str = ""
    """The title of a step that was begun and not finished."""
    complete: bool = False


class RecordUnusable(Exception):
    """The file can't be read, so nothing may be changed: the text names it and what to do."""


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@contextlib.contextmanager
def alone(root: str = "/") -> Iterator[None]:
    """One setup at a time; raises `RecordUnusable`. A user who may not write there is refused later, with the reason."""
    path = os.path.join(root, f"{DIRECTORY}.lock")
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecordUnusable("another holdfast setup runs on this host: wait until it has ended") from None
    else:
        yield
    finally:
        os.close(fd)


class Record:
    """`root` moves it, for tests."""

    def __init__(self, root: str = "/") -> None:
        self.directory = os.path.join(root, DIRECTORY)
        self._path = os.path.join(self.directory, FILE)
        self.exists = False
        self.kept = Kept()
        raw = read_regular(self._path, BYTES_MAX)
        if isinstance(raw, Unreadable):
            if not raw.missing:
                raise RecordUnusable(f"{self._path}: {raw.reason}")
            return
        try:
            self.kept = msgspec.json.decode(raw, type=Kept)
        except msgspec.DecodeError as e:
            raise RecordUnusable(
                f"{self._path} is damaged ({e}); {self.directory} has the copies of what was there before: put them back by "
                "hand, and move the directory away"
            ) from None
        if self.kept.version != VERSION:
            raise RecordUnusable(f"{self._path} is of another version of holdfast ({self.kept.version})")
        self.exists = True

    @property
    def libvirt_active(self) -> Sequence[str]:
        """Units of libvirt's that ran when a setup began that is not complete."""
        return () if self.kept.complete else self.kept.libvirt_active

    def wrote(self, path: str, text: str) -> bool:
        """Whether a file is as setup wrote it last."""
        now = digest(text.encode())
        return any(each.path == path and each.after[-1:] == [now] for each in self.kept.files)

    def begin(
        self, wishes: Wishes, libvirt: Sequence[str], enabled: Sequence[str], active: Sequence[str]
    ) -> None:
        """Before the first step of a run. What a former run found before its first step stays."""
        if not self.exists:
            self.kept.enabled, self.kept.active = list(enabled), list(active)
        if not self.exists or self.kept.complete:
            self.kept.libvirt_active = list(libvirt)
        self.kept.wishes = wishes
        self.kept.complete = False
        self._save()

    def step_begins(self, step: Step) -> None:
        self.kept.under_way = step.title
        self._save()

    def step_is_done(self, step: Step) -> None:
        self.kept.under_way = ""
        self.kept.steps.append(StepDone(step.id, step.title, time.time()))
        self._save()

    def is_complete(self) -> None:
        self.kept.complete = True
        self._save()

    def undo_begins(self, libvirt: Sequence[str]) -> None:
        """`libvirt`: units that run, or will when it is over. A run after a stop half-way, of either kind, starts them."""
        self.kept.libvirt_active = list(libvirt)
        self.kept.complete = False
        self._save()

    def undo_is_refused(self, *, complete: bool) -> None:
        self.kept.complete = complete
        self._save()

    def replace(self, path: str, raw: bytes, *, mode: int = 0o644, run: Sequence[str] = ()) -> None:
        """Make `raw` a file's content, with a backup kept; raises OSError. An existing file keeps its owner and mode."""
        require_regular(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        there: os.stat_result | None = None
        old = b""
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(path)
            with open(path, "rb") as f:
                old = f.read()
        kept = next((each for each in self.kept.files if each.path == path), None)
        if kept is None:
            kept = FileKept(path, "", "", run=list(run))
            if there is not None:
                kept.backup = f"{len(self.kept.files):02d}-{os.path.basename(path)}"
                kept.before = digest(old)
                kept.mode, kept.uid, kept.gid = there.st_mode & 0o7777, there.st_uid, there.st_gid
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
                replace_regular(os.path.join(self.directory, kept.backup), old, durable=True)
            self.kept.files.append(kept)
        kept.after.append(digest(raw))
        self._save()
        owner = None if there is None else (there.st_uid, there.st_gid)
        mode = mode if there is None else there.st_mode & 0o7777
        replace_regular(path, raw, durable=True, mode=mode, owner=owner)

    def backup_of(self, kept: FileKept) -> bytes:
        """Raises OSError."""
        with open(os.path.join(self.directory, kept.backup), "rb") as f:
            return f.read()

    def remove(self) -> None:
        """Nothing is left to undo."""
        shutil.rmtree(self.directory)

    def _save(self) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        replace_regular(self._path, msgspec.json.encode(self.kept), durable=True)
        self.exists = True
