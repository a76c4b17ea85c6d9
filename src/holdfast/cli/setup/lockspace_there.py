"""What is at the place of a lockspace: its name, sizes, timeouts and hosts, as its records say. Reads only."""

from __future__ import annotations

import os
from functools import partial

from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE
from holdfast.cli.offline import storage
from holdfast.cli.offline.hosts import records_beside
from holdfast.cli.offline.identify import Blank, Newer, describe, identify, shown
from holdfast.cli.setup.facts import HostThere, SpaceSeen
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import SECTOR_4096
from holdfast.ondisk.host_record import is_record_name
from holdfast.ondisk.malformed import NEWER_FIX
from holdfast.protocol.timing import is_of_holdfast
from holdfast.system.files.bounded_question import Silent, answer_in_time
from holdfast.system.files.mounts import is_block_device


def look(place: str) -> SpaceSeen:
    """`place`: a directory, a lockspace's file in one, or a block device."""
    place = os.path.abspath(place)
    try:
        return answer_in_time(partial(_look, place))
    except Silent:
        return SpaceSeen(
            place, place, False, fault=f"the storage of {place} does not answer", fix="check it (dmesg)"
        )


def _look(place: str) -> SpaceSeen:
    if is_block_device(place) or place.startswith("/dev/"):
        if not is_block_device(place):
            return SpaceSeen(
                place, place, True, fault=f"{place} is no block device", fix="make it first (lvcreate)"
            )
        return _at(place, place, is_device=True)
    if os.path.isfile(place):
        return _at(os.path.dirname(place), place, is_device=False)
    if not os.path.isdir(place):
        return SpaceSeen(place, os.path.join(place, LIBVIRT_LOCKSPACE), False, has_directory=False)
    names = _lockspaces(place)
    if len(names) > 1 and LIBVIRT_LOCKSPACE not in names:
        return SpaceSeen(
            place,
            place,
            False,
            fault=f"{place} has several lockspaces ({', '.join(names)})",
            fix="name one's file",
        )
    name = LIBVIRT_LOCKSPACE if LIBVIRT_LOCKSPACE in names or not names else names[0]
    if not names:
        return SpaceSeen(place, os.path.join(place, name), False)
    return _at(place, os.path.join(place, name), is_device=False)


NAMES_MAX = 20_000


def _lockspaces(directory: str) -> list[str]:
    """Files in it that begin as a lockspace does."""
    found = []
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= NAMES_MAX:
                break
            if not entry.is_file(follow_symlinks=False) or is_record_name(entry.name, LIBVIRT_LOCKSPACE):
                continue
            try:
                with open(entry.path, "rb") as f:
                    if isinstance(identify(f.read(SECTOR_4096)), DeltaLease | Newer):
                        found.append(entry.name)
            except OSError:
                continue
    return sorted(found)


def _at(place: str, path: str, *, is_device: bool) -> SpaceSeen:
    said = {} if is_device else records_beside(path)
    try:
        with storage.opened(path) as disk:
            head = storage.read(disk, 0, SECTOR_4096)
            first = identify(head)
            if isinstance(first, Blank):
                return SpaceSeen(place, path, is_device)
            if not isinstance(first, DeltaLease):
                fix = (
                    NEWER_FIX
                    if isinstance(first, Newer)
                    else "choose another place (holdfast lease dump PATH)"
                )
                return SpaceSeen(
                    place, path, is_device, fault=f"{path} holds {describe(first, head)}", fix=fix
                )
            raw = storage.read(disk, 0, first.geometry.align_bytes)
    except storage.UsageError as e:
        return SpaceSeen(place, path, is_device, fault=e.problem, fix=e.fix)
    name = shown(first.space_name)
    if not is_device and name != os.path.basename(path):
        return SpaceSeen(
            place, path, is_device,
            fault=f"{path} is lockspace {name}, and a lockspace in a directory has its name as its file's",
            fix="use the file of that name",
        )  # fmt: skip
    size = first.geometry.sector_bytes
    sectors = [raw[at : at + size] for at in range(0, min(len(raw), first.geometry.hosts_max * size), size)]
    records = [each for sector in sectors if isinstance(each := DeltaLease.decode(sector), DeltaLease)]
    hosts = []
    for record in records:
        if record.is_free:
            continue
        own = said.get(record.owner_id)
        believed = own is not None and own.is_about(record)
        hosts.append(
            HostThere(
                record.owner_id,
                own.node if own is not None and believed else shown(record.host_name),
                record.io_timeout_s,
                own.fire_timeout_s if own is not None and believed else 0,
                is_of_holdfast(record.host_name.text),
            )
        )
    unused = [each.io_timeout_s for each in records if each.is_free]
    return SpaceSeen(
        place,
        path,
        is_device,
        name=name,
        sizes=f"sectors and areas {first.geometry}",
        hosts_max=len(records),
        unused_io_timeout_s=max(unused, default=0),
        hosts=tuple(hosts),
    )
