"""`holdfast lease`: leases on shared storage, made and read without a daemon."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE
from holdfast.cli.context import WholeHelpGroup, json_option
from holdfast.cli.options import force_option, geometry_options, offset_option, size

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.cli.offline.dump import HostNames


@click.group(cls=WholeHelpGroup)
def lease() -> None:
    """Leases on shared storage: what makes a resource somebody's, across hosts."""


@lease.command("gc")
@click.option("--dry-run", is_flag=True, help="Only look; what is said to be free was not proven to be.")
@json_option
@click.pass_obj
def gc(context: Context, dry_run: bool, as_json: bool) -> None:
    """Have holdfastd remove the leases that nobody holds, each proven free by acquiring it.

    A lease is made again when its disk is started next. Leases that other programs named are left alone.
    """
    from holdfast.cli import render

    with context.connect() as client:
        leases = client.collect_leases(dry_run=dry_run)
    if as_json:
        render.as_json(leases)
        return
    for each in leases:
        if each.kept_because:
            click.echo(f"{each.name} ({each.backend}) stays: {each.kept_because}")
    out = sum(not each.kept_because for each in leases)
    click.echo(f"{out} of {len(leases)} leases {'could be' if dry_run else 'were'} taken out")


@lease.command("init")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--lockspace", required=True, metavar="NAME", help="The lockspace whose hosts may own it.")
@click.option("--resource", required=True, metavar="NAME", help="What is leased.")
@click.option(
    "--hosts-max",
    type=int,
    metavar="N",
    help="Only hosts 1 to N may own it; fewer are quicker [default: all that fit].",
)
@geometry_options
@offset_option
@force_option
@json_option
def init(path: str, as_json: bool, **options: Any) -> None:
    """Make a free lease in a file or on a block device. A missing file is made.

    Sizes are by default those of the lockspace, if it is at the begin of the same path. Refuses to overwrite
    anything but zeros and cleared leases, and says what is there.

    \b
    holdfast lease init /dev/vg/locks --lockspace vms --resource web --offset 1M

    Exit 0: made; 75: something is there; 1: could not.
    """
    from holdfast.cli.offline.storage import reporting

    with reporting(as_json):
        _init(path, as_json, **options)


def _init(
    path: str,
    as_json: bool,
    *,
    lockspace: str,
    resource: str,
    hosts_max: int | None,
    sector: str | None,
    align: str | None,
    offset: int,
    force: bool,
) -> None:
    from holdfast.cli import render
    from holdfast.cli.offline import storage
    from holdfast.cli.offline.identify import identify
    from holdfast.ondisk import leader
    from holdfast.ondisk.delta import DeltaLease
    from holdfast.ondisk.geometry import SECTOR_4096
    from holdfast.protocol.lease_area import LeaseArea, LeaseInitialised
    from holdfast.protocol.lease_area import init as init_lease
    from holdfast.protocol.types import IoFailed
    from holdfast.system.block_io.blocking_ports import run_blocking

    storage.check_name("--lockspace", lockspace)
    storage.check_name("--resource", resource)
    with storage.opened(path, writable=True, create=True) as disk:
        first = identify(storage.read(disk, 0, SECTOR_4096))
        if (
            sector is None
            and align is None
            and isinstance(first, DeltaLease)
            and first.space_name.says(lockspace)
        ):
            geometry = first.geometry
        else:
            geometry = storage.choose_geometry(disk.facts, sector, align, None)
        if hosts_max is not None and not 1 <= hosts_max <= geometry.hosts_max:
            raise storage.UsageError(
                "--hosts-max", f"{hosts_max} hosts", f"{geometry} serves 1 to {geometry.hosts_max}"
            )
        overwritten = storage.require_room(disk, geometry, offset, force=force)
        area = LeaseArea(disk, offset, geometry, lockspace, resource)
        version = leader.VERSION
        if isinstance(first, DeltaLease) and first.space_name.says(lockspace):
            version = leader.version_beside(first.version)
        made = run_blocking(init_lease(area, hosts_max, version=version, overwrite=True))
        if isinstance(made, IoFailed):
            raise storage.failed(path, "cannot write", made)
        assert isinstance(made, LeaseInitialised)
        how = disk.facts.how
    if as_json:
        render.as_json(
            {
                "ok": True,
                "path": path,
                "offset": offset,
                "lockspace": lockspace,
                "resource": resource,
                "sector": geometry.sector_bytes,
                "align": geometry.align_bytes,
                "num_hosts": made.leader.num_hosts,
                "overwritten": overwritten or None,
                "access": how,
            }
        )
        return
    if overwritten:
        click.echo(f"overwritten: {overwritten}")
    click.echo(
        f"lease of {resource!r} in lockspace {lockspace!r} made in {path} at {offset}: sectors and areas "
        f"{geometry}, for {made.leader.num_hosts} hosts ({how})"
    )


@lease.command("dump")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--offset", type=size, metavar="BYTES", help="Only the area that begins here, e.g. 1M.")
@click.option(
    "--lockspace-path",
    metavar="PATH",
    help="Where the lockspace is that tells the owners' names, if not on the same path.",
)
@json_option
def dump(path: str, offset: int | None, lockspace_path: str | None, as_json: bool) -> None:
    """Show everything that is on a path: leases with their leader, request, ballots and shared holds; lockspaces
    with their hosts; resource indexes.

    \b
    holdfast lease dump /dev/vg/locks
    holdfast lease dump /srv/shared/web.lease --lockspace-path /srv/shared/lockspace --json

    Exit 0: shown; 4: there is no lease, lockspace or index; 1: the path can't be read.
    """
    from holdfast.cli import render
    from holdfast.cli.offline import dump, storage

    with storage.reporting(as_json):
        names = _names(lockspace_path) if lockspace_path else {}
        with storage.opened(path) as disk:
            dumped = dump.dump(disk, offset, names)
    if as_json:
        render.as_json(dumped)
    else:
        dump.show(dumped)
    if all(each.kind == "other" for each in dumped.areas):
        sys.exit(exits.UNKNOWN)


def _names(path: str) -> HostNames:
    from holdfast.cli.offline import dump, storage
    from holdfast.cli.offline.identify import describe, identify
    from holdfast.ondisk.delta import DeltaLease
    from holdfast.ondisk.geometry import SECTOR_4096

    with storage.opened(path) as disk:
        raw = storage.read(disk, 0, SECTOR_4096)
        first = identify(raw)
        if not isinstance(first, DeltaLease):
            problem = f"no lockspace in {path}, but {describe(first, raw)}"
            raise storage.UsageError("--lockspace-path", problem, "name the path of the lockspace")
        return dump.names_in(first, storage.read(disk, 0, first.geometry.align_bytes))
