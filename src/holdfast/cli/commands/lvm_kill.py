"""`holdfast lvm kill VG`: lvmlockd can't keep the locks of a volume group, so nothing here may write to it any more.

It serves as `lvmlockctl_kill_command` of lvm.conf: sanlock has lost the group's lockspace, and its watchdog resets this host
unless the volumes are let go in time. lvmlockctl appends the group's name, and drops the locks if the command exits with 0
(libvirt-hooks-lvm.md 3.6). So 0 is for one case: no volume of the group can be written here.

    holdfastd     each VM's `on_lockfailure`: it ends or is paused, as for any lost lock. What is paused gets no errors
    device-mapper the volumes' tables become the error target: whatever has one open gets errors. It needs no storage
                  and no daemon, so it is done also where holdfastd does not answer
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.context import WholeHelpGroup
from holdfast.model import printable

if TYPE_CHECKING:
    from holdfast.cli.context import Context

DMSETUP_S = 20.0
ERROR_TARGET = "error"
LEASES_LV = "lvmlock"
"""lvmlockd's own, which no VM uses: sanlock gives it up itself, and it is needed when the group is started again."""


@click.group("lvm", cls=WholeHelpGroup)
def lvm() -> None:
    """What LVM calls, where a backend has driver = "lvm"."""


@lvm.command("kill")
@click.argument("vg", metavar="VG")
@click.pass_obj
def kill(context: Context, vg: str) -> None:
    """Stop the VMs of a volume group whose locks are lost, and let nothing write to it. For lvm.conf:

    \b
    global/lvmlockctl_kill_command = "/usr/bin/holdfast lvm kill"

    Exit 0: nothing of this host can write to it, so lvmlockd may drop its locks; 1: a volume may still be written, so the
    watchdog must reset this host.
    """
    from holdfast.control.client import CallRefused, DaemonUnreachable

    if not vg or not all(each.isalnum() or each in "+_.-" for each in vg):
        raise click.UsageError(f"VG: '{vg}' is no name of a volume group")
    try:
        with context.connect() as client:
            done = client.volume_group_lost(vg)
        for line in done:
            click.echo(printable(line), err=True)
    except (DaemonUnreachable, CallRefused, OSError) as e:
        click.echo(printable(f"holdfast: {e}; the volumes of {vg} are cut off all the same"), err=True)
    left = cut_off(vg)
    if left:
        click.echo(printable(f"holdfast: may still be written: {', '.join(left)}"), err=True)
        sys.exit(exits.FAILED)
    click.echo(printable(f"no volume of {vg} can be written on this host"))


def cut_off(vg: str) -> list[str]:
    """Replace the tables of the group's volumes by the error target; the names of those that may still be written."""
    chosen = f'uuid=~"^LVM-" && vg_name="{vg}" && lv_layer="" && lv_name!="{LEASES_LV}"'
    _dmsetup("wipe_table", "-S", chosen)
    shown = _dmsetup("table", "-S", chosen)
    if shown is None:
        return [f"volumes of {vg} (dmsetup does not say)"]
    return still_written(shown)


def still_written(tables: str) -> list[str]:
    """Devices of a `dmsetup table` that have another target than `error`: `NAME: START LENGTH TARGET ...`, a line each."""
    left = []
    for line in tables.splitlines():
        name, _, table = line.partition(": ")
        words = table.split()
        if line.strip() and line.strip() != "No devices found" and words[2:3] != [ERROR_TARGET]:
            left.append(name)
    return left


def _dmsetup(*words: str) -> str | None:
    """Its output; None if it failed or did not end."""
    try:
        done = subprocess.run(
            ("dmsetup", *words),
            capture_output=True,
            text=True,
            timeout=DMSETUP_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        click.echo(printable(f"holdfast: dmsetup {words[0]}: {e}"), err=True)
        return None
    if done.returncode != 0:
        click.echo(printable(f"holdfast: dmsetup {words[0]}: {done.stderr.strip()}"), err=True)
        return None
    return done.stdout
