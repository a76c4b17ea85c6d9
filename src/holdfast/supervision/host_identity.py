"""Plans how this host joins a lockspace: with which host id and name, and whether it resumes its last incarnation.

An incarnation is a host id, a generation and a name. Each incarnation has a fresh name (`host_names`), so a name identifies
one incarnation. The host remembers its last one in a small file:

    same boot                     its processes may live: resume the incarnation, if storage shows it unbroken;
                                  if not, its users are stopped first, and then its name proves it ours
    another boot, same hardware   no process of it can live: its id is claimed at once, under its name. A second instance
                                  of a virtual machine may run elsewhere, so there the next row applies
    anything else                 a fresh name, and the id's present record is watched for the dead bound

A clone of a machine remembers the incarnation of the original, whose record is being renewed: so the record of an earlier
boot is first watched for longer than a healthy host takes to renew. A host that chooses its own id gives up a record that
another host renews, whatever name is in it, and finds another id (ADR 0190).
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field

import msgspec

from holdfast.ondisk.delta import IO_TIMEOUT_MAX_S, DeltaLease
from holdfast.ondisk.geometry import HOSTS_MAX_LIMIT
from holdfast.ondisk.malformed import Malformed
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX
from holdfast.ondisk.record_layout import U64_MAX
from holdfast.protocol.lockspace_area import LockspaceArea
from holdfast.protocol.ports import Clock
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, IoFailed, OnWait, Waiting
from holdfast.supervision.host_names import fresh_name, is_of_node, may_be_of_node
from holdfast.supervision.join_errors import NotJoined

log = logging.getLogger(__name__)


REMOVED = "removed"
"""The place of a lockspace that clients had added and that was left."""


class Incarnation(msgspec.Struct, frozen=True, kw_only=True):
    """What a host remembers of an incarnation, in a file that survives a reboot."""

    lockspace: str
    host_id: int
    generation: int
    host_name: str
    boot: str
    machine: str
    io_timeout_s: int
    fire_timeout_s: int
    joined_at: float = 0.0
    """Seconds of CLOCK_BOOTTIME when it was joined or resumed, or its io_timeout changed: the latest copy counts. 0 in what
    an older daemon wrote.
    """
    ended_generation: int = 0
    """`delta_lease.Held.ended_generation`; 0, nothing, in what an older daemon wrote."""
    next_io_timeout_s: int = 0
    """To which it is being changed: the record on storage may have either; 0: it is not."""
    clients_place: str = ""
    """Where the lockspace is, if clients of sanlock have added it: the next daemon joins it by that where the journal is
    lost (`daemon.client_places`); `REMOVED` after it was left. Empty for a configured one, and in what an older daemon
    wrote.
    """

    @property
    def timing(self) -> Timing:
        return Timing(self.io_timeout_s, self.fire_timeout_s)

    @property
    def is_possible(self) -> bool:
        """Whether its numbers are in the ranges of the format: a damaged file may hold others."""
        return (
            1 <= self.host_id <= HOSTS_MAX_LIMIT
            and 1 <= self.generation <= U64_MAX
            and 1 <= self.io_timeout_s <= IO_TIMEOUT_MAX_S
            and 0 <= self.next_io_timeout_s <= IO_TIMEOUT_MAX_S
            and self.fire_timeout_s >= 1
            and 1 <= len(self.host_name.encode("utf-8", "replace")) <= HOST_NAME_BYTES_MAX
        )


class _Checked(Incarnation, frozen=True, kw_only=True):
    """An `Incarnation` as it is written: with the checksum (zlib.crc32) of what all versions have written; None in files of
    older daemons. What later versions have added has checksums of its own, so that an older daemon can read the rest.
    """

    check: int | None = None
    ended_check: int | None = None
    next_check: int | None = None
    place_check: int | None = None


_ADDED = ("ended_generation", "next_io_timeout_s", "clients_place")


def _raw(incarnation: Incarnation) -> bytes:
    """What all versions write."""
    fields = [name for name in Incarnation.__struct_fields__ if name not in _ADDED]
    return msgspec.json.encode({name: getattr(incarnation, name) for name in fields})


def encode_term(incarnation: Incarnation) -> str:
    raw, ended, next_s = _raw(incarnation), incarnation.ended_generation, incarnation.next_io_timeout_s
    checks = f'"check":{zlib.crc32(raw)},"ended_generation":{ended},"ended_check":{_check_of(raw, ended)}'
    if next_s:
        checks += f',"next_io_timeout_s":{next_s},"next_check":{_check_of(raw, next_s)}'
    if place := incarnation.clients_place:
        checks += (
            f',"clients_place":{msgspec.json.encode(place).decode()},"place_check":{_check_of(raw, place)}'
        )
    return f"{raw[:-1].decode()},{checks}}}"


def _check_of(raw: bytes, added: int | str) -> int:
    return zlib.crc32(str(added).encode("utf-8", "replace"), zlib.crc32(raw))


def decode_term(raw: bytes) -> Incarnation | None:
    """The incarnation in a state file; None if there is none that is valid. A flipped bit could change the host name, and
    an incarnation of that other name would be over: so a file whose checksum does not fit counts as lost.
    """
    try:
        found = msgspec.json.decode(raw, type=_Checked) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if found is None:
        return None
    incarnation = Incarnation(**{name: getattr(found, name) for name in Incarnation.__struct_fields__})
    raw = _raw(incarnation)
    fits = found.check is None or found.check == zlib.crc32(raw)
    if found.clients_place or found.place_check is not None:
        # Without its place the lockspace would seem to be a configured one: another copy has to say.
        fits = fits and found.place_check == _check_of(raw, found.clients_place)
    if found.ended_check != _check_of(raw, found.ended_generation):
        incarnation = msgspec.structs.replace(incarnation, ended_generation=0)
    if found.next_check != _check_of(raw, found.next_io_timeout_s):
        incarnation = msgspec.structs.replace(incarnation, next_io_timeout_s=0)
    return incarnation if fits and incarnation.is_possible else None


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """This host's identity. `machine` distinguishes it from its clones where anything does; empty if nothing proves that."""

    node: str
    boot: str
    machine: str


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """How to join: the id and the name to claim it under; `resumed`: the generation to resume instead.

    `only_if_free`: a host that claimed it first keeps it, and we find another id. `only_of`: so does every host but the one
    of this name.
    """

    host_id: HostId
    host_name: str
    timing: Timing
    resumed: Generation | None = None
    only_if_free: bool = False
    only_of: str = ""
    ended_generation: int = 0
    next_io_timeout_s: int = 0
    """Both of the incarnation that is resumed: see `Incarnation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdChooser:
    """Plans how to join one lockspace. `host_id` None: find one. `token`: random digits for a fresh name.

    `others`: records that another host was seen to renew, by host id and host name; it grows.
    """

    host_id: HostId | None
    hosts_max: int | None
    timing: Timing
    identity: HostIdentity
    token: str
    on_wait: OnWait
    others: set[tuple[int, str]] = field(default_factory=set)

    def resumption(self, incarnation: Incarnation | None, *, in_use: bool) -> JoinPlan | None:
        """To resume the last incarnation, if it was of this boot and is still wanted.

        `in_use`: VMs depend on it; then it is resumed whatever host id is configured by now.
        """
        if incarnation is None or incarnation.boot != self.identity.boot:
            return None
        if self.host_id not in (None, incarnation.host_id) and not in_use:
            return None
        return JoinPlan(
            HostId(incarnation.host_id),
            incarnation.host_name,
            incarnation.timing,
            Generation(incarnation.generation),
            ended_generation=incarnation.ended_generation,
            next_io_timeout_s=incarnation.next_io_timeout_s,
        )

    async def search(self, area: LockspaceArea, clock: Clock, *, fences: bool) -> JoinPlan | NotJoined:
        """To resume an incarnation that VMs depend on and that no copy remembers: storage itself still has its record.

        It must bear this node's name, and its last renewal, by this boot's clock, must be younger than the fail bound.
        Two such records are doubt, and none is taken. If no record of this node is within its dead bound, no VM depends on
        one, provided that the watchdog resets this host when that passes (`fences`).
        """
        hosts = min(self.hosts_max or area.geometry.hosts_max, area.geometry.hosts_max)
        sectors = await area.read_sectors(hosts, self.timing.io_timeout_s)
        if isinstance(sectors, IoFailed):
            return NotJoined(f"storage of lockspace {area.space_name} failed: errno {sectors.errno}")
        size = area.geometry.sector_bytes
        found: list[tuple[HostId, DeltaLease]] = []
        may_be_used = False
        for number in range(1, hosts + 1):
            host_id = HostId(number)
            record = area.decode(host_id, sectors[(number - 1) * size : number * size])
            if self.host_id not in (None, host_id) or isinstance(record, Malformed) or record.is_free:
                continue
            age_s = clock.now() - record.timestamp
            timing = self.timing.of_host(record.io_timeout_s)
            if is_of_node(record.host_name.text, self.identity.node) and 0 <= age_s < timing.fail_s:
                found.append((host_id, record))
            may_be_used |= (
                may_be_of_node(record.host_name.text, self.identity.node) and 0 <= age_s <= timing.dead_s
            )
        if len(found) != 1:
            return NotJoined(
                f"no copy of its incarnation can be read, and {len(found) or 'no'} records on storage look like it",
                is_over=fences and not may_be_used,
            )
        ((host_id, record),) = found
        timing = self.timing.of_host(record.io_timeout_s)
        return JoinPlan(host_id, record.host_name.text, timing, Generation(record.generation))

    async def is_over(self, area: LockspaceArea, clock: Clock, plan: JoinPlan, *, fences: bool) -> bool:
        """Whether no VM of this host depends on the incarnation that `plan` would resume.

        It was given back, which is done in good order only. Or its dead bound has passed, or another host has its id after
        that, and the watchdog has not reset this host (`fences`), as it does unless the users of an incarnation have ended.
        A record of this host under another name is a claim that a kill cut short, or an incarnation that no copy names: for
        that, the same bound has to pass.
        """
        record = await area.read_record(plan.host_id, self.timing.io_timeout_s)
        if isinstance(record, IoFailed | Malformed):
            return False
        if record.is_free:
            return fences or (record.host_name.says(plan.host_name) and record.generation == plan.resumed)
        age_s = clock.now() - record.timestamp
        may_be_used = 0 <= age_s <= self.timing.of_host(record.io_timeout_s).dead_s
        return fences and not (may_be_of_node(record.host_name.text, self.identity.node) and may_be_used)

    async def plan(
        self, area: LockspaceArea, clock: Clock, incarnation: Incarnation | None, *, users_gone: bool
    ) -> JoinPlan | NotJoined:
        """Plans a claim. `users_gone`: no user of the last incarnation of this boot is left."""
        name = fresh_name(self.identity.node, self.token)
        if incarnation is not None and self.host_id in (None, incarnation.host_id):
            ours = await self._is_ours(area, clock, incarnation, users_gone)
            if ours is not None:
                return JoinPlan(
                    HostId(incarnation.host_id),
                    incarnation.host_name if ours else name,
                    self.timing,
                    only_of=incarnation.host_name if self.host_id is None else "",
                )
        if self.host_id is not None:
            return JoinPlan(self.host_id, name, self.timing)
        found = await self._find_id(area)
        if isinstance(found, NotJoined):
            return found
        host_id, called = found
        return JoinPlan(host_id, name, self.timing, only_if_free=not called, only_of=called)

    async def _is_ours(
        self, area: LockspaceArea, clock: Clock, incarnation: Incarnation, users_gone: bool
    ) -> bool | None:
        """Whether the record is of that incarnation, and no user of it lives; None: it is another host's by now."""
        if not 1 <= incarnation.host_id <= area.geometry.hosts_max:
            return None
        host_id = HostId(incarnation.host_id)
        record = await area.read_record(host_id, self.timing.io_timeout_s)
        if isinstance(record, IoFailed):
            return None  # not known; with host_id "auto" it is searched by name
        if isinstance(record, Malformed):
            return False
        if not _is_of(record, incarnation) or self._is_another_hosts(host_id, record):
            return None
        if incarnation.boot == self.identity.boot:
            return users_gone
        if not incarnation.machine or incarnation.machine != self.identity.machine:
            return False
        watch_s = self.timing.of_host(record.io_timeout_s).renewal_s + max(
            record.io_timeout_s, self.timing.io_timeout_s
        )
        self.on_wait(
            Waiting(f"seeing that nobody renews host id {host_id}, which was ours before the reboot", watch_s)
        )
        await clock.sleep(watch_s)
        again = await area.read_record(host_id, self.timing.io_timeout_s)
        if isinstance(again, DeltaLease) and _is_renewed(record, again):
            self.others.add((host_id, again.host_name.text))
            log.warning(
                "lockspace %s: host id %d, which this host has had, is renewed by host %s: one of the two is a clone of the "
                "other, with a copy of its state_dir%s",
                area.space_name,
                host_id,
                again.host_name,
                "" if self.host_id else "; this host finds another host id",
            )
            return None
        return again == record

    def _is_another_hosts(self, host_id: HostId, record: DeltaLease) -> bool:
        return not record.is_free and (host_id, record.host_name.text) in self.others

    async def _find_id(self, area: LockspaceArea) -> tuple[HostId, str] | NotJoined:
        """The host id of our node's name, with the host name in its record; else one that was never used, or a free one."""
        hosts = min(self.hosts_max or area.geometry.hosts_max, area.geometry.hosts_max)
        sectors = await area.read_sectors(hosts, self.timing.io_timeout_s)
        if isinstance(sectors, IoFailed):
            return NotJoined(f"storage of lockspace {area.space_name} failed: errno {sectors.errno}")
        free: HostId | None = None
        unused: HostId | None = None
        size = area.geometry.sector_bytes
        for number in range(1, hosts + 1):
            host_id = HostId(number)
            record = area.decode(host_id, sectors[(number - 1) * size : number * size])
            if isinstance(record, Malformed):
                continue
            if self._is_another_hosts(host_id, record):
                continue
            if not record.is_never_used and is_of_node(record.host_name.text, self.identity.node):
                return host_id, record.host_name.text
            if record.is_never_used:
                unused = unused or host_id
            elif record.is_free:
                free = free or host_id
        found = unused or free
        if found is None:
            return NotJoined(
                f"all {hosts} host ids of lockspace {area.space_name} are taken: raise hosts_max, or make a lockspace that "
                "serves more hosts ('holdfast host list' shows whose they are)"
            )
        return found, ""


def _is_of(record: DeltaLease, incarnation: Incarnation) -> bool:
    return (
        record.owner_id == incarnation.host_id
        and record.generation == incarnation.generation
        and record.host_name.says(incarnation.host_name)
    )


def _is_renewed(before: DeltaLease, now: DeltaLease) -> bool:
    """Whether the host that holds the id has renewed it between two reads. A newer generation is a claim, which may be our
    own, under the same name, that landed late (found by seed 2146).
    """
    same_term = (before.generation, before.host_name) == (now.generation, now.host_name)
    return same_term and before.timestamp != now.timestamp and not (now.is_free or now.is_marked_dead)
