"""Evidence to verdict, with no input or output and no clock: the first rule that applies decides.

The order is the precedence between sources. Each source that says "held" comes before any that says "free", and a disk is
called free only if its lease, or a trial of its lock, says so and every source could be read.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from holdfast.cli.who.evidence import (
    Evidence,
    KernelLocks,
    NotRunning,
    Trial,
    Unreadable,
    Verdict,
    VmEvidence,
)

BEFORE_YOU_KNOW = "see the notes; start nothing on this disk before you know"


def conclude(evidence: Evidence) -> Verdict:
    """The verdict about a disk."""
    for rule in _RULES:
        if (verdict := rule(evidence)) is not None:
            return verdict
    return Verdict(
        "unknown", "can't be told", "see the notes; try again as root on a host that sees the disk"
    )


def _no_disk(e: Evidence) -> Verdict | None:
    if not e.no_disk:
        return None
    return Verdict("unknown", f"{e.no_disk}: no disk of a VM", "name a disk's path, or a VM: holdfast list")


def _never_locked(e: Evidence) -> Verdict | None:
    """A disk without a path: libvirt's files name the VMs of this host, and nothing names those of others."""
    if not e.never_locked:
        return None
    again = f"holdfast who {shlex.quote(e.subject)}"
    if isinstance(e.uses, tuple) and e.uses:
        return Verdict(
            "held",
            f"in use by VM {e.uses[0].vm}{_more(e.uses)} {e.uses[0].how}",
            f"no lock keeps a second VM from it: ask on every host that reaches it: {again}",
        )
    return Verdict(
        "unknown",
        "no VM of this host is known to use it, and no lock says whether others do",
        f"ask on every host that reaches it: {again}; or ask its server, which knows its clients",
    )


def _held_here(e: Evidence) -> Verdict | None:
    """The daemon knows what it holds."""
    held = [h for h in e.holders if h.held]
    if not held:
        return None
    h = held[0]
    who = f"{h.owner or 'pid ' + str(h.pid)}{_more(held)} on {h.host}"
    stop = f"virsh shutdown {h.owner}" if h.owner_uuid else f"end process {h.pid}"
    return Verdict(
        "held",
        f"held by {who}{', ' * bool(h.until)}{h.until}",
        f"in use here; to free it: {stop} (or migrate it)",
    )


def _lease_held(e: Evidence) -> Verdict | None:
    """A lease says more than the locks of this kernel: it counts for all hosts."""
    holders = [holder for seen in e.leases for holder in seen.holders]
    if not holders:
        return None
    return Verdict(
        "held",
        f"held by {holders[0]}{_more(holders)}",
        f"on that host: holdfast who {e.subject}; stop or migrate the VM there. If the host is dead, start the VM here "
        "again once its lease can be taken over: 'holdfast host list' counts the seconds",
    )


def _lease_unreadable(e: Evidence) -> Verdict | None:
    if not any(seen.unreadable for seen in e.leases):
        return None
    return Verdict("unknown", "can't be told: its lease can't be read", BEFORE_YOU_KNOW)


def _lost_here(e: Evidence) -> Verdict | None:
    """Its VM still runs; the lock may be somebody else's by now."""
    if not e.holders:
        return None
    h = e.holders[0]
    return Verdict(
        "held",
        f"LOCK LOST: {h.owner} runs without it ({h.lost_reason})",
        f"make sure that only one VM uses it: virsh suspend {h.owner}; then look at the other holder",
    )


def _locked_on_this_host(e: Evidence) -> Verdict | None:
    """By a process that the kernel names: a virtlockd, another holdfastd, or systemd for one that is not running."""
    if not e.lock_managers:
        return None
    p = e.lock_managers[0]
    return Verdict(
        "held",
        f"held through {p.program or 'a process'} (pid {p.pid}) on this host",
        "a real virtlockd has it for one of its VMs: virsh list; holdfast doctor"
        if p.program == "virtlockd"
        else f"see what process {p.pid} is before you end it: ps -fp {p.pid}",
    )


def _locked_elsewhere(e: Evidence) -> Verdict | None:
    """The kernel or the file system refuses the lock, and no process of this host is known to have it."""
    unseen = any(isinstance(each, KernelLocks) and each.unseen for each in e.kernel)
    if not unseen and not any(isinstance(each, Trial) and each.refused for each in e.trial):
        return None
    for other in e.owners:
        if _is_of_another_host(e, other.host):
            return Verdict(
                "held",
                f"held by {other}",
                f"on host {other.host}: holdfast who {e.subject}; stop or migrate the VM there. "
                "Never delete the lock file: it doesn't free the disk",
            )
    return Verdict(
        "held",
        "held by another host or a process that can't be seen from here",
        f"run this on the other hosts that share the storage: holdfast who {e.subject}"
        if e.is_root
        else f"ask again as root, who sees every process of this host: sudo holdfast who {e.subject}",
    )


def _in_the_journal(e: Evidence) -> Verdict | None:
    """The next daemon acquires it again for a VM that still runs."""
    if not e.journal_claims:
        return None
    return Verdict(
        "held",
        "not locked now, but holdfastd's journal has an owner",
        "start holdfastd: it retakes the locks of VMs that still run (systemctl start holdfastd)",
    )


def _recorded_elsewhere(e: Evidence) -> Verdict | None:
    """A record of another host without a lock: that host crashed, or lost its lock while the VM runs."""
    if not _trial_grants(e):
        return None
    for other in e.owners:
        if _is_of_another_host(e, other.host):
            return Verdict(
                "unknown",
                f"not locked now, but its lock file names {other}",
                f"on host {other.host}: see whether that VM still runs (virsh list) and start holdfastd there if so; "
                "start nothing else on this disk before you know",
            )
    return None


def _used_without_lock(e: Evidence) -> Verdict | None:
    """By a VM that has it as the image below another one, or to read; it says why a QEMU has it open, if one has."""
    if not isinstance(e.uses, tuple) or not e.uses or not (e.qemus or _looks_free(e)):
        return None
    more = f" and {len(e.uses) - 1} more" if len(e.uses) > 1 else ""
    return Verdict(
        "held",
        f"in use by VM {e.uses[0].vm}{more} {e.uses[0].how}",
        "it is that VM's own, which writes it: nothing else may use it while the VM runs"
        if e.uses[0].writes
        else "other VMs may read it too; nothing may write to it while they run",
        () if e.qemus else _crash_note(e),
    )


def _open_in_qemu(e: Evidence) -> Verdict | None:
    if not e.qemus:
        return None
    p = e.qemus[0]
    return Verdict(
        "held",
        f"open in {p.program} (pid {p.pid}), but no lock manager has it",
        "a paused VM, or one that was started without lock manager: virsh list --all; holdfast doctor",
    )


def _unread(e: Evidence) -> Verdict | None:
    """Nothing that was read says "held", but not everything was read."""
    sources = dict.fromkeys(each.source for each in e.unread())
    if not sources or not _looks_free(e):
        return None
    return Verdict(
        "unknown", f"can't be told: {' and '.join(sources)} can't be read", BEFORE_YOU_KNOW, _crash_note(e)
    )


def _place_wanted(e: Evidence) -> Verdict | None:
    if not e.place_wanted:
        return None
    return Verdict(
        "unknown",
        "not held by this host; whether another one has it, only its place on storage says",
        "name that too, as its clients do: holdfast who LOCKSPACE:RESOURCE:PATH:OFFSET",
    )


def _lease_storage(e: Evidence) -> Verdict | None:
    """A lease is held by what is written in it, and no lock on its file says anything about that."""
    if not e.lease_here or not _looks_free(e):
        return None
    return Verdict(
        "unknown",
        "a lease lies there, so it is no disk of a VM (unless its guest wrote that)",
        f"who holds that lease: holdfast who {shlex.quote(e.lease_here)}",
    )


def _free(e: Evidence) -> Verdict | None:
    if not _looks_free(e):
        return None
    what = "its lease" if e.leases else "it"
    return Verdict("free", "free", f"nobody holds {what}; a VM that uses it can be started", _crash_note(e))


_RULES: tuple[Callable[[Evidence], Verdict | None], ...] = (
    _no_disk,
    _never_locked,
    _held_here,
    _lease_held,
    _lease_unreadable,
    _lost_here,
    _locked_on_this_host,
    _locked_elsewhere,
    _in_the_journal,
    _recorded_elsewhere,
    _used_without_lock,
    _open_in_qemu,
    _unread,
    _place_wanted,
    _lease_storage,
    _free,
)


def _looks_free(e: Evidence) -> bool:
    """By its lease, which an earlier rule has found readable and without holders; or by a trial of its lock."""
    return bool(e.leases) or _trial_grants(e)


def _trial_grants(e: Evidence) -> bool:
    """Of every file: one that refuses or could not be tried is enough for no."""
    return bool(e.trial) and all(isinstance(each, Trial) and not each.refused for each in e.trial)


def _is_of_another_host(e: Evidence, host: str) -> bool:
    return bool(host) and host != e.host


def _crash_note(e: Evidence) -> tuple[str, ...]:
    if not e.owners or not _trial_grants(e):
        return ()
    return ("the owner record in its lock file is left from a crash; the next owner overwrites it",)


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


# --- a VM ---


def conclude_vm(evidence: VmEvidence) -> Verdict:
    """The verdict about a VM, by its claims and the verdicts about its disks."""
    e = evidence
    if isinstance(e.daemon, tuple) and e.daemon:
        return Verdict(
            "held",
            f"holds {len(e.daemon)} disk{'s' if len(e.daemon) != 1 else ''}{_without_lock(e)}",
            f"its disks are in use; stop the VM (virsh shutdown {e.name}) before anything else uses them",
        )
    worst = next((disk for disk in e.disks if disk.verdict.state != "free"), None)
    if worst is not None:
        v = worst.verdict
        return Verdict(v.state, f"its disk {worst.path}: {v.headline}", v.next_step)
    if e.runs and e.unlocked:
        return Verdict(
            "held",
            f"runs{_without_lock(e)}",
            "no lock keeps a second VM from these disks: see to it yourself that none has them, here or on another host",
        )
    if isinstance(e.domain, Unreadable):
        return Verdict("unknown", f"can't be told: {e.domain.source} can't be read", "see the notes")
    if e.domain is not None and e.runs and e.domain.unresolved:
        return Verdict(
            "unknown",
            f"can't be told: the path of its disk {e.domain.unresolved[0]} is not known",
            f"see which path it has: virsh domblklist -- {shlex.quote(e.name)}; then: holdfast who PATH",
        )
    if isinstance(e.daemon, Unreadable):
        return Verdict("unknown", f"can't be told: {e.daemon.source} can't be read", "see the notes")
    if e.unasked:
        return Verdict(
            "unknown",
            f"can't be told: it has {e.unasked} more disks",
            "ask for each of them: holdfast who /path",
        )
    if e.disks:
        return Verdict(
            "free", "holds no lock now", "a paused or stopped VM holds nothing; see each disk above"
        )
    return Verdict(
        "unknown" if isinstance(e.daemon, NotRunning) else "free",
        "holds nothing that is known here",
        f"check the name with: virsh list --all; for one disk: holdfast who /path (host {e.host}); for a <lease>: "
        "holdfast who TARGET/LOCKSPACE/KEY; for one of sanlock's clients: holdfast who LOCKSPACE:RESOURCE:PATH:OFFSET",
    )


def _without_lock(e: VmEvidence) -> str:
    """What is said of disks that have no lock for their kind."""
    if not e.runs or not e.unlocked:
        return ""
    more = f" and {len(e.unlocked) - 1} more" if len(e.unlocked) > 1 else ""
    return f" with {e.unlocked[0]}{more} without a lock"
