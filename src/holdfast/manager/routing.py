"""Which backend holds which disk: ordered rules, the first match wins, a default for the rest."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from holdfast.backends.base import Backend, LocksIdentities
from holdfast.backends.lease_backend import LeaseBackend
from holdfast.errors import LockspaceAbsent
from holdfast.model import HOST_LOCKSPACE, IDENTITY_LOCKSPACE, SANLOCK_PREFIX, Protection, Resource
from holdfast.network_disk import is_network_name, names_network_disk

Identify = Callable[[Resource], Awaitable[Resource | None]]


class Route(NamedTuple):
    """The backend of a resource, and the minimum protection: of every lock, and at a VM's start.

    A VM that ran before keeps its disks: a refusal would take them away from a guest that is only paused or migrated.
    """

    backend: Backend
    protection_min: Protection
    start_min: Protection = Protection.NONE
    by_identity: bool = False
    """Whether a disk whose lock reaches other hosts has one by its identity, too."""
    guard: LeaseBackend | None = None
    """Holds the lock by its identity in place of `backend`; without that lock the disk is refused."""

    @property
    def min_at_start(self) -> Protection:
        return max(self.protection_min, self.start_min)


class Rule:
    """One [[disk]] table: a glob over lockspace paths, or over disk paths in the direct lockspace.

    One that begins with a protocol is over names of disks that are reached over a network, so "*" is for paths alone.
    """

    __slots__ = ("_matches", "of_lockspace", "of_network", "pattern", "route")

    def __init__(self, pattern: str, route: Route, *, of_lockspace: bool) -> None:
        self.pattern = pattern
        self.of_lockspace = of_lockspace
        self.of_network = not of_lockspace and is_network_name(pattern)
        self.route = route
        self._matches = re.compile(fnmatch.translate(pattern)).match

    def matches(self, resource: Resource, path: str = "") -> bool:
        """Whether the rule is for a resource. `path`: of the disk that a name in a lockspace means, if that is known."""
        if self.of_lockspace:
            return bool(resource.lockspace) and self._matches(resource.lockspace) is not None
        path = path or ("" if resource.lockspace else resource.name)
        return bool(path) and is_network_name(path) is self.of_network and self._matches(path) is not None


class Routing:
    """All rules and the default."""

    def __init__(
        self,
        rules: Sequence[Rule],
        default: Route,
        backends: Mapping[str, Backend],
        *,
        host_files: Backend | None = None,
    ) -> None:
        """`host_files` holds what only this host has, whatever the rules say; None: there is no such thing."""
        self.rules = tuple(rules)
        self.default = default
        self.backends = dict(backends)
        self._host_files = None if host_files is None else Route(host_files, Protection.NONE)
        if host_files is not None:
            self.backends[host_files.name] = host_files
        self.leases = {name: b for name, b in self.backends.items() if isinstance(b, LeaseBackend)}
        """Those whose locks are leases, found once: a check of a runtime protocol takes 17 us."""
        self.identities: dict[str, Identify] = {
            **{name: b.identity for name, b in self.backends.items() if isinstance(b, LocksIdentities)},
            **{name: b.names.identity for name, b in self.leases.items()},
        }
        """Those that may have a second lock for a disk, by what it is."""
        for route in (default, *(rule.route for rule in self.rules)):
            if route.guard is not None:
                self.identities[route.backend.name] = route.guard.names.identity

    def route(self, resource: Resource, path: str = "") -> Route:
        """The route of a resource; `path` as in `Rule.matches`. A disk in a lockspace that has no lease keeps its lock file
        there, whatever backend the rule of its path names: all others use that file, also those that don't know the path
        (another host, a disk that is being attached). The rule's minimum protection applies all the same.
        """
        if resource.lockspace == HOST_LOCKSPACE and self._host_files is not None:
            return self._host_files
        if resource.lockspace.startswith(SANLOCK_PREFIX):
            return self._of_clients(resource)
        found = self._first(resource, path)
        if resource.lockspace == IDENTITY_LOCKSPACE:
            return found if found.guard is None else found._replace(backend=found.guard)
        able = found.backend.capabilities
        if not path or not resource.lockspace or able.fenced or able.by_path_alone:
            return found
        place = self._first(resource, "")
        return found if place.backend.capabilities.fenced else found._replace(backend=place.backend)

    def locks_network_disk(self, resource: Resource) -> bool:
        """Whether a rule names this disk that is reached over a network; only then it has a lock."""
        globs = (rule.pattern for rule in self.rules if not rule.of_lockspace)
        return not resource.lockspace and names_network_disk(globs, resource.name)

    def add_clients_leases(self, backend: Backend) -> None:
        """A lockspace has leases of sanlock's clients from now on: in the backend `sanlock:` and its name."""
        if not isinstance(backend, LeaseBackend):
            raise TypeError(f"backend '{backend.name}' has no leases")
        self.backends[backend.name] = self.leases[backend.name] = backend

    def remove_clients_leases(self, name: str) -> None:
        """This host has left that lockspace, and nobody here has a lease in it."""
        self.backends.pop(name, None)
        self.leases.pop(name, None)

    def _of_clients(self, resource: Resource) -> Route:
        """No rule, and no default: such a name means something in its own lockspace alone."""
        backend = self.leases.get(resource.lockspace)
        if backend is None:
            space = resource.lockspace.removeprefix(SANLOCK_PREFIX)
            raise LockspaceAbsent(name=resource.name, lockspace=space, reason="it has not joined")
        return Route(backend, Protection.NONE)

    def _first(self, resource: Resource, path: str) -> Route:
        for rule in self.rules:
            if rule.matches(resource, path):
                return rule.route
        return self.default
