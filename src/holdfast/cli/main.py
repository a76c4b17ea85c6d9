"""The `holdfast` command: what an admin asks at 3 a.m.

Commands are small; what takes thought is in `who`, `run`, `doctor`.  Heavy modules are imported where they are used,
because a command that answers in a tenth of a second gets used.
"""

from __future__ import annotations

import os
import sys

import click

from holdfast import __version__
from holdfast.cli import exits
from holdfast.cli.commands import (
    config_show,
    explain_reset,
    host,
    import_lvmlock,
    import_sanlock,
    lease,
    lockspace,
    log_level,
    lvm_kill,
    maintenance,
    setup,
    sim,
    support_dump,
    switch,
    version,
    vm,
    volume,
)
from holdfast.cli.completion import FILE, FILE_OR_DOMAIN, event_kinds, host_names
from holdfast.cli.context import Context, HelpfulGroup, fail, json_option
from holdfast.model import printable, wall_text


@click.group(
    cls=HelpfulGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_HOLDFAST_COMPLETE=bash_source holdfast)"  (or zsh_source, fish_source)',
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=FILE,
    envvar="HOLDFAST_CONFIG",
    help="holdfastd's configuration [default: /etc/holdfast/holdfast.toml].",
)
@click.option(
    "--socket",
    metavar="PATH",
    type=FILE,
    envvar="HOLDFAST_SOCKET",
    help="holdfastd's control socket, if not as configured.",
)
@click.version_option(__version__, prog_name="holdfast")
@click.pass_context
def cli(ctx: click.Context, config_file: str | None, socket: str | None) -> None:
    """Who holds which virtual disk, and why; run a command that holds one; find what is not protected.

    \b
    holdfast who /var/lib/libvirt/images/web.img
    holdfast list
    holdfast run --disk /srv/images/web.img -- qemu-img check /srv/images/web.img
    holdfast doctor
    """
    ctx.obj = Context(config_file, socket)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False  # https://no-color.org


@cli.command()
@json_option
@click.pass_obj
def status(context: Context, as_json: bool) -> None:
    """Show the daemon's state: locks, connections, lockspaces, anything degraded.

    Exit 0: fine; 6: degraded: a lock is lost or unknown, a lockspace can't be used, the journal can't be written, the
    configuration was edited and not loaded, or another problem is shown; 69: no daemon; 77: not permitted.
    """
    from holdfast import config
    from holdfast.cli import render
    from holdfast.cli.commands.status import Answer
    from holdfast.cli.in_force import edited
    from holdfast.cli.unlocked import unlocked_disks
    from holdfast.errors import ConfigError

    with context.connect() as client:
        answer = Answer(client.status(), client.lease_spaces(), unlocked_disks(client.locks))
    if context.socket is None:
        try:
            on_disk = config.load(context.config_file, environ=os.environ, uid=os.geteuid())
        except ConfigError as e:
            answer.edited = str(e)
        else:
            answer.edited = edited(on_disk, context.config_file)
    if as_json:
        render.as_json(answer.as_object())
    else:
        answer.show()
    if answer.degraded:
        sys.exit(exits.DEGRADED)


@cli.command("reload")
@json_option
@click.pass_obj
def reload_command(context: Context, as_json: bool) -> None:
    """Have holdfastd become the program on disk, with the configuration on disk, every lock and every connection.

    Nothing changes if the new program can't start, or if held locks need something that the configuration on disk does
    not have any more: each reason names the key, both values and the locks.

    Exit 0: the new program serves; 75: refused, with the reasons; 69: no daemon.
    """
    from holdfast.cli import render
    from holdfast.cli.commands.reload import NotReloaded, reload

    reasons: tuple[str, ...] = ()
    version = ""
    try:
        version = reload(context.control_socket())
    except NotReloaded as e:
        reasons = e.reasons
    if as_json:
        render.as_json({"ok": not reasons, "version": version, "reasons": list(reasons)})
    else:
        for reason in reasons:
            click.echo(f"holdfast: reload refused: {reason}", err=True)
        if not reasons:
            click.echo(f"holdfastd {version} serves")
    if reasons:
        sys.exit(exits.REFUSED)


@cli.command("list")
@click.option("--owners", is_flag=True, help="One line for each VM instead of each disk.")
@json_option
@click.pass_obj
def list_command(context: Context, owners: bool, as_json: bool) -> None:
    """Every lock held here, with its owner and protection level; and disks of running VMs that libvirt never locks.

    \b
    holdfast list
    holdfast list --owners --json
    """
    from holdfast.cli import render
    from holdfast.cli.unlocked import unlocked_disks

    if owners:
        vm.show(context, as_json)
        return
    with context.connect() as client:
        locks = client.locks()
    listed = [*locks, *unlocked_disks(lambda: locks)]
    if as_json:
        render.as_json(listed)
    else:
        render.locks(listed)


@cli.command()
@click.argument("what", metavar="PATH-OR-DOMAIN", type=FILE_OR_DOMAIN)
@json_option
@click.pass_obj
def who(context: Context, what: str, as_json: bool) -> None:
    """Who holds a disk (or: which disks a VM holds), over all layers, and what to do next.

    Asks holdfastd (or reads its journal), lock files and their owner records, the kernel's lock table, QEMU's own image
    locks, leases on shared storage and libvirt's files; works when the daemon is down. A source that can't be read
    leaves nothing free.

    \b
    holdfast who /dev/vg/web
    holdfast who web1
    holdfast who rbd:pool/image
    holdfast who LS1:web:/rhev/leases:1048576

    The last one is a lease of sanlock's clients, named as 'sanlock client status' does.

    Exit 0: somebody holds or uses it; 3: nobody does; 4: it can't be determined, or it is no disk.
    """
    from holdfast.cli import render
    from holdfast.cli.who.inquiry import ask

    if not what:
        raise click.UsageError("PATH-OR-DOMAIN is empty")
    answer = ask(context.config(), context.control_socket(), what)
    if as_json:
        render.as_json(answer)
    else:
        render.answer(answer)
    sys.exit({"held": exits.OK, "free": exits.FREE}.get(answer.verdict, exits.UNKNOWN))


@cli.command()
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with each event as it happens, over restarts of the daemon."
)
@click.option(
    "--kind",
    "kinds",
    metavar="KIND,...",
    default="",
    shell_complete=event_kinds,
    help="These kinds alone, such as refused,lock-lost.",
)
@click.option(
    "--since",
    metavar="TIME",
    default="",
    help="From then on: 10min, 2h or 1d (ago), or '2026-11-28 14:05' by this host's clock.",
)
@json_option
@click.pass_obj
def events(context: Context, follow: bool, kinds: str, since: str, as_json: bool) -> None:
    """What happened: acquired, refused, released, owner died, lock lost, daemon restarted.

    \b
    holdfast events --since 1h --kind refused,lock-lost
    holdfast events -f --json | jq .kind
    """
    import time

    from holdfast.cli import render
    from holdfast.cli.commands.events import Wanted, follow_events, moment
    from holdfast.manager.events import KINDS

    chosen = frozenset(kind.strip() for kind in kinds.split(",") if kind.strip())
    if unknown := sorted(chosen.difference(KINDS)):
        raise click.UsageError(f"--kind: there is no {', '.join(unknown)}; kinds are {', '.join(KINDS)}")
    try:
        wanted = Wanted(chosen, moment(since, time.time()) if since else 0.0)
    except ValueError as e:
        raise click.UsageError(f"--since: {e}") from None
    show = render.event_json if as_json else render.event
    if follow:
        follow_events(context.control_socket(), show, wanted)
        return
    with context.connect() as client:
        for event in client.events(after=0, follow=False):
            if event in wanted:
                show(event)


@cli.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds between two pictures.",
)
@click.option("--once", is_flag=True, help="Print one picture of any length, and end.")
@click.pass_obj
def top(context: Context, interval: float, once: bool) -> None:
    """Live: hosts of every lockspace and the seconds until one counts as dead, locks, protection, recent events.

    What is lost, unknown or least protected comes first. Ctrl-C ends it. Where the output is no terminal one picture is
    printed.

    \b
    holdfast top
    holdfast top --once > now.txt
    """
    from holdfast.cli.commands.top import watch

    try:
        watch(context.connect, interval, once=once)
    except KeyboardInterrupt:
        sys.exit(exits.SIGNAL_BASE + 2)


@cli.command()
@click.argument("what", metavar="VM-OR-DISK", type=FILE_OR_DOMAIN)
@json_option
@click.pass_obj
def why(context: Context, what: str, as_json: bool) -> None:
    """Why a VM was refused, or lost its lock: the last time, what has become of it, and what to do next.

    Reads the events that holdfastd keeps since its start (the newest 1000), and what 'holdfast who' says now.

    \b
    holdfast why web1
    holdfast why /srv/images/web.img

    Exit 0: here it is; 3: nothing was refused, and no lock was lost; 69: no daemon.
    """
    import time

    from holdfast.cli import render
    from holdfast.cli.commands.why import last_trouble, paragraph
    from holdfast.cli.who.inquiry import ask

    if not what:
        raise click.UsageError("VM-OR-DISK is empty")
    with context.connect() as client:
        trouble = last_trouble(client.events(after=0, follow=False), what)
        began = client.status().started
    if trouble is None:
        if as_json:
            render.as_json({"ok": True, "subject": what, "event": None, "mended": None, "now": None})
        else:
            since = wall_text(began)
            click.echo(
                printable(
                    f"{what}: holdfastd has refused nothing of it, and lost no lock, since its start ({since})"
                )
            )
        sys.exit(exits.FREE)
    disk = trouble.event.resource
    now = ask(context.config(), context.control_socket(), disk) if disk else None
    if as_json:
        render.as_json(
            {"ok": True, "subject": what, "event": trouble.event, "mended": trouble.mended, "now": now}
        )
    else:
        click.echo(paragraph(trouble, now, time.time()))


@cli.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="PATH[:shared|:ro]",
    type=FILE,
    help="A disk to hold: exclusively, shared, or (ro) only named: readers need no lock.",
)
@click.option("--name", help="How the owner is called in lists and refusals [default: the command's name].")
@click.option("--json", "as_json", is_flag=True, help="A refusal is an object, on stderr.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    context: Context, disks: tuple[str, ...], name: str | None, as_json: bool, command: tuple[str, ...]
) -> None:
    """Hold disks as long as a command runs, or anything that it has started.

    The locks belong to a keeper process that lives as long as the command and all of its descendants: they stay when this
    program is killed, and when the command goes into the background (qemu -daemonize). Then this program ends with the
    command's exit code and names the processes that still hold. If the keeper is killed, each lock stays until no process
    of this host has the disk open, and nothing that the command has started runs.

    \b
    holdfast run --disk /srv/images/web.img -- qemu-system-x86_64 -drive file=/srv/images/web.img,format=raw
    holdfast run --disk /srv/base.img:shared --disk /srv/iso/boot.iso:ro -- ./backup.sh

    Exit: the command's own; 128+N if signal N ended it; 75 refused (held by somebody else); 69 no daemon;
    126/127 the command can't be run or found.
    """
    from holdfast.cli.commands.run import BadDisk, hold_and_run, parse_disk

    try:
        wishes = [parse_disk(d) for d in disks]
    except BadDisk as e:
        raise click.UsageError(str(e)) from None
    sys.exit(
        hold_and_run(
            context.control_socket(),
            [w for w in wishes if w is not None],
            list(command),
            name or os.path.basename(command[0]),
            as_json=as_json,
        )
    )


@cli.command("break")
@click.argument("path", metavar="DISK", type=FILE)
@click.option(
    "--attest-off",
    default="",
    metavar="HOST",
    shell_complete=host_names,
    help="A host that you know to be off: its name or host id.",
)
@click.option("--operator", default="", metavar="NAME", help="Who vouches for that; it is recorded.")
@json_option
@click.pass_obj
def break_command(context: Context, path: str, attest_off: str, operator: str, as_json: bool) -> None:
    """Free the lease of a disk whose holder is gone, and say what proves that.

    Without an attestation only what any start would take over is freed: a holder whose host has left, has come back, or
    is DEAD. With one the dead bound need not pass, if the named host has not renewed for 3 io_timeouts: a host that
    renews is not off, whatever anybody says. If it is on after all, two VMs write one disk.

    \b
    holdfast break /srv/images/web.img
    holdfast break /srv/images/web.img --attest-off alpha --operator "J. Doe"

    Exit 0: free now; 75: refused.
    """
    from holdfast.cli import render

    with context.connect() as client:
        proof = client.break_lease(os.path.abspath(path), attest_off=attest_off, operator=operator)
    if as_json:
        render.as_json({"ok": True, "disk": path, "proof": proof})
    else:
        click.echo(f"the lease of {path} is free: {proof}")


@cli.command("settle")
@click.argument("lock", metavar="LOCK", type=FILE)
@click.option("--operator", required=True, metavar="NAME", help="Who vouches for that; it is recorded.")
@json_option
@click.pass_obj
def settle_command(context: Context, lock: str, operator: str, as_json: bool) -> None:
    """Let go of a lock that is held for an unknown owner, on your word that its owner is over.

    After a restart with a lost or damaged journal, locks that can't be attributed are held for unknown owners. The
    daemon settles them by itself when no process of this host has the disk open. This is for the rest, and for orphans:
    leases that a client of sanlock's protocol has left behind, which outlive every process.

    LOCK is the disk, or the number that 'holdfast list --json' shows. Refused while a process of this host has the disk
    open, and for a lock with a known owner: no VM can lose its lock by it.

    \b
    holdfast settle /srv/images/web.img --operator "J. Doe"

    Exit 0: let go; 75: refused.
    """
    from holdfast.cli import render

    with context.connect() as client:
        done = client.settle_lock(lock, operator=operator)
    if as_json:
        render.as_json({"ok": True, "lock": lock, "done": done})
    else:
        click.echo(done)


@cli.command()
@click.option(
    "--textfile",
    metavar="PATH",
    type=FILE,
    help="Write them to this file, for node_exporter's textfile collector, in place of stdout.",
)
@click.pass_obj
def metrics(context: Context, textfile: str | None) -> None:
    """Metrics of this host in Prometheus' text format: protection of each disk, lockspaces, what is degraded.

    \b
    holdfast metrics --textfile /var/lib/prometheus/node-exporter/holdfast.prom

    Exit 0: written; 69: no daemon, which the metrics say too.
    """
    from holdfast.cli.commands import metrics as of
    from holdfast.cli.unlocked import unlocked_disks
    from holdfast.control.client import DaemonUnreachable

    unreachable = ""
    try:
        with context.connect() as client:
            found = of.ask(client, lambda locks: unlocked_disks(lambda: locks))
    except DaemonUnreachable as e:
        unreachable, found = str(e), list(of.UNREACHABLE)
    written = of.text(found)
    if textfile is None:
        click.echo(written, nl=False)
    else:
        try:
            of.write(textfile, written)
        except OSError as e:
            fail(f"{textfile}: {e.strerror}", exits.FAILED)
    if unreachable:
        fail(unreachable, exits.UNREACHABLE)


@cli.command("check-config")
@json_option
@click.pass_obj
def check_config(context: Context, as_json: bool) -> None:
    """Check holdfastd's configuration: every problem with its file, key and fix; then whether this host has what it names.

    Exit 0: fine; 78: the files can't be used; 5: they can, but a device, socket, directory or lockspace is missing here.
    """
    from holdfast.cli import render
    from holdfast.cli.commands.check_config import missing, remarkable
    from holdfast.daemon.check_config import check_config as check

    config, problems = check(context.config_file)
    usable = config.backend if config is not None and not problems else {}
    lacking, notes = missing(usable), remarkable(usable)
    if as_json:
        render.as_json(
            {
                "ok": not problems and not lacking,
                "files": list(config.sources) if config else [],
                "problems": [{k: str(v) for k, v in p.facts.items()} for p in problems],
                "missing": lacking,
                "notes": notes,
            }
        )
    else:
        for problem in problems:
            click.echo(str(problem), err=True)
        for text in lacking:
            click.echo(f"on this host: {text}", err=True)
        for text in notes:
            click.echo(f"note: {text}", err=True)
        if not problems and config is not None:
            fine = "configuration can be used" if lacking else "configuration is fine"
            click.echo(f"{fine}: {', '.join(config.sources) or 'built-in defaults'}")
    sys.exit(exits.BAD_CONFIG if problems else exits.PROBLEMS if lacking else exits.OK)


@cli.command()
@click.option("--only", metavar="ID,...", help="Report these findings alone, such as HF022.")
@click.option(
    "--explain", metavar="ID", help="Say what a finding means ('all': every one), and check nothing."
)
@click.option("--root", default="/", hidden=True, help="Look at the configuration below this directory.")
@json_option
@click.pass_obj
def doctor(context: Context, only: str | None, explain: str | None, root: str, as_json: bool) -> None:
    """Find protection that is silently off: in libvirt's and holdfastd's configuration, mounts, and running VMs.

    Each finding has an id that stays the same over releases, the facts, and a fix that can be pasted.

    \b
    holdfast doctor
    holdfast doctor --explain HF022
    holdfast doctor --only HF022 && systemctl stop virtlockd

    Exit 0: nothing to fix (notes may be shown); 5: something to fix.
    """
    from holdfast.cli import render
    from holdfast.cli.doctor import examine, rules

    wanted = [each.strip().upper() for each in (only or explain or "").split(",") if each.strip()]
    for id in wanted:
        if id not in rules.RULES and not (explain and id == "ALL"):
            raise click.UsageError(
                f"there is no finding {id}; 'holdfast doctor --explain all' shows every one"
            )
    if explain is not None:
        chosen = [rule for rule in rules.RULES.values() if "ALL" in wanted or rule.id in wanted]
        if as_json:
            render.as_json(chosen)
        else:
            click.echo("\n".join(rules.page_of(rule) for rule in chosen), nl=False)
        return
    findings = examine(context.config_file, context.socket, root)
    if only is not None:
        # What could not be checked must not look like what was checked and is in order.
        findings = [each for each in findings if each.id in (*wanted, "HF012", "HF001", "HF004")]
    if as_json:
        render.as_json(findings)
    else:
        render.findings(findings)
    sys.exit(exits.PROBLEMS if any(f.severity == "problem" for f in findings) else exits.OK)


cli.add_command(lockspace.lockspace)
cli.add_command(lease.lease)
cli.add_command(host.host)
cli.add_command(import_sanlock.import_sanlock)
cli.add_command(import_lvmlock.import_lvmlock)
cli.add_command(log_level.log_level)
cli.add_command(maintenance.maintenance)
cli.add_command(explain_reset.explain_reset)
cli.add_command(config_show.config)
cli.add_command(support_dump.support_dump)
cli.add_command(version.version)
cli.add_command(vm.vm)
cli.add_command(volume.volume)
cli.add_command(volume.attach)
cli.add_command(lvm_kill.lvm)
cli.add_command(setup.setup)
cli.add_command(switch.switch)
cli.add_command(sim.sim)


def main() -> None:
    cli.main(prog_name="holdfast")


if __name__ == "__main__":
    main()
