"""Reads XML that libvirt has written: no more bytes than a bound, no document type, and never waiting.

Entities are declared in a document type, and libvirt writes none: a file with one is refused before anything in it is
expanded. What is no XML, cut off or too large is `NotUnderstood`, with its reason.
"""

from __future__ import annotations

import os
import stat
import xml.etree.ElementTree as ET


class NotUnderstood(ValueError):
    """The text is the reason, as a clause: ``it is cut off``."""


class _Elements(ET.TreeBuilder):
    """Builds the tree; the parser calls `doctype` before it reads any declaration."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise NotUnderstood("it has a document type, and libvirt writes none")


def parse(raw: bytes) -> ET.Element:
    """The root element. Raises `NotUnderstood`."""
    try:
        parser = ET.XMLParser() if _is_plain(raw) else ET.XMLParser(target=_Elements())
        parser.feed(raw)
        root = parser.close()
    except NotUnderstood:
        raise
    except (ET.ParseError, ValueError, LookupError) as e:  # LookupError: of an encoding that is not known
        raise NotUnderstood(f"it is no XML: {e}") from None
    if not isinstance(root, ET.Element):
        raise NotUnderstood("it has no element")
    return root


def _is_plain(raw: bytes) -> bool:
    """Whether it is surely UTF-8 and without a document type, as all of libvirt's files are: read in half the time.

    Another encoding needs a declaration at the start, or has zero bytes.
    """
    return b"<!DOCTYPE" not in raw and b"\0" not in raw and b"<?xml" not in raw[:8]


def read(path: str, bytes_max: int) -> ET.Element:
    """The root element of a file, which may be a link. Raises `NotUnderstood`, also for what can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as f:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotUnderstood("it is no regular file")
            raw = f.read(bytes_max + 1)
    except (OSError, ValueError) as e:
        if isinstance(e, NotUnderstood):
            raise
        raise NotUnderstood(e.strerror or str(e) if isinstance(e, OSError) else str(e)) from None
    if len(raw) > bytes_max:
        raise NotUnderstood(f"it is larger than {bytes_max} bytes")
    return parse(raw)
