"""`holdfast lockspace`: areas of delta leases, made without a daemon."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.options import force_option, geometry_options, json_option, offset_option


@click.group()
def lockspace() -> None:
    """Lockspaces on shared storage: where hosts prove to each other that they are alive."""


@lockspace.command("init")
@click.argument("path", metavar="PATH")
@click.option("--name", required=True, help="The lockspace's name, the same on all hosts.")
@click.option("--hosts-max", type=int, metavar="N", help="How many hosts it must serve [default: 2000].")
@geometry_options
@offset_option
@click.option(
    "--io-timeout",
    type=click.IntRange(1, 255),
    default=10,
    show_default=True,
    metavar="S",
    help="What a host is taken to have used that never said so.",
)
@force_option
@json_option
def init(path: str, as_json: bool, **options: Any) -> None:
    """Make a lockspace in a file or on a block device. A missing file is made.

    Refuses to overwrite anything but zeros, and says what is there.

    \b
    holdfast lockspace init /srv/shared/lockspace --name vms
    holdfast lockspace init /dev/vg/locks --name vms --hosts-max 64 --sector 4096

    Exit 0: made; 75: something is there; 1: could not.
    """
    from holdfast.cli.storage import reporting

    with reporting(as_json):
        _init(path, as_json, **options)


def _init(
    path: str,
    as_json: bool,
    *,
    name: str,
    hosts_max: int | None,
    sector: str | None,
    align: str | None,
    offset: int,
    io_timeout: int,
    force: bool,
) -> None:
    from holdfast.cli import render, storage
    from holdfast.ondisk.rindex import SPACE_NAME_BYTES_MAX
    from holdfast.protocol import lockspace_area
    from holdfast.protocol.words import IoFailed
    from holdfast.system.blocking_thread import run_blocking

    storage.check_name("--name", name, SPACE_NAME_BYTES_MAX)
    with storage.opened(path, writable=True, create=True) as disk:
        geometry = storage.choose_geometry(disk.facts, sector, align, hosts_max)
        overwritten = storage.require_room(disk, geometry, offset, force=force)
        # What is there was looked at more closely than the protocol does, which knows lockspaces only.
        made = run_blocking(
            lockspace_area.init(disk, offset, geometry, name, io_timeout_s=io_timeout, overwrite=True)
        )
        if isinstance(made, IoFailed):
            raise storage.failed(path, "cannot write", made)
        how = disk.facts.how
    if as_json:
        render.as_json(
            {
                "ok": True,
                "path": path,
                "offset": offset,
                "lockspace": name,
                "sector": geometry.sector_bytes,
                "align": geometry.align_bytes,
                "hosts_max": geometry.hosts_max,
                "io_timeout": io_timeout,
                "overwritten": overwritten or None,
                "access": how,
            }
        )
        return
    if overwritten:
        click.echo(f"overwritten: {overwritten}")
    click.echo(
        f"lockspace {name!r} made in {path} at {offset}: sectors and areas {geometry}, "
        f"for {geometry.hosts_max} hosts ({how})"
    )
