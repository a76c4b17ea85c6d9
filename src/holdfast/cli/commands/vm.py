"""`holdfast vm`: the virtual machines of this host, as holdfastd knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.cli.context import WholeHelpGroup, json_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context


@click.group(cls=WholeHelpGroup)
def vm() -> None:
    """Virtual machines of this host, as holdfastd knows them."""


@vm.command("list")
@json_option
@click.pass_obj
def list_vms(context: Context, as_json: bool) -> None:
    """One line for each VM that has locks or a connection: its disks, and the weakest protection among them.

    The same as 'holdfast list --owners'; 'holdfast who VM' says all of one.

    \b
    holdfast vm list
    """
    show(context, as_json)


def show(context: Context, as_json: bool) -> None:
    """Also for 'holdfast list --owners'."""
    from holdfast.cli import render
    from holdfast.cli.unlocked import unlocked_disks, weakest

    with context.connect() as client:
        vms = weakest(client.owners(), unlocked_disks(client.locks))
    if as_json:
        render.as_json(vms)
    else:
        render.owners(vms)
