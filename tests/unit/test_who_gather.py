"""`holdfast who`: what can't be read, of real files and sockets, becomes evidence that leaves nothing free."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from holdfast.backends.naming import indirect_name
from holdfast.cli.who import gather
from holdfast.cli.who.evidence import Evidence, JournalClaim, NotRunning, OwnerRecords, Trial, Unreadable
from holdfast.cli.who.gather import Sources
from holdfast.cli.who.inquiry import ask
from holdfast.cli.who.report import about_disk
from holdfast.cli.who.verdict import conclude
from holdfast.config import Config
from holdfast.manager.journal_kinds import VERSION, ClaimLine, Line, LockLine, OwnerLine, StartLine
from holdfast.model import Mode
from holdfast.system.host.process import boot_id, start_ticks


class Place:
    """A disk, a directory of lock files, and a configuration that names both; no daemon runs."""

    def __init__(self, place: Path) -> None:
        self.root = place
        self.disk = place / "disk.img"
        self.disk.touch()
        self.locks = place / "locks"
        self.locks.mkdir()
        self.run_dir = place / "run"
        self.run_dir.mkdir()
        self.lock_file = self.locks / indirect_name(str(self.disk))
        self.config = Config(
            run_dir=str(self.run_dir),
            state_dir=str(place / "state"),
            backend={"shared": {"driver": "file", "directory": str(self.locks)}},
        )
        self.journal = Path(self.config.journal_path)
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.socket = str(place / "socket")

    def evidence(self) -> Evidence:
        with Sources(self.config, self.socket, str(self.root)) as sources:
            return sources.disk(str(self.disk))

    def state(self) -> str:
        return conclude(self.evidence()).state


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_sources_that_have_nothing_are_empty_and_the_disk_is_free(place: Place) -> None:
    e = place.evidence()
    assert isinstance(e.daemon, NotRunning)
    assert (e.journal, e.directories, e.records, e.leases, e.uses) == ((), (), (), (), ())
    assert e.trial == (Trial(str(place.disk), False),)
    place.lock_file.touch()
    e = place.evidence()
    assert e.records == (OwnerRecords(str(place.lock_file), ()),)
    assert e.trial == (Trial(str(place.lock_file), False),)
    assert conclude(e).state == "free"


def line(value: Line) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def test_journal_that_is_damaged_proves_a_lock_but_never_that_there_is_none(place: Place) -> None:
    start = StartLine(VERSION, boot_id(), "alpha")
    pid, mode = os.getpid(), int(Mode.EXCLUSIVE)
    owner = OwnerLine(1, pid, start_ticks(pid), "web1", "u1", 1)
    lock = LockLine(2, "shared", str(place.lock_file), True, mode, (), 1.0)
    claim = ClaimLine(2, 1, "", str(place.disk), mode)
    whole = b"".join(line(each) for each in (start, owner, lock, claim))
    place.journal.write_bytes(whole)
    assert place.evidence().journal == (JournalClaim(Mode.EXCLUSIVE, "web1", pid, True),)
    place.journal.write_bytes(whole + b"not a line\n")
    assert place.evidence().journal == (JournalClaim(Mode.EXCLUSIVE, "web1", pid, True),)
    place.journal.write_bytes(line(start) + b"not a line\n")
    e = place.evidence()
    assert isinstance(e.journal, Unreadable)
    assert conclude(e).headline == "can't be told: the journal can't be read"
    place.journal.write_bytes(line(StartLine(VERSION, "another", "alpha")) + b"not a line\n")
    assert place.state() == "free", "the locks of another boot are gone"
    place.journal.unlink()
    place.journal.mkdir()
    assert isinstance(place.evidence().journal, Unreadable)


def test_directory_that_can_not_be_searched_may_have_a_lock_file(place: Place) -> None:
    place.locks.rmdir()
    place.locks.symlink_to(place.locks)
    (unread,) = place.evidence().directories
    assert unread.reason == f"{place.lock_file}: {os.strerror(errno.ELOOP)}"
    assert place.state() == "unknown"


def test_lock_file_that_hangs_is_unreadable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO hangs whoever opens it, as a file on a server that is gone does."""
    monkeypatch.setattr(gather, "ANSWER_S", 0.5)
    os.mkfifo(place.lock_file)
    e = place.evidence()
    assert isinstance(e.records[0], Unreadable)
    assert isinstance(e.trial[0], Unreadable)
    assert conclude(e).state == "unknown"
    notes = ask(place.config, place.socket, str(place.disk), root=str(place.root)).notes
    assert sum("did not answer within 0.5 s" in note for note in notes) == 1


def test_status_file_of_a_running_vm_that_can_not_be_parsed_may_name_the_disk(place: Place) -> None:
    running = place.root / "run/libvirt/qemu"
    running.mkdir(parents=True)
    (running / "web1.xml").write_text("<domstatus")
    e = place.evidence()
    assert isinstance(e.uses, Unreadable)
    assert str(running / "web1.xml") in e.uses.reason
    assert conclude(e).state == "unknown"


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error":"io.holdfast.Control.Refused","parameters":{"kind":"Busy","message":"later"}}\0',
        b"",
        b"?\0",
    ],
    ids=["refuses", "closes", "speaks something else"],
)
def test_daemon_that_serves_and_does_not_say_what_it_holds_is_unreadable(place: Place, answer: bytes) -> None:
    with serving(place.socket, answer):
        e = place.evidence()
        assert isinstance(e.daemon, Unreadable), e.daemon
        assert e.journal == ()
        assert conclude(e).headline == "can't be told: the daemon's list of locks can't be read"
        vm = ask(place.config, place.socket, "web1", root=str(place.root))
        assert vm.verdict == "unknown"
        assert e.daemon.reason in vm.notes


def test_socket_that_no_process_serves_any_more_is_no_doubt(place: Place) -> None:
    with serving(place.socket, b""):
        pass
    assert os.path.exists(place.socket)
    assert isinstance(place.evidence().daemon, NotRunning)
    assert place.state() == "free"


SERVER = """
import socket, sys, threading
server, answer = socket.socket(fileno=int(sys.argv[1])), bytes.fromhex(sys.argv[2])

def serve(client):
    with client:
        while client.recv(1 << 16) and answer:
            client.sendall(answer)

while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""


@contextmanager
def serving(path: str, answer: bytes) -> Iterator[None]:
    """A socket at which every call gets the same answer, or none and the end of the connection."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        command = [sys.executable, "-S", "-c", SERVER, str(server.fileno()), answer.hex()]
        process = subprocess.Popen(command, pass_fds=[server.fileno()])
    try:
        yield
    finally:
        process.kill()
        process.wait()


LVS_REPORT = """#!/bin/sh
echo called >> %s
echo '{"report": [{"lv": [%s]}]}'
"""
ROW = {
    "vg_name": "vg",
    "lv_name": "web",
    "lv_uuid": "1parGL-KnFF-TLkv-UqLu-PhWB-7d8R-Lbwgeb",
    "vg_uuid": "GQPrSj-8w8c-9fDE-zsbv-0F0c-R3Pd-Mdfefz",
    "vg_lock_type": "dlm",
    "vg_lock_args": "1.0.0:cluster",
    "lv_lockargs": "dlm",
    "pool_lv": "",
    "pool_lv_uuid": "",
    "lv_role": "public",
    "lv_layout": "linear",
}


@pytest.mark.parametrize("guard", ["", 'guard = "leases"'], ids=["unguarded", "guarded"])
def test_lvm_is_asked_once_for_a_volume_that_is_inactive_here(
    place: Place, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    calls = place.root / "calls"
    programs = place.root / "bin"
    programs.mkdir()
    lvs = programs / "lvs"
    lvs.write_text(LVS_REPORT % (calls, json.dumps(ROW)))
    lvs.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    volume = place.root / "vg" / "web"
    table = {"driver": "lvm", **({"guard": "leases"} if guard else {})}
    place.config = Config(
        run_dir=str(place.run_dir),
        state_dir=str(place.root / "state"),
        default_backend="san",
        backend={"san": table},
    )
    with Sources(place.config, place.socket, str(place.root)) as sources:
        e = sources.disk(str(volume))
    assert calls.read_text().splitlines() == ["called"]
    assert len(e.leases) == 1
    notes = about_disk(e, conclude(e)).notes
    assert f"{volume} is not active on this host: no program here has it open" in notes
    assert not [note for note in notes if "No such file" in note and str(volume) in note]


def test_volume_that_lvm_does_not_know_is_not_called_inactive(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = place.root / "bin"
    programs.mkdir()
    lvs = programs / "lvs"
    lvs.write_text("#!/bin/sh\necho '  Failed to find logical volume \"vg/wbe\"' >&2; exit 5\n")
    lvs.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    place.config = Config(
        run_dir=str(place.run_dir),
        state_dir=str(place.root / "state"),
        default_backend="san",
        backend={"san": {"driver": "lvm"}},
    )
    with Sources(place.config, place.socket, str(place.root)) as sources:
        e = sources.disk("/dev/vg/wbe")
    notes = about_disk(e, conclude(e)).notes
    assert not [note for note in notes if "not active" in note]
    assert [note for note in notes if "Failed to find logical volume" in note]
    assert conclude(e).state == "unknown"
