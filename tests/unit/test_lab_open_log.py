"""What the lab concludes from what QEMUs note: when each could write (`lab.lvm.open_log`)."""

from __future__ import annotations

import pytest
from lab.lvm.open_log import NotShown, compared

SOURCE = """== /srv/qemu.7.opens
100.0 opens -1 2140000
100.01 open 10 2140000
100.1 opens -1 2140002
100.11 open 11 2140002
100.2 close 10 0
110.0 opens -1 2140000
110.01 open 10 2140000
110.1 close 11 0
"""
TARGET = """== /srv/qemu.8.opens
105.0 opens -1 2140000
105.01 open 10 2140000
{opens} opens -1 2140002
120.0 open 11 2140002
"""


def test_gap_between_the_turns_of_two_hosts_is_measured_by_one_clock() -> None:
    found = compared(SOURCE, TARGET.format(opens="110.15"), 0.0)
    assert (found.turns, round(found.least_gap_s, 6)) == (2, 0.05)
    assert round(compared(SOURCE, TARGET.format(opens="110.15"), 0.03).least_gap_s, 6) == 0.02


def test_descriptors_that_may_write_at_the_same_time_are_seen() -> None:
    assert compared(SOURCE, TARGET.format(opens="109.0"), 0.0).least_gap_s < 0
    never_closed = SOURCE.replace("110.1 close 11 0\n", "")
    assert compared(never_closed, TARGET.format(opens="110.15"), 0.0).least_gap_s < 0


def test_notes_without_a_writer_on_each_host_prove_nothing() -> None:
    with pytest.raises(NotShown, match=r"\['h1'\]"):
        compared(SOURCE, "", 0.0)
