"""The watchdog: what makes this host harmless when it can no longer prove that its leases are good.

A watchdog device resets the host unless it is pinged within its fire timeout. So the bound that other hosts rely on,
*reset at the latest at E + fire* for a lease that fails at E, holds if no ping comes after E:

    T renewed        E = T + 8 io                     E + fire: others may take over, strictly later
    |----- pings ---|   no ping, whatever happens     |
                    ^ last ping at the latest   ......^ reset at the latest

Drivers know nothing of leases. `feed(until)` says: all leases are good until then. A driver looks at the clock right
before it pings, and one that finds itself late *after* a ping (the process was paused between the two) takes the
excess back by a shorter timeout.

    none     no watchdog: the operator has spelled out that a hung host may go on writing
    device   /dev/watchdog itself (linux/watchdog.h); this module
    wdmd     sanlock's daemon, which has the device (system/watchdog/wdmd.py)
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Protocol

from holdfast.protocol.types import Instant

# linux/watchdog.h
WDIOC_GETSUPPORT = 0x80285700
WDIOC_KEEPALIVE = 0x80045705
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
WDIOF_SETTIMEOUT = 0x0080
WDIOF_MAGICCLOSE = 0x0100
WDIOF_KEEPALIVEPING = 0x8000
MAGIC_CLOSE = b"V"
SUPPORT = struct.Struct("=II32s")
INT = struct.Struct("=i")

_NEEDED = (
    (WDIOF_SETTIMEOUT, "its timeout cannot be set"),
    (WDIOF_MAGICCLOSE, "it cannot be stopped by a clean close"),
    (WDIOF_KEEPALIVEPING, "it does not take pings"),
)
_TIMEOUT_LEAST_S = 1


class WatchdogRefused(Exception):
    """This watchdog cannot keep what the configuration promises; the text says why."""


class Watchdog(Protocol):
    """The port through which the lease monitor feeds it. Nothing here may block."""

    @property
    def fences(self) -> bool:
        """Whether a host that is not fed will be reset."""

    def prove(self) -> None:
        """Before a lease is claimed: find out whether it will work. Raises `WatchdogRefused`."""

    def feed(self, until: Instant) -> bool:
        """All leases are good until then. The first call arms it. False: not fed, and the host may be reset."""

    def disarm(self) -> None:
        """No lease is held any more, and all users of one are provably gone."""

    def descriptor(self) -> int | None:
        """What has to stay open for a next program to go on feeding; None if there is nothing."""


class NoWatchdog:
    """`watchdog = "none"`: nothing stops a host that hangs. Spelled out by the operator, shown everywhere."""

    fences = False

    def prove(self) -> None:
        return None

    def feed(self, until: Instant) -> bool:
        return True

    def disarm(self) -> None:
        return None

    def descriptor(self) -> int | None:
        return None


class DeviceKernel(Protocol):
    """The file protocol of a watchdog device, so that a double can stand in where the kernel has none."""

    def open(self, path: str) -> int: ...
    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes: ...
    def write(self, fd: int, content: bytes) -> None: ...
    def close(self, fd: int) -> None: ...
    def nowayout(self, path: str) -> bool: ...


class RealDeviceKernel:
    def open(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        return fcntl.ioctl(fd, request, argument)

    def write(self, fd: int, content: bytes) -> None:
        os.write(fd, content)

    def close(self, fd: int) -> None:
        os.close(fd)

    def nowayout(self, path: str) -> bool:
        name = os.path.basename(os.path.realpath(path))
        # /dev/watchdog is the old name of /dev/watchdog0.
        name = "watchdog0" if name == "watchdog" else name
        try:
            with open(f"/sys/class/watchdog/{name}/nowayout") as file:
                return file.read().strip() == "1"
        except OSError:
            return False


class DeviceWatchdog:
    """`watchdog = "device"`: we have the device, nobody else may."""

    fences = True

    def __init__(
        self,
        path: str,
        fire_timeout_s: int,
        now: Callable[[], Instant],
        kernel: DeviceKernel | None = None,
        *,
        fd: int | None = None,
    ) -> None:
        """`fd`: the device, open and armed, from an earlier program."""
        self._path = path
        self._fire_timeout_s = fire_timeout_s
        self._now = now
        self._kernel = kernel or RealDeviceKernel()
        self._fd: int | None = fd
        # Then its timeout is set again before it is fed: the earlier program may have had another one.
        self._shortened = fd is not None
        self.identity = ""

    def prove(self) -> None:
        """Arm it and stop it again at once: what it says about itself is not enough."""
        if self._fd is None:
            fd = self._open()
            self._stop(fd)

    def feed(self, until: Instant) -> bool:
        if self._now() >= until:
            return False
        try:
            if self._fd is None:
                self._fd = self._open()
            if self._shortened:
                self._set_timeout(self._fd, self._fire_timeout_s)
                self._shortened = False
            # Opening and setting take a moment, and may take a long one.
            if self._now() >= until:
                return False
            self._kernel.ioctl(self._fd, WDIOC_KEEPALIVE, bytes(INT.size))
            return self._take_back_if_late(self._fd, until)
        except (OSError, WatchdogRefused):
            return False

    def disarm(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._shortened = False
            self._stop(fd)

    def descriptor(self) -> int | None:
        return self._fd

    def _open(self) -> int:
        if self._kernel.nowayout(self._path):
            raise WatchdogRefused(
                f"{self._path} cannot be stopped once it is started (nowayout): leaving the last lockspace would "
                "reset the host; load its driver with nowayout=0"
            )
        try:
            fd = self._kernel.open(self._path)
        except OSError as e:
            raise WatchdogRefused(f"{self._path}: {e.strerror}") from None
        try:
            self._check(fd)
        except (OSError, WatchdogRefused) as e:
            self._stop(fd)
            raise WatchdogRefused(f"{self._path}: {e}") from None
        return fd

    def _check(self, fd: int) -> None:
        options, _, identity = SUPPORT.unpack(self._kernel.ioctl(fd, WDIOC_GETSUPPORT, bytes(SUPPORT.size)))
        self.identity = identity.split(b"\0", 1)[0].decode("ascii", "replace")
        for option, lack in _NEEDED:
            if not options & option:
                raise WatchdogRefused(f"{self.identity}: {lack}")
        self._set_timeout(fd, self._fire_timeout_s)

    def _set_timeout(self, fd: int, seconds: int) -> None:
        """Set it, and read it back: a device may round, or have limits of its own."""
        self._kernel.ioctl(fd, WDIOC_SETTIMEOUT, INT.pack(seconds))
        (got,) = INT.unpack(self._kernel.ioctl(fd, WDIOC_GETTIMEOUT, bytes(INT.size)))
        if got != seconds:
            raise WatchdogRefused(
                f"{self.identity}: its timeout is {got} s where {seconds} s are needed, and all hosts count on them"
            )

    def _take_back_if_late(self, fd: int, until: Instant) -> bool:
        """Shorten the timeout by what the ping came too late. Setting it pings once more, perhaps too late again."""
        pinged_by = self._now()
        if pinged_by < until:
            return True
        self._shortened = True
        reset_by, left_s = until + self._fire_timeout_s, self._fire_timeout_s
        while pinged_by + left_s > reset_by and left_s > _TIMEOUT_LEAST_S:
            left_s = max(_TIMEOUT_LEAST_S, int(reset_by - self._now()))
            self._kernel.ioctl(fd, WDIOC_SETTIMEOUT, INT.pack(left_s))
            pinged_by = self._now()
        return False

    def _stop(self, fd: int) -> None:
        try:
            self._kernel.write(fd, MAGIC_CLOSE)
        except OSError:
            pass  # closed all the same: the host will be reset, and nothing better can be done
        self._kernel.close(fd)
