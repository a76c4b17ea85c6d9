"""The owner record: fits its slot whatever the name, comes back, and never mistakes foreign content for its own."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.backends.file import owner_record as rec
from holdfast.model import Mode, OwnerName

TEXT = st.text(max_size=60, alphabet=st.characters(exclude_categories=["Cs"]))
LONG = st.integers(0, 2000).map(lambda n: "n" * n) | st.integers(0, 600).map(lambda n: "\x01é" * n)


@given(
    TEXT | LONG, st.uuids().map(str), TEXT, st.integers(0, 2**31), st.sampled_from(Mode), st.floats(0, 4e9)
)
def test_record_fits_its_slot_and_comes_back_but_for_a_cut_name(
    name: str, uuid: str, host: str, pid: int, mode: Mode, since: float
) -> None:
    raw = rec.encode(OwnerName(name, uuid), host=host, pid=pid, mode=mode, since_wall_s=since)
    assert len(raw) == rec.SLOT_BYTES
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    (holder,) = rec.decode(raw)
    assert name.startswith(holder.name)
    assert (holder.uuid, holder.host, holder.pid, holder.mode) == (uuid, host, pid or None, mode)
    assert holder.since_wall_s == round(since, 3)
    assert rec.is_ours(raw)
    if len(name.encode()) < 100:
        assert holder.name == name


def test_host_too_long_for_any_record_leaves_a_blank_slot() -> None:
    raw = rec.encode(OwnerName("n"), host="h" * 1000, pid=1, mode=Mode.SHARED, since_wall_s=0.0)
    assert len(raw) == rec.SLOT_BYTES
    assert rec.decode(raw) == []


@given(st.binary(max_size=3 * rec.SLOT_BYTES))
@example(b'{"holdfast":1,"x":' + b"[" * 490)
@example(b'{"holdfast":1,' + b"\xff" * 20)
@example(b'{"holdfast":1,"host":1,"pid":"x","mode":"shared","since":0}')
@example(b'{"holdfast":1,"host":"h","pid":1,"mode":"shared","since":1e308}')
def test_any_content_is_read_without_a_word(raw: bytes) -> None:
    for holder in rec.decode(raw):
        assert str(holder)


@given(st.binary(min_size=1, max_size=100))
def test_only_empty_blank_or_own_content_may_be_written_over(raw: bytes) -> None:
    stripped = raw.lstrip(b" \n\0")
    assert rec.is_ours(raw) == (not stripped or stripped.startswith(b'{"holdfast":1,'))


@given(st.lists(st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"])), max_size=5))
def test_readers_have_slots_of_their_own_behind_the_writers(hosts: list[str]) -> None:
    assert all(1 <= rec.slot_of(h, Mode.SHARED) < rec.SLOTS_MAX for h in hosts)
    assert all(rec.slot_of(h, Mode.EXCLUSIVE) == 0 for h in hosts)


def test_records_between_foreign_and_blank_slots_are_found() -> None:
    one = rec.encode(OwnerName("one"), host="a", pid=1, mode=Mode.SHARED, since_wall_s=1.0)
    raw = rec.BLANK + one + b"x" * rec.SLOT_BYTES + bytes(rec.SLOT_BYTES) + one[:40]
    assert [h.name for h in rec.decode(raw)] == ["one"]


def test_disk_is_left_out_where_there_is_no_room_and_the_rest_stays() -> None:
    owner = OwnerName("web1", "u")
    for disk, kept in (("/srv/a.img", "/srv/a.img"), ("/" + "d" * 600, ""), ("/srv/\udcff.img", "")):
        raw = rec.encode(owner, host="a", pid=1, start_ticks=5, mode=Mode.SHARED, since_wall_s=1.0, disk=disk)
        (holder,) = rec.decode(raw)
        assert (holder.name, holder.start_ticks, holder.disk) == ("web1", 5, kept)
