"""The watchdog drivers against doubles of the device and of wdmd: no ping after the bound, no silent weakness."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.protocol.words import Instant
from holdfast.system import watchdog as wd
from holdfast.system import wdmd
from holdfast.system.watchdog import DeviceWatchdog, NoWatchdog, WatchdogRefused
from holdfast.system.wdmd import WdmdWatchdog

FIRE_S = 60
# A stuck test shall end.
AMPLE_S = 20.0
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


class Wdmd:
    """The daemon's side of the socket: answers STATUS and OPEN_WATCHDOG, records everything."""

    def __init__(self, path: Path, fire_s: int) -> None:
        self.fire_s = fire_s
        self.messages: list[tuple[int, int, int, int, bytes]] = []
        self.changed = threading.Condition()
        self.closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        with client:
            while len(raw := client.recv(wdmd.MESSAGE_BYTES, socket.MSG_WAITALL)) == wdmd.MESSAGE_BYTES:
                told = wdmd.unpack(raw)
                if told[0] == wdmd.OPEN_WATCHDOG:
                    self.fire_s = told[1]
                if told[0] in (wdmd.STATUS, wdmd.OPEN_WATCHDOG):
                    client.sendall(wdmd.pack(told[0], fire_timeout_s=self.fire_s))
                with self.changed:
                    self.messages.append(told)
                    self.changed.notify_all()
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def wait(self, happened: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(happened, AMPLE_S), self.messages

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(AMPLE_S)


class Clocks:
    ours, theirs = 5000.0, 300.25

    def now(self) -> Instant:
        return Instant(self.ours)

    def their_now(self) -> float:
        return self.theirs


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Wdmd]:
    daemon = Wdmd(tmp_path / "sock", FIRE_S)
    yield daemon
    daemon.stop()


def client(tmp_path: Path, clocks: Clocks) -> WdmdWatchdog:
    return WdmdWatchdog(FIRE_S, clocks.now, path=str(tmp_path / "sock"), their_now=clocks.their_now)


def test_wdmd_is_told_the_bound_in_its_own_clock_once_for_each_renewal(daemon: Wdmd, tmp_path: Path) -> None:
    clocks = Clocks()
    fed = client(tmp_path, clocks)
    fed.prove()
    for _ in range(3):
        assert fed.feed(Instant(clocks.ours + 79.5))
    assert fed.feed(Instant(clocks.ours + 80))
    daemon.wait(lambda: len(daemon.messages) >= 5)
    commands = [told[0] for told in daemon.messages]
    assert commands == [wdmd.STATUS, wdmd.REGISTER, wdmd.REFCOUNT_SET, wdmd.TEST_LIVE, wdmd.TEST_LIVE]
    assert daemon.messages[1][4] == wdmd.CLIENT_NAME
    # 300.25 + 79.5, downwards: wdmd counts whole seconds, and none of them may come after the bound.
    assert daemon.messages[3][2:4] == (300, 379)
    fed.disarm()
    daemon.wait(lambda: daemon.closed)
    assert [told[:4] for told in daemon.messages[-2:]] == [
        (wdmd.TEST_LIVE, 0, 0, 0),
        (wdmd.REFCOUNT_CLEAR, 0, 0, 0),
    ]


def test_a_bound_that_has_passed_is_not_told_to_wdmd(daemon: Wdmd, tmp_path: Path) -> None:
    clocks = Clocks()
    fed = client(tmp_path, clocks)
    fed.prove()
    assert not fed.feed(Instant(clocks.ours))
    assert not fed.feed(Instant(clocks.ours + 0.5))
    daemon.wait(lambda: bool(daemon.messages))  # it answers before it writes down what it was asked
    assert [told[0] for told in daemon.messages] == [wdmd.STATUS]
    fed.disarm()


def test_a_wdmd_with_another_fire_timeout_is_refused_and_one_that_is_not_open_is_opened_with_ours(
    daemon: Wdmd, tmp_path: Path
) -> None:
    daemon.fire_s = 0
    fed = client(tmp_path, Clocks())
    fed.prove()
    assert daemon.fire_s == FIRE_S
    fed.disarm()
    other = Wdmd(tmp_path / "other", 30)
    refused = WdmdWatchdog(FIRE_S, Clocks().now, path=str(tmp_path / "other"))
    with pytest.raises(WatchdogRefused, match="its fire timeout is 30 s where 60 s are configured"):
        refused.prove()
    assert not refused.feed(Instant(9999))
    other.stop()
    with pytest.raises(WatchdogRefused, match="missing"):
        WdmdWatchdog(FIRE_S, Clocks().now, path=str(tmp_path / "missing")).prove()


def test_a_wdmd_that_is_gone_is_not_fed_and_that_is_final(daemon: Wdmd, tmp_path: Path) -> None:
    clocks = Clocks()
    fed = client(tmp_path, clocks)
    fed.prove()
    assert fed._socket is not None
    assert isinstance(fed._socket, socket.socket)
    fed._socket.shutdown(socket.SHUT_WR)
    assert not fed.feed(Instant(clocks.ours + 80))
    assert not fed.feed(Instant(clocks.ours + 81))
    fed._socket.close()
