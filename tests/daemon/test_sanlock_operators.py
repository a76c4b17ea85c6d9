"""What an operator does about leases of sanlock's clients: `who`, `list`, `host fenced` (issue 15)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from tests.interop.sanlock_socket.scene import HoldfastDaemon, Host, Scene, holding, on_stage
from tests.support.polling import wait_until

from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import AcquireFlag, ResourceFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Resource

SILENT_S = 4.0
"""A word counts after 3 io_timeouts of 1 s, and the next read."""
DOE = ("--operator", "J. Doe")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with on_stage("holdfast") as stage:
        yield stage


def daemon_of(host: Host) -> HoldfastDaemon:
    assert isinstance(host.daemon, HoldfastDaemon)
    return host.daemon


def as_named(lease: Resource) -> str:
    (disk,) = lease.disks
    return f"{lease.lockspace.text}:{lease.name.text}:{disk.path}:{disk.offset_bytes}"


def silent_for_s(daemon: HoldfastDaemon) -> float:
    with daemon.admin() as admin:
        return next(host.unchanged_s for host in admin.lease_spaces()[0].hosts if host.host_id == 1)


def asked_by_two(scene: Scene, lease: Resource) -> int:
    return scene.two.process().client.result(r.Acquire(AcquireFlag.OWNER_NOWAIT, r.OWN, (lease,)))


def test_who_finds_the_holder_of_a_lease_by_any_of_its_names(scene: Scene) -> None:
    lease, free = scene.lease(), scene.lease()
    process = holding(scene.one, lease)
    one, two = daemon_of(scene.one), daemon_of(scene.two)
    (held,) = json.loads(one.cli("list", "--json").stdout)
    (vm,) = json.loads(one.cli("vm", "list", "--json").stdout)
    assert (held["pid"], vm["pid"]) == (process.pid, process.pid)
    for named in (held["resource"], "LS:R0", as_named(lease), f"{as_named(lease)}:1"):
        answer = json.loads(one.cli("who", named, "--json").stdout)
        assert (answer["verdict"], answer["holders"][0]["pid"]) == ("held", process.pid), named
    there = two.cli("who", as_named(lease))
    assert there.returncode == 0
    assert f"(pid {process.pid})" in there.stdout
    assert "(host_id 1)" in there.stdout
    assert two.cli("who", as_named(free)).returncode == 3
    # Without its place nobody knows; the file that it lies in is locked by nobody, and says nothing about it.
    without = two.cli("who", "LS:R0")
    assert (without.returncode, "LOCKSPACE:RESOURCE:PATH:OFFSET" in without.stdout) == (4, True)
    storage = two.cli("who", lease.disks[0].path)
    assert (storage.returncode, as_named(lease) in storage.stdout) == (4, True)
    other = as_named(free).replace(":R1:", ":R7:")
    assert "called LS:R1" in two.cli("who", other).stdout
    process.close()
    wait_until(lambda: two.cli("who", as_named(lease)).returncode == 3, "the lease to be free")


def test_leases_of_a_host_that_is_off_are_free_when_a_client_asks(scene: Scene) -> None:
    asked, alone, shared, kept = (scene.lease() for _ in range(4))
    one, two = daemon_of(scene.one), daemon_of(scene.two)
    process = holding(scene.one, asked, alone, shared._replace(flags=ResourceFlag.SHARED))
    theirs = holding(scene.two, kept)
    refused = two.cli("host", "fenced", "1", *DOE)
    assert refused.returncode == 75, "it renews"
    assert asked_by_two(scene, asked) == Result.ACQUIRE_IDLIVE
    one.kill()
    process.close()
    assert asked_by_two(scene, asked) == Result.ACQUIRE_IDLIVE
    fenced = two.cli("host", "fenced", "1", *DOE, "--wait", "--json")
    assert fenced.returncode == 0, fenced.stderr
    (host,) = json.loads(fenced.stdout)
    # Where that one lies was said here before.
    assert [(each["lease"], each["freed"]) for each in host["leases"]] == [(asked.name.text, True)]
    assert (host["host_id"], host["on_demand"]) == (1, True)
    assert asked_by_two(scene, asked) == Result.OK
    assert asked_by_two(scene, alone) == Result.OK
    assert asked_by_two(scene, shared) == Result.OK
    assert theirs.runs()
    assert asked_by_two(scene, kept) == Result.EEXIST
    lines = [
        json.loads(line) for line in (two.directory / "state" / "broken-leases.log").read_text().splitlines()
    ]
    assert [line["what"] for line in lines] == ["host ordered", *["broken"] * 3]
    assert [line["disk"] for line in lines[1:]] == [
        f"sanlock:LS/{each.name.text}" for each in (asked, alone, shared)
    ]
    assert {line["operator"] for line in lines} == {"J. Doe"}


@pytest.mark.long
def test_a_word_about_a_host_that_renews_again_counts_no_more() -> None:
    with on_stage("holdfast") as scene:
        _renews_again(scene)


def _renews_again(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    one, two = daemon_of(scene.one), daemon_of(scene.two)
    os.kill(one.pid, signal.SIGSTOP)
    try:
        assert two.cli("host", "fenced", "1", *DOE, "--wait").returncode == 0
        before = scene.record_of(scene.one).timestamp
    finally:
        os.kill(one.pid, signal.SIGCONT)
    wait_until(lambda: silent_for_s(two) < SILENT_S / 2, "two to see it renew again")
    assert scene.record_of(scene.one).timestamp != before
    os.kill(one.pid, signal.SIGSTOP)  # silent once more, and nobody has said anything about that
    try:
        wait_until(lambda: silent_for_s(two) > SILENT_S, "two to see it silent")
        assert asked_by_two(scene, lease) != Result.OK
    finally:
        os.kill(one.pid, signal.SIGCONT)
    assert "its record has changed since" in two.log_text()
    process.close()
