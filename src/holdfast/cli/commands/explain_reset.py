"""`holdfast explain-reset`: how a host's last boot ended, by its own notes, or by what it has left on shared storage."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.completion import host_names
from holdfast.cli.context import fail, json_option
from holdfast.model import printable, wall_text

if TYPE_CHECKING:
    from holdfast.cli.context import Context
    from holdfast.flight.last_end import LastEnd
    from holdfast.flight.notes import Note
    from holdfast.ondisk.host_record import HostRecord

NOTHING = "no boot before this one has left notes: holdfastd did not run in it, or its state_dir was lost"


@click.command("explain-reset")
@click.argument("host", metavar="[HOST]", required=False, shell_complete=host_names)
@json_option
@click.pass_obj
def explain_reset(context: Context, host: str | None, as_json: bool) -> None:
    """Why this host went down last, or another one: what holdfastd had noted and decided before.

    Without HOST: by the flight recorder of this host (state_dir), which needs no daemon and is written before a watchdog
    can fire. With HOST (its whole name, or its name in a lockspace): by what it says of itself beside the lockspaces of this
    host's configuration, once it is up again; and, while it is down, by what it said of lockspaces that it had lost.

    \b
    holdfast explain-reset
    holdfast explain-reset node2

    Exit 0: here it is; 4: nothing is known of that; 78: the configuration can't be used.
    """
    if host is None:
        _of_this_host(context, as_json)
    else:
        _of_another(context, host, as_json)


def _of_this_host(context: Context, as_json: bool) -> None:
    from holdfast.cli import render
    from holdfast.flight.last_end import last_end, paragraph
    from holdfast.flight.notes import read
    from holdfast.system.files.regular_file import Unreadable
    from holdfast.system.host.process import boot_id
    from holdfast.system.watchdog.boot_status import resetter

    state_dir = context.config().state_dir
    notes = read(state_dir)
    if isinstance(notes, Unreadable):
        if not notes.missing:
            fail(f"the notes in {state_dir} can't be read: {notes.reason}", exits.FAILED)
        notes = []
    found = last_end(notes, boot_id(), resetter())
    if found is None:
        if as_json:
            render.as_json({"ok": True, "cause": None, "text": NOTHING, "notes": []})
        else:
            click.echo(NOTHING)
        sys.exit(exits.UNKNOWN)
    if as_json:
        render.as_json(_as_object(found, paragraph(found)))
        return
    click.echo(printable(f"This host's last boot: {paragraph(found)}"))
    click.echo()
    for note in found.tail:
        click.echo(printable(_line(note)))


def _as_object(found: LastEnd, text: str) -> dict[str, object]:
    return {
        "ok": True,
        "cause": found.cause.value,
        "text": text,
        "boot": found.boot,
        "last": found.last,
        "unfed_since": found.unfed or None,
        "notes": list(found.tail),
    }


def _line(note: Note) -> str:
    about = " ".join(each for each in (note.vm, note.disk) if each)
    return (
        f"{wall_text(note.at)}  {note.level or note.kind}  {about + ': ' if about else ''}{note.text}".rstrip(
            ": "
        )
    )


def _of_another(context: Context, host: str, as_json: bool) -> None:
    from holdfast.cli import render

    known = list(_records(context.backends()))
    said = [
        (space, record)
        for space, record in known
        if host in (record.node, record.host_name, record.node.partition(".")[0])
    ]
    if not said:
        names = ", ".join(sorted({record.node for _, record in known})) or "no host"
        fail(
            f"{host} says nothing of itself in the lockspaces of this host's configuration, where these do: {names}. It "
            "has sanlock or an earlier holdfast, or its lockspace is on a block device",
            exits.UNKNOWN,
        )
    if as_json:
        render.as_json({"ok": True, "host": host, "records": [record for _, record in said]})
    else:
        for space, record in said:
            of = f"{record.node} in lockspace {space} (host_id {record.host_id})"
            if record.trouble:
                click.echo(printable(f"{of}, of the boot that it was in: {record.trouble}"))
            if record.last_end:
                click.echo(printable(f"{of}, of its boot before: {record.last_end}"))
            if not (record.trouble or record.last_end):
                click.echo(printable(f"{of}: it has said nothing of a reset"))
    if not any(record.trouble or record.last_end for _, record in said):
        sys.exit(exits.UNKNOWN)


def _records(tables: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, HostRecord]]:
    """The records of all hosts, each lockspace once, as far as storage answers."""
    from holdfast.backends.paxos.config import lockspace_spec
    from holdfast.cli.offline.hosts import records_beside

    specs = {}
    for table in tables.values():
        if table.get("driver") == "paxos":
            try:
                spec = lockspace_spec(table)
            except ValueError:
                continue
            specs[spec.name] = spec
    for spec in specs.values():
        for _, record in sorted(records_beside(spec.path).items()):
            if record.lockspace == spec.name:
                yield spec.name, record
