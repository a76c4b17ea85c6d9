"""What a host says in its other lockspaces when it has lost one, and in its record there."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.unit.supervision.test_host_record_files import ALPHA, ME, TERM, Clock, Files

from holdfast.ondisk import host_record
from holdfast.ondisk.host_record import END_BYTES_MAX, RECORD_BYTES_MAX, HostRecord
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.lockspace_news import Joined, Leaving, LockspaceNews, Lost, UsersGone
from holdfast.supervision.lost_elsewhere import LostElsewhere

AT = 1_700_000_000.0


def lost(name: str, reason: str = "silent") -> Lost:
    return Lost(name, reason, Timing(10, 60), Instant(5.0), None)


def heard(said: LostElsewhere, news: LockspaceNews, *, fences: bool = True) -> bool:
    return said.heard(news, wall_s=AT, fences=fences)


def test_loss_is_said_in_the_others_until_it_is_over() -> None:
    said = LostElsewhere()
    assert heard(said, lost("A", "silent\n"))
    assert said.beside("A") == ""
    assert said.beside("B") == (
        "2023-11-14 22:13:20 UTC: lockspace A is lost (silent\\n); its watchdog resets it unless its VMs there end in time"
    )
    assert not heard(said, Leaving("A"))
    assert not heard(said, UsersGone("B"))
    assert heard(said, lost("B"), fences=False)
    assert "lockspace B" in said.beside("A") and "nothing resets it" in said.beside("A")
    assert said.beside("C").count("is lost") == 2
    assert heard(said, UsersGone("A"))
    assert heard(said, Joined("B", TERM, resumed=False))
    assert said.beside("C") == ""


def test_what_is_said_is_bounded() -> None:
    said = LostElsewhere()
    for number in range(40):
        heard(said, lost(f"space{number}", "é" * 50))
    assert len(said.beside("x").encode()) <= END_BYTES_MAX


@pytest.mark.parametrize("text", ["x" * END_BYTES_MAX, '"' * END_BYTES_MAX, "é" * (END_BYTES_MAX // 2)])
def test_record_with_both_texts_can_be_read(text: str) -> None:
    longest = msgspec.structs.replace(ALPHA, node='"' * 255, host_name='"' * 40, last_end=text, trouble=text)
    raw = host_record.encode(longest)
    assert len(raw) <= RECORD_BYTES_MAX
    found = host_record.decode(raw)
    assert found is not None
    assert found.node == longest.node
    assert found in (longest, msgspec.structs.replace(longest, last_end="", trouble=""))


def test_text_that_is_too_long_is_no_record() -> None:
    with pytest.raises(ValueError, match="no possible record"):
        host_record.encode(msgspec.structs.replace(ALPHA, trouble="x" * (END_BYTES_MAX + 1)))


def test_trouble_is_written_at_once_by_a_member_and_by_nobody_else() -> None:
    async def scene() -> None:
        files = Files()
        records = HostRecords("A", "/srv/A", files, ME, "it was stopped")
        await records.tell("not a member yet")
        assert not files.raw
        present = True
        seen: list[HostRecord] = []

        def written() -> HostRecord:
            record = host_record.decode(files.raw[2])
            assert record is not None
            return record

        def stops() -> None:
            nonlocal present
            present = False
            seen.append(written())

        tending = records.tend(TERM, views=list, is_present=lambda: present, clock=Clock(stops))
        await tending
        assert [(each.last_end, each.trouble) for each in seen] == [("it was stopped", "not a member yet")]
        files.raw.clear()
        await records.tell("after its end")
        assert not files.raw, "the host id may be another host's by now"

    asyncio.run(scene())


def test_trouble_of_a_member_is_in_its_record_before_the_next_renewal() -> None:
    async def scene() -> None:
        files = Files()
        records = HostRecords("A", "/srv/A", files, ME)
        asleep = asyncio.Event()

        class Sleeps(Clock):
            async def sleep(self, seconds: float) -> None:
                asleep.set()
                await asyncio.Event().wait()

        tending = asyncio.create_task(
            records.tend(TERM, views=list, is_present=lambda: True, clock=Sleeps(lambda: None))
        )
        await asleep.wait()
        await records.tell("B is lost")
        record = host_record.decode(files.raw[2])
        assert record is not None and record.trouble == "B is lost"
        files.raw.clear()
        await records.tell("B is lost")
        assert not files.raw, "nothing new"
        tending.cancel()

    asyncio.run(scene())
