"""The commands by their numbers, and how each is served (sanlock-socket.md 2, newer-sanlock.md 3)."""

from __future__ import annotations

from enum import Enum, IntEnum


class Command(IntEnum):
    """A number of the header's `cmd` field."""

    REGISTER = 1
    ADD_LOCKSPACE = 2
    REM_LOCKSPACE = 3
    SHUTDOWN = 4
    STATUS = 5
    LOG_DUMP = 6
    ACQUIRE = 7
    RELEASE = 8
    INQUIRE = 9
    RESTRICT = 10
    REQUEST = 11
    ALIGN = 12
    EXAMINE_LOCKSPACE = 13
    EXAMINE_RESOURCE = 14
    HOST_STATUS = 15
    INQ_LOCKSPACE = 16
    KILLPATH = 17
    WRITE_LOCKSPACE = 18
    WRITE_RESOURCE = 19
    READ_LOCKSPACE = 20
    READ_RESOURCE = 21
    GET_LOCKSPACES = 22
    GET_HOSTS = 23
    READ_RESOURCE_OWNERS = 24
    SET_LVB = 25
    GET_LVB = 26
    CONVERT = 27
    VERSION = 28
    SHUTDOWN_WAIT = 29
    REG_EVENT = 30
    END_EVENT = 31
    SET_EVENT = 32
    SET_CONFIG = 33
    RENEWAL = 34
    FORMAT_RINDEX = 35
    UPDATE_RINDEX = 36
    LOOKUP_RINDEX = 37
    CREATE_RESOURCE = 38
    DELETE_RESOURCE = 39
    REBUILD_RINDEX = 40
    ACQUIRE2 = 41
    READ_LOCKSPACE_HOST = 42
    INIT_LOCKSPACE_HOST = 43
    SET_HOST = 44


EVERY_COMMAND = frozenset(Command)
COMMANDS_OF_3 = frozenset(c for c in Command if c <= Command.REBUILD_RINDEX)
"""Of sanlock 3.8 and 3.9."""
COMMANDS_OF_5 = EVERY_COMMAND - frozenset(
    c for c in Command if Command.FORMAT_RINDEX <= c <= Command.REBUILD_RINDEX
)
"""Of sanlock 5.1: without the index, with four more."""


class Served(Enum):
    """What happens to the connection while and after a command is served."""

    CLOSES = "answered at once, then the daemon closes the connection"
    KEEPS = "answered at once; the connection stays"
    WORKER = "takes its time; the connection stays and is not read until the reply is sent"
    CLIENT = "as WORKER, for a registered client: one at a time"


_KEEPS = frozenset((Command.REGISTER, Command.RESTRICT, Command.VERSION))
_CLOSES = frozenset(
    (
        Command.SHUTDOWN,
        Command.STATUS,
        Command.LOG_DUMP,
        Command.HOST_STATUS,
        Command.GET_LOCKSPACES,
        Command.GET_HOSTS,
        Command.REG_EVENT,
        Command.END_EVENT,
        Command.SET_CONFIG,
        Command.RENEWAL,
    )
)
_CLIENT = frozenset(
    (
        Command.ACQUIRE,
        Command.RELEASE,
        Command.INQUIRE,
        Command.KILLPATH,
        Command.CONVERT,
        Command.ACQUIRE2,
    )
)


def served(command: Command) -> Served:
    if command in _CLIENT:
        return Served.CLIENT
    if command in _CLOSES:
        return Served.CLOSES
    return Served.KEEPS if command in _KEEPS else Served.WORKER
