"""The file of the configuration in force, RUN_DIR/config-in-force.toml: written, and read as it was written.

Whether this version can make the backends that it names, `kept_config` finds out. That takes the whole program, and commands
that only compare the file with the configuration on disk answer without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from holdfast import __version__, config_toml
from holdfast import config as configuration
from holdfast.config import Config
from holdfast.system.files.regular_file import Unreadable, read_regular, replace_regular

KEPT_FILE = "config-in-force.toml"
KEPT_BYTES_MAX = 4 * configuration.CONFIG_BYTES_MAX
"""All files together, with every default spelled out."""

_BOOT = re.compile(r"# holdfastd (?P<version>\S+), boot (?P<boot>\S+):")
_RENAMED = "# renamed: "
_RUN_DIR = re.compile(r"""^\s*run_dir\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Written:
    """What the file says. `renamed`, `dropped`: see `kept_config.Kept`; backends may be of drivers that are not there."""

    config: Config
    renamed: Mapping[str, str]
    dropped: tuple[str, ...]


def kept_path(run_dir: str) -> str:
    return f"{run_dir}/{KEPT_FILE}"


def encode(config: Config, boot: str, renamed: Mapping[str, str]) -> str:
    lines = [f"# holdfastd {__version__}, boot {boot}: the configuration in force, written by holdfastd"]
    if renamed:
        lines.append(f"{_RENAMED}{msgspec.json.encode(dict(renamed)).decode()}")
    return "\n".join(lines) + "\n" + config_toml.to_toml(config)


def decode(text: str, name: str, boot: str) -> Written | Unreadable:
    """What a text of `encode` says, perhaps of another version."""
    head, _, rest = text.partition("\n")
    found = _BOOT.match(head)
    if found is None:
        return Unreadable("its first line names no boot")
    if found["boot"] != boot:
        return Unreadable("it is of another boot", missing=True)
    renamed: dict[str, str] = {}
    if rest.startswith(_RENAMED):
        try:
            renamed = msgspec.json.decode(rest.split("\n", 1)[0][len(_RENAMED) :], type=dict[str, str])
        except msgspec.DecodeError as e:
            return Unreadable(f"its second line can't be read: {e}")
    config, problems = configuration.load_lenient(text, name, environ=os.environ, uid=os.geteuid())
    dropped = tuple(str(each) for each in problems)
    return Unreadable(dropped[0]) if config is None else Written(config, renamed, dropped)


def read(run_dir: str) -> str | Unreadable:
    raw = read_regular(kept_path(run_dir), KEPT_BYTES_MAX)
    if isinstance(raw, Unreadable):
        return raw
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        return Unreadable(f"it is not UTF-8 at byte {e.start}")


def store(config: Config, text: str) -> str:
    """Keep the configuration. Returns why that failed, or empty."""
    try:
        replace_regular(kept_path(config.run_dir), text.encode("utf-8", "surrogateescape"))
    except OSError as e:
        return e.strerror or str(e)
    return ""


def run_dir_of(file: str | None) -> str:
    """The run directory that files name which otherwise can't be used."""
    found = ""
    for path in configuration.files(file, environ=os.environ, uid=os.geteuid()):
        try:
            text = configuration.content(path).decode("utf-8", "replace")
        except OSError:
            continue
        for match in _RUN_DIR.finditer(text):
            found = match[1]
    return found or configuration.default_paths(os.environ, os.geteuid())["run_dir"]
