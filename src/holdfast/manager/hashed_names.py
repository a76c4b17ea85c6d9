"""Finds the path of a disk that libvirt names by a hash, so that rules and leases are those of the disk.

With `file_lockspace_dir`, `lvm_lockspace_dir` or `scsi_lockspace_dir` in qemu-lockd.conf libvirt sends the SHA-256 of a
path, an LVM UUID or a SCSI id in place of the path (libvirt-integration.md 2.3).  A lease that is named after such a name is
another one than sanlock's, which is named after the path: two hosts would each have a lease of the disk, and both write.

So the path is read from the VM's status file, which libvirt writes before QEMU may run. A hash can't be inverted: a disk
that is being attached, or copied to, is in no file yet, and is refused where a rule or a lease depends on its path. A
`<lease>` element comes without the flag AUTOCREATE (libvirt-integration.md 2.4), and is not a disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from holdfast.backends.naming import indirect_name
from holdfast.errors import DiskNotKnown
from holdfast.manager.owners import Owner
from holdfast.manager.routing import Routing
from holdfast.model import DIRECT_LOCKSPACE, AcquireRequest, Holder, Protection, Resource, printable
from holdfast.system.clock import Clock
from holdfast.system.files.disk_identity import DiskIdentity, scsi_id_of
from holdfast.system.libvirt.domains import Domain, DomainStatus

STATUS_WAIT_S = 5.0
"""libvirt asks for a new VM's locks while it writes the status file: for so long it may be missing."""
WORDS_WAIT_S = 1.0
"""The same for a refusal that only wants to name the disk: libvirt waits for the answer."""
DISKS_TOLD_MAX = 8
STATUS_PAUSE_S = 0.05
DEVICES = "/dev"
"""libvirt asks LVM and udev about paths that begin so, whatever the XML says of their type."""

Identify = Callable[[str], Awaitable[DiskIdentity]]


async def nothing_known(_: str) -> DiskIdentity:
    """`Identify` for a host without block devices."""
    return DiskIdentity()


class HashedNames:
    """Resolves hashed names. `domains` None: no path is known. `claims` lists what an owner holds."""

    def __init__(
        self,
        routing: Routing,
        *,
        domains: DomainStatus | None,
        clock: Clock,
        identify: Identify,
        claims: Callable[[Owner], Iterable[Resource]],
    ) -> None:
        self._routing = routing
        self._domains = domains
        self._clock = clock
        self._identify = identify
        self._claims = claims
        routes = [rule.route for rule in routing.rules] + [routing.default]
        by_path = [rule.route for rule in routing.rules if not rule.of_lockspace]
        self._leases = any(route.backend.capabilities.fenced for route in routes)
        self._depends = self._leases or bool(by_path)
        self._must_know = self._leases or any(
            route.protection_min > Protection.NONE or route.backend.capabilities.by_path_alone
            for route in by_path
        )

    async def meant(self, owner: Owner, want: AcquireRequest) -> AcquireRequest:
        """The request with the disk's path: as its name, if the disk has a lease, else for the rules only.

        Raises `DiskNotKnown`.
        """
        if not self._depends or not want.resource.lockspace or not want.create:
            return want
        path = await self._path(owner, want.resource)
        if not path:
            if not self._must_know:
                return want
            raise DiskNotKnown(name=want.resource.name, lockspace=want.resource.lockspace, owner=str(owner))
        if self._routing.route(want.resource, path).backend.capabilities.fenced:
            return want._replace(
                resource=Resource(DIRECT_LOCKSPACE, path), create=False, hashed=want.resource
            )
        return want._replace(path=path)

    async def claimed(self, owner: Owner, resource: Resource) -> Resource:
        """The resource that a hashed name in a release means: one that the owner holds, or held by libvirt; else itself."""
        if not self._leases or not resource.lockspace:
            return resource
        held = [each.name for each in self._claims(owner) if not each.lockspace]
        path = await self._named(held, resource.name)
        if not path:
            domain = self._domain(owner)
            path = "" if domain is None else await self._named(_paths(domain), resource.name)
            if path and not self._routing.route(resource, path).backend.capabilities.fenced:
                path = ""
        return Resource(DIRECT_LOCKSPACE, path) if path else resource

    async def path(self, owner: Owner, resource: Resource) -> str:
        """The disk that a hashed name stands for, by the VM's status file as it is now; empty if none is known."""
        return await self._path(owner, resource, wait_s=0.0)

    async def words(self, owner: Owner, want: AcquireRequest, holders: Iterable[Holder]) -> str:
        """What a refusal says beside a name that stands for a disk: which disk, or which it may be; empty for a path.

        A holder's disk counts only if its hash is the name, for holders of other hosts are read from storage.
        """
        resource = want.resource
        if not resource.lockspace:
            return ""
        if not want.create:
            return f"; it is the <lease> {resource}, not a disk"
        path = want.path or await self._path(owner, resource, wait_s=WORDS_WAIT_S)
        for holder in holders:
            path = path or await self._named([holder.disk, *self._disks_of(holder)], resource.name)
        if path:
            return f"; it is the disk {printable(path)}, which libvirt asks for in {resource.lockspace}"
        domain = self._domain(owner)
        own = ", ".join(map(printable, _paths(domain)[:DISKS_TOLD_MAX])) if domain is not None else ""
        known = (
            f"none of the disks in its status file ({own})" if own else "no disk in a status file of libvirt"
        )
        return (
            f"; its disk is not known: it stands for a path in {resource.lockspace}, and {owner} has {known} that is called "
            "so (a disk that is attached or copied to is in no such file yet)"
        )

    def _disks_of(self, holder: Holder) -> list[str]:
        if self._domains is None or holder.pid is None:
            return []
        domain = self._domains.look(holder.name, holder.uuid, holder.pid)
        return [] if domain is None else _paths(domain)

    async def _path(self, owner: Owner, resource: Resource, *, wait_s: float = STATUS_WAIT_S) -> str:
        """The disk of a running VM that a name stands for; empty if there is none."""
        until = self._clock.now() + wait_s
        while (domain := self._domain(owner)) is None:
            if owner.gone or self._domains is None or self._clock.now() >= until:
                return ""
            await self._clock.sleep(STATUS_PAUSE_S)
        return await self._named(_paths(domain), resource.name)

    def _domain(self, owner: Owner) -> Domain | None:
        if self._domains is None:
            return None
        return self._domains.look(owner.name.name, owner.name.uuid, owner.pid)

    async def _named(self, paths: Iterable[str], name: str) -> str:
        """The first of some paths that has that name."""
        paths = list(paths)
        for path in paths:
            if indirect_name(path) == name:
                return path
        for path in paths:
            if name and path.startswith(DEVICES):
                disk = await self._identify(path)
                if name in (disk.lvm_uuid, scsi_id_of(disk.wwid)):
                    return path
        return ""


def _paths(domain: Domain) -> list[str]:
    return [disk.path for disk in domain.disks] + sorted(domain.backing)
