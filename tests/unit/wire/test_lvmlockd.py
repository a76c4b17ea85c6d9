"""Messages of lvmlockd's socket, with bytes that the real lvm2 2.03.16 and its lvmlockd have exchanged."""

from __future__ import annotations

import pytest

from holdfast.wire import lvmlockd as wire
from holdfast.wire.lvmlockd import Answer, Framer, LvLock, MalformedText, Mode

LV = LvLock("vg", "lv1", "Quer4k-NiAF-oDZE-WiXt-AM2o-SlpR-B8Yhqb", "1.0.0:lvmlock", "1.0.0:70254592")
LVCHANGES_REQUEST = (
    b'request="lock_lv"\ncmd ="lvchange"\npid =27257\nmode ="ex"\nopts ="persistent"\nvg_name ="vg"\nlv_name ="lv1"\n'
    b'lv_uuid ="Quer4k-NiAF-oDZE-WiXt-AM2o-SlpR-B8Yhqb"\nvg_lock_type ="sanlock"\nvg_lock_args ="1.0.0:lvmlock"\n'
    b'lv_lock_args ="1.0.0:70254592"\n\n##\n'
)
HELLOS_ANSWER = b'response = "OK"\nresult = 0\nprotocol = "lvmlockd"\nversion = 1\n\n##\n'
LOCKS_ANSWER = (
    b'response = "OK"\nop = 7\nlock_type = "sanlock"\nop_result = -11\nlm_result = -11\n'
    b'result_flags = "none"\n\n##\n'
)
QUERYS_ANSWER = b'response = "OK"\nop = 23\nop_result = 0\nlock_type = "sanlock"\nmode = "sh"\n\n##\n'


def only(raw: bytes) -> bytes:
    (message,) = Framer().feed(raw)
    return message


def test_request_has_the_keys_of_lvchange() -> None:
    ours = wire.lock_lv(LV, Mode.EXCLUSIVE, persistent=True, command="lvchange", pid=27257)
    assert wire.decode(only(ours)) == wire.decode(only(LVCHANGES_REQUEST))
    assert list(wire.decode(only(ours))) == list(wire.decode(only(LVCHANGES_REQUEST)))
    assert ours.endswith(b'lv_lock_args = "1.0.0:70254592"\n\n##\n')


def test_answers_of_the_real_one_are_understood() -> None:
    assert wire.version_of(only(HELLOS_ANSWER)) == 1
    assert Answer.decode(only(LOCKS_ANSWER)) == Answer(-11)
    assert Answer.decode(only(QUERYS_ANSWER)) == Answer(0, Mode.SHARED)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_are_found_however_the_bytes_come(size: int) -> None:
    stream, framer = HELLOS_ANSWER + LOCKS_ANSWER + QUERYS_ANSWER, Framer()
    found = [message for at in range(0, len(stream), size) for message in framer.feed(stream[at : at + size])]
    assert found == [only(each) for each in (HELLOS_ANSWER, LOCKS_ANSWER, QUERYS_ANSWER)]


def test_message_without_an_end_is_not_kept_for_ever() -> None:
    framer = Framer()
    framer.feed(b"x" * wire.MESSAGE_BYTES_MAX)
    with pytest.raises(MalformedText, match="longer than"):
        framer.feed(b"x")


@pytest.mark.parametrize("raw", [b"protocol", b'response = "OK"\nprotocol = "other"\nversion = 1\n', b""])
def test_what_is_no_lvmlockd_is_said(raw: bytes) -> None:
    with pytest.raises(MalformedText):
        wire.version_of(raw)
