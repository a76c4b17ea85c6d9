"""`holdfast import-lvmlock`: a holdfast.toml for a host that runs libvirt-hook-lvmlock."""

from __future__ import annotations

import click

from holdfast.cli.context import json_option


@click.command("import-lvmlock")
@click.option("--root", default="/", hidden=True, help="Read the files below this directory.")
@json_option
def import_lvmlock(root: str, as_json: bool) -> None:
    """Print a holdfast.toml for a host with libvirt-hook-lvmlock; on stderr what is not carried over, and what to do.

    Reads libvirt's domains, the hook's qemu.ini, and which volume groups are shared (vgs). Changes nothing. With the result
    the disks on these groups are active exclusively where their VM runs, and migrations need no lvchange.

    \b
    holdfast import-lvmlock > holdfast.toml.new
    holdfast --config holdfast.toml.new check-config

    Exit 0: printed.
    """
    import os

    from holdfast.cli import render
    from holdfast.cli.doctor.scene import ThisHost
    from holdfast.cli.libvirt_files import domains
    from holdfast.cli.lvmlock_hook import GROUPS, imported
    from holdfast.system.libvirt.volume_hooks import INI, lvmlock_actions, lvmlock_hook

    groups = ThisHost().output(*GROUPS)
    script, ini = lvmlock_hook(root), os.path.join(root, INI)
    source = ini if os.path.exists(ini) else script
    found = imported(script, lvmlock_actions(root), list(domains(root)), groups, source=source)
    render.imported(found.toml, found.remarks, in_json=as_json)
