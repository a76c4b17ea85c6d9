"""From a configuration to its backends and rules, for the daemon and for whoever only wants to know if it is right."""

from __future__ import annotations

import os

from holdfast import config as configuration
from holdfast.backends.base import BackendPorts, make_backend
from holdfast.config import Config
from holdfast.errors import ConfigError
from holdfast.lease_wiring import LeaseHost
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.supervision.host_terms import HostIdentity
from holdfast.system.blocking import InlineStorage
from holdfast.system.clock import SystemClock
from holdfast.system.file_lock import SystemLockFiles
from holdfast.system.mounts import MountTable


def build_routing(config: Config, ports: BackendPorts) -> Routing:
    """Backends and rules of a configuration; raises `ConfigError`."""
    backends = {
        name: make_backend(name, table, ports, file=config.source()) for name, table in config.backend.items()
    }
    rules = [
        Rule(
            rule.match if rule.match is not None else rule.lockspace or "",
            Route(backends[rule.backend], configuration.protection_min(config, rule)),
            of_lockspace=rule.match is None,
        )
        for rule in config.disk
    ]
    default = Route(backends[config.default_backend], configuration.protection_min(config, None))
    return Routing(rules, default, backends)


def ports_for_a_look(config: Config, mounts: MountTable) -> BackendPorts:
    """For backends that are made and asked what they are worth, and never hold anything."""
    leases = LeaseHost(clock=SystemClock(), identity=HostIdentity("", "", ""), copy_dirs=())
    return BackendPorts(
        files=SystemLockFiles(),
        storage=InlineStorage(),
        mounts=mounts,
        clock=SystemClock(),
        host="",
        leases=leases.ports(),
    )


def check_config(file: str | None) -> tuple[Config | None, list[ConfigError]]:
    """The configuration with its backends tried out, and everything wrong with it."""
    config, problems = configuration.check(file, environ=os.environ, uid=os.geteuid())
    if config is not None:
        mounts = MountTable()
        try:
            build_routing(config, ports_for_a_look(config, mounts))
        except ConfigError as e:
            problems.append(e)
        mounts.close()
    return config, problems
