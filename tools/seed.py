"""One seed of the simulator in a single column, with what the daemons log and which records of host ids land.

.venv/bin/python tools/seed.py 4711                       # as drawn
.venv/bin/python tools/seed.py 4711 --naming one --log    # with log records, debug too
.venv/bin/python tools/seed.py 4711 --records --from 12 --until 45 --host host1
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast_sim.check import host_ids
from holdfast_sim.check.leases import Checkers as LeaseCheckers
from holdfast_sim.run import seed as run_seed
from holdfast_sim.storage.disk_names import Naming

if TYPE_CHECKING:
    from holdfast_sim.event_loop import Process
    from holdfast_sim.storage.disk import SharedDisk


def show_log() -> None:
    """Every log record of the daemons becomes a line of the history."""
    emit = run_seed._Listener.emit

    def shown(listener: run_seed._Listener, record: logging.LogRecord) -> None:
        listener._world.record("log", f"{record.levelname[:4].lower()} {record.getMessage()}")
        emit(listener, record)

    run_seed._Listener.emit = shown  # type: ignore[method-assign, assignment]
    logging.getLogger("holdfast").setLevel(logging.DEBUG)


def show_records() -> None:
    """Every record of a host id that takes effect on storage becomes a line of the history."""
    landed = host_ids.TermCheckers.landed

    def said(checkers: host_ids.TermCheckers, disk: str, process: Process, host_id: int, raw: bytes) -> None:
        record = DeltaLease.decode(raw)
        assert isinstance(record, DeltaLease), record
        checkers.world.record(
            process.name,
            f"RECORD {disk}/{host_id} = {record.host_name} generation {record.generation}"
            f" timestamp {record.timestamp}",
        )
        landed(checkers, disk, process, host_id, raw)

    host_ids.TermCheckers.landed = said  # type: ignore[method-assign, assignment]


def show_leases() -> None:
    """Every leader, host block and index sector that takes effect on storage becomes a line of the history."""
    landed = LeaseCheckers._landed

    def said(checkers: LeaseCheckers, disk: SharedDisk, process: Process, offset: int, raw: bytes) -> None:
        area, within = divmod(offset, checkers.geometry.align_bytes)
        sector = within // checkers.geometry.sector_bytes
        if area:
            found = Leader.decode(raw) if sector == 0 else HostBlock.decode(raw) if sector >= 2 else "index"
            checkers.world.record(process.name, f"LEASE {disk.name} area {area} sector {sector}: {found}")
        landed(checkers, disk, process, offset, raw)

    LeaseCheckers._landed = said  # type: ignore[method-assign, assignment]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("--naming", choices=[n.name.lower() for n in Naming], help="how hosts name disks")
    parser.add_argument("--log", action="store_true", help="with log records")
    parser.add_argument("--records", action="store_true", help="with records of host ids that land")
    parser.add_argument(
        "--leases", action="store_true", help="with leaders and host blocks of leases that land"
    )
    parser.add_argument("--host", default="", help="only lines of this host, and of nobody")
    parser.add_argument(
        "--from", dest="since", type=float, default=0.0, metavar="S", help="from this second on"
    )
    parser.add_argument("--until", type=float, default=float("inf"), metavar="S", help="up to this second")
    wanted = parser.parse_args()
    if wanted.log:
        show_log()
    if wanted.records:
        show_records()
    if wanted.leases:
        show_leases()
    naming = Naming[wanted.naming.upper()] if wanted.naming else None
    verdict = run_seed.play(wanted.seed, naming=naming)
    for at, who, what in verdict.lines:
        if wanted.since <= at <= wanted.until and (
            not wanted.host or who in ("", "log") or wanted.host in who
        ):
            print(f"{at:9.3f} {who:22} {what}")
    print(replace(verdict, lines=(), real_s=0.0))


if __name__ == "__main__":
    main()
