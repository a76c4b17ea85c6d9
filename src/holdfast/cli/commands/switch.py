"""`holdfast switch`: a running virtlockd becomes holdfastd, with its locks and connections, on a host without systemd.

Under systemd `holdfast setup` does it, for units change as well.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.context import fail, json_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.cli.doctor.scene import Scene
    from holdfast.switch.order import Virtlockd

CHECK_S = 60.0


@click.command("switch")
@click.option("--dry-run", is_flag=True, help="Say whether it could be done now, and change nothing.")
@json_option
@click.pass_obj
def switch(context: Context, /, dry_run: bool, as_json: bool) -> None:
    """From a running virtlockd to holdfastd while VMs run: none is suspended, none is stopped. On hosts without systemd;
    under systemd it is a step of 'holdfast setup'.

    virtlockd re-executes itself, and becomes holdfastd with the same pid, locks and connections. Nobody can get a disk
    meanwhile. Stop libvirt's daemon before, so that no VM starts in between; VMs run on without it.

    \b
    holdfast switch --dry-run
    holdfast switch

    Exit 0: holdfastd has every lock; 5: it has them, and some are in doubt, as the list says; 75: refused, virtlockd runs on
    with all locks; 1: virtlockd has ended; 69: holdfastd does not answer.
    """
    from holdfast.cli import doctor, render
    from holdfast.cli.doctor.services import virtlockds
    from holdfast.cli.setup.survey import DIRECT_NEEDED, direct_backend, vms_of
    from holdfast.cli.switched import lacking
    from holdfast.control.client import DaemonUnreachable
    from holdfast.errors import ConfigError
    from holdfast.switch.order import NotSwitched, Watched, find, order, wait_for_registered

    try:
        scene = doctor.scene_of(context.config_file, context.socket)
    except ConfigError as e:
        fail(str(e), exits.BAD_CONFIG)
    if not scene.host.root():
        fail("this user is not root: sudo holdfast switch", exits.NOT_PERMITTED)
    if scene.host.unit("holdfastd.service"):
        fail("systemd runs here: holdfast setup switches, units included", exits.REFUSED)
    running = virtlockds(scene)
    if len(running) != 1:
        fail(f"{len(running)} virtlockds run here, not one", exits.REFUSED)
    vms = vms_of(scene)
    pid = running[0].pid
    try:
        which = find(pid)
        backend = direct_backend(scene)
        if not backend:
            raise NotSwitched(
                "no backend of holdfast.toml locks the files that virtlockd has locked: " + DIRECT_NEEDED
            )
        command = _command(context, scene)
        if dry_run:
            wait_for_registered(which.pid, vms)
            _say(which, as_json)
            return
        with Watched(pid) as process:
            result = order(which, vms, command=command, backend=backend)
            try:
                doubtful = lacking(context.control_socket(), result, process.has_ended)
            except DaemonUnreachable:
                if not process.has_ended():
                    raise
                fail(
                    f"virtlockd (pid {pid}) was killed in the switch, and its {len(result.locks)} locks ended with it, "
                    f"while VMs run: start holdfastd now ({shlex.join(command)}), which takes them again",
                    exits.FAILED,
                )
    except NotSwitched as e:
        fail(str(e), exits.REFUSED if os.path.exists(f"/proc/{pid}") else exits.FAILED)
    except DaemonUnreachable as e:
        fail(f"virtlockd has become holdfastd, which does not answer: {e}", exits.UNREACHABLE)
    if as_json:
        render.as_json(
            {"ok": not doubtful, "pid": result.pid, "locks": len(result.locks), "doubtful": doubtful}
        )
    else:
        click.echo(f"holdfastd (pid {result.pid}) has {len(result.locks)} locks of virtlockd's")
        for each in doubtful:
            click.echo(f"in doubt: {each}")
    sys.exit(exits.PROBLEMS if doubtful else exits.OK)


def _command(context: Context, scene: Scene) -> list[str]:
    """holdfastd's. Raises `NotSwitched` if it would not start."""
    from holdfast.switch.order import NotSwitched

    beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "holdfastd")
    program = beside if os.access(beside, os.X_OK) else shutil.which("holdfastd")
    if not program:
        raise NotSwitched("holdfastd is not installed beside the holdfast command")
    command = [program]
    if context.config_file:
        command += ["--config", os.path.abspath(context.config_file)]
    if scene.status is not None:
        raise NotSwitched("holdfastd runs already")
    done = subprocess.run(
        [*command, "--check-config"], capture_output=True, text=True, timeout=CHECK_S, check=False
    )
    if done.returncode:
        raise NotSwitched(f"holdfastd would not start: {done.stderr.strip()}")
    return command


def _say(which: Virtlockd, as_json: bool) -> None:
    from holdfast.cli import render

    if as_json:
        render.as_json({"ok": True, "pid": which.pid, "program": which.target})
    else:
        click.echo(f"virtlockd (pid {which.pid}, {which.target}) can be switched now")
