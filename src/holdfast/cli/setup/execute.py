"""Carries out a plan, one step after the other, each checked before and after by planning again from new facts.

A step that the plan still has after its action was not done, whatever its commands said. A stop at any moment is safe: the
next run plans from what is there.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from holdfast.cli.commands.lockspace import make
from holdfast.cli.commands.reload import NotReloaded, reload
from holdfast.cli.doctor.scene import Host, Scene
from holdfast.cli.doctor.services import virtlockds
from holdfast.cli.offline.storage import UsageError
from holdfast.cli.setup import lens
from holdfast.cli.setup.facts import Wishes
from holdfast.cli.setup.plan import GC_TIMER, HOLDFAST_UNITS, plan
from holdfast.cli.setup.record import Record
from holdfast.cli.setup.steps import (
    Action,
    AwaitJoined,
    EditLibvirt,
    MakeDirectory,
    MakeLockspace,
    Plan,
    Reload,
    Run,
    Step,
    Switch,
    SwitchLive,
    WriteFile,
)
from holdfast.cli.setup.survey import Survey, active_libvirt_units, users_of_virtlockd, vms_of
from holdfast.cli.switched import lacking
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.switch.order import NotSwitched, find, order
from holdfast.switch.place import KEEP, PROGRAM

COMMAND_S = 180.0
"""systemd gives a unit 90 s to start, and as much to stop."""
KEEPER_UNIT = "holdfast-switch"
JOIN_LOOK_S = 1.0
JOIN_SPARE_S = 120.0
"""Beyond the greatest time that a join takes by the protocol."""

Look = Callable[[], Survey]
Say = Callable[[str], None]


class StepFailed(Exception):
    """A step was not done; the text says why, and what is left as it was."""


class Executor:
    """`look` surveys the host again; `say` shows progress; `host` is for the last look before virtlockd is stopped."""

    def __init__(self, record: Record, look: Look, say: Say, host: Host) -> None:
        self._record = record
        self._look = look
        self._say = say
        self._host = host

    def carry_out(self, wishes: Wishes, agreed: Plan) -> Survey:
        """All steps; raises `StepFailed`. Only steps that were agreed to are done."""
        found = self._look()
        enabled, active = _states(self._host, (*found.facts.virtlockd_units, *HOLDFAST_UNITS, GC_TIMER))
        self._record.begin(wishes, found.facts.libvirt_active, enabled, active)
        ids = [each.id for each in agreed.steps]
        last = ""
        while True:
            now = plan(wishes, found.facts, found.proposal, found.space)
            if now.refusals:
                raise StepFailed("; ".join(now.refusals))
            if not now.steps:
                self._record.is_complete()
                return found
            step = now.steps[0]
            if step.id == last:
                raise StepFailed(f"it was done, and this host is not as it should be after it: {step.reason}")
            if step.id not in ids:
                raise StepFailed(
                    f"{step.title} has become necessary, and was not in the plan ({step.reason})"
                )
            self._say(f"{ids.index(step.id) + 1}/{len(ids)} {step.title}")
            self._record.step_begins(step)
            self._perform(step.action, found)
            found = self._look()
            if step.id not in [
                each.id for each in plan(wishes, found.facts, found.proposal, found.space).steps
            ]:
                self._record.step_is_done(step)
            last = step.id

    def _perform(self, action: Action, found: Survey) -> None:
        try:
            self._do(action, found)
        except (lens.NotEdited, NotReloaded, UsageError, DaemonUnreachable, CallRefused) as e:
            raise StepFailed(str(e)) from None
        except OSError as e:
            raise StepFailed(f"{e.filename or ''}: {e.strerror or e}") from None

    def _do(self, action: Action, found: Survey) -> None:
        match action:
            case EditLibvirt():
                with open(action.path, "rb") as f:
                    raw = f.read()
                self._record.replace(action.path, lens.edited(action.path, raw, action.lens, action.settings))
            case WriteFile():
                raw = action.text.encode()
                if action.source:
                    with open(action.source, "rb") as f:
                        raw = f.read()
                self._record.replace(action.path, raw, mode=action.mode, run=action.undo_run)
                if action.run:
                    run(action.run)
            case MakeDirectory():
                os.mkdir(action.path, action.mode)
            case MakeLockspace():
                make(
                    action.path,
                    name=action.name,
                    hosts_max=action.hosts_max,
                    io_timeout=action.io_timeout_s,
                    index=0 if action.with_index else None,
                )
            case Run():
                for command in action.commands:
                    run(command)
            case Switch():
                self._switch(action)
            case SwitchLive():
                self._switch_live(action)
            case Reload():
                reload(_socket(found))
            case AwaitJoined():
                self._await_joined(action.lockspace, found)
            case _:
                assert_never(action)

    def _switch(self, action: Switch) -> None:
        """With libvirt stopped no VM starts between the last look and the stop of virtlockd, which would kill it."""
        libvirt = active_libvirt_units(self._host)
        if libvirt:
            run(("systemctl", "stop", *libvirt))
        scene = self._look().scene
        names, files = users_of_virtlockd(scene, self._host) if scene else (["what can't be determined"], [])
        if users := [*names, *(f"the owner of {each}" for each in files)]:
            if libvirt:
                run(("systemctl", "start", *libvirt))
            raise StepFailed(
                f"virtlockd is not stopped: {', '.join(users)} may have locks in it, and would be killed; suspend or "
                "migrate them, and run setup again"
            )
        _change_units(action.stop)

    def _switch_live(self, action: SwitchLive) -> None:
        """virtlockd becomes a program of ours, which gives its locks to a keeper and ends; holdfastd fetches them there."""
        libvirt = active_libvirt_units(self._host)
        if libvirt:
            run(("systemctl", "stop", *libvirt))
        found = self._look()
        scene = found.scene
        try:
            if scene is None:
                raise NotSwitched("the configuration can't be used any more")
            process = next(iter(virtlockds(scene)), None)
            if process is None:
                raise NotSwitched(
                    "virtlockd has ended, and its locks with it, while its VMs run: holdfast doctor"
                )
            which = find(process.pid)
            result = order(
                which, vms_of(scene), command=(), backend=action.backend, say=self._say, keep=_keep
            )
        except (NotSwitched, StepFailed, OSError) as e:
            if libvirt:
                run(("systemctl", "start", *libvirt))
            raise StepFailed(str(e)) from None
        self._say(
            f"    {len(result.locks)} locks of virtlockd's are kept"
            if result.outcome == "kept"
            else f"    VIRTLOCKD WAS KILLED in the switch, and its {len(result.locks)} locks ended with it; holdfastd takes "
            "them again now"
        )
        _change_units(action.stop)
        for each in lacking(_socket(found), result):
            self._say(f"    IN DOUBT: {each}")

    def _await_joined(self, name: str, found: Survey) -> None:
        timing = found.proposal.timing
        bound = (timing.claim_held_s[1] if timing else 0) + JOIN_SPARE_S
        deadline = time.monotonic() + bound
        shown = ""
        with ControlClient(_socket(found)) as client:
            while True:
                space = next((each for each in client.lease_spaces() if each.name == name), None)
                if space is not None and space.state == "joined":
                    return
                if space is None:
                    raise StepFailed(f"holdfastd does not know the lockspace {name}; holdfast lockspace list")
                left = f", {space.seconds_left:.0f} s left" if space.seconds_left is not None else ""
                if space.reason != shown:
                    shown = space.reason
                    self._say(f"    {space.state}: {space.reason}{left}")
                if space.state == "left":
                    client.join_lease_space(name)
                if time.monotonic() > deadline:
                    raise StepFailed(f"not joined after {bound:.0f} s: {space.state}: {space.reason}")
                time.sleep(JOIN_LOOK_S)


def _change_units(virtlockd: Sequence[str]) -> None:
    """virtlockd's go, holdfastd's come."""
    run(("systemctl", "disable", "--now", *virtlockd))
    run(("systemctl", "daemon-reload"))
    run(("systemctl", "enable", "--now", *HOLDFAST_UNITS))


def _keep(command: list[str]) -> None:
    """A service of its own, which no stop of another one ends; raises `StepFailed`."""
    wanted = ("SendSIGKILL=no", "OOMScoreAdjust=-900", "LimitNOFILE=262144")
    options = [f"--property={each}" for each in wanted]
    run(("systemd-run", "--quiet", "--collect", f"--unit={KEEPER_UNIT}", *options, *command))


def _socket(found: Survey) -> str:
    assert isinstance(found.scene, Scene)
    return found.scene.config.control_socket


def _states(host: Host, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are enabled, and those that are active."""
    states = {each: host.unit(each) for each in names}
    return (
        [each for each, unit in states.items() if unit.get("UnitFileState") == "enabled"],
        [each for each, unit in states.items() if unit.get("ActiveState") == "active"],
    )


def run(command: Sequence[str]) -> None:
    """Raises `StepFailed` with what the command said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise StepFailed(f"{' '.join(command)}: {e}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise StepFailed(f"{' '.join(command)}: exit {done.returncode}: {said}")


def preview(step: Step) -> list[str]:
    """What a step will do, as lines: commands, or a difference of files. Raises `StepFailed`."""
    import difflib

    action = step.action
    match action:
        case EditLibvirt():
            try:
                with open(action.path, "rb") as f:
                    raw = f.read()
                new = lens.edited(action.path, raw, action.lens, action.settings)
            except lens.NotEdited as e:
                raise StepFailed(str(e)) from None
            old_lines, new_lines = (each.decode("utf-8", "replace").splitlines() for each in (raw, new))
            return list(
                difflib.unified_diff(old_lines, new_lines, action.path, action.path, n=1, lineterm="")
            )
        case WriteFile():
            if action.source:
                return [f"install -D -m {action.mode:o} {action.source} {action.path}"]
            old = ""
            if os.path.exists(action.path):
                with open(action.path, encoding="utf-8", errors="replace") as t:
                    old = t.read()
            lines = difflib.unified_diff(
                old.splitlines(), action.text.splitlines(), action.path, action.path, n=1, lineterm=""
            )
            return [*lines, *([" ".join(action.run)] if action.run else [])]
        case MakeDirectory():
            return [f"mkdir -m {action.mode:o} {action.path}"]
        case MakeLockspace():
            index = " --index 0" if action.with_index else ""
            return [
                f"holdfast lockspace init {action.path} --name {action.name} --hosts-max {action.hosts_max} "
                f"--io-timeout {action.io_timeout_s}{index}"
            ]
        case Run():
            return [" ".join(each) for each in action.commands]
        case SwitchLive():
            return [
                "systemctl stop (libvirt's units that run)",
                "(check that every connection to virtlockd is a VM's)",
                f"systemd-run --unit={KEEPER_UNIT} {PROGRAM} {KEEP}   # has the locks until holdfastd runs",
                f"mount --bind {PROGRAM} (virtlockd's program)   # for a moment",
                "kill -USR1 (virtlockd's pid)   # it becomes that program, with all locks and connections",
                f"systemctl disable --now {' '.join(action.stop)}",
                "systemctl daemon-reload",
                f"systemctl enable --now {' '.join(HOLDFAST_UNITS)}   # fetches the locks",
                "(check that it has every lock)",
            ]
        case Switch():
            return [
                "systemctl stop (libvirt's units that run)",
                "(check that no VM has a lock in virtlockd)",
                f"systemctl disable --now {' '.join(action.stop)}",
                "systemctl daemon-reload",
                f"systemctl enable --now {' '.join(HOLDFAST_UNITS)}",
            ]
        case Reload():
            return ["holdfast reload"]
        case AwaitJoined():
            return [f"holdfast lockspace list   # until {action.lockspace} is joined"]
        case _:
            assert_never(action)
