"""Hooks of libvirt's that activate and deactivate logical volumes, beside Holdfast's own.

libvirt-hook-lvmlock (raspbeguy's, on GitHub) is the known one: a script `qemu` and, beside it, `qemu.ini`, whose section
`actions` says at which of libvirt's operations a volume becomes exclusive, shared, or inactive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from holdfast.system.files.regular_file import Unreadable, read_regular

HOOK = "etc/libvirt/hooks/qemu.d/holdfast"
"""Holdfast's own: where docs/install.md puts packaging/libvirt/qemu-hook."""
SCRIPT = "etc/libvirt/hooks/qemu"
"""Where a hook of the site's own is, of an installation of libvirt-hook-lvmlock too."""
INI = "etc/libvirt/hooks/qemu.ini"
FOLDER = "etc/libvirt/hooks/qemu.d"
WORDS = ("lvmlock", "lvchange")
"""A hook with these activates and deactivates volumes as well."""
ACTIONS = frozenset(("exclusive", "shared", "unlock"))
HOOK_BYTES_MAX = 1 << 18


def volume_hooks(root: str = "/") -> Iterator[str]:
    """Executable hooks with one of the words; a file that can't be read is none."""
    folder = os.path.join(root, FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    for file in (os.path.join(root, SCRIPT), *(os.path.join(folder, name) for name in names)):
        if file == os.path.join(root, HOOK) or not os.access(file, os.X_OK):
            continue
        try:
            with open(file, encoding="utf-8", errors="replace") as f:
                text = f.read(HOOK_BYTES_MAX)
        except OSError:
            continue
        if any(word in text for word in WORDS):
            yield file


def lvmlock_actions(root: str = "/") -> dict[str, str]:
    """The section `actions` of libvirt-hook-lvmlock's file: libvirt's operation to action; empty if there is none."""
    raw = read_regular(os.path.join(root, INI), HOOK_BYTES_MAX)
    if isinstance(raw, Unreadable):
        return {}
    import configparser  # no daemon and no command needs it at its start

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(raw.decode("utf-8", "replace"))
        found = dict(parser["actions"])
    except (configparser.Error, KeyError):
        return {}
    return {operation: action for operation, action in found.items() if action in ACTIONS}


def lvmlock_hook(root: str = "/") -> str:
    """The script of libvirt-hook-lvmlock, if libvirt would run it; else empty."""
    script = os.path.join(root, SCRIPT)
    return script if os.access(script, os.X_OK) and lvmlock_actions(root) else ""
