"""A reload: checks whether the program and the configuration on disk may take over, before anything is released.

    running daemon                                     program on disk (--check-config)
    ── environment HOLDFAST_RELOAD_CHECK=FILE ───────► reads FILE: version of the re-exec state, configuration in
       (removed when it has ended)                     force, what held locks need
    ◄─ CHECKED, reasons ──────────────────────────────  compares with the configuration on disk
    no reasons: exec; else all stays as it is

The new program compares, as it knows best what it understands. An older release does not know the variable: it checks only
the configuration and does not print CHECKED, and the running daemon compares by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from holdfast import config as configuration
from holdfast import config_toml
from holdfast.config import Config
from holdfast.config_change import USERS_NAMED_MAX, HeldNeed, differences
from holdfast.control.api import CONFIGURATION_PROBLEM
from holdfast.daemon import kept_config, kept_file
from holdfast.daemon.check_config import check_config
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.errors import ConfigError
from holdfast.manager.identity_locks import disks
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_registry import HostLock
from holdfast.system.clock import Clock
from holdfast.system.files.regular_file import Unreadable, read_regular, replace_regular
from holdfast.system.host.commands import Commands
from holdfast.system.host.descriptors import REEXEC_VERSION
from holdfast.system.host.process import boot_id

log = logging.getLogger("holdfast")

VARIABLE = "HOLDFAST_RELOAD_CHECK"
CHECK_FILE = "reload-check.json"
CHECKED = "holdfastd: compared with what is held"
"""The first line of a program that understands the variable."""
TAKES_CLIENTS = "holdfastd: takes over connections of sanlock's clients"
"""Another line of a program that does."""
FEEDS_FIRST = "holdfastd: feeds the watchdog before anything else"
"""Another line of a program that does (ADR 0242)."""
_LINES = (CHECKED, TAKES_CLIENTS, FEEDS_FIRST)
CHECK_BYTES_MAX = 2 * kept_file.KEPT_BYTES_MAX
CHECK_TIMEOUT_S = 60.0
"""For the program on disk to say whether it can start."""
KEEP_AGAIN_S = 10.0
"""Between two attempts to keep the configuration in force: a full disk is not emptied in less."""


class ReloadCheck(msgspec.Struct, frozen=True):
    """A running daemon's input for the dry run of the next program. Later versions only add fields with defaults."""

    state_version: int
    configuration: str
    held: list[HeldNeed]


# --- the next program's side ---


def answer(environ: Mapping[str, str], config: Config | None) -> list[str] | None:
    """Why this program may not take over from the daemon that runs; None if it was not asked, or can't compare."""
    path = environ.get(VARIABLE, "")
    raw = read_regular(path, CHECK_BYTES_MAX) if path else Unreadable("not asked")
    if isinstance(raw, Unreadable):
        return None
    try:
        check = msgspec.json.decode(raw, type=ReloadCheck)
    except msgspec.DecodeError:
        return None
    if check.state_version != REEXEC_VERSION:
        return [
            f"the running daemon passes on a state of version {check.state_version}, this program knows "
            f"{REEXEC_VERSION}: when no VM runs, restart holdfastd instead"
        ]
    kept = kept_config.decode(check.configuration, "the configuration in force", boot_id())
    if isinstance(kept, Unreadable):
        return None
    return differences(kept.config, config, check.held) if config is not None else []


# --- the running daemon's side ---


def held_needs(manager: LockManager, leases: HostLockspaces) -> list[HeldNeed]:
    """The needs of the locks that are held now, by backend."""
    host_ids = {name: k.host_id for k in leases.supervisors for name in leases.backends_of(k.name)}
    counted = set(disks(manager.table))
    locks: dict[str, list[HostLock]] = {}
    for lock in manager.table:
        locks.setdefault(lock.backend, []).append(lock)
    # The lock of a path may be of another backend than that of its identity: each backend with a lock has a need.
    locks = {name: [lock for lock in found if lock in counted] or found for name, found in locks.items()}
    return [
        HeldNeed(
            backend=name,
            count=len(found),
            users=tuple(_user(manager, lock) for lock in found[:USERS_NAMED_MAX]),
            host_id=host_ids.get(name),
        )
        for name, found in locks.items()
    ]


def _user(manager: LockManager, lock: HostLock) -> str:
    for owner_id, names in lock.claims.items():
        owner = manager.owners.get(owner_id)
        for resource in names:
            return kept_config.user_text(owner.name if owner is not None else None, str(resource))
    return lock.path


@dataclass(slots=True, kw_only=True)
class NextProgram:
    """Checks the program and the configuration on disk for a running daemon.

    `in_force`: the configuration in force as text (`kept_file.encode`) and as values; `file`: from the command line.
    """

    commands: Commands
    file: str | None
    in_force: Config
    text: str
    held: Callable[[], list[HeldNeed]]
    takes_clients: bool = False
    """Whether it takes over connections of sanlock's clients, when it was asked."""
    feeds_first: bool = False
    """Whether it feeds an inherited watchdog from its first moment on, when it was asked."""

    async def why_not(self) -> list[str]:
        """Why they may not take over; empty if they may."""
        held = self.held()
        path = f"{self.in_force.run_dir}/{CHECK_FILE}"
        command = [sys.executable, *sys.orig_argv[1:], "--check-config"]
        try:
            check = ReloadCheck(REEXEC_VERSION, self.text, held)
            replace_regular(path, msgspec.json.encode(check))
            command = ["env", f"{VARIABLE}={path}", *command]
        except OSError:
            pass  # a full disk: this daemon compares by itself
        ended = await self.commands.run(command, CHECK_TIMEOUT_S)
        with contextlib.suppress(OSError):
            os.unlink(path)
        lines = ended.output.splitlines()
        said = [line.removeprefix("holdfastd: ") for line in lines if line not in _LINES]
        self.takes_clients, self.feeds_first = TAKES_CLIENTS in lines, FEEDS_FIRST in lines
        if ended.code != 0:
            return said or ["the program on disk can't start, and does not say why"]
        if CHECKED in lines:
            return []
        reasons = self._compare(held)
        if not reasons:
            # An older release keeps no configuration, so the kept one would soon be out of date.
            with contextlib.suppress(OSError):
                os.unlink(kept_file.kept_path(self.in_force.run_dir))
        return reasons

    def _compare(self, held: Sequence[HeldNeed]) -> list[str]:
        """For a program on disk that only knows whether it can start."""
        config, problems = check_config(self.file)
        if not held:
            return []
        if config is None or problems:
            return [f"can't be compared with what held locks need: {problem}" for problem in problems]
        return differences(self.in_force, config, held)


# --- what stays with the daemon until then ---


class ConfigurationInForce:
    """Keeps it for the next start, and reports problems with the one on disk. `file`: from the command line."""

    def __init__(
        self, config: Config, *, file: str | None, text: str, held: Callable[[], list[HeldNeed]]
    ) -> None:
        self._config = config
        self._file = file
        self._text = text
        self._held = held
        self._signature: object = None
        self._on_disk: tuple[Config | None, list[ConfigError]] = (None, [])
        self.failing = ""
        """Why it can't be kept at the moment; empty if it is."""

    def keep(self) -> None:
        """Write it, or log why that fails."""
        before, self.failing = self.failing, kept_file.store(self._config, self._text)
        if self.failing and not before:
            log.error("the configuration in force can't be kept in %s: %s", self._path, self.failing)
        elif before and not self.failing:
            log.warning("the configuration in force is kept in %s again", self._path)

    async def keep_trying(self, clock: Clock) -> None:
        """After a failure, repeat until it is written."""
        while self.failing:
            await clock.sleep(KEEP_AGAIN_S)
            self.keep()

    @property
    def _path(self) -> str:
        return kept_file.kept_path(self._config.run_dir)

    def problems(self) -> list[str]:
        """Problems for an operator to fix: with keeping it, and with the one on disk."""
        found = []
        if self.failing:
            found.append(
                f"the configuration in force can't be kept in {self._path}: {self.failing}; "
                "a start with a configuration that can't be used would end"
            )
        config, wrong = self._read()
        if wrong:
            return [*found, *(f"{CONFIGURATION_PROBLEM}can't be used: {problem}" for problem in wrong)]
        if config is None or _values(config) == _values(self._config):
            return found
        needed = differences(self._config, config, self._held())
        if needed:
            return [*found, *(f"{CONFIGURATION_PROBLEM}is not in force: {each}" for each in needed)]
        return [*found, f"{CONFIGURATION_PROBLEM}is not in force yet: 'holdfast reload' puts it into force"]

    def _read(self) -> tuple[Config | None, list[ConfigError]]:
        """The one on disk; read again when a file has changed."""
        signature = list(_signatures(self._file))
        if signature != self._signature:
            self._signature, self._on_disk = signature, check_config(self._file)
        return self._on_disk


def _signatures(file: str | None) -> Iterable[tuple[object, ...]]:
    for path in configuration.files(file, environ=os.environ, uid=os.geteuid()):
        try:
            found = os.stat(path)
        except OSError as e:
            yield path, e.errno
        else:
            yield path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _values(config: Config) -> str:
    """All values, without the files that they came from."""
    return config_toml.to_toml(msgspec.structs.replace(config, sources=()))
