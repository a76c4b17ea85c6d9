"""Which leases each client of sanlock's protocol has, and which are just being acquired or released.

The lock table knows owners, which are processes. sanlock's clients are connections: one process may have several, and
what one of them has, another one can't get.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.frontends.sanlock.clients import Client
from holdfast.manager.owners import Owner
from holdfast.model import Mode
from holdfast.model import Resource as Key
from holdfast.wire.sanlock.flags import SIZE_FLAGS, ResourceFlag
from holdfast.wire.sanlock.structures import Resource


@dataclass(slots=True, eq=False)
class HeldResource:
    """A lease of one client. `lver`: the version on storage; meaningless for a shared one."""

    client: Client
    owner: Owner
    key: Key
    wire: Resource
    mode: Mode
    lver: int
    persistent: bool
    was_orphan: bool = False
    """It was held before the client asked for it."""
    by_request: int = 0
    """The number of an ACQUIRE or CONVERT that an earlier daemon had begun and not answered, if that has brought it."""
    has_value_block: bool = False
    value_block: bytes | None = None
    """What SET_LVB has set and no release or conversion has written yet."""
    read_block: bytes = b""
    """The value block as it was read when the lease was acquired."""
    size_flags: int = 0

    def described(self) -> Resource:
        """As INQUIRE and STATUS show it."""
        flags = self.size_flags & SIZE_FLAGS
        if self.mode is Mode.SHARED:
            flags |= ResourceFlag.SHARED
        if self.persistent:
            flags |= ResourceFlag.PERSISTENT
        return self.wire._replace(lver=self.lver, flags=flags)


@dataclass(slots=True)
class HeldResources:
    """All of them, in the order in which they were acquired."""

    adding: dict[Key, tuple[Client, Resource]] = field(default_factory=dict)
    releasing: dict[Key, HeldResource] = field(default_factory=dict)
    _of_client: dict[Client, dict[Key, HeldResource]] = field(default_factory=dict)
    _of_key: dict[Key, list[HeldResource]] = field(default_factory=dict)

    def add(self, held: HeldResource) -> None:
        self._of_client.setdefault(held.client, {})[held.key] = held
        self._of_key.setdefault(held.key, []).append(held)

    def remove(self, held: HeldResource) -> None:
        mine = self._of_client[held.client]
        del mine[held.key]
        if not mine:
            del self._of_client[held.client]
        same = self._of_key[held.key]
        same.remove(held)
        if not same:
            del self._of_key[held.key]

    def of(self, client: Client) -> list[HeldResource]:
        return list(self._of_client.get(client, {}).values())

    def one(self, client: Client, key: Key) -> HeldResource | None:
        return self._of_client.get(client, {}).get(key)

    def holders(self, key: Key) -> list[HeldResource]:
        return list(self._of_key.get(key, ()))

    def others(self, held: HeldResource) -> list[HeldResource]:
        """Who else has the same lease."""
        return [each for each in self._of_key.get(held.key, ()) if each is not held]

    def newest_first(self) -> list[HeldResource]:
        return [held for same in reversed(self._of_key.values()) for held in same]
