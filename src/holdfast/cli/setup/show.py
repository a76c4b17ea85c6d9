"""A plan as people and programs see it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import click

from holdfast.cli.setup.execute import StepFailed, preview
from holdfast.cli.setup.facts import Carried, Facts, Storage
from holdfast.cli.setup.plan import is_foreign
from holdfast.cli.setup.record import Record
from holdfast.cli.setup.steps import Plan, Step
from holdfast.cli.setup.survey import Survey
from holdfast.model import Protection, printable

DISKS_NAMED_MAX = 3
COLOURS = {"problem": "red", "note": "cyan"}


def show(plan: Plan, found: Survey, record: Record) -> None:
    """What was found, the proposal, the steps with what they change, and what is left to a person."""
    for text in so_far(record):
        click.echo(text)
    if found.facts.storages:
        click.echo("Storage of this host's VMs:")
    for each in found.facts.storages:
        click.echo(f"  {printable(words_of(each))}")
    if found.facts.carried:
        click.echo("Settings of libvirt's lock managers:")
    for setting in found.facts.carried:
        click.echo(f"  {printable(words_of_setting(setting))}")
    if plan.reasons:
        click.echo("Proposal:")
    for reason in plan.reasons:
        click.echo(f"  {printable(reason)}")
    if plan.steps:
        click.echo(f"Steps ({len(plan.steps)}):")
    for number, step in enumerate(plan.steps, 1):
        click.echo(f"  {number}. {click.style(printable(step.title), bold=True)}")
        click.echo(f"     why:  {printable(step.reason)}")
        for line in _preview(step):
            click.echo(f"     | {printable(line)}")
        click.echo(f"     undo: {step.undo}")
    for line in difference(found):
        click.echo(f"  | {printable(line)}")
    if plan.by_hand:
        click.echo("By hand:")
    for hand in plan.by_hand:
        word = click.style(f"{hand.severity:<8}", fg=COLOURS.get(hand.severity), bold=True)
        click.echo(f"  {word}{hand.id:<6}{printable(hand.facts)}")
        if hand.fix:
            click.echo(f"{'':<16}{printable(hand.fix)}")
    for refusal in plan.refusals:
        click.echo(f"{click.style('refused', fg='red', bold=True)}: {printable(refusal)}", err=True)


def difference(found: Survey) -> list[str]:
    """From a configuration that is somebody else's to the proposal; empty if it is not, or if there is no proposal."""
    facts = found.facts
    if not is_foreign(facts) or not found.proposal.text:
        return []
    old, new = (facts.config_text or "").splitlines(), found.proposal.text.splitlines()
    return list(difflib.unified_diff(old, new, facts.config_file, "what setup would write", n=1, lineterm=""))


def _preview(step: Step) -> Sequence[str]:
    try:
        return preview(step)
    except StepFailed as e:
        return [f"can't be done: {e}"]
    except OSError as e:
        return [f"can't be done: {e.filename}: {e.strerror}"]


def words_of(storage: Storage) -> str:
    more = len(storage.disks) - DISKS_NAMED_MAX
    disks = ", ".join(storage.disks[:DISKS_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    level = Protection(storage.level)
    if storage.shared and level < Protection.CROSS_HOST:
        verdict = "NOT ENOUGH, for other hosts may reach it: leases (--leases or --join)"
    elif storage.shared:
        verdict = "it excludes other hosts"
    else:
        verdict = "enough while no other host sees it"
    return (
        f"{storage.where} ({storage.kind}): backend '{storage.backend}', protection {storage.level} ({level.word}); "
        f"{verdict}: {disks}"
    )


def words_of_setting(each: Carried) -> str:
    word = "taken over" if each.used else "NOT taken over"
    text = f"{each.file}: {each.setting}: " if each.setting else f"{each.file}: "
    return f"{text}{word}: {each.reason}" + (f"; {each.fix}" if each.fix else "")


def so_far(record: Record) -> list[str]:
    """What earlier runs have done, where one was stopped half-way."""
    kept = record.kept
    if kept.complete or not record.exists:
        return []
    lines = ["An earlier setup was not finished; done so far:"]
    lines += [f"  {each.title}" for each in kept.steps] or ["  nothing"]
    if kept.under_way:
        lines.append(f"  begun: {kept.under_way}")
    return [*lines, "It is continued from what is there; holdfast setup --undo goes back."]


def as_object(plan: Plan, found: Survey, *, done: Sequence[str] = (), failed: str = "") -> dict[str, object]:
    """For --json."""
    facts: Facts = found.facts
    return {
        "ok": not plan.refusals and not failed,
        "refused": list(plan.refusals),
        "failed": failed,
        "done": list(done),
        "steps": [
            {
                "id": each.id,
                "title": each.title,
                "reason": each.reason,
                "changes": list(_preview(each)),
                "undo": each.undo,
            }
            for each in plan.steps
        ],
        "by_hand": [
            {"id": each.id, "severity": each.severity, "facts": each.facts, "fix": each.fix}
            for each in plan.by_hand
        ],
        "storage": [
            {
                "where": each.where,
                "kind": each.kind,
                "backend": each.backend,
                "protection": each.level,
                "shared": each.shared,
                "disks": list(each.disks),
            }
            for each in facts.storages
        ],
        "lock_directories": list(facts.lock_directories),
        "imported": [
            {
                "file": each.file,
                "setting": each.setting,
                "used": each.used,
                "reason": each.reason,
                "fix": each.fix,
            }
            for each in facts.carried
        ],
        "reasons": list(plan.reasons),
        "configuration": found.proposal.text,
        "configuration_difference": difference(found),
    }
