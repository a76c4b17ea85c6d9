"""`holdfast host fenced`: give the order, wait for the silence that it needs, and show what came of it."""

from __future__ import annotations

import sys
import time

import click

from holdfast.cli import exits
from holdfast.control.api import FencedHost
from holdfast.control.client import CallRefused, ControlClient

LOOK_S = 1.0
RENEWALS_MAX = 1
"""A look may be as old as a renewal, so that the last one of a host that is off shows after the order; the next does not."""


def fence(client: ControlClient, host: str, *, operator: str, lockspace: str, wait: bool) -> list[FencedHost]:
    """What came of it. With `wait`, refused only for a host that goes on renewing."""
    before: dict[tuple[str, int], int] = {}
    renewals: dict[tuple[str, int], int] = {}
    while True:
        try:
            hosts = client.fence_host(host, operator=operator, lockspace=lockspace)
        except CallRefused as e:
            if e.kind != "HostNotKnown":
                raise
            click.echo(f"holdfast: {e}", err=True)
            sys.exit(exits.UNKNOWN)
        waiting = [each for each in hosts if each.seconds_left is not None]
        for each in hosts:
            key = (each.lockspace, each.host_id)
            if each.timestamp != before.setdefault(key, each.timestamp):
                renewals[key] = renewals.get(key, 0) + 1
                before[key] = each.timestamp
        if not waiting or not wait:
            return hosts
        for each in waiting:
            if renewals.get((each.lockspace, each.host_id), 0) > RENEWALS_MAX:
                each.refused = "it goes on renewing: it is not off"
                return hosts
        longest = max(waiting, key=lambda each: each.seconds_left or 0.0)
        _progress(longest)
        time.sleep(LOOK_S)


def _progress(each: FencedHost) -> None:
    text = (
        f"waiting for silence: {each.node or each.host_name} (host_id {each.host_id}) in {each.lockspace} was seen "
        f"{each.unchanged_s:.0f} s ago, {each.seconds_left or 0.0:.0f} s left"
    )
    # On stderr: what is on stdout is the answer.
    click.echo(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, nl=not sys.stderr.isatty(), err=True)


def show(hosts: list[FencedHost]) -> None:
    for each in hosts:
        called = f"{each.node or each.host_name} (host_id {each.host_id}) in {each.lockspace}"
        if each.refused:
            click.echo(f"{called}: refused: {each.refused}", err=True)
            continue
        if each.mark:
            click.echo(f"{called}: {each.mark}")
        if each.on_demand:
            click.echo(
                f"{called}: a lease of sanlock's clients is free as soon as a client of this host asks for it"
            )
        elif not each.leases:
            click.echo(f"{called}: it holds nothing")
        for lease in each.leases:
            name = lease.resource if lease.resource == lease.lease else f"{lease.resource} ({lease.lease})"
            click.echo(f"{called}: {name}: {'free' if lease.freed else 'STAYS'}: {lease.detail}")
