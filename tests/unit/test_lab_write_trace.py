"""What the lab concludes from what strace saw of QEMUs: who could write, and who did (`lab.lvm.write_trace`)."""

from __future__ import annotations

import pytest
from lab.lvm.open_log import NotShown
from lab.lvm.write_trace import Proof, shown, traced

DEVICE = "/dev/vg/lv1"


def opened(at: float, fd: int, flags: str = "O_RDWR|O_DIRECT|O_CLOEXEC", path: str = DEVICE) -> str:
    return f'{at:.6f} openat(AT_FDCWD</>, "{path}", {flags}) = {fd}</dev/dm-5> <0.000100>\n'


def wrote(at: float, fd: int, count: int) -> str:
    record = "".join(f"\\x{byte:02x}" for byte in b"LHB2" + count.to_bytes(4, "little") + b"\1\0\0\0\0\0\0\0")
    return f'{at:.6f} pwrite64({fd}</dev/dm-5>, "{record}"..., 512, 512) = 512 <0.000100>\n'


def closed(at: float, fd: int) -> str:
    return f"{at:.6f} close({fd}</dev/dm-5>) = 0 <0.000050>\n"


ENDS = "{:.6f} +++ exited with 0 +++\n"
SOURCE = (
    "== /srv/qemu.7.trace.7\n"
    + opened(100.0, 10, "O_RDONLY|O_DIRECT|O_CLOEXEC")
    + opened(100.1, 11)
    + closed(110.0, 11)
    + ENDS.format(111)
    + "== /srv/qemu.7.trace.9\n"
    + wrote(101.0, 11, 41)
    + wrote(102.0, 11, 42)
    + ENDS.format(103)
)


def target(at: float = 110.5, fd: int = 12, count: int = 43) -> str:
    thread = "== /srv/qemu.8.trace.9\n" + wrote(at + 0.5, fd, count)
    return "== /srv/qemu.8.trace.8\n" + opened(at, fd) + ENDS.format(120) + thread


def proof(source: str, target: str, before: int = 40, after: int = 43, ahead_s: float = 0.0) -> Proof:
    return shown(traced("h1", source, DEVICE, 0.0), traced("h2", target, DEVICE, ahead_s), before, after)


def test_descriptors_of_two_hosts_and_the_writes_through_them_are_kept_apart() -> None:
    found = proof(SOURCE, target())
    assert (found.turns, found.writes, found.changes) == (2, {"h1": 2, "h2": 1}, 1)
    assert round(found.least_gap_s, 5) == 0.49995  # until `close` has returned
    assert round(proof(SOURCE, target(), ahead_s=0.3).least_gap_s, 5) == 0.19995


def test_two_descriptors_that_may_write_at_the_same_time_are_seen() -> None:
    assert proof(SOURCE, target(at=109.0)).least_gap_s < 0
    lasts = SOURCE.replace(closed(110.0, 11), "")
    assert proof(lasts, target(at=110.5)).least_gap_s < 0  # to the end of its process, at 111
    assert proof(lasts.replace(ENDS.format(111), ""), target(at=118.0)).least_gap_s == float("-inf")


@pytest.mark.parametrize(
    "copied", ["dup(11</dev/dm-5>)", "fcntl(11</dev/dm-5>, F_DUPFD_CLOEXEC, 0)", "dup2(11</dev/dm-5>, 30)"]
)
def test_a_copy_of_a_descriptor_may_write_for_as_long_as_it_is_open(copied: str) -> None:
    source = SOURCE.replace(
        closed(110.0, 11), f"105.0 {copied} = 30</dev/dm-5> <0.0001>\n" + closed(110.0, 11)
    )
    assert proof(source, target(at=110.5)).least_gap_s < 0


def test_a_count_that_two_have_written_or_nobody_that_was_traced_is_named() -> None:
    with pytest.raises(NotShown, match=r"none has written \[43\], two have \[42\]"):
        proof(SOURCE, target(count=42))
    with pytest.raises(NotShown, match=r"none has written \[44\]"):
        proof(SOURCE, target(), after=44)


def test_a_guest_that_writes_on_both_hosts_in_turn_changes_its_host_too_often() -> None:
    again = SOURCE.replace(ENDS.format(103), wrote(109.0, 11, 44) + ENDS.format(110))
    assert proof(again, target(), after=44).changes == 2


def test_a_write_that_ends_past_its_descriptor_is_not_explained() -> None:
    early = SOURCE.replace(wrote(101.0, 11, 41), "") + "== /srv/qemu.6.trace.6\n"
    early += opened(90.0, 11) + wrote(91.0, 11, 41) + closed(92.0, 11)
    assert proof(early, target()).turns == 3
    late = SOURCE.replace(wrote(102.0, 11, 42), "").replace(ENDS.format(103), wrote(109.99999, 11, 42))
    with pytest.raises(NotShown, match="count 42 was written on h1 with no descriptor"):
        proof(late, target())


def test_writes_that_a_trace_does_not_show_prove_nothing() -> None:
    with pytest.raises(NotShown, match="io_submit"):
        proof(SOURCE, target() + "113.0 io_submit(0x7f, 1, [{aio_data=0x5}]) = 1 <0.0001>\n")
    with pytest.raises(NotShown, match="not of the record"):
        proof(SOURCE, target() + '113.0 pwrite64(12</dev/dm-5>, "abc"..., 512, 0) = 512 <0.0001>\n')
    with pytest.raises(NotShown, match=r"\['h1'\]"):
        proof(SOURCE, "")
    elsewhere = opened(200.0, 9, path="/dev/null")
    assert proof(SOURCE, target() + elsewhere).turns == 2
