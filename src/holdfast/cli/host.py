"""`holdfast host`: who is in a lockspace, read from storage alone."""

from __future__ import annotations

import click

from holdfast.cli.options import json_option, offset_option


@click.group()
def host() -> None:
    """Hosts of a lockspace, as their delta leases show them."""


@host.command("list")
@click.argument("path", metavar="LOCKSPACE-PATH")
@offset_option
@click.option(
    "--watch",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Look twice, S seconds apart: a host whose record changes is LIVE.",
)
@click.option("--fire-timeout", type=click.IntRange(0), default=60, show_default=True, metavar="S",
              help="The watchdog's, the same on all hosts.")  # fmt: skip
@json_option
def list_hosts(path: str, offset: int, watch: float | None, fire_timeout: int, as_json: bool) -> None:
    """Every host id that was ever used: its name, generation, timestamp and state.

    Timestamps come from clocks of the hosts' own, so one look tells FREE ids from used ones and no more: whether a
    host is alive shows in its record changing. A healthy host renews every 2 x io_timeout.

    \b
    holdfast host list /srv/shared/lockspace
    holdfast host list /dev/vg/locks --watch 25
    """
    from holdfast.cli.storage import reporting

    with reporting(as_json):
        _list(path, offset, watch, fire_timeout, as_json)


def _list(path: str, offset: int, watch: float | None, fire_timeout: int, as_json: bool) -> None:
    from holdfast.cli import render, storage
    from holdfast.cli.host_looks import look_at_hosts
    from holdfast.protocol.timing import Timing
    from holdfast.system.blocking_thread import BlockingClock

    # The hosts' own io_timeouts count; the first number stands in for one that never said.
    timing = Timing(10, fire_timeout)
    with storage.opened(path) as disk:
        told = look_at_hosts(disk, offset, BlockingClock(), timing, watch)
    if as_json:
        render.as_json(told)
        return
    click.echo(f"lockspace {told.lockspace!r} in {path} at {offset}: {told.geometry}")
    rows = [
        (
            str(h.host_id),
            h.name,
            str(h.generation),
            str(h.timestamp),
            str(h.io_timeout),
            h.state,
            h.note,
        )
        for h in told.hosts
    ]
    if rows:
        render.table(("HOST_ID", "NAME", "GENERATION", "TIMESTAMP", "IO_TIMEOUT", "STATE", "NOTE"), rows)
    else:
        click.echo("no host has ever joined")
