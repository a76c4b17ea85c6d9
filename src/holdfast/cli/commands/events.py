"""`holdfast events -f`: a stream that goes on over restarts of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from holdfast.control.api import EventInfo
from holdfast.control.client import ControlClient, DaemonUnreachable

RECONNECT_S = 0.5


def follow_events(socket: str, show: Callable[[EventInfo], None]) -> None:
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
