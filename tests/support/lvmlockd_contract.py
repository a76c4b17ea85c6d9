"""What a lvmlockd does for two hosts that share a VG, seen by our client: the real one and the shipped fake must agree.

A subclass, and its fixture `pair`, is what pytest collects.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from holdfast.system.lvm.lvmlockd_client import (
    HeldElsewhere,
    LockManagerFailed,
    LockspaceInactive,
    LvmlockdClient,
    NoAnswer,
    StorageFailed,
)
from holdfast.wire import lvmlockd as wire
from holdfast.wire.lvmlockd import LvLock, Mode, OpResult

UN, SH, EX = Mode.UNLOCKED, Mode.SHARED, Mode.EXCLUSIVE
PATIENCE_S = 30.0


class Pair(Protocol):
    """Two hosts; `host` is 1 or 2."""

    def socket_path(self, host: int) -> Path: ...
    def new_lv(self) -> LvLock:
        """An LV more that nobody has locked."""

    def kill_vg(self, host: int) -> None:
        """sanlock reports to lvmlockd that the storage of its leases failed."""

    def revive_vg(self, host: int, *used: LvLock) -> None:
        """After that: what it held of these is dropped, and the VG is started again."""


class LvmlockdContract:
    """Tests of one VG that is started on both hosts; each has LVs of its own."""

    @contextmanager
    def clients(self, pair: Pair) -> Iterator[tuple[LvmlockdClient, LvmlockdClient]]:
        with self.client(pair, 1) as one, self.client(pair, 2) as two:
            yield one, two

    @staticmethod
    def client(pair: Pair, host: int, timeout_s: float = PATIENCE_S) -> LvmlockdClient:
        return LvmlockdClient(str(pair.socket_path(host)), timeout_s=timeout_s)

    def test_it_says_which_protocol_it_speaks(self, pair: Pair) -> None:
        with self.client(pair, 1) as one:
            assert one.version() == wire.VERSION == 1

    def test_lock_is_taken_converted_and_given_up(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.clients(pair) as (one, two):
            assert one.query_lock_lv(lv) is UN
            for mode in (EX, EX, SH, SH, EX, UN, UN, SH, UN):
                one.lock_lv(lv, mode)
                assert one.query_lock_lv(lv) is mode
                assert two.query_lock_lv(lv) is UN  # a host knows its own mode only

    def test_exclusive_keeps_another_host_from_exclusive(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.clients(pair) as (one, two):
            one.lock_lv(lv, EX)
            with pytest.raises(HeldElsewhere, match=f"ex of vg/{lv.lv_name} is refused: another host"):
                two.lock_lv(lv, EX)
            assert (one.query_lock_lv(lv), two.query_lock_lv(lv)) == (EX, UN)
            one.lock_lv(lv, UN)
            two.lock_lv(lv, EX)
            with pytest.raises(HeldElsewhere):
                one.lock_lv(lv, EX)
            two.lock_lv(lv, UN)

    def test_exclusive_keeps_another_host_from_shared(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.clients(pair) as (one, two):
            one.lock_lv(lv, EX)
            with pytest.raises(HeldElsewhere):
                two.lock_lv(lv, SH)
            assert (one.query_lock_lv(lv), two.query_lock_lv(lv)) == (EX, UN)
            one.lock_lv(lv, UN)

    def test_shared_by_two_hosts_keeps_both_from_exclusive(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.clients(pair) as (one, two):
            one.lock_lv(lv, EX)
            one.lock_lv(lv, SH)
            two.lock_lv(lv, SH)
            for each in (one, two):
                with pytest.raises(HeldElsewhere):
                    each.lock_lv(lv, EX)
                assert each.query_lock_lv(lv) is SH
            two.lock_lv(lv, UN)
            one.lock_lv(lv, EX)
            one.lock_lv(lv, UN)

    def test_persistent_lock_stays_when_its_connection_ends(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.client(pair, 1) as one:
            one.lock_lv(lv, EX)
        with self.clients(pair) as (one, two):
            assert one.query_lock_lv(lv) is EX
            with pytest.raises(HeldElsewhere):
                two.lock_lv(lv, EX)
            one.lock_lv(lv, UN)

    def test_other_lock_ends_with_its_connection(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.client(pair, 1) as one:
            one.lock_lv(lv, EX, persistent=False)
            assert one.query_lock_lv(lv) is EX
        with self.client(pair, 1) as one:
            deadline = time.monotonic() + PATIENCE_S
            while one.query_lock_lv(lv) is not UN:
                assert time.monotonic() < deadline, "it is held for nobody"

    def test_client_of_the_same_host_waits_for_another_one(self, pair: Pair) -> None:
        lv = pair.new_lv()
        taken = threading.Event()
        with self.client(pair, 1) as first, self.client(pair, 1) as second:
            first.lock_lv(lv, EX, persistent=False)

            def take() -> None:
                second.lock_lv(lv, EX)
                taken.set()

            waiting = threading.Thread(target=take)
            waiting.start()
            assert not taken.wait(0.2)
            first.lock_lv(lv, UN, persistent=False)
            waiting.join(PATIENCE_S)
            assert taken.is_set()
            assert first.query_lock_lv(lv) is EX
            first.lock_lv(lv, UN)

    def test_persistent_lock_outlives_one_of_a_client_on_top_of_it(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.clients(pair) as (one, two):
            one.lock_lv(lv, EX)
            with self.client(pair, 1) as second:
                second.lock_lv(lv, EX, persistent=False)
            assert one.query_lock_lv(lv) is EX
            with pytest.raises(HeldElsewhere):
                two.lock_lv(lv, EX)
            one.lock_lv(lv, UN)
            two.lock_lv(lv, EX)
            two.lock_lv(lv, UN)

    def test_vg_that_is_not_started_has_no_locks(self, pair: Pair) -> None:
        lv = pair.new_lv()
        other = LvLock("other", lv.lv_name, lv.lv_uuid, lv.vg_lock_args, lv.lv_lock_args)
        with self.client(pair, 1) as one:
            with pytest.raises(LockspaceInactive, match="VG other is not started"):
                one.query_lock_lv(other)
            with pytest.raises(LockspaceInactive, match="VG other is not started"):
                one.lock_lv(other, EX)

    def test_lock_of_a_type_that_the_vg_does_not_have_is_refused(self, pair: Pair) -> None:
        lv = pair.new_lv()
        with self.client(pair, 1) as one:
            for other in ("thin pool", "dlm"):
                wrong = dataclasses.replace(lv, lock_type=other)
                for asks in (one.query_lock_lv, lambda lock: one.lock_lv(lock, EX)):
                    with pytest.raises(LockManagerFailed) as raised:
                        asks(wrong)
                    assert raised.value.result == OpResult.INVALID
            assert one.query_lock_lv(lv) is UN

    def test_lock_at_the_place_of_another_one_is_refused(self, pair: Pair) -> None:
        lv, other = pair.new_lv(), pair.new_lv()
        strange = LvLock(lv.vg_name, lv.lv_name, lv.lv_uuid, lv.vg_lock_args, other.lv_lock_args)
        with self.client(pair, 1) as one:
            with pytest.raises(LockManagerFailed, match="sanlock refused it at") as raised:
                one.lock_lv(strange, EX)
            assert raised.value.result == wire.OpResult.LOCK_MANAGER_FAILED
            assert one.query_lock_lv(lv) is UN

    def test_failed_storage_is_said_and_a_lock_can_still_be_given_up(self, pair: Pair) -> None:
        lv, other = pair.new_lv(), pair.new_lv()
        with self.clients(pair) as (one, two):
            one.lock_lv(lv, EX)
            one.lock_lv(other, SH)
            pair.kill_vg(1)
            try:
                with pytest.raises(StorageFailed, match="storage of VG vg's leases failed"):
                    one.query_lock_lv(lv)
                for refused in (SH, EX):
                    with pytest.raises(StorageFailed):
                        one.lock_lv(lv, refused)
                one.lock_lv(lv, UN)
                two.lock_lv(lv, EX)
                with pytest.raises(HeldElsewhere):
                    two.lock_lv(other, EX)
                two.lock_lv(lv, UN)
            finally:
                pair.revive_vg(1, lv, other)
            assert (one.query_lock_lv(lv), one.query_lock_lv(other)) == (UN, UN)

    def test_unknown_request_gets_no_answer_and_the_next_one_does(self, pair: Pair) -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(pair.socket_path(1)))
            raw.sendall(wire.encode({"request": "nonsense", "cmd": "test"}))
            raw.settimeout(0.3)
            with pytest.raises(TimeoutError):
                raw.recv(1)
            raw.settimeout(PATIENCE_S)
            raw.sendall(wire.hello())
            assert wire.version_of(_message(raw)) == wire.VERSION

    def test_request_is_understood_in_pieces_and_a_second_one_is_dropped(self, pair: Pair) -> None:
        lv = pair.new_lv()
        query = wire.query_lock_lv(lv, command="test", pid=1)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(PATIENCE_S)
            raw.connect(str(pair.socket_path(1)))
            for at in range(0, len(query), 50):
                raw.sendall(query[at : at + 50])
                time.sleep(0.005)
            assert wire.Answer.decode(_message(raw)) == wire.Answer(0, UN)
            raw.sendall(query + query)
            assert wire.Answer.decode(_message(raw)) == wire.Answer(0, UN)
            raw.settimeout(0.3)
            with pytest.raises(TimeoutError):
                raw.recv(1)

    def test_nobody_there_is_no_answer(self, pair: Pair) -> None:
        nowhere = f"{pair.socket_path(1)}-not"
        with pytest.raises(NoAnswer, match="No such file or directory"):
            LvmlockdClient(nowhere).query_lock_lv(pair.new_lv())


def _message(raw: socket.socket) -> bytes:
    framer = wire.Framer()
    while not (messages := framer.feed(raw.recv(65536))):
        pass
    (message,) = messages
    return message
