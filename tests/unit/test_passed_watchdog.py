"""What a program learns of the watchdog that an earlier one has armed: by a re-exec, or from systemd's descriptor store."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from holdfast.system.host import descriptors as fds
from holdfast.system.host.descriptors import Inherited, ReexecState
from holdfast.system.watchdog.passed import PassedWatchdog

NAME = "watchdog"


@pytest.fixture
def wdmd_socket() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.fileno()


def tag(watchdog: PassedWatchdog) -> tuple[str, int]:
    return watchdog.tag, os.memfd_create("tag")


@pytest.mark.parametrize(
    ("driver", "path", "fire_timeout_s"),
    [("wdmd", "/run/wdmd/wdmd.sock", 60), ("device", "/dev/watch-dog:1%", 30), ("device", "", 0)],
)
def test_name_in_the_store_says_what_armed_it(
    wdmd_socket: int, driver: str, path: str, fire_timeout_s: int
) -> None:
    armed = PassedWatchdog(wdmd_socket, driver, path, fire_timeout_s)
    assert ":" not in armed.tag  # systemd separates names by it
    inherited = Inherited(named=[("lock-1", 99), tag(armed), (NAME, wdmd_socket)])
    found = inherited.take_watchdog(NAME)
    assert found == PassedWatchdog(wdmd_socket, driver, path, fire_timeout_s, (armed.tag,))
    assert inherited.named == [("lock-1", 99)]


def test_descriptor_of_a_released_daemon_is_known_by_its_kind(wdmd_socket: int) -> None:
    assert Inherited(named=[(NAME, wdmd_socket)]).take_watchdog(NAME) == PassedWatchdog(wdmd_socket, "wdmd")
    device = os.open("/dev/null", os.O_WRONLY)
    assert Inherited(named=[(NAME, device)]).take_watchdog(NAME) == PassedWatchdog(device, "device")
    os.close(device)
    assert Inherited().take_watchdog(NAME) is None


def test_two_names_that_differ_say_nothing(wdmd_socket: int) -> None:
    one = PassedWatchdog(wdmd_socket, "wdmd", "/a", 60)
    other = PassedWatchdog(wdmd_socket, "device", "/b", 60)
    found = Inherited(named=[tag(one), tag(other), (NAME, wdmd_socket)]).take_watchdog(NAME)
    assert found is not None
    assert (found.driver, found.path, found.fire_timeout_s) == ("wdmd", "", 0)


@pytest.mark.parametrize(
    ("driver", "path", "fire_timeout_s", "fits"),
    [
        ("wdmd", "/a", 60, True),
        ("device", "/a", 60, False),
        ("none", "", 60, False),
        ("wdmd", "/b", 60, False),
        ("wdmd", "/a", 30, False),
    ],
)
def test_descriptor_goes_on_only_to_what_armed_it(
    driver: str, path: str, fire_timeout_s: int, fits: bool
) -> None:
    assert PassedWatchdog(3, "wdmd", "/a", 60).fits(driver, path, fire_timeout_s) is fits
    # Of a released daemon's only the driver is known.
    assert PassedWatchdog(3, "wdmd").fits(driver, path, fire_timeout_s) is (driver == "wdmd")


def test_state_of_a_released_daemon_is_understood_and_ours_by_it(wdmd_socket: int) -> None:
    class Released(msgspec.Struct, frozen=True):
        version: int
        listeners: dict[str, int]
        self_bound: list[str]
        locks: dict[int, int]
        connections: list[fds.SavedConnection]
        journal: bytes
        events: list[tuple[int, float, str, str, str, int, str, str, int, str]]
        lock_fd: int
        watchdog_fd: int = -1

    theirs = Released(1, {}, [], {}, [], b"", [], 5, wdmd_socket)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(theirs), type=ReexecState)
    assert Inherited(reexec=state).take_watchdog(NAME) == PassedWatchdog(wdmd_socket, "wdmd")
    ours = ReexecState(
        version=fds.REEXEC_VERSION,
        listeners={},
        self_bound=[],
        locks={},
        connections=[],
        journal=b"",
        events=[],
        lock_fd=5,
        watchdog_fd=wdmd_socket,
        watchdog=("wdmd", "/a", 60),
        configuration="x = 1",
    )
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=Released)
    assert (read.version, read.watchdog_fd) == (1, wdmd_socket)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=ReexecState)
    assert Inherited(reexec=again).take_watchdog(NAME) == PassedWatchdog(wdmd_socket, "wdmd", "/a", 60)
