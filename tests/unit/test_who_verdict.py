"""`holdfast who` as a table: what the sources say, and the verdict that follows.

Each row is named after the mistake that it would catch. `SOURCES` are one piece of evidence of each kind, so that every pair
of sources has a row that says which of them decides.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from holdfast.cli.who.evidence import (
    Evidence,
    ImageLocks,
    JournalClaim,
    Judged,
    KernelLocks,
    LeaseClaim,
    LeaseSeen,
    Missing,
    NotRunning,
    OwnerRecords,
    Trial,
    Unreadable,
    Use,
    Verdict,
    VmEvidence,
)
from holdfast.cli.who.report import about_disk
from holdfast.cli.who.verdict import conclude, conclude_vm
from holdfast.cli.who.volume_leases import in_its_sense
from holdfast.control.api import HolderInfo
from holdfast.model import LVMLOCKD, SANLOCK, Holder, Mode
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.holders import Exclusive, Free, HostTerm, Known, Released, Shared, Unclear
from holdfast.protocol.types import Generation, HostId
from holdfast.system.files.proc_locks import KernelLock, LockingProcess

DISK = "/srv/web.img"
HASHED = "/locks/0f1e"
HELD, FREE, UNKNOWN = "held", "free", "unknown"


def info(owner: str = "web1", *, held: bool = True, uuid: str = "u1", until: str = "") -> HolderInfo:
    return HolderInfo(
        resource=DISK,
        lockspace="",
        name=DISK,
        mode="exclusive",
        owner=owner,
        owner_uuid=uuid,
        pid=41,
        host="alpha",
        since=None,
        backend="file",
        path=DISK,
        protection=1,
        protection_word="host",
        protection_note="",
        held=held,
        lost_reason="" if held else "taken by beta",
        until=until,
    )


def term(host_id: int) -> HostTerm:
    return HostId(host_id), Generation(1)


def process(program: str, pid: int, start: int) -> LockingProcess:
    lock = KernelLock("OFDLCK", Mode.EXCLUSIVE, -1, 1, 2, start, start)
    return LockingProcess(pid, program, lock)


def record(host: str, name: str = "other", file: str = HASHED) -> OwnerRecords:
    return OwnerRecords(file, (Holder(name=name, uuid="u2", pid=9, host=host, mode=Mode.EXCLUSIVE),))


def lease(
    known: Known | Unclear | None, *claims: LeaseClaim, unreadable: Unreadable | None = None
) -> LeaseSeen:
    return LeaseSeen("san", "/leases/x", 7, known, claims, unreadable)


def claim(name: str, mode: Mode = Mode.EXCLUSIVE, *, over: bool = False, program: str = "") -> LeaseClaim:
    uuid = "u3" if name else ""
    holder = Holder(name=name, uuid=uuid, host="gamma", mode=mode, host_id=3, program=program)
    return LeaseClaim(holder, mode, over)


def unread(source: str) -> Unreadable:
    return Unreadable(source, f"{source}: Input/output error")


VIRTLOCKD = KernelLocks(DISK, (process("virtlockd", 50, 0),))
UNSEEN = KernelLocks(DISK, (), unseen=True)
QEMU = ImageLocks(DISK, (process("qemu-system-x86_64", 60, 100),))
DAMAGED = Unclear(((HostId(5), Malformed("host block", Reason.CHECKSUM, "1", "2")),), Free())
OTHER = Exclusive(term(3), releasing=False)
GRANTED, REFUSED = Trial(DISK, False), Trial(DISK, True)
LEASE_FREE = lease(Free())
LEASE_HELD = lease(OTHER, claim("web3"))
LEASE_UNREAD = lease(None, unreadable=unread("its lease"))
JOURNAL = (JournalClaim(Mode.EXCLUSIVE, "web1", 41, True),)
BACKING = (Use("web4", 70, "as the image below its own"),)


def row(mistake: str, state: str, headline: str, **evidence: Any) -> Any:
    found = replace(Evidence(DISK, "alpha"), **evidence)
    return pytest.param(found, state, headline, id=mistake)


ROWS = [
    # --- one source alone ---
    row("nothing asked is taken for free", UNKNOWN, "can't be told"),
    row("plain case is not called free", FREE, "free", trial=(GRANTED,)),
    row("free lease does not count without a trial", FREE, "free", leases=(LEASE_FREE,)),
    row("directory gets a verdict of a disk", UNKNOWN, "a directory: no disk of a VM", no_disk="a directory"),
    row("daemon's holder is not believed", HELD, "held by web1 on alpha", daemon=(info(),)),
    row("one of two sharers is forgotten", HELD, "and 1 more on alpha", daemon=(info(), info("web2"))),
    row(
        "departing lock looks like any other",
        HELD,
        ", until migrated",
        daemon=(info(until="until migrated"),),
    ),
    row("owner without a name shows nothing", HELD, "held by pid 41", daemon=(info("", uuid=""),)),
    row("lost lock counts as free", HELD, "LOCK LOST: web1 runs without it", daemon=(info(held=False),)),
    row(
        "lost lock of one owner hides another's held one",
        HELD,
        "held by web2",
        daemon=(info(held=False), info("web2")),
    ),
    row("lock of a virtlockd is not seen", HELD, "held through virtlockd (pid 50)", kernel=(VIRTLOCKD,)),
    row("lock of a process that can't be seen is free", HELD, "can't be seen from here", kernel=(UNSEEN,)),
    row("refusal by another host is free", HELD, "held by another host or", trial=(REFUSED,)),
    row(
        "refusal on one of two lock files is outvoted",
        HELD,
        "held by another host or",
        trial=(GRANTED, REFUSED),
    ),
    row("journal's owner is free while the daemon is down", HELD, "journal has an owner", journal=JOURNAL),
    row("paused VM's image is free", HELD, "open in qemu-system-x86_64 (pid 60)", images=(QEMU,)),
    row(
        "backing image is free",
        HELD,
        "in use by VM web4 as the image below",
        trial=(GRANTED,),
        uses=BACKING,
    ),
    # --- owner records, by the hash of the path ---
    row(
        "hashed name: refusal does not say who",
        HELD,
        "held by VM other (uuid u2, pid 9) on host beta",
        records=(record("beta"),),
        trial=(Trial(HASHED, True),),
    ),
    row(
        "hashed name: record of another host without a lock is free",
        UNKNOWN,
        "not locked now, but its lock file names VM other",
        records=(record("beta"),),
        trial=(Trial(HASHED, False),),
    ),
    row(
        "own record that a crash has left keeps the disk for ever",
        FREE,
        "free",
        records=(record("alpha"),),
        trial=(Trial(HASHED, False),),
    ),
    row(
        "own old record names the holder that another process is",
        HELD,
        "held by another host or",
        records=(record("alpha"),),
        trial=(Trial(HASHED, True),),
    ),
    row(
        "record alone decides, though nothing was tried", UNKNOWN, "can't be told", records=(record("beta"),)
    ),
    # --- leases ---
    row(
        "exclusive lease elsewhere is free",
        HELD,
        "held by VM web3 (uuid u3) on host gamma (host_id 3)",
        leases=(LEASE_HELD,),
    ),
    row(
        "shared leases: the second sharer is forgotten",
        HELD,
        ", shared and 1 more",
        leases=(lease(Shared((term(3), term(4))), claim("web3", Mode.SHARED), claim("web4", Mode.SHARED)),),
    ),
    row(
        "prepared ballot of a complete release counts as held",
        FREE,
        "free",
        leases=(lease(Released(term(3))),),
    ),
    row(
        "prepared ballot before the leader's write counts as free",
        HELD,
        "held by VM web3",
        leases=(lease(Exclusive(term(3), releasing=True), claim("web3")),),
    ),
    row(
        "lease left behind by an incarnation that is over counts as held",
        FREE,
        "free",
        leases=(lease(OTHER, claim("web3", over=True)),),
    ),
    row(
        "one that is left behind hides a sharer that lives",
        HELD,
        "held by VM web5",
        leases=(
            lease(
                Shared((term(3), term(5))),
                claim("web3", Mode.SHARED, over=True),
                claim("web5", Mode.SHARED),
            ),
        ),
    ),
    row(
        "host of sanlock's, which writes no VM name, is nobody",
        HELD,
        "held by sanlock on host gamma (host_id 3)",
        leases=(lease(OTHER, claim("", program=SANLOCK)),),
    ),
    row(
        "host that has a volume active, with a guard that is free, holds it",
        FREE,
        "free",
        leases=(
            LEASE_FREE,
            lease(Shared((term(3),)), replace(claim("", Mode.SHARED, program=LVMLOCKD), only_active=True)),
        ),
    ),
    row(
        "second name's lease is not asked",
        HELD,
        "held by VM web3",
        leases=(LEASE_FREE, LEASE_HELD),
    ),
    row(
        "free lease outvotes one that can't be read",
        UNKNOWN,
        "its lease can't be read",
        leases=(LEASE_FREE, LEASE_UNREAD),
    ),
    row(
        "damaged host block is a free one",
        UNKNOWN,
        "its lease can't be read",
        leases=(lease(DAMAGED, unreadable=unread("its lease")),),
    ),
    row(
        "damaged host block hides the owner that can be read",
        HELD,
        "held by VM web3",
        leases=(lease(DAMAGED, claim("web3"), unreadable=unread("its lease")),),
    ),
    # --- sources that contradict each other ---
    row(
        "free lease outvotes a virtlockd of this host",
        HELD,
        "held through virtlockd",
        leases=(LEASE_FREE,),
        kernel=(VIRTLOCKD,),
    ),
    row(
        "free lease outvotes a lock that this user can't attribute",
        HELD,
        "can't be seen from here",
        leases=(LEASE_FREE,),
        kernel=(UNSEEN,),
    ),
    row(
        "free lease outvotes a VM that runs without lock",
        HELD,
        "open in qemu",
        leases=(LEASE_FREE,),
        images=(QEMU,),
    ),
    row(
        "free lease outvotes the journal",
        HELD,
        "journal has an owner",
        leases=(LEASE_FREE,),
        journal=JOURNAL,
    ),
    row(
        "granted trial outvotes a lost lock",
        HELD,
        "LOCK LOST",
        daemon=(info(held=False),),
        trial=(GRANTED,),
    ),
    row(
        "reader here hides the VM that holds it elsewhere",
        HELD,
        "held by VM web3",
        leases=(LEASE_HELD,),
        images=(QEMU,),
        uses=BACKING,
    ),
    row(
        "reader here hides a lost lock",
        HELD,
        "LOCK LOST",
        daemon=(info(held=False),),
        images=(QEMU,),
        uses=BACKING,
    ),
    row(
        "use is not named as the reason why QEMU has it open",
        HELD,
        "in use by VM web4",
        images=(QEMU,),
        uses=BACKING,
    ),
    row(
        "use by a VM makes a disk known that could not be tried",
        UNKNOWN,
        "can't be told",
        trial=(Missing(f"{DISK}: No such file or directory"),),
        uses=BACKING,
    ),
    row(
        "lock file is free, though the disk's own path is not there",
        FREE,
        "free",
        kernel=(Missing(f"{DISK}: No such file or directory"),),
        trial=(Trial(HASHED, False),),
    ),
    row(
        "daemon that does not run is doubt",
        FREE,
        "free",
        daemon=NotRunning("holdfastd does not answer at x"),
        trial=(GRANTED,),
    ),
]


@pytest.mark.parametrize(("evidence", "state", "headline"), ROWS)
def test_verdict(evidence: Evidence, state: str, headline: str) -> None:
    verdict = conclude(evidence)
    assert (verdict.state, headline in verdict.headline) == (state, True), verdict
    assert verdict.next_step


UNREAD: list[tuple[str, dict[str, Any]]] = [
    ("daemon", {"daemon": unread("the daemon's list of locks")}),
    ("journal", {"journal": unread("the journal")}),
    ("directory", {"directories": (unread("/locks"),)}),
    ("owner record", {"records": (record("alpha"), unread("the lock file"))}),
    (
        "kernel",
        {
            "kernel": (KernelLocks(DISK, ()), unread("the kernel's locks")),
            "images": (unread("the kernel's locks"),),
        },
    ),
    ("libvirt", {"uses": unread("libvirt's file")}),
]


@pytest.mark.parametrize("basis", [{"trial": (GRANTED,)}, {"leases": (LEASE_FREE,)}], ids=["trial", "lease"])
@pytest.mark.parametrize("unreadable", [each for _, each in UNREAD], ids=[name for name, _ in UNREAD])
def test_source_that_could_not_be_read_leaves_nothing_free(
    unreadable: dict[str, Any], basis: dict[str, Any]
) -> None:
    """The mistake: what could not be read is taken for a source that says nothing."""
    evidence = replace(Evidence(DISK, "alpha"), **unreadable, **basis)
    verdict = conclude(evidence)
    assert verdict.state == UNKNOWN
    assert verdict.headline.startswith("can't be told: ")
    assert "start nothing on this disk" in verdict.next_step
    (source,) = {each.source for each in evidence.unread()}
    assert source in verdict.headline
    assert f"{source}: Input/output error" in about_disk(evidence, verdict).notes, "the note says why"
    alone = replace(Evidence(DISK, "alpha"), **unreadable)
    assert conclude(alone).state == UNKNOWN


@pytest.mark.parametrize(
    "trial",
    [(unread("the lock"),), (GRANTED, unread("the lock")), (GRANTED, Missing("gone"))],
    ids=["alone", "beside one that is free", "lock file that is gone"],
)
def test_lock_that_could_not_be_tried_is_not_free(trial: tuple[Any, ...]) -> None:
    """The mistake: of several lock files the one that answers is enough."""
    assert conclude(Evidence(DISK, "alpha", trial=trial)).state == UNKNOWN


@pytest.mark.parametrize("unreadable", [each for _, each in UNREAD], ids=[name for name, _ in UNREAD])
def test_source_that_could_not_be_read_hides_no_holder(unreadable: dict[str, Any]) -> None:
    """The mistake: doubt about one source takes the answer of another away."""
    for name, evidence in SOURCES.items():
        if evidence.keys() & unreadable.keys():
            continue
        verdict = conclude(replace(Evidence(DISK, "alpha"), **evidence, **unreadable))
        assert (name, verdict.state) == (name, UNKNOWN if name in DOUBTFUL else HELD)


SOURCES: dict[str, dict[str, Any]] = {
    "held by web1 on alpha": {"daemon": (info(),)},
    "held by VM web3": {"leases": (LEASE_HELD,)},
    "its lease can't be read": {"leases": (LEASE_UNREAD,)},
    "LOCK LOST": {"daemon": (info(held=False),)},
    "held through virtlockd": {"kernel": (VIRTLOCKD,)},
    "held by VM other": {"trial": (REFUSED,), "records": (record("beta"),)},
    "held by another host": {"trial": (REFUSED,)},
    "journal has an owner": {"journal": JOURNAL},
    "its lock file names VM other": {"trial": (GRANTED,), "records": (record("beta"),)},
    "in use by VM web4": {"trial": (GRANTED,), "uses": BACKING},
    "open in qemu": {"images": (QEMU,)},
    "can't be told: the journal": {"trial": (GRANTED,), "journal": unread("the journal")},
    "free": {"trial": (GRANTED,)},
}
"""What the verdict says, by evidence that says no more than that; the first decides where two apply."""

DOUBTFUL = frozenset(
    ("its lease can't be read", "its lock file names VM other", "can't be told: the journal", "free")
)


def both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """Evidence of both; None where one source would have to say two things."""
    if any(first[key] != second[key] for key in first.keys() & second.keys()):
        return None
    return {**first, **second}


PAIRS = [
    pytest.param(merged, stronger, id=f"{weaker} outvotes {stronger}")
    for stronger, weaker in itertools.combinations(SOURCES, 2)
    if (merged := both(SOURCES[stronger], SOURCES[weaker])) is not None
]


@pytest.mark.parametrize(("evidence", "stronger"), PAIRS)
def test_precedence_of_two_sources(evidence: dict[str, Any], stronger: str) -> None:
    assert stronger in conclude(replace(Evidence(DISK, "alpha"), **evidence)).headline


def test_every_two_sources_that_differ_have_a_row() -> None:
    assert len(PAIRS) >= 55


# --- a VM ---


def judged(state: str, path: str = DISK) -> Judged:
    return Judged(path, Verdict(state, f"{state} so far", "wait"))


@pytest.mark.parametrize(
    ("evidence", "state", "headline"),
    [
        pytest.param(VmEvidence("web1", "a", (info(),)), HELD, "holds 1 disk", id="its claims are ignored"),
        pytest.param(
            VmEvidence("web1", "a", (info(),), (judged(UNKNOWN),)),
            HELD,
            "holds 1 disk",
            id="doubt about a disk hides its claim",
        ),
        pytest.param(
            VmEvidence("web1", "a", (), (judged(FREE), judged(HELD, "/b"))),
            HELD,
            "its disk /b: held so far",
            id="first disk speaks for all",
        ),
        pytest.param(
            VmEvidence("web1", "a", (), (judged(FREE),)), FREE, "holds no lock", id="stopped VM is in doubt"
        ),
        pytest.param(
            VmEvidence("web1", "a", ()),
            FREE,
            "nothing that is known",
            id="daemon that knows it not is doubted",
        ),
        pytest.param(
            VmEvidence("web1", "a", NotRunning("down")),
            UNKNOWN,
            "nothing that is known",
            id="free, though nobody was asked",
        ),
        pytest.param(
            VmEvidence("web1", "a", unread("the daemon's list of locks"), (judged(FREE),)),
            UNKNOWN,
            "can't be told: the daemon's list",
            id="free, though the daemon did not answer",
        ),
        pytest.param(
            VmEvidence("web1", "a", (), (judged(FREE),), unasked=3),
            UNKNOWN,
            "it has 3 more disks",
            id="free by the first 64 of its disks",
        ),
    ],
)
def test_verdict_about_a_vm(evidence: VmEvidence, state: str, headline: str) -> None:
    verdict = conclude_vm(evidence)
    assert (verdict.state, headline in verdict.headline) == (state, True), verdict


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (Evidence(DISK, trial=(GRANTED,)), FREE),
        (Evidence(DISK, trial=(GRANTED,), lease_here="LS1:web:/leases:0"), UNKNOWN),
        (Evidence(DISK, trial=(GRANTED,), daemon=(info(),), lease_here="LS1:web:/leases:0"), HELD),
    ],
)
def test_storage_of_a_lease_is_not_called_free(evidence: Evidence, state: str) -> None:
    """A lease is held by what is written in it; a lock on its file says nothing."""
    assert conclude(evidence).state == state


def test_command_about_a_lease_can_be_copied_whatever_a_guest_has_written() -> None:
    """The names come from a sector that a guest may have written."""
    verdict = conclude(Evidence(DISK, trial=(GRANTED,), lease_here="a;reboot:$(b):/d:0"))
    assert verdict.next_step.endswith("holdfast who 'a;reboot:$(b):/d:0'")


@pytest.mark.parametrize(
    ("mode", "shares", "expected"),
    [(Mode.SHARED, True, FREE), (Mode.SHARED, False, HELD), (Mode.EXCLUSIVE, True, HELD)],
)
def test_lvms_lock_holds_unless_it_is_shared_where_all_hosts_share(
    mode: Mode, shares: bool, expected: str
) -> None:
    seen = lease(OTHER, in_its_sense(claim("", mode, program=LVMLOCKD), shares=shares))
    e = Evidence(DISK, "alpha", leases=(LEASE_FREE, seen))
    assert conclude(e).state == expected
