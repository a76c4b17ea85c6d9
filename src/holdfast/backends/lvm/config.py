"""[backend.NAME] with driver = "lvm": the keys and their rules. The driver itself is refused: it can't lock anything yet.

A key that is wrong is named first, so that a table can be written and checked ahead of the version that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from holdfast.backends.base import BackendPorts, unknown_keys
from holdfast.backends.lvm.hook_calls import HANDOVER_WAIT_S
from holdfast.backends.lvm.write_grants import ACQUIRE_WAIT_S

KEYS = ("activation", "guard", "handover_wait_s", "acquire_wait_s")
ACTIVATIONS = ("exclusive", "shared")
WAIT_S_MAX = 600
NOT_USABLE = (
    'driver "lvm" can\'t lock anything in this version: nothing asks lvmlockd yet, so its disks would have no lock. '
    'Use driver = "paxos" for these disks (docs/shared-lvm.md)'
)


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
    if activation == "shared" and not guard:
        raise ValueError(
            'activation = "shared" needs a guard, the name of a backend with driver = "paxos": a volume that all hosts have '
            "active has no lock of LVM's that excludes one"
        )
    return Settings(
        str(activation),
        guard,
        _seconds(table, "handover_wait_s", HANDOVER_WAIT_S),
        _seconds(table, "acquire_wait_s", ACQUIRE_WAIT_S),
    )


def driver(name: str, table: Mapping[str, object], ports: BackendPorts) -> NoReturn:
    """Refuses, always: ValueError."""
    settings(table)
    raise ValueError(NOT_USABLE)


def _seconds(table: Mapping[str, object], key: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= WAIT_S_MAX:
        raise ValueError(f"{key} must be a number of seconds from 0 to {WAIT_S_MAX}, not {value!r}")
    return float(value)
