"""`holdfast host`: who is in a lockspace, read from storage alone; and, by the daemon, what a host that is off has left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE, host_names, lockspace_names
from holdfast.cli.context import WholeHelpGroup, json_option
from holdfast.cli.options import offset_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context


COLUMNS = (
    "HOST_ID",
    "NAME",
    "GENERATION",
    "TIMESTAMP",
    "IO_TIMEOUT",
    "STATE",
    "HOST",
    "VERSION",
    "FIRE_TIMEOUT",
    "NOTE",
)


@click.group(cls=WholeHelpGroup)
def host() -> None:
    """Hosts of a lockspace, as their delta leases show them."""


@host.command("fenced")
@click.argument("name", metavar="HOST", shell_complete=host_names)
@click.option("--operator", required=True, metavar="NAME", help="Who vouches for it; it is recorded.")
@click.option(
    "--lockspace",
    default="",
    metavar="NAME",
    shell_complete=lockspace_names,
    help="Limit to this lockspace [default: all].",
)
@click.option("--wait", is_flag=True, help="Wait until it has been silent for long enough, with progress.")
@json_option
@click.pass_obj
def fenced(context: Context, name: str, operator: str, lockspace: str, wait: bool, as_json: bool) -> None:
    """Say that a host is off (you, or a fencing agent, have seen to it): all its leases are freed at once.

    HOST is its whole name, its name in the lockspace, or its host id. A name that two hosts have is refused, and both are
    named. As with 'holdfast break --attest-off', your word stands for the dead bound only once
    holdfastd has seen the host's record silent for 3 of its io_timeouts: a host that renews is not off, whatever
    anybody says. If it is on after all, two VMs write one disk. A lease that living hosts share stays theirs.

    In a lockspace of version 4.0 and later (sanlock 4, 5) its record is marked as dead too, for hosts with sanlock.

    \b
    holdfast host fenced alpha --operator "J. Doe"
    ipmitool -H alpha-bmc chassis power off && holdfast host fenced alpha --operator ipmi --wait

    Exit 0: it holds nothing any more; 6: some leases stay, each with its reason; 75: refused, nothing was done;
    4: no such host.
    """
    from holdfast.cli import render
    from holdfast.cli.commands.host_fenced import fence, show

    with context.connect() as client:
        hosts = fence(client, name, operator=operator, lockspace=lockspace, wait=wait)
    if as_json:
        render.as_json(hosts)
    else:
        show(hosts)
    if any(each.refused for each in hosts):
        sys.exit(exits.REFUSED)
    if any(not lease.freed for each in hosts for lease in each.leases):
        sys.exit(exits.DEGRADED)


@host.command("list")
@click.argument("path", metavar="[LOCKSPACE-PATH]", type=FILE, required=False)
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
@click.pass_obj
def list_hosts(
    context: Context, path: str | None, offset: int, watch: float | None, fire_timeout: int, as_json: bool
) -> None:
    """Every host id that was ever used: its name, generation, timestamp and state, and what the host says of itself.

    Without a path: the hosts of all lockspaces as this host's holdfastd sees them, with the seconds until one counts as
    dead, as in 'holdfast lockspace list'. With the path of a lockspace its records are read, and no daemon is asked.

    Timestamps come from clocks of the hosts' own, so one read shows which ids are FREE and no more: whether a
    host is alive shows in its record changing. A healthy host renews every 2 x io_timeout.

    HOST (its whole name), VERSION and FIRE_TIMEOUT are what a host with holdfast has written beside a lockspace in a
    file; "-": it says nothing that can be believed, as one with sanlock.

    \b
    holdfast host list
    holdfast host list /srv/shared/lockspace
    holdfast host list /dev/vg/locks --watch 25
    """
    from holdfast.cli.offline.storage import reporting

    if path is None:
        _seen_by_the_daemon(context, as_json)
        return
    with reporting(as_json):
        _list(path, offset, watch, fire_timeout, as_json)


def _seen_by_the_daemon(context: Context, as_json: bool) -> None:
    from holdfast.cli import lockspace_standing

    with context.connect() as client:
        lockspace_standing.answer(client.lease_spaces(), as_json=as_json)


def _list(path: str, offset: int, watch: float | None, fire_timeout: int, as_json: bool) -> None:
    from holdfast.cli import render
    from holdfast.cli.lockspace_standing import UNSAID
    from holdfast.cli.offline import storage
    from holdfast.cli.offline.hosts import look_at_hosts, records_beside
    from holdfast.protocol.timing import Timing
    from holdfast.system.block_io.blocking_ports import BlockingClock

    # The hosts' own io_timeouts count; the first number stands in for one that never said.
    timing = Timing(10, fire_timeout)
    said = records_beside(path)  # while this program has one thread
    with storage.opened(path) as disk:
        seen = look_at_hosts(disk, offset, BlockingClock(), timing, watch, said)
    if as_json:
        render.as_json(seen)
        return
    click.echo(f"lockspace {seen.lockspace!r} in {path} at {offset}: {seen.geometry}")
    rows = [
        (
            str(h.host_id),
            h.name,
            str(h.generation),
            str(h.timestamp),
            str(h.io_timeout),
            h.state,
            h.node or UNSAID,
            h.version or UNSAID,
            str(h.fire_timeout) if h.fire_timeout else UNSAID,
            h.note,
        )
        for h in seen.hosts
    ]
    if rows:
        render.table(COLUMNS, rows)
    else:
        click.echo("no host has ever joined")
