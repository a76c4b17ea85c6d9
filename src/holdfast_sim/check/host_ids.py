"""Incarnations of hosts in lockspaces: which host has which host id, and when each incarnation must be over (I8, I10, expiry
before takeover).

`claimed` and `landed` are called for writes of delta leases; the other calls report joins, hosts seen dead, and feedings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.ondisk.delta import DeltaLease
from holdfast.protocol.paxos_release import Mode
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import Machine, VirtualMachine
from holdfast_sim.world import World

FAIL_FACTOR_OF_THE_SPEC = 8
TIMESTAMP_SLACK_S = 1.0
"""The timestamp in a record is in whole seconds, rounded down."""
ROUNDING_S = 0.001
LONG_OURS_S = 20.0
"""Longer than the time between the write of a claim and the join."""


def node_of(record: DeltaLease) -> str:
    return record.host_name.text.partition(".")[0]


@dataclass(eq=False)
class Incarnation:
    """A host in a lockspace, from its join until it leaves, is reset, or gives up after all its owners have ended."""

    machine: Machine
    process: Process
    disk: str
    host_id: int
    generation: int
    io_timeout_s: int
    """As its record on storage shows it."""
    ordered_io_timeout_s: int = 0
    """To which an operator has it changed; 0: nobody has."""
    over: bool = False
    dismissed: Callable[[], bool] = lambda: False
    """Whether its owners have ended and none of its writes may still take effect: then nothing depends on it."""
    written: int = 0
    """The timestamp of the last renewal that took effect on storage."""
    landed_at: float = 0.0
    """When that renewal took effect, in true time."""
    beliefs: dict[str, Mode] = field(default_factory=dict)
    vms: dict[str, VirtualMachine] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    """Leases that this host holds on for clients that have ended."""
    is_restored_away: bool = False
    """An operator has put back an older lockspace: another host may find this host id free, and take it, before this one
    notices."""

    def __str__(self) -> str:
        return f"{self.machine} (host_id {self.host_id} generation {self.generation})"

    @property
    def is_left(self) -> bool:
        """Whether its daemon has died without owners: nothing depends on it, and an operator may confirm that it is off."""
        return self.process is not self.machine.process and not self.vms

    @property
    def fails_at(self) -> float:
        """When its lease fails, by the machine's clock."""
        return self.written + TIMESTAMP_SLACK_S + FAIL_FACTOR_OF_THE_SPEC * self.io_timeout_s


class TermCheckers:
    """All incarnations that are not over, and the records on the disks."""

    def __init__(self, world: World, fire_timeout_s: int) -> None:
        self.world = world
        self.fire_timeout_s = fire_timeout_s
        self.running: list[Incarnation] = []
        self.ids_are_found = False
        """Whether hosts choose their host ids (``auto``): then no host may take one that another host has had."""
        self.hosts_know_the_date = False
        """Whether generations count from the date: else a record that a late write has put back makes one repeat, and what
        decides is the note and the timestamp in a lease (ADR 0166).
        """
        self._host_ids: dict[tuple[str, Machine], int] = {}
        self._records: dict[tuple[str, int], DeltaLease] = {}
        self._recorded_at: dict[tuple[str, int], float] = {}
        self._named_since: dict[tuple[str, int], float] = {}
        self._generations: dict[tuple[str, int], int] = {}
        self._renewals: dict[tuple[Process, str, int], DeltaLease] = {}
        self._names: dict[tuple[str, int], set[str]] = {}
        self._over_by_record: dict[tuple[str, int], int] = {}
        """For each host id, the newest generation that a record has shown free or marked as dead."""
        self._members: set[tuple[Process, str, int, int]] = set()
        self._restored_at: dict[str, float] = {}
        self._machines: dict[tuple[str, int, int], Machine] = {}
        """The machine that has ever been a member by that host id and generation."""

    # --- delta leases ---

    def claimed(self, disk: str, process: Process, host_id: int, content: bytes) -> None:
        """A claim or renewal is issued. A host that chooses its id must not wait for the holder of one to die."""
        if not self.ids_are_found:
            return
        ours, theirs = DeltaLease.decode(content), self._records.get((disk, host_id))
        if not isinstance(ours, DeltaLease) or theirs is None or theirs.is_free:
            return
        quiet_s = self.world.now - self._recorded_at[disk, host_id]
        dead_s = FAIL_FACTOR_OF_THE_SPEC * theirs.io_timeout_s + self.fire_timeout_s
        if node_of(ours) != node_of(theirs) and quiet_s > dead_s:
            self.world.fail(
                "I8 one host has a host id",
                f"{process.name} takes host_id {host_id} of {node_of(theirs)}",
                process.name,
            )

    def landed(self, disk: str, process: Process, host_id: int, content: bytes) -> None:
        record = DeltaLease.decode(content)
        assert isinstance(record, DeltaLease), record
        generation = self._generations.get((disk, host_id), 0)
        self._renewals[process, disk, host_id] = record
        known = self._records.get((disk, host_id))
        if known is None or node_of(known) != node_of(record):
            self._named_since[disk, host_id] = self.world.now
        self._records[disk, host_id] = record
        self._names.setdefault((disk, host_id), set()).add(node_of(record))
        if record.is_free or record.is_marked_dead:
            self._over_by_record.setdefault((disk, host_id), record.generation)
            self._over_by_record[disk, host_id] = max(record.generation, self._over_by_record[disk, host_id])
        self._recorded_at[disk, host_id] = self.world.now
        # No rule stops a delayed claim of an id that the host never had; the owner of the id will notice it.
        was_member = (process, disk, host_id, record.generation) in self._members
        if record.generation < generation and was_member:
            self.world.fail(
                "I8 generations grow", f"host_id {host_id} went back to {record.generation}", process.name
            )
        self._generations[disk, host_id] = record.generation
        for term in self.of(disk, host_id):
            # The next daemon renews an incarnation once before it reports that it has resumed it.
            if process not in (term.process, term.machine.process):
                used = (term.vms or term.beliefs) and not term.is_restored_away
                if used and record.generation > term.generation:
                    self.world.fail(
                        "expiry before takeover",
                        f"{process.name} takes host_id {host_id} from {term}",
                        process.name,
                        term.machine,
                    )
            elif record.is_free:
                if term.vms or term.beliefs:
                    self.world.fail(
                        "nothing lost", f"{term} frees its host id, and still has {[*term.vms]}", term.machine
                    )
                self.is_over(term, "released")
            elif record.timestamp == term.written:
                # Others may read it again only when its timestamp has changed.
                term.io_timeout_s = min(term.io_timeout_s, record.io_timeout_s)
            else:
                term.written, term.landed_at = record.timestamp, self.world.now
                term.io_timeout_s = record.io_timeout_s
                self._await_death(term)

    def restored(self, disk: str, records: Mapping[int, DeltaLease]) -> None:
        """An older state of all records is on the disk now."""
        self._restored_at[disk] = self.world.now
        for term in self.running:
            term.is_restored_away |= term.disk == disk
        for host_id, record in records.items():
            known = self._records.get((disk, host_id))
            if known is None or node_of(known) != node_of(record):
                self._named_since[disk, host_id] = self.world.now
            self._records[disk, host_id] = record
            self._recorded_at[disk, host_id] = self.world.now
            self._generations[disk, host_id] = record.generation

    def proven_over(self, disk: str, host_id: int, generation: int) -> bool:
        """Whether a record has shown that generation, or a newer one, free or marked as dead."""
        return generation <= self._over_by_record.get((disk, host_id), -1)

    def names_of(self, disk: str, host_id: int) -> set[str]:
        """Names of all hosts that have had a host id."""
        return self._names.get((disk, host_id), set())

    # --- incarnations ---

    def joined(self, term: Incarnation) -> None:
        first = self._machines.setdefault((term.disk, term.host_id, term.generation), term.machine)
        if first is not term.machine and self.hosts_know_the_date:
            self.world.fail(
                "no generation twice", f"{term} has joined, and {first} was that before", term.machine, first
            )
        for other in list(self.running):
            if (other.disk, other.host_id) != (term.disk, term.host_id):
                continue
            if other.machine is term.machine and other.generation == term.generation:
                self._gone_on_with(other, term.process)
                return
            # Nothing depends on an incarnation that the next daemon could not resume and did not need; nor on one that
            # was left although its host id could not be freed.
            over = other.machine is term.machine or other.process is not other.machine.process
            if (over or other.dismissed()) and not other.vms:
                self.is_over(other, "succeeded")
            elif other.is_restored_away and other.machine is not term.machine:
                self.world.record(term.machine.name, f"has the host id of {other}, which has to end")
            else:
                self.world.fail(
                    "I8 one host has a host id",
                    f"{term} has joined, {other} is not over",
                    term.machine,
                    other.machine,
                )
        before = self._host_ids.get((term.disk, term.machine), term.host_id)
        record = self._records.get((term.disk, before))
        # A late claim has left the host's name in another record; a host that forgot its id may find that record first.
        long_ours = self.world.now - self._named_since.get((term.disk, term.host_id), 0.0) > LONG_OURS_S
        if (
            before != term.host_id
            and record is not None
            and node_of(record) == term.machine.name
            and not long_ours
            and self.world.now - self._restored_at.get(term.disk, -LONG_OURS_S) >= LONG_OURS_S
        ):
            self.world.fail("I8 one host has a host id", f"{term} had host_id {before} before", term.machine)
        self._host_ids[term.disk, term.machine] = term.host_id
        self.running.append(term)
        renewal = self._renewals.get((term.process, term.disk, term.host_id))
        if renewal is None:
            # Its daemon was killed after it had reported that nothing depends on the incarnation; the next one resumes it.
            of_it = (term.machine.name, term.disk, term.host_id)
            earlier = [
                r for (p, disk, host_id), r in self._renewals.items() if (p.name, disk, host_id) == of_it
            ]
            renewal = max(earlier, key=lambda record: record.timestamp)
        term.written = renewal.timestamp
        term.landed_at = self.world.now
        self._members.add((term.process, term.disk, term.host_id, term.generation))
        self.world.record(
            term.machine.name, f"joined {term.disk} as host_id {term.host_id} generation {term.generation}"
        )
        self._await_death(term)

    def _gone_on_with(self, term: Incarnation, process: Process) -> None:
        """A restarted daemon resumes the incarnation of the one before it."""
        term.process = process
        self._members.add((process, term.disk, term.host_id, term.generation))
        self.world.record(term.machine.name, f"goes on with its term {term.host_id}/{term.generation}")

    def is_over(self, term: Incarnation, why: str) -> None:
        if not term.over:
            term.over = True
            self.running.remove(term)
            term.beliefs.clear()
            self.world.record(term.machine.name, f"its term {term.host_id}/{term.generation} is over: {why}")

    def machine_reset(self, machine: Machine) -> None:
        for term in [t for t in self.running if t.machine is machine]:
            self.is_over(term, "reset")

    def seen_dead(self, observer: Incarnation, host_id: int, generation: int) -> None:
        """Another host is reported dead: nothing of that incarnation may run."""
        self.world.record(observer.machine.name, f"sees host_id {host_id} generation {generation} dead")
        for term in self.of(observer.disk, host_id):
            if term.generation == generation and (term.vms or term.beliefs):
                self.world.fail(
                    "expiry before takeover",
                    f"{observer} sees {term} dead, which still has {', '.join(term.vms or term.beliefs)}",
                    observer.machine,
                    term.machine,
                )

    def of(self, disk: str, host_id: int) -> list[Incarnation]:
        return [t for t in self.running if t.disk == disk and t.host_id == host_id]

    def _await_death(self, term: Incarnation) -> None:
        """Check that nothing of an incarnation is left at the dead bound of its last renewal."""
        written = term.written
        dead_at = term.fails_at + self.fire_timeout_s + ROUNDING_S
        self.world.at(term.machine.true_time_of(dead_at), lambda: self._outlived(term, written))

    def _outlived(self, term: Incarnation, written: int) -> None:
        if term.over or term.written != written:
            return
        if term.vms:
            self.world.fail(
                "expiry before takeover", f"{', '.join(term.vms)} of {term} outlived the lease", term.machine
            )

    def fed(self, machine: Machine) -> None:
        """The lease monitor has just fed the watchdog, or decided not to."""
        if machine.watchdog.fires_at is None:
            return
        fires_at = (machine.watchdog.fires_at - machine.true_time_of(0)) * machine.rate
        for term in self.running:
            if term.dismissed():
                term.dismissed = lambda: True  # for ever: later writes belong to the next incarnation
            if (
                term.machine is machine
                and not (term.dismissed() or term.is_left)
                and fires_at > term.fails_at + self.fire_timeout_s + ROUNDING_S
            ):
                self.world.fail(
                    "I10 no ping beyond the bound",
                    f"{term} will be reset at {fires_at:.1f}, its lease fails at {term.fails_at:.1f}",
                    machine,
                )
