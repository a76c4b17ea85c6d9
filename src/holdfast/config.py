"""Configuration: TOML files to typed values (written again by `config_toml`), every rule checked by `config_rules`.

`/etc/holdfast/holdfast.toml`, then `/etc/holdfast/conf.d/*.toml` in name order: a later file overrides single keys, adds
backends, and appends its [[disk]] rules. Nothing is guessed: an unknown key, a value of the wrong kind and a rule that can
never match are refused, each with file, key and fix. Without any file the defaults below are used: the system's paths for
root, XDG directories for other users.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from holdfast.config_hook import HookAction
from holdfast.config_rules import validate
from holdfast.errors import ConfigError, UnknownKey
from holdfast.model import Protection

SYSTEM_FILE = "/etc/holdfast/holdfast.toml"
HOST_LOCKS_DEFAULT = "/run/holdfast/lockspaces"
SYSTEM_VIRTLOCKD_SOCKET = "/run/libvirt/virtlockd-sock"
CONFIG_BYTES_MAX = 1 << 20
DROPPED_KEYS_MAX = 100
"""Keys that `load_lenient` drops: more of them is no configuration of a neighbouring version."""
RULES_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class VirtlockdTable(_Table, frozen=True):
    """[virtlockd]: the socket that libvirt's lockd plugin connects to."""

    socket: str = ""
    max_clients: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 8192


class ControlTable(_Table, frozen=True):
    """[control]: the Varlink socket of the holdfast command."""

    socket: str = ""
    group: str = ""
    read_group: str | None = None
    """Whose members may ask at the read-only socket; None: `READ_GROUP_DEFAULT`, if this host has it."""
    max_clients: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    idle_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 300.0


class SanlockTable(_Table, frozen=True):
    """[sanlock]: the socket for unmodified clients of sanlock; without `socket` there is none."""

    socket: str = ""
    group: str = ""
    user: str = ""
    """With whose rights files and devices are opened that clients have written; empty: root's."""
    max_clients: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = 4096
    version: str = "3.9.5"
    """What clients that ask for sanlock's version get."""
    watchdog: Literal["device", "wdmd", "none"] | None = None
    """Of lockspaces that clients add; None: as the backends with leases say."""
    watchdog_device: str = ""
    fire_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60
    io_timeout_s: Annotated[int, msgspec.Meta(ge=1, le=255)] = 10
    """Of a lockspace whose client says none."""


class LimitsTable(_Table, frozen=True):
    """[limits]."""

    storage_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    acquire_wait_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0
    owners_max: Annotated[int, msgspec.Meta(ge=8, le=1_000_000)] = 20_000


class RecoveryTable(_Table, frozen=True):
    """[recovery]: what happens to a VM whose lock has another holder after a restart of the daemon."""

    on_lock_lost: Literal["pause", "poweroff", "ignore"] = "pause"
    libvirt_uri: str = "qemu:///system"


class DiskRule(_Table, frozen=True):
    """[[disk]]: `match` is a glob over disk paths, or over names of network disks if it begins with their protocol;
    `lockspace` is one over lockspace paths; first match wins.
    """

    backend: str
    match: str | None = None
    lockspace: str | None = None
    require_protection: Annotated[int, msgspec.Meta(ge=0, le=3)] | None = None
    """None: what the backend's driver demands of a VM that starts."""
    identity: Literal["auto", "path"] = "auto"
    """Whether a disk with a lease has one by what it is too, or by its path only (ADR 0197)."""


class Config(_Table, frozen=True):
    """The whole configuration. `sources` are the files read, in order."""

    run_dir: str
    state_dir: str
    host_locks: str = HOST_LOCKS_DEFAULT
    """Where each lockspace has its lock on this host: one place for every daemon of a host, whatever its other directories.
    Only tests, and several hosts on one kernel, have another one.
    """
    default_backend: str = "file"
    require_protection: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    migration_peers: Literal["holdfast", "any"] = "holdfast"
    virtlockd: VirtlockdTable = VirtlockdTable()
    control: ControlTable = ControlTable()
    sanlock: SanlockTable = SanlockTable()
    limits: LimitsTable = LimitsTable()
    recovery: RecoveryTable = RecoveryTable()
    backend: dict[str, dict[str, Any]] = {}
    disk: tuple[DiskRule, ...] = ()
    sources: tuple[str, ...] = ()
    rule_sources: tuple[str, ...] = ()
    hook_actions: tuple[HookAction, ...] = ()
    """[[hook.actions]]."""
    action_sources: tuple[str, ...] = ()

    @property
    def control_socket(self) -> str:
        return self.control.socket or f"{self.run_dir}/{CONTROL_SOCKET_NAME}"

    @property
    def read_socket(self) -> str:
        """Where nothing can be changed."""
        return f"{self.run_dir}/{READ_SOCKET_NAME}"

    @property
    def journal_path(self) -> str:
        return f"{self.run_dir}/journal"

    @property
    def extent_path(self) -> str:
        return f"{self.run_dir}/journal.extent"

    @property
    def host_files(self) -> str:
        """Where the lock files of NVRAM and TPM state are."""
        return f"{self.run_dir}/host-files"

    def source(self) -> str:
        """For messages that belong to no single file."""
        return self.sources[0] if self.sources else "built-in configuration"


CONTROL_SOCKET_NAME = "io.holdfast.Control"
READ_SOCKET_NAME = "io.holdfast.Control.read-only"
READ_GROUP_DEFAULT = "holdfast-read"
"""The package of holdfast-web makes it."""
TABLES: dict[str, type[_Table]] = {
    "virtlockd": VirtlockdTable,
    "control": ControlTable,
    "sanlock": SanlockTable,
    "limits": LimitsTable,
    "recovery": RecoveryTable,
}
TOP = (
    "run_dir",
    "state_dir",
    "host_locks",
    "default_backend",
    "require_protection",
    "log_level",
    "migration_peers",
)


def default_file(environ: Mapping[str, str], uid: int) -> str:
    """The path of the configuration if no file is named."""
    if uid == 0:
        return SYSTEM_FILE
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", "/"), ".config")
    return os.path.join(base, "holdfast", "holdfast.toml")


def default_paths(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """run_dir, state_dir, host_locks, virtlockd socket: the system's for root, else the session's (virtlockd-rpc.md 1)."""
    if uid == 0:
        return {
            "run_dir": "/run/holdfast",
            "state_dir": "/var/lib/holdfast",
            "host_locks": HOST_LOCKS_DEFAULT,
            "socket": SYSTEM_VIRTLOCKD_SOCKET,
        }
    home = environ.get("HOME", "/")
    runtime = environ.get("XDG_RUNTIME_DIR") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    )
    state = environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    return {
        "run_dir": os.path.join(runtime, "holdfast"),
        "state_dir": os.path.join(state, "holdfast"),
        "host_locks": os.path.join(runtime, "holdfast", "lockspaces"),
        "socket": os.path.join(runtime, "libvirt", "virtlockd-sock"),
    }


def load(file: str | None, *, environ: Mapping[str, str], uid: int) -> Config:
    """The configuration; raises `ConfigError` for the first thing wrong with it."""
    config, problems = check(file, environ=environ, uid=uid)
    if config is None or problems:
        raise problems[0]
    return config


def check(
    file: str | None, *, environ: Mapping[str, str], uid: int
) -> tuple[Config | None, list[ConfigError]]:
    """The configuration and all problems with it; no configuration if it can't be interpreted.

    `file` None means the default place, where it may be missing; a file that is named must be there.
    """
    reader = _Reader()
    for path in files(file, environ=environ, uid=uid):
        reader.read(path)
    config = reader.build(default_paths(environ, uid))
    if config is not None:
        reader.problems.extend(validate(config, reader.origins))
    return (None if reader.problems else config), reader.problems


def files(file: str | None, *, environ: Mapping[str, str], uid: int) -> list[str]:
    """The files that make up the configuration, in order, whether they can be read or not."""
    path = file or default_file(environ, uid)
    found = [path] if file is not None or os.path.exists(path) else []
    snippets = os.path.join(os.path.dirname(os.path.abspath(path)), "conf.d")
    if os.path.isdir(snippets):
        found += [
            os.path.join(snippets, name)
            for name in sorted(os.listdir(snippets))
            if name.endswith(".toml") and not name.startswith(".")
        ]
    return found


def load_lenient(
    text: str, name: str, *, environ: Mapping[str, str], uid: int
) -> tuple[Config | None, list[ConfigError]]:
    """A configuration that another version of this program has written, without the keys that this one does not know.

    Returns it with the keys that were dropped, or None with the problems.
    """
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        return None, [ConfigError(file=name, key="syntax", reason=f"is not TOML: {e}")]
    dropped: list[ConfigError] = []
    while True:
        reader = _Reader()
        reader.take(name, tree)
        config = reader.build(default_paths(environ, uid))
        unknown = [p for p in reader.problems if isinstance(p, UnknownKey)]
        if not unknown:
            break
        dropped += unknown
        if len(dropped) > DROPPED_KEYS_MAX:
            return None, dropped
        for problem in unknown:
            drop_key(tree, problem.place)
    if config is not None:
        wrong = list(validate(config, reader.origins))
        if wrong and {problem.facts["key"] for problem in wrong} <= {
            "control.group",
            "control.read_group",
            "sanlock.group",
            "sanlock.user",
        }:
            # A group or a user does not exist on this host any more: then only root may use the socket.
            config = msgspec.structs.replace(config, **_without_groups(config, wrong))
            dropped += wrong
        else:
            reader.problems.extend(wrong)
    return (None, reader.problems) if reader.problems else (config, dropped)


def _without_groups(config: Config, wrong: list[ConfigError]) -> dict[str, Any]:
    keys = {str(problem.facts["key"]) for problem in wrong}
    names = {key.partition(".")[0] for key in keys}
    without: dict[str, Any] = {}
    if "control" in names:
        groups = {key.partition(".")[2]: "" for key in keys if key.startswith("control.")}
        without["control"] = msgspec.structs.replace(config.control, **groups)
    if "sanlock" in names:
        without["sanlock"] = msgspec.structs.replace(config.sanlock, group="", user="")
    return without


def drop_key(tree: dict[str, Any], place: tuple[str | int, ...]) -> None:
    """Remove the key at the end of a place from the tables of a file."""
    table: Any = tree
    for step in place[:-1]:
        table = table[step]
    table.pop(place[-1], None)


class _Reader:
    """Merges tables from files; remembers the file of each key."""

    def __init__(self) -> None:
        self.problems: list[ConfigError] = []
        self.origins: dict[str, str] = {}
        self._top: dict[str, Any] = {}
        self._tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
        self._backends: dict[str, dict[str, Any]] = {}
        self._rules: list[tuple[str, str, Any]] = []
        self._actions: list[tuple[str, str, Any]] = []
        self._sources: list[str] = []

    def _problem(self, file: str, key: str, reason: str) -> None:
        self.problems.append(ConfigError(file=file, key=key, reason=reason))

    def _unknown(self, file: str, key: str, reason: str, place: tuple[str | int, ...]) -> None:
        self.problems.append(UnknownKey(file=file, key=key, reason=reason, place=place))

    def read(self, path: str) -> None:
        try:
            raw = content(path)
        except OSError as e:
            return self._problem(path, "file", f"can't be read: {e.strerror}")
        if len(raw) > CONFIG_BYTES_MAX:
            return self._problem(path, "file", f"is larger than {CONFIG_BYTES_MAX} bytes")
        try:
            tree = tomllib.loads(raw.decode())
        except UnicodeDecodeError as e:
            return self._problem(path, "file", f"is not UTF-8 at byte {e.start}")
        except (ValueError, RecursionError) as e:  # ValueError: a number with thousands of digits, too
            return self._problem(path, "syntax", f"is not TOML: {e}")
        return self.take(path, tree)

    def take(self, path: str, tree: Mapping[str, Any]) -> None:
        """The tables of one file."""
        self._sources.append(path)
        for key, value in tree.items():
            if key in TOP:
                self._top[key] = value
                self.origins[key] = path
            elif key in TABLES:
                self._take_table(path, key, value)
            elif key == "backend":
                self._take_backends(path, value)
            elif key == "disk":
                self._take_rules(path, value)
            elif key == "hook":
                self._take_hook(path, value)
            else:
                known = ", ".join(
                    (*TOP, *(f"[{t}]" for t in TABLES), "[backend.NAME]", "[[disk]]", "[[hook.actions]]")
                )
                self._unknown(path, key, f"is not known; known are {known}", (key,))

    def _take_table(self, path: str, name: str, value: object) -> None:
        if not isinstance(value, dict):
            return self._problem(path, name, f"must be a table: write [{name}]")
        for key, each in value.items():
            self._tables[name][key] = each
            self.origins[f"{name}.{key}"] = path
        return None

    def _take_backends(self, path: str, value: object) -> None:
        if not isinstance(value, dict) or not all(isinstance(t, dict) for t in value.values()):
            return self._problem(path, "backend", 'must be tables: write [backend.NAME] with driver = "file"')
        for name, table in value.items():
            if not _NAME.match(name):
                self._problem(path, f"backend.{name}", "name must be letters, digits, '_', '.' or '-'")
            self._backends.setdefault(name, {}).update(table)
            self.origins[f"backend.{name}"] = path
        return None

    def _take_rules(self, path: str, value: object) -> None:
        if not isinstance(value, list):
            return self._problem(path, "disk", "must be an array of tables: write [[disk]]")
        for table in value:
            self._rules.append((path, f"disk[{len(self._rules) + 1}]", table))
        if len(self._rules) > RULES_MAX:
            self._problem(path, "disk", f"more than {RULES_MAX} rules")
        return None

    def _take_hook(self, path: str, value: object) -> None:
        if not isinstance(value, dict):
            return self._problem(path, "hook", "must be a table: write [[hook.actions]]")
        for key, each in value.items():
            if key != "actions":
                self._unknown(path, f"hook.{key}", "is not known; known here are actions", ("hook", key))
            elif not isinstance(each, list):
                self._problem(path, "hook.actions", "must be an array of tables: write [[hook.actions]]")
            else:
                for table in each:
                    self._actions.append((path, f"hook.actions[{len(self._actions) + 1}]", table))
        if len(self._actions) > RULES_MAX:
            self._problem(path, "hook.actions", f"more than {RULES_MAX} rules")
        return None

    def build(self, paths: Mapping[str, str]) -> Config | None:
        tables = {}
        for name, kind in TABLES.items():
            origin = next((f for k, f in self.origins.items() if k.startswith(f"{name}.")), "configuration")
            tables[name] = self._convert(origin, name, self._tables[name], kind)
        rules = [(file, self._convert(file, key, table, DiskRule)) for file, key, table in self._rules]
        actions = [(file, self._convert(file, key, table, HookAction)) for file, key, table in self._actions]
        top = self._convert(
            next((self.origins[k] for k in TOP if k in self.origins), "configuration"),
            "",
            {**{key: paths[key] for key in ("run_dir", "state_dir", "host_locks")}, **self._top},
            Config,
        )
        if top is None or None in tables.values() or any(r is None for _, r in (*rules, *actions)):
            return None
        virtlockd = tables["virtlockd"]
        if not virtlockd.socket:
            virtlockd = msgspec.structs.replace(virtlockd, socket=paths["socket"])
        backends = dict(self._backends)
        backends.setdefault("file", {"driver": "file"})
        config: Config = msgspec.structs.replace(
            top,
            virtlockd=virtlockd,
            control=tables["control"],
            sanlock=tables["sanlock"],
            limits=tables["limits"],
            recovery=tables["recovery"],
            backend=backends,
            disk=tuple(r for _, r in rules),
            sources=tuple(self._sources),
            rule_sources=tuple(f for f, _ in rules),
            hook_actions=tuple(a for _, a in actions),
            action_sources=tuple(f for f, _ in actions),
        )
        return config

    def _convert(self, file: str, where: str, table: object, kind: type[msgspec.Struct]) -> Any:
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as e:
            text, _, at = str(e).partition(" - at `$")
            inner = at.rstrip("`").lstrip(".")
            place: tuple[str | int, ...] = ()
            if (unknown := re.search(r"unknown field `([^`]*)`", text)) is not None:
                inner = unknown[1]
                known = ", ".join(f for f in kind.__struct_fields__ if f not in ("sources", "rule_sources"))
                text = f"is not known; known here are {known}"
                place = (*_place(where), inner)
            key = ".".join(part for part in (where, inner) if part) or "file"
            if place:
                self._unknown(self.origins.get(key, file), key, text, place)
            else:
                self._problem(self.origins.get(key, file), key, _plain(text))
            return None


def content(path: str) -> bytes:
    """A regular file's content, at most one byte more than allowed; raises OSError at once for a FIFO or a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file; put a file there")
        return f.read(CONFIG_BYTES_MAX + 1)


def _place(where: str) -> tuple[str | int, ...]:
    """The table that a key such as `disk[2]` or `limits` names; empty for the top."""
    rule = re.fullmatch(r"(disk|hook\.actions)\[(\d+)\]", where)
    if rule is not None:
        return (*rule[1].split("."), int(rule[2]) - 1)
    return (where,) if where else ()


def _plain(text: str) -> str:
    """msgspec's message in an administrator's words."""
    for theirs, ours in (
        ("Expected", "expected"),
        ("`int`", "a whole number"),
        ("`str`", "text in quotes"),
        ("`bool`", "true or false"),
        ("`float`", "a number"),
        ("`array`", "an array"),
        ("`object`", "a table"),
        ("Invalid enum value", "not one of the known values:"),
        ("Object missing required field", "misses the key"),
    ):
        text = text.replace(theirs, ours)
    return text


def protection_min(config: Config, rule: DiskRule | None) -> Protection:
    """The minimum protection of every lock of a rule; None: of the locks without a rule."""
    return Protection(max(config.require_protection, (rule.require_protection if rule else 0) or 0))
