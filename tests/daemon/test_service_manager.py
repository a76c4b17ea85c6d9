"""Under systemd, played by a double: sockets come from outside, and locks outlive the daemon in the descriptor store."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from tests.support.daemon import bystander, exists, locked, make_disk
from tests.support.polling import wait_until
from tests.support.service_manager import ServiceManager

from holdfast.system.files.proc_locks import locks_on
from holdfast.testing.virtlockd_client import AUTOCREATE, SHARED


class Watch:
    """Looks without pause whether the kernel lock of a file is there, by two ways."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ending = threading.Event()
        self.looks = 0
        self.gaps: list[str] = []
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ending.is_set():
            self.looks += 1
            if not locked(self._path):
                self.gaps.append(f"look {self.looks}: F_OFD_GETLK says free")
            # The kernel hands the list out in pieces: one that grows or shrinks meanwhile may miss an entry once.
            if not locks_on(str(self._path)) and not locks_on(str(self._path)):
                self.gaps.append(f"look {self.looks}: not in /proc/locks")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


def test_activated_daemon_serves_the_sockets_it_was_given_and_leaves_them_at_its_end(
    service: ServiceManager, place: Path
) -> None:
    daemon = service.daemon
    with daemon.client() as client:
        client.register(pid=bystander())
        client.acquire(str(make_disk(place)))
        client.release(str(place / "disk.img"))
    with daemon.admin() as admin:
        assert admin.status().descriptor_store
    assert daemon.kill(signal.SIGTERM) == 0
    wait_until(lambda: service.heard("STOPPING=1") == 1, "the message of its end to be read")
    assert os.path.exists(daemon.socket)
    assert os.path.exists(daemon.control)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_kernel_lock_is_never_free_while_the_daemon_is_killed_and_started_again(
    service: ServiceManager, place: Path, end: signal.Signals
) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    wait_until(lambda: [n.split("-")[0] for n in service.names] == ["conn", "lock"], "both to be stored")
    with Watch(disk) as watch:
        for _ in range(3):
            daemon.kill(end)
            service.start()
        assert watch.looks
    assert not watch.gaps
    assert daemon.holders(disk) == [("web1", vm, True)]
    daemon.end_vm(vm)
    wait_until(lambda: not locked(disk), "the lock to go with its owner")
    wait_until(lambda: service.names == [], "the store to be empty")


def test_kernel_lock_is_never_free_over_a_reexec_and_a_crash_after_it(
    service: ServiceManager, place: Path
) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    with Watch(disk) as watch:
        daemon.reexec()
        daemon.kill()
        service.start()
    assert not watch.gaps
    assert daemon.holders(disk) == [("web1", vm, True)]
    assert service.heard("RELOADING=1") == 1


def test_lock_released_while_all_is_well_does_not_come_back(service: ServiceManager, place: Path) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    with daemon.client() as client:
        client.register(pid=bystander(), name="web1")
        client.acquire(str(disk))
        client.release(str(disk))
    wait_until(lambda: service.names == [], "the store to be empty")
    daemon.kill()
    service.start()
    assert not locked(disk)


def test_owner_that_died_while_the_daemon_was_down_loses_its_stored_lock(
    service: ServiceManager, place: Path
) -> None:
    daemon = service.daemon
    disk, space = make_disk(place), place / "space"
    space.mkdir()
    dead = daemon.vm([disk], name="dead")
    also_dead = daemon.vm(["n"], name="also-dead", lockspace=str(space), flags=AUTOCREATE)
    daemon.kill()
    daemon.end_vm(dead)
    daemon.end_vm(also_dead)
    assert locked(disk), "the store has it still"
    service.start()
    wait_until(lambda: not locked(disk), "the lock to be let go")
    wait_until(lambda: not (space / "n").exists(), "the lock file to go")
    wait_until(lambda: service.names == [], "the store to be empty")


def test_holder_connection_in_the_store_still_guards_its_locks(service: ServiceManager, place: Path) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    daemon.kill()
    service.start()
    os.kill(vm, signal.SIGUSR2)  # it closes the connection and would live on without its guard
    os.waitpid(vm, 0)
    daemon.pids.remove(vm)
    wait_until(lambda: not locked(disk), "the lock to go")
    wait_until(lambda: service.names == [], "the store to be empty")


def test_connection_closed_while_the_daemon_was_down_is_noticed_at_its_start(
    service: ServiceManager, place: Path
) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    vm = daemon.vm([disk], name="web1")
    daemon.kill()
    os.kill(vm, signal.SIGUSR2)
    service.start()
    os.waitpid(vm, 0)
    daemon.pids.remove(vm)
    wait_until(lambda: not locked(disk), "the lock to go")


def test_shared_lock_of_two_owners_is_one_in_the_store_and_goes_with_the_last(
    service: ServiceManager, place: Path
) -> None:
    daemon = service.daemon
    disk = make_disk(place)
    one, two = (daemon.vm([disk], name=f"r{i}", flags=SHARED) for i in range(2))
    wait_until(lambda: sum(n.startswith("conn-") for n in service.names) == 2, "both VMs to be stored")
    assert sum(n.startswith("lock-") for n in service.names) == 1
    daemon.kill()
    service.start()
    daemon.end_vm(one)
    wait_until(lambda: daemon.holders(disk) == [("r1", two, True)], "the first to be gone")
    assert locked(disk)
    daemon.end_vm(two)
    wait_until(lambda: not locked(disk), "the lock to go")


def test_vms_live_through_all_of_it(service: ServiceManager, place: Path) -> None:
    vms = [service.daemon.vm([make_disk(place, f"{i}.img")], name=f"vm{i}") for i in range(10)]
    for _ in range(2):
        service.daemon.kill()
        service.start()
        service.daemon.reexec()
    assert all(exists(pid) for pid in vms)
    assert all(locked(place / f"{i}.img") for i in range(10))
