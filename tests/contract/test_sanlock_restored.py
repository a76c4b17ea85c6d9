"""Clients of sanlock's protocol whose connections outlive a killed daemon, on a real lock manager and real leases."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.sanlock_clients import PERSISTENT, SHARED, Site, Storage, comes, played

from holdfast.frontends.sanlock.clients import Client
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures
from holdfast.wire.sanlock.flags import AcquireFlag, ReleaseFlag
from holdfast.wire.sanlock.result import Result

REQUEST = 7
"""The number of the one that is under way at the kill."""


class Killed(BaseException):
    """In a coroutine that ends with its daemon."""


async def killed_within_acquire(
    site: Site, client: Client, *resources: structures.Resource, flags: int = 0
) -> tuple[Site, Client]:
    """After the first lease and before the next; returns the next daemon, and the connection there."""
    client.request = REQUEST
    acquire_one, calls = site.commands._acquire_one, iter((False, True))

    async def once(*arguments: object) -> object:
        if next(calls):
            raise Killed
        return await acquire_one(*arguments)  # type: ignore[arg-type]

    site.commands._acquire_one = once  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        await site.acquire(client, *resources, flags=flags)
    after, _ = await site.restarted(connected=[client], pending=[REQUEST])
    return after, after.same(client)


def test_repeated_acquire_gets_what_it_had_got(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "a", "b")
        site = Site(storage)
        client = site.client(10)
        wanted = storage.resource("a"), storage.resource("b")
        site, client = await killed_within_acquire(site, client, *wanted)
        assert await site.acquire(client, *wanted) == Result.OK
        assert storage.leader("a").lver == 1, "it was acquired once"
        assert set(site.claims("a")) == set(site.claims("b")) != set()
        client.request = REQUEST + 1
        assert await site.acquire(client, wanted[0]) == Result.EEXIST

    played(scene)


def test_repeated_acquire_gives_back_its_own_leases_only(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "had", "wanted")
        site = Site(storage)
        client = site.client(10)
        assert await site.acquire(client, storage.resource("had")) == Result.OK
        both = storage.resource("wanted"), storage.resource("had")
        site, client = await killed_within_acquire(site, client, *both)
        assert await site.acquire(client, *both) == Result.EEXIST
        assert site.claims("had"), "it is no success of this request, and stays"
        assert not site.claims("wanted")

    played(scene)


def test_repeated_acquire_gives_an_orphan_back_as_one(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "left", "other")
        site = Site(storage)
        before = site.client(9)
        assert await site.acquire(before, storage.resource("left", PERSISTENT)) == Result.OK
        await site.close(before)
        client = site.client(10)
        both = storage.resource("left", PERSISTENT), storage.resource("other", PERSISTENT)
        flags = AcquireFlag.ORPHAN_ONLY
        site, client = await killed_within_acquire(site, client, *both, flags=flags)
        assert await site.acquire(client, *both, flags=flags) == Result.ENOENT, "the other one is no orphan"
        assert await site.acquire(client, both[0]) == Result.EUCLEAN, "it is one again"

    played(scene)


def test_each_connection_has_its_own_leases(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "a", "b", "shared")
        site = Site(storage)
        clients = site.client(10), site.client(10)
        shared = storage.resource("shared", SHARED)
        for client, name in zip(clients, "ab", strict=True):
            assert await site.acquire(client, storage.resource(name), shared) == Result.OK
        states = [await site.state(client) for client in clients]
        site, _ = await site.restarted(connected=clients)
        clients = site.same(clients[0]), site.same(clients[1])
        assert [await site.state(client) for client in clients] == states
        await site.close(clients[1])
        await comes(lambda: not site.claims("b"))
        assert site.claims("a")
        assert site.claims("shared")
        assert await site.release(clients[0], flags=ReleaseFlag.ALL) == Result.OK
        assert not site.claims("shared")

    played(scene)


def test_connection_that_was_lost_leaves_its_leases_to_the_process(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "a", "b")
        site = Site(storage)
        clients = site.client(10), site.client(10)
        for client, name in zip(clients, "ab", strict=True):
            assert await site.acquire(client, storage.resource(name)) == Result.OK
        site, _ = await site.restarted(connected=clients[:1])
        first = site.same(clients[0])
        assert "b" not in (await site.state(first)).split(":")
        await site.close(first)
        await comes(lambda: not site.claims("a"))
        assert site.claims("b"), "nobody has said that it is over"
        site.world.processes.end(10)
        await comes(lambda: not site.claims("b"))

    played(scene)


def test_descendant_with_the_connection_keeps_the_leases(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "a")
        site = Site(storage)
        client = site.client(10)
        assert await site.acquire(client, storage.resource("a")) == Result.OK
        site.world.processes.end(10)
        assert site.claims("a")
        site, _ = await site.restarted(connected=[client])
        assert site.claims("a")
        await site.close(site.same(client))
        assert not site.claims("a")

    played(scene)


def test_value_block_is_read_and_written_on(tmp_path: Path) -> None:
    async def scene() -> None:
        storage = Storage(tmp_path, "a")
        site = Site(storage)
        client, wanted = site.client(10), storage.resource("a")
        assert await site.acquire(client, wanted, flags=AcquireFlag.LVB) == Result.OK
        assert (await site.commands.set_lvb(r.SetLvb(wanted, b"one"))).result == Result.OK
        assert await site.release(client, wanted) == Result.OK
        assert await site.acquire(client, wanted, flags=AcquireFlag.LVB) == Result.OK
        site, _ = await site.restarted(connected=[client])
        assert (await site.commands.get_lvb(r.GetLvb(3, wanted))).value_block == b"one"
        assert (await site.commands.set_lvb(r.SetLvb(wanted, b"two"))).result == Result.OK
        assert await site.release(site.same(client), wanted) == Result.OK
        assert await site.acquire(site.same(client), wanted, flags=AcquireFlag.LVB) == Result.OK
        assert (await site.commands.get_lvb(r.GetLvb(3, wanted))).value_block == b"two"

    played(scene)
