"""The shipped fake of lvmlockd keeps the contract that the real one keeps (tests/interop/lvmlockd), and what our client
makes of a lvmlockd that hangs, ends or talks nonsense.
"""

from __future__ import annotations

import itertools
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.lvmlockd_contract import EX, SH, UN, LvmlockdContract

from holdfast.system.lvm.lvmlockd_client import LockManagerFailed, LockspaceInactive, LvmlockdClient, NoAnswer
from holdfast.testing.fake_lvmlockd import FakeLvmlockd, Modes
from holdfast.wire import lvmlockd as wire
from holdfast.wire.lvmlockd import LvLock

LV = LvLock("vg", "lv1", "uuid-1", "1.0.0:lvmlock", "1.0.0:70254592")


class FakePair:
    def __init__(self, place: Path) -> None:
        self.modes = Modes(place / "modes")
        self._place = place
        self._numbers = itertools.count(1)
        self.daemons = {
            host: FakeLvmlockd(self.socket_path(host), self.modes, host, ["vg"], checks_leases=True)
            for host in (1, 2)
        }

    def socket_path(self, host: int) -> Path:
        return self._place / f"lvmlockd-{host}.socket"

    def new_lv(self) -> LvLock:
        number = next(self._numbers)
        lv = LvLock("vg", f"lv{number}", f"uuid-{number}", "1.0.0:lvmlock", f"1.0.0:{number << 20}")
        self.modes.add_lv(lv)
        return lv

    def kill_vg(self, host: int) -> None:
        self.daemons[host].killed_vgs.add("vg")

    def revive_vg(self, host: int, *used: LvLock) -> None:
        self.daemons[host].drop_vg("vg", [lv.lv_uuid for lv in used])
        self.daemons[host].vgs.add("vg")

    def close(self) -> None:
        for each in self.daemons.values():
            each.close()


@pytest.fixture
def place() -> Iterator[Path]:
    """For sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def pair(place: Path) -> Iterator[FakePair]:
    made = FakePair(place)
    yield made
    made.close()


class TestFake(LvmlockdContract):
    def test_one_that_is_started_again_holds_what_it_held(self, pair: FakePair) -> None:
        lv = pair.new_lv()
        with self.client(pair, 1) as one:
            one.lock_lv(lv, EX)
            pair.daemons[1].close()
            with pytest.raises(NoAnswer):
                one.query_lock_lv(lv)
            pair.daemons[1] = FakeLvmlockd(pair.socket_path(1), pair.modes, 1, ["vg"])
            assert one.query_lock_lv(lv) is EX
            pair.daemons[1].close()
            pair.daemons[1] = FakeLvmlockd(pair.socket_path(1), pair.modes, 1, ["vg"])
            one.lock_lv(lv, SH)  # by a connection to the daemon before
        assert pair.modes.of(lv.lv_uuid) == {1: SH}

    def test_vg_that_starts_is_not_active_yet(self, pair: FakePair) -> None:
        pair.daemons[1].starting_vgs.add("vg")
        with self.client(pair, 1) as one, pytest.raises(LockspaceInactive, match="is being started"):
            one.lock_lv(pair.new_lv(), EX)

    def test_waiting_client_that_goes_gets_nothing(self, pair: FakePair) -> None:
        lv = pair.new_lv()
        with self.client(pair, 1) as first:
            first.lock_lv(lv, EX, persistent=False)
            with self.client(pair, 1, timeout_s=0.2) as second, pytest.raises(NoAnswer, match=r"0\.2 s"):
                second.lock_lv(lv, EX)
            first.lock_lv(lv, UN, persistent=False)
            time.sleep(0.2)
            assert first.query_lock_lv(lv) is UN


class Saying:
    """A listener that answers each request of its one client with these bytes, in turn; then it says nothing."""

    def __init__(self, path: Path, *answers: bytes) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._clients: list[socket.socket] = []
        self._answers = answers
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for answer in self._answers:
            client, _ = self._listener.accept()
            self._clients.append(client)
            client.recv(65536)
            client.sendall(answer)
            if answer == b"":
                client.close()

    def close(self) -> None:
        for each in (*self._clients, self._listener):
            each.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection"),
        (b"half a line", "said nothing in 0.3 s"),
        (b"rubbish\n\n##\n", "a line without '='"),
        (b'response = "OK"\nop = 23\nmode = "ex"\n\n##\n', "no number op_result"),
        (b'response = "OK"\nop_result = 0\n\n##\n', "it named no mode"),
        (b'response = "OK"\nop_result = 0\nmode = "zz"\n\n##\n', "a mode that is not known"),
        (b'response = "no"\nop_result = 0\nmode = "ex"\n\n##\n', "did not say OK"),
        (b'op_result = 0\nmode = "ex"\n\n##\n' * 2, "answered more than once"),
        (b"x" * 70000, "longer than 65536"),
    ],
)
def test_what_is_no_answer_is_said_and_not_taken_for_a_mode(place: Path, answer: bytes, why: str) -> None:
    sent = b'response = "OK"\nop_result = 0\nmode = "sh"\nnew_key = 3\n\n##\n'
    daemon = Saying(place / "socket", answer, sent)
    with LvmlockdClient(daemon.path, timeout_s=0.3) as client:
        with pytest.raises(NoAnswer, match=why):
            client.query_lock_lv(LV)
        assert client.query_lock_lv(LV) is SH  # on a new connection, and unknown keys are skipped
    daemon.close()


def test_number_that_has_no_name_here_is_given_as_it_is(place: Path) -> None:
    daemon = Saying(place / "socket", b'response = "OK"\nop_result = -999\nlm_result = 0\n\n##\n')
    with LvmlockdClient(daemon.path) as client, pytest.raises(LockManagerFailed, match="says -999") as raised:
        client.lock_lv(LV, EX)
    assert raised.value.result == -999
    daemon.close()


def test_text_that_would_end_a_line_is_not_sent() -> None:
    for name in ('a"b', "a\nb", "a\\b"):
        with pytest.raises(wire.MalformedText):
            wire.query_lock_lv(LvLock("vg", name, "u", "1", "2"), command="test", pid=1)
