"""`holdfast status`: what the daemon says of itself, its lockspaces, and what is degraded.

The daemon can't know everything that makes it less than it seems: a configuration that was edited and not loaded, disks that
libvirt asks no lock for. So that what is red is red in one place, both are put together here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import msgspec

from holdfast.cli import lockspace_standing
from holdfast.cli.commands import maintenance
from holdfast.cli.render import status_lines
from holdfast.control.api import CONFIGURATION_PROBLEM, HolderInfo, LeaseSpaceInfo, StatusInfo
from holdfast.model import printable

UNLOCKED_SHOWN_MAX = 16
"""A host with hundreds of network disks would hide the rest of its state."""


def with_keys(problem: str, edited: str) -> str:
    """The daemon says that its configuration is not the one on disk; a command that can read both says where."""
    if not problem.startswith(CONFIGURATION_PROBLEM) or not edited or edited in problem:
        return problem
    return f"{problem} ({edited})"


@dataclass
class Answer:
    """``edited``: what was changed in the configuration and is not loaded; empty if nothing was."""

    daemon: StatusInfo
    spaces: list[LeaseSpaceInfo]
    unlocked: list[HolderInfo]
    edited: str = ""

    @property
    def degraded(self) -> list[str]:
        """Why protection is less than it seems, worst first. A person has to act on each."""
        s = self.daemon
        reasons = []
        if s.locks_lost:
            reasons.append(f"{s.locks_lost} locks are lost: holdfast list")
        if s.locks_unknown:
            reasons.append(f"{s.locks_unknown} locks are held for unknown owners: holdfast list")
        reasons += [
            f"lockspace {each.name} can't be used, it is {each.state}{f': {each.reason}' if each.reason else ''}"
            for each in self.spaces
            if each.state != "joined"
        ]
        if s.journal != "ok":
            reasons.append(f"no new lock is granted: the journal can't be written: {s.journal}")
        reasons += [with_keys(each, self.edited) for each in s.problems]
        if self.edited and not any(each.startswith(CONFIGURATION_PROBLEM) for each in s.problems):
            reasons.append(
                f"the configuration was edited and is not loaded ('holdfast reload'): {self.edited}"
            )
        return reasons

    def as_object(self) -> dict[str, Any]:
        """The daemon's own keys, and what is known besides."""
        return {
            **msgspec.to_builtins(self.daemon),
            "degraded": self.degraded,
            "lease_spaces": [
                {"name": each.name, "state": each.state, "reason": each.reason, "host_id": each.host_id}
                for each in self.spaces
            ],
            "unlocked_disks": [
                {"disk": each.resource, "owner": each.owner, "reason": each.protection_note}
                for each in self.unlocked
            ],
        }

    def show(self) -> None:
        lines = status_lines(self.daemon)
        lines += [f"lockspace    {printable(lockspace_standing.headline(each))}" for each in self.spaces]
        if self.daemon.maintenance_since is not None:
            lines.append(f"maintenance  {maintenance.words(self.daemon)}")
        if self.unlocked:
            lines += [
                f"not locked   protection 0: {printable(f'{each.resource} of {each.owner}: {each.protection_note}')}"
                for each in self.unlocked[:UNLOCKED_SHOWN_MAX]
            ]
            if len(self.unlocked) > UNLOCKED_SHOWN_MAX:
                lines.append(f"not locked   {len(self.unlocked) - UNLOCKED_SHOWN_MAX} more: holdfast list")
        click.echo("\n".join(lines))
        for reason in self.degraded:
            click.echo(click.style(f"DEGRADED     {printable(reason)}", fg="red", bold=True))
