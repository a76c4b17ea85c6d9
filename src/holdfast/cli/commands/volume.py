"""`holdfast volume` and `holdfast attach`: logical volumes of shared volume groups, by order (docs/shared-lvm.md)."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE, FILE_OR_DOMAIN
from holdfast.cli.context import WholeHelpGroup, fail, json_option
from holdfast.model import printable

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.control.api import VolumeInfo

ATTACH_S = 60.0
"""libvirt's: it asks for the lock, and has QEMU open the disk."""
LIBVIRT_URI = "qemu:///system"


@click.group(cls=WholeHelpGroup)
def volume() -> None:
    """Logical volumes of shared volume groups, where a backend has driver = "lvm"."""


@volume.command("list")
@json_option
@click.pass_obj
def list_volumes(context: Context, as_json: bool) -> None:
    """Volumes that holdfastd has to do with on this host: how each is held, whether it is active, and who uses it.

    \b
    holdfast volume list
    """
    from holdfast.cli import render

    with context.connect() as client:
        volumes = client.volumes()
    if as_json:
        render.as_json(volumes)
        return
    for each in volumes:
        click.echo(printable(line_of(each)))
    if not volumes:
        click.echo("no volume is used on this host")


def line_of(seen: VolumeInfo) -> str:
    """One volume, as text."""
    held = seen.held or ("not held" if not seen.problem else f"not known: {seen.problem}")
    users = [
        f"{use.name or 'program'} (pid {use.pid}, {use.role}{', writes' if use.writes else ''})"
        for use in seen.users
    ]
    if seen.pinned:
        users.append("activated by an operator")
    state = "active" if seen.active else "inactive"
    return f"{seen.path}  {held}  {state}  {'; '.join(users) or 'nobody uses it'}"


@volume.command("activate")
@click.argument("path", metavar="PATH", type=FILE)
@click.option("--for", "vm", metavar="VM", default="", help="A VM that runs here, and will get it attached.")
@json_option
@click.pass_obj
def activate(context: Context, path: str, vm: str, as_json: bool) -> None:
    """Have a volume active on this host, until a VM uses it; from then on it follows the VM. It is exclusive to this host,
    unless its backend has activation = "shared".

    For 'virsh attach-disk', which looks for the device before it asks for a lock; 'holdfast attach' does both.

    \b
    holdfast volume activate /dev/vg/data --for web1

    Exit 0: it is active here; 75: refused, with the holder's name.
    """
    from holdfast.cli import render

    with context.connect() as client:
        changed = client.activate_volume(path, vm=vm)
    if as_json:
        render.as_json({"ok": True, "path": path, "changed": changed})
    else:
        click.echo(printable(f"{path} is active here{'' if changed else ', and was so already'}"))


@volume.command("deactivate")
@click.argument("path", metavar="PATH", type=FILE)
@json_option
@click.pass_obj
def deactivate(context: Context, path: str, as_json: bool) -> None:
    """Give up a volume on this host. Refused while a VM uses it, while a process has it open, and in doubt.

    \b
    holdfast volume deactivate /dev/vg/data

    Exit 0: it is inactive here; 75: refused, with the reason.
    """
    from holdfast.cli import render

    with context.connect() as client:
        client.deactivate_volume(path)
    if as_json:
        render.as_json({"ok": True, "path": path})
    else:
        click.echo(printable(f"{path} is inactive here"))


@volume.command("who")
@click.argument("path", metavar="PATH", type=FILE)
@json_option
@click.pass_obj
def who(context: Context, path: str, as_json: bool) -> None:
    """Who holds a volume, on any host: LVM's lease on storage is read, and holdfastd asked. The same as 'holdfast who PATH'.

    \b
    holdfast volume who /dev/vg/web

    Exit 0: somebody holds it; 3: nobody does; 4: it can't be determined.
    """
    from holdfast.cli import render
    from holdfast.cli.who.inquiry import ask

    answer = ask(context.config(), context.control_socket(), path)
    if as_json:
        render.as_json(answer)
    else:
        render.answer(answer)
    sys.exit({"held": exits.OK, "free": exits.FREE}.get(answer.verdict, exits.UNKNOWN))


@click.command("attach")
@click.argument("vm", metavar="VM", type=FILE_OR_DOMAIN)
@click.argument("disk", metavar="DISK", type=FILE)
@click.argument("target", metavar="TARGET")
@click.option("--connect", "uri", metavar="URI", default=LIBVIRT_URI, show_default=True, help="libvirt's.")
@json_option
@click.pass_obj
def attach(context: Context, vm: str, disk: str, target: str, uri: str, as_json: bool) -> None:
    """Attach a volume to a VM that runs: it is activated for the VM, and then libvirt attaches it, which asks for the lock.

    If libvirt does not attach it, the volume is deactivated again, unless it was active before.

    \b
    holdfast attach web1 /dev/vg/data vdb

    Exit 0: it is attached; 75: another host or VM has it; 1: libvirt failed, with its words.
    """
    from holdfast.cli import render
    from holdfast.control.client import CallRefused

    with context.connect() as client:
        changed = client.activate_volume(disk, vm=vm)
        words = [
            *("virsh", "-q", "-c", uri, "attach-disk", vm, disk, target, "--live"),
            *("--sourcetype", "block", "--driver", "qemu", "--subdriver", "raw", "--cache", "none"),
        ]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=ATTACH_S, check=False, errors="replace"
            )
            why = "" if done.returncode == 0 else " ".join((done.stderr + done.stdout).split())
            why = why or ("" if done.returncode == 0 else f"exit status {done.returncode}")
        except subprocess.TimeoutExpired:
            why = f"virsh did not answer within {ATTACH_S:g} s, so the disk may be attached: virsh domblklist {vm}"
        except OSError as e:
            why = f"virsh: {e.strerror or e}"
        if why and changed:
            try:
                client.deactivate_volume(disk)
                why += "; the volume is inactive again"
            except CallRefused as e:
                why += f"; the volume stays active: {e}"
    if why:
        fail(why, exits.FAILED)
    if as_json:
        render.as_json({"ok": True, "vm": vm, "disk": disk, "target": target})
    else:
        click.echo(printable(f"{disk} is {target} of {vm}"))
