"""`holdfast events`: which of them are wanted; and with -f a stream that goes on over restarts of the daemon."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from holdfast.control.api import EventInfo
from holdfast.control.client import ControlClient, DaemonUnreachable

RECONNECT_S = 0.5
UNITS_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(rf"(\d+)\s*({'|'.join(UNITS_S)})")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are shown: of these kinds (empty: all), from this time on (seconds since the epoch)."""

    kinds: frozenset[str] = frozenset()
    since_s: float = 0.0

    def __contains__(self, event: EventInfo) -> bool:
        return event.time >= self.since_s and (not self.kinds or event.kind in self.kinds)


def moment(text: str, now_s: float) -> float:
    """Seconds since the epoch for "90s", "10min", "2h", "1d" ago, or for a date with or without a time.

    A time is that of this host's clock (TZ), unless it ends with "UTC", "Z" or an offset. ValueError, with the forms, for
    anything else.
    """
    if span := _SPAN.fullmatch(text.strip()):
        return now_s - int(span[1]) * UNITS_S[span[2]]
    iso = re.sub(r"\s*UTC$", "+00:00", text.strip())
    try:
        return datetime.datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"'{text}' is no time: 90s, 10min, 2h or 1d (ago), '2026-11-28', or '2026-11-28 14:05:00'"
        ) from None


def follow_events(socket: str, show: Callable[[EventInfo], None], wanted: Wanted) -> None:
    """Never returns, except by a signal.  The first connection must work; later ones are tried until they do.

    Numbers go on over restarts of the daemon; smaller ones are of a daemon that began when the clock had been set back.
    """
    after = 0
    client = ControlClient(socket)
    while True:
        try:
            if client.status().last_event < after:
                after = 0
            for event in client.events(after=after, follow=True):
                after = event.number
                if event in wanted:
                    show(event)
        except DaemonUnreachable as e:
            click.echo(f"holdfast: {e}; waiting for it", err=True)
        client.close()
        client = _reconnect(socket)


def _reconnect(socket: str) -> ControlClient:
    while True:
        time.sleep(RECONNECT_S)
        try:
            return ControlClient(socket)
        except DaemonUnreachable:
            continue
