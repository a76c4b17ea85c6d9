"""`LvLocks` of a real host: lvmlockd's socket for modes, LVM's commands for activation, storage for who holds.

One client for each volume group, so that a group whose storage hangs keeps nobody else waiting. A client blocks, so it is
asked by a worker, one request at a time; what it raises is an answer here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from holdfast.backends.lvm.lvm_commands import LvmCommands
from holdfast.backends.lvm.ports import LeaseSeen, Problem, Refused, Volume
from holdfast.backends.lvm.volume_leases import lease_at, lease_device, lease_of
from holdfast.errors import LockError
from holdfast.model import Mode
from holdfast.protocol.types import IoFailed
from holdfast.system.block_io.lease_files import LeaseStorage
from holdfast.system.files.disk_identity import lvm_uuids_of
from holdfast.system.files.mapped_device import MappedDevices, NotMapped
from holdfast.system.files.storage_executor import Storage
from holdfast.system.lvm import lvmlockd_client as lvmlockd
from holdfast.system.lvm.lvmlockd_client import LvLock, LvmlockdClient, LvmlockdError

T = TypeVar("T")

PROBLEMS: tuple[tuple[type[LvmlockdError], Problem], ...] = (
    (lvmlockd.HeldElsewhere, Problem.HELD_ELSEWHERE),
    (lvmlockd.LockspaceInactive, Problem.LOCKSPACE_INACTIVE),
    (lvmlockd.StorageFailed, Problem.STORAGE_FAILED),
    (lvmlockd.NoAnswer, Problem.NO_ANSWER),
)
MODES = {lvmlockd.Mode.SHARED: Mode.SHARED, lvmlockd.Mode.EXCLUSIVE: Mode.EXCLUSIVE}
WIRE_MODES = {mode: word for word, mode in MODES.items()}


def lock_of(volume: Volume) -> LvLock:
    """What lvmlockd is asked about: for a thin volume that is its pool."""
    name, uuid = volume.lock_lv if volume.lock_lv[1] else (volume.lv_name, volume.id.lv_uuid)
    return LvLock(
        volume.vg_name, name, uuid, volume.vg_lock_args, volume.lv_lock_args, lock_type=volume.lock_type
    )


class HostLvLocks:
    """`client`: makes one; `leases`: opens the devices with leases."""

    def __init__(
        self,
        *,
        client: Callable[[], LvmlockdClient],
        commands: LvmCommands,
        devices: MappedDevices,
        storage: Storage,
        leases: LeaseStorage,
    ) -> None:
        self._make_client = client
        self._commands = commands
        self._devices = devices
        self._storage = storage
        self._leases = leases
        self._own_host_id = 0
        """lvmlockd's, asked for once."""
        self._clients: dict[str, LvmlockdClient] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def query(self, volume: Volume) -> Mode | Refused | None:
        """See `LvLocks`."""
        lock = lock_of(volume)
        answer = await self._ask(volume.vg_name, lambda client: client.query_lock_lv(lock))
        return answer if isinstance(answer, Refused) else MODES.get(answer)

    async def lock(self, volume: Volume, mode: Mode) -> Refused | None:
        """See `LvLocks`."""
        lock, word = lock_of(volume), WIRE_MODES[mode]
        return await self._ask(volume.vg_name, lambda client: client.lock_lv(lock, word))

    async def activate(self, volume: Volume, mode: Mode) -> Refused | None:
        """See `LvLocks`."""
        return await self._commands.activate(volume, mode)

    async def deactivate(self, volume: Volume) -> Refused | None:
        """See `LvLocks`."""
        held = await self.query(volume)
        return held if isinstance(held, Refused) else await self._commands.deactivate(volume)

    async def lease(self, volume: Volume) -> LeaseSeen | Refused:
        """See `LvLocks`. Refused while this host's id is not known: its own lock would be taken for another host's."""
        if isinstance(unreadable := lease_at(volume), Refused):
            return unreadable
        if not self._own_host_id:
            own = await self._commands.host_id()
            if isinstance(own, Refused):
                return Refused(own.problem, f"this host's id in LVM is not known: {own}")
            self._own_host_id = own
        path = lease_device(volume.vg_name)
        disk = await self._leases.open(path, writable=False)
        if isinstance(disk, IoFailed):
            return Refused(Problem.STORAGE_FAILED, f"{path}: {disk}")
        try:
            return await lease_of(disk, volume, self._own_host_id)
        finally:
            disk.close()

    def is_active(self, volume: Volume) -> bool:
        """See `LvLocks`."""
        mapped = self._devices.uuid(str(volume))
        return not isinstance(mapped, NotMapped) and lvm_uuids_of(mapped) == volume.id

    async def _ask(self, vg: str, request: Callable[[LvmlockdClient], T]) -> T | Refused:
        async with self._turns.setdefault(vg, asyncio.Lock()):
            client = self._clients.setdefault(vg, self._make_client())

            def asked() -> T | Refused:
                """Worker."""
                try:
                    return request(client)
                except LvmlockdError as e:
                    known = (problem for kind, problem in PROBLEMS if isinstance(e, kind))
                    return Refused(next(known, Problem.FAILED), str(e))

            try:
                return await self._storage.run(f"lvmlockd {vg}", lvmlockd.SOCKET_PATH, asked)
            except LockError as e:
                # A worker may still be at it, and a client is for one thread.
                del self._clients[vg]
                return Refused(Problem.NO_ANSWER, str(e))
