"""Each refusal of a lease has the code of sanlock-socket.md 2.1; the table is complete."""

from __future__ import annotations

import errno
import math
import typing

import pytest

from holdfast.errors import (
    LeaseUnusable,
    LockError,
    LockspaceAbsent,
    OwnerGone,
    Refused,
    ResourceBusy,
    ResourceNotLocked,
    StorageFailed,
)
from holdfast.frontends.sanlock.lease_results import (
    may_end_by_time,
    of_errno,
    of_error,
    of_malformed,
    of_refusal,
    of_request,
)
from holdfast.model import Holder, Resource
from holdfast.ondisk.areas import fresh_leader
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.malformed import Malformed, Reason
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.paxos_outcomes import (
    AlreadyShared,
    ClearedByAnother,
    Contended,
    LeaderBehind,
    LockspaceLost,
    Refusal,
    WrongVersion,
)
from holdfast.protocol.paxos_request import (
    Cleared,
    NewerRequested,
    NobodyHolds,
    NotNewer,
    Requested,
    RequestOutcome,
)
from holdfast.protocol.takeover import Busy, FormerUser, HostUnknown, NeverByTime
from holdfast.protocol.types import Generation, HostId, IoFailed
from holdfast.wire.sanlock.result import Result

LEADER = fresh_leader(DEFAULT, "LS", "R1", None)
RESOURCE = Resource("sanlock:LS", "R1")


def leader(*, short_hold: bool = False) -> Leader:
    return Leader.decode(
        Leader(
            geometry=DEFAULT,
            space_name=LEADER.space_name,
            resource_name=LEADER.resource_name,
            num_hosts=8,
            max_hosts=8,
            owner_id=2,
            owner_generation=1,
            lver=3,
            timestamp=7,
            short_hold=short_hold,
        ).encode()
    )  # type: ignore[return-value]


def malformed(reason: Reason, record: str = "leader") -> Malformed:
    return Malformed(record, reason, "a", "b")


REFUSALS = [
    (Busy(leader(), "h", 1.0), -243),
    (HostUnknown(leader(), "h", 5.0), -247),
    (NeverByTime(leader(), "h", Generation(1), 5.0), -249),
    (FormerUser(Generation(1), 5.0), -247),
    (FormerUser(Generation(1), math.inf), -249),
    (SharedBy({HostId(2): Generation(1)}), -11),
    (WrongVersion(leader()), -240),
    (AlreadyShared(), -17),
    (Contended(3), -245),
    (LeaderBehind(leader(), 9), -212),
    (LockspaceLost(), -28),
    (ClearedByAnother(), -245),
    (malformed(Reason.MAGIC), -223),
    (malformed(Reason.CLEARED), -223),
    (malformed(Reason.VERSION), -224),
    (malformed(Reason.NEWER), -224),
    (malformed(Reason.CAW), -281),
    (malformed(Reason.SECTOR_SIZE), -225),
    (malformed(Reason.GEOMETRY), -225),
    (malformed(Reason.LOCKSPACE_NAME), -226),
    (malformed(Reason.RESOURCE_NAME), -227),
    (malformed(Reason.HOST_ID), -228),
    (malformed(Reason.CHECKSUM), -229),
    (malformed(Reason.RANGE), -229),
    (malformed(Reason.LENGTH), -90),
    (malformed(Reason.CHECKSUM, "dblock"), -214),
    (malformed(Reason.MAGIC, "delta lease"), -201),
    (IoFailed(errno.ETIMEDOUT), -202),
    (IoFailed(errno.EIO), -5),
    (IoFailed(errno.EMSGSIZE), -90),
]


@pytest.mark.parametrize(("refusal", "code"), REFUSALS, ids=str)
def test_code_of_a_refusal(refusal: Refusal | SharedBy, code: int) -> None:
    assert of_refusal(refusal) == code
    busy = ResourceBusy(RESOURCE, (Holder(host="h"),), cause=refusal)
    assert of_error(busy) == code
    assert of_error(LeaseUnusable(name="R1", place="/a:0", reason="", cause=refusal)) == code


def test_table_has_every_refusal() -> None:
    assert {type(refusal) for refusal, _ in REFUSALS} >= {*typing.get_args(Refusal), SharedBy}


def test_no_reason_is_taken_for_success() -> None:
    for reason in Reason:
        for record in ("leader", "dblock", "request record", "delta lease"):
            assert of_malformed(malformed(reason, record)) < 0


def test_shared_acquire_that_meets_another_ones_moment() -> None:
    busy = Busy(leader(short_hold=True), "h", 0.0)
    assert of_refusal(busy, shared=True) == Result.ACQUIRE_SHRETRY
    assert of_refusal(busy) == Result.ACQUIRE_IDLIVE
    assert of_refusal(Busy(leader(), "h", 0.0), shared=True) == Result.ACQUIRE_IDLIVE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceBusy(RESOURCE, (Holder(name="vm"),)), -17),
        (LeaseUnusable(name="R1", place="/a:0", reason="this host is still giving it up"), -11),
        (LockspaceAbsent(name="R1", lockspace="LS", reason=""), -28),
        (OwnerGone(pid=1, name="R1"), -25),
        (ResourceNotLocked(name="R1"), -2),
        (StorageFailed(what="", path="", errno=errno.ENOENT), -2),
        (StorageFailed(what="", path="", errno=errno.EMSGSIZE), -90),
        (StorageFailed(what="", path="", errno=errno.ETIMEDOUT), -202),
        (StorageFailed(what="", path="", errno=errno.EACCES), -5),
        (Refused(reason=""), -201),
    ],
    ids=lambda each: type(each).__name__,
)
def test_code_of_an_error(error: LockError, code: int) -> None:
    assert of_error(error) == code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Requested(2, HostId(1)), 0),
        (NobodyHolds(), 0),
        (Cleared(), 0),
        (NotNewer(3), -272),
        (NewerRequested(3), -273),
        (LockspaceLost(), -28),
        (malformed(Reason.MAGIC, "request record"), -270),
        (malformed(Reason.VERSION, "request record"), -271),
        (malformed(Reason.MAGIC), -223),
        (IoFailed(errno.ETIMEDOUT), -202),
    ],
    ids=str,
)
def test_code_of_a_request(outcome: RequestOutcome | Cleared, code: int) -> None:
    assert of_request(outcome) == code


def test_only_what_time_can_prove_is_waited_for() -> None:
    waited = {type(refusal) for refusal, _ in REFUSALS if may_end_by_time(refusal) is not None}
    assert waited == {HostUnknown, FormerUser}
    assert may_end_by_time(FormerUser(Generation(1), math.inf)) is None
    assert may_end_by_time(None) is None


def test_no_errno_is_success() -> None:
    assert all(of_errno(number) < 0 for number in errno.errorcode)
