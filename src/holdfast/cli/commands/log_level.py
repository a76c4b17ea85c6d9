"""`holdfast log-level`: how much the daemon logs, while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.cli.context import json_option, who_asks

if TYPE_CHECKING:
    from holdfast.cli.context import Context


@click.command("log-level")
@click.argument("level", required=False, type=click.Choice(("debug", "info", "warning", "error")))
@json_option
@click.pass_obj
def log_level(context: Context, level: str | None, as_json: bool) -> None:
    """Show how much the daemon logs, or change it, without a restart.

    The change lasts until the daemon ends or reloads: then log_level in holdfast.toml counts again. The log says who has
    changed it.

    \b
    holdfast log-level
    holdfast log-level debug
    """
    from holdfast.cli import render

    with context.connect() as client:
        before = client.log_level(level, by=who_asks()) if level is not None else None
        now = client.status().log_level
    if as_json:
        render.as_json({"ok": True, "level": now, "before": before})
    else:
        click.echo(now if before is None else f"{now} (before: {before}), until the daemon ends or reloads")
