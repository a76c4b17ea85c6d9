"""What each seed plays, as a digest of its whole history: a pure move of code changes none of them.

The record beside this file has parts: seeds 0 to 299 as a campaign plays them, but for kinds that came later; those of the
first 60 that play the whole daemon with each of these (`LATER_KINDS`); some others with a host of a foreign
name; and the pinned seeds as their test plays them. A commit that only moves code leaves every digest as it was. A
commit that changes what is drawn, asked or logged changes digests on purpose; it says why, and records them again.

    python -m tests.sim.histories            compare with the record; exit code 1 and the seeds that differ
    python -m tests.sim.histories --record   write the record
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.sim.test_pinned_seeds import PINNED

from holdfast_sim.cluster.cluster import Kind, Scenario
from holdfast_sim.drive.fencings import Format
from holdfast_sim.drive.habits import NO_HABITS
from holdfast_sim.drive.state_damage import NO_PLAGUES
from holdfast_sim.run.seed import play
from holdfast_sim.storage.disk_names import Naming
from holdfast_sim.storage.prepared import FEW_HOSTS

RECORD = Path(__file__).with_suffix(".json")
SEEDS = range(300)
"""So that about a hundred of them play the whole daemon."""

SECONDS_EVERY_S = 8.0
MIGRATIONS_EVERY_S = 3.0
FORMATS = {"marks": Format.MARKS, "no timeout": Format.NO_TIMEOUT}
RESTORED_EVERY_S = 12.0
NAMINGS = {"aliases": Naming.ALIASES, "late": Naming.LATE}
LATER_KINDS = ("second", "migrations", "restored", *FORMATS, *NAMINGS)

Key = tuple[str, int]
"""(part of the record, seed)"""


def all_keys() -> list[Key]:
    return [
        *(("campaign", seed) for seed in SEEDS),
        *((part, seed) for part in LATER_KINDS for seed in SEEDS[:60] if _is_managed(seed)),
        *(("foreign", seed) for seed in SEEDS[:30] if not _is_managed(seed)),
        *(("pinned", seed) for seed in PINNED),
    ]


def _is_managed(seed: int) -> bool:
    return Scenario.drawn(Random(seed), None).kind is Kind.MANAGED


def digest(key: Key) -> str:
    """Of all lines, the verdict and the number of events; true time is no part of it."""
    part, seed = key
    if part == "pinned":
        verdict = play(
            seed,
            lease_hosts=FEW_HOSTS,
            restarts_every_s=0,
            plagues=NO_PLAGUES,
            seconds_every_s=0,
            migrations_every_s=0,
            foreign_names=False,
            made=Format.PLAIN,
            restored_every_s=0,
            naming=Naming.ONE,
            habits=NO_HABITS,
        )
    else:
        verdict = play(
            seed,
            seconds_every_s=SECONDS_EVERY_S if part == "second" else 0,
            migrations_every_s=MIGRATIONS_EVERY_S if part == "migrations" else 0,
            foreign_names=part == "foreign",
            made=FORMATS.get(part, Format.PLAIN),
            restored_every_s=RESTORED_EVERY_S if part == "restored" else 0,
            naming=NAMINGS.get(part, Naming.ONE),
            habits=NO_HABITS,
        )
    whole = json.dumps([verdict.lines, verdict.violation, verdict.events, verdict.acquired])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def played(wanted: Sequence[Key]) -> dict[str, str]:
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        digests = pool.map(digest, wanted, chunksize=4)
    return {f"{part} {seed}": each for (part, seed), each in zip(wanted, digests, strict=True)}


def recorded() -> dict[str, str]:
    found: dict[str, str] = json.loads(RECORD.read_text())
    return found


def differing(record: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Which seeds are not what the record says, and which the record does not have, or has in excess."""
    return [key for key in sorted({*record, *now}) if record.get(key) != now.get(key)]


def main(arguments: Sequence[str]) -> int:
    now = played(all_keys())
    if "--record" in arguments:
        RECORD.write_text(json.dumps(now, indent=0) + "\n")
        print(f"recorded {len(now)} histories")
        return 0
    different = differing(recorded(), now)
    print(f"{len(now)} histories, {len(different)} differ from the record")
    for key in different:
        print(f"  {key}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
