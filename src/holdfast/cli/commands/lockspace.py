"""`holdfast lockspace`: areas of delta leases, made without a daemon; and how the daemon stands in them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE, lockspace_names
from holdfast.cli.context import WholeHelpGroup, json_option
from holdfast.cli.options import force_option, geometry_options, offset_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.ondisk.geometry import Geometry


@click.group(cls=WholeHelpGroup)
def lockspace() -> None:
    """Lockspaces on shared storage: where hosts prove to each other that they are alive."""


@lockspace.command("list")
@json_option
@click.pass_obj
def list_command(context: Context, as_json: bool) -> None:
    """The lockspaces of this host's holdfastd: how it stands in each, and whom it sees there.

    Exit 0: joined everywhere; 6: not, with the reason and the seconds left.
    """
    from holdfast.cli import lockspace_standing

    with context.connect() as client:
        spaces = client.lease_spaces()
    lockspace_standing.answer(spaces, as_json=as_json)
    if any(each.state != "joined" for each in spaces):
        sys.exit(exits.DEGRADED)


@lockspace.command("join")
@click.argument("name", shell_complete=lockspace_names)
@click.option("--no-wait", is_flag=True, help="Do not wait; see 'holdfast lockspace list' for progress.")
@json_option
@click.pass_obj
def join(context: Context, name: str, no_wait: bool, as_json: bool) -> None:
    """Have holdfastd join a lockspace that it has left, and wait, showing progress.

    Exit 0: joined (with --no-wait: begun); 6: not, with the reason; 75: refused.
    """
    from holdfast.cli import lockspace_standing, render

    with context.connect() as client:
        client.join_lease_space(name)
        if not no_wait:
            sys.exit(lockspace_standing.wait_until_joined(client, name, as_json=as_json))
    if as_json:
        render.as_json({"ok": True, "lockspace": name})


@lockspace.command("leave")
@click.argument("name", shell_complete=lockspace_names)
@json_option
@click.pass_obj
def leave(context: Context, name: str, as_json: bool) -> None:
    """Leave a lockspace that no running VM uses, and release this host's host id. Exit 0: left; 75: refused."""
    from holdfast.cli import render

    with context.connect() as client:
        client.leave_lease_space(name)
    if as_json:
        render.as_json({"ok": True, "lockspace": name})
    else:
        click.echo(f"left lockspace {name}; to rejoin: holdfast lockspace join {name}")


@lockspace.command("set")
@click.argument("name", shell_complete=lockspace_names)
@click.option(
    "--io-timeout",
    "io_timeout_s",
    type=click.IntRange(1, 255),
    required=True,
    metavar="S",
    help="This host's io_timeout in the lockspace, in seconds.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait; see 'holdfast lockspace list' for progress.")
@json_option
@click.pass_obj
def set_command(context: Context, name: str, io_timeout_s: int, no_wait: bool, as_json: bool) -> None:
    """Change this host's io_timeout while it is in the lockspace, and its VMs run: raised before storage is worked on,
    lowered afterwards. Takes up to two renewals.

    Each host has its own, so give it on every host. A silence of storage up to 4 io_timeouts costs no host its lease; a
    host that dies is taken over after 8 io_timeouts and the fire_timeout. Restarts of holdfastd keep it; after a boot, or
    when the lockspace was left, io_timeout_s of the configuration counts.

    \b
    holdfast lockspace set vms --io-timeout 30

    Exit 0: changed (with --no-wait: begun); 6: it was lost meanwhile, with the reason; 75: refused.
    """
    from holdfast.cli import lockspace_standing, render

    with context.connect() as client:
        client.set_io_timeout(name, io_timeout_s)
        info = None if no_wait else lockspace_standing.wait_for_io_timeout(client, name)
    done = info is not None and info.state == "joined" and info.io_timeout_s == io_timeout_s
    if as_json:
        render.as_json(
            {"ok": done or no_wait, "lockspace": name, "io_timeout_s": io_timeout_s, "changed": done}
        )
    elif done:
        click.echo(f"lockspace {name}: io_timeout is {io_timeout_s} s on this host, until it leaves or boots")
    elif no_wait:
        click.echo(f"lockspace {name}: io_timeout is being changed to {io_timeout_s} s")
    else:
        click.echo(f"lockspace {name}: {lockspace_standing.headline(info) if info else 'is gone'}", err=True)
    if not (done or no_wait):
        sys.exit(exits.DEGRADED)


@lockspace.command("init")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--name", required=True, help="The lockspace's name, the same on all hosts.")
@click.option("--hosts-max", type=int, metavar="N", help="How many hosts it must serve [default: 2000].")
@click.option(
    "--index",
    type=click.IntRange(0, 128_000),
    metavar="N",
    help="Make a resource index for N leases behind it too, as 'device =' needs; 0: as many as fit.",
)
@geometry_options
@offset_option
@click.option(
    "--io-timeout",
    type=click.IntRange(1, 255),
    metavar="S",
    help="io_timeout to assume for hosts that do not record their own [default: io_timeout_s of the backend that is "
    "configured at PATH, else 10].",
)
@force_option
@json_option
@click.pass_obj
def init(context: Context, /, path: str, as_json: bool, io_timeout: int | None, **options: Any) -> None:
    """Make a lockspace in a file or on a block device. A missing file is made.

    Refuses to overwrite anything but zeros, and says what is there.

    \b
    holdfast lockspace init /srv/shared/lockspace --name vms
    holdfast lockspace init /dev/vg/locks --name vms --hosts-max 64 --index 0

    Exit 0: made; 75: something is there; 1: could not.
    """
    from holdfast.cli.offline.storage import reporting
    from holdfast.cli.recorded_timeouts import configured_io_timeout_s
    from holdfast.ondisk.areas import IO_TIMEOUT_DEFAULT_S

    configured = configured_io_timeout_s(context.backends(), path)
    with reporting(as_json):
        _init(path, as_json, io_timeout=io_timeout or configured or IO_TIMEOUT_DEFAULT_S, **options)
    if io_timeout and configured and io_timeout != configured:
        click.echo(
            f"holdfast: --io-timeout {io_timeout} differs from io_timeout_s = {configured}, by which this host will go: "
            f"leave the option out, or change the key on all hosts",
            err=True,
        )


def _init(path: str, as_json: bool, *, offset: int, io_timeout: int, **options: Any) -> None:
    from holdfast.cli import render

    hosts_max = options["hosts_max"]
    made = make(path, quiet=as_json, offset=offset, io_timeout=io_timeout, **options)
    geometry = made.geometry
    if as_json:
        render.as_json(
            {
                "ok": True,
                "path": path,
                "offset": offset,
                "lockspace": options["name"],
                "sector": geometry.sector_bytes,
                "align": geometry.align_bytes,
                "hosts_max": geometry.hosts_max,
                "io_timeout": io_timeout,
                "index_entries": made.entries,
                "overwritten": made.overwritten or None,
                "access": made.how,
            }
        )
        return
    room = (
        f"{geometry.hosts_max} hosts"
        if hosts_max is None
        else f"{hosts_max} hosts (it has room for {geometry.hosts_max})"
    )
    if made.overwritten:
        click.echo(f"overwritten: {made.overwritten}")
    index = f", with an index for {made.entries} leases" if made.entries else ""
    click.echo(
        f"lockspace {options['name']!r} made in {path} at {offset}: sectors and areas {geometry}, "
        f"for {room}{index}, io_timeout {io_timeout} s ({made.how})"
    )


@dataclass(frozen=True, slots=True)
class Made:
    """A new lockspace: its sizes, the entries of its index, what was overwritten, and how its storage was written."""

    geometry: Geometry
    entries: int
    overwritten: str
    how: str


def make(
    path: str,
    *,
    name: str,
    hosts_max: int | None,
    index: int | None,
    io_timeout: int,
    sector: str | None = None,
    align: str | None = None,
    offset: int = 0,
    force: bool = False,
    quiet: bool = True,
) -> Made:
    """Make a lockspace, as the options of `lockspace init` say; raises `storage.UsageError`."""
    from holdfast.cli.offline import storage
    from holdfast.cli.offline.format_index import make_index, room_for_index
    from holdfast.cli.offline.lockspace_before import generation_above
    from holdfast.ondisk.rindex import SPACE_NAME_BYTES_MAX
    from holdfast.protocol import lockspace_area
    from holdfast.protocol.types import IoFailed
    from holdfast.system.block_io.blocking_ports import run_blocking

    storage.check_name("--name", name, SPACE_NAME_BYTES_MAX)
    with storage.opened(path, writable=True, create=True) as disk:
        geometry = storage.choose_geometry(disk.facts, sector, align, hosts_max)
        overwritten = storage.require_room(disk, geometry, offset, force=force)
        generation = generation_above(disk, offset, quiet=quiet)
        entries = 0
        if index is not None:
            entries = room_for_index(disk, geometry, offset, index, force=force)
            # First: a lockspace with half an index behind it would look finished.
            make_index(disk, geometry, offset, name, entries)
        # What is there was looked at more closely than the protocol does, which knows lockspaces only.
        made = run_blocking(
            lockspace_area.init(
                disk,
                offset,
                geometry,
                name,
                io_timeout_s=io_timeout,
                generation=generation,
                overwrite=True,
            )
        )
        if isinstance(made, IoFailed):
            raise storage.failed(path, "cannot write", made)
        return Made(geometry, entries, overwritten, disk.facts.how)
