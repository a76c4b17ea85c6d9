"""Flag words (sanlock-socket.md 1.5, newer-sanlock.md 1.2 and 3). Unknown bits are kept: who serves a command decides on
them."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class SizeFlag(IntFlag):
    """Sector and align sizes, in the flags of a resource, a lockspace and an index alike."""

    ALIGN_1M = 0x10
    ALIGN_2M = 0x20
    ALIGN_4M = 0x40
    ALIGN_8M = 0x80
    SECTOR_512 = 0x100
    SECTOR_4K = 0x200


SIZE_FLAGS = 0x3F0
"""Every bit of `SizeFlag`."""
SIZES = {
    (512, 1 << 20): SizeFlag.SECTOR_512 | SizeFlag.ALIGN_1M,
    (4096, 1 << 20): SizeFlag.SECTOR_4K | SizeFlag.ALIGN_1M,
    (4096, 2 << 20): SizeFlag.SECTOR_4K | SizeFlag.ALIGN_2M,
    (4096, 4 << 20): SizeFlag.SECTOR_4K | SizeFlag.ALIGN_4M,
    (4096, 8 << 20): SizeFlag.SECTOR_4K | SizeFlag.ALIGN_8M,
}
"""(sector, align) in bytes to flags: the five pairs that there are."""


class ResourceFlag(IntFlag):
    """sanlk_resource.flags, beside the `SizeFlag`s."""

    LVER = 0x1
    NUM_HOSTS = 0x2
    SHARED = 0x4
    PERSISTENT = 0x8
    USING_CAW = 0x400


class LockspaceFlag(IntFlag):
    """sanlk_lockspace.flags, beside the `SizeFlag`s; sent by the daemon, but for NO_TIMEOUT."""

    ADD = 0x1
    REM = 0x2
    NO_TIMEOUT = 0x4
    USING_CAW = 0x8


class RindexFlag(IntFlag):
    """sanlk_rindex.flags, beside the `SizeFlag`s."""

    NO_LOCKSPACE = 0x1


class UpdateRindexFlag(IntFlag):
    ADD = 0x10000
    REM = 0x20000


FOR_CLIENT_ID = 0x10
"""In the command flags of ACQUIRE, RELEASE, CONVERT and INQUIRE: data2 is a client id (3.9 and later)."""


class AcquireFlag(IntFlag):
    LVB = 0x1
    ORPHAN = 0x2
    ORPHAN_ONLY = 0x4
    OWNER_NOWAIT = 0x8


class ReleaseFlag(IntFlag):
    ALL = 0x1
    RENAME = 0x2
    ORPHAN = 0x4
    NO_DISK = 0x8


class ConvertFlag(IntFlag):
    OWNER_NOWAIT = 0x8


class RequestFlag(IntFlag):
    NEXT_LVER = 0x1


class ForceMode(IntEnum):
    """What REQUEST asks the holder for; 0 with lver 0 takes a request back."""

    NONE = 0
    FORCE = 1
    GRACEFUL = 2


class RestrictFlag(IntFlag):
    ALL = 0x1
    SIGKILL = 0x2
    SIGTERM = 0x4


class KillpathFlag(IntFlag):
    PID = 0x1


class AddFlag(IntFlag):
    ASYNC = 0x1
    NODELAY = 0x2
    NO_WATCHDOG = 0x4


class RemoveFlag(IntFlag):
    ASYNC = 0x1
    UNUSED = 0x2


class InquireLockspaceFlag(IntFlag):
    WAIT = 0x1


class WriteLockspaceFlag(IntFlag):
    LS_FLAGS = 0x1
    USE_CAW = 0x2
    NO_CAW = 0x4


class WriteResourceFlag(IntFlag):
    CLEAR = 0x1
    USE_CAW = 0x2
    NO_CAW = 0x4


class InitHostFlag(IntFlag):
    USE_CAW = 0x1
    NO_CAW = 0x2


class GetHostsFlag(IntFlag):
    LOCAL = 0x1


class ConfigOrder(IntEnum):
    """SET_CONFIG's `data`."""

    USED = 1
    UNUSED = 2
    USED_BY_ORPHANS = 4
    UNUSED_BY_ORPHANS = 8
    IO_TIMEOUT = 16


class SetEventFlag(IntFlag):
    CUR_GENERATION = 0x1
    CLEAR_HOSTID = 0x2
    CLEAR_EVENT = 0x4
    REPLACE_EVENT = 0x8
    ALL_HOSTS = 0x10


class HostMark(IntEnum):
    """SET_HOST's `data`."""

    DEAD_EXT = 1


class HostState(IntEnum):
    """The low four bits of sanlk_host.flags."""

    UNKNOWN = 1
    FREE = 2
    LIVE = 3
    FAIL = 4
    DEAD = 5


HOST_STATE_MASK = 0xF


class HostFlag(IntFlag):
    """sanlk_host.flags beside the state (5.x)."""

    DEAD_EXT = 0x10
    DEAD_BY_TIME = 0x20
    UNKNOWN_OLD = 0x40
