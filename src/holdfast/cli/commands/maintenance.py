"""`holdfast maintenance`: no VM begins on this host any more, and those that are to be moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.context import WholeHelpGroup, json_option, who_asks
from holdfast.model import printable, wall_text

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.control.api import HolderInfo, StatusInfo


@click.group(cls=WholeHelpGroup)
def maintenance() -> None:
    """Planned work on this host: refuse starts and arrivals of VMs, and show which are left."""


@maintenance.command("on")
@click.option(
    "--reason", default="", metavar="TEXT", help="What for; refusals and 'holdfast status' show it."
)
@json_option
@click.pass_obj
def on(context: Context, reason: str, as_json: bool) -> None:
    """From now on no VM begins on this host: none is started, restored or migrated here, also after a reboot.

    VMs that are here go on in every way: they are suspended and resumed, get and give back disks, migrate away. Each
    refusal names the command that ends the maintenance. 'holdfast run' begins nothing new either. Clients of sanlock's
    socket are not refused.

    \b
    holdfast maintenance on --reason "new memory"
    virsh migrate --live web1 qemu+ssh://beta/system

    Exit 0: it is in maintenance; the VMs to move are listed.
    """
    with context.connect() as client:
        client.maintenance(on=True, by=who_asks(), reason=reason)
    _show(context, as_json)


@maintenance.command("off")
@json_option
@click.pass_obj
def off(context: Context, as_json: bool) -> None:
    """VMs may begin on this host again.

    \b
    holdfast maintenance off
    """
    with context.connect() as client:
        client.maintenance(on=False, by=who_asks())
    _show(context, as_json)


@maintenance.command("status")
@json_option
@click.pass_obj
def status(context: Context, as_json: bool) -> None:
    """Whether this host is in maintenance, since when, by whom, and the VMs that are here, with what they hold.

    \b
    holdfast maintenance status
    """
    _show(context, as_json)


def _show(context: Context, as_json: bool) -> None:
    from holdfast.cli import render

    with context.connect() as client:
        now, locks = client.status(), client.locks()
    vms = to_move(locks)
    if as_json:
        render.as_json(
            {
                "ok": True,
                "on": now.maintenance_since is not None,
                "since": now.maintenance_since,
                "by": now.maintenance_by,
                "reason": now.maintenance_reason,
                "vms": vms,
            }
        )
        return
    click.echo(words(now))
    if now.maintenance_since is None:
        return
    click.echo(f"{len(vms)} to move:" if vms else "nothing holds a disk here any more")
    rows = [(each["name"], str(each["pid"]), disk) for each in vms for disk in each["disks"]]
    if rows:
        render.table(("VM", "PID", "HOLDS"), rows)


def words(status: StatusInfo) -> str:
    """One line about it."""
    if status.maintenance_since is None:
        return "not in maintenance: VMs may begin on this host"
    reason = f": {status.maintenance_reason}" if status.maintenance_reason else ""
    return printable(
        f"in maintenance since {wall_text(status.maintenance_since)}, by {status.maintenance_by}{reason}; no VM begins here "
        "until 'holdfast maintenance off'"
    )


def to_move(locks: Sequence[HolderInfo]) -> list[dict[str, Any]]:
    """Each owner with the disks that it holds or has lost, by name."""
    found: dict[tuple[str, int], list[str]] = {}
    for lock in locks:
        found.setdefault((lock.owner, lock.pid), []).append(lock.resource)
    return [
        {"name": name, "pid": pid, "disks": sorted(set(disks))}
        for (name, pid), disks in sorted(found.items())
    ]
