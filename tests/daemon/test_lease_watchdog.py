"""The watchdog over the daemon's life: fed while leases are good, passed on at a re-exec, let go of only when all are gone.

wdmd's protocol is spoken by a double here; that the shipped client speaks it as the real one is shown elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.daemon.test_leases import FAIL_S, joined
from tests.interop.sanlock.direct import blank_file
from tests.interop.sanlock_socket.client import Process, SocketClient
from tests.support.daemon import Factory, Holdfastd, exists, make_disk, refusal
from tests.support.leases import SPACE, make_lockspace
from tests.support.polling import wait_until
from tests.support.service_manager import ServiceManager
from tests.support.wdmd_double import CLOSED, FIRE_TIMEOUT_S, Generation, Wdmd

from holdfast.daemon.daemon import RESTART_SIGNAL
from holdfast.ondisk.geometry import MIB
from holdfast.system.watchdog import wdmd
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Lockspace


@pytest.fixture
def generation() -> Generation:
    return Generation.SINCE_3_9


each_generation = pytest.mark.parametrize("generation", Generation, ids=lambda each: each.value)


@pytest.fixture
def wdmd_double(place: Path, generation: Generation) -> Iterator[Wdmd]:
    double = Wdmd(place / "wdmd.sock", generation)
    yield double
    double.close()


@pytest.fixture
def host(make_daemon: Factory, place: Path, wdmd_double: Wdmd) -> Holdfastd:
    leases = place / "leases"
    leases.mkdir()
    make_lockspace(leases / SPACE)
    return make_daemon(
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = 1\ncross_host = true\n'
        f'watchdog = "wdmd"\nwatchdog_device = "{place}/wdmd.sock"\n'
        f"io_timeout_s = 1\nfire_timeout_s = {FIRE_TIMEOUT_S}\n"
        '[[disk]]\nmatch = "*"\nbackend = "leases"\nrequire_protection = 3\n'
    )


@contextlib.contextmanager
def stored(place: Path, host: Holdfastd) -> Iterator[ServiceManager]:
    """A daemon that is joined, and whose watchdog is in the descriptor store."""
    manager = ServiceManager(
        place,
        host,
        sockets=[("holdfastd.socket", host.socket), ("holdfastd-control.socket", host.control)],
    )
    try:
        manager.start()
        joined(host)
        wait_until(lambda: "watchdog" in manager.names, "the watchdog to be in the store")
        yield manager
    finally:
        host.stop_all()
        manager.close()


def monotonic() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@each_generation
def test_watchdog_is_told_each_renewal_and_let_go_of_at_stop(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    joined(host.start())
    assert refusal(host, make_disk(place)) == ""  # protection 3: fenced
    wait_until(lambda: len(wdmd_double.expires(0)) >= 3, "some renewals")
    assert [command for command, _ in wdmd_double.said[0][:5]] == [
        wdmd.OPEN_WATCHDOG,
        wdmd.STATUS,
        wdmd.REGISTER,
        wdmd.REFCOUNT_SET,
        wdmd.TEST_LIVE,
    ]
    assert wdmd_double.has_device_open
    expires = wdmd_double.expires(0)
    assert expires == sorted(expires)
    assert all(expire <= monotonic() + FAIL_S for expire in expires)
    host.kill(signal.SIGTERM)
    wait_until(lambda: wdmd_double.said[0][-1] == (0, 0), "the connection to be closed")
    assert wdmd_double.said[0][-3:-1] == [(wdmd.TEST_LIVE, 0), (wdmd.REFCOUNT_CLEAR, 0)]
    assert len(wdmd_double.said) == 1


def test_connection_goes_on_over_a_reexec(host: Holdfastd, place: Path, wdmd_double: Wdmd) -> None:
    joined(host.start())
    vm = host.vm([make_disk(place)], name="web1")
    before = len(wdmd_double.expires(0))
    host.reexec()
    wait_until(lambda: len(wdmd_double.expires(0)) >= before + 3, "it to be fed by the next program")
    assert len(wdmd_double.said) == 1
    assert [command for command, _ in wdmd_double.said[0]].count(wdmd.REGISTER) == 1
    assert 0 not in wdmd_double.expires(0)
    assert (0, 0) not in wdmd_double.said[0]
    assert exists(vm)
    host.end_vm(vm)
    wait_until(lambda: not host.holders(place / "disk.img"), "the release")
    host.kill(signal.SIGTERM)
    wait_until(lambda: wdmd_double.said[0][-1] == (0, 0), "the connection to be closed")
    assert wdmd_double.said[0][-3][1] == 0


def test_stop_with_a_vm_leaves_the_watchdog_counting(host: Holdfastd, place: Path, wdmd_double: Wdmd) -> None:
    joined(host.start())
    host.vm([make_disk(place)], name="web1")
    host.kill(signal.SIGTERM)
    wait_until(lambda: wdmd_double.said[0][-1] == (0, 0), "the connection to be closed")
    assert 0 not in wdmd_double.expires(0)
    host.says("this host is reset")


@pytest.mark.parametrize("is_stored", [True, False])
def test_restart_with_a_client_that_holds_nothing(
    make_daemon: Factory, place: Path, wdmd_double: Wdmd, is_stored: bool
) -> None:
    """With a descriptor store the next daemon resumes the lockspace, and feeds the watchdog over the same connection.
    Without one, as at a plain stop, the lockspace is left and the watchdog let go of: nobody could feed it.
    """
    host = make_daemon(
        f'[sanlock]\nsocket = "{place}/sanlock.sock"\nwatchdog = "wdmd"\nfire_timeout_s = {FIRE_TIMEOUT_S}\n'
        f'watchdog_device = "{place}/wdmd.sock"'
    )
    sockets = [("v", host.socket), ("control", host.control), ("sanlock", f"{place}/sanlock.sock")]
    with contextlib.ExitStack() as ends:
        start: Callable[[], object] = host.start
        if is_stored:
            manager = ServiceManager(place, host, sockets=sockets)
            ends.callback(manager.close)
            start = manager.start
        start()
        ends.callback(Process(place / "sanlock.sock").close)
        client = SocketClient(place / "sanlock.sock")
        ends.callback(client.close)
        lockspace = Lockspace.of("LS", 1, str(blank_file(place / "LS", MIB)))
        assert client.result(r.WriteLockspace(0, 0, 1, lockspace)) == Result.OK
        assert client.result(r.AddLockspace(0, 1, lockspace)) == Result.OK
        host.kill(RESTART_SIGNAL)
        if not is_stored:
            wait_until(lambda: wdmd_double.said[0][-1] == CLOSED, "the connection to be closed")
            assert wdmd_double.said[0][-2] == (wdmd.REFCOUNT_CLEAR, 0)
            return
        before = len(wdmd_double.expires(0))
        start()
        wait_until(lambda: len(wdmd_double.expires(0)) > before, "the watchdog to be fed")
        assert 0 not in wdmd_double.expires(0)
        host.says("lockspace LS: gone on with")
        host.kill(signal.SIGTERM)
        wait_until(lambda: CLOSED in wdmd_double.said[0], "the connection to be closed")
        assert wdmd_double.said[0][-2] == (wdmd.REFCOUNT_CLEAR, 0)
        assert len(wdmd_double.said) == 1


def test_daemon_that_is_paused_starves_the_watchdog_in_time_and_feeds_it_when_its_vms_are_gone(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    joined(host.start())
    vm = host.vm([make_disk(place)], name="web1")
    os.kill(host.pid, signal.SIGSTOP)
    latest = wdmd_double.expires(0)[-1]
    time.sleep(FAIL_S + 1)
    assert wdmd_double.expires(0)[-1] == latest <= monotonic()
    os.kill(host.pid, signal.SIGCONT)
    # No libvirt here: asked in vain to pause it, it is terminated after half the grace of 15 s.
    wait_until(lambda: not exists(vm) or is_fed_again(wdmd_double, latest), "the VM to be stopped")
    assert not exists(vm), "the watchdog was fed, or let go of, while a VM rested on a lost lease"
    wait_until(lambda: is_fed_again(wdmd_double, latest), "it to be fed again")


def test_watchdog_stays_unfed_for_vms_that_ended_where_a_reset_is_asked_for(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    host.config.write_text(host.config.read_text().replace("io_timeout_s", 'on_loss = "reset"\nio_timeout_s'))
    joined(host.start())
    vm = host.vm([make_disk(place)], name="web1")
    os.kill(host.pid, signal.SIGSTOP)
    latest = wdmd_double.expires(0)[-1]
    time.sleep(FAIL_S + 1)
    os.kill(host.pid, signal.SIGCONT)
    wait_until(lambda: not exists(vm), "the VM to be stopped")
    host.says("ended and may have writes under way: the watchdog resets this host")
    time.sleep(2 * FEEDS_S)
    assert not is_fed_again(wdmd_double, latest)
    assert "lost: not renewed" in refusal(host, make_disk(place, "another.img"))


FEEDS_S = 2
"""A renewal, and a feeding, with io_timeout 1."""


def is_fed_again(double: Wdmd, before: int) -> bool:
    return double.expires(0)[-1] != before or len(double.said) > 1


def test_lockspace_is_not_joined_without_the_watchdog_that_is_promised(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    wdmd_double.close()
    (place / "wdmd.sock").unlink()
    host.start()
    host.says("watchdog: wdmd at")
    assert "watchdog: wdmd at" in refusal(host, make_disk(place))


@each_generation
def test_lockspace_is_not_joined_where_wdmd_has_no_device_to_open(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    wdmd_double.device_fails = True
    host.start()
    host.says("watchdog: wdmd: it ")
    assert "watchdog: wdmd: it " in refusal(host, make_disk(place))


@each_generation
def test_lockspace_is_joined_at_the_next_try_when_wdmd_is_restarted_while_the_host_id_is_claimed(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    wdmd_double.restarts_after_a_status = True
    joined(host.start())
    host.says("the watchdog is not fed")
    assert refusal(host, make_disk(place)) == ""  # protection 3: fenced
    wait_until(lambda: wdmd_double.expires(1), "wdmd to be given a bound")
    assert wdmd_double.has_device_open


def test_descriptor_store_keeps_the_connection_over_a_crash(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    with stored(place, host) as manager:
        vm = host.vm([make_disk(place)], name="web1")
        before = len(wdmd_double.expires(0))
        host.kill()
        manager.start()
        wait_until(lambda: len(wdmd_double.expires(0)) >= before + 2, "it to be fed by the next daemon")
        assert len(wdmd_double.said) == 1
        assert 0 not in wdmd_double.expires(0)
        assert exists(vm)
        assert host.holders(place / "disk.img") == [("web1", vm, True)]


def test_watchdog_of_a_lockspace_that_was_left_leaves_the_descriptor_store_too(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    """The kernel stops a watchdog when its last copy is closed: one left in the store resets a host that uses no lease."""
    with stored(place, host) as manager:
        assert host.cli("lockspace", "leave", SPACE).returncode == 0
        wait_until(lambda: "watchdog" not in manager.names, "the store to let go of the watchdog")
        wait_until(lambda: wdmd_double.said[0][-1] == (0, 0), "the last copy of the connection to be closed")
        assert host.cli("lockspace", "join", SPACE).returncode == 0
        wait_until(lambda: "watchdog" in manager.names, "the next watchdog to be in the store")
        assert manager.names.count("watchdog") == 1


@pytest.mark.parametrize("has_vm", [False, True])
def test_crash_while_the_storage_is_gone_resets_no_host_without_a_vm(
    host: Holdfastd, place: Path, wdmd_double: Wdmd, has_vm: bool
) -> None:
    """The next daemon gets an armed watchdog, and can't resume the lockspace whose lease would feed it."""
    with stored(place, host) as manager:
        if has_vm:
            host.vm([make_disk(place)], name="web1")
        host.kill()
        (place / "leases" / SPACE).rename(place / "away")
        manager.start()
        if has_vm:
            host.says(f"lockspace {SPACE} is not joined")
            assert "watchdog" in manager.names
            assert (wdmd.REFCOUNT_CLEAR, 0) not in wdmd_double.said[0]
            return
        wait_until(lambda: "watchdog" not in manager.names, "the store to let go of the watchdog")
        wait_until(lambda: wdmd_double.said[0][-1] == (0, 0), "the last copy of the connection to be closed")
        assert wdmd_double.said[0][-3:-1] == [(wdmd.TEST_LIVE, 0), (wdmd.REFCOUNT_CLEAR, 0)]
        (place / "away").rename(place / "leases" / SPACE)
        wait_until(lambda: "watchdog" in manager.names, "the lockspace to be joined again, and guarded")


def test_watchdog_that_guards_vms_of_other_directories_is_neither_stopped_nor_fed_for_another_lockspace(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    """Both directories were edited while the daemon was down: it does not know its VMs, whose lease nobody renews now."""
    make_lockspace(place / "leases" / "other", name="other")
    table = host.config.read_text().split("[backend.leases]")[1].split("[[disk]]")[0]
    manager = ServiceManager(place, host, sockets=[("holdfastd.socket", host.socket)])
    try:
        manager.start()
        host.says(f"lockspace {SPACE}: joined as")
        vm = host.vm([make_disk(place)], name="web1")
        wait_until(lambda: "watchdog" in manager.names, "the watchdog to be in the store")
        host.kill()
        (place / "edited").mkdir()
        written = host.config.read_text()
        for name in ("run", "state"):
            written = written.replace(
                f'{name}_dir = "{host.directory}/{name}"', f'{name}_dir = "{place}/edited/{name}"'
            )
        host.config.write_text(f'{written}[backend.other]\nlockspace = "other"\n{table}')
        connection = len(wdmd_double.said) - 1
        latest = wdmd_double.expires(connection)[-1]
        manager.start()
        host.says("the watchdog that an earlier daemon has armed is not fed: lockspace")
        tries = [f"lockspace {space} is not joined" for space in (SPACE, "other")]
        wait_until(lambda: all(host.count(each) >= 3 for each in tries), "each to be tried three times")
        assert wdmd_double.expires(connection)[-1] == latest
        assert len(wdmd_double.said) == connection + 1
        assert (wdmd.REFCOUNT_CLEAR, 0) not in wdmd_double.said[connection]
        assert exists(vm)
    finally:
        host.stop_all()
        manager.close()


def test_watchdog_that_guards_vms_of_other_directories_is_not_stopped_by_who_has_no_use_for_it(
    host: Holdfastd, place: Path, wdmd_double: Wdmd
) -> None:
    """The same edit, to directories that were used before, whose journal says that nothing is held; and no watchdog."""
    written = edited = host.config.read_text()
    for old in (f"{host.directory}/run", f"{host.directory}/state"):
        edited = edited.replace(f'"{old}"', f'"{old}-edited"')
    edited = edited.replace('watchdog = "wdmd"', 'watchdog = "none"')
    host.config.write_text(edited.replace(f'watchdog_device = "{place}/wdmd.sock"\n', ""))
    joined(host.start())
    host.kill(signal.SIGTERM)
    edited = host.config.read_text()
    host.config.write_text(written)
    manager = ServiceManager(place, host, sockets=[("holdfastd.socket", host.socket)])
    try:
        manager.start()
        wait_until(lambda: "watchdog" in manager.names, "the watchdog to be in the store")
        host.vm([make_disk(place)], name="web1")
        host.kill()
        host.config.write_text(edited)
        manager.start()
        host.says("no configured backend knows: this host is reset")
        host.says(f"lockspace {SPACE} is not joined")
        assert (wdmd.REFCOUNT_CLEAR, 0) not in wdmd_double.said[0]
        assert "watchdog" in manager.names
    finally:
        host.stop_all()
        manager.close()
