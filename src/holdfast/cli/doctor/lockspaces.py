"""Checks of lockspaces and leases: is the storage there and shared, is it joined, and what would reset this host?"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import partial

from holdfast.backends.directory_trust import untrusted
from holdfast.backends.paxos.config import (
    WATCHDOG_DEVICE_DEFAULT,
    WDMD_SOCKET_DEFAULT,
    lockspace_spec,
    remarks,
)
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.lock_directories import (
    look_at,
    shared_storage,
    vouched_for_local,
    writable_files,
)
from holdfast.cli.doctor.scene import Scene
from holdfast.cli.recorded_timeouts import differing
from holdfast.control.api import LeaseSpaceInfo
from holdfast.ondisk.host_record import is_record_name
from holdfast.system.files.bounded_question import ANSWER_S, Silent, answer_in_time
from holdfast.system.files.directory_writers import Writers
from holdfast.system.files.mounts import LOCAL_TYPES

Tables = Mapping[str, Mapping[str, object]]
TIMER = "etc/systemd/system/timers.target.wants/holdfast-lease-gc.timer"
_LEASE_NAME = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}|[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}")
"""What lease files are called: MD5 or SHA-256 of a path, an LVM UUID. A WWID may be anything."""
STRANGE_NAMED_MAX = 3


def lease_tables(tables: Tables) -> Tables:
    """Those of the backends that have leases."""
    return {name: table for name, table in tables.items() if table.get("driver") == "paxos"}


def lockspaces(scene: Scene) -> Iterator[Finding]:
    for name, table in lease_tables(scene.config.backend).items():
        for remark in remarks(name, table):
            yield found(
                "HF066",
                remark,
                "that key in the [backend] table, on all hosts (fire_timeout_s in the watchdog too); then: holdfast reload",
            )
        path = lockspace_spec(table).path
        try:
            yield from _storage(scene, name, table, path)
            if words := answer_in_time(partial(differing, name, table)):
                yield found(
                    "HF075",
                    words,
                    "the same io_timeout_s on all hosts; 'lockspace init' takes it over for new lockspaces",
                )
        except Silent:
            yield found(
                "HF061",
                f"the storage of {path} (backend '{name}') did not answer within {ANSWER_S:g} s: when its leases "
                "fail, their VMs are stopped",
                "find out why it hangs (dmesg, the storage's own log); 'holdfast lockspace list' shows the seconds left",
            )
            continue
        yield from _joined(scene, name, table)


def _storage(scene: Scene, name: str, table: Mapping[str, object], path: str) -> Iterator[Finding]:
    """Raises `Silent`."""
    directory, whose = os.path.dirname(path), f"backend '{name}'"
    there, writers, writable, strange = answer_in_time(partial(_look, path, _named_otherwise(table)))
    if not there:
        yield found(
            "HF060",
            f"{path} ({whose}) is not there: its disks can't be started",
            "mount its storage. Only if no host has ever used this lockspace: see 'holdfast lockspace init --help'",
        )
    if not table.get("directory"):
        return
    if writers.who:
        yield found("HF062" if writers.everybody else "HF063", *untrusted(directory, writers))
    if writable:
        yield writable_files(directory, writable)
    vouched = vouched_for_local(scene, directory, whose)
    mount = scene.mounts.locate(directory)[0]
    if vouched is not None:
        yield vouched
    elif table.get("cross_host") is not True and mount.not_shared:
        fix = shared_storage(directory)
        if mount.type not in LOCAL_TYPES:
            fix += ". If all hosts do mount it there, and it has no cache of its own: cross_host = true in the table"
        yield found("HF067", f"the lease directory {directory} ({whose}): {mount.not_shared}", fix)
    if strange:
        more = f" and {len(strange) - STRANGE_NAMED_MAX} more" if len(strange) > STRANGE_NAMED_MAX else ""
        yield found(
            "HF071",
            f"{directory} has files that no lease of '{name}' has the name of: "
            f"{', '.join(strange[:STRANGE_NAMED_MAX])}{more}",
            f"see what they are: holdfast lease dump -- {shlex.quote(os.path.join(directory, strange[0]))}",
        )


def _named_otherwise(table: Mapping[str, object]) -> str:
    """A file that may be there beside leases, of any name; empty if every name may be a lease's."""
    return "" if table.get("name_by") == "scsi-wwid" else lockspace_spec(table).name


def _look(path: str, space: str) -> tuple[bool, Writers, list[str], list[str]]:
    """Whether a lockspace is there, who may write in its directory and files, and files that are no leases."""
    directory = os.path.dirname(path)
    listed, writers, writable = look_at(directory)
    strange = []
    if listed and space:
        with os.scandir(directory) as entries:
            strange = sorted(
                each.name
                for each in entries
                if each.name != space
                and not each.name.startswith(".")
                and not is_record_name(each.name, space)
                and not _LEASE_NAME.fullmatch(each.name)
            )
    return os.path.exists(path), writers, writable, strange


def _joined(scene: Scene, name: str, table: Mapping[str, object]) -> Iterator[Finding]:
    space = lockspace_spec(table).name
    info = next((each for each in scene.spaces or () if each.name == space), None)
    if table.get("watchdog") == "none":
        yield found(
            "HF065",
            f"{space} (backend '{name}'): watchdog = \"none\": nothing resets a host that hangs, and its disks "
            f"may be written twice",
            'watchdog = "device" or "wdmd" in that table, when no VM of this host has a lease there; then: '
            "holdfast reload",
        )
    if info is not None and info.state == "joined":
        if table.get("device") and not table.get("cross_host") and _is_alone(info):
            yield found(
                "HF074",
                f"{space}: {table['device']} is not shown to be shared: no other host has been seen in it",
                "join it on another host and ask there and here again; cross_host = true says that it is shared",
            )
        yield fine("lockspace", f"{space}: joined as host_id {info.host_id}")
        return
    trouble = list(_watchdog(scene, table, info))
    yield from trouble
    if info is not None and not trouble:
        yield _not_joined(table, info)


def _is_alone(space: LeaseSpaceInfo) -> bool:
    return all(host.host_id == space.host_id for host in space.hosts)


def _not_joined(table: Mapping[str, object], info: LeaseSpaceInfo) -> Finding:
    reason = f": {info.reason}" if info.reason else ""
    left = f"; {info.seconds_left:.0f} s left" if info.seconds_left is not None else ""
    facts = f"{info.name} is {info.state}{reason}{left}"
    if "is held by" in info.reason or "another host id" in info.reason:
        fix = (
            "remove this host's remembered id (see the reason), then: holdfast lockspace join"
            if table.get("host_id") == "auto"
            else 'give this host another host_id in holdfast.toml, or host_id = "auto"; then: holdfast reload'
        )
        return found("HF069", facts, fix)
    fixes = {
        "left": f"holdfast lockspace join -- {shlex.quote(info.name)}",
        "lost": "when the storage answers again it is joined by itself; its VMs were stopped or paused: holdfast events",
        "failed": "correct what the reason names; then: holdfast lockspace join -- " + shlex.quote(info.name),
    }
    waiting = "it is joined by itself when the reason has gone; progress: holdfast lockspace list"
    return found("HF064", facts, fixes.get(info.state, waiting))


def _watchdog(scene: Scene, table: Mapping[str, object], info: LeaseSpaceInfo | None) -> Iterator[Finding]:
    """What keeps a host without a watchdog from joining: there is none, or somebody else has it."""
    kind = table.get("watchdog")
    if kind == "device":
        device = str(table.get("watchdog_device") or WATCHDOG_DEVICE_DEFAULT)
        daemon = scene.status.pid if scene.status is not None else 0
        # /dev/watchdog and /dev/watchdog0 are one device; an open by either name counts.
        names = {
            device,
            scene.path(device.lstrip("/")),
            *((f"{device}0",) if device.endswith("watchdog") else ()),
        }
        users = sorted({pid for each in names for pid in scene.host.openers(each)} - {daemon, 0})
        programs = {each.pid: each for each in scene.programs()}
        if users and not (1 in users and info is not None and info.fenced):
            who = ", ".join(
                f"{programs[pid].name if pid in programs else 'a process'} (pid {pid})" for pid in users
            )
            yield found("HF068", f"{who} has {device} open, so holdfastd can't", _fix_of_user(users))
        elif not os.path.exists(scene.path(device.lstrip("/"))):
            yield found(
                "HF073",
                f"there is no {device}: this host has no watchdog, or its driver is not loaded",
                "load the driver of this machine's watchdog (on hardware without one: modprobe softdog), and name it in "
                "/etc/modules-load.d",
            )
    elif kind == "wdmd":
        path = str(table.get("watchdog_device") or WDMD_SOCKET_DEFAULT)
        if not os.path.exists(scene.path(path.lstrip("/"))):
            yield found("HF073", f"wdmd does not run: there is no {path}", "systemctl enable --now wdmd")


def _fix_of_user(users: list[int]) -> str:
    if 1 in users:
        return "RuntimeWatchdogSec=0 in /etc/systemd/system.conf.d/holdfast.conf ([Manager]), then: systemctl daemon-reexec"
    return f"find out which service it is (systemctl status {users[0]}), and disable it, or let it use another device"


def collection(scene: Scene) -> Iterator[Finding]:
    """Whether anybody removes the leases of deleted disks."""
    if lease_tables(scene.config.backend) and not os.path.lexists(scene.path(TIMER)):
        yield found(
            "HF072",
            "holdfast-lease-gc.timer is not enabled: leases of deleted disks stay",
            "systemctl enable --now holdfast-lease-gc.timer",
        )
