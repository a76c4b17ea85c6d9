"""Configurations that operators edit under running virtual machines, before a start and before a reload.

    harmless   backends are renamed: held locks are found under the new name
    takes      a lockspace that is in use gets another host id, another timeout or directory, or is removed;
               or the file can't be read at all: a reload is refused, a start uses the kept configuration

Each edit starts from the configuration that was written when the machine was set up. An edit that takes something is made
only while a virtual machine of that lockspace runs: with nothing held it would come into force, and the host would be a
different one from then on. Choices come from a separate generator, so that a seed without edits keeps its history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from holdfast.config import Config, DiskRule
from holdfast_sim.cluster.cluster import Cluster
from holdfast_sim.host.machine import Machine
from holdfast_sim.host.ports import Edited, MachineState

RATES = (0.0, 0.0, 0.3, 0.7)
"""The share of starts and reloads that find an edited configuration; 0 (none) in half of the seeds."""

Tables = Mapping[str, dict[str, Any]]


def _as_written(config: Config) -> Config | None:
    return config


class ConfigEdits:
    """May edit before each start and each reload, until `heal`."""

    def __init__(self, cluster: Cluster, rate: float, random: Random) -> None:
        self._cluster = cluster
        self._rate = rate
        self._random = random
        self._stopped = False
        if rate:
            for machine in cluster.machines:
                state = cluster.states[machine.name]
                state.edit = lambda machine=machine, state=state: self._edit(machine, state)  # type: ignore[misc]

    def heal(self) -> None:
        """Restore the configuration that was written first, and make no more edits."""
        self._stopped = True
        for state in self._cluster.states.values():
            state.edited, state.takes = _as_written, ""

    def _edit(self, machine: Machine, state: MachineState) -> None:
        state.edited, state.takes = _as_written, ""
        if self._stopped or self._random.random() >= self._rate:
            return
        used = {vm.resource for vm in machine.vms if vm.held and vm.running and not vm.paused}
        in_use = [space.name for space in self._cluster.spaces if used.intersection(space.resources)]
        if not in_use or self._random.random() < 0.4:
            state.edited = _renamed
            self._cluster.world.record(machine.name, "its backends are renamed in its configuration")
            return
        name = self._random.choice(in_use)
        what, edited = self._random.choice(TAKING)
        state.edited, state.takes = edited(name), f"{name} {what}"
        self._cluster.world.record(machine.name, f"its configuration is edited: {state.takes}")


def _with(config: Config, names: Mapping[str, str], tables: Tables) -> Config:
    """The configuration with other tables; `names` maps old table names to new ones."""
    return msgspec.structs.replace(
        config,
        default_backend=names.get(config.default_backend, next(iter(tables))),
        backend=dict(tables),
        disk=tuple(
            DiskRule(
                backend=names[rule.backend],
                match=rule.match,
                require_protection=rule.require_protection,
                identity=rule.identity,
            )
            for rule in config.disk
            if rule.backend in names
        ),
    )


def _renamed(config: Config) -> Config:
    names = {name: name if name == "file" else f"store-of-{name}" for name in config.backend}
    return _with(config, names, {names[name]: table for name, table in config.backend.items()})


def _removed(name: str) -> Edited:
    def edited(config: Config) -> Config:
        tables = {other: table for other, table in config.backend.items() if other != name}
        return _with(config, {other: other for other in tables}, tables)

    return edited


def _changed(key: str, value: Callable[[dict[str, Any]], object]) -> Callable[[str], Edited]:
    """Rename the backends, so that only the lockspace shows which table is which."""

    def edited_table(name: str) -> Edited:
        def edited(config: Config) -> Config:
            config = _renamed(config)
            tables = dict(config.backend)
            table = tables[f"store-of-{name}"]
            tables[f"store-of-{name}"] = {**table, key: value(table)}
            return msgspec.structs.replace(config, backend=tables)

        return edited

    return edited_table


def _unreadable(name: str) -> Edited:
    return lambda config: None


def _another_host_id(table: dict[str, Any]) -> int:
    """A host id that no host has: the last valid one. A host with ``auto`` may have that one already."""
    return int(table["hosts_max"])


TAKING: tuple[tuple[str, Callable[[str], Edited]], ...] = (
    ("is removed", _removed),
    ("has another host id", _changed("host_id", _another_host_id)),
    ("has another fire_timeout_s", _changed("fire_timeout_s", lambda table: table["fire_timeout_s"] + 7)),
    ("has another io_timeout_s", _changed("io_timeout_s", lambda table: table["io_timeout_s"] + 1)),
    ("is another lockspace", _changed("lockspace", lambda table: f"other-{table['lockspace']}")),
    ("is in a file that is not TOML", _unreadable),
)
