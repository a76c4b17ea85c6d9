"""INQUIRE's state string: the leases of a client as one text (sanlock-socket.md 2.4).

    <lockspace>:<resource>:<path>:<offset>[:<path>:<offset>…]:<lver | SH>

Items are separated by single spaces. In paths, each unescaped space and colon has a backslash in front. Clients
cannot read an item with a space back reliably, so sanlock sends none (-81), and neither do we; `parse` reads what
clients read.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.wire.sanlock.flags import ResourceFlag
from holdfast.wire.sanlock.malformed import MalformedMessage
from holdfast.wire.sanlock.structures import DISKS_MAX, PATH_BYTES, Disk, Resource

ITEM_BYTES_MAX = 4400
"""Of one resource's text, with its NUL."""
ITEMS_MAX = 4096
"""Leases in one state string that is parsed."""
_NAME_COLONS = 2
_SHARED = "SH"
_U64_MAX = (1 << 64) - 1


class StateString(NamedTuple):
    """`text` as it is sent; `has_space` if an item contains one, which clients can't read back."""

    text: str
    has_space: bool


def escaped(path: str) -> str:
    """With a backslash in front of each space and colon that has none."""
    done: list[str] = []
    previous = ""
    for character in path:
        if character in " :" and previous != "\\":
            done.append("\\")
        done.append(character)
        previous = character
    return "".join(done)


def item(resource: Resource) -> str:
    """One lease."""
    disks = "".join(f":{escaped(disk.path)}:{disk.offset_bytes}" for disk in resource.disks)
    version = _SHARED if resource.flags & ResourceFlag.SHARED else str(resource.lver)
    return f"{resource.lockspace.text}:{resource.name.text}{disks}:{version}"


def state_string(resources: tuple[Resource, ...]) -> StateString:
    items = [item(resource) for resource in resources]
    return StateString(" ".join(items), any(" " in each for each in items))


def parse(text: str) -> tuple[Resource, ...]:
    """The leases of a state string, as clients and the command line's `-r` read it; raises on what they refuse."""
    resources = tuple(_resource(each) for each in _items(text))
    if len(resources) > ITEMS_MAX:
        raise MalformedMessage(f"a state string has at most {ITEMS_MAX} leases, not {len(resources)}")
    return resources


def _items(text: str) -> list[str]:
    """Split at unescaped spaces; one before the third colon of an item belongs to the item: names may have spaces."""
    items: list[str] = []
    start = colons = 0
    after_backslash = False
    for at, character in enumerate(text):
        if after_backslash:
            after_backslash = False
        elif character == "\\":
            after_backslash = True
        elif character == ":":
            colons += 1
        elif character == " " and colons > _NAME_COLONS:
            items.append(text[start:at])
            start, colons = at + 1, 0
    if start < len(text):
        items.append(text[start:])
    return items


def _fields(text: str) -> list[str]:
    """An item's fields, without the backslashes that escape."""
    fields = [""]
    after_backslash = False
    for character in text:
        if after_backslash or character not in ":\\":
            fields[-1] += character
            after_backslash = False
        elif character == "\\":
            after_backslash = True
        else:
            fields.append("")
    return fields


def _resource(text: str) -> Resource:
    if len(text.encode("utf-8", "surrogateescape")) >= ITEM_BYTES_MAX:
        raise MalformedMessage(f"a lease's text has at most {ITEM_BYTES_MAX - 1} bytes")
    fields = _fields(text)
    colons = len(fields) - 1
    if colons in (0, _NAME_COLONS):
        raise MalformedMessage(f"a lease is LOCKSPACE:RESOURCE[:PATH:OFFSET…][:VERSION], not {text!r}")
    versioned = bool((colons - 1) % 2)
    places = fields[2 : len(fields) - versioned]
    disks = tuple(
        Disk(_path(path), _number(offset)) for path, offset in zip(places[::2], places[1::2], strict=True)
    )
    if len(disks) > DISKS_MAX:
        raise MalformedMessage(f"a lease has at most {DISKS_MAX} disks, not {len(disks)}: {text!r}")
    flags = lver = 0
    if versioned and fields[-1].startswith(_SHARED):
        flags = ResourceFlag.SHARED
    elif versioned:
        flags, lver = ResourceFlag.LVER, _number(fields[-1])
    return Resource(_name(fields[0]), _name(fields[1]), lver, 0, 0, int(flags), len(disks), disks)


def _name(text: str) -> PaddedName:
    try:
        return PaddedName.of(text)
    except ValueError as e:
        raise MalformedMessage(f"a name has at most {NAME_BYTES} bytes and no NUL: {e}") from None


def _path(text: str) -> str:
    if len(text.encode("utf-8", "surrogateescape")) >= PATH_BYTES or "\0" in text:
        raise MalformedMessage(f"a path has at most {PATH_BYTES - 1} bytes and no NUL: {text[:60]!r}…")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_U64_MAX)) or int(text) > _U64_MAX:
        raise MalformedMessage(f"an offset or a version is a decimal number, not {text!r}")
    return int(text)
