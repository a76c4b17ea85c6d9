"""The watchdog drivers against doubles of the device and of wdmd: no ping after the bound, no silent weakness."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.polling import wait_until
from tests.support.wdmd_double import CLOSED, Generation, Wdmd

from holdfast.protocol.types import Instant
from holdfast.system.watchdog import device as wd
from holdfast.system.watchdog import wdmd
from holdfast.system.watchdog.device import DeviceWatchdog, NoWatchdog, WatchdogRefused
from holdfast.system.watchdog.wdmd import WdmdWatchdog

FIRE_S = 60
ALL = wd.WDIOF_SETTIMEOUT | wd.WDIOF_MAGICCLOSE | wd.WDIOF_KEEPALIVEPING


class Device:
    """A watchdog as linux/watchdog.h describes it, with a clock that a test turns."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.options = ALL
        self.timeout_s = 30
        self.timeout_max_s = 600
        self.stuck_open = False  # nowayout
        self.open_fd: int | None = None
        self.fires_at: float | None = None
        self.pings: list[float] = []
        self.opening_s = 0.0
        self.on_ping: Callable[[], None] = lambda: None
        self.on_setting: Callable[[], None] = lambda: None
        self._magic = False

    def now(self) -> Instant:
        return Instant(self.time)

    def nowayout(self, path: str) -> bool:
        return self.stuck_open

    def open(self, path: str) -> int:
        self.time += self.opening_s
        if self.open_fd is not None:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if path != "/dev/watchdog":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.open_fd = 7
        self._magic = False
        self._start()
        return 7

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        assert fd == self.open_fd
        match request:
            case wd.WDIOC_GETSUPPORT:
                return wd.SUPPORT.pack(self.options, 0, b"double")
            case wd.WDIOC_KEEPALIVE:
                self.on_ping()
                self.pings.append(self.time)
                self._start()
                return argument
            case wd.WDIOC_SETTIMEOUT:
                self.on_setting()
                (seconds,) = wd.INT.unpack(argument)
                self.timeout_s = min(seconds, self.timeout_max_s)
                self._start()
                return wd.INT.pack(self.timeout_s)
            case wd.WDIOC_GETTIMEOUT:
                return wd.INT.pack(self.timeout_s)
            case _:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    def write(self, fd: int, content: bytes) -> None:
        assert fd == self.open_fd
        self._magic = b"V" in content
        self._start()

    def close(self, fd: int) -> None:
        assert fd == self.open_fd
        self.open_fd = None
        if self._magic and not self.stuck_open:
            self.fires_at = None

    def is_stopped(self) -> bool:
        return self.open_fd is None and self.fires_at is None

    def _start(self) -> None:
        self.fires_at = self.time + self.timeout_s


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def driver(device: Device) -> DeviceWatchdog:
    return DeviceWatchdog("/dev/watchdog", FIRE_S, device.now, device)


def test_the_ioctl_numbers_are_those_of_the_kernels_header() -> None:
    def number(direction: int, size: int, nr: int) -> int:
        return direction << 30 | size << 16 | ord("W") << 8 | nr

    read, both = 2, 3
    assert (wd.SUPPORT.size, wd.INT.size) == (40, 4)
    assert number(read, 40, 0) == wd.WDIOC_GETSUPPORT
    assert number(read, 4, 5) == wd.WDIOC_KEEPALIVE
    assert number(both, 4, 6) == wd.WDIOC_SETTIMEOUT
    assert number(read, 4, 7) == wd.WDIOC_GETTIMEOUT


def test_proving_a_device_leaves_it_stopped(device: Device, driver: DeviceWatchdog) -> None:
    driver.prove()
    assert device.is_stopped()
    assert driver.identity == "double"
    assert driver.fences


def test_the_first_feeding_arms_it_with_our_timeout_and_disarming_stops_it(
    device: Device, driver: DeviceWatchdog
) -> None:
    assert driver.feed(Instant(device.time + 80))
    assert device.fires_at == device.time + FIRE_S
    device.time += 5
    assert driver.feed(Instant(device.time + 75))
    assert device.fires_at == device.time + FIRE_S
    driver.disarm()
    assert device.is_stopped()
    assert driver.feed(Instant(device.time + 80))


def test_at_the_bound_nothing_is_fed_any_more(device: Device, driver: DeviceWatchdog) -> None:
    until = Instant(device.time + 80)
    assert driver.feed(until)
    device.time += 80
    assert not driver.feed(until)
    assert device.fires_at == until - 80 + FIRE_S


def test_a_device_is_not_even_opened_for_a_bound_that_has_passed(
    device: Device, driver: DeviceWatchdog
) -> None:
    assert not driver.feed(Instant(device.time))
    assert device.is_stopped()


def test_a_device_that_took_past_the_bound_to_open_is_not_pinged_and_can_be_stopped(
    device: Device, driver: DeviceWatchdog
) -> None:
    device.opening_s = 80.0
    assert not driver.feed(Instant(device.time + 80))
    assert not device.pings
    driver.disarm()
    assert device.is_stopped()


def test_a_ping_that_came_too_late_is_taken_back_by_a_shorter_timeout(
    device: Device, driver: DeviceWatchdog
) -> None:
    until = Instant(device.time + 80)
    assert driver.feed(until)
    device.time += 79

    def paused_between_look_and_ping() -> None:
        device.time += 31.5

    device.on_ping = paused_between_look_and_ping
    assert not driver.feed(until)
    assert device.fires_at is not None
    assert device.fires_at <= until + FIRE_S
    # The users of the lost lease are gone after all, and the others feed it again: with the whole timeout.
    device.on_ping = lambda: None
    assert driver.feed(Instant(device.time + 80))
    assert device.fires_at == device.time + FIRE_S


def test_taking_a_late_ping_back_is_taken_back_if_it_comes_too_late_itself(
    device: Device, driver: DeviceWatchdog
) -> None:
    until = Instant(device.time + 80)
    assert driver.feed(until)
    device.time += 79

    def paused_before_the_ping() -> None:
        device.time += 5

    def paused_before_the_shorter_timeout() -> None:
        device.on_setting = lambda: None
        device.time += 20

    device.on_ping, device.on_setting = paused_before_the_ping, paused_before_the_shorter_timeout
    assert not driver.feed(until)
    assert device.fires_at is not None
    assert device.fires_at <= until + FIRE_S


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (wd.WDIOF_SETTIMEOUT, "timeout cannot be set"),
        (wd.WDIOF_MAGICCLOSE, "clean close"),
        (wd.WDIOF_KEEPALIVEPING, "does not take pings"),
    ],
)
def test_a_device_that_lacks_something_is_refused_by_name(
    device: Device, driver: DeviceWatchdog, missing: int, says: str
) -> None:
    device.options &= ~missing
    with pytest.raises(WatchdogRefused, match=f"double: .*{says}"):
        driver.prove()
    assert not driver.feed(Instant(device.time + 80))
    assert device.open_fd is None


def test_a_device_that_rounds_our_timeout_is_refused_with_both_values(
    device: Device, driver: DeviceWatchdog
) -> None:
    device.timeout_max_s = 45
    with pytest.raises(WatchdogRefused, match="its timeout is 45 s where 60 s are needed"):
        driver.prove()


def test_a_device_that_cannot_be_stopped_is_not_even_opened(device: Device, driver: DeviceWatchdog) -> None:
    device.stuck_open = True
    with pytest.raises(WatchdogRefused, match="nowayout=0"):
        driver.prove()
    assert device.fires_at is None


def test_a_device_that_somebody_else_has_is_refused(device: Device, driver: DeviceWatchdog) -> None:
    device.open("/dev/watchdog")
    with pytest.raises(WatchdogRefused, match="busy"):
        driver.prove()
    missing = DeviceWatchdog("/dev/watchdog1", FIRE_S, device.now)
    with pytest.raises(WatchdogRefused, match="/dev/watchdog1: "):
        missing.prove()


def test_no_watchdog_says_that_it_fences_nobody() -> None:
    none = NoWatchdog()
    none.prove()
    assert (none.fences, none.feed(Instant(1))) == (False, True)
    none.disarm()


# --- wdmd ---


class Clocks:
    ours, theirs = 5000.0, 300.25

    def now(self) -> Instant:
        return Instant(self.ours)

    def their_now(self) -> float:
        return self.theirs


@pytest.fixture(params=Generation, ids=lambda generation: generation.value)
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wdmd]:
    daemon = Wdmd(tmp_path / "sock", request.param, FIRE_S)
    yield daemon
    daemon.close()


def client(daemon: Wdmd, clocks: Clocks, fd: int | None = None) -> WdmdWatchdog:
    return WdmdWatchdog(FIRE_S, clocks.now, path=str(daemon.path), their_now=clocks.their_now, fd=fd)


def commands(daemon: Wdmd) -> list[int]:
    """Of the first connection."""
    return [command for said in daemon.said[:1] for command, _ in said]


def drop(fed: WdmdWatchdog) -> None:
    """As the end of its program does."""
    assert isinstance(fed._socket, socket.socket)
    fed._socket.close()


def test_wdmd_is_given_the_bound_in_its_own_clock_once_for_each_renewal(daemon: Wdmd) -> None:
    clocks = Clocks()
    fed = client(daemon, clocks)
    fed.prove()
    for _ in range(3):
        assert fed.feed(Instant(clocks.ours + 79.5))
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.wait(lambda: len(daemon.said[0]) >= 6)
    assert commands(daemon) == [
        wdmd.OPEN_WATCHDOG,
        wdmd.STATUS,
        wdmd.REGISTER,
        wdmd.REFCOUNT_SET,
        wdmd.TEST_LIVE,
        wdmd.TEST_LIVE,
    ]
    assert daemon.messages[0][0][1] == FIRE_S
    assert daemon.messages[0][2][4] == wdmd.CLIENT_NAME
    # 300.25 + 79.5, downwards: wdmd counts whole seconds, and none of them may come after the bound.
    assert daemon.messages[0][4][2:4] == (300, 379)
    fed.disarm()
    daemon.wait(lambda: daemon.said[0][-1] == CLOSED)
    assert daemon.said[0][-3:-1] == [(wdmd.TEST_LIVE, 0), (wdmd.REFCOUNT_CLEAR, 0)]


def test_device_is_open_for_our_own_connection_once_wdmd_is_proven(daemon: Wdmd) -> None:
    fed = client(daemon, Clocks())
    fed.prove()
    assert daemon.has_device_open
    assert commands(daemon)[0] == wdmd.OPEN_WATCHDOG
    fed.disarm()
    daemon.wait(lambda: daemon.said[0][-1] == CLOSED)
    assert daemon.has_device_open is (daemon.generation is Generation.BEFORE_3_9)


def test_wdmd_that_has_no_device_is_refused(daemon: Wdmd) -> None:
    daemon.device_fails = True
    fed = client(daemon, Clocks())
    with pytest.raises(WatchdogRefused, match=r"could not open|has never pinged"):
        fed.prove()
    assert not fed.feed(Instant(9999))
    # And it is not taken for good later, because somebody asked before.
    with pytest.raises(WatchdogRefused, match=r"could not open|has never pinged"):
        fed.prove()


def test_bound_that_has_passed_is_not_given_to_wdmd(daemon: Wdmd) -> None:
    clocks = Clocks()
    fed = client(daemon, clocks)
    fed.prove()
    assert not fed.feed(Instant(clocks.ours))
    assert not fed.feed(Instant(clocks.ours + 0.5))
    assert commands(daemon) == [wdmd.OPEN_WATCHDOG, wdmd.STATUS]
    fed.disarm()


def test_wdmd_whose_device_somebody_else_opened_with_another_fire_timeout_is_refused(daemon: Wdmd) -> None:
    daemon.fire_timeout_s = 30
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(str(daemon.path))
        other.sendall(wdmd.pack(wdmd.OPEN_WATCHDOG, fire_timeout_s=30) + wdmd.pack(wdmd.STATUS))
        daemon.wait(lambda: commands(daemon) == [wdmd.OPEN_WATCHDOG, wdmd.STATUS])
        refused = client(daemon, Clocks())
        with pytest.raises(WatchdogRefused, match="its fire timeout is 30 s where 60 s are configured"):
            refused.prove()
        assert not refused.feed(Instant(9999))
    with pytest.raises(WatchdogRefused, match="missing"):
        WdmdWatchdog(FIRE_S, Clocks().now, path=f"{daemon.path}-missing").prove()


def test_wdmd_that_was_restarted_before_the_first_feeding_is_proven_and_fed_at_the_next_try(
    daemon: Wdmd,
) -> None:
    clocks = Clocks()
    fed = client(daemon, clocks)
    fed.prove()
    # Joining takes up to the dead bound; a package is upgraded meanwhile.
    daemon.restart()
    assert not fed.feed(Instant(clocks.ours + 80))
    assert not fed.feed(Instant(clocks.ours + 81))
    fed.disarm()
    fed.prove()
    assert daemon.has_device_open
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.wait(lambda: bool(daemon.expires(1)))
    fed.disarm()


def test_proving_wdmd_again_after_its_restart_does_not_trust_the_dead_connection(daemon: Wdmd) -> None:
    clocks = Clocks()
    fed = client(daemon, clocks)
    fed.prove()
    daemon.restart()
    fed.prove()  # nobody was fed in between, and nobody disarmed it
    assert daemon.has_device_open
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.close()
    assert not fed.feed(Instant(clocks.ours + 80)), "a wdmd that has gone counts for nobody"
    with pytest.raises(WatchdogRefused, match="wdmd at"):
        fed.prove()


def test_wdmd_that_takes_no_more_messages_is_not_fed_and_its_connection_is_not_closed(daemon: Wdmd) -> None:
    clocks = Clocks()
    fed = client(daemon, clocks)
    fed.prove()
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.wait(lambda: bool(daemon.expires(0)))
    with daemon.changed:  # it serves nobody
        until = Instant(clocks.ours + 80)
        while fed.feed(until):
            until = Instant(until + 1)
        assert not fed.feed(Instant(until + 1))
        # What it was given last counts, and closing the connection would reset the host.
        fed.disarm()
        assert fed.descriptor() is not None
        with pytest.raises(WatchdogRefused, match="it takes no more messages; and it still counts"):
            fed.prove()
        drop(fed)


def test_next_program_asks_for_the_device_that_an_earlier_one_may_have_left_closed(daemon: Wdmd) -> None:
    clocks = Clocks()
    # Earlier releases asked wdmd for its status, and that says the same of a device that nobody has opened.
    earlier = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    earlier.connect(str(daemon.path))
    earlier.sendall(wdmd.pack(wdmd.REGISTER, name=wdmd.CLIENT_NAME) + wdmd.pack(wdmd.TEST_LIVE, expire=1000))
    fed = client(daemon, clocks, fd=earlier.detach())
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.wait(lambda: bool(daemon.said) and len(daemon.expires(0)) == 2)
    assert daemon.has_device_open
    assert commands(daemon).count(wdmd.OPEN_WATCHDOG) == commands(daemon).count(wdmd.REGISTER) == 1
    fed.prove()
    assert len(daemon.said) == 1, "it was fed over this connection, and is registered there"
    fed.disarm()


def test_next_program_is_not_fed_by_a_wdmd_that_can_not_open_the_device_any_more(tmp_path: Path) -> None:
    daemon = Wdmd(tmp_path / "sock", Generation.SINCE_3_9, FIRE_S)
    daemon.device_fails = True
    earlier = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    earlier.connect(str(daemon.path))
    clocks = Clocks()
    fed = client(daemon, clocks, fd=earlier.detach())
    fed.feed(Instant(clocks.ours + 80))
    wait_until(lambda: not fed.feed(Instant(clocks.ours + 80)), "the answer to be read")
    with pytest.raises(WatchdogRefused, match="could not open its watchdog device"):
        fed.prove()
    drop(fed)
    daemon.close()


def test_a_device_that_an_earlier_program_armed_gets_our_timeout_before_it_is_pinged(device: Device) -> None:
    """A restart with another fire timeout: other hosts count on ours from the first renewal on."""
    device.open("/dev/watchdog")
    device.timeout_s = 10 * FIRE_S
    driver = DeviceWatchdog("/dev/watchdog", FIRE_S, device.now, device, fd=device.open_fd)
    assert driver.feed(Instant(device.time + 20))
    assert device.timeout_s == FIRE_S
    assert device.fires_at == device.time + FIRE_S
