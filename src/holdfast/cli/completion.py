"""What the shell may complete: files, and names that the daemon knows. Without an answer in time there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from holdfast.control.api import LeaseSpaceInfo

ANSWER_S = 1.0
"""A person waits for the key."""
FILE = click.Path(readable=False)
"""A path that may not be there: what it must be, the command says itself."""


class FileOrDomain(click.Path):
    """A path, or the name of a VM."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        from holdfast.cli import libvirt_files

        items = super().shell_complete(ctx, param, incomplete)
        names = sorted({domain.name for domain in libvirt_files.domains()})
        return items + [
            click.shell_completion.CompletionItem(name) for name in names if name.startswith(incomplete)
        ]


FILE_OR_DOMAIN = FileOrDomain(readable=False)


def lockspace_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [each.name for each in _spaces(ctx) if each.name.startswith(incomplete)]


def host_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    names = {host.name for each in _spaces(ctx) for host in each.hosts if host.name}
    return sorted(name for name in names if name.startswith(incomplete))


def event_kinds(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The last of several with commas between them."""
    from holdfast.manager.events import KINDS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + kind for kind in KINDS if kind.startswith(last)]


def _spaces(ctx: click.Context) -> list[LeaseSpaceInfo]:
    from holdfast.cli.context import Context
    from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable

    context = ctx.find_root().params

    try:
        path = Context(context.get("config_file"), context.get("socket")).control_socket()
        with ControlClient(path, timeout_s=ANSWER_S) as client:
            return client.lease_spaces()
    except (DaemonUnreachable, CallRefused, OSError):
        return []
