"""[backend.NAME] with driver = "lvm": the keys and their rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.backends.base import BackendPorts, unknown_keys
from holdfast.backends.lvm.backend import LvmBackend
from holdfast.backends.lvm.hook_calls import HANDOVER_WAIT_S
from holdfast.backends.lvm.write_grants import ACQUIRE_WAIT_S
from holdfast.system.files.ofd_lock import FileKey

KEYS = ("activation", "guard", "handover_wait_s", "acquire_wait_s")
SHARED = "shared"
ACTIVATIONS = ("exclusive", SHARED)
WAIT_S_MAX = 600


@dataclass(frozen=True, slots=True)
class Settings:
    """The table with its defaults."""

    activation: str
    guard: str
    """Name of a paxos backend whose lease a VM must have as well; empty: the volume's lock alone."""
    handover_wait_s: float
    acquire_wait_s: float


def settings(table: Mapping[str, object]) -> Settings:
    """The keys of a table; raises ValueError with key, value and fix."""
    unknown_keys(table, KEYS)
    activation = table.get("activation", ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    guard = table.get("guard", "")
    if not isinstance(guard, str):
        raise ValueError(f'guard must be the name of a backend with driver = "paxos", not {guard!r}')
    if activation == SHARED and not guard:
        raise ValueError(
            'activation = "shared" needs a guard, the name of a backend with driver = "paxos": a volume that all hosts have '
            "active has no lock of LVM's that excludes one"
        )
    return Settings(
        str(activation),
        guard,
        _seconds(table, "handover_wait_s", HANDOVER_WAIT_S, most=HANDOVER_WAIT_S),
        _seconds(table, "acquire_wait_s", ACQUIRE_WAIT_S, most=WAIT_S_MAX),
    )


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> LvmBackend:
    """Raises ValueError."""
    found = settings(table)
    identities = ports.identities

    async def disk_key(path: str) -> FileKey | None:
        if identities is None:
            return None
        return (await ports.storage.call(path, lambda: identities.look(path))).key

    return LvmBackend(
        name,
        ports.volumes,
        handover_wait_s=found.handover_wait_s,
        acquire_wait_s=found.acquire_wait_s,
        disk_key=disk_key,
        guard=found.guard,
        shares=found.activation == SHARED,
    )


def remarks(name: str, table: Mapping[str, object]) -> list[str]:
    """What an operator may not expect of a valid table."""
    found = [
        f'backend.{name}: driver "lvm" is experimental: over the real LVM it was seen in a lab alone '
        "(docs/shared-lvm.md)"
    ]
    if table.get("activation") == SHARED:
        found.append(
            f'backend.{name}: activation = "shared": the guard\'s lease alone keeps two hosts from writing to a volume, '
            f'so all hosts of these volume groups need guard = "{table.get("guard")}", in one lockspace, before any has this'
        )
    return found


def _seconds(table: Mapping[str, object], key: str, default: float, *, most: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{key} must be a number of seconds from 0 to {most:g}, not {value!r}")
    return float(value)
