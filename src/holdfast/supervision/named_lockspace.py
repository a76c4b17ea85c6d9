"""A lockspace as a client names it at run time, where it stands here, and what becomes of its removal: words only."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Standing(enum.Enum):
    """Of a lockspace that a client names."""

    ABSENT = "this host is not in it"
    ADDING = "it is being joined"
    JOINED = "this host is in it, or has just lost it"
    REMOVING = "it is being left"
    OTHER = "its name, or its place, is another lockspace's here"


class Removal(enum.Enum):
    """What has become of a removal."""

    DONE = "it is left"
    ABSENT = "this host is not in it"
    REMOVING = "it is being left already"
    BUSY = "owners depend on it, or it is configured"


class Named(NamedTuple):
    """What identifies a lockspace; `host_id` 0 stands for any."""

    name: str
    path: str
    offset_bytes: int
    host_id: int
