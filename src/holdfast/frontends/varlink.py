"""The control frontend: Varlink on a socket, for the holdfast command and other tools.

It has introspection (org.varlink.service), so `varlinkctl introspect` shows the interface. Root and the configured group may
connect. A user other than root acquires only for its own processes, and only disks that it may open itself (ADR 0161).
No `from __future__ import annotations` here: asyncvarlink reads the types at run time.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from asyncvarlink import varlinkmethod
from asyncvarlink.error import GenericVarlinkErrorReply

from holdfast.control.api import (
    ERROR_NOT_PERMITTED,
    ERROR_REFUSED,
    HOOK_ARRIVES,
    HOOK_ENDS,
    HOOK_TAKES,
    CollectedLease,
    DiskWish,
    FencedHost,
    HolderInfo,
    MeasuresInfo,
    Starter,
    StatusInfo,
    VolumeInfo,
)
from holdfast.errors import HoldfastError, Refused, storage_failed
from holdfast.frontends.listener import Peer
from holdfast.frontends.varlink_clients import VarlinkFrontend
from holdfast.frontends.varlink_read import ReadInterface, SpacesShown
from holdfast.manager.all_or_none import LOCKS_PER_ACQUIRE_MAX, acquire_all
from holdfast.manager.hook_operations import HookOperations
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.maintenance import Maintenance
from holdfast.manager.owners import Owner
from holdfast.manager.queries import Inspection, shown
from holdfast.model import DIRECT_LOCKSPACE, AcquireRequest, Mode, OwnerName, ProcessId, Resource
from holdfast.system.files.ofd_lock import IoFailed, close_opened
from holdfast.system.files.storage_executor import Storage
from holdfast.system.host.peer import is_directory_of, parent_of, peer_groups, process_of
from holdfast.system.host.peer_rights import Rights, open_as

USER_LOCKS_SHARE = 4
"""Of the descriptors that this process may have, the part up to which users other than root get locks. Root's VMs need the
others: out of descriptors no VM starts.
"""


def refused(error: HoldfastError) -> GenericVarlinkErrorReply:
    return GenericVarlinkErrorReply(
        ERROR_REFUSED, {"kind": type(error).__name__, "message": shown(str(error))}
    )


class LeaseSpaces(SpacesShown, Protocol):
    """The lockspaces of leases; refusals are errors of the `LockError` tree."""

    def join(self, name: str) -> None: ...
    async def leave(self, name: str) -> None: ...
    def set_io_timeout(self, name: str, io_timeout_s: int) -> None: ...
    async def collect(self, dry_run: bool) -> list[CollectedLease]: ...
    async def break_lease(self, path: str, attest_off: str, operator: str) -> str: ...
    async def fence_host(self, host: str, operator: str, lockspace: str) -> list[FencedHost]: ...


class VolumeCalls(Protocol):
    """Orders about logical volumes of shared groups; refusals are errors of the `LockError` tree."""

    async def infos(self) -> list[VolumeInfo]: ...
    async def activate(self, path: str, vm: str) -> bool: ...
    async def deactivate(self, path: str) -> None: ...
    async def group_lost(self, vg: str) -> list[str]: ...


class ControlInterface(ReadInterface):
    """io.holdfast.Control, for one peer: what reports, and what changes something."""

    def __init__(
        self,
        manager: LockManager,
        inspection: Inspection,
        status: Callable[[], StatusInfo],
        measures: Callable[[], MeasuresInfo],
        peer: Peer,
        lease_spaces: LeaseSpaces,
        reload: Callable[[], Awaitable[list[str]]],
        rights: Rights | None,
        storage: Storage,
        user_locks: "UserLocks",
        hook_operations: HookOperations,
        maintenance: Maintenance,
        set_log_level: Callable[[str, str], str],
        volume_calls: VolumeCalls,
    ) -> None:
        super().__init__(manager.events, inspection, status, measures, lease_spaces)
        self._reload = reload
        self._volume_calls = volume_calls
        self._preparation = hook_operations
        self._maintenance = maintenance
        self._set_log_level = set_log_level
        self._user_locks = user_locks
        self._rights = rights
        """Of a peer that is neither root nor the daemon's own user: what it may lock is what it may open."""
        self._storage = storage
        self._lease_spaces = lease_spaces
        self._manager = manager
        self._inspection = inspection
        self._peer = peer

    @varlinkmethod
    def JoinLeaseSpace(self, *, name: str) -> None:  # noqa: N802
        """Begin to join a lockspace that was left; ListLeaseSpaces reports its progress."""
        self._must_be_root()
        try:
            self._lease_spaces.join(name)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod
    def SetIoTimeout(self, *, name: str, io_timeout_s: int) -> None:  # noqa: N802
        """Begin to change this host's io_timeout in a lockspace that it is in; ListLeaseSpaces reports its progress."""
        self._must_be_root()
        try:
            self._lease_spaces.set_io_timeout(name, io_timeout_s)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod
    async def LeaveLeaseSpace(self, *, name: str) -> None:  # noqa: N802
        """Leave a lockspace on which nobody depends; it stays left until it is joined, or the daemon starts."""
        self._must_be_root()
        try:
            await self._lease_spaces.leave(name)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="leases")
    async def CollectLeases(self, *, dry_run: bool) -> list[CollectedLease]:  # noqa: N802
        """Take out the leases that nobody holds, each proven by taking it."""
        self._must_be_root()
        try:
            return await self._lease_spaces.collect(dry_run)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="proof")
    async def BreakLease(self, *, path: str, attest_off: str, operator: str) -> str:  # noqa: N802
        """Free a disk's lease whose holders are proven to be off, or attested to be by a named operator; the proof."""
        self._must_be_root()
        try:
            return await self._lease_spaces.break_lease(path, attest_off, operator)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="hosts")
    async def FenceHost(self, *, host: str, operator: str, lockspace: str) -> list[FencedHost]:  # noqa: N802
        """Free the leases of a host that a named operator attests to be off, in one lockspace or (empty) in all.

        Nothing is done, and `refused` and `seconds_left` say why, before it has been silent for 3 of its io_timeouts.
        """
        self._must_be_root()
        try:
            return await self._lease_spaces.fence_host(host, operator, lockspace)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="done")
    async def SettleLock(self, *, lock: str, operator: str) -> str:  # noqa: N802
        """End the claims of an unknown owner on a lock (its number, path or disk) on a named operator's word.

        Refused for a lock with a known owner, and while a process of this host has the disk open.
        """
        self._must_be_root()
        try:
            return await self._manager.unknown.settle(lock, operator)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="volumes")
    async def ListVolumes(self) -> list[VolumeInfo]:  # noqa: N802
        """Logical volumes that holdfastd has to do with; none where driver lvm is not configured."""
        try:
            return await self._volume_calls.infos()
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="changed")
    async def ActivateVolume(self, *, path: str, vm: str) -> bool:  # noqa: N802
        """Have a volume active and exclusive, for the VM with that name or UUID, or for nobody yet (empty)."""
        self._must_be_root()
        try:
            return await self._volume_calls.activate(path, vm)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod
    async def DeactivateVolume(self, *, path: str) -> None:  # noqa: N802
        """Refused while anything of this host uses the volume, and in doubt."""
        self._must_be_root()
        try:
            await self._volume_calls.deactivate(path)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod(return_parameter="done")
    async def VolumeGroupLost(self, *, vg: str) -> list[str]:  # noqa: N802
        """The locks of a volume group can't be kept: the VMs that use it here are stopped, each as it is configured."""
        self._must_be_root()
        try:
            return await self._volume_calls.group_lost(vg)
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod
    async def Reload(self) -> None:  # noqa: N802
        """Become the program on disk with the configuration on disk. Refused with the reasons, a line each.

        There is no other reply: the connection ends when the new program begins, and GetStatus answers when it serves.
        """
        self._must_be_root()
        reasons = await self._reload()
        raise refused(Refused(reason="\n".join(shown(reason) for reason in reasons)))

    @varlinkmethod(return_parameter="holders")
    async def GetHolders(self, *, path: str) -> list[HolderInfo]:  # noqa: N802
        return await self._inspection.holders_of(path)

    @varlinkmethod
    def SetMaintenance(self, *, on: bool, by: str, reason: str) -> None:  # noqa: N802
        """From now on no VM begins on this host, or (`on` false) VMs may begin again; `by`: who says so."""
        self._must_be_root()
        try:
            if on:
                self._maintenance.begin(shown(by) or "nobody in particular", shown(reason))
            else:
                self._maintenance.end(shown(by) or "nobody in particular")
        except OSError as error:
            raise refused(Refused(reason=f"the order can't be recorded: {error.strerror}")) from None

    @varlinkmethod(return_parameter="before")
    def SetLogLevel(self, *, level: str, by: str) -> str:  # noqa: N802
        """Change the log level until the daemon ends or reloads; the level before."""
        self._must_be_root()
        try:
            return self._set_log_level(level, f"{shown(by)} (pid {self._peer.pid})")
        except ValueError as error:
            raise refused(Refused(reason=str(error))) from None

    @varlinkmethod
    async def Acquire(  # noqa: N802
        self,
        *,
        pid: int,
        name: str,
        disks: list[DiskWish],
        until_closed: bool | None = None,
        family: str | None = None,
    ) -> None:
        """All disks or none, for the process `pid`, until it ends or releases them.

        `until_closed`: it keeps them for its descendants; what it has not released when it ends stays until no process
        of this host has the disk open. `family`: the control group of these descendants; until nobody is in that either.
        """
        process = self._may_speak_for(pid)
        if family and process is not None and not is_directory_of(family, self._peer.uid):
            raise not_permitted(f"control group {family} is not one of your user's")
        for disk in disks:
            if not disk.path.startswith("/"):
                raise refused(Refused(reason=f"disks: path '{disk.path}' must be absolute"))
        disks = disks[: LOCKS_PER_ACQUIRE_MAX + 1]  # the manager refuses so many
        with contextlib.ExitStack() as pins:
            try:
                if self._manager.owners.with_pid(pid) is None:
                    self._maintenance.must_not_begin(OwnerName(name), pid)
                if self._rights is not None:
                    pins.enter_context(self._user_locks.asking(len(disks), len(self._manager.table)))
                wants = [await self._want(disk, pins) for disk in disks]
                owner = self._manager.register(
                    pid, OwnerName(name), until_closed=bool(until_closed), family=family or ""
                )
                try:
                    self._must_be(owner, process)
                    await acquire_all(self._manager, owner, wants)
                finally:
                    self._manager.unregister(owner, holder=False, why="")
            except HoldfastError as error:
                raise refused(error) from None

    async def _want(self, disk: DiskWish, pins: contextlib.ExitStack) -> AcquireRequest:
        """For a user other than root: only the very file that it may open, pinned by a descriptor in `pins`."""
        mode = Mode.SHARED if disk.shared else Mode.EXCLUSIVE
        resource = Resource(DIRECT_LOCKSPACE, disk.path)
        if self._rights is None:
            return AcquireRequest(resource, mode)
        rights = self._rights
        # On the user's own workers, whatever the storage: the target of the path may change at any moment.
        opened = await self._storage.run(
            f"user {rights.uid}",
            disk.path,
            lambda: open_as(rights, disk.path, write=not disk.shared),
            undo=close_opened,
        )
        if isinstance(opened, IoFailed):
            raise storage_failed(opened)
        pins.callback(close_opened, opened)
        return AcquireRequest(resource, mode, only=opened.key)

    @varlinkmethod
    async def Release(self, *, pid: int, paths: list[str]) -> None:  # noqa: N802
        process = self._may_speak_for(pid)
        owner = self._manager.owners.with_pid(pid)
        if owner is not None:
            self._must_be(owner, process)
        try:
            for path in paths:
                if owner is not None:
                    await self._manager.release(owner, Resource(DIRECT_LOCKSPACE, path))
        except HoldfastError as error:
            raise refused(error) from None

    @varlinkmethod
    async def Hook(  # noqa: N802
        self,
        *,
        operation: str,
        name: str,
        uuid: str,
        libvirtd: Starter,
        disks: list[DiskWish],
        own_files: list[str] | None = None,
        network_disks: list[DiskWish] | None = None,
        unasked_because: str | None = None,
    ) -> None:
        """libvirt's hook was called for a guest: hold its disks until its QEMU registers (`prepare`), expect that it arrives
        (`migrate`; refused where a disk of it can't be active on two hosts), or nothing of it runs (`release`). `libvirtd`
        must be the process that has called the hook. `own_files`: NVRAM and TPM state, which have a lock within this
        host, if they are local. `network_disks`: by their names, of which those have a lock that a rule names.
        `unasked_because`: why libvirt will not connect for an arriving guest; then one with such disks is refused.
        """
        self._must_be_root()
        caller = parent_of(self._peer.pid)
        if caller is None or caller != ProcessId(libvirtd.pid, libvirtd.start_ticks):
            raise not_permitted(
                f"process {libvirtd.pid} is not the one that called the hook, process {self._peer.pid}: "
                "a script that calls it must use exec"
            )
        if operation == HOOK_ARRIVES:
            try:
                self._preparation.must_connect(name, _wants(network_disks), unasked_because or "")
                await self._preparation.may_arrive(OwnerName(name, uuid), _wants(disks))
                self._preparation.arrives(uuid, caller)
            except HoldfastError as error:
                raise refused(error) from None
        elif operation == HOOK_ENDS:
            await self._preparation.ended(uuid, caller)
        elif operation == HOOK_TAKES:
            await self._prepare(OwnerName(name, uuid), caller, disks, own_files or [], _wants(network_disks))
        else:
            raise refused(
                Refused(reason=f"operation: '{operation}' is none of the hook's that need holdfastd")
            )

    async def _prepare(
        self,
        name: OwnerName,
        libvirtd: ProcessId,
        disks: list[DiskWish],
        own_files: list[str],
        over_network: list[AcquireRequest],
    ) -> None:
        for path in (*(disk.path for disk in disks), *own_files):
            if not path.startswith("/"):
                raise refused(Refused(reason=f"disks: path '{path}' must be absolute"))
        wants = _wants(disks)
        try:
            self._maintenance.must_not_begin(name)
            wants += self._preparation.own_files(own_files)
            wants += self._preparation.over_network(over_network)
            owner = await self._preparation.prepare(name, libvirtd, wants)
        except HoldfastError as error:
            raise refused(error) from None
        if parent_of(self._peer.pid) != libvirtd:
            # The hook has ended before its answer, so libvirt takes this start for failed.
            self._manager.prepared.abandon(owner)

    def _must_be_root(self) -> None:
        if self._rights is not None:
            raise not_permitted("only root may do that")

    def _may_speak_for(self, pid: int) -> ProcessId | None:
        """The process to which the peer is restricted; None for a peer that may speak for any."""
        if self._peer.uid == 0:
            return None
        process = process_of(pid, self._peer.uid)
        if process is None:
            raise not_permitted(f"process {pid} is not one of your user's")
        return process

    def _must_be(self, owner: Owner, process: ProcessId | None) -> None:
        """Check the owner's process: the requested one may have ended since, and another may have its pid."""
        if process is not None and owner.process_id != process:
            raise not_permitted(f"process {process.pid} has ended")


def not_permitted(message: str) -> GenericVarlinkErrorReply:
    return GenericVarlinkErrorReply(ERROR_NOT_PERMITTED, {"message": shown(message)})


class UserLocks:
    """Limits the number of locks up to which users other than root are granted further ones."""

    def __init__(self, locks_max: int) -> None:
        self._locks_max = locks_max
        self._asked = 0
        """For by requests under way; each has a descriptor already, which pins the disk."""

    @contextlib.contextmanager
    def asking(self, count: int, held: int) -> Iterator[None]:
        if held + self._asked + count > self._locks_max:
            raise Refused(
                reason=f"this host holds {held} locks; with more than {self._locks_max} only root gets further ones"
            )
        self._asked += count
        try:
            yield
        finally:
            self._asked -= count


def _wants(disks: list[DiskWish] | None) -> list[AcquireRequest]:
    return [
        AcquireRequest(Resource(DIRECT_LOCKSPACE, disk.path), Mode.SHARED if disk.shared else Mode.EXCLUSIVE)
        for disk in disks or []
    ]


class ControlFrontend(VarlinkFrontend):
    """All clients of the control socket."""

    def __init__(
        self,
        manager: LockManager,
        inspection: Inspection,
        status: Callable[[], StatusInfo],
        measures: Callable[[], MeasuresInfo],
        *,
        lease_spaces: LeaseSpaces,
        reload: Callable[[], Awaitable[list[str]]],
        uid: int,
        group: str,
        clients_max: int,
        idle_timeout_s: float,
        storage: Storage,
        user_locks_max: int,
        hook_operations: HookOperations,
        maintenance: Maintenance,
        set_log_level: Callable[[str, str], str],
        volume_calls: VolumeCalls,
    ) -> None:
        """`reload` returns only when it is refused, with the reasons. `set_log_level` gets the level and who changes it, and
        returns the level before; it raises ValueError.
        """
        self._maintenance = maintenance
        self._set_log_level = set_log_level
        super().__init__(
            "control", uid=uid, groups=[group], clients_max=clients_max, idle_timeout_s=idle_timeout_s
        )
        self._reload = reload
        self._volume_calls = volume_calls
        self._user_locks = UserLocks(user_locks_max)
        self._preparation = hook_operations
        self._storage = storage
        self._lease_spaces = lease_spaces
        self._manager = manager
        self._inspection = inspection
        self._status = status
        self._measures = measures

    def offers(self, peer: Peer, sock: socket.socket) -> ControlInterface:
        return ControlInterface(
            self._manager,
            self._inspection,
            self._status,
            self._measures,
            peer,
            self._lease_spaces,
            self._reload,
            self._rights_of(peer, sock),
            self._storage,
            self._user_locks,
            self._preparation,
            self._maintenance,
            self._set_log_level,
            self._volume_calls,
        )

    def _rights_of(self, peer: Peer, sock: socket.socket) -> Rights | None:
        if self.is_privileged(peer):
            return None
        return Rights(uid=peer.uid, gid=peer.gid, groups=peer_groups(sock.fileno()))
