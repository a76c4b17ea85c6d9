"""`holdfast setup`: the plan shown, agreed to and carried out; and `--undo`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE
from holdfast.cli.context import fail, json_option

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.cli.setup.facts import Wishes
    from holdfast.cli.setup.record import Record
    from holdfast.cli.setup.survey import Survey


@click.command("setup")
@click.option(
    "--leases",
    metavar="PATH",
    default="",
    type=FILE,
    help="On the first host: leases on shared storage, in this directory or on this block device. The lockspace is made if "
    "there is none.",
)
@click.option(
    "--join",
    metavar="PATH",
    default="",
    type=FILE,
    help="On every other host: the same directory or device. Timeouts are those that the lockspace records.",
)
@click.option(
    "--profile",
    type=click.Choice(["sanlock", "balanced", "fast"]),
    help="Timeouts of the leases [default: sanlock; with --join those of the lockspace]. The plan shows what they mean in "
    "seconds.",
)
@click.option(
    "--watchdog",
    type=click.Choice(["device", "wdmd", "none"]),
    help="What resets a host that loses its leases [default: wdmd if it runs, else /dev/watchdog]. 'none': nothing does.",
)
@click.option(
    "--hosts-max",
    type=click.IntRange(1, 2000),
    default=64,
    show_default=True,
    metavar="N",
    help="How many hosts a new lockspace serves.",
)
@click.option("--hook", is_flag=True, help="Install libvirt's hook too: a refused start names the holder.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and change nothing.")
@click.option("--yes", is_flag=True, help="Carry the plan out without asking.")
@click.option("--undo", is_flag=True, help="Restore the files and units that setup has changed.")
@click.option("--root", default="/", hidden=True, help="Where the files are, for tests.")
@json_option
@click.pass_obj
def setup(
    context: Context,
    /,
    leases: str,
    join: str,
    profile: str | None,
    watchdog: str | None,
    hosts_max: int,
    hook: bool,
    dry_run: bool,
    yes: bool,
    undo: bool,
    root: str,
    as_json: bool,
) -> None:
    """From an installed package to a protected host: looks at it, shows a plan with reasons, and carries it out; and back.

    Each step is checked before and after. It may be stopped at any moment, and run again: it continues from what is there.
    No VM is touched: a virtlockd in which VMs have locks becomes holdfastd while they run, and is never stopped; where it
    can't, setup is refused, and says why. What it can't do is listed as left to do by hand. A configuration file that
    somebody else wrote is never changed.

    \b
    holdfast setup --dry-run
    holdfast setup
    holdfast setup --leases /srv/shared/leases --profile balanced
    holdfast setup --join /srv/shared/leases
    holdfast setup --undo

    Exit 0: this host is set up, nothing is left; 5: something is left to do, as the list says (--dry-run: steps too); 75:
    refused; 1: a step failed, what was done stays.
    """
    from holdfast.cli.setup.facts import Wishes
    from holdfast.cli.setup.record import Record, RecordUnusable, alone

    if leases and join:
        raise click.UsageError("--leases is for the first host, --join for the others")
    leases, join = (os.path.abspath(each) if each else "" for each in (leases, join))
    wishes = Wishes(leases, join, profile or "", watchdog or "", hosts_max, hook)
    if not wishes.place and (wishes.profile or wishes.watchdog):
        raise click.UsageError("--profile and --watchdog are about leases: add --leases PATH or --join PATH")
    try:
        with nullcontext() if dry_run else alone(root):
            record = Record(root)
            if undo:
                _undo(context, record, root, dry_run=dry_run, yes=yes, as_json=as_json)
                return
            if record.exists and not wishes.place:
                # A later run without options means the same as before, not the end of all leases.
                before = record.kept.wishes
                wishes = replace(before, hook=before.hook or hook)
            _setup(context, record, wishes, root, dry_run=dry_run, yes=yes, as_json=as_json)
    except RecordUnusable as e:
        fail(str(e), exits.REFUSED)


def _setup(
    context: Context, record: Record, wishes: Wishes, root: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    from holdfast.cli import render
    from holdfast.cli.doctor.scene import ThisHost
    from holdfast.cli.setup.execute import Executor, StepFailed
    from holdfast.cli.setup.plan import plan
    from holdfast.cli.setup.show import as_object, show
    from holdfast.cli.setup.survey import survey

    def look() -> Survey:
        return survey(
            wishes, record, config_file=context.config_file, socket=context.socket, root=root, host=ThisHost()
        )

    found = look()
    wishes = replace(wishes, timing=found.proposal.timing)
    planned = plan(wishes, found.facts, found.proposal, found.space)
    if not as_json:
        show(planned, found, record)
    if planned.refusals or dry_run:
        if as_json:
            render.as_json(as_object(planned, found))
        pending = bool(planned.steps) or any(each.severity == "problem" for each in planned.by_hand)
        sys.exit(exits.REFUSED if planned.refusals else exits.PROBLEMS if pending else exits.OK)
    if planned.steps and not yes:
        _agree("Carry out these steps?")
    done: list[str] = []

    def say(text: str) -> None:
        done.append(text)
        if not as_json:
            click.echo(text)

    try:
        if planned.steps:
            found = Executor(record, look, say, ThisHost()).carry_out(wishes, planned)
    except StepFailed as e:
        if as_json:
            render.as_json(as_object(planned, found, done=done, failed=str(e)))
            sys.exit(exits.FAILED)
        fail(
            f"{e}. What was done before stays: mend this and run holdfast setup again, or go back by holdfast setup --undo",
            exits.FAILED,
        )
    after = plan(wishes, found.facts, found.proposal, found.space)
    problems = [each for each in after.by_hand if each.severity == "problem"]
    if as_json:
        render.as_json(as_object(after, found, done=done))
    else:
        if planned.steps and after.by_hand:
            show(after, found, record)
        end = "this host is set up" if planned.steps else "nothing to do: this host is set up"
        left = f"; left to do by hand: {len(problems)}" if problems else ""
        click.echo(f"{end}{left}")
    sys.exit(exits.PROBLEMS if problems else exits.OK)


def _agree(question: str) -> None:
    if not sys.stdin.isatty():
        fail("nobody to ask here: add --yes to carry it out, or --dry-run to see the plan alone", exits.USAGE)
    if not click.confirm(question):
        sys.exit(exits.FAILED)


def _undo(context: Context, record: Record, root: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from holdfast.cli import doctor, render
    from holdfast.cli.doctor.scene import Scene, ThisHost
    from holdfast.cli.setup.execute import StepFailed
    from holdfast.cli.setup.undo import refusals, undo
    from holdfast.errors import ConfigError

    if not record.exists:
        fail("setup has changed nothing here, or it was undone", exits.FAILED)

    def look() -> Scene:
        try:
            return doctor.scene_of(context.config_file, context.socket, root)
        except ConfigError as e:
            fail(f"{e}; correct it first: it says where holdfastd is to be asked for locks", exits.BAD_CONFIG)

    why = refusals(record, look())
    files = [each.path for each in record.kept.files]
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if not as_json:
            click.echo(text)

    if not as_json:
        click.echo(
            f"Undo: restore {', '.join(files) or 'no file'}; holdfastd out, virtlockd as it was before"
        )
    if why:
        if as_json:
            render.as_json({"ok": False, "refused": why, "files": files})
            sys.exit(exits.REFUSED)
        fail("; ".join(why), exits.REFUSED)
    if not dry_run:
        if not yes:
            _agree("Undo?")
        try:
            undo(record, look, ThisHost(), say)
        except StepFailed as e:
            fail(
                f"{e}. What was undone stays so: mend this, and run holdfast setup --undo again", exits.FAILED
            )
    if as_json:
        render.as_json({"ok": True, "refused": [], "files": files, "done": said})
    elif not dry_run:
        click.echo("undone; lockspaces on shared storage stay, for other hosts may use them")
