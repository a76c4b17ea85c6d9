"""`holdfast config show`: the configuration as it counts, every default included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.context import WholeHelpGroup, fail, json_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context


@click.group(cls=WholeHelpGroup)
def config() -> None:
    """holdfastd's configuration."""


@config.command("show")
@click.option(
    "--in-force", is_flag=True, help="The one that the daemon of this boot works with, not the files."
)
@json_option
@click.pass_obj
def show(context: Context, in_force: bool, as_json: bool) -> None:
    """The configuration in the files, with every default, as TOML that holdfastd reads. Needs no daemon.

    'holdfast check-config' checks it; 'holdfast status' says whether it differs from the one in force.

    \b
    holdfast config show
    holdfast config show --in-force

    Exit 0: printed; 4: nothing is in force on this host; 78: the files can't be used.
    """
    from holdfast import config_toml
    from holdfast.cli import render
    from holdfast.errors import ConfigError

    if in_force:
        from holdfast.daemon.kept_config import in_force as kept_in_force

        found = kept_in_force(context.config_file)
        if found is None:
            fail("no holdfastd of this boot has left a configuration in force", exits.UNKNOWN)
    else:
        try:
            found = context.on_disk()
        except ConfigError as e:
            fail(str(e), exits.BAD_CONFIG)
    text = config_toml.to_toml(found)
    if as_json:
        render.as_json({"ok": True, "sources": list(found.sources), "toml": text})
        return
    if found.sources and not in_force:
        click.echo(f"# {', '.join(found.sources)}, and every default")
    click.echo(text, nl=False)
