"""The shipped driver, and the double that other tests use, against the wdmd that this machine has: of either generation."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.wdmd.real_wdmd import FIRE_S, RealWdmd, ask, build_device, installed_generation
from tests.support.polling import wait_until
from tests.support.wdmd_double import Generation, Wdmd

from holdfast.protocol.types import Instant
from holdfast.system.watchdog import wdmd
from holdfast.system.watchdog.wdmd import WdmdWatchdog

pytestmark = pytest.mark.interop

TEST_INTERVAL_S = 10
"""Between two tests of its clients, with a fire timeout of 60 s."""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_device(tmp_path_factory.mktemp("device"))


@pytest.fixture
def real(device: Path, tmp_path: Path) -> Iterator[RealWdmd]:
    real = RealWdmd(tmp_path, device)
    yield real
    real.close()


def now() -> Instant:
    return Instant(time.clock_gettime(time.CLOCK_MONOTONIC))


def driver(real: RealWdmd) -> WdmdWatchdog:
    return WdmdWatchdog(FIRE_S, now, path=real.path)


def connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TEST_INTERVAL_S)
    connection.connect(path)
    return connection


def test_double_answers_as_the_real_one_before_and_after_the_device_is_asked_for(
    real: RealWdmd, tmp_path: Path
) -> None:
    status = wdmd.pack(wdmd.STATUS)
    rounds = [status, *(wdmd.pack(wdmd.OPEN_WATCHDOG, fire_timeout_s=s) + status for s in (FIRE_S, 30))]
    double = Wdmd(tmp_path / "double.sock", installed_generation(), FIRE_S)
    answers = []
    for path in (real.path, str(double.path)):
        with connected(path) as connection:
            answers.append([ask(connection, messages) for messages in rounds])
    assert answers[0] == answers[1]
    double.close()


def test_device_stays_open_from_the_proof_until_the_driver_lets_go_of_it(real: RealWdmd) -> None:
    fed = driver(real)
    fed.prove()
    assert real.has_device_open
    # Others come and go: sanlock, an administrator's dump.
    with connected(real.path) as other:
        ask(other, wdmd.pack(wdmd.OPEN_WATCHDOG, fire_timeout_s=FIRE_S) + wdmd.pack(wdmd.STATUS))
    with connected(real.path) as another:
        ask(another, wdmd.pack(wdmd.STATUS))
    pings = real.device_words.count("ping")
    wait_until(lambda: real.device_words.count("ping") > pings, "the next ping")
    assert real.has_device_open
    assert fed.feed(Instant(now() + 80))
    wait_until(lambda: real.device_words.count("ping") > pings + 1, "the ping after that")
    assert real.has_device_open
    fed.disarm()
    if installed_generation() is Generation.SINCE_3_9:
        wait_until(lambda: not real.has_device_open, "the device to be closed")
    assert "close-unclean" not in real.device_words


def test_device_is_left_to_fire_when_a_bound_that_was_given_is_not_renewed(real: RealWdmd) -> None:
    fed = driver(real)
    fed.prove()
    until = Instant(now() + TEST_INTERVAL_S + 5)
    assert fed.feed(until)
    wait_until(lambda: "close-unclean" in real.device_words, "the device to be closed without being disarmed")
    assert now() < until + TEST_INTERVAL_S
    pings = real.device_words.count("ping")
    wait_until(lambda: now() > until, "the bound to pass")
    assert real.device_words.count("ping") == pings
    assert not real.has_device_open
    fed.disarm()


def test_driver_that_was_proven_when_wdmd_was_killed_is_proven_and_fed_by_the_next_one(
    device: Path, tmp_path: Path
) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    first = RealWdmd(places[0], device)
    way = tmp_path / "wdmd.sock"  # to the one that runs
    way.symlink_to(first.path)
    fed = WdmdWatchdog(FIRE_S, now, path=str(way))
    fed.prove()
    first.close()
    second = RealWdmd(places[1], device)
    way.unlink()
    way.symlink_to(second.path)
    assert not fed.feed(Instant(now() + 80))
    fed.disarm()
    fed.prove()
    assert second.has_device_open
    assert fed.feed(Instant(now() + 80))
    fed.disarm()
    second.close()
