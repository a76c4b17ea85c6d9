"""LVM's commands for volumes: `lvchange` and `lvs`, and what their words mean (libvirt-hooks-lvm.md 3.1).

They run in the process beside the daemon, and end in time or count as `NO_ANSWER`: killed by their time, they may have done
what was asked. The exit code is 5 for every refusal, so the words decide; words that are not known are `FAILED`, with the
last line. Which host is in the way they don't say: the lease does.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.backends.lvm.ports import Problem, Refused, Volume
from holdfast.backends.lvm.volumes import FIELDS
from holdfast.model import Mode
from holdfast.system.host.commands import Commands

COMMAND_S = 60.0
"""A refused shared activation takes 7.5 s on a busy host: sanlock tries 8 times. A command that finds the volume group
locked gives up after 23 s.
"""
SWITCHES = {Mode.EXCLUSIVE: "-aey", Mode.SHARED: "-asy"}
WORDS = (
    ("locked by other host", Problem.HELD_ELSEWHERE),
    ("storage failed for sanlock leases", Problem.STORAGE_FAILED),
    ("held by other host", Problem.GROUP_BUSY),
    ("lvmlockd process is not running", Problem.LOCKSPACE_INACTIVE),
    ("lock start in progress", Problem.LOCKSPACE_INACTIVE),
    ("due to failed lock", Problem.LOCKSPACE_INACTIVE),
    (" in use.", Problem.IN_USE),
)
"""In this order: the text of a refusal may have several of them."""
NO_EXIT_CODE = -1
OF_JSON = ("{", "}", "[", "]", ",", '"')
"""How a line of LVM's reports begins, and none of its warnings."""


class LvmCommands:
    """`activate` and `deactivate` of `LvLocks`, and `LvReports`."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def activate(self, volume: Volume, mode: Mode) -> Refused | None:
        """See `LvLocks`."""
        return await self._change(SWITCHES[mode], volume)

    async def deactivate(self, volume: Volume) -> Refused | None:
        """See `LvLocks`. The caller has had an answer of lvmlockd just before: without that, LVM would remove the device
        and leave the lease.
        """
        return await self._change("-an", volume)

    async def report(self, path: str) -> str | Refused:
        """See `LvReports`. Warnings come on the same pipe, before the report and within it, in lines of their own: "Reading
        VG vg without a lock." was seen behind the first lines (LVM 2.03.16).
        """
        answer = await self._run(("lvs", "--reportformat", "json", "-o", FIELDS, path))
        if isinstance(answer, Refused):
            return answer
        return "\n".join(line for line in answer.splitlines() if line.strip().startswith(OF_JSON))

    async def host_id(self) -> int | Refused:
        """This host's id in the lockspaces of its volume groups, by lvmlocal.conf."""
        answer = await self._run(("lvmconfig", "local/host_id"))
        if isinstance(answer, Refused):
            return answer
        for line in answer.splitlines():
            key, _, value = line.strip().partition("=")
            if key == "host_id" and value.isascii() and value.isdigit() and int(value) > 0:
                return int(value)
        return Refused(Problem.FAILED, f"lvmconfig local/host_id says no id: {answer[:200]!r}")

    async def _change(self, switch: str, volume: Volume) -> Refused | None:
        answer = await self._run(("lvchange", switch, f"{volume.vg_name}/{volume.lv_name}"))
        return answer if isinstance(answer, Refused) else None

    async def _run(self, command: Sequence[str]) -> str | Refused:
        ended = await self._commands.run(command, COMMAND_S)
        return ended.output if ended.code == 0 else refusal(ended.code, ended.output)


def refusal(code: int, output: str) -> Refused:
    """What a command's words mean that has not ended well. `code`: -1 if it has no exit code."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    if code == NO_EXIT_CODE:
        return Refused(Problem.NO_ANSWER, last)
    for words, problem in WORDS:
        if words in output:
            return Refused(problem, next(line for line in lines if words.strip() in line))
    return Refused(Problem.FAILED, last)
