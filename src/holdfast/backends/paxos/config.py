"""[backend.NAME] with driver = "paxos": the keys, their rules, and the backend made from them.

Every refusal names key, value and fix; `make_backend` prepends the file. No silent default weakens protection: a host
without a watchdog needs an explicit setting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from holdfast.backends.base import BackendPorts, Turn, unknown_keys
from holdfast.backends.directory_trust import DirectoryTrust
from holdfast.backends.naming import NameBy
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.device_store import DeviceStore
from holdfast.backends.paxos.directory_store import DirectoryStore, lockspace_path
from holdfast.backends.paxos.lease_jobs import HoldingPorts
from holdfast.backends.paxos.lease_store import LeaseStore
from holdfast.model import LockFailureAction, Protection
from holdfast.ondisk.geometry import HOSTS_MAX_LIMIT
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.rindex import SPACE_NAME_BYTES_MAX
from holdfast.protocol.timing import (
    FIRE_TIMEOUT_DEFAULT_S,
    GRACE_FIRE_TIMEOUT_MIN_S,
    IO_TIMEOUT_MAX_S,
    Timing,
)
from holdfast.supervision.lockspace_port import LockspaceSpec, WatchdogSpec
from holdfast.system.files.mounts import MountTable

LIBVIRT_LOCKSPACE = "__LIBVIRT__DISKS__"
IO_TIMEOUT_DEFAULT_S = 10
WATCHDOG_DEVICE_DEFAULT = "/dev/watchdog"
WDMD_SOCKET_DEFAULT = "/run/wdmd/wdmd.sock"

STOP, RESET = "stop", "reset"
"""`on_loss`: when the VMs of a lost lockspace have ended, nothing follows, or the watchdog resets the host all the same."""

KEYS = (
    "directory",
    "device",
    "lockspace",
    "host_id",
    "io_timeout_s",
    "fire_timeout_s",
    "watchdog",
    "watchdog_device",
    "hosts_max",
    "name_by",
    "on_lockfailure",
    "on_loss",
    "cross_host",
    "page_cache",
)

_NAMES_BY = [each.value for each in NameBy if each is not NameBy.RESOURCE]


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> PaxosBackend:
    unknown_keys(table, KEYS)
    directory, device = _path(table, "directory"), _path(table, "device")
    if (not directory) == (not device):
        raise ValueError(
            'needs exactly one of directory = "/srv/leases" (one file per lease) and device = "/dev/vg/locks"'
        )
    leases = ports.leases
    if leases is None:
        raise ValueError("this program gives no lockspaces to its backends")
    spec = lockspace_spec(table)
    presence = leases.lockspace(spec, name, _watchdog(table))
    num_hosts = spec.hosts_max
    storage = leases.storage(spec.name)
    holding = HoldingPorts(offload=storage, clock=ports.clock, rng=leases.rng, spawn=leases.spawn)
    places: LeaseStore
    if directory:
        places = DirectoryStore(directory, spec.path, storage, num_hosts)
    else:
        places = DeviceStore(device, storage, num_hosts, holding, leases.turns.setdefault(spec.name, Turn()))
    reach, reach_note = _reach(table, name, directory, ports.mounts)
    _check_on_lockfailure(table)
    on_loss = _one_of(table, "on_loss", [STOP, RESET], STOP)
    if on_loss == RESET and table.get("watchdog") == "none":
        raise ValueError(
            'on_loss = "reset" needs a watchdog, and watchdog = "none" resets nothing: use "device" or "wdmd", or leave '
            "on_loss out"
        )
    return PaxosBackend(
        name,
        presence=presence,
        places=places,
        name_by=NameBy(_one_of(table, "name_by", _NAMES_BY, NameBy.PATH_MD5.value)),
        on_lockfailure=LockFailureAction(
            _one_of(
                table,
                "on_lockfailure",
                [each.value for each in LockFailureAction],
                LockFailureAction.PAUSE.value,
            )
        ),
        resets=on_loss == RESET,
        reach=reach,
        reach_note=reach_note,
        ports=holding,
        storage=ports.storage,
        identities=leases.identities,
        untrusted=_directory_trust(name, directory, ports) if directory else None,
    )


def remarks(name: str, table: Mapping[str, object]) -> list[str]:
    """Warnings about settings with effects that the operator may not expect; the table is valid all the same."""
    timing = lockspace_spec(table).timing
    found = []
    if table.get("watchdog") != "none" and not timing.grace_s:
        found.append(
            f"backend '{name}': fire_timeout_s = {timing.fire_timeout_s} leaves no time for on_lockfailure: when its "
            f"lockspace is lost, VMs are killed at once; use {GRACE_FIRE_TIMEOUT_MIN_S} s or more, on all hosts"
        )
    if too_slow := _watchdog(table).too_slow_for(timing.io_timeout_s):
        found.append(f"backend '{name}': {too_slow}")
    return found


def _check_on_lockfailure(table: Mapping[str, object]) -> None:
    """Checks the key; with `ignore`, only the watchdog ends a VM."""
    if table.get("on_lockfailure") == LockFailureAction.IGNORE.value and table.get("watchdog") == "none":
        raise ValueError(
            'on_lockfailure = "ignore" needs a watchdog: with watchdog = "none" a VM of a lost lockspace would run on, and '
            'another host starts it as well; use "pause", "poweroff" or "restart"'
        )


def _directory_trust(name: str, directory: str, ports: BackendPorts) -> Callable[[], Awaitable[str]]:
    trust = DirectoryTrust(name, ports.files)

    async def untrusted() -> str:
        return await ports.storage.call(directory, lambda: trust.refusal_of_leases(directory))

    return untrusted


def lockspace_spec(table: Mapping[str, object]) -> LockspaceSpec:
    """The lockspace of a backend's table; raises ValueError with the key and the fix."""
    directory, device = _path(table, "directory"), _path(table, "device")
    name = table.get("lockspace", LIBVIRT_LOCKSPACE)
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f'lockspace must be a name without "/", not {name!r}')
    try:
        PaddedName.of(name, SPACE_NAME_BYTES_MAX)
    except ValueError as e:
        raise ValueError(f"lockspace: {e}") from None
    io_timeout_s = _integer(table, "io_timeout_s", IO_TIMEOUT_DEFAULT_S, 1, IO_TIMEOUT_MAX_S)
    fire_timeout_s = _integer(table, "fire_timeout_s", FIRE_TIMEOUT_DEFAULT_S, 1, 3600)
    timing = Timing(io_timeout_s, fire_timeout_s)
    if broken := timing.broken():
        raise ValueError(f"io_timeout_s and fire_timeout_s: {'; '.join(map(str, broken))}")
    hosts_max: int | None = None
    if "hosts_max" in table:
        hosts_max = _integer(table, "hosts_max", 0, 1, HOSTS_MAX_LIMIT)
    host_id = _host_id(table)
    if host_id is not None and hosts_max is not None and host_id > hosts_max:
        raise ValueError(
            f"host_id {host_id} must be at most hosts_max {hosts_max}: leases are for that many hosts"
        )
    return LockspaceSpec(
        name=name,
        path=lockspace_path(directory, name) if directory else device,
        host_id=host_id,
        hosts_max=hosts_max,
        timing=timing,
        page_cache=_switch(table, "page_cache"),
    )


def _switch(table: Mapping[str, object], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {value!r}")
    return value


def _host_id(table: Mapping[str, object]) -> int | None:
    value = table.get("host_id")
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= HOSTS_MAX_LIMIT:
        return value
    raise ValueError(
        f'host_id must be a number from 1 to {HOSTS_MAX_LIMIT} that no other host has, or "auto", '
        f"not {value!r}"
        if value is not None
        else f'misses the key host_id: a number from 1 to {HOSTS_MAX_LIMIT} that no other host has, or "auto"'
    )


def _watchdog(table: Mapping[str, object]) -> WatchdogSpec:
    if "watchdog" not in table:
        raise ValueError(
            'misses the key watchdog: "device" (this host is reset when it loses its leases), "wdmd" (the same by '
            'sanlock\'s daemon), or "none" (nothing resets a host that hangs; its disks may be written twice)'
        )
    word = _one_of(table, "watchdog", ["device", "wdmd", "none"], "")
    path = _path(table, "watchdog_device")
    if word == "none" and path:
        raise ValueError(
            'watchdog_device is for watchdog = "device" (and "wdmd": its socket), not for "none"'
        )
    default = {"device": WATCHDOG_DEVICE_DEFAULT, "wdmd": WDMD_SOCKET_DEFAULT, "none": ""}[word]
    return WatchdogSpec(
        word, path or default, _integer(table, "fire_timeout_s", FIRE_TIMEOUT_DEFAULT_S, 1, 3600)
    )


def _reach(
    table: Mapping[str, object], name: str, directory: str, mounts: MountTable
) -> tuple[Protection, str]:
    """Whether the storage reaches other hosts; for a device the operator vouches for that by naming it."""
    cross_host = table.get("cross_host")
    if cross_host is not None and not isinstance(cross_host, bool):
        raise ValueError("cross_host must be true or false; leave it out to judge by the file system")
    if cross_host is False:
        return Protection.SAME_HOST, f"backend '{name}' says cross_host = false"
    if cross_host is None and directory and (why := mounts.mount_of(directory).not_shared):
        return Protection.SAME_HOST, f"{why}; put the lease directory on shared storage"
    return Protection.CROSS_HOST, ""


def _path(table: Mapping[str, object], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or (value and not value.startswith("/")) or "\0" in value:
        raise ValueError(f"{key} must be an absolute path, not {value!r}")
    return value.rstrip("/") if len(value) > 1 else value


def _integer(table: Mapping[str, object], key: str, default: int, least: int, greatest: int) -> int:
    value: Any = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
        raise ValueError(f"{key} must be a whole number from {least} to {greatest}, not {value!r}")
    return value


def _one_of(table: Mapping[str, object], key: str, words: list[str], default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{key} must be one of {', '.join(words)}, not {value!r}")
    return value
