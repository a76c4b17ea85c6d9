"""One daemon of a host uses a lockspace at a time, wherever it has its files (ADR 0164).

The lock of a lockspace (`system/files/lockspace_locks`) keeps living daemons apart. It ends with its daemon, whose virtual
machines run on: so the user of a lockspace is recorded beside the lock, before anything is claimed there, and the record
stands until the lockspace was left in good order.

    another's record of this boot, or one that can't be read        nothing new is joined: doubt is not free
    the same, but VMs may depend on an incarnation that this        it is resumed: its name is fresh, so storage
    daemon remembers                                                proves that it is this daemon's own
    no record                                                       joined: an older daemon left none

A daemon that is refused, and that no virtual machine depends on, removes its own record: two daemons that had left one each
would keep each other out until the host is started again.

A user is identified by its pair of directories, which have all that a daemon knows of its virtual machines.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from holdfast.system.files.daemon_lock import InUse
from holdfast.system.files.lockspace_locks import SpaceLock
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.host.predecessor import Predecessors

log = logging.getLogger(__name__)


class User(msgspec.Struct, frozen=True):
    """A daemon's directories, and the boot in which it used the lockspace."""

    boot: str
    run_dir: str
    state_dir: str

    def __str__(self) -> str:
        return f"run_dir {self.run_dir}, state_dir {self.state_dir}"


class _Record(msgspec.Struct, frozen=True):
    users: tuple[User, ...]


class LockspaceUse:
    """This daemon's use of one lockspace. `take` runs on the joining thread, all else on the event loop; never two at once.

    `stuck` returns the pid of one of these dead daemons that may still have a request inside this lockspace.
    """

    def __init__(
        self,
        lockspace: str,
        lock: SpaceLock,
        user: User,
        *,
        stuck: Callable[[Predecessors], int | None] = lambda _: None,
    ) -> None:
        self._name = lockspace
        self._lock = lock
        self._us = user
        self._stuck = stuck
        self._dead = Predecessors()
        self.incomplete = ""
        """Why lock or record are not as they should be although the lockspace is used: no new lock may depend on it."""
        self.refused = ""
        """What the last `take` returned."""

    def descriptor(self) -> int | None:
        """The lock's descriptor, for the next program of a re-exec."""
        return self._lock.descriptor()

    def others(self) -> str:
        """Why virtual machines of another daemon may depend on this lockspace; empty if none does."""
        users = self._users()
        if isinstance(users, Unreadable):
            return (
                f"{self._lock.path} can't be read ({users.reason}), so VMs of another holdfastd of this host may depend on "
                f"lockspace {self._name}: reboot this host, or remove that file when no VM of this host has a lease there"
            )
        for user in users:
            if user != self._us:
                return self._refusal(user, self._lock.holder())
        return ""

    def living_others(self) -> tuple[tuple[User, ...], int]:
        """The other users, and the pid of the living process that has the lock; 0 if none has it, or this daemon has."""
        users = self._users()
        if self._lock.held or isinstance(users, Unreadable):
            return (), 0
        return tuple(user for user in users if user != self._us), self._lock.holder()

    def take(self, *, resuming: bool, users_gone: bool = False, patient: bool = True) -> str:
        """Lock and record the lockspace before anything is claimed or renewed. Returns why that failed, or empty. If the
        lock is held already, only the record is compared.

        `resuming`: virtual machines may depend on an incarnation that this daemon remembers. Then neither a record nor a
        file that can't be written is a refusal: `incomplete` reports it. `users_gone`: no virtual machine depends on what an
        earlier daemon of these directories did there, so this daemon would end that one's incarnation; a refusal because of
        another's record then removes our own. May wait for a few seconds if `patient`.
        """
        self.refused = self._take(resuming, users_gone, patient)
        return self.refused

    def _take(self, resuming: bool, users_gone: bool, patient: bool) -> str:
        self.incomplete = ""
        if not resuming and (why := self.others()):
            self._stand_back(users_gone)
            return why
        if not self._lock.held:
            try:
                self._dead = self._lock.lock(patient=patient)
            except InUse as e:
                return self._taken(e)
            except OSError as e:
                self.incomplete = f"{e.filename or self._lock.path}: {e.strerror or e}"
                return "" if resuming else self._unwritten()
        # Under the lock: a record that was read before may be out of date.
        if not resuming and (why := self.others()):
            self._stand_back(users_gone)
            return why
        if not resuming and (pid := self._stuck(self._dead)) is not None:
            return f"an earlier daemon (pid {pid}) still has a request inside its storage"
        self.incomplete = self._write(add=True)
        if self.incomplete and not resuming:
            self.leave()
            return self._unwritten()
        return ""

    def complete(self) -> None:
        """Retry what `incomplete` reports; does not wait."""
        if self.incomplete:
            self.incomplete = self.take(resuming=True, patient=False) or self.incomplete

    def _stand_back(self, users_gone: bool) -> None:
        """Another one's record refuses this daemon: leave the lock to the other one, and our record only if virtual machines
        may depend on it, or a dead daemon of ours may still write.
        """
        if users_gone and self._is_recorded() and not self._lock.held:
            with contextlib.suppress(InUse, OSError):
                self._dead = self._lock.lock(patient=False)
        if users_gone and self._lock.held and self._stuck(self._dead) is None:
            self.leave()
        else:
            self._lock.unlock()

    def _is_recorded(self) -> bool:
        users = self._users()
        return not isinstance(users, Unreadable) and self._us in users

    def leave(self) -> None:
        """Remove the record: no virtual machine depends on the lockspace any more. No effect without the lock."""
        self.refused = ""
        if not self._lock.held:
            return
        if failed := self._write(add=False):
            log.error("lockspace %s stays recorded as used: %s", self._name, failed)
        self._lock.unlock()

    def _users(self) -> tuple[User, ...] | Unreadable:
        """The recorded users of this boot: virtual machines of an earlier boot have ended."""
        raw = self._lock.read()
        if isinstance(raw, Unreadable):
            return () if raw.missing else raw
        try:
            found = msgspec.json.decode(raw, type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            return Unreadable(str(e))
        return tuple(user for user in found.users if user.boot == self._us.boot)

    def _write(self, *, add: bool) -> str:
        """Write the record with or without this daemon. Returns why that failed, or empty."""
        users = self._users()
        if isinstance(users, Unreadable):
            if not add:
                return f"{self._lock.path}: {users.reason}"
            users = ()  # an incarnation that storage proves to be ours is resumed, so it was ours
        wanted = tuple(user for user in users if user != self._us) + ((self._us,) if add else ())
        if add and self._us in users:
            return ""
        try:
            self._lock.replace(msgspec.json.encode(_Record(wanted)) if wanted else b"")
        except OSError as e:
            return f"{self._lock.path}: {e.strerror or e}"
        return ""

    def _unwritten(self) -> str:
        return (
            f"that this host uses lockspace {self._name} can't be recorded ({self.incomplete}): make room, or make it "
            "writable (host_locks)"
        )

    def _taken(self, by: InUse) -> str:
        if by.reason:
            return f"lock of lockspace {self._name} on this host ({self._lock.path}): {by.reason}"
        users = self._users()
        others = [] if isinstance(users, Unreadable) else [user for user in users if user != self._us]
        return self._refusal(others[0] if others else None, by.pid or -1)

    def _refusal(self, user: User | None, pid: int) -> str:
        """The refusal. `pid`: of a living daemon, below 0 if it is not known; 0: it has ended."""
        if pid:
            facts = ", ".join([f"pid {pid}" if pid > 0 else "pid unknown", *([str(user)] if user else [])])
            return (
                f"lockspace {self._name} is used by another holdfastd of this host ({facts}), and one can use it at a time: "
                "stop that one in good order, or let it serve these disks"
            )
        return (
            f"lockspace {self._name} was used by a holdfastd of this host that has ended ({user}), and its VMs may still "
            "depend on it: start it once with these directories, end or migrate its VMs, stop it; or reboot this host"
        )
