"""`holdfast import-sanlock`: a holdfast.toml for a host that runs sanlock."""

from __future__ import annotations

import click

from holdfast.cli import exits
from holdfast.cli.context import fail, json_option


@click.command("import-sanlock")
@click.option("--root", default="/", hidden=True, help="Read the files below this directory.")
@json_option
def import_sanlock(root: str, as_json: bool) -> None:
    """Print a holdfast.toml for this host's configuration of sanlock; on stderr what it can't carry over.

    Reads qemu-sanlock.conf of libvirt, the options in /etc/default/sanlock and /etc/sysconfig/sanlock, and sanlock.conf.
    Changes nothing. With the result holdfastd is in sanlock's place, and the leases are those that libvirt has made.

    \b
    holdfast import-sanlock > holdfast.toml.new
    holdfast check-config

    Exit 0: printed; 78: a file can't be used.
    """
    from holdfast.cli import render
    from holdfast.cli.sanlock_files import NotImported, read

    try:
        found = read(root)
    except NotImported as e:
        fail(str(e), exits.BAD_CONFIG)
    render.imported(found.toml, found.remarks, in_json=as_json)
