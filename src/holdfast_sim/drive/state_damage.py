"""Damages the state that one daemon leaves to the next: lost, cut, damaged, stale, of another version; full disks.

    before a start   the journal, one or two of the three copies of the incarnation, the timeout of the inherited watchdog;
                     a virtual machine ends unnoticed; a disk stays full for a while
    after a kill     the descriptor store loses the watchdog
    after a start    another virtual machine of this host wants a disk that is in use

One of the three copies of an incarnation (state_dir, RUN_DIR, journal) stays intact, over several starts too: a host that
has lost all of them and its journal can't know that it ever ran. At sites whose RUN_DIR fills up, that happens under a
daemon that runs as well; there disks are unplugged, and a checker requires that the journal forgets a claim that has ended
as soon as there is room. Choices come from a separate generator, so that a seed
without any damage keeps its history.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from holdfast.manager.journal_replay import replay
from holdfast.supervision.host_identity import Incarnation, encode_term
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.system.watchdog.passed import WATCHDOG_FD_NAME
from holdfast.testing.fakes import SimulatedAppendFile
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.cluster.daemon import ManagedDaemon
from holdfast_sim.cluster.vm import ManagedDesk
from holdfast_sim.host.machine import Machine
from holdfast_sim.host.ports import MachineState, StateFile

FULL_MAX_S = 20.0
"""How many seconds a disk stays full: longer than the daemon takes to start and to serve."""
RIVAL_SOON_S, RIVAL_MAX_S = 1.5, 15.0
"""Seconds from a start until another VM wants the disk: before and after the left state is accounted for."""
SEEMINGLY_WHOLE = 0.25
"""The share of damaged journals that still replay without a fault."""
FILLS_EVERY_S, UNPLUGS_EVERY_S = 4.0, 2.0
"""Mean seconds, in the whole cluster, between two full disks of RUN_DIR, and between two disks that are unplugged."""
LIVES_ON_S = (3.0, 30.0)
"""For how long a virtual machine lives on without the disk."""
LOOK_S = 0.5
MEMBERS_MAX = 2
"""How many copies of an incarnation are damaged at the same time; the third one stays intact."""


@dataclass(frozen=True, slots=True)
class Plagues:
    """Rates of damage. ``rate``: of each kind, per start. ``kills_every_s``: mean seconds between kills of daemons that only
    serve this; 0: never. ``quiet``: there are no other faults, so a failure can have no other cause.
    """

    rate: float = 0.0
    kills_every_s: float = 0.0
    quiet: bool = False

    @classmethod
    def drawn(cls, random: Random) -> Plagues:
        rate = random.choice((0.0, 0.0, 0.15, 0.4))
        quiet = random.random() < 0.5
        return cls(rate, random.choice((6.0, 15.0)) if quiet else 0.0, quiet) if rate else cls()


NO_PLAGUES = Plagues()


@dataclass(eq=False)
class _EndedClaim:
    """Of a virtual machine that lives on. `before`: the journal when it had no room last."""

    daemon: ManagedDaemon
    pid: int
    journal: SimulatedAppendFile
    before: bytes

    def is_named(self) -> bool:
        """In the journal, and not in the table of the daemon that writes it."""
        saved = replay(self.journal.raw)
        ids = {i for i, owner in saved.owners.items() if owner.process.pid == self.pid}
        owner = self.daemon.manager.owners.with_pid(self.pid)
        holds = owner is not None and any(owner.id in lock.claims for lock in self.daemon.manager.table)
        return not holds and any(ids.intersection(lock.claims) for lock in saved.locks.values())


class StateDamage:
    """Damages state at each start of a daemon, until `heal`."""

    def __init__(self, cluster: Cluster, plagues: Plagues, random: Random) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._plagues = plagues
        self._random = random
        self._backups = _beside(random)
        """A separate generator for damage that looks intact, so that other kinds keep their draws."""
        self._stopped = False
        if plagues.rate:
            cluster.before_start = self._before_start
            cluster.after_kill = self._after_kill
        if plagues.kills_every_s:
            self._next_kill()
        self._full = Random(f"full disks {cluster.world.seed}")
        self._ended: list[_EndedClaim] = []
        if cluster.scenario.full_disks:
            self._every(FILLS_EVERY_S, self._fill_run_dir)
            self._every(UNPLUGS_EVERY_S, self._unplug)
            self._look()

    def heal(self) -> None:
        """Free the full disks, and damage nothing any more."""
        self._stopped = True
        for state in self._cluster.states.values():
            state.journal.room_bytes = None
            for file in state.copies():
                file.full = False

    def _strikes(self, factor: float = 1.0) -> bool:
        return self._random.random() < self._plagues.rate * factor

    def _next_kill(self) -> None:
        self._world.after(self._random.expovariate(1 / self._plagues.kills_every_s), self._kill)

    def _kill(self) -> None:
        if self._stopped:
            return
        self._next_kill()
        machine = self._random.choice(self._cluster.machines)
        if machine.up:
            machine.kill_process("killed")

    # --- under a daemon that runs ---

    def _every(self, mean_s: float, strike: Callable[[], None]) -> None:
        def struck() -> None:
            if not self._stopped:
                self._every(mean_s, strike)
                strike()

        self._world.after(self._full.expovariate(1 / mean_s), struck)

    def _fill_run_dir(self) -> None:
        machine = self._full.choice(self._cluster.machines)
        journal, seconds = self._cluster.states[machine.name].journal, self._full.uniform(0.5, 8)
        self._record(machine, f"its RUN_DIR is full for {seconds:.1f} s")
        # With no room at all, a journal can't even be replaced by a shorter one: that takes a new file.
        journal.room_bytes = self._full.choice((0, 0, len(journal.raw) + 100))
        self._world.after(seconds, lambda: setattr(journal, "room_bytes", None))

    def _unplug(self) -> None:
        daemons = [d for d in self._cluster.daemons.values() if isinstance(d, ManagedDaemon) and d.serving]
        desks = [desk for d in daemons if d.alive for desk in d.desks if desk.lease is not None]
        if desks:
            desk = self._full.choice(desks)
            desk.seat.daemon.process.spawn(self._unplugged(desk))

    async def _unplugged(self, desk: ManagedDesk) -> None:
        daemon, vm = desk.seat.daemon, desk.lease
        state = daemon.state
        if state.status is not None or vm is None or not await desk.unplug():
            return
        self._record(daemon.machine, f"{vm.name} lives on without {desk.resource}")
        self._ended.append(_EndedClaim(daemon, vm.pid, state.journal, state.journal.raw))
        processes, pid = state.processes, vm.pid

        def ends() -> None:
            # The daemon may have stopped it before, and the next boot gives its pid to another.
            if processes is state.processes and processes.is_running(pid):
                processes.end(pid)

        self._world.after(self._full.uniform(*LIVES_ON_S), ends)

    def _look(self) -> None:
        """Check that a journal with room in it, which was written since, does not name a claim that has ended."""
        self._ended = [each for each in self._ended if each.daemon.alive]
        for ended in list(self._ended):
            if ended.journal.room_bytes is not None:
                ended.before = ended.journal.raw
            elif ended.journal.raw != ended.before:
                self._ended.remove(ended)
                if ended.is_named():
                    self._world.fail(
                        "nothing is locked for nobody",
                        f"the journal names the claim of process {ended.pid}, which has ended, and it has room",
                        ended.daemon.machine,
                    )
        if not self._stopped:
            self._world.after(LOOK_S, self._look)

    # --- before a start ---

    def _before_start(self, machine: Machine, state: MachineState) -> None:
        if self._stopped:
            return
        self._some_end(machine, state)
        self._damage_copies_of_incarnations(machine, state)
        if self._strikes(0.4):
            self._fill_disks(machine, state)
        if self._strikes(0.4) and state.wdmd is None:
            self._record(machine, "its watchdog has another timeout")
            machine.watchdog.set_timeout(self._random.choice((2, 40, 60)))
        for latest_s in (RIVAL_SOON_S, RIVAL_MAX_S):
            self._world.after(self._random.uniform(0.1, latest_s), lambda: self._rival(machine))

    def _record(self, machine: Machine, what: str) -> None:
        self._world.record(machine.name, what)

    def _some_end(self, machine: Machine, state: MachineState) -> None:
        for vm in [vm for vm in machine.vms if vm.held and vm.running]:
            if self._strikes(0.5):
                self._record(machine, f"{vm.name} ends unseen")
                state.processes.end(vm.pid)

    def _damage_copies_of_incarnations(self, machine: Machine, state: MachineState) -> None:
        """Damages at most two of three; after an exec the journal is not read, as the program has inherited its content."""
        members: list[Callable[[], None]] = []
        if self._strikes() and state.journal.raw and not state.reexec:
            members.append(lambda: self._damage_journal(machine, state))
        for name, files in (("state_dir", state.state_files), ("RUN_DIR", state.run_files)):
            if self._strikes():
                members.append(lambda name=name, files=files: self._damage_copies(machine, name, files))  # type: ignore[misc]
        self._random.shuffle(members)
        known = {name: self._newest(state, name) for name in state.run_files}
        for damage in members[:MEMBERS_MAX]:
            damage()
        for name, term in known.items():
            # If that daemon was killed before it wrote, earlier damage is still there: the last intact copy is spared.
            if term is not None and self._newest(state, name) != term:
                file = state.run_files[name]
                file.raw = file.written = encode_term(term).encode()

    @staticmethod
    def _newest(state: MachineState, lockspace: str) -> Incarnation | None:
        """The incarnation of this machine according to each copy, the journal's among them."""
        files = [
            StateFile() if lockspace not in each else each[lockspace]
            for each in (state.state_files, state.run_files)
        ]
        carried = replay(state.journal.raw).incarnations.get(lockspace, b"")
        return IncarnationCopies(lockspace, files, lambda: [carried]).newest(state.boot)

    def _damage_journal(self, machine: Machine, state: MachineState) -> None:
        what, damaged = self._random.choice(JOURNAL_DAMAGES)
        raw = damaged(state.journal.raw, self._random)
        if self._backups.random() < SEEMINGLY_WHOLE:
            what, raw = self._seemingly_whole(state)
        self._record(machine, f"its journal is {what}")
        state.journal.raw = raw
        state.journal.size_bytes = len(raw)

    def _seemingly_whole(self, state: MachineState) -> tuple[str, bytes]:
        """Replace it with a journal that replays without a fault; the extent file stays as it was, or is lost too."""
        raw = state.journal.raw
        if self._backups.random() < 0.3:
            state.journal_extent.raw = self._backups.choice(
                (b"", _flipped(state.journal_extent.raw, self._backups))
            )
        match self._backups.randrange(3):
            case 0 if state.journal.earlier:
                return "the one before it was rewritten last", state.journal.earlier
            case 1:
                return "as it was, and its extent may be lost", raw
            case _:
                return "cut between two appends", _cut_between_appends(raw, self._backups)

    def _damage_copies(self, machine: Machine, where: str, files: dict[str, StateFile]) -> None:
        for lockspace, file in files.items():
            what = self._random.choice(("missing", "damaged", "stale"))
            raw = b""
            if what == "damaged":
                raw = self._random.choice((_flipped, _cut))(file.raw, self._random)
            elif what == "stale":
                raw = self._random.choice(file.earlier) if file.earlier else b""
            self._record(machine, f"its copy of {lockspace} in {where} is {what}")
            file.raw = file.written = raw

    def _fill_disks(self, machine: Machine, state: MachineState) -> None:
        which = self._random.choice(("journal", "state_dir", "RUN_DIR"))
        seconds = self._random.uniform(0.5, FULL_MAX_S)
        self._record(machine, f"the disk of its {which} is full for {seconds:.1f} s")
        if which in ("journal", "RUN_DIR"):
            journal = state.journal
            journal.room_bytes = len(journal.raw) + self._random.choice((0, 100, 400))
            self._world.after(seconds, lambda: setattr(journal, "room_bytes", None))
        if which != "journal":
            files = state.state_files if which == "state_dir" else state.run_files
            for space in self._cluster.spaces:
                file = files.setdefault(space.name, StateFile())
                file.full = True
                self._world.after(seconds, lambda file=file: setattr(file, "full", False))  # type: ignore[misc]

    # --- after a kill, after a start ---

    def _after_kill(self, machine: Machine, state: MachineState) -> None:
        """systemd closes the descriptors that it kept, as it does for a stopped unit without a store; that pings the device.

        Not when a lease of this host has already failed, nor while the device has a longer timeout than ours, which a
        daemon that was killed early had not corrected: the ping would delay the reset beyond the bound, which the safety
        argument excludes by assumption (seed 5016).
        """
        kept = any(name == WATCHDOG_FD_NAME for name, _ in state.store.named)
        young = all(
            machine.boottime() < term.fails_at
            for term in self._cluster.checkers.terms.running
            if term.machine is machine
        )
        ours = machine.watchdog.timeout_s <= self._cluster.scenario.fire_timeout_s
        if not self._stopped and kept and young and self._strikes(0.4) and ours:
            self._record(machine, "systemd forgets its watchdog")
            state.store.store(WATCHDOG_FD_NAME, None)

    def _rival(self, machine: Machine) -> None:
        daemon = self._cluster.daemons.get(machine.name)
        if self._stopped or not isinstance(daemon, ManagedDaemon) or not daemon.alive:
            return
        in_use = [desk for desk in daemon.desks if desk.lease is not None and not desk.seat.space.is_added]
        if in_use:
            daemon.process.spawn(self._random.choice(in_use).rival())


def _beside(random: Random) -> Random:
    """A second generator, derived from the state of this one without a draw from it."""
    copy = Random()
    copy.setstate(random.getstate())
    return Random(copy.random())


# --- journals ---

Damaged = Callable[[bytes, Random], bytes]


def _lines(raw: bytes) -> list[bytes]:
    return raw.splitlines(keepends=True)


def _nothing(raw: bytes, random: Random) -> bytes:
    return b""


def _a_line(kind: bytes) -> Damaged:
    """Damage a line of that kind so that it can't be parsed; any line if there is none."""

    def damaged(raw: bytes, random: Random) -> bytes:
        lines = _lines(raw)
        found = [n for n, line in enumerate(lines) if line.startswith(b'["' + kind)] or [*range(len(lines))]
        number = random.choice(found)
        lines[number] = b"#" + lines[number][1:]
        return b"".join(lines)

    return damaged


def _owner_of_another_process(raw: bytes, random: Random) -> bytes:
    """The line can be parsed, and names a process that does not exist; only its checksum shows the damage."""
    lines = _lines(raw)
    found = [n for n, line in enumerate(lines) if line.startswith(b'["owner"')]
    if not found:
        return _flipped(raw, random)
    number = random.choice(found)
    owner: list[object] = msgspec.json.decode(lines[number], type=list)
    owner[2] = 999_999
    lines[number] = msgspec.json.encode(owner) + b"\n"
    return b"".join(lines)


def _cut(raw: bytes, random: Random) -> bytes:
    return raw[: len(raw) // 2]


def _cut_between_lines(raw: bytes, random: Random) -> bytes:
    lines = _lines(raw)
    return b"".join(lines[: random.randrange(len(lines))])


def _cut_between_appends(raw: bytes, random: Random) -> bytes:
    """The last lines are lost, and the last one left is a checksum that fits."""
    lines = _lines(raw)
    ends = [n for n, line in enumerate(lines) if line.startswith(b'["sum"')]
    return b"".join(lines[: random.choice(ends) + 1]) if ends else raw


def _flipped(raw: bytes, random: Random) -> bytes:
    if not raw:
        return raw
    at = random.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << random.randrange(8))]) + raw[at + 1 :]


def _with_start(change: Callable[[list[object]], None]) -> Damaged:
    """A complete journal with correct checksums, whose first line has another content."""

    def damaged(raw: bytes, random: Random) -> bytes:
        lines = [line for line in _lines(raw) if not line.startswith(b'["sum"')]
        try:
            start: list[object] = msgspec.json.decode(lines[0], type=list)
        except (IndexError, msgspec.DecodeError):
            return raw  # damaged earlier, and not rewritten since
        change(start)
        body = b"".join([msgspec.json.encode(start) + b"\n", *lines[1:]])
        return b'%b["sum",%d]\n' % (body, zlib.crc32(body))

    return damaged


def _of_version_2(start: list[object]) -> None:
    start[1] = 2


def _of_another_boot(start: list[object]) -> None:
    start[2] = "another-boot"


JOURNAL_DAMAGES: Sequence[tuple[str, Damaged]] = (
    ("missing", _nothing),
    ("damaged in its start line", _a_line(b"start")),
    ("damaged in an owner's line", _owner_of_another_process),
    ("damaged in a lock's line", _a_line(b"lock")),
    ("damaged in a claim's line", _a_line(b"claim")),
    ("damaged in its incarnation", _a_line(b"incarnation")),
    ("cut in half", _cut),
    ("cut between two lines", _cut_between_lines),
    ("damaged in one bit", _flipped),
    ("of version 2", _with_start(_of_version_2)),
    ("of another boot", _with_start(_of_another_boot)),
)
