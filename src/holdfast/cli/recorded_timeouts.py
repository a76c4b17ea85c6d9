"""The io_timeout that the records of a lockspace say beside the one that is configured here: they may differ, and people
who wonder why a join takes so long should see both.

`lockspace init` writes its --io-timeout into the records of all host ids. A host that claims one waits by the greater of the
two, writes its own into the record, and goes by that from then on. Other hosts judge it by its record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from holdfast.backends.paxos.config import lockspace_spec
from holdfast.cli.offline import storage
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096

HOSTS_NAMED_MAX = 4

Tables = Mapping[str, Mapping[str, object]]


def configured_io_timeout_s(tables: Tables, path: str) -> int | None:
    """The io_timeout of the backend whose lockspace is at that path; None if no backend that can be used has it there."""
    wanted = os.path.realpath(path)
    for table in tables.values():
        if table.get("driver") != "paxos":
            continue
        try:
            spec = lockspace_spec(table)
        except ValueError:
            continue
        if os.path.realpath(spec.path) == wanted:
            return spec.timing.io_timeout_s
    return None


def differing(name: str, table: Mapping[str, object]) -> str:
    """What to know of the records of a backend's lockspace; empty if they say the same, or can't be read. Reads storage."""
    spec = lockspace_spec(table)
    ours = spec.timing.io_timeout_s
    try:
        with storage.opened(spec.path) as disk:
            first = DeltaLease.decode(storage.read(disk, spec.offset_bytes, SECTOR_4096))
            if not isinstance(first, DeltaLease):
                return ""
            raw = storage.read(disk, spec.offset_bytes, first.geometry.align_bytes)
    except storage.UsageError:
        return ""
    size = first.geometry.sector_bytes
    hosts = min(spec.hosts_max or first.geometry.hosts_max, first.geometry.hosts_max, len(raw) // size)
    sectors = [raw[at * size : (at + 1) * size] for at in range(hosts)]
    records = [r for each in sectors if isinstance(r := DeltaLease.decode(each), DeltaLease)]
    return _words(name, spec.name, ours, [r for r in records if r.io_timeout_s not in (0, ours)])


def _words(name: str, space: str, ours: int, others: list[DeltaLease]) -> str:
    unused = [each.io_timeout_s for each in others if each.is_free]
    used = [f"host_id {each.owner_id} {each.io_timeout_s} s" for each in others if not each.is_free]
    parts = []
    if unused:
        parts.append(
            f"{len(unused)} host ids that nobody has now say {max(unused)} s: the first join of one waits by that"
        )
    if used:
        more = f" and {len(used) - HOSTS_NAMED_MAX} more" if len(used) > HOSTS_NAMED_MAX else ""
        parts.append(
            f"{', '.join(used[:HOSTS_NAMED_MAX])}{more}: other hosts judge these by that, and this one by its own"
        )
    if not parts:
        return ""
    return (
        f"io_timeout_s = {ours} (backend '{name}') is what this host goes by, but the records of lockspace {space} say "
        f"otherwise: {'; '.join(parts)}"
    )
