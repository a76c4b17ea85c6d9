"""Checks a configuration by making its backends, without running them."""

from __future__ import annotations

import os

from holdfast import config as configuration
from holdfast.backends.base import BackendPorts
from holdfast.backends.lvm import config as lvm_table
from holdfast.backends.paxos import config as paxos_table
from holdfast.config import Config
from holdfast.daemon.build import build_routing
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.daemon.system_ports import lease_host_ports
from holdfast.errors import ConfigError
from holdfast.supervision.host_identity import HostIdentity
from holdfast.system.clock import SystemClock
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import SystemLockFiles
from holdfast.system.files.storage_executor import InlineStorage


def ports_for_a_look(config: Config, mounts: MountTable) -> BackendPorts:
    """Ports for backends that are only made and asked for their protection, and never hold a lock."""
    leases = HostLockspaces(
        ports=lease_host_ports(()), clock=SystemClock(), identity=HostIdentity("", "", "")
    )
    return BackendPorts(
        files=SystemLockFiles(),
        storage=InlineStorage(),
        mounts=mounts,
        clock=SystemClock(),
        host="",
        leases=leases.ports(),
    )


def check_config(file: str | None) -> tuple[Config | None, list[ConfigError]]:
    """The configuration after a check of its backends, and all problems with it."""
    config, problems = configuration.check(file, environ=os.environ, uid=os.geteuid())
    if config is not None:
        problems.extend(problems_of(config))
    return config, problems


def remarks_of(config: Config) -> list[str]:
    """Warnings about a valid configuration's effects that its operator may not expect."""
    found: list[str] = []
    for name, table in config.backend.items():
        if table.get("driver") == "paxos":
            found += paxos_table.remarks(name, table)
        elif table.get("driver") == "lvm":
            found += lvm_table.remarks(name, table)
    return found


def problems_of(config: Config) -> list[ConfigError]:
    """Why its backends can't be made: the first reason, or none."""
    mounts = MountTable()
    try:
        build_routing(config, ports_for_a_look(config, mounts))
    except ConfigError as e:
        return [e]
    finally:
        mounts.close()
    return []
