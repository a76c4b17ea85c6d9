"""The storage of one lockspace hangs, and the daemon is reloaded, stopped, killed or started: everything else goes on.

A thread inside a request that hangs can't be ended, not even by SIGKILL, so the process of a daemon that is gone stays
behind as a zombie with that thread and all its descriptors.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd, bystander, exists, make_disk, refusal
from tests.support.fuse_storage import FaultyStorage
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until

from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT
from holdfast.system.block_io import thread_name
from holdfast.system.host.predecessor import DeadButStuck, ProcTasks

OTHER_SPACE = "vms"
REFUSED_EXIT = 75
IO_TIMEOUT_S = (1, 1)
"""Of the lockspace that hangs and of the healthy one. A lease fails 8 of them after its last renewal."""
PATIENT_S = (4, 2)
"""Where a daemon is killed and started meanwhile, which takes some seconds on a busy machine."""


@dataclass
class Scene:
    """Two hosts in a healthy lockspace; one of them is in another too, whose storage hangs on command."""

    storage: FaultyStorage
    alpha: Holdfastd
    beta: Holdfastd
    place: Path
    fail_s: int
    """So long after its last renewal a host's lease fails in the healthy lockspace."""
    disks: dict[str, Path] = field(default_factory=dict)
    vms: dict[str, int] = field(default_factory=dict)
    dead: list[subprocess.Popen[bytes]] = field(default_factory=list)
    generation: int = 0
    """Of alpha in the healthy lockspace."""

    def start(self, *vms: str, environ: dict[str, str] | None = None) -> Scene:
        self.alpha.start(environ=environ)
        self.beta.start()
        wait_until(lambda: self.alpha.count("joined as host_id") == 2, "both lockspaces to be joined")
        wait_until(lambda: self.beta.count("joined as host_id") == 1, "the other host to join")
        self.disks = {kind: make_disk(self.place / kind) for kind in ("faulty", "sound", "local")}
        self.vms = {kind: self.alpha.vm([self.disks[kind]], name=kind) for kind in vms}
        return self

    def hang(self, for_s: float = 2.5) -> None:
        """Until a request of alpha has been inside so long: by default longer than a reload or a stop would wait."""
        self.storage.stall()
        began: dict[int, float] = {}

        def hangs() -> bool:
            names = {thread_name.of_pool(f"{what} {SPACE}") for what in ("lockspace", "leases of")}
            now = time.monotonic()
            inside = {tid for tid, name, waits_in in threads(self.alpha.pid) if name in names and waits_in}
            for tid in list(began):
                if tid not in inside:
                    del began[tid]
            for tid in inside:
                began.setdefault(tid, now)
            return any(now - since >= for_s for since in began.values())

        wait_until(hangs, "a request to hang")

    def renewed(self) -> int:
        """The timestamp of alpha in the healthy lockspace."""
        found = DeltaLease.decode(
            (self.place / "sound-leases" / OTHER_SPACE).read_bytes()[: DEFAULT.sector_bytes]
        )
        assert isinstance(found, DeltaLease)
        self.generation = self.generation or found.generation
        assert found.generation == self.generation
        return found.timestamp

    def alpha_seen_by_beta(self) -> str:
        with self.beta.admin() as admin:
            (space,) = admin.lease_spaces()
            return next((host.state for host in space.hosts if host.host_id == 1), "")

    def state_of(self, lockspace: str) -> tuple[str, str]:
        with self.alpha.admin() as admin:
            (found,) = [each for each in admin.lease_spaces() if each.name == lockspace]
            return found.state, found.reason

    def healthy_one_goes_on(self) -> None:
        """Its lease is renewed beyond the bound of the last renewal, its VM lives, its disk is refused elsewhere."""
        before = self.renewed()
        seen = set()

        def renewed() -> bool:
            seen.add(self.alpha_seen_by_beta())
            return self.renewed() > before + self.fail_s

        wait_until(renewed, "renewals beyond the bound of the first")
        assert seen == {"LIVE"}
        assert exists(self.vms["sound"])
        assert "sound" in refusal(self.beta, self.disks["sound"])

    def kill_9(self) -> int:
        """The pid that stays behind."""
        self.alpha.send_signal(signal.SIGKILL)
        return self.ends_as_far_as_it_can()

    def ends_as_far_as_it_can(self) -> int:
        process = self.alpha.process
        assert process is not None
        self.dead.append(process)
        wait_until(lambda: self.is_stuck(process.pid), "the daemon to be dead but stuck")
        return process.pid

    @staticmethod
    def is_stuck(pid: int) -> bool:
        return isinstance(ProcTasks().fate(pid), DeadButStuck)


def threads(pid: int) -> list[tuple[int, str, bool]]:
    """(tid, name, whether it waits for an answer of the file system in user space) of each."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            name, waits_in = (task / "comm").read_text().strip(), (task / "wchan").read_text()
            found.append((int(task.name), name, waits_in == "request_wait_answer"))
    return found


@contextlib.contextmanager
def service_manager(path: Path) -> Iterator[list[str]]:
    """What a daemon says to a service manager that has no descriptor store."""
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))

        def listen() -> None:
            while message := ear.recv(65536):
                said.append(message.decode())

        reader = threading.Thread(target=listen)
        reader.start()
        try:
            yield said
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", str(path))
            reader.join()


@pytest.fixture(params=[IO_TIMEOUT_S], ids=[""])
def scene(request: pytest.FixtureRequest, make_daemon: Factory, place: Path) -> Iterator[Scene]:
    for kind in ("faulty", "sound", "local", "sound-leases"):
        (place / kind).mkdir()
    faulty_s, sound_s = request.param
    storage = FaultyStorage(place / "behind", place / "leases")
    make_lockspace(storage.source / SPACE)
    make_lockspace(place / "sound-leases" / OTHER_SPACE, name=OTHER_SPACE)

    def table(kind: str, directory: Path, host_id: int, io_timeout_s: int, more: str = "") -> str:
        return (
            f'[backend.{kind}]\ndriver = "paxos"\ndirectory = "{directory}"\nhost_id = {host_id}\n'
            f'cross_host = true\nwatchdog = "none"\nio_timeout_s = {io_timeout_s}\nfire_timeout_s = 6\n{more}'
        )

    def sound(host_id: int) -> str:
        return table("sound", place / "sound-leases", host_id, sound_s, f'lockspace = "{OTHER_SPACE}"\n')

    rule = '[[disk]]\nmatch = "*/sound/*"\nbackend = "sound"\n'
    alpha = make_daemon(
        table("faulty", storage.at, 1, faulty_s)
        + sound(1)
        + f'{rule}[[disk]]\nmatch = "*/faulty/*"\nbackend = "faulty"\n[[disk]]\nmatch = "*"\nbackend = "file"\n',
        name="alpha",
    )
    beta = make_daemon(sound(2) + rule, name="beta")
    found = Scene(storage, alpha, beta, place, 8 * sound_s)
    try:
        yield found
    finally:
        storage.close()  # first: a daemon whose requests hang can't end
        for each in (alpha, beta):
            each.stop_all()
        for process in found.dead:
            process.kill()
            process.wait()


# --- reload ---


def test_reload_while_a_request_hangs_is_refused_with_its_name_and_costs_the_healthy_lockspace_nothing(
    scene: Scene,
) -> None:
    """Not before exec, which would wait for the request, and the whole daemon with it. The lost lockspace is being joined
    again, which was the hole: nothing of it is late then, and its workers hang in open().
    """
    s = scene.start("sound")
    s.hang()
    s.alpha.says(f"lockspace {SPACE} is LOST")
    wait_until(lambda: s.state_of(SPACE)[0] in ("joining", "not joined"), "it to be joined again")
    s.hang()
    pid = s.alpha.pid
    s.alpha.send_signal(signal.SIGUSR1)
    s.alpha.says("reload refused: ")
    (line,) = [line for line in s.alpha.log_text().splitlines() if "reload refused" in line]
    assert f"{SPACE}: a request has not ended for" in line
    by_hand = s.alpha.cli("reload")
    assert by_hand.returncode == REFUSED_EXIT
    assert f"{SPACE}: a request has not ended for" in by_hand.stderr
    s.healthy_one_goes_on()
    assert s.alpha.pid == pid
    assert s.alpha.count("re-executing") == 0
    s.storage.healthy()
    wait_until(lambda: s.state_of(SPACE)[0] == "joined", "the lockspace to be joined again")
    s.alpha.reexec()
    assert _resumed(s, OTHER_SPACE)()


def test_reload_right_after_storage_has_begun_to_hang_is_refused_and_everything_goes_on(scene: Scene) -> None:
    """Only the closed gate finds that out, and it is open again."""
    s = scene.start("sound")
    s.hang(0.0)
    s.alpha.send_signal(signal.SIGUSR1)
    s.alpha.says("reload refused: ")
    s.alpha.says(f"{SPACE}: a request has not ended for")
    s.healthy_one_goes_on()
    assert refusal(s.alpha, make_disk(s.place / "sound", "another.img")) == ""
    assert s.alpha.count("re-executing") == 0


@pytest.mark.parametrize("scene", [PATIENT_S], ids=[""], indirect=True)
def test_reload_waits_for_requests_that_are_slow(scene: Scene) -> None:
    """A read of a whole area is eight requests of this file system, each that late."""
    s = scene.start("sound", "faulty")
    s.storage.delay(0.1)
    s.alpha.reexec()
    assert "reload refused" not in s.alpha.log_text()
    for kind, vm in s.vms.items():
        wait_until(lambda kind=kind, vm=vm: s.alpha.holders(s.disks[kind]) == [(kind, vm, True)], kind)  # type: ignore[misc]
    assert "LOST" not in s.alpha.log_text().replace("LOCK LOST", "")


def test_reload_works_while_locks_are_taken_all_the_time(scene: Scene) -> None:
    s = scene.start("sound")
    ending = threading.Event()
    rounds: list[int] = []
    failed: list[BaseException] = []

    def take_and_let_go(number: int) -> None:
        try:
            disk = make_disk(s.place / ("sound" if number % 2 else "faulty"), f"steady-{number}.img")
            with s.alpha.client() as client:
                client.register(pid=bystander(number), name=f"steady-{number}")
                while not ending.is_set():
                    client.acquire(str(disk))
                    client.release(str(disk))
                    rounds.append(number)
        except BaseException as e:
            failed.append(e)

    workers = [threading.Thread(target=take_and_let_go, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(3):
            before = len(rounds)
            wait_until(lambda before=before: len(rounds) > before + 20 or failed, "locks to be taken")  # type: ignore[misc]
            s.alpha.reexec()
    finally:
        ending.set()
        for worker in workers:
            worker.join()
    assert not failed
    assert "reload refused" not in s.alpha.log_text()


# --- stop ---


def test_stop_is_put_off_while_a_request_hangs_and_goes_on_when_it_has_ended(scene: Scene) -> None:
    s = scene
    with service_manager(s.place / "notify") as said:
        s.start("sound", environ={"NOTIFY_SOCKET": str(s.place / "notify"), "FDSTORE": "0"})
        s.hang()
        s.alpha.send_signal(signal.SIGTERM)
        s.alpha.says("CRITICAL the stop is put off: ")
        s.alpha.says(f"{SPACE}: a request has not ended for")
        s.alpha.says(f"VMs need lockspace {OTHER_SPACE}")
        s.healthy_one_goes_on()
        assert refusal(s.alpha, make_disk(s.place / "local", "another.img")) == ""
        s.alpha.says_once("the stop is put off")
        asked = [each for each in said if "EXTEND_TIMEOUT_USEC=30000000" in each]
        assert asked[0].startswith("STATUS=the stop is put off: ")
        assert len(asked) >= s.fail_s / 2, "it must ask again before the time is over"
        assert "STOPPING=1" not in said
        s.storage.healthy()
        assert s.alpha.process is not None
        assert s.alpha.process.wait(60) == 0
        assert "STOPPING=1" in said
    assert exists(s.vms["sound"])


@pytest.mark.parametrize("needs", ["sound", "local"])
def test_stop_goes_on_when_no_lock_on_healthy_storage_is_held_any_more(scene: Scene, needs: str) -> None:
    s = scene.start(needs)
    s.hang()
    s.alpha.send_signal(signal.SIGTERM)
    s.alpha.says("the stop is put off: ")
    s.alpha.end_vm(s.vms[needs])
    s.ends_as_far_as_it_can()


def test_doctor_and_who_answer_while_storage_hangs(scene: Scene) -> None:
    s = scene.start("faulty", "sound")
    s.hang()
    result = s.alpha.cli("doctor")
    assert "did not answer within 5 s" in result.stdout
    assert "sound" in s.alpha.cli("who", str(s.disks["sound"])).stdout


def test_second_sigterm_stops_at_once(scene: Scene) -> None:
    s = scene.start("sound")
    s.hang()
    s.alpha.send_signal(signal.SIGTERM)
    s.alpha.says("the stop is put off: ")
    s.alpha.send_signal(signal.SIGTERM)
    s.ends_as_far_as_it_can()


def test_stop_is_not_put_off_when_only_the_hanging_storage_is_in_use(scene: Scene) -> None:
    s = scene.start("faulty")
    s.hang()
    s.alpha.send_signal(signal.SIGTERM)
    s.ends_as_far_as_it_can()
    assert "put off" not in s.alpha.log_text()


# --- kill -9, and the next start ---


def _resumed(s: Scene, lockspace: str) -> Callable[[], bool]:
    return lambda: f"lockspace {lockspace}: gone on with" in s.alpha.log_text()


@pytest.mark.parametrize("scene", [PATIENT_S], ids=[""], indirect=True)
def test_next_daemon_goes_on_with_healthy_storage_at_once_and_with_the_hanging_one_after_it(
    scene: Scene,
) -> None:
    s = scene.start("sound", "faulty", "local")
    s.hang()
    old = s.kill_9()
    s.alpha.start()
    s.alpha.says(f"an earlier holdfastd (pid {old}) was killed")
    assert _resumed(s, OTHER_SPACE)()
    assert s.is_stuck(old), "it has ended: nothing was tested"
    assert s.state_of(SPACE) == (
        "not joined",
        f"an earlier daemon (pid {old}) still has a request inside its storage",
    )
    assert s.alpha.holders(s.disks["sound"]) == [("sound", s.vms["sound"], True)]
    assert "sound" in refusal(s.beta, s.disks["sound"])
    # The dead daemon has the file's lock, so no other process can, and nothing is done to its VM.
    assert s.alpha.holders(s.disks["local"]) == [("local", s.vms["local"], False)]
    s.alpha.says(f"an earlier daemon (pid {old}) was killed, is stuck in storage that hangs")
    s.storage.healthy()
    wait_until(_resumed(s, SPACE), "the lockspace to be gone on with")
    for kind in s.vms:
        wait_until(
            lambda kind=kind: s.alpha.holders(s.disks[kind]) == [(kind, s.vms[kind], True)],  # type: ignore[misc]
            f"the lock of {kind} to be held again",
        )
    s.healthy_one_goes_on()
    assert all(exists(vm) for vm in s.vms.values())
    for what in ("is LOST", "action on lock failure", "SIGKILL", "SIGTERM"):
        assert what not in s.alpha.log_text()


@pytest.mark.parametrize("scene", [(1, PATIENT_S[1])], ids=[""], indirect=True)
def test_daemons_that_are_killed_one_after_the_other_keep_nobody_out(scene: Scene) -> None:
    s = scene.start("sound")
    s.hang()
    pids = [s.kill_9()]
    s.alpha.start()
    assert _resumed(s, OTHER_SPACE)()
    # This one has nothing inside: it leaves the storage alone that the first one still is in.
    s.alpha.kill()
    s.alpha.start()
    s.alpha.reexec()
    assert s.is_stuck(pids[0])
    assert s.state_of(SPACE)[1] == f"an earlier daemon (pid {pids[0]}) still has a request inside its storage"
    before = s.renewed()
    wait_until(lambda: s.renewed() > before, "the healthy lockspace to be renewed")
    assert "sound" in refusal(s.beta, s.disks["sound"])
    # A second daemon beside the living one is still refused.
    first, living = s.alpha.process, s.alpha.pid
    assert s.alpha.spawn().wait(60) == 1
    s.alpha.process = first
    s.alpha.says(f"another holdfastd (pid {living}) uses {s.alpha.run_dir}")


def test_second_daemon_with_another_run_directory_and_the_same_state_is_refused(
    make_daemon: Factory, place: Path
) -> None:
    first = make_daemon(name="first").start()
    second = make_daemon(name="second")
    second.config.write_text(
        second.config.read_text().replace(f"{place}/second/state", f"{place}/first/state")
    )
    assert second.spawn().wait(60) == 1
    second.says(f"another holdfastd (pid {first.pid}) uses {place}/first/state")
    own = [first.run_dir / "holdfastd.pid", place / "first" / "state" / "holdfastd.lock"]
    inodes = [f":{file.stat().st_ino} " for file in own]
    ending = threading.Event()
    gaps: list[str] = []

    def watch() -> None:
        while not ending.is_set():
            locks = Path("/proc/locks").read_text()
            gaps.extend(inode for inode in inodes if inode not in locks)

    watcher = threading.Thread(target=watch)
    watcher.start()
    first.reexec()
    ending.set()
    watcher.join()
    assert not gaps, "another daemon could have come in between"
    assert second.spawn().wait(60) == 1
    first.kill()
    second.start()
