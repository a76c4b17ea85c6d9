"""A real holdfastd in sanlock's place: what its clients hold outlives every end of the daemon (issue 15)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.interop.sanlock.direct import blank_file, write_at
from tests.interop.sanlock_socket.client import SocketClient
from tests.interop.sanlock_socket.scene import HoldfastDaemon, Host, Scene, head, holding, on_stage
from tests.support.daemon import BIN, listens
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import (
    AcquireFlag,
    KillpathFlag,
    ReleaseFlag,
    RemoveFlag,
    ResourceFlag,
    RestrictFlag,
)
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Lockspace, Resource


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with on_stage("holdfast") as stage:
        yield stage


@pytest.fixture(autouse=True)
def _close(scene: Scene) -> Iterator[None]:
    yield
    scene.close_clients()


def daemon_of(host: Host) -> HoldfastDaemon:
    assert isinstance(host.daemon, HoldfastDaemon)
    return host.daemon


def end_and_start(host: Host, way: str) -> None:
    daemon = daemon_of(host)
    if way == "reexec":
        daemon.reexec()
    else:
        daemon.kill(signal.SIGKILL if way == "kill" else signal.SIGTERM)
        daemon.start()


def owners(scene: Scene, lease: Resource) -> list[int]:
    """By storage, as the other host reads it."""
    found = scene.two.client().asked(r.ReadResourceOwners(lease), replies.OwnersRead)
    return [each.host_id for each in found.hosts]


@pytest.mark.parametrize("way", ["kill", "stop", "reexec"])
def test_a_clients_lease_outlives_the_daemon_and_ends_with_its_process(scene: Scene, way: str) -> None:
    lease, shared = scene.lease(), scene.lease()
    process = holding(scene.one, lease, shared._replace(flags=ResourceFlag.SHARED))
    end_and_start(scene.one, way)
    assert scene.one.is_in(scene.of(scene.one)), "the lockspace that a client had added"
    assert owners(scene, lease) == [1]
    assert owners(scene, shared) == [1]
    other = scene.one.process()
    assert other.client.result(r.Acquire(0, r.OWN, (lease,))) == Result.EEXIST
    theirs = scene.two.process()
    asked = r.Acquire(AcquireFlag.OWNER_NOWAIT, r.OWN, (lease,))
    assert theirs.client.result(asked) == Result.ACQUIRE_IDLIVE
    # Its owner is no client of this daemon any more, so nobody may take the lockspace from it.
    if way != "reexec":
        assert scene.one.result(r.RemLockspace(RemoveFlag.UNUSED, scene.of(scene.one))) == Result.EBUSY
    assert process.runs()
    process.close()
    wait_until(lambda: owners(scene, lease) == [] == owners(scene, shared), "its leases to be free")
    assert theirs.client.result(asked) == Result.OK


@pytest.mark.parametrize("way", ["kill", "reexec"])
def test_commands_by_pid_find_a_process_that_an_earlier_daemon_had_registered(scene: Scene, way: str) -> None:
    """As libvirtd sends them for a VM: it suspends, resumes, unplugs."""
    lease = scene.lease()
    process = holding(scene.one, lease)
    end_and_start(scene.one, way)
    by_pid, libvirtd = r.Target(process.pid), scene.one.client()
    state = libvirtd.asked(r.Inquire(0, by_pid), replies.ClientState)
    assert state.result == Result.OK
    assert lease.name.text in str(state)
    assert libvirtd.result(r.Release(0, by_pid, (head(lease),))) == Result.OK
    assert owners(scene, lease) == []
    end_and_start(scene.one, way)
    # A stopped daemon leaves a lockspace in which nobody has a lease: the next one claims its host id.
    wait_until(lambda: scene.one.is_in(scene.of(scene.one)), "the lockspace to be joined again")
    libvirtd = scene.one.client()
    assert libvirtd.result(r.Acquire(0, by_pid, (lease,))) == Result.OK, (
        "it holds nothing, and is known all the same"
    )
    assert owners(scene, lease) == [1]
    assert libvirtd.result(r.Acquire(0, by_pid, (lease,))) == Result.EEXIST
    process.close()
    wait_until(lambda: owners(scene, lease) == [], "its lease to be free")
    wait_until(lambda: libvirtd.result(r.Inquire(0, by_pid)) == Result.ESRCH, "it to be forgotten")


def test_an_orphan_outlives_the_daemon_until_it_is_asked_for(scene: Scene) -> None:
    lease = scene.lease()
    wanted = lease._replace(flags=ResourceFlag.PERSISTENT)
    process = holding(scene.one, wanted)
    daemon_of(scene.one).kill()
    process.close()  # nobody has noticed
    daemon_of(scene.one).start()
    assert owners(scene, lease) == [1]
    assert scene.one.process().client.result(r.Acquire(0, r.OWN, (wanted,))) == Result.EUCLEAN
    user = holding(scene.one, wanted, flags=AcquireFlag.ORPHAN_ONLY)
    assert user.client.result(r.Release(0, r.OWN, (head(lease),))) == Result.OK
    assert owners(scene, lease) == []


def test_a_lockspace_that_was_removed_is_not_joined_by_the_next_daemon(scene: Scene) -> None:
    host = scene.another_host("removes", host_id=1)
    lockspace = scene.new_lockspace("LEFT", by=host)
    host.join(lockspace)
    kept = scene.new_lockspace("KEPT", by=host)
    host.join(kept)
    assert host.result(r.RemLockspace(0, lockspace)) == Result.OK
    end_and_start(host, "kill")
    assert host.result(r.InqLockspace(0, lockspace)) == Result.ENOENT
    wait_until(lambda: host.is_in(kept), "the other one to be joined again")


def test_a_reload_that_drops_the_socket_is_refused_while_a_client_holds_a_lease(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    daemon = daemon_of(scene.one)
    before = daemon.config.read_text()
    try:
        daemon.config.write_text(before.replace("[sanlock]\nsocket", "[sanlock]\n# socket"))
        daemon.send_signal(signal.SIGUSR1)
        daemon.says("sanlock.socket: ")
    finally:
        daemon.config.write_text(before)
    assert process.client.result(r.Release(ReleaseFlag.ALL, r.OWN, ())) == Result.OK


def test_what_clients_have_written_is_opened_with_their_users_rights(scene: Scene) -> None:
    """The daemon is root: with its rights, every client of the group could have any file of the host written over."""
    scene.place.chmod(0o755)
    directory = scene.place / "of-a-user"
    table = f'[sanlock]\nsocket = "{directory}/sanlock.sock"\nwatchdog = "none"\ngroup = "nogroup"\nuser = "nobody"'
    daemon = HoldfastDaemon(directory, table)
    daemon.start()
    try:
        assert os.stat(daemon.socket_path).st_mode & 0o777 == 0o660
        for mode, expected in ((0o600, Result.ENODEV), (0o666, Result.OK)):
            path = blank_file(directory / f"area-{mode:o}", 8 << 20)
            path.chmod(mode)
            client = SocketClient(daemon.socket_path)
            lockspace = Lockspace.of("L", 1, str(path))
            assert client.result(r.WriteLockspace(0, 0, 1, lockspace)) == expected
            client.close()
            assert any(path.read_bytes()) is (expected == Result.OK)
    finally:
        daemon.stop_all()


def test_how_a_client_wants_to_be_stopped_is_known_to_the_next_daemon(scene: Scene) -> None:
    host = scene.another_host("stops", "-g", str(scene.grace_s))
    lockspace = scene.new_lockspace("STOPS", by=host)
    host.join(lockspace)
    leases = [scene.lease(lockspace="STOPS", by=host) for _ in range(2)]
    with_path, restricted = (holding(host, each) for each in leases)
    ran = scene.place / "killpath-ran"
    killpath = r.Killpath(KillpathFlag.PID, r.OWN, "/usr/bin/mkdir", f"-p {ran}/a\\ b")
    assert with_path.client.result(killpath) == Result.OK
    assert restricted.client.result(r.Restrict(RestrictFlag.SIGTERM)) == Result.OK
    end_and_start(host, "kill")
    # Its own record is another's: the lockspace is lost at the next renewal.
    write_at(scene.place / "STOPS", DEFAULT.delta_offset_bytes(1), bytes(DEFAULT.sector_bytes))
    wait_until(lambda: (ran / "a b").is_dir() or with_path.terms(), "the killpath or a signal")
    assert (ran / "a b").is_dir()
    assert restricted.wait_killed(), "SIGKILL in SIGTERM's place, at once"
    assert not with_path.terms()
    assert with_path.runs()


def test_it_takes_the_options_of_sanlocks_daemon(scene: Scene) -> None:
    directory = scene.place / "as-sanlock"
    directory.mkdir()
    command = [
        str(BIN / "holdfast-sanlockd"),
        "daemon",
        "-D",
        "-w",
        "0",
        "-U",
        "root",
        "-G",
        "root",
        "-o",
        "1",
    ]
    environment = {**os.environ, "SANLOCK_RUN_DIR": str(directory)}

    def start() -> subprocess.Popen[bytes]:
        with (directory / "log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stderr=log)

    def answers() -> bool:
        return listens(str(directory / "sanlock.sock"))

    process = start()
    try:
        wait_until(answers, "it to listen")
        client = SocketClient(directory / "sanlock.sock")
        assert client.result(r.Version()) == Result.OK
        client.close()
        second = start()
        assert second.wait(30) == 1, "another instance runs"
        process.kill()
        process.wait()
        process = start()
        wait_until(answers, "the next one to listen")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "goes on" in (directory / "log").read_text(), "it to be itself after a reload")
    finally:
        process.kill()
        process.wait()
