"""`holdfast top`: hosts, locks and events of this daemon on one screen, drawn again every few seconds."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import click

from holdfast.cli import lockspace_standing, render
from holdfast.cli.commands import maintenance
from holdfast.control.api import EventInfo, HolderInfo, HostInfo, LeaseSpaceInfo, StatusInfo
from holdfast.control.client import ControlClient, DaemonUnreachable
from holdfast.model import printable, wall_text

EVENTS_SHOWN = 8
"""Newest events at the bottom of the screen; a quarter of a small terminal."""
LOCKS_SHOWN_MIN = 3
"""Locks keep so many lines although hosts would fill the screen."""
CLEAR = "\x1b[H\x1b[2J"
"""Cursor to the upper left corner, and clear the screen (ECMA-48 CUP, ED)."""
LOCK_COLUMNS = "{:<34} {:<10} {:<26} {:<22} {}"


@dataclass(frozen=True, slots=True)
class Picture:
    """What one screen shows, as the daemon answered."""

    status: StatusInfo
    spaces: Sequence[LeaseSpaceInfo]
    locks: Sequence[HolderInfo]
    events: Sequence[EventInfo] = field(default_factory=tuple)


def lines(picture: Picture, height: int) -> list[str]:
    """The screen from top to bottom, at most `height` lines: what is wrong comes before what is well."""
    status = picture.status
    head = [
        f"holdfastd {status.version} on {status.host}, since {wall_text(status.started)}; {wall_text(time.time())}",
        f"{status.locks} locks of {status.owners} owners; {status.locks_lost} lost, {status.locks_unknown} of unknown "
        f"owners, {status.locks_departing} departing; journal {status.journal}",
        *([maintenance.words(status)] if status.maintenance_since is not None else ()),
        *(f"PROBLEM: {problem}" for problem in status.problems),
        *(f"waiting for storage: {each}" for each in status.storage_waiting),
    ]
    events = [render.event_text(event) for event in picture.events[-EVENTS_SHOWN:]]
    room = height - len(head) - len(events) - 3  # headings of locks and events, and a line for the rest
    hosts = [line for space in picture.spaces for line in _space(space)]
    hosts = _cut(
        hosts,
        max(0, room - min(len(picture.locks), LOCKS_SHOWN_MIN)),
        "lines of hosts: holdfast lockspace list",
    )
    ordered = sorted(picture.locks, key=lambda h: (h.held, not h.unknown, h.protection or 0, h.resource))
    locks = _cut([_lock(each) for each in ordered], max(0, room - len(hosts)), "locks: holdfast list")
    heading = LOCK_COLUMNS.format("LOCK", "MODE", "OWNER", "PROTECTION", "STATE")
    whole = [*head, *hosts, heading, *locks, *(["EVENTS", *events] if events else [])]
    return [printable(line) for line in whole[:height]]


def _cut(found: list[str], room: int, rest: str) -> list[str]:
    return (
        found
        if len(found) <= room
        else [*found[: max(0, room - 1)], f"... {len(found) - max(0, room - 1)} {rest}"]
    )


def _space(space: LeaseSpaceInfo) -> list[str]:
    """A line for the lockspace, one for each host; those that don't renew come first."""
    hosts = sorted(space.hosts, key=lambda h: (h.state in ("LIVE", "FREE"), h.host_id))
    return [lockspace_standing.headline(space), *map(_host, hosts)]


def _host(host: HostInfo) -> str:
    over = "if it is over, " if host.state == "LIVE" else ""
    dead = "" if host.dead_in_s is None else f", {over}its leases can be taken over in {host.dead_in_s:.0f} s"
    note = f", {host.note}" if host.note else ""
    name = host.node or host.name
    return (
        f"  {host.host_id:>4} {name:<24} {host.state:<6} unchanged for {host.unchanged_s:.0f} s{dead}{note}"
    )


def _lock(h: HolderInfo) -> str:
    state = (
        f"LOST: {h.lost_reason}" if not h.held else f"UNKNOWN OWNER: {h.unknown}" if h.unknown else h.until
    )
    protection = render.protection(h.protection, h.protection_word)
    return LOCK_COLUMNS.format(
        h.resource, h.mode, render.owner_text(h.owner, h.pid), protection, state
    ).rstrip()


def watch(connect: Callable[[], ControlClient], interval_s: float, *, once: bool) -> None:
    """Draw until a signal ends it; with `once`, or where the output is no terminal, print one picture.

    DaemonUnreachable if the first question gets no answer; later ones are asked until one is answered.
    """
    events: deque[EventInfo] = deque(maxlen=EVENTS_SHOWN)
    for round in itertools.count():
        try:
            with connect() as client:
                after = events[-1].number if events else 0
                status, spaces, locks = client.status(), client.lease_spaces(), client.locks()
                events.extend(client.events(after=after, follow=False))
        except DaemonUnreachable as e:
            if round == 0:
                raise
            click.echo(f"\nholdfast: {printable(str(e))}; waiting for it", err=True)
        else:
            picture = Picture(status, spaces, locks, tuple(events))
            if once or not sys.stdout.isatty():
                click.echo("\n".join(lines(picture, sys.maxsize)))
                return
            size = shutil.get_terminal_size()
            shown = [line[: size.columns] for line in lines(picture, size.lines - 1)]
            click.echo(CLEAR + "\n".join(shown), nl=False)
        time.sleep(interval_s)
