"""Handover from one daemon to the next: the state passed on at a re-exec, and its adoption by the new daemon.

A new daemon finds, in any mix: a re-exec state, descriptors that systemd kept, a journal.  The order of adoption matters:

    owners ─ their connections, on hold ─ locks ─ descriptors without a journal line ─ connections resume

A request that the last program had read but not answered is served only when every lock is back in the table.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.backends.paxos.area_store import area_of
from holdfast.backends.paxos.names import is_lease
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.frontends.listener import peer_of
from holdfast.frontends.virtlockd import VirtlockdFrontend
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.manager.adoption import Recovery
from holdfast.manager.events import Event, Events
from holdfast.manager.found_descriptors import FoundDescriptors
from holdfast.manager.journal import Journal
from holdfast.manager.journal_kinds import SanlockLockspaceLine, path_of
from holdfast.manager.journal_replay import EndedLock, SavedState, replay
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.lock_search import LockSearch
from holdfast.manager.owners import Owner
from holdfast.model import Mode, OwnerName, Resource
from holdfast.system.files import ofd_lock
from holdfast.system.files.daemon_lock import DaemonLocks
from holdfast.system.host import descriptors as fds

log = logging.getLogger("holdfast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a start knows of earlier daemons, in addition to inherited descriptors and the journal.

    `renamed`: old to new names of backends in the journal. `leases_held`: leases of this boot are held, or may be.
    `daemon_was_here`: a daemon of this boot has run, whatever the journal says. `configuration`: the one in force, for the
    next program.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    leases_held: bool = False
    daemon_was_here: bool = False
    configuration: str = ""


EventRecord = tuple[int, float, str, str, str, int, str, str, int, str]


class Handover:
    """Both ends of the handover. `store` puts a descriptor into systemd's store, or removes a name (None). `join_again`
    makes the lockspaces that sanlock's clients have added, before any lock is adopted, or forgets them where there is no
    socket for clients; `guard_again` makes them in any case.
    """

    def __init__(
        self,
        *,
        manager: LockManager,
        recovery: Recovery,
        journal: Journal,
        events: Events,
        virtlockd: VirtlockdFrontend,
        store: Callable[[str, int | None], None],
        boot: str,
        leases: HostLockspaces,
        collector: LeaseCollector,
        found: FoundDescriptors,
        search: LockSearch,
        before: Before,
        join_again: Callable[[Mapping[str, SanlockLockspaceLine]], None],
        guard_again: Callable[[Mapping[str, SanlockLockspaceLine]], None],
    ) -> None:
        self._manager = manager
        self._recovery = recovery
        self._journal = journal
        self._events = events
        self._virtlockd = virtlockd
        self._store = store
        self._boot = boot
        self._leases = leases
        self._collector = collector
        self._found = found
        self._search = search
        self._before = before
        self._join_again, self._guard_again = join_again, guard_again

    # --- taking over ---

    async def adopt(self, inherited: fds.Inherited, journal: SavedState, *, journal_path: str) -> None:
        """Take over what an earlier daemon left."""
        reexec = inherited.reexec
        state = replay(reexec.journal) if reexec is not None else journal
        if state.damage:
            log.error("journal %s is damaged: %s; what could be read is used", journal_path, state.damage)
        self._leases.carry(state.incarnations)
        # It may be the last copy: the next journal has it, too, before storage lets this daemon join.
        self._manager.book.incarnations.update(self._leases.carried_of_this_boot())
        self._manager.book.restarts = state.restarts
        copied = self._leases.copied_of_clients() if reexec is None else {}
        state = self._believed(state, copied, has_descriptors=_has_locks(inherited))
        self._join_lockspaces_of_clients(state, copied)
        for lock in state.locks.values():
            lock.backend = self._before.renamed.get(lock.backend, lock.backend)
        self._manager.lockspaces.restore(state.lockspaces)
        living = self._recovery.owners(state)
        if state.is_whole:
            self._collector.ended = state.ended_keys
            for ended in state.ended_locks.values():
                self._ended_where_clients_say(ended)
        locks: dict[int, int] = {}
        if reexec is not None:
            self._adopt_reexec(reexec, living)
            locks.update(reexec.locks)
        locks.update(self._adopt_stored(inherited.named, living))
        self._manager.table.reserve([*locks, *state.locks, *state.ended])
        await self._recovery.locks(state, living, locks, self._start_leases)
        self._manager.departures.restore(state.lent)
        for lock_id, fd in locks.items():
            if lock_id in state.locks:
                continue
            if lock_id in state.ended and state.is_whole:
                # Its end was journaled before the last daemon could release it.
                self._drop(lock_id, fd)
            elif not await self._found.hold(lock_id, fd, self._manager.doubt):
                self._drop(lock_id, fd)
        if self._manager.doubt:
            await self._search.search(self._manager.doubt)
        self._virtlockd.serve_adopted()
        for owner in living.values():
            if not owner.alive():
                never_seen = owner.process is None and not owner.until_closed
                if never_seen and self._manager.table.holds_any(owner.id):
                    self._recovery.unseen(owner)
                else:
                    self._manager.owner_ended(owner)
            elif not (
                owner.connections
                or owner.registered
                or self._manager.table.holds_any(owner.id)
                or self._manager.departures.lends_for(owner)
            ):
                self._manager.owners.forget(owner)

    def _ended_where_clients_say(self, ended: EndedLock) -> None:
        """The last daemon may have ended before storage had the end of a lease of sanlock's clients. Only the journal says
        where it is: have the collector read it, and free it.
        """
        backend: object = self._manager.routing.leases.get(
            self._before.renamed.get(ended.backend, ended.backend)
        )
        area = area_of(ended.path)
        if isinstance(backend, AreaBackend) and area is not None and ended.name is not None:
            backend.areas.put(ended.name.name, area)

    async def _start_leases(self) -> None:
        """Start the lockspaces, when all known claims are in the table."""
        if self._manager.doubt:
            self._leases.hold_places(self._manager.unknown, self._manager.doubt)
        await self._leases.start()

    def _join_lockspaces_of_clients(
        self, state: SavedState, copied: Mapping[str, SanlockLockspaceLine]
    ) -> None:
        """Those that the journal names, and those that only this host's copies of its incarnations name: clients may have
        leases there, also where sanlock's clients are not served any more. Of a damaged journal, what no copy bears out was
        never joined, or was left, or its name is damaged.
        """
        added = state.added
        if state.damage:
            added = {
                name: copied.get(name, line)
                for name, line in added.items()
                if self._leases.may_be_clients(path_of(name))
            }
        for name in state.added.keys() - added:
            log.warning(
                "lockspace %s, which a damaged journal says a client of sanlock had added, is not joined",
                name,
            )
        unnamed = {name: line for name, line in copied.items() if name not in added}
        self._manager.book.added = {**added, **unnamed}
        self._join_again(added)
        for name, line in unnamed.items():
            log.error(
                "lockspace %s is joined again for clients of sanlock, which had added it: the journal does not name it, "
                "a copy of this host's incarnation does",
                name,
            )
            self._guard_again({name: line})

    def _believed(
        self, state: SavedState, copied: Mapping[str, SanlockLockspaceLine], *, has_descriptors: bool
    ) -> SavedState:
        """The part of the journal that is believed; `manager.doubt` says why that may not be all. `copied`: the lockspaces
        that this host's copies of its incarnations say clients of sanlock have added; a journal lacks none of them.

        After a whole journal of another boot nothing is held, as no process of that boot lives. But if anything of this boot
        shows that a daemon has run, the journal is stale.
        """
        earlier = (
            has_descriptors or bool(copied) or self._leases.has_earlier_life or self._before.daemon_was_here
        )
        if state.is_whole and state.boot == self._boot and (lacking := copied.keys() - state.added):
            state.damage = (
                f"it lacks lockspace {', '.join(sorted(lacking))}, which clients of sanlock have added"
            )
        if state.is_whole and state.boot == self._boot:
            return state
        if state.is_whole:
            if not earlier:
                if state.locks:
                    log.info("journal of an earlier boot: its %d locks ended with it", len(state.locks))
                return SavedState(boot=self._boot)
            self._manager.doubt = "the journal is of another boot, but a daemon of this boot held locks"
            state = SavedState()
        elif state.lines or earlier:
            self._manager.doubt = state.doubt
        if self._manager.doubt:
            log.critical(
                "%s: nothing is let go because of that; what can't be attributed is held for unknown owners",
                self._manager.doubt,
            )
        return state

    def _drop(self, lock_id: int, fd: int) -> None:
        with contextlib.suppress(OSError):
            ofd_lock.unlock(fd)
        os.close(fd)
        self._store(lock_name(lock_id), None)

    def _adopt_reexec(self, state: fds.ReexecState, living: dict[int, Owner]) -> None:
        self._events.restore(_event_from(e) for e in state.events)
        for c in state.connections:
            sock = socket.socket(fileno=c.fd)
            self._virtlockd.adopt(
                sock,
                peer_of(sock),
                living.get(c.owner),
                restricted=c.restricted,
                carried=c.carried,
                unsent=c.unsent,
                kept=c.kept,
            )

    def _adopt_stored(self, named: list[tuple[str, int]], living: dict[int, Owner]) -> dict[int, int]:
        """Resume connections from systemd's store; returns the descriptors of locks by lock number."""
        locks: dict[int, int] = {}
        for name, fd in named:
            kind, _, rest = name.partition("-")
            number, _, owner_number = rest.partition("-")
            if kind == "lock" and number.isdigit():
                if int(number) in locks:
                    # Stored twice, where systemd can't find out by kcmp(2) that it is the same.
                    os.close(fd)
                else:
                    locks[int(number)] = fd
            elif kind == "conn" and number.isdigit() and owner_number.isdigit():
                self._virtlockd.continue_kept_count(int(number))
                sock = socket.socket(fileno=fd)
                owner = living.get(int(owner_number))
                if owner is not None:
                    self._virtlockd.adopt(sock, peer_of(sock), owner, restricted=True, kept=name)
                else:
                    sock.close()
                    self._store(name, None)
        return locks

    # --- passing on ---

    def state(self, listeners: dict[str, int], self_bound: list[str], own: DaemonLocks) -> fds.ReexecState:
        """Everything that the next program image needs, with descriptors by number."""
        connections = []
        for c in self._virtlockd.connections:
            leftovers = c.leftovers()
            if leftovers is None:
                continue  # within an oversized message: the client sees its connection close
            connections.append(
                fds.SavedConnection(
                    c.fileno(), c.owner.id if c.owner else 0, c.restricted, *leftovers, c.kept
                )
            )
        locks = {}
        for lock in self._manager.table:
            if lock.held is not None and (fd := lock.held.descriptor()) is not None:
                locks[lock.id] = fd
        watchdog = self._leases.armed_watchdog()
        return fds.ReexecState(
            version=fds.REEXEC_VERSION,
            listeners=listeners,
            self_bound=self_bound,
            locks=locks,
            connections=connections,
            journal=self._journal.image(self._manager.journal_lines(everybody=True)),
            events=[_event_to(e) for e in self._events.recent()],
            lock_fd=own.run_dir,
            state_lock_fd=own.state_dir,
            watchdog_fd=watchdog.fd if watchdog is not None else -1,
            watchdog=watchdog.armed_with if watchdog is not None else ("", "", 0),
            fed_until_fd=self._leases.fed_until_descriptor(),
            configuration=self._before.configuration,
            space_locks=self._leases.space_locks(),
        )


def may_hold_leases(state: SavedState, boot: str) -> bool:
    """Whether a journal has leases of this boot, or may have; one that is not whole may have any."""
    if not state.is_whole:
        return True
    if state.boot != boot:
        return False
    return any(is_lease(lock.keys) for lock in state.locks.values())


def _has_locks(inherited: fds.Inherited) -> bool:
    return inherited.reexec is not None or any(name.startswith("lock-") for name, _ in inherited.named)


def lock_name(lock_id: int) -> str:
    """A lock's descriptor in systemd's store."""
    return f"lock-{lock_id}"


def _event_to(e: Event) -> EventRecord:
    owner = e.owner or OwnerName("")
    space, name = e.resource or ("", "")
    texts = [t.encode("utf-8", "replace").decode() for t in (owner.name, space, name, e.detail)]
    return (
        e.number,
        e.wall_s,
        e.kind,
        texts[0],
        owner.uuid,
        e.pid,
        texts[1],
        texts[2],
        int(e.mode or 0),
        texts[3],
    )


def _event_from(e: EventRecord) -> Event:
    number, wall_s, kind, owner, uuid, pid, space, name, mode, detail = e
    return Event(
        number,
        wall_s,
        kind,
        OwnerName(owner, uuid) if owner or uuid else None,
        pid,
        Resource(space, name) if name else None,
        Mode(mode) if mode else None,
        detail,
    )
