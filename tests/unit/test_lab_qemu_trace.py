"""What the lab concludes from strace: when each QEMU could write (`lab.lvm.qemu_trace`)."""

from __future__ import annotations

import pytest
from lab.lvm.qemu_trace import NotTraced, overlaps

SOURCE = """== /srv/qemu.7.trace
7     100.000000 openat(AT_FDCWD, "/dev/vg/lv1", O_RDONLY|O_DIRECT|O_CLOEXEC) = 10</dev/dm-1>
7     100.100000 openat(AT_FDCWD, "/dev/vg/lv1", O_RDWR|O_DIRECT|O_CLOEXEC) = 11</dev/dm-1>
7     100.200000 close(10</dev/dm-1>)         = 0
9     101.000000 pwrite64(11</dev/dm-1>, "..."..., 512, 512) = 512
7     110.000000 openat(AT_FDCWD, "/dev/vg/lv1", O_RDONLY|O_DIRECT|O_CLOEXEC) = 10</dev/dm-1>
7     110.100000 close(11</dev/dm-1>)         = 0
7     111.000000 +++ exited with 0 +++
"""
TARGET = """== /srv/qemu.8.trace
8     105.000000 openat(AT_FDCWD, "/dev/vg/lv1", O_RDONLY|O_DIRECT|O_CLOEXEC) = 10</dev/dm-1>
8     {opened} openat(AT_FDCWD, "/dev/vg/lv1", O_RDWR|O_DIRECT|O_CLOEXEC) = 11</dev/dm-1>
8     121.000000 +++ killed by SIGTERM +++
"""


def test_gap_between_the_turns_of_two_hosts_is_measured_by_one_clock() -> None:
    found = overlaps(SOURCE, TARGET.format(opened="110.150000"), 0.0)
    assert (found.turns, round(found.least_gap_s, 6)) == (2, 0.05)
    assert round(overlaps(SOURCE, TARGET.format(opened="110.150000"), 0.03).least_gap_s, 6) == 0.02


def test_descriptors_that_may_write_at_the_same_time_are_seen() -> None:
    assert overlaps(SOURCE, TARGET.format(opened="109.000000"), 0.0).least_gap_s < 0


def test_traces_without_a_writer_on_each_host_prove_nothing() -> None:
    with pytest.raises(NotTraced, match=r"\['h1'\]"):
        overlaps(SOURCE, "", 0.0)
