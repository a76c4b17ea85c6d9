"""virtlockd's state and what became of its locks, as the state that one holdfastd passes to the next at a re-exec.

So the daemon needs no second way to adopt: owners, locks and connections come as from an earlier holdfastd. A lock that is
less than virtlockd had is claimed as virtlockd had it: the daemon finds out what it is worth (`manager/adoption`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.manager import journal
from holdfast.manager import journal_kinds as jn
from holdfast.manager.journal_kinds import text_of
from holdfast.switch.virtlockd_state import Client, VirtlockdState
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.host.descriptors import REEXEC_VERSION, ReexecState, SavedConnection


@dataclass(frozen=True, slots=True)
class Facts:
    """What the state file does not say. `start_ticks`: of a pid, 0 if there is no such process; `keys`: which file each
    lock's descriptor is open on; `backend`: holdfastd's name of the file driver that locks the files themselves.
    """

    boot: str
    host: str
    backend: str
    now_wall_s: float
    start_ticks: Callable[[int], int]
    keys: Mapping[int, FileKey]


def as_reexec(
    state: VirtlockdState, facts: Facts, fds: Mapping[int, int] | None = None, *, listens: bool = True
) -> ReexecState:
    """`fds`: this process's numbers of virtlockd's descriptors, if they differ. `listens`: the protocol's socket is passed
    on too; else the next daemon has it from systemd.
    """

    def here(fd: int) -> int:
        return fd if fds is None else fds[fd]

    owners = _owners(state)
    lines: list[jn.Line] = [jn.StartLine(jn.VERSION, facts.boot, facts.host)]
    lines += [jn.LockspaceLine(text_of(each), False) for each in state.lockspaces]
    for pid, (number, client) in owners.items():
        # 0 ticks: nobody has seen this process, so what it has is held for an unknown owner.
        lines.append(
            jn.OwnerLine(
                number, pid, facts.start_ticks(pid), text_of(client.name), client.uuid, client.domain_id
            )
        )
    locks: dict[int, int] = {}
    for number, lock in enumerate(state.locks, 1):
        locks[number] = here(lock.fd)
        mode = int(lock.mode)
        lines.append(
            jn.LockLine(
                number,
                facts.backend,
                text_of(lock.path),
                lock.create,
                mode,
                (facts.keys[lock.fd],),
                facts.now_wall_s,
            )
        )
        lines += [
            jn.ClaimLine(
                number, owners[pid][0], text_of(lock.resource.lockspace), text_of(lock.resource.name), mode
            )
            for pid in lock.owners
        ]
    return ReexecState(
        version=REEXEC_VERSION,
        listeners={"virtlockd": here(state.listeners[0])} if listens and state.listeners else {},
        self_bound=[],
        locks=locks,
        connections=[
            SavedConnection(
                here(each.fd), owners[each.pid][0] if each.pid else 0, each.restricted, b"", b"", ""
            )
            for each in state.clients
        ],
        journal=journal.image(lines),
        events=[],
        lock_fd=-1,
    )


def _owners(state: VirtlockdState) -> dict[int, tuple[int, Client]]:
    """By pid: a number, and what its connection says of it. libvirt's own is nameless only where it has none."""
    found: dict[int, Client] = {}
    for client in state.clients:
        if client.pid:
            found.setdefault(client.pid, client)
    for lock in state.locks:
        for pid in lock.owners:
            found.setdefault(pid, Client(-1, False, pid))
    return {pid: (number, client) for number, (pid, client) in enumerate(found.items(), 1)}


def users(state: VirtlockdState, pids: Sequence[int]) -> str:
    """The owners of these pids by name, for people."""
    names = _owners(state)
    known = [names[pid][1].name if pid in names else "" for pid in pids]
    return ", ".join(name or f"pid {pid}" for name, pid in zip(known, pids, strict=True))
