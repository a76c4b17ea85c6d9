"""`holdfast version`: of this command, and of the daemon that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast import __version__
from holdfast.cli.context import json_option
from holdfast.model import printable

if TYPE_CHECKING:
    from holdfast.cli.context import Context


@click.command()
@json_option
@click.pass_obj
def version(context: Context, as_json: bool) -> None:
    """The version of this command, and of the daemon if one runs: after an upgrade, they differ until it has reloaded.

    \b
    holdfast version

    Exit 0, also without a daemon.
    """
    from holdfast.cli import render
    from holdfast.control.client import CallRefused, DaemonUnreachable

    daemon, why = "", ""
    try:
        with context.connect() as client:
            daemon = client.status().version
    except (DaemonUnreachable, CallRefused) as e:
        why = str(e)
    if as_json:
        from holdfast.cli.json_schema import JSON_VERSION

        render.as_json(
            {"ok": True, "holdfast": __version__, "holdfastd": daemon or None, "json": JSON_VERSION}
        )
        return
    click.echo(f"holdfast {__version__}")
    click.echo(printable(f"holdfastd {daemon}" if daemon else f"holdfastd: {why}"))
    if daemon and daemon != __version__:
        click.echo("they differ: 'holdfast reload' has the daemon become the program on disk")
