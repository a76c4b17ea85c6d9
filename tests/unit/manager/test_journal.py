"""The journal's text: what it replays to, and what it makes of anything that is not a journal."""

from __future__ import annotations

import dataclasses
import errno

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal import COMPACT_LINES_MIN, Journal
from holdfast.manager.journal_extent import RECORD_BYTES, Extent, decode_extent, encode_extent
from holdfast.manager.journal_kinds import path_of, text_of
from holdfast.manager.journal_replay import SavedState, replay
from holdfast.model import Mode, Resource
from holdfast.testing.fakes import SimulatedAppendFile, SimulatedRecord

TEXTS = st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
IDS = st.integers(1, 4)
MODES = st.sampled_from((1, 2))
LINES: st.SearchStrategy[jn.Line] = st.one_of(
    st.builds(jn.LockspaceLine, TEXTS.map(text_of), st.booleans()),
    st.builds(jn.OwnerLine, IDS, st.integers(0, 9), st.integers(0, 9), TEXTS.map(text_of), st.just("u"), IDS),
    st.builds(jn.OwnerGoneLine, IDS),
    st.builds(
        jn.LockLine,
        IDS,
        st.just("file"),
        TEXTS.map(text_of),
        st.booleans(),
        MODES,
        st.lists(st.tuples(IDS, IDS), max_size=2).map(tuple),
        st.floats(0, 2e9),
    ),
    st.builds(jn.ClaimLine, IDS, IDS, TEXTS.map(text_of), TEXTS.map(text_of), MODES),
    st.builds(jn.UnclaimLine, IDS, IDS, TEXTS.map(text_of), TEXTS.map(text_of)),
    st.builds(jn.ModeLine, IDS, MODES),
)


def journal_on(file: SimulatedAppendFile, lines: list[jn.Line] | None = None) -> Journal:
    return Journal(file, boot="boot-1", host="alpha", snapshot=lambda: list(lines or []))


def content(state: SavedState) -> dict[str, object]:
    """What a state says, without how it was read."""
    fields = dataclasses.asdict(state)
    del fields["lines"], fields["damage"]
    return fields


@given(TEXTS)
def test_every_path_comes_back_from_its_journal_text(path: str) -> None:
    assert path_of(text_of(path)) == path
    assert text_of(path).isascii()


@given(st.lists(LINES, max_size=25), st.data())
def test_torn_last_line_loses_itself_and_nothing_before_it(lines: list[jn.Line], data: st.DataObject) -> None:
    raw = journal_on(SimulatedAppendFile()).image(lines)
    at = data.draw(st.integers(0, len(raw)))
    whole = raw[: raw.rfind(b"\n", 0, at) + 1]
    torn = replay(raw[:at])
    tail = raw[len(whole) : at]
    if raw[at : at + 1] == b"\n" and tail:
        whole = raw[: at + 1]  # only the line's end is missing: the line itself is whole
    assert content(torn) == content(replay(whole))
    if tail and whole == raw[: raw.rfind(b"\n", 0, at) + 1]:
        assert torn.damage


@given(st.binary(max_size=400))
@example(b'["mode",1,1,' + b"[" * 100_000)
@example(b'["mode",1,1,' + b"[" * 5000 + b"]" * 5000 + b"]\n")
@example(b'["lock",1,"b","/p",false,7,[],0.0]\n')
@example(b'["claim",9,9,"","",1]\n["unclaim",9,9,"",""]\n["mode",9,1]\n')
@example(b'["owner",' + b"9" * 5000 + b',1,1,"","",1]\n')
@example(b'["start",2,"boot","host"]\n')
@example(b"\xff\xfe\n{}\n[]\nnull\n")
def test_arbitrary_bytes_never_raise(raw: bytes) -> None:
    state = replay(raw)
    assert state.lines <= raw.count(b"\n") + 1


@given(st.lists(LINES, max_size=12), st.integers(0, 2000), st.integers(0, 255))
def test_journal_with_a_flipped_byte_never_raises(lines: list[jn.Line], at: int, value: int) -> None:
    raw = bytearray(journal_on(SimulatedAppendFile()).image(lines))
    raw[at % len(raw)] = value
    replay(bytes(raw))


@given(st.lists(LINES, max_size=25))
def test_claims_in_a_replayed_state_always_belong_to_a_lock_that_is_claimed(lines: list[jn.Line]) -> None:
    state = replay(journal_on(SimulatedAppendFile()).image(lines))
    assert all(lock.claims and all(lock.claims.values()) for lock in state.locks.values())


def claim(lock: int, owner: int, name: str, mode: Mode = Mode.EXCLUSIVE) -> list[jn.Line]:
    return [
        jn.OwnerLine(owner, 100 + owner, 5, f"vm{owner}", f"uuid-{owner}", owner),
        jn.LockLine(lock, "file", name, False, int(mode), ((1, lock),), 1.5),
        jn.ClaimLine(lock, owner, "", name, int(mode)),
    ]


def test_claim_is_replayed_with_its_owner_and_lock() -> None:
    file = SimulatedAppendFile()
    journal = journal_on(file)
    journal.compact()
    journal.append(*claim(1, 2, "/a"))
    state = journal.load()
    assert (state.boot, state.host, state.damage) == ("boot-1", "alpha", "")
    assert state.owners[2].process == (102, 5)
    assert state.owners[2].name == ("vm2", "uuid-2", 2)
    assert state.locks[1].claims == {2: {Resource("", "/a"): Mode.EXCLUSIVE}}
    assert state.locks[1].keys == ((1, 1),)


def test_owner_that_is_gone_takes_its_claims_along() -> None:
    lines = [*claim(1, 1, "/a"), *claim(2, 2, "/b"), jn.OwnerGoneLine(1)]
    state = replay(journal_on(SimulatedAppendFile()).image(lines))
    assert list(state.owners) == [2]
    assert list(state.locks) == [2]


def test_end_of_a_lock_names_the_processes_that_have_let_go_of_it() -> None:
    ended = [*claim(1, 1, "/a"), claim(1, 2, "/a")[0], jn.ClaimLine(1, 2, "", "/a", 1)]
    ended += [jn.UnclaimLine(1, 1, "", "/a"), jn.OwnerGoneLine(1), jn.OwnerGoneLine(2)]
    state = replay(journal_on(SimulatedAppendFile()).image(ended))
    assert state.ended_keys == {(1, 1): {(101, 5), (102, 5)}}
    again = replay(journal_on(SimulatedAppendFile()).image([*ended, *claim(1, 3, "/a")]))
    assert again.ended_keys == {}, "somebody has it again"


def test_lock_that_was_taken_later_ends_an_earlier_one_of_the_same_file_whose_end_cannot_be_read() -> None:
    """Two locks of one name would be ended twice (found by seed 1420)."""
    lines = [*claim(1, 1, "/a"), *claim(2, 2, "/a")]
    lines[4] = jn.LockLine(2, "file", "/a", False, 1, ((1, 1),), 2.5)
    state = replay(journal_on(SimulatedAppendFile()).image(lines))
    assert list(state.locks) == [2]


def test_line_behind_one_that_was_cut_is_read_although_the_journal_could_not_be_rewritten() -> None:
    """It would have become part of the cut one, and the owner of a lock be lost with it (found by seed 3233)."""
    whole = journal_on(SimulatedAppendFile()).image(claim(1, 1, "/a"))
    file = SimulatedAppendFile(whole[: len(whole) // 2])
    journal = journal_on(file)
    assert journal.load().damage
    file.room_bytes = 1
    journal.compact()
    file.room_bytes = None
    journal.append(*claim(2, 2, "/b"))
    state = journal.load()
    assert state.owners[2].name == ("vm2", "uuid-2", 2)
    assert 2 in state.locks[2].claims


def test_journal_that_lacks_the_end_of_its_last_line_is_cut_although_every_line_can_be_read() -> None:
    """Each append ends with one: what came after it is gone (found by seed 52002275)."""
    whole = journal_on(SimulatedAppendFile()).image(claim(1, 1, "/a"))
    assert replay(whole).is_whole
    assert not replay(whole[:-1]).is_whole


def test_journal_that_lost_its_only_checksum_is_not_taken_for_one_of_an_older_daemon() -> None:
    whole = journal_on(SimulatedAppendFile()).image(claim(1, 1, "/a"))
    lines = whole.splitlines(keepends=True)
    for kept in range(len(lines)):
        assert not replay(b"".join(lines[:kept])).is_whole, kept
    assert replay(whole).is_whole


def test_foreign_line_is_passed_over_and_told() -> None:
    journal = journal_on(SimulatedAppendFile())
    raw = (
        journal.image(claim(1, 1, "/a")) + b'["news","from the future"]\n' + journal.image(claim(2, 2, "/b"))
    )
    state = replay(raw)
    assert list(state.locks) == [1, 2]
    assert "line 7" in state.damage


def test_journal_of_another_version_names_both_versions_and_no_boot() -> None:
    state = replay(b'["start",2,"boot-1","alpha"]\n')
    assert state.boot == ""
    assert "version 2, this program knows 1" in state.damage


def test_full_disk_refuses_the_new_line_and_keeps_the_old_ones() -> None:
    file = SimulatedAppendFile()
    journal = journal_on(file, claim(1, 1, "/a"))
    journal.compact()
    file.room_bytes = file.size_bytes + 3
    before = file.raw
    with pytest.raises(OSError, match="No space"):
        journal.append(*claim(2, 2, "/b"))
    assert file.raw == before
    assert journal.failing == "No space left on device"
    file.room_bytes = None
    journal.append(*claim(2, 2, "/b"))
    assert journal.failing == ""
    assert list(journal.load().locks) == [1, 2]


def test_end_that_could_not_be_written_is_written_anew_with_the_next_line() -> None:
    state: list[jn.Line] = [*claim(1, 1, "/a"), *claim(2, 2, "/b")]
    file = SimulatedAppendFile()
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: state)
    journal.append(*state)
    file.room_bytes = 10  # not even a rewrite fits
    del state[:3]  # owner 1 lets go
    journal.append_end(jn.UnclaimLine(1, 1, "", "/a"))
    assert list(journal.load().locks) == [1, 2], "it claims too much, never too little"
    file.room_bytes = None
    state += claim(3, 3, "/c")
    journal.append(*claim(3, 3, "/c"))
    assert list(journal.load().locks) == [2, 3]


def test_end_that_could_not_be_written_is_written_anew_also_after_other_lines_that_failed() -> None:
    state: list[jn.Line] = [*claim(1, 1, "/a"), *claim(2, 2, "/b")]
    file = SimulatedAppendFile()
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: state)
    journal.append(*state)
    file.room_bytes = 10
    del state[:3]  # owner 1 lets go
    journal.append_end(jn.UnclaimLine(1, 1, "", "/a"))
    with pytest.raises(OSError, match="No space"):
        journal.append(*claim(3, 3, "/c"))
    file.room_bytes = None
    state += claim(4, 4, "/d")
    journal.append(*claim(4, 4, "/d"))
    assert list(journal.load().locks) == [2, 4]


def after_a_start_on_a_full_disk() -> tuple[SimulatedAppendFile, list[jn.Line], Journal]:
    """The last daemon's journal names owners 1, 2 and 3; 3 is over, and the next daemon could not rewrite the file yet."""
    state: list[jn.Line] = [*claim(1, 1, "/a"), *claim(2, 2, "/b")]
    file = SimulatedAppendFile()
    journal_on(file).append(*state, *claim(3, 3, "/c"))
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: state)
    journal.load()
    file.room_bytes = 10
    assert not journal.compact()
    return file, state, journal


def test_end_that_a_journal_which_never_fitted_lacks_is_written_with_the_next_line() -> None:
    file, state, journal = after_a_start_on_a_full_disk()
    del state[:3]  # owner 1 lets go
    journal.append_end(jn.UnclaimLine(1, 1, "", "/a"))
    file.room_bytes = None
    journal.append(jn.ModeLine(2, 2))
    assert list(journal.load().locks) == [2]


def test_journal_that_never_fitted_is_rewritten_with_the_next_line() -> None:
    file, _, journal = after_a_start_on_a_full_disk()
    assert list(journal.load().locks) == [1, 2, 3]
    file.room_bytes = None
    journal.append(jn.ModeLine(2, 2))
    assert list(journal.load().locks) == [1, 2]


def test_journal_is_rewritten_when_it_has_outgrown_the_state() -> None:
    state: list[jn.Line] = claim(1, 1, "/a")
    file = SimulatedAppendFile()
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: state)
    journal.append(*state)
    largest = 0
    for _ in range(3 * COMPACT_LINES_MIN):
        journal.append(jn.ModeLine(1, 2))
        largest = max(largest, file.raw.count(b"\n"))
    assert largest <= COMPACT_LINES_MIN + 2, "one line over, and the start line"
    assert content(journal.load()) == content(replay(journal.image(state)))


def test_line_that_makes_the_journal_too_long_is_not_lost_in_its_rewrite() -> None:
    """The snapshot is taken before the line: the owner and claim that it tells are not in there yet."""
    state: list[jn.Line] = claim(1, 1, "/a")
    file = SimulatedAppendFile()
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: list(state))
    journal.append(*state)
    for number in range(2, COMPACT_LINES_MIN + 10):
        fresh = claim(number, number, f"/{number}")
        journal.append(*fresh)
        state += fresh
        assert number in replay(file.raw[-4096:]).locks or number in journal.load().locks
    assert len(journal.load().locks) == COMPACT_LINES_MIN + 9


# --- the extent beside it ---


class Kept:
    """One journal and its extent, as several daemons write them."""

    def __init__(self) -> None:
        self.file, self.record = SimulatedAppendFile(), SimulatedRecord()
        self.state: list[jn.Line] = []

    def daemon(self, boot: str = "boot-1") -> tuple[Journal, SavedState]:
        journal = Journal(
            self.file, boot=boot, host="alpha", snapshot=lambda: list(self.state), extent=self.record
        )
        saved = journal.load()
        journal.compact()
        return journal, saved

    def doubt(self) -> str:
        return self.daemon()[1].doubt


def kept(claims: int = 3) -> Kept:
    """A daemon that was killed after so many appends."""
    k = Kept()
    journal, _ = k.daemon()
    for number in range(1, claims + 1):
        journal.append(*claim(number, number, f"/{number}"))
    return k


def ends(raw: bytes) -> list[int]:
    """Where an append ends: what is cut there replays without a fault."""
    lines, at = raw.splitlines(keepends=True), 0
    found = []
    for line in lines:
        at += len(line)
        if line.startswith(b'["sum",') and not line.startswith(b'["sum",0]'):
            found.append(at)
    return found


def test_journal_that_lost_whole_appends_is_not_whole() -> None:
    raw = kept().file.raw
    *cuts, whole = ends(raw)
    assert whole == len(raw)
    for at in cuts:
        k = kept()
        k.file.raw = raw[:at]
        assert replay(k.file.raw).is_whole, "it looks whole by itself"
        assert "its end is missing" in k.doubt()


def test_older_copy_of_a_journal_is_not_whole() -> None:
    k = kept()
    older = k.file.raw
    k.daemon()
    k.file.raw = older
    assert "an older copy" in k.doubt()
    assert k.doubt() == "", "what was believed of it stands in the next one"


def test_daemon_that_was_killed_before_it_wrote_the_extent_leaves_a_whole_journal() -> None:
    k = kept(2)
    before = k.record.raw
    further = kept(3)
    further.record.raw = before
    assert further.doubt() == ""
    rewritten = kept(2)
    rewritten.daemon()
    rewritten.record.raw = before
    assert rewritten.doubt() == ""


@pytest.mark.parametrize("raw", [b"", b"?", b'["boot-1",1,0,7]', encode_extent(Extent("boot-0", 1, 0))])
def test_extent_that_is_lost_leaves_doubt(raw: bytes) -> None:
    k = kept()
    k.record.raw = raw
    assert "journal.extent" in k.doubt()


def fails_once_more(k: Kept) -> str:
    """A daemon that can't rewrite the journal; its doubt."""
    k.file.room_bytes, room = 0, k.file.room_bytes
    doubt = k.doubt()
    k.file.room_bytes = room
    return doubt


def test_lost_end_is_seen_after_rewriting_has_failed() -> None:
    """Found by seed 122012907 with forced habits: a full disk had the extent say nothing of the journal's length."""
    raw = kept().file.raw
    for at in ends(raw)[:-1]:
        for while_it_runs in (False, True):
            k = Kept()
            journal, _ = k.daemon()
            for number in range(1, 4):
                journal.append(*claim(number, number, f"/{number}"))
            if while_it_runs:
                k.file.room_bytes = 0
                assert not journal.compact()
                k.file.room_bytes = None
            else:
                assert fails_once_more(k) == ""
            k.file.raw = raw[:at]
            assert "its end is missing" in fails_once_more(k)
            assert "its end is missing" in k.doubt(), "a daemon that could not rewrite it ends no doubt"


@pytest.mark.parametrize("record", [b"", encode_extent(Extent("boot-0", 1, 0))])
def test_doubt_about_a_lost_extent_stays_until_the_journal_is_rewritten(record: bytes) -> None:
    k = kept()
    k.record.raw = record
    assert fails_once_more(k) != ""
    assert fails_once_more(k) != ""
    assert k.doubt() != ""
    assert k.doubt() == ""


def test_journal_that_could_not_be_read_is_as_long_as_it_was() -> None:
    k = kept()
    raw = k.file.raw

    def fail() -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    read, k.file.read = k.file.read, fail  # type: ignore[method-assign]
    assert "can't be read" in fails_once_more(k)
    k.file.read = read  # type: ignore[method-assign]
    k.file.raw = raw[: ends(raw)[0]]
    assert "its end is missing" in k.doubt()


def test_journal_of_an_older_release_is_whole_unless_a_daemon_of_today_ran_after_it() -> None:
    k = Kept()
    k.file.raw = journal_on(SimulatedAppendFile()).image(claim(1, 1, "/a"))
    older = k.file.raw
    assert k.doubt() == ""
    k.file.raw = older
    assert "an older copy" in k.doubt()


def test_extent_that_cannot_be_written_costs_no_claim_and_leaves_no_doubt() -> None:
    k = kept()

    def fail(raw: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write, k.record.write = k.record.write, fail  # type: ignore[method-assign]
    journal, _ = k.daemon()
    journal.append(*claim(9, 9, "/9"))
    k.record.write = write  # type: ignore[method-assign]
    k.record.raw = b""
    _, saved = k.daemon()
    assert saved.doubt == ""
    assert 9 in saved.locks


def test_each_extent_replaces_the_one_before_exactly() -> None:
    for size_bytes in (0, 1 << 62):
        raw = encode_extent(Extent("0" * 36, 1 << 40, size_bytes))
        assert len(raw) == RECORD_BYTES
        assert decode_extent(raw) == Extent("0" * 36, 1 << 40, size_bytes)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_extent(raw: bytes) -> None:
    assert decode_extent(raw) is None


def test_rewrite_that_fails_leaves_the_old_journal_in_use() -> None:
    state: list[jn.Line] = claim(1, 1, "/a")
    file = SimulatedAppendFile()
    journal = Journal(file, boot="boot-1", host="alpha", snapshot=lambda: state)
    journal.append(*state)
    before = file.raw
    file.room_bytes = 10
    journal.compact()
    assert file.raw == before
