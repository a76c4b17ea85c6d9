"""`holdfast sim`: seeds of the simulator, and the history of one that fails."""

from __future__ import annotations

import sys

import click

from holdfast.cli import exits
from holdfast.cli.context import json_option

SHOWN_MAX = 5
"""Histories that are drawn; the others are only named."""


@click.command()
@click.option(
    "--seeds", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--first", type=click.IntRange(0), default=0, show_default=True, metavar="SEED", help="The first one."
)
@click.option(
    "--hosts", type=click.IntRange(1, 8), metavar="H", help="How many hosts [default: by the seed]."
)
@click.option("--jobs", type=click.IntRange(1), metavar="J", help="Processes [default: one per processor].")
@json_option
def sim(seeds: int, first: int, hosts: int | None, jobs: int | None, as_json: bool) -> None:
    """Play histories of hosts, storage and bad luck with the shipping code, and check every claim.

    A seed is a whole history, always the same. One that fails is drawn in two columns.

    \b
    holdfast sim --seeds 500
    holdfast sim --first 251 --seeds 1

    Exit 0: no claim was violated; 1: one was.
    """
    try:
        from holdfast_sim.run import history, sweep
        from holdfast_sim.run.seed import Verdict
    except ModuleNotFoundError as e:
        if e.name is None or not e.name.startswith("holdfast_sim"):
            raise
        raise click.ClickException(
            "the simulator is not installed on a host: run it in a checkout (make sim, or .venv/bin/holdfast sim)"
        ) from None

    def report(verdict: Verdict) -> None:
        if not verdict.sound and not as_json:
            click.echo(f"seed {verdict.seed}: {verdict.violation}")

    outcome = sweep.run(first, seeds, hosts=hosts, jobs=jobs, on_verdict=report)
    if as_json:
        from holdfast.cli import render

        render.as_json(
            {
                "first": first,
                "seeds": outcome.seeds,
                "violations": [
                    {"seed": v.seed, "violation": v.violation, "history": [list(line) for line in v.lines]}
                    for v in outcome.violations
                ],
                "events": outcome.events,
                "acquired": outcome.acquired,
                "virtual_s": round(outcome.virtual_s),
                "real_s": round(outcome.real_s, 1),
            }
        )
    else:
        for verdict in outcome.violations[:SHOWN_MAX]:
            again = f"holdfast sim --first {verdict.seed} --seeds 1" + (f" --hosts {hosts}" if hosts else "")
            click.echo(f"\n{again}\n" + "\n".join(history.drawn(verdict.lines, verdict.parties)))
        click.echo(
            f"{outcome.seeds} seeds from {first}: {len(outcome.violations)} violations; "
            f"{outcome.virtual_s / 3600:.1f} hours of {outcome.acquired} leases taken, "
            f"{outcome.events} events, in {outcome.real_s:.0f} s"
        )
    sys.exit(exits.FAILED if outcome.violations else exits.OK)
