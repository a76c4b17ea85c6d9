"""virtlockd's state file, as values and as the state of a re-exec of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.manager.journal_replay import replay
from holdfast.model import Mode, OwnerName, Resource
from holdfast.switch.as_reexec import Facts, as_reexec, users
from holdfast.switch.virtlockd_state import Client, Unusable, VirtlockdState, decode
from holdfast.system.files.ofd_lock import FileKey

PID = 51


def socket(fd: int) -> dict[str, Any]:
    return {"fd": fd, "errfd": -1, "pid": 0, "isClient": True, "unlinkUNIX": False}


def client(fd: int, **about: object) -> dict[str, Any]:
    private = {
        "restricted": True,
        "ownerPid": 52,
        "ownerId": 7,
        "ownerName": "vm-a",
        "ownerUUID": "00010203-0405-0607-0809-0a0b0c0d0e0f",
    }
    return {"id": 1, "auth": 0, "sock": socket(fd), "privateData": private | about}


def resource(name: str, path: str, fd: int, flags: int = 0, **more: object) -> dict[str, Any]:
    return {
        "name": name,
        "path": path,
        "fd": fd,
        "lockHeld": True,
        "flags": flags,
        "owners": [52],
    } | more


def file() -> dict[str, Any]:
    """As in docs/specs/virtlockd-rpc.md 4.2."""
    return {
        "daemon": {
            "servers": {
                "admin": {"services": [], "clients": []},
                "virtlockd": {"services": [{"socks": [socket(4)]}], "clients": [client(9)]},
            }
        },
        "defaultLockspace": {
            "resources": [
                resource("/d/a.img", "/d/a.img", 10),
                resource("/d/b.img", "/d/b.img", 12, lockHeld=False, owners=[]),
            ]
        },
        "lockspaces": [
            {
                "directory": "/d/ls",
                "resources": [resource("sh", "/d/ls/sh", 11, 3, owners=[52, 52, 99])],
            }
        ],
        "magic": str(PID),
    }


def decoded(table: dict[str, Any]) -> VirtlockdState:
    state = decode(json.dumps(table).encode(), PID)
    assert isinstance(state, VirtlockdState), state
    return state


def test_the_file_says_who_has_which_lock_by_which_descriptor() -> None:
    state = decoded(file())
    assert state.listeners == (4,)
    assert state.clients == (Client(9, True, 52, 7, "vm-a", "00010203-0405-0607-0809-0a0b0c0d0e0f"),)
    assert [(each.fd, each.resource, each.mode, each.create, each.owners) for each in state.locks] == [
        (10, Resource("", "/d/a.img"), Mode.EXCLUSIVE, False, (52,)),
        (11, Resource("/d/ls", "sh"), Mode.SHARED, True, (52, 99)),
    ]
    assert (state.spare, state.lockspaces) == ((12,), ("/d/ls",))


def broken(**changes: object) -> dict[str, Any]:
    return file() | changes


UNCLEAR = {
    "of another process": broken(magic="52"),
    "no resources": broken(defaultLockspace={}),
    "old servers": broken(daemon={"servers": [{"clients": []}]}),
    "one descriptor twice": broken(
        lockspaces=[{"directory": "/d", "resources": [resource("x", "/d/x", 10)]}]
    ),
    "a lock without descriptor": broken(defaultLockspace={"resources": [resource("/a", "/a", -1)]}),
    "a lock of nobody": broken(defaultLockspace={"resources": [resource("/a", "/a", 10, owners=[])]}),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_a_file_that_is_not_clear_is_left_to_virtlockd(what: str) -> None:
    assert isinstance(decode(json.dumps(UNCLEAR[what]).encode(), PID), Unusable)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"magic": "51"}', b"\xff"])
def test_a_file_that_is_cut_is_left_to_virtlockd(raw: bytes) -> None:
    assert isinstance(decode(raw, PID), Unusable)


def test_a_client_that_has_not_registered_is_one_without_an_owner() -> None:
    table = file()
    table["daemon"]["servers"]["virtlockd"]["clients"].append(client(13, ownerName=None, ownerPid=0))
    state = decoded(table)
    assert state.clients[1] == Client(13, True)
    assert as_reexec(state, facts()).connections[1].owner == 0


def facts() -> Facts:
    keys = {10: FileKey(8, 1), 11: FileKey(8, 2)}
    return Facts("boot", "alpha", "file", 1.5, lambda pid: {52: 4711}.get(pid, 0), keys)


def test_the_next_daemon_reads_it_as_an_earlier_daemons_state() -> None:
    state = as_reexec(decoded(file()), facts(), {fd: fd + 100 for fd in range(20)})
    saved = replay(state.journal)
    assert saved.is_whole, saved.damage
    owner = saved.owners[1]
    assert owner.name == OwnerName("vm-a", "00010203-0405-0607-0809-0a0b0c0d0e0f", 7)
    assert (owner.process.pid, owner.process.start_ticks) == (52, 4711)
    assert saved.owners[2].process.start_ticks == 0, "its process is not there: held for an unknown owner"
    first, second = saved.locks[1], saved.locks[2]
    assert first.claims == {1: {Resource("", "/d/a.img"): Mode.EXCLUSIVE}}
    assert (first.backend, first.keys, first.create) == ("file", (FileKey(8, 1),), False)
    assert second.claims == {
        1: {Resource("/d/ls", "sh"): Mode.SHARED},
        2: {Resource("/d/ls", "sh"): Mode.SHARED},
    }
    assert saved.lockspaces == {"/d/ls": False}
    assert state.locks == {1: 110, 2: 111}
    assert state.listeners == {"virtlockd": 104}
    assert [(each.fd, each.owner, each.restricted) for each in state.connections] == [(109, 1, True)]
    assert as_reexec(decoded(file()), facts(), listens=False).listeners == {}


def test_people_read_names_and_pids() -> None:
    assert users(decoded(file()), (52, 99)) == "vm-a, pid 99"
