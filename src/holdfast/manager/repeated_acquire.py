"""Policy for an owner that acquires what it holds: does it continue with its disk, or attach the same disk twice?

The calls are the same (ADR 0006), but a VM with the same disk twice must be refused, and if QEMU refuses the second one,
libvirt undoes it by a RELEASE that must not free the disk in use. libvirt's status of the VM decides:

* listed twice among its disks: refused;
* not running (it resumes), or an image below the top (a block job): granted;
* running: a guest's reboot, or an attach that QEMU is about to refuse. Granted; a release follows that undoes only the
  attach, and is distinguished from real ones (a suspend, a migration) by what the VM does then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.backends.naming import indirect_name
from holdfast.errors import DiskTwice
from holdfast.manager.owners import Owner
from holdfast.model import Holder, Instant, Resource
from holdfast.system.clock import Clock
from holdfast.system.libvirt.domains import Domain, DomainStatus

log = logging.getLogger(__name__)

UNDO_S = 10.0
"""How long after a second acquire releases may be its undoing: QEMU refuses a disk that it has open within milliseconds,
and libvirt then releases once (an attach) or twice (a block copy)."""


class RepeatedAcquirePolicy:
    """Remembers doubtful second acquires. `domains` None: there is no status, and every one is granted."""

    def __init__(self, domains: DomainStatus | None, clock: Clock) -> None:
        self._domains = domains
        self._clock = clock
        self._acquired: dict[tuple[int, Resource], Instant] = {}

    def question(self, owner: Owner, resource: Resource, holder: Callable[[], Holder]) -> None:
        """Raises `DiskTwice` for a disk that the VM would have twice; else the acquire is granted."""
        if self._domains is None:
            return
        domain = self._domains.look(owner.name.name, owner.name.uuid, owner.pid)
        if domain is None:
            return
        if _is_twice(resource, domain):
            raise DiskTwice(resource, holder())
        if domain.state != "running":
            return
        if not any(_means(resource, path) for path in domain.backing):
            self._acquired[owner.id, resource] = self._clock.now()

    def is_undone(self, owner: Owner, resource: Resource) -> bool:
        """Whether this release only undoes a second acquire: then the first one's hold stays."""
        if self._domains is None or not self._acquired:
            return False
        since = self._acquired.get((owner.id, resource))
        if since is None:
            return False
        domain = self._domains.look(owner.name.name, owner.name.uuid, owner.pid)
        # A suspend releases twice, the second time after libvirt has noted it; every other release is a job's.
        if domain is not None and (domain.state != "running" or domain.async_job):
            return False
        twice = domain is not None and _may_be_twice(resource, domain)
        if not twice and self._clock.now() - since > UNDO_S:
            return False
        log.warning("%s keeps %s: the release after a second acquire undoes only that", owner, resource)
        return True

    def forget(self, owner: Owner, resource: Resource) -> None:
        """The hold has ended."""
        if self._acquired:
            self._acquired.pop((owner.id, resource), None)


def _is_twice(resource: Resource, domain: Domain) -> bool:
    return sum(_means(resource, disk.path) for disk in domain.disks) > 1


def _may_be_twice(resource: Resource, domain: Domain) -> bool:
    """The same with volumes of storage pools whose paths are not known: libvirt has asked for one of them by its path."""
    if _is_twice(resource, domain):
        return True
    volumes = [disk.name for disk in domain.unresolved]
    known = next((disk.path for disk in domain.disks if _means(resource, disk.path)), "")
    if known:
        return any(_last_part(name) == _last_part(known) for name in volumes)
    return len(set(volumes)) < len(volumes)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _means(resource: Resource, path: str) -> bool:
    """Whether a resource is named after the disk `path`: by the path, or by its hash in a lockspace."""
    return resource.name == path or resource.name == indirect_name(path)
