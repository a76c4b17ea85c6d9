"""Several copies of this host's incarnation: which one counts, and what is said of one that can't be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from holdfast.supervision.host_identity import REMOVED, Incarnation, decode_term, encode_term
from holdfast.supervision.incarnation_copies import IncarnationCopies, copy_path, lockspace_of_copy
from holdfast.system.files.state_file import StateFile

BOOT = "boot-2"


def term(**changes: object) -> Incarnation:
    known = Incarnation(
        lockspace="A",
        host_id=3,
        generation=7,
        host_name="alpha.0123456789ab",
        boot=BOOT,
        machine="m",
        io_timeout_s=10,
        fire_timeout_s=60,
        joined_at=100.0,
    )
    return msgspec.structs.replace(known, **changes)


class Copy:
    """One file that may refuse to be written."""

    def __init__(self, *content: Incarnation, refuses: bool = False) -> None:
        self.raw = msgspec.json.encode(content[0]) if content else b""
        self.refuses = refuses

    def read(self) -> bytes:
        return self.raw

    def replace(self, raw: bytes) -> None:
        if self.refuses:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file")
        self.raw = raw


def test_one_copy_is_enough() -> None:
    assert IncarnationCopies("A", [Copy(), Copy(term())]).newest(BOOT) == term()
    carried = msgspec.json.encode(term())
    assert IncarnationCopies("A", [Copy()], lambda: [carried]).newest(BOOT) == term()
    assert IncarnationCopies("A", [Copy(), Copy()]).newest(BOOT) is None


def test_copy_of_this_boot_counts_more_than_a_later_one_of_another_boot() -> None:
    old = term(boot="boot-1", joined_at=9999.0, generation=6)
    assert IncarnationCopies("A", [Copy(old), Copy(term())]).newest(BOOT) == term()
    assert IncarnationCopies("A", [Copy(old), Copy()]).newest(BOOT) == old


def test_latest_copy_of_this_boot_counts() -> None:
    stale = term(generation=6, joined_at=50.0)
    assert IncarnationCopies("A", [Copy(stale), Copy(term())]).newest(BOOT) == term()
    assert IncarnationCopies("A", [Copy(term()), Copy(stale)]).newest(BOOT) == term()


def test_copy_of_another_lockspace_does_not_count() -> None:
    assert IncarnationCopies("A", [Copy(term(lockspace="B"))]).newest(BOOT) is None


def test_copy_with_a_flipped_bit_counts_as_lost_whatever_it_says() -> None:
    """A name with another digit is an incarnation that is over, and its VMs would be stopped (found by seed 2)."""
    copy = Copy()
    assert IncarnationCopies("A", [copy]).write(term()) == ""
    whole = copy.raw
    for at in range(len(whole)):
        for bit in range(8):
            damaged = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
            assert decode_term(damaged) in (None, term()), damaged


def test_copy_of_an_older_daemon_counts_without_a_checksum() -> None:
    assert decode_term(msgspec.json.encode(term())) == term()


def test_copy_that_cannot_be_written_is_named_and_the_others_are_written() -> None:
    full, good = Copy(refuses=True), Copy()
    said = IncarnationCopies("A", [full, good]).write(term())
    assert "/full/file" in said
    assert "No space left" in said
    assert decode_term(good.raw) == term()


@pytest.mark.parametrize(
    "changes",
    [
        {"host_id": 0},
        {"host_id": -3},
        {"host_id": 2001},
        {"generation": 0},
        {"generation": 1 << 64},
        {"io_timeout_s": 0},
        {"io_timeout_s": 256},
        {"fire_timeout_s": 0},
        {"host_name": ""},
        {"host_name": "x" * 49},
    ],
)
def test_incarnation_with_an_impossible_number_is_no_incarnation(changes: dict[str, object]) -> None:
    assert decode_term(msgspec.json.encode(term(**changes))) is None


def test_damaged_files_are_no_incarnation(tmp_path: Path) -> None:
    path = tmp_path / "lockspace-A.json"
    copies = IncarnationCopies("A", [StateFile(str(path))])
    assert copies.newest(BOOT) is None
    assert copies.write(term()) == ""
    assert copies.newest(BOOT) == term()
    for raw in (b"\0" * 100, b"{", b"[]", b"\xff", path.read_bytes()[:-20]):
        path.write_bytes(raw)
        assert copies.newest(BOOT) is None


def test_copy_that_has_this_very_incarnation_will_do_on_a_full_disk() -> None:
    """After a restart nothing but when it was resumed is another: VMs that are paused get their leases back."""
    full = Copy(term(joined_at=50.0), refuses=True)
    assert IncarnationCopies("A", [Copy(), full]).write(term()) == ""
    for other in (term(generation=6), term(boot="boot-1"), term(io_timeout_s=5)):
        failed = IncarnationCopies("A", [Copy(), Copy(other, refuses=True)]).write(term())
        assert failed == "/full/file: No space left on device"


def test_copy_says_where_a_lockspace_of_clients_is() -> None:
    placed = term(clients_place="1048576:/dev/mapper/vg-lvmlock")
    raw = encode_term(placed).encode()
    assert decode_term(raw) == placed
    for at in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[at] ^= 1 << bit
            found = decode_term(bytes(flipped))
            assert found is None or found.clients_place == placed.clients_place, bytes(flipped)
    assert b"clients_place" not in encode_term(term()).encode(), "as before, for a configured one"


def test_copies_say_that_a_lockspace_of_clients_was_left() -> None:
    stale, other = Copy(), Copy()
    IncarnationCopies("A", [stale, other]).write(term(clients_place="0:/a"))
    left = IncarnationCopies("A", [stale, other]).forget_place(BOOT, now=200.0)
    assert left == term(clients_place=REMOVED, joined_at=200.0)
    stale.raw = encode_term(term(clients_place="0:/a")).encode()
    assert IncarnationCopies("A", [stale, other]).newest(BOOT) == left, "it is the later one"
    assert IncarnationCopies("A", [other]).forget_place(BOOT, now=300.0) is None, "it was left before"
    assert IncarnationCopies("A", [stale]).forget_place("boot-3", now=300.0) is None
    assert IncarnationCopies("A", [Copy(term())]).forget_place(BOOT, now=300.0) is None


@pytest.mark.parametrize("name", ["A", "a/b", "../../etc", "50%", "%2F", "ä b", "lockspace-.json"])
def test_each_lockspace_has_one_file_whatever_its_name(name: str) -> None:
    path = copy_path("/run/holdfast", name)
    directory, slash, file = path.rpartition("/")
    assert (directory, slash) == ("/run/holdfast", "/")
    assert lockspace_of_copy(file) == name


@pytest.mark.parametrize("name", ["journal", "lockspace-A.json.tmp", "lockspaces.json", "xlockspace-A.json"])
def test_other_files_are_no_copies(name: str) -> None:
    assert lockspace_of_copy(name) == ""
