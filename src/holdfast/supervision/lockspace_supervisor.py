"""Keeps this host in one lockspace for as long as the daemon runs: joins, joins again, leaves, reports its state.

    ABSENT ──► JOINING ──► JOINED ──────────────► LEAVING ──► LEFT
      ▲           │           │ lost
      └── pause ◄─┘           ▼
      ▲                     LOST  owners that depend on it are being stopped (the layer above)
      └───────────────────────┘ users_are_gone()

At its start the daemon first tries to resume its last incarnation: VMs may still depend on it. Which one that was is
read from several copies (`incarnation_copies`); if none can be read and VMs depend on it, storage is searched for it. If
that incarnation is over, that is a loss like any other as long as a VM depends on it, and nothing is joined before
those VMs are gone.

New locks are refused until every copy is written: a lock that depends on an incarnation that the next daemon does not
know would kill its VM. Before all of it the lockspace is this daemon's alone on its host (`lockspace_use`).

Everything here runs on the event loop; the renewal runs on a thread (`LeaseThreads`) and reports `RenewalNews`. There is one
such thread at a time (ADR 0134): a lockspace is joined again when that of the lost incarnation has ended.
"""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import msgspec

from holdfast.ondisk.delta import DeltaLease
from holdfast.protocol.expiry import Phase
from holdfast.protocol.host_status import HostView, Notified
from holdfast.protocol.lockspace_area import Corrupt, open_area
from holdfast.protocol.membership import Membership
from holdfast.protocol.ports import Clock as ProtocolClock
from holdfast.protocol.ports import Disk
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, Instant, IoFailed, Waiting
from holdfast.supervision import lockspace_news
from holdfast.supervision.host_identity import HostIdChooser, HostIdentity, Incarnation, JoinPlan
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.supervision.join_errors import Hindrance, NotJoined, NotOpened
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.lockspace_entry import LockspaceEntry
from holdfast.supervision.lockspace_news import LockspaceNews, Over
from holdfast.supervision.lockspace_port import LockspaceSpec, NotAMember
from holdfast.supervision.lockspace_use import LockspaceUse
from holdfast.supervision.renewal import (
    Expiring,
    IoTimeoutChanged,
    Joined,
    Left,
    Lost,
    RenewalLoop,
    RenewalNews,
)
from holdfast.system.block_io.blocking_ports import Interrupted
from holdfast.system.block_io.renewal_threads import FoundDisk, LeaseThreads, Life
from holdfast.system.clock import Clock

log = logging.getLogger(__name__)

LEASE_WRITE_PAUSE_S = 0.05
"""Between two checks of writes that hold up leaving; most end in a few milliseconds."""
PREDECESSOR_LOOK_S = 1.0
"""Between two checks whether a request of an earlier daemon has ended."""
RESUME_WAIT_S = 10.0
"""How long owners may wait for their incarnation to be resumed, or 2 io_timeouts if that is longer, e.g. if open hangs: the
age of their lease is not known (ADR 0112)."""
JOIN_PAUSE_S = 5.0
"""Between a join that failed and the next: soon enough for a storage that has come back."""
REMEMBER_PAUSE_S = 2.0
"""Between two tries to write the incarnation down: new locks are refused until then."""


class LockspaceState(enum.Enum):
    """States of a supervisor, as in the module's drawing."""

    ABSENT = "not joined"
    JOINING = "joining"
    JOINED = "joined"
    LOST = "lost"
    LEAVING = "leaving"
    LEFT = "left"


class LockspaceSupervisor:
    """Supervises one lockspace. What its callables return: `token` random digits for a fresh name, `in_use` whether an
    owner depends on the lockspace, `lease_writes` see `RenewalLoop`, `may_start` why nothing may be begun in it now
    (empty: it may), `generation_min` the least generation of a claim made now, `is_in_doubt` whether locks that can't be
    named yet may depend on its last incarnation. `report` gets the news, on the event loop.
    """

    _ends_with_loss = False
    """Whether, once it is joined, a loss is the end (`rejoin`)."""

    def __init__(
        self,
        spec: LockspaceSpec,
        *,
        lease_monitor: LeaseMonitor,
        threads: LeaseThreads,
        clock: Clock,
        copies: IncarnationCopies,
        use: LockspaceUse,
        identity: HostIdentity,
        token: Callable[[], str],
        in_use: Callable[[], bool],
        lease_writes: Callable[[], Callable[[], bool]],
        spawn: Callable[..., object],
        report: Callable[[LockspaceNews], None],
        generation_min: Callable[[], int] = lambda: 1,
        may_start: Callable[[], str] = lambda: "",
        is_in_doubt: Callable[[], bool] = lambda: False,
        records: HostRecords | None = None,
    ) -> None:
        self.spec = self._configured = spec
        self.name = spec.name
        self.state = LockspaceState.ABSENT
        self.reason = "the daemon is starting"
        self.host_id: int | None = spec.host_id
        self.host_name = ""
        self.generation: int | None = None
        self.gone_on = False
        """Whether the present incarnation was begun by an earlier daemon."""
        self.incarnation: Incarnation | None = None
        """The present one, once joined."""
        self.not_remembered = ""
        """Why the present incarnation is not written down everywhere: no new lock may depend on it. Empty if it is."""
        self._lease_monitor = lease_monitor
        self._threads = threads
        self._clock = clock
        self._copies = copies
        self.use = use
        self._identity = identity
        self._token = token
        self._in_use = in_use
        self._lease_writes = lease_writes
        self._others: set[tuple[int, str]] = set()
        """Records that another host was seen to renew, by host id and host name: a clone of this one, or its namesake."""
        self._suspect: tuple[int, str] | None = None
        """The record that the last try has seen to change."""
        self._plan_tried: JoinPlan | None = None
        self._spawn = spawn
        self._report = report
        self._generation_min = generation_min
        self._may_start = may_start
        self._is_in_doubt = is_in_doubt
        self.records = records
        """What hosts say of themselves; None where that is not kept."""
        self._member: Membership | None = None
        self._lockspace: RenewalLoop | None = None
        self._interrupt: Callable[[], None] = lambda: None
        self._waiting_until: float | None = None
        self._recorded_io_timeout_s = 0
        """Of the record that is being claimed; 0 if it says none."""
        self._resuming = False
        self._wanted = self._retries = True
        """`_retries`: whether it is joined again after a try that failed, and after a loss."""
        self.failure: NotJoined | None = None
        """Of the last try; None while it is under way, or if it has joined."""
        self._on_first_try: list[Callable[[], None]] = []
        self._life = 0
        """Counts renewal threads, and waits to start one: news of one that is over is ignored."""
        self._thread_runs = False
        """The last renewal loop, whether it has ended or not: it may be about to renew its incarnation."""

    # --- state ---

    @property
    def fences(self) -> bool:
        return self._lease_monitor.fences

    @property
    def guarded(self) -> bool:
        """Whether this lease still gates the watchdog: until its users are gone and none of their writes can still reach
        storage.
        """
        return self._lease_monitor.guards(self.name)

    def membership(self) -> Membership | NotAMember:
        member = self._member
        if self.state is LockspaceState.JOINED and member is not None:
            # The lease monitor may know of a loss before its callback has run on the event loop.
            return member if member.may_write() else NotAMember("its lease has just been lost")
        left = self._waiting_until - self._clock.now() if self._waiting_until is not None else None
        return NotAMember(
            f"{self.state.value}: {self.reason}" if self.reason else self.state.value, left and max(0.0, left)
        )

    def refuses_new(self) -> str:
        """Why no new lock may depend on this lockspace although it is joined; empty if one may."""
        if unarmed := self._lease_monitor.why_unarmed():
            return unarmed
        if not self.not_remembered:
            return ""
        return (
            f"this host's incarnation can't be written ({self.not_remembered}), so a restart would lose it; "
            "make that file writable"
        )

    @property
    def has_earlier_life(self) -> bool:
        """Whether an earlier daemon of this boot was in it, according to any copy: VMs may depend on that."""
        return self.remembered is not None

    @property
    def remembered(self) -> Incarnation | None:
        """The incarnation of this boot that the copies name."""
        return self._copies.of_boot(self._identity.boot)

    def hosts(self) -> tuple[HostView, ...]:
        return self._lockspace.hosts() if self._lockspace is not None else ()

    @property
    def renewal(self) -> RenewalLoop | None:
        """The present renewal, or the last one; None before the first join."""
        return self._lockspace

    @property
    def member(self) -> Membership | None:
        """The present membership, also while new locks are refused; None unless it is joined."""
        return self._member if self.state is LockspaceState.JOINED else None

    @property
    def resuming(self) -> bool:
        """Whether it is still open if the last incarnation can be resumed."""
        return self._resuming

    @property
    def has_ended(self) -> bool:
        """Whether it is left, and nothing of it can reach storage any more: it may be forgotten."""
        return self.state is LockspaceState.LEFT and not self._thread_runs and not self.guarded

    @property
    def late(self) -> bool:
        """Whether renewals are late, or over."""
        return self._lockspace is not None and (self._lockspace.phase or Phase.OK) is not Phase.OK

    @property
    def fails_in_s(self) -> float:
        renewed_at = self.renewed_at
        return (
            max(0.0, renewed_at + self.timing.fail_s - self._clock.now()) if renewed_at is not None else 0.0
        )

    @property
    def renewed_at(self) -> Instant | None:
        return self._lockspace.renewed_at if self._lockspace is not None else None

    @property
    def grace_from(self) -> Instant | None:
        """From which renewal the grace of owners counts after a loss; None if they have none: the age of their lease is not
        known, or another host has this host's id, so others may take their disks by now.
        """
        taken = self._lockspace is not None and self._lockspace.taken
        return None if taken else self.renewed_at

    @property
    def timing(self) -> Timing:
        return self._lockspace.timing if self._lockspace is not None else self.spec.timing

    # --- called by the composition root ---

    def start(self, on_first_try: Callable[[], None] = lambda: None) -> None:
        """Join. `on_first_try` is called when it is known whether the last incarnation was resumed."""
        self._on_first_try.append(on_first_try)
        self._wanted = True
        self._join(may_resume=True)

    def try_once(self, on_end: Callable[[], None]) -> None:
        """Join; a try that fails is the last one, and a loss the end. `on_end` is called when it is joined or `failure` says
        why not. An incarnation that is resumed is tried for as `start` does.
        """
        self._retries = False
        self.start(on_end)

    def rejoin(self, on_first_try: Callable[[], None]) -> None:
        """Join what an earlier daemon was in by `try_once`: as `start`, and a loss is the end once it is joined."""
        self._ends_with_loss = True
        self.start(on_first_try)

    def join(self) -> None:
        """Join again after it was left."""
        if self.state is LockspaceState.LEFT:
            self.spec = self._configured
            self._wanted = True
            self._join(may_resume=False)

    def leave(self, on_left: Callable[[], None] = lambda: None) -> None:
        """Free the host id, on which no owner depends any more. `on_left` is called when that is done or has failed."""
        self._wanted = False
        if self.state in (LockspaceState.ABSENT, LockspaceState.LEFT):
            if self.state is LockspaceState.ABSENT and not self._thread_runs:
                self._give_up_use()
            self._become(LockspaceState.LEFT, "")
            if not self._retries:
                self.failure = NotJoined("joining was broken off", cause=Hindrance.BROKEN_OFF)
                self._first_try_done()
            on_left()
            return
        self._on_first_try.append(on_left)
        if self.state is not LockspaceState.LOST:
            self._become(LockspaceState.LEAVING, "")
        if self._lockspace is None:
            self._interrupt()
            return
        self._lockspace.retire()
        lease_write = self._lease_writes()
        if lease_write():
            self._spawn(self._leave_after(lease_write, self._lockspace))
        else:
            self._lockspace.leave()

    async def _leave_after(self, lease_write: Callable[[], bool], lockspace: RenewalLoop) -> None:
        while lease_write():
            await self._clock.sleep(LEASE_WRITE_PAUSE_S)
        lockspace.leave()

    def change_io_timeout(self, io_timeout_s: int) -> str:
        """Begin to change this host's io_timeout while it is joined, leases and all. Returns why not; empty if it is so or
        is under way, which takes two renewals; `lockspace_news.Changed` follows. The next join has it, too, unless the
        lockspace was left on purpose.
        """
        term, renewal = self.incarnation, self._lockspace
        timing = replace(self.timing, io_timeout_s=io_timeout_s)
        if self.state is not LockspaceState.JOINED or term is None or renewal is None:
            return f"lockspace '{self.name}' is not joined: {self.state.value}"
        if io_timeout_s == (term.next_io_timeout_s or term.io_timeout_s):
            return ""
        if term.next_io_timeout_s:
            return f"it is being changed to {term.next_io_timeout_s} s: wait until that is done"
        if broken := timing.broken():
            return "; ".join(map(str, broken))
        if self.not_remembered:
            return self.refuses_new()
        changing = msgspec.structs.replace(term, next_io_timeout_s=io_timeout_s, joined_at=self._clock.now())
        if failed := self._copies.write(changing):
            return f"that can't be written down ({failed}), and a restart has to know it: make that file writable"
        self.incarnation = changing
        self._report(lockspace_news.Changed(self.name, changing))
        renewal.change_io_timeout(io_timeout_s)
        log.warning(
            "lockspace %s: io_timeout is being changed from %d to %d s",
            self.name,
            term.io_timeout_s,
            io_timeout_s,
        )
        return ""

    def heart_stopped(self) -> None:
        """The lease monitor ended, so nothing may depend on the lease."""
        if self.state is LockspaceState.JOINED:
            self._lost("the heartbeat stopped")

    def users_gone(self) -> None:
        """After a loss: all owners that depended on it are provably gone. The host need not be reset, and joins again."""
        if self.state is not LockspaceState.LOST:
            return
        if self._lockspace is not None:
            self._lockspace.users_gone()
        self._life += 1
        self._lease_monitor.settle(self.name)
        if not (self._wanted and self._retries):  # it was lost while it was being left, or is tried once
            self._become(LockspaceState.LEFT, "")
            self._forget_use()
            return
        self._become(LockspaceState.ABSENT, "all its users were stopped")
        self._join(may_resume=False)

    # --- joining ---

    def _join(self, *, may_resume: bool) -> None:
        if self._thread_runs:
            self._become(LockspaceState.ABSENT, "its last renewal has not ended")
            return
        if why := self._may_start():
            log.warning("lockspace %s is not joined: %s", self.name, why)
            self._become(LockspaceState.ABSENT, why)
            if may_resume and self._in_use():
                self._lease_monitor.block_feeding(self.name)
            self._life += 1
            self._spawn(self._join_when_allowed(may_resume, self._life))
            return
        term = self._copies.newest(self._identity.boot)
        chooser = HostIdChooser(
            host_id=HostId(self.spec.host_id) if self.spec.host_id is not None else None,
            hosts_max=self.spec.hosts_max,
            timing=self.spec.timing,
            identity=self._identity,
            token=self._token(),
            on_wait=self._on_wait,
            others=self._others,
        )
        entry = LockspaceEntry(self.spec, chooser, records=self.records, fences=lambda: self.fences)
        in_use = self._in_use()
        resumption = chooser.resumption(term, in_use=in_use) if may_resume else None
        if resumption is not None and self.spec.host_id not in (None, resumption.host_id):
            log.error(
                "lockspace %s: host_id is %s in the configuration, but VMs hold leases as host_id %d: that stays in use "
                "until they have ended",
                self.name,
                self.spec.host_id,
                resumption.host_id,
            )
        searches = may_resume and resumption is None and in_use
        self._resuming = resumption is not None or searches
        self._lockspace = self._member = self.failure = None
        self._become(LockspaceState.JOINING, "resuming its last incarnation" if self._resuming else "")
        users_gone = not in_use
        if self._resuming and in_use:
            self._lease_monitor.block_feeding(self.name)
        self._life += 1
        number = self._life
        self._thread_runs = True

        def on_end(result: object) -> None:
            self._thread_runs = False
            if number == self._life:
                self._ended(result)
                if self.state is LockspaceState.LOST and (resumption is not None or searches):
                    self._spawn(self._look_until_over(chooser, resumption, number))
            elif self._wanted and self.state is LockspaceState.ABSENT:
                self._join(may_resume=False)
            else:
                self._forget_use()

        async def life(disk: FoundDisk, clock: ProtocolClock, interrupt: Callable[[], None]) -> object:
            self._interrupt = interrupt
            if refused := self.use.take(resuming=resumption is not None and in_use, users_gone=users_gone):
                return NotJoined(refused)
            if users_gone and resumption is None:
                self._lease_monitor.settle(
                    self.name
                )  # was blocked for VMs of another daemon, which has left in good order
            try:
                plan = resumption or await entry.plan(
                    disk, clock, term, users_gone=users_gone, searches=searches
                )
            except Interrupted:  # it is left before it is joined
                return NotJoined("joining was broken off", cause=Hindrance.BROKEN_OFF)
            if isinstance(plan, NotJoined):
                return plan
            if unfit := await entry.unfit(disk, plan, term):
                return NotJoined(unfit)
            self._plan_tried = plan
            lockspace = self._lockspace = self._make(plan, disk, clock, interrupt, number)
            return await lockspace.run()

        self._begin(life, on_end)

    def _begin(self, life: Life, on_end: Callable[[object], None]) -> None:
        """Start the renewal thread; unless VMs may depend on it, after the host records of other hosts were read."""
        if self.records is None or self._resuming:
            self._threads.start_on_disk(f"lockspace {self.name}", self.spec.path, life, on_end)
        else:
            self._spawn(self._begin_informed(self.records, life, on_end))

    async def _begin_informed(
        self, records: HostRecords, life: Life, on_end: Callable[[object], None]
    ) -> None:
        await records.refresh()
        if self._wanted and self.state is LockspaceState.JOINING:
            self._threads.start_on_disk(f"lockspace {self.name}", self.spec.path, life, on_end)
        else:
            on_end(NotJoined("joining was broken off", cause=Hindrance.BROKEN_OFF))

    async def _join_when_allowed(self, may_resume: bool, number: int) -> None:
        until = self._clock.now() + max(RESUME_WAIT_S, 2 * self.spec.timing.io_timeout_s)
        while why := self._may_start():
            await self._clock.sleep(PREDECESSOR_LOOK_S)
            if number != self._life or self.state is not LockspaceState.ABSENT:
                return
            if may_resume and self._clock.now() > until and self._in_use():
                self._lost(f"its last term could not be resumed in time: {why}")
                self._first_try_done()
                return
        self._join(may_resume=may_resume)

    async def _look_until_over(
        self, chooser: HostIdChooser, resumption: JoinPlan | None, number: int
    ) -> None:
        """The last incarnation could not be resumed, and it is not known which VMs depend on it: none does as soon as
        storage shows it over. Until then the lockspace stays lost.
        """

        async def life(disk: FoundDisk, clock: ProtocolClock, _: Callable[[], None]) -> object:
            area = await open_area(disk, self.spec.offset_bytes, self.name, self.spec.timing.io_timeout_s)
            if isinstance(area, Corrupt | IoFailed):
                return False
            if resumption is None:
                found = await chooser.search(area, clock, fences=self.fences)
                return isinstance(found, NotJoined) and found.is_over
            return await chooser.is_over(area, clock, resumption, fences=self.fences)

        def on_end(result: object) -> None:
            self._thread_runs = False
            if number == self._life and result is True:
                self._report(Over(self.name))
            elif number != self._life and self._wanted and self.state is LockspaceState.ABSENT:
                self._join(may_resume=False)

        while number == self._life and self.state is LockspaceState.LOST and self._is_in_doubt():
            if not self._thread_runs and not self._may_start():
                self._thread_runs = True
                self._threads.start_on_disk(f"lockspace {self.name}", self.spec.path, life, on_end)
            await self._clock.sleep(JOIN_PAUSE_S)

    def _make(
        self, plan: JoinPlan, disk: Disk, clock: ProtocolClock, interrupt: Callable[[], None], number: int
    ) -> RenewalLoop:
        def report(news: RenewalNews) -> None:
            if isinstance(news, Joined | Expiring | Lost | Notified | IoTimeoutChanged):
                self._threads.call_soon(lambda: self._read(plan, news) if number == self._life else None)

        return RenewalLoop(
            name=self.name,
            disk=disk,
            offset_bytes=self.spec.offset_bytes,
            host_id=plan.host_id,
            host_name=plan.host_name,
            timing=plan.timing,
            clock=clock,
            lease_monitor=self._lease_monitor,
            report=report,
            on_wait=self._on_wait,
            interrupt=interrupt,
            resumed=plan.resumed,
            ended_generation=plan.ended_generation,
            next_io_timeout_s=plan.next_io_timeout_s,
            only_if_free=plan.only_if_free,
            only_of=plan.only_of,
            is_found=self.spec.host_id is None,
            generation_min=self._generation_min(),
            lease_writes=self._lease_writes,
            counts=self._lockspace.counts if self._lockspace is not None else None,
        )

    def _on_wait(self, waiting: Waiting) -> None:
        """On the renewal thread: plain assignments, read on any thread."""
        self.reason = waiting.reason
        self._recorded_io_timeout_s = waiting.recorded_io_timeout_s or self._recorded_io_timeout_s
        self._waiting_until = self._clock.now() + waiting.seconds_left

    def _other_io_timeout(self, term: Incarnation) -> str:
        """Words about the record that was claimed, if it said another io_timeout; else nothing."""
        recorded, self._recorded_io_timeout_s = self._recorded_io_timeout_s, 0
        if recorded in (0, term.io_timeout_s):
            return ""
        return (
            f"; its record said io_timeout {recorded} s, so the claim waited by the greater of the two: "
            f"io_timeout_s = {term.io_timeout_s} counts from now on"
        )

    # --- news and results of the renewal thread ---

    def _read(self, plan: JoinPlan, news: Joined | Expiring | Lost | Notified | IoTimeoutChanged) -> None:
        """News of the present renewal, in order; those of an earlier one are dropped before."""
        match news:
            case Joined(member):
                self._joined(plan, member)
            case Expiring(age_s):
                self._expiring(age_s)
            case Lost(reason):
                self._lost(reason)
            case IoTimeoutChanged(timing):
                self._io_timeout_changed(timing)
            case Notified(host_id, generation, event):
                self._report(lockspace_news.Notified(self.name, host_id, generation, event))
            case _:
                assert_never(news)

    def _joined(self, plan: JoinPlan, member: Membership) -> None:
        if self.state is not LockspaceState.JOINING:
            return
        term = self.incarnation = Incarnation(
            lockspace=self.name,
            host_id=member.host_id,
            generation=member.generation,
            host_name=plan.host_name,
            boot=self._identity.boot,
            machine=self._identity.machine,
            io_timeout_s=self.timing.io_timeout_s if self._lockspace else plan.timing.io_timeout_s,
            fire_timeout_s=plan.timing.fire_timeout_s,
            joined_at=self._clock.now(),
            ended_generation=member.ended_generation,
            next_io_timeout_s=self._lockspace.next_io_timeout_s if self._lockspace else 0,
            clients_place=self._copies.clients_place(),
        )
        # Written before any lock may depend on this incarnation: the next daemon has to know it.
        self._write_down(term)
        self.host_id, self.host_name, self.generation = term.host_id, term.host_name, term.generation
        self._member = member
        self.gone_on = self._resuming
        if self._ends_with_loss:
            self._retries = False
        how = "gone on with" if self._resuming else "joined"  # tests and scripts match on these words
        self._resuming = False
        self._become(LockspaceState.JOINED, "")
        log.info(
            "lockspace %s: %s as host_id %d, generation %d (%s)%s",
            self.name,
            how,
            term.host_id,
            term.generation,
            term.host_name,
            self._other_io_timeout(term),
        )
        self._first_try_done()
        self._report(lockspace_news.Joined(self.name, term, self.gone_on))
        self._tend_records(term)

    def _tend_records(self, term: Incarnation) -> None:
        if self.records is not None:
            self.records.begin(
                self.records.tend(
                    term,
                    views=self.hosts,
                    is_present=lambda: self.incarnation is term and self.state is LockspaceState.JOINED,
                    clock=self._clock,
                )
            )

    def _write_down(self, term: Incarnation) -> None:
        """Write every copy, now or as soon as that is possible; until then no new lock may depend on it."""
        self.not_remembered = self._copies.write(term) or self.use.incomplete
        if self.not_remembered:
            log.error("lockspace %s: new locks are refused: %s", self.name, self.refuses_new())
            self._spawn(self._remember(term))

    def _io_timeout_changed(self, timing: Timing) -> None:
        if self.incarnation is None or self.state not in (LockspaceState.JOINED, LockspaceState.LEAVING):
            return
        term = self.incarnation = msgspec.structs.replace(
            self.incarnation,
            io_timeout_s=timing.io_timeout_s,
            next_io_timeout_s=0,
            joined_at=self._clock.now(),
        )
        self.spec = replace(self.spec, timing=timing)
        self._write_down(term)
        log.warning("lockspace %s: io_timeout is %d s from now on", self.name, timing.io_timeout_s)
        self._report(lockspace_news.Changed(self.name, term))
        self._tend_records(term)

    async def _remember(self, term: Incarnation) -> None:
        """Repeat the write until every copy is written, as long as this is the present incarnation."""
        while self.not_remembered:
            await self._clock.sleep(REMEMBER_PAUSE_S)
            if self.incarnation is not term or self.state is not LockspaceState.JOINED:
                return
            self.use.complete()
            self.not_remembered = self._copies.write(term) or self.use.incomplete
        log.warning("lockspace %s: its incarnation is written down; new locks are granted again", self.name)

    @property
    def _trouble(self) -> str:
        trouble = self._lockspace.trouble if self._lockspace is not None else ""
        return f" ({trouble})" if trouble else ""

    def _expiring(self, age_s: float) -> None:
        log.warning(
            "lockspace %s: renewals are late, the last one is %.0f s old%s", self.name, age_s, self._trouble
        )

    def _lost(self, reason: str) -> None:
        """A loss is reported by the lease monitor, and by the end of the thread: the first counts."""
        if self.state in (LockspaceState.LOST, LockspaceState.LEFT):
            return
        lost_at = self._clock.now()
        self._lease_monitor.forget_earlier()
        reason += self._trouble
        self._become(LockspaceState.LOST, reason)
        log.critical("lockspace %s is LOST: %s", self.name, reason)
        self._report(lockspace_news.Lost(self.name, reason, self.timing, lost_at, self.grace_from))

    def _ended(self, result: object) -> None:
        """The renewal thread is over."""
        match result:
            case Left(released, reason):
                if released:
                    self._give_up_use()
                else:
                    log.warning("lockspace %s: host id not given back: %s", self.name, reason)
                self._become(LockspaceState.LEFT, "")
            case Lost(reason):
                self._lost(reason)
            case NotJoined(reason, holder, is_over=is_over):
                self.failure = result
                if is_over and self._resuming:
                    self._report(Over(self.name))
                if holder is not None:
                    self._leave_to(holder)
                self._not_joined(reason)
            case IoFailed(errno):
                reason = f"{self.spec.path} can't be opened: {os.strerror(errno)}"
                self.failure = NotJoined(reason, cause=NotOpened(errno))
                self._not_joined(reason)
            case BaseException():
                log.error("lockspace %s: the renewal failed unexpectedly", self.name, exc_info=result)
                if self.state is LockspaceState.JOINED:
                    self._lost(f"the renewal failed unexpectedly: {result!r}")
                else:
                    reason = f"joining failed unexpectedly: {result!r}"
                    self.failure = NotJoined(reason)
                    self._not_joined(reason)
            case _:
                raise TypeError(f"a renewal can't end in {result!r}")
        if self.state in (LockspaceState.LEFT, LockspaceState.LOST):
            self._first_try_done()

    def _leave_to(self, holder: DeltaLease) -> None:
        """The host id that was tried is another host's, or a late write of an earlier attempt of ours has landed there. That
        lands once: a record that changes twice while it is watched under the same name is renewed by another host, which
        keeps the id. A claim that was written before ours (`only_if_free`) was not watched.
        """
        plan = self._plan_tried
        if plan is None or plan.only_if_free or holder.is_marked_dead or holder.is_no_timeout:
            return
        seen = plan.host_id, holder.host_name.text
        if seen == self._suspect and not holder.host_name.says(plan.host_name):
            self._others.add(seen)
        self._suspect = seen

    def _not_joined(self, reason: str) -> None:
        resuming, self._resuming = self._resuming, False
        if self._lease_monitor.is_left_armed and not self._in_use() and not self.use.others():
            self._lease_monitor.stop_if_idle()  # ADR 0247
        if resuming and self._wanted and not self._in_use():
            log.info(
                "lockspace %s: not resumed, as nothing depends on the last incarnation: %s", self.name, reason
            )
        else:
            log.warning("lockspace %s is not joined: %s", self.name, reason)
        if not self._wanted or not (self._retries or resuming):
            self._give_up_use()
            self._become(LockspaceState.LEFT, "")
            self._first_try_done()
        elif resuming and self._in_use():
            self._lost(f"its last term could not be gone on with: {reason}")
            self._first_try_done()
        elif resuming:
            self._lease_monitor.settle(self.name)
            if self._retries:
                self._first_try_done()
            self._join(may_resume=False)
        else:
            self._become(LockspaceState.ABSENT, reason)
            self._first_try_done()
            self._spawn(self._join_later())

    def _give_up_use(self) -> None:
        """No VM of this host is known to depend on the lockspace: another daemon may use it."""
        if not self._in_use():
            self.use.leave()

    def _forget_use(self) -> None:
        """After a loss, if it is not joined again. While a write may land, no other daemon of this host may join either."""
        if not self._retries and self.has_ended:
            self._give_up_use()

    async def _join_later(self) -> None:
        await self._clock.sleep(JOIN_PAUSE_S)
        if self._wanted and self.state is LockspaceState.ABSENT:
            self._join(may_resume=False)

    def _first_try_done(self) -> None:
        waiters, self._on_first_try = self._on_first_try, []
        for waiter in waiters:
            waiter()

    def _become(self, state: LockspaceState, reason: str) -> None:
        self.state, self.reason, self._waiting_until = state, reason, None
