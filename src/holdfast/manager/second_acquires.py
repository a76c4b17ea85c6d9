"""An owner acquires what it holds: does it go on with its disk, or get the same disk a second time?

The calls are the same (ADR 0006), but a VM that has a disk twice must not pass, and if QEMU refuses the second one, libvirt
undoes it by a RELEASE that must not free the disk in use.  libvirt's own word on the VM helps:

* listed twice among its disks: refused;
* not running (it resumes), or an image below the top (a block job): it goes on;
* running: a guest's reboot, or an attach that QEMU is about to refuse.  Granted, and a release that follows
  at once is taken as the undoing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.backends.lock_names import indirect_name
from holdfast.errors import DiskTwice
from holdfast.manager.owners import Owner
from holdfast.model import Holder, Instant, Resource
from holdfast.system.clock import Clock
from holdfast.system.domain_status import DomainStatus

log = logging.getLogger(__name__)

UNDO_S = 10.0
"""How long after a second acquire a release may be its undoing: QEMU refuses a disk that it has open within
milliseconds.  A real release in that time (a migration seconds after a reboot) is answered once too often, and the
destination refuses that one; a suspend releases twice anyway."""


class SecondAcquires:
    """Remembers the doubtful ones.  ``domains`` None: nobody to ask, every one is granted."""

    def __init__(self, domains: DomainStatus | None, clock: Clock) -> None:
        self._domains = domains
        self._clock = clock
        self._undo_until: dict[tuple[int, Resource], Instant] = {}

    def question(self, owner: Owner, resource: Resource, holder: Callable[[], Holder]) -> None:
        """Raises `DiskTwice` for a disk that the VM would have twice; else it is granted."""
        if self._domains is None:
            return
        domain = self._domains.look(owner.name.name, owner.name.uuid, owner.pid)
        if domain is None:
            return
        if sum(resource.name in (d.path, indirect_name(d.path)) for d in domain.disks) > 1:
            raise DiskTwice(resource, holder())
        if domain.state != "running":
            return
        if not any(resource.name in (path, indirect_name(path)) for path in domain.backing):
            self._undo_until[owner.id, resource] = Instant(self._clock.now() + UNDO_S)

    def is_undone(self, owner: Owner, resource: Resource) -> bool:
        """Whether this release only undoes a second acquire: then the first one's hold stays."""
        if not self._undo_until:
            return False
        until = self._undo_until.pop((owner.id, resource), None)
        if until is None or self._clock.now() > until:
            return False
        log.warning(
            "%s keeps %s: the release so soon after a second acquire undoes only that", owner, resource
        )
        return True

    def forget(self, owner: Owner, resource: Resource) -> None:
        """The hold has ended."""
        if self._undo_until:
            self._undo_until.pop((owner.id, resource), None)
