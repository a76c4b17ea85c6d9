"""What stands behind a host block for people: the VM and the disk; never more than there is room for, whatever it says."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backends.base import OwnerNote
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.names import LeaseNames
from holdfast.model import Holder, Mode, OwnerName
from holdfast.ondisk.host_block import NOTE_BYTES_MAX, HostBlock, note_of

UUID = "be8b8a15-018b-5c59-b327-eb8a400af72d"


def encoded(name: str = "web1", disk: str = "/srv/images/web.raw") -> bytes:
    return owner_note.encode(OwnerNote(OwnerName(name, UUID, 1), 4711), 1_700_000_000.5, disk)


def holder(raw: bytes) -> Holder:
    return owner_note.decode(raw, host="alpha", host_id=1, mode=Mode.EXCLUSIVE, alive_s_ago=None)


def test_vm_and_disk_are_told_from_the_sector_that_was_written() -> None:
    raw = note_of(HostBlock().sector(512, encoded()))
    owner = holder(raw)
    assert (owner.name, owner.uuid, owner.pid, owner.since_wall_s) == ("web1", UUID, 4711, 1_700_000_000)
    assert (owner_note.vm_of(raw), owner_note.disk_of(raw)) == ("web1", "/srv/images/web.raw")


def test_vm_that_has_no_process_yet_is_named_with_the_libvirtd_that_starts_it() -> None:
    raw = owner_note.encode(OwnerNote(OwnerName("web1", UUID), 0, 0, 812), 1_700_000_000.5, "/srv/web.raw")
    owner = holder(note_of(HostBlock().sector(512, raw)))
    assert (owner.pid, owner.libvirtd) == (None, 812)
    assert f"VM web1 (uuid {UUID}, started by libvirtd, pid 812) on host alpha" in str(owner)
    assert owner_note.noted(raw).process is None, "libvirtd is no owner, whose end would free the lease"


@given(name=st.text(max_size=400), disk=st.text(max_size=400))
def test_whatever_they_are_called_it_fits_and_the_vm_goes_first(name: str, disk: str) -> None:
    raw = encoded(name, disk)
    assert len(raw) <= NOTE_BYTES_MAX
    owner = holder(raw)
    assert (owner.uuid, owner.pid) == (UUID, 4711)
    shown = name.encode("utf-8", "replace").decode()
    assert shown.startswith(owner.name)
    if owner.name != shown:
        assert not owner_note.disk_of(raw)


def test_disk_that_has_no_room_is_left_out() -> None:
    raw = encoded(disk="/" + 300 * "x")
    assert (holder(raw).name, owner_note.disk_of(raw)) == ("web1", "")


@pytest.mark.parametrize("raw", [b"", b"{", b'{"holdfast":1,"pid":"x"}', b'{"holdfast":1,\xff'])
def test_what_can_not_be_read_is_nothing(raw: bytes) -> None:
    assert (owner_note.vm_of(raw), owner_note.disk_of(raw), holder(raw).name) == ("", "", "")


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("alpha", "sanlock on host alpha (host_id 1), which writes no VM name, alive 0 s ago"),
        (
            "alpha.3f9c20b1a7d4",
            "a VM or process that left no owner record on host alpha.3f9c20b1a7d4 (host_id 1), alive 0 s ago",
        ),
        (
            "",
            "a VM or process that left no owner record on a host whose record can't be read (host_id 1), alive 0 s ago",
        ),
    ],
)
def test_holder_without_a_note_is_named_by_what_its_host_is(host: str, text: str) -> None:
    """The words used to be "another host or process that left no owner record on host alpha (host_id 1)"."""
    owner = owner_note.decode(b"", host=host, host_id=1, mode=Mode.EXCLUSIVE, alive_s_ago=0.2)
    assert str(owner) == text


def test_what_would_move_a_terminal_or_forge_a_line_of_the_log_is_spelled_out() -> None:
    raw = encoded("web\x1b[2J\n", "/srv/\x1b[2J")
    assert owner_note.vm_of(raw) == "web\\x1b[2J\\n"
    assert "VM web\\x1b[2J\\n (uuid" in str(holder(raw))
    assert owner_note.disk_of(raw) == ""


@pytest.mark.parametrize(("by", "believed"), [(NameBy.PATH_MD5, False), (NameBy.SCSI_WWID, True)])
def test_hint_is_believed_only_if_the_lease_could_be_named_so(by: NameBy, believed: bool) -> None:
    nothing_is_opened: Any = None
    names = LeaseNames("leases", "LS", by, nothing_is_opened, nothing_is_opened)
    lease = hashlib.md5(b"/srv/a").hexdigest()
    names.hint(lease, "/srv/b")
    assert names.path_of(lease) == ("/srv/b" if believed else lease)
    names.hint(lease, "/srv/a")
    assert names.path_of(lease) == "/srv/a"
    names.hint(lease, "")
    assert names.path_of(lease) == "/srv/a"
