"""How a host stands in its lockspaces, for people: one line each, the hosts below it, and progress while joining."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from holdfast.cli import exits, render
from holdfast.control.api import HostInfo, LeaseSpaceInfo
from holdfast.control.client import ControlClient

COLUMNS = (
    "HOST_ID",
    "NAME",
    "STATE",
    "GENERATION",
    "UNCHANGED",
    "DEAD IN",
    "HOST",
    "VERSION",
    "IO_TIMEOUT",
    "FIRE_TIMEOUT",
    "NOTE",
)
UNSAID = "-"
"""Where a host says nothing of itself: one with sanlock or an earlier holdfast, or in a lockspace on a device."""
LOOK_S = 0.5
"""Between two looks at a join: a person sees the seconds count down."""


def answer(spaces: Sequence[LeaseSpaceInfo], *, as_json: bool) -> None:
    """As an object, or for people."""
    if as_json:
        render.as_json(spaces)
    else:
        show(spaces)


def show(spaces: Sequence[LeaseSpaceInfo]) -> None:
    if not spaces:
        click.echo('no backend has leases: see driver = "paxos" in the configuration')
    for each in spaces:
        click.echo(headline(each))
        if each.misfits:
            click.echo(f"  {each.misfits}")
        if by_path := [h for h in each.hosts if h.host_id != each.host_id and _knows_paths_only(each, h)]:
            called = ", ".join(f"{h.node or h.name} (host_id {h.host_id})" for h in by_path)
            click.echo(
                f"  {called}: locks disks by their paths alone; another path to a disk is not refused there"
            )
        rows = [
            (
                str(h.host_id),
                h.name,
                h.state,
                str(h.generation),
                f"{h.unchanged_s:.0f} s",
                "" if h.dead_in_s is None else f"{h.dead_in_s:.0f} s",
                h.node or UNSAID,
                h.version or UNSAID,
                f"{h.io_timeout_s} s" if h.io_timeout_s else UNSAID,
                f"{h.fire_timeout_s} s" if h.fire_timeout_s else UNSAID,
                h.note,
            )
            for h in each.hosts
        ]
        if rows:
            render.table(COLUMNS, rows)


def _knows_paths_only(space: LeaseSpaceInfo, host: HostInfo) -> bool:
    """Whether a present host has no locks on what disks are, or does not say so; on a device nobody says anything."""
    says = any(h.identities for h in space.hosts if h.host_id == space.host_id)
    return says and host.state not in ("FREE", "DEAD") and not host.identities


def headline(each: LeaseSpaceInfo) -> str:
    text = f"{each.name} ({each.path}): {each.state}"
    if each.reason:
        text += f": {each.reason}"
    if each.seconds_left is not None:
        text += f", {each.seconds_left:.0f} s left"
    if each.state == "joined":
        text += f" as host_id {each.host_id} generation {each.generation}, {each.leases} leases"
        if each.renewed_s_ago is not None:
            text += f", renewed {each.renewed_s_ago:.0f} s ago"
        if each.next_io_timeout_s:
            text += f", io_timeout {each.io_timeout_s} s on its way to {each.next_io_timeout_s} s"
        text += "" if each.fenced else ', NOT FENCED (watchdog = "none")'
    return text


def wait_for_io_timeout(client: ControlClient, name: str) -> LeaseSpaceInfo | None:
    """Returns when the change of its io_timeout has ended, with how the lockspace stands then; None: it is not there."""
    while True:
        found = next((each for each in client.lease_spaces() if each.name == name), None)
        if found is None or not found.next_io_timeout_s:
            return found
        time.sleep(LOOK_S)


def wait_until_joined(client: ControlClient, name: str, *, as_json: bool = False) -> int:
    """Show the reason and the seconds left whenever they change, or the end alone; the exit code."""
    shown = ""
    while True:
        found = next((each for each in client.lease_spaces() if each.name == name), None)
        if found is None:
            return exits.UNKNOWN
        ended = found.state in ("joined", "lost", "left")
        if as_json:
            if ended:
                render.as_json(found)
                return exits.OK if found.state == "joined" else exits.DEGRADED
            time.sleep(LOOK_S)
            continue
        text = headline(found)
        if text != shown:
            shown = text
            # On a terminal one line that counts, elsewhere a line for each change.
            click.echo(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, nl=not sys.stdout.isatty())
        if ended:
            if sys.stdout.isatty():
                click.echo()
            return exits.OK if found.state == "joined" else exits.DEGRADED
        time.sleep(LOOK_S)
