"""A system call that fails is an answer: nothing above the disk has to catch anything."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from holdfast.protocol.types import IoFailed

P = ParamSpec("P")
T = TypeVar("T")


def answered(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | IoFailed:
    """What the call returns, or the error number of the OSError that it raises."""
    try:
        return call(*args, **kwargs)
    except OSError as e:
        return IoFailed(e.errno or errno.EIO)
