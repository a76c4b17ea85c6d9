"""A person's word stands for the dead bound only of a host that has in fact stopped renewing."""

from dataclasses import replace

import pytest

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.ondisk.padded_name import PaddedName
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.takeover import attested_off
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Generation, HostId, HostTimestamp

TIMING = Timing(10, 60)
ALPHA = (HostId(1), Generation(4))
RECORD = DeltaLease(
    geometry=DEFAULT,
    space_name=PaddedName.of("A"),
    io_timeout_s=10,
    owner_id=1,
    generation=4,
    host_name=PaddedName.of("alpha"),
    timestamp=700,
)
SILENT = HostView(
    host_id=ALPHA[0],
    state=HostState.LIVE,
    generation=ALPHA[1],
    timestamp=HostTimestamp(700),
    io_timeout_s=10,
    unchanged_s=30.1,
)


def holds(view: HostView = SILENT, record: DeltaLease = RECORD, *attested: tuple[HostId, Generation]) -> bool:
    return attested_off(frozenset(attested or (ALPHA,)), *ALPHA, record, view, TIMING)


def test_host_that_was_silent_for_three_io_timeouts_is_taken_to_be_off() -> None:
    assert holds()


@pytest.mark.parametrize(
    ("view", "record"),
    [
        (replace(SILENT, unchanged_s=30.0), RECORD),
        (replace(SILENT, changed_at_latest_look=True), RECORD),
        (replace(SILENT, timestamp=HostTimestamp(690)), RECORD),  # it renewed since our latest look
        (SILENT, replace(RECORD, timestamp=720)),
        (replace(SILENT, generation=Generation(5)), RECORD),
        (SILENT, replace(RECORD, generation=5)),  # it came back
        (replace(SILENT, io_timeout_s=20), RECORD),  # it renews more slowly
        (HostView(host_id=ALPHA[0], state=HostState.UNKNOWN), RECORD),  # never looked at
    ],
)
def test_host_that_may_have_renewed_contradicts_whoever_vouches(view: HostView, record: DeltaLease) -> None:
    assert not holds(view, record)


def test_word_is_about_one_term_of_one_host() -> None:
    assert not holds(SILENT, RECORD, (HostId(1), Generation(3)))
    assert not holds(SILENT, RECORD, (HostId(2), Generation(4)))


def test_word_about_one_of_two_hosts_that_have_shown_a_term_waits_for_the_dead_bound_of_the_other() -> None:
    disputed = replace(SILENT, disputed="beta", unchanged_s=TIMING.dead_s)
    assert not holds(disputed)
    assert holds(replace(disputed, unchanged_s=TIMING.dead_s + 0.1))
