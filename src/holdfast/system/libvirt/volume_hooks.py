"""Hooks of libvirt's that activate and deactivate logical volumes, beside Holdfast's own.

libvirt-hook-lvmlock (raspbeguy's, on GitHub) is the known one: a script `qemu` and a file `qemu.ini`, whose section
`actions` says at which of libvirt's operations a volume becomes exclusive, shared, or inactive. Its README has both copied
or linked to libvirt's folder of hooks. Without that section the script does as `DEFAULT_ACTIONS`, wherever it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from holdfast.system.files.regular_file import open_regular

HOOK = "etc/libvirt/hooks/qemu.d/holdfast"
"""Holdfast's own: where docs/install.md puts packaging/libvirt/qemu-hook."""
SCRIPT = "etc/libvirt/hooks/qemu"
"""Where a hook of the site's own is, of an installation of libvirt-hook-lvmlock too."""
INI = "etc/libvirt/hooks/qemu.ini"
FOLDER = "etc/libvirt/hooks/qemu.d"
WORDS = ("lvmlock", "lvchange")
"""A hook with these activates and deactivates volumes as well."""
ACTIONS = frozenset(("exclusive", "shared", "unlock"))
KNOWN_WORDS = ("qemu.ini", "lvchange")
"""Both are in the script of libvirt-hook-lvmlock, as its repository has it in 2026."""
DEFAULT_ACTIONS = {
    "prepare": "shared",
    "started": "exclusive",
    "stopped": "unlock",
    "release": "unlock",
    "migrate": "shared",
}
"""What that script does where its file has no section `actions`, or is not there."""
HOOK_BYTES_MAX = 1 << 18


def volume_hooks(root: str = "/") -> Iterator[str]:
    """Executable hooks with one of the words; a file that can't be read is none."""
    for file, text in _scripts(root):
        if any(word in text for word in WORDS):
            yield file


def lvmlock_actions(root: str = "/") -> dict[str, str]:
    """What libvirt-hook-lvmlock does: libvirt's operation to action; empty if it does nothing, or is not there."""
    return _lvmlock(root)[1]


def lvmlock_hook(root: str = "/") -> str:
    """The script of libvirt-hook-lvmlock, if libvirt would run it and it does anything; else empty."""
    script, actions = _lvmlock(root)
    return script if actions else ""


def _lvmlock(root: str) -> tuple[str, dict[str, str]]:
    """Its script and its actions: those of its file, or of the script alone if the file has none."""
    settings = _settings(root)
    for file, text in _scripts(root):
        if _is_known(text):
            return file, dict(DEFAULT_ACTIONS) if settings is None else settings
        if settings and file == os.path.join(root, SCRIPT):
            return file, settings
    return "", settings or {}


def _is_known(script: str) -> bool:
    return all(word in script for word in KNOWN_WORDS)


def _scripts(root: str) -> Iterator[tuple[str, str]]:
    """Hooks of QEMU's that libvirt runs, without Holdfast's own: the file and its text, empty if it can't be read."""
    folder = os.path.join(root, FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    for file in (os.path.join(root, SCRIPT), *(os.path.join(folder, name) for name in names)):
        if file == os.path.join(root, HOOK) or not os.access(file, os.X_OK):
            continue
        raw = _content(file)
        yield file, raw.decode("utf-8", "replace") if raw is not None else ""


def _settings(root: str) -> dict[str, str] | None:
    """The section `actions`, without what is no action; None if there is no such section, or it can't be read."""
    raw = _content(os.path.join(root, INI))
    if raw is None:
        return None
    import configparser  # no daemon and no command needs it at its start

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(raw.decode("utf-8", "replace"))
        found = dict(parser["actions"])
    except (configparser.Error, KeyError):
        return None
    return {operation: action for operation, action in found.items() if action in ACTIONS}


def _content(file: str) -> bytes | None:
    """The first bytes of a file that may be a link, as the hook's README advises; None if it can't be read."""
    try:
        with open(open_regular(os.path.realpath(file), os.O_RDONLY), "rb") as f:
            return f.read(HOOK_BYTES_MAX)
    except OSError:
        return None
