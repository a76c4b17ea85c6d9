"""Options that the commands for shared storage have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def size(text: str | int) -> int:
    """A number of bytes: 1048576, 1M, 2G."""
    found = _SIZE.fullmatch(str(text).strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a number of bytes; write for example 0, 1048576 or 1M")
    return int(found[1]) * _UNITS[found[2].upper()]


def offset_option(function: F) -> F:
    return click.option(
        "--offset",
        type=size,
        default=0,
        metavar="BYTES",
        help="Where the area begins, e.g. 1M [default: 0].",
    )(function)


def geometry_options(function: F) -> F:
    """--sector and --align: by default as sanlock chooses them."""
    for option in (
        click.option(
            "--align",
            type=click.Choice(["1M", "2M", "4M", "8M"]),
            help="Size of one area [default: the smallest that serves --hosts-max].",
        ),
        click.option(
            "--sector",
            type=click.Choice(["512", "4096"]),
            help="Size of one record [default: 512 in a file, a block device's own].",
        ),
    ):
        function = option(function)
    return function


def force_option(function: F) -> F:
    return click.option(
        "--force", is_flag=True, help="Overwrite what is there. Who holds it loses it without being told."
    )(function)
