"""What registered clients of an earlier daemon have: by the lock table, and by which connection holds what (ADR 0204)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from holdfast.backends.paxos.area_store import area_of
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.frontends.sanlock.clients import Client
from holdfast.frontends.sanlock.held_resources import HeldResource, HeldResources
from holdfast.manager.client_leases import ClientLeases
from holdfast.manager.lock_registry import HostLock
from holdfast.manager.owners import NO_HOLD, Hold, Owner
from holdfast.model import SANLOCK_PREFIX, Mode
from holdfast.model import Resource as Key
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import SIZES, ResourceFlag
from holdfast.wire.sanlock.structures import Disk, Resource


class RestoredClients:
    """Enters them into `held`, `owners` and `killpaths`, which are those of the commands."""

    def __init__(
        self,
        leases: ClientLeases,
        held: HeldResources,
        owners: dict[Client, Owner],
        killpaths: dict[Client, r.Killpath],
    ) -> None:
        self._leases = leases
        self._held = held
        self._owners = owners
        self._killpaths = killpaths

    def restore(
        self, owner: Owner, connected: Sequence[Client], pending: Collection[int], keep: Callable[[], Client]
    ) -> None:
        """Enter what a process that was registered with an earlier daemon holds by the lock table: for those of its
        connections that are here still, else for a client without one, which `keep` makes. `pending`: the numbers of the
        requests that the earlier daemon had begun and not answered.
        """
        clients = {client.client_id: client for client in connected}
        if not clients:
            kept = keep()
            clients[kept.client_id] = kept
        for client in clients.values():
            self._enter_client(client, owner)
        before, owner.holds = owner.holds, {}
        order = {key: n for n, (_, key) in enumerate(before)}  # in which they were acquired
        leases = self._leases.of_owner(owner)
        for key, mode, lock in sorted(leases, key=lambda lease: order.get(lease[0], -1)):
            of_key = {client_id: hold for (client_id, each), hold in before.items() if each == key}
            if not of_key and len(clients) == 1:
                of_key = {next(iter(clients)): NO_HOLD}  # the journal of a release that wrote no holds
            # A release that was begun, and of which the claim's end was not written.
            of_key = {i: hold for i, hold in of_key.items() if hold.stays or hold.request in pending}
            if any(hold.stays for hold in of_key.values()):
                of_key = {i: hold for i, hold in of_key.items() if hold.stays}
            for client_id, hold in (of_key or {0: NO_HOLD}).items():
                client = clients.get(client_id) or self._without_connection(clients, owner, keep)
                # Numbers are unique while their memory is there: what is answered has none.
                number = hold.request if hold.request in pending else 0
                owner.holds[client.client_id, key] = hold._replace(request=number)
                if self._held.one(client, key) is None:
                    self._enter(client, owner, key, mode, lock, hold, pending)
        for place, hold in before.items():
            if place not in owner.holds and not hold.stays and hold.request in pending:
                owner.holds[place] = hold

    def _without_connection(
        self, clients: dict[int, Client], owner: Owner, keep: Callable[[], Client]
    ) -> Client:
        """Has what was a connection's of this process that is gone, until the process ends."""
        kept = next((client for client in clients.values() if client.kept), None)
        if kept is None:
            kept = keep()
            clients[kept.client_id] = kept
            self._enter_client(kept, owner)
        return kept

    def _enter_client(self, client: Client, owner: Owner) -> None:
        self._owners[client] = owner
        wishes = owner.wishes
        client.owner_id = owner.id
        client.restricted = client.restricted or wishes.restricted
        if wishes.killpath:
            self._killpaths[client] = r.Killpath(
                wishes.killpath_flags, r.OWN, wishes.killpath, wishes.arguments
            )

    def _enter(
        self,
        client: Client,
        owner: Owner,
        key: Key,
        mode: Mode,
        lock: HostLock,
        hold: Hold,
        pending: Collection[int],
    ) -> None:
        area = area_of(lock.path)
        if area is None:
            return
        lease: object = lock.held
        sizes = lease.geometry if isinstance(lease, PaxosHeld) else None
        self._held.add(
            HeldResource(
                client=client,
                owner=owner,
                key=key,
                wire=Resource.of(
                    key.lockspace.removeprefix(SANLOCK_PREFIX),
                    key.name,
                    Disk(area.path, area.offset_bytes),
                    flags=ResourceFlag.SHARED if mode is Mode.SHARED else 0,
                ),
                mode=mode,
                lver=lease.lver if isinstance(lease, PaxosHeld) else 0,
                persistent=key in owner.persistent,
                was_orphan=hold.was_orphan,
                by_request=hold.request if hold.stays and hold.request in pending else 0,
                has_value_block=hold.value_block,
                size_flags=SIZES[sizes.sector_bytes, sizes.align_bytes] if sizes is not None else 0,
            )
        )
