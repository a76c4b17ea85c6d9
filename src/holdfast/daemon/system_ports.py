"""The ports of a real host, from which `build` makes the object graph of a daemon. The simulator has its own."""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import SystemRandom
from typing import Any

from holdfast.backends.lvm.host_locks import HostLvLocks
from holdfast.backends.lvm.host_volumes import HostVolumes
from holdfast.backends.lvm.lvm_commands import LvmCommands
from holdfast.backends.lvm.volumes import Volumes
from holdfast.config import Config
from holdfast.daemon.build import SystemPorts
from holdfast.daemon.lockspaces import LeaseHostPorts, pool_of_leases
from holdfast.lease_admin.rereading import ROUND_S
from holdfast.protocol.timing import NAME_TOKEN_DIGITS
from holdfast.supervision.host_identity import HostIdentity
from holdfast.supervision.incarnation_copies import copy_path, lockspace_of_copy
from holdfast.supervision.lockspace_port import WatchdogSpec
from holdfast.system import eager_tasks
from holdfast.system.block_io.blocking_ports import BlockingClock, start_thread
from holdfast.system.block_io.disk_file import DEVICE_WRITES
from holdfast.system.block_io.lease_files import LeaseStorage, SystemLeaseStorage
from holdfast.system.block_io.renewal_threads import SystemLeaseThreads
from holdfast.system.block_io.request_gate import GATE
from holdfast.system.block_io.users_leases import UsersLeaseStorage
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.clock import SystemClock
from holdfast.system.epoll import Readiness
from holdfast.system.files.append_file import SystemAppendFile
from holdfast.system.files.disk_identity import SystemDiskIdentities
from holdfast.system.files.fixed_record import SystemFixedRecord
from holdfast.system.files.host_record_files import SystemHostRecordFiles
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.lockspace_locks import SystemSpaceLocks
from holdfast.system.files.mapped_device import SysfsMappedDevices
from holdfast.system.files.mounts import MountTable
from holdfast.system.files.ofd_lock import SystemLockFiles
from holdfast.system.files.open_files import SystemOpenFiles, lock_keepers
from holdfast.system.files.state_file import RecordFile, StateFile, append_line
from holdfast.system.files.storage_executor import StorageExecutor
from holdfast.system.host.commands import Commands
from holdfast.system.host.descriptors import DescriptorStore
from holdfast.system.host.peer_rights import Rights
from holdfast.system.host.predecessor import Predecessors
from holdfast.system.host.process import (
    SystemProcesses,
    boot_id,
    host_name,
    is_proven_hardware,
    machine_ids,
    start_ticks,
)
from holdfast.system.host.realtime import prepare_thread
from holdfast.system.libvirt.domains import LibvirtStatusFiles, status_directory
from holdfast.system.libvirt.virsh import VirshDomainControl
from holdfast.system.libvirt.volume_hooks import lvmlock_hook
from holdfast.system.lvm.lvmlockd_client import LvmlockdClient
from holdfast.system.watchdog import first_feeding
from holdfast.system.watchdog.device import DeviceWatchdog, NoWatchdog, Watchdog
from holdfast.system.watchdog.fed_until import FedUntil, KeptFedUntil, NotKept
from holdfast.system.watchdog.wdmd import WdmdWatchdog

log = logging.getLogger(__name__)

VOLUMES_FILE = "volumes.json"
"""Of the run directory: `backends.lvm.kept`."""
LEASES_OF_LVMLOCKD = "lvmlockd"
"""The workers that read them."""


def pooled_storage(config: Config, mounts: MountTable) -> StorageExecutor:
    return StorageExecutor(mounts, timeout_s=config.limits.storage_timeout_s, now=time.monotonic)


def system_ports(
    config: Config,
    *,
    readiness: Readiness,
    mounts: MountTable,
    storage: StorageExecutor,
    store: DescriptorStore,
    commands: Commands,
    predecessors: Predecessors,
    last_end: str = "",
) -> SystemPorts:
    """The ports of this host for a daemon of that configuration. The event loop that will serve has to run already.
    `last_end`: how this host's last boot ended, empty if that is not known.
    """
    host, boot = host_name(), boot_id()
    return SystemPorts(
        pid=os.getpid(),
        uid=os.geteuid(),
        identity=HostIdentity(host, boot, machine_of(host, *machine_ids(), is_hardware=is_proven_hardware())),
        clock=SystemClock(),
        processes=SystemProcesses(readiness),
        domains=VirshDomainControl(config.recovery.libvirt_uri, commands),
        status=LibvirtStatusFiles(status_directory(os.environ, os.geteuid()), readiness),
        files=SystemLockFiles(),
        lockspace_files=LockspaceFiles(),
        storage=storage,
        mounts=mounts,
        readiness=readiness,
        store=store,
        journal=SystemAppendFile(config.journal_path),
        journal_extent=SystemFixedRecord(config.extent_path),
        append_for_good=lambda name, line: append_line(f"{config.state_dir}/{name}", line),
        all_ended=eager_tasks.all_ended,
        gate=GATE,
        predecessors=predecessors,
        open_files=SystemOpenFiles(ignored=partial(lock_keepers, store.stores)),
        leases=lease_host_ports(
            (config.state_dir, config.run_dir),
            host_locks=config.host_locks,
            directories=(os.path.realpath(config.run_dir), os.path.realpath(config.state_dir)),
            last_end=last_end,
            fed_until=KeptFedUntil,
        ),
        volumes=partial(host_volumes, config, storage, commands),
    )


def host_volumes(config: Config, storage: StorageExecutor, commands: Commands) -> HostVolumes:
    """LVM, lvmlockd and the volumes of this host; what is remembered of them ends with the host's boot."""
    lvm, devices = LvmCommands(commands), SysfsMappedDevices()
    return HostVolumes(
        status=LibvirtStatusFiles(status_directory(os.environ, os.geteuid())),
        volumes=Volumes(devices, lvm),
        locks=HostLvLocks(
            client=LvmlockdClient,
            commands=lvm,
            devices=devices,
            storage=storage,
            leases=_lease_storage(LEASES_OF_LVMLOCKD),
        ),
        record=RecordFile(f"{config.run_dir}/{VOLUMES_FILE}"),
        clock=SystemClock(),
        lives=lambda process: start_ticks(process.pid) == process.start_ticks,
        other_hook=lvmlock_hook,
    )


def lease_host_ports(
    copy_dirs: Sequence[str],
    *,
    host_locks: str = "",
    directories: tuple[str, str] = ("", ""),
    last_end: str = "",
    fed_until: Callable[[int], FedUntil] = lambda _: NotKept(),
) -> LeaseHostPorts:
    """Opens and starts nothing before it is needed. `copy_dirs`: local directories that each keep this host's incarnations:
    one that survives a reboot first, one of this boot only. Joining needs `host_locks`, the directory of lockspace locks
    on this host, and `directories`, the (run_dir, state_dir) that identify a daemon. `fed_until`: see `LeaseHostPorts`.
    """
    return LeaseHostPorts(
        threads=SystemLeaseThreads(prepare_thread),
        start_heart=_start_heart,
        heart_clock=BlockingClock(),
        watchdog=_watchdog,
        storage=_lease_storage,
        writes_in_flight=lambda lockspace: DEVICE_WRITES.in_flight(pool_of_leases(lockspace)),
        incarnation_files=lambda lockspace: [StateFile(copy_path(place, lockspace)) for place in copy_dirs],
        copied_lockspaces=partial(_copied_lockspaces, copy_dirs),
        space_locks=SystemSpaceLocks(host_locks),
        directories=directories,
        identities=SystemDiskIdentities(),
        rng=SystemRandom(),
        token=partial(secrets.token_hex, NAME_TOKEN_DIGITS // 2),
        generation_min=lambda: int(time.time()),
        reread_s=ROUND_S,
        host_records=lambda lockspace, path: SystemHostRecordFiles(
            path, WorkerPool(f"host records of {lockspace}", 1)
        ),
        last_end=last_end,
        fed_until=fed_until,
        end_first_feeding=first_feeding.end,
    )


def _copied_lockspaces(copy_dirs: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for place in copy_dirs:
        try:
            names.update(map(lockspace_of_copy, os.listdir(place)))
        except FileNotFoundError:
            continue
        except OSError as e:
            log.error("%s can't be read: %s; this host's incarnations there count as lost", place, e.strerror)
    return names - {""}


def _start_heart(life: Coroutine[Any, Any, None], on_end: Callable[[object], None]) -> None:
    start_thread("heartbeat", _prepared(life), on_end)


async def _prepared(life: Coroutine[Any, Any, None]) -> None:
    prepare_thread()
    await life


def _lease_storage(lockspace: str) -> LeaseStorage:
    return SystemLeaseStorage(WorkerPool(pool_of_leases(lockspace)))


def users_lease_storage(workers: str, user: str) -> LeaseStorage:
    """Storage opened with the rights of that user of this host, with workers of that name; KeyError: there is none."""
    found = pwd.getpwnam(user)
    groups = tuple(os.getgrouplist(user, found.pw_gid))
    rights = Rights(uid=found.pw_uid, gid=found.pw_gid, groups=groups)
    return UsersLeaseStorage(WorkerPool(pool_of_leases(workers)), rights)


def _watchdog(choice: WatchdogSpec, fd: int | None) -> Watchdog:
    now = BlockingClock().now
    match choice.driver:
        case "device":
            return DeviceWatchdog(choice.path, choice.fire_timeout_s, now, fd=fd)
        case "wdmd":
            return WdmdWatchdog(choice.fire_timeout_s, now, path=choice.path, fd=fd)
        case _:
            return NoWatchdog()


def machine_of(node: str, *ids: str, is_hardware: bool) -> str:
    """One digest of the names and ids that identify this machine, as far as they can be read. Empty for a virtual machine:
    an HA manager may start another instance with the same ids while this one is paused or cut off (safety.md A7).
    """
    if not is_hardware:
        return ""
    return hashlib.sha256("\0".join((node, *ids)).encode("utf-8", "replace")).hexdigest()[:32]
