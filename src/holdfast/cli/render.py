"""How answers look: tables and colours on a terminal, plain columns in a pipe, JSON on request."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from holdfast.control.api import EventInfo, HolderInfo, OwnerInfo, StatusInfo
from holdfast.model import printable, wall_text

if TYPE_CHECKING:
    from holdfast.cli.doctor.findings import Finding
    from holdfast.cli.who.report import Answer


def as_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def imported(toml: str, remarks: Sequence[str], *, in_json: bool) -> None:
    """A configuration on stdout, and what it lacks on stderr; or both as JSON."""
    if in_json:
        as_json({"toml": toml, "remarks": list(remarks)})
        return
    click.echo(toml, nl=False)
    for remark in remarks:
        click.echo(f"note: {printable(remark)}", err=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns: a rich table on a terminal, tab-separated lines with a heading elsewhere."""
    if not sys.stdout.isatty():
        for row in (headings, *rows):
            click.echo("\t".join(map(printable, row)))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    context = click.get_current_context(silent=True)
    plain = context is not None and context.color is False
    grid = Table(box=None, pad_edge=False, header_style="" if plain else "bold")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(printable(cell)) for cell in row))
    Console(no_color=plain, highlight=not plain).print(grid)


def protection(level: int | None, word: str) -> str:
    return "-" if level is None else f"{level} {word}"


def owner_text(name: str, pid: int) -> str:
    """`pid` 0: libvirt's hook asked for a VM that has no process yet."""
    return f"{name or '(unnamed)'}{f' (pid {pid})' if pid else ''}"


def _mode(h: HolderInfo) -> str:
    if h.source == "libvirt":
        return f"{h.mode}: {h.protection_note}"
    if not h.held:
        return f"LOST: {h.lost_reason}"
    return f"{h.mode}, {h.until}" if h.until else h.mode


def locks(claims: Sequence[HolderInfo]) -> None:
    rows = [
        (
            h.resource,
            _mode(h),
            f"UNKNOWN: {h.unknown}" if h.unknown else owner_text(h.owner, h.pid),
            wall_text(h.since) if h.since is not None else "",
            protection(h.protection, h.protection_word),
            h.backend,
            h.known_by,
        )
        for h in claims
    ]
    table(("DISK", "MODE", "OWNER", "SINCE", "PROTECTION", "BACKEND", "KNOWN BY"), rows)


def owners(infos: Sequence[OwnerInfo]) -> None:
    rows = [
        (
            o.name,
            o.uuid,
            str(o.pid),
            str(o.locks),
            protection(o.protection, o.protection_word),
            f"being stopped: {o.stopping}" if o.stopping else ("running" if o.alive else "ended"),
        )
        for o in infos
    ]
    table(("OWNER", "UUID", "PID", "LOCKS", "PROTECTION", "STATE"), rows)


def status_lines(status: StatusInfo) -> list[str]:
    """What the daemon says of itself."""
    lost = click.style(f", {status.locks_lost} LOST", fg="red", bold=True) if status.locks_lost else ""
    if status.locks_unknown:
        lost += click.style(f", {status.locks_unknown} of UNKNOWN owners", fg="red", bold=True)
    if status.locks_departing:
        lost += f", {status.locks_departing} until a migration ends"
    lines = [
        f"holdfastd {status.version} on {status.host}, pid {status.pid}, since {wall_text(status.started)}",
        f"locks        {status.locks}{lost}, of {status.owners} owners",
        f"connections  {status.connections} of {status.connections_max} at {status.virtlockd_socket}",
        f"journal      {status.journal if status.journal == 'ok' else click.style(status.journal, fg='red')}",
        f"restarts     {'descriptor store keeps locks' if status.descriptor_store else 'locks are retaken at start'}",
    ]
    if status.locks_unknown:
        why = f"{status.doubt}: " if status.doubt else ""
        text = (
            f"{why}{status.locks_unknown} locks could not be attributed and stay held; 'holdfast doctor' shows them. "
            "If their lockspace were lost now, only a reset of this host would stop their VMs"
        )
        lines.append(f"doubt        {click.style(text, fg='red')}")
    for b in status.backends:
        mark = " (default)" if b.name == status.default_backend else ""
        lines.append(f"backend      {b.name}{mark}: driver {b.driver}; {', '.join(b.capabilities)}")
    lines += [f"waiting for  {w}" for w in status.storage_waiting]
    lines += [f"lock files   of libvirt's lockspace {each}" for each in status.lockspaces]
    lines.append(f"config       {', '.join(status.config_files) or 'built-in defaults'}")
    return lines


def answer(report: Answer) -> None:
    """Holders, layer by layer, then the next safe step."""
    colour = {"held": "yellow", "free": "green"}.get(report.verdict, "red")
    click.echo(
        f"{printable(report.subject)}: {click.style(printable(report.headline), fg=colour, bold=True)}"
    )
    for layer in report.layers:
        for line in layer.lines:
            click.echo(f"  {layer.name:<12} {printable(line)}")
    for note in report.notes:
        click.echo(f"  {'note':<12} {printable(note)}")
    click.echo(f"next: {printable(report.next_step)}")


def event_text(e: EventInfo) -> str:
    parts = [wall_text(e.time), f"{e.kind:<16}", e.resource]
    if e.mode:
        parts.append(e.mode)
    if e.owner or e.resource:
        parts.append(owner_text(e.owner, e.pid))
    if e.detail:
        parts.append(f"- {e.detail}")
    return " ".join(p for p in parts if p)


def event(e: EventInfo) -> None:
    colour = {"refused": "yellow", "lock-lost": "red", "owner-stopped": "red"}.get(e.kind)
    click.echo(click.style(printable(event_text(e)), fg=colour))


def event_json(e: EventInfo) -> None:
    click.echo(msgspec.json.encode(e).decode())


def findings(found: Sequence[Finding]) -> None:
    colours = {"ok": "green", "note": "cyan", "problem": "red"}
    for f in found:
        severity = click.style(f"{f.severity:<8}", fg=colours[f.severity], bold=True)
        click.echo(f"{severity} {f.id:<5} {f.check}: {printable(f.facts)}")
        if f.fix:
            click.echo(f"{'':<14} fix: {printable(f.fix)}")
    problems = sum(f.severity == "problem" for f in found)
    click.echo(f"{problems} to fix" if problems else "nothing to fix")
    if any(f.id for f in found):
        click.echo("holdfast doctor --explain ID says what a finding means")
