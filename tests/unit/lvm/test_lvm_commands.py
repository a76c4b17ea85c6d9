"""LVM's commands and their words, as the real ones of 2.03.16 printed them (libvirt-hooks-lvm.md 3.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from holdfast.backends.lvm.lvm_commands import LvmCommands, refusal
from holdfast.backends.lvm.ports import Problem, Refused
from holdfast.backends.lvm.volumes import FIELDS, row_of
from holdfast.model import Mode
from holdfast.system.host.commands import Ended
from holdfast_sim.volumes.shared_locks import volume_named

LEAKED = "File descriptor 10 (/dev/null) leaked on lvs invocation. Parent PID 19303: bash\n"
REPORT = """  {
      "report": [
          {
              "lv": [
                  {"vg_name":"migtest", "vg_uuid":"OFkcc1-8AH4-xqzU-gs4A-loD1-v0Nn-jCOah3", "vg_lock_type":"", \
"vg_lock_args":"", "lv_name":"a", "lv_uuid":"N4wcdD-A0G8-0GCR-XCWW-dvDB-eVlN-NBmQZK", "lv_lockargs":"", \
"lv_layout":"linear", "lv_role":"public", "pool_lv":"", "pool_lv_uuid":""}
              ]
          }
      ]
  }
"""
"""Of lvs 2.03.16 for FIELDS; the volume group is not shared."""


class Commands:
    def __init__(self, code: int, output: str) -> None:
        self.ended = Ended(code, output)
        self.ran: list[Sequence[str]] = []

    async def run(self, command: Sequence[str], timeout_s: float) -> Ended:
        self.ran.append(command)
        return self.ended


@pytest.mark.parametrize(
    ("output", "problem", "detail"),
    [
        (
            "  LV locked by other host: vg/lv1\n  Failed to lock logical volume vg/lv1.",
            Problem.HELD_ELSEWHERE,
            "LV locked by other host: vg/lv1",
        ),
        ("  Logical volume vg/lv1 in use.", Problem.IN_USE, "Logical volume vg/lv1 in use."),
        (
            "  WARNING: lvmlockd process is not running.\n  Cannot access VG vg due to failed lock.",
            Problem.LOCKSPACE_INACTIVE,
            "WARNING: lvmlockd process is not running.",
        ),
        (
            "  VG vg lock skipped: storage failed for sanlock leases\n  Cannot access VG vg due to failed lock.",
            Problem.STORAGE_FAILED,
            "VG vg lock skipped: storage failed for sanlock leases",
        ),
        (
            "  Retrying sh lock on VG vg\n  VG vg lock skipped: held by other host.\n"
            "  Cannot access VG vg due to failed lock.",
            Problem.GROUP_BUSY,
            "VG vg lock skipped: held by other host.",
        ),
        (
            "  Cannot access VG vg due to failed lock.",
            Problem.LOCKSPACE_INACTIVE,
            "Cannot access VG vg due to failed lock.",
        ),
        (
            "  Shared activation not compatible with LV type thin-pool of vg/pool\n"
            "  Failed to lock logical volume vg/thin1.",
            Problem.FAILED,
            "Failed to lock logical volume vg/thin1.",
        ),
        ("", Problem.FAILED, "exit code 5"),
    ],
)
def test_words_of_a_refusal(output: str, problem: Problem, detail: str) -> None:
    assert refusal(5, output) == Refused(problem, detail)


def test_command_that_does_not_end_may_have_done_it() -> None:
    assert refusal(-1, "did not answer within 60 s").problem is Problem.NO_ANSWER


def test_switches() -> None:
    commands = Commands(0, "")
    lvm, volume = LvmCommands(commands), volume_named("lv1")

    async def scene() -> None:
        assert await lvm.activate(volume, Mode.EXCLUSIVE) is None
        assert await lvm.activate(volume, Mode.SHARED) is None
        assert await lvm.deactivate(volume) is None
        commands.ended = Ended(5, "  Logical volume vg/lv1 in use.")
        assert await lvm.deactivate(volume) == Refused(Problem.IN_USE, "Logical volume vg/lv1 in use.")

    asyncio.run(scene())
    assert [command[1] for command in commands.ran] == ["-aey", "-asy", "-an", "-an"]
    assert {command[2] for command in commands.ran} == {"vg/lv1"}


def test_report_of_the_real_program_is_understood_behind_its_warnings() -> None:
    commands = Commands(0, LEAKED + REPORT)
    text = asyncio.run(LvmCommands(commands).report("/dev/migtest/a"))
    assert isinstance(text, str)
    row = row_of(text)
    assert row is not None
    assert (row["lv_name"], row["lv_layout"], row["vg_lock_type"]) == ("a", "linear", "")
    assert commands.ran == [("lvs", "--reportformat", "json", "-o", FIELDS, "/dev/migtest/a")]


def test_report_is_understood_with_a_warning_between_its_lines() -> None:
    """As seen of a host that had booted and not yet had the lock of its volume group."""
    first, _, rest = REPORT.partition("          {\n")
    said = first + "  Reading VG migtest without a lock.\n          {\n" + rest
    text = asyncio.run(LvmCommands(Commands(0, said)).report("/dev/migtest/a"))
    assert isinstance(text, str)
    assert row_of(text) == row_of(REPORT)


def test_report_that_fails_is_refused() -> None:
    commands = Commands(5, '  Volume group "nosuch" not found\n  Cannot process volume group nosuch\n')
    assert asyncio.run(LvmCommands(commands).report("/dev/nosuch/a")) == Refused(
        Problem.FAILED, "Cannot process volume group nosuch"
    )


@pytest.mark.parametrize(
    ("output", "host_id"),
    [
        (LEAKED + "  host_id=7\n", 7),
        ("host_id=0\n", 0),
        ('host_id="7"\n', 0),
        ("", 0),
        ("  Configuration node local/host_id not found\n", 0),
    ],
)
def test_hosts_id_is_a_number_above_zero_or_not_known(output: str, host_id: int) -> None:
    commands = Commands(0, output)
    found = asyncio.run(LvmCommands(commands).host_id())
    assert commands.ran == [("lvmconfig", "local/host_id")]
    if host_id:
        assert found == host_id
    else:
        assert isinstance(found, Refused)


def test_hosts_id_that_lvm_does_not_print_is_not_known() -> None:
    assert isinstance(asyncio.run(LvmCommands(Commands(5, "  no")).host_id()), Refused)
