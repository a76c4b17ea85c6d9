"""The rules between values of the configuration; a problem names file, key and fix."""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from holdfast import config_hook
from holdfast.errors import ConfigError
from holdfast.network_disk import is_network_name

if TYPE_CHECKING:
    from holdfast.config import Config, DiskRule

SOCKET_PATH_BYTES_MAX = 107
"""sun_path of <sys/un.h> less its NUL: a longer path cannot be bound."""
SANLOCK_VERSION = r"([1-9]\d?)\.(\d{1,2})(?:\.(\d{1,2}))?"
"""Major, minor, micro: a byte each in what clients get."""


def validate(config: Config, origins: Mapping[str, str]) -> Iterator[ConfigError]:
    """Checks the rules between values; a problem names the values."""

    def problem(key: str, reason: str, file: str = "") -> ConfigError:
        return ConfigError(file=file or origins.get(key, config.source()), key=key, reason=reason)

    for key, path in (
        ("run_dir", config.run_dir),
        ("state_dir", config.state_dir),
        ("host_locks", config.host_locks),
        ("virtlockd.socket", config.virtlockd.socket),
        ("control.socket", config.control_socket),
        ("sanlock.socket", config.sanlock.socket or "/"),
    ):
        if not path.startswith("/"):
            yield problem(key, f"must be an absolute path, not '{path}'")
        elif "\0" in path:
            yield problem(key, "must not contain a NUL byte")
        elif key.endswith("socket") and len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            yield problem(
                key,
                f"is {len(os.fsencode(path))} bytes long, a socket path has at most {SOCKET_PATH_BYTES_MAX}",
            )
    if config.virtlockd.socket == config.control_socket:
        yield problem("control.socket", f"is the same as virtlockd.socket, {config.control_socket}")
    if config.sanlock.socket in (config.control_socket, config.virtlockd.socket):
        yield problem("sanlock.socket", f"is the same as another socket, {config.sanlock.socket}")
    if not re.fullmatch(SANLOCK_VERSION, config.sanlock.version):
        yield problem(
            "sanlock.version",
            f"must be a version of sanlock such as \"3.9.5\", not '{config.sanlock.version}'",
        )
    if config.sanlock.watchdog in (None, "none") and config.sanlock.watchdog_device:
        yield problem("sanlock.watchdog_device", 'is for watchdog = "device" (and "wdmd": its socket)')
    if config.sanlock.group and not config.sanlock.user:
        yield problem(
            "sanlock.user",
            "is needed with group: clients have files written, with that user's rights and not with root's",
        )
    if config.sanlock.user:
        try:
            pwd.getpwnam(config.sanlock.user)
        except (KeyError, ValueError):
            yield problem(
                "sanlock.user", f"no user '{config.sanlock.user}' on this host; create it or leave it out"
            )
    for key, group in (
        ("control.group", config.control.group),
        ("control.read_group", config.control.read_group),
        ("sanlock.group", config.sanlock.group),
    ):
        if not group:
            continue
        try:
            grp.getgrnam(group)
        except (KeyError, ValueError):
            yield problem(key, f"no group '{group}' on this host; create it or leave it out")
    if config.default_backend not in config.backend:
        yield problem("default_backend", _no_backend(config.default_backend, config))
    for name, table in config.backend.items():
        if not isinstance(table.get("driver"), str):
            yield problem(f"backend.{name}", 'misses the key driver, such as driver = "file"')
    yield from _validate_rules(config)
    for number, event, reason in config_hook.problems(config.hook_actions, covers):
        yield ConfigError(
            file=config.action_sources[number - 1], key=f"hook.actions[{number}].{event}", reason=reason
        )


def _no_backend(name: str, config: Config) -> str:
    return f"no [backend.{name}] is configured; configured are: {', '.join(sorted(config.backend))}"


def _validate_rules(config: Config) -> Iterator[ConfigError]:
    earlier: list[tuple[int, DiskRule]] = []
    for number, (file, rule) in enumerate(zip(config.rule_sources, config.disk, strict=True), 1):
        key = f"disk[{number}]"
        if (rule.match is None) == (rule.lockspace is None):
            yield ConfigError(file=file, key=key, reason="needs exactly one of match = and lockspace =")
            continue
        word, pattern = ("match", rule.match) if rule.match is not None else ("lockspace", rule.lockspace)
        assert pattern is not None
        if rule.backend not in config.backend:
            yield ConfigError(file=file, key=f"{key}.backend", reason=_no_backend(rule.backend, config))
        of_network = word == "match" and is_network_name(pattern)
        if not pattern.startswith(("/", "*", "[", "?")) and not of_network:
            yield ConfigError(
                file=file,
                key=f"{key}.{word}",
                reason=f'\'{pattern}\' can\'t match: paths are absolute; write "/{pattern}" or "*/{pattern}"',
            )
        for other_number, other in earlier:
            theirs = other.match if word == "match" else other.lockspace
            if theirs is not None and is_network_name(theirs) is of_network and covers(theirs, pattern):
                yield ConfigError(
                    file=file,
                    key=f"{key}.{word}",
                    reason=f"'{pattern}' can't match: disk[{other_number}] '{theirs}' comes first and takes all of it; "
                    "put the narrower rule first",
                )
                break
        earlier.append((number, rule))


def covers(wide: str, narrow: str) -> bool:
    """Whether a glob surely matches everything that another one matches.

    Only for patterns whose sole wildcard is '*': then matching the other pattern's text is enough, as no
    literal of `wide` can have stood for a wildcard of `narrow`.
    """
    if wide == narrow:
        return True
    if any(c in wide for c in "?[]") or "[" in narrow:
        return False
    return fnmatch.fnmatchcase(narrow, wide)
