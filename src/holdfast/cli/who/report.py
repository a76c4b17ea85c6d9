"""What `holdfast who` shows: evidence and verdict as lines by source, notes, and the next safe step. Pure.

`render` prints it as text; with --json its fields are the object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.cli.who.evidence import (
    Evidence,
    ImageLocks,
    KernelLocks,
    Missing,
    NotRunning,
    OwnerRecords,
    Unreadable,
    Verdict,
    VmEvidence,
)
from holdfast.control.api import HolderInfo
from holdfast.model import HOST_LOCKSPACE, wall_text
from holdfast.system.libvirt.domain_disks import NEVER_ASKED

if TYPE_CHECKING:
    from holdfast.system.files.proc_locks import LockingProcess

NOT_ROOT = "this user is not root: processes and locks of other users can't be seen (sudo holdfast who ...)"


@dataclass
class Layer:
    """The lines of one source."""

    name: str
    lines: list[str]


@dataclass
class Answer:
    """What is known about one disk or one VM.  ``verdict``: held, free or unknown."""

    subject: str
    verdict: str = "unknown"
    headline: str = ""
    next_step: str = ""
    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    holders: list[HolderInfo] = field(default_factory=list)
    disks: list[Answer] = field(default_factory=list)

    def add(self, layer: str, lines: Sequence[str]) -> None:
        """A source that says nothing has no layer."""
        if lines:
            self.layers.append(Layer(layer, list(lines)))


def about_disk(evidence: Evidence, verdict: Verdict) -> Answer:
    """The report about a disk."""
    e = evidence
    answer = Answer(e.subject, verdict.state, verdict.headline, verdict.next_step, holders=list(e.holders))
    if e.no_disk:
        return answer
    answer.add("holdfastd", [_holder(h) for h in e.holders])
    answer.add(
        "journal",
        [
            f"{c.mode.word} lock of {c.owner} (pid {c.pid}, {'still running' if c.alive else 'ended'}); holdfastd will "
            f"{'retake' if c.alive else 'drop'} it when it starts"
            for c in e.journal_claims
        ],
    )
    records = [each for each in e.records if isinstance(each, OwnerRecords)]
    answer.add("lock file", [f"{owner} ({each.file})" for each in records for owner in each.owners])
    answer.add("kernel", list(_byte_zero(e)))
    answer.add("QEMU", list(_open_images(e)))
    answer.add("lease", [f"{line} ({seen.place})" for seen in e.leases for line in seen.lines])
    uses = e.uses if isinstance(e.uses, tuple) else ()
    why = NEVER_ASKED if e.never_locked else "libvirt locks the top images alone"
    answer.add(
        "libvirt",
        [f"VM {use.vm} (pid {use.pid}) has it {use.how}: {why}" for use in uses],
    )
    answer.notes = [*_notes(e), *verdict.notes]
    if not e.is_root:
        answer.notes.append(NOT_ROOT)
    return answer


def about_vm(evidence: VmEvidence, verdict: Verdict, disks: list[Answer], *, is_root: bool) -> Answer:
    """The report about a VM. `disks`: the reports about its disks, in their order."""
    e = evidence
    claims = list(e.daemon) if isinstance(e.daemon, tuple) else []
    answer = Answer(e.name, verdict.state, verdict.headline, verdict.next_step, holders=claims, disks=disks)
    answer.add("disk", [f"{disk.path}: {disk.verdict.headline}" for disk in e.disks])
    if e.domain is not None and not isinstance(e.domain, Unreadable):
        answer.add("disk", [f"{d}: its path is not known: {d.reason}" for d in e.domain.unresolved])
        unlocked = [f"{d}: protection 0: {d.why_unlocked}" for d in e.domain.unlocked]
        guarded = {claim.name for claim in claims if claim.held and claim.lockspace == HOST_LOCKSPACE}
        parts = [str(part) for part in e.domain.unguarded if not part.path or part.path not in guarded]
        answer.add("not locked", unlocked + parts)
        answer.add("only read", sorted(e.domain.readonly))
    if not is_root:
        answer.notes.append(NOT_ROOT)
    answer.notes += [
        each.reason for each in (e.daemon, e.domain) if isinstance(each, NotRunning | Unreadable)
    ]
    return answer


def _holder(h: HolderInfo) -> str:
    state = f"protection {h.protection} ({h.protection_word})" if h.held else f"LOST: {h.lost_reason}"
    since = f" since {wall_text(h.since)}" if h.since is not None else ""
    uuid = f", uuid {h.owner_uuid}" if h.owner_uuid else ""
    return f"{h.mode} lock of {h.owner or 'an unnamed owner'} (pid {h.pid}{uuid}) on {h.host}{since}; {state}"


def _byte_zero(e: Evidence) -> Iterator[str]:
    for each in e.kernel:
        if not isinstance(each, KernelLocks):
            continue
        for p in _by_pid(each.processes):
            kept = " (its descriptor store keeps holdfastd's locks over a restart)" if p.pid == 1 else ""
            yield (
                f"{p.program or 'a process'} (pid {p.pid}): {p.lock.mode.word} lock on byte 0 of {each.file}{kept}"
            )
        if each.unseen:
            yield f"byte 0 of {each.file} is locked by a process that this user can't see"


def _open_images(e: Evidence) -> Iterator[str]:
    for each in e.images:
        if isinstance(each, ImageLocks):
            for p in _by_pid(each.processes):
                yield f"{p.program or 'a process'} (pid {p.pid}): has the image open (its own image lock)"


def _by_pid(processes: Sequence[LockingProcess]) -> list[LockingProcess]:
    """The first lock of each process is enough."""
    found: dict[int, LockingProcess] = {}
    for process in processes:
        found.setdefault(process.pid, process)
    return list(found.values())


def _notes(e: Evidence) -> Iterator[str]:
    """Why each source that could not be read could not be, in the order of the sources."""
    yield from (each.reason for each in e.directories)
    if isinstance(e.daemon, NotRunning | Unreadable):
        yield e.daemon.reason
    yield from (h.protection_note for h in e.holders if h.held and h.protection_note)
    if isinstance(e.journal, Unreadable):
        yield e.journal.reason
    before = _reasons((*e.records, *e.kernel))
    yield from before
    yield from (seen.unreadable.reason for seen in e.leases if seen.unreadable)
    yield from (reason for reason in _reasons(e.trial) if reason not in before)
    if isinstance(e.uses, Unreadable):
        yield e.uses.reason


def _reasons(found: Sequence[object]) -> list[str]:
    """Each once: a file that hangs gives the same one for all that was read of it."""
    return list(dict.fromkeys(each.reason for each in found if isinstance(each, Missing | Unreadable)))
