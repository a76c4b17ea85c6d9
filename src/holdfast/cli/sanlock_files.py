"""Reads how sanlock and libvirt's sanlock plugin are configured on this host."""

from __future__ import annotations

import os

from holdfast.cli.libvirt_files import read_conf
from holdfast.cli.sanlock_settings import Imported, imported, options_of
from holdfast.daemon.sanlockd import CONF, CONF_BYTES_MAX, Unusable, settings_of
from holdfast.system.files.regular_file import Unreadable, read_regular

PLUGIN_CONF = "etc/libvirt/qemu-sanlock.conf"
OPTION_FILES = ("etc/sysconfig/sanlock", "etc/default/sanlock")
"""As our unit reads them: the later one wins."""


class NotImported(Exception):
    """A file can't be read or used; the text names it and the reason."""


def read(root: str = "/") -> Imported:
    """What the files below `root` come to; raises `NotImported`."""
    sources: list[str] = []
    texts = [_text(os.path.join(root, name), sources) for name in OPTION_FILES]
    try:
        options = options_of(texts)
    except ValueError as e:
        raise NotImported(f"{' or '.join(sources)}: {e}") from None
    conf = _text(os.path.join(root, CONF.lstrip("/")), sources)
    try:
        settings = settings_of(options, conf)
    except Unusable as e:
        raise NotImported(f"sanlock's options: {e}") from None
    path = os.path.join(root, PLUGIN_CONF)
    plugin = read_conf(path)
    if isinstance(plugin, Unreadable):
        if not plugin.missing:
            raise NotImported(f"{path}: {plugin.reason}")
        return imported(None, settings, sources)
    if plugin.error:
        raise NotImported(f"{path}, line {plugin.error_line}: {plugin.error}")
    return imported(plugin, settings, [path, *sources])


def _text(path: str, sources: list[str]) -> str:
    raw = read_regular(path, CONF_BYTES_MAX)
    if isinstance(raw, Unreadable):
        if raw.missing:
            return ""
        raise NotImported(f"{path}: {raw.reason}")
    sources.append(path)
    return raw.decode("utf-8", "replace")
