"""Small parts that much relies on: routing, turns, tasks that start at once, events, kernel locks, places, --disk."""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import logging
import os
import resource
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backends.nop import NopBackend
from holdfast.cli.commands.run import BadDisk, parse_disk
from holdfast.cli.libvirt_files import domains, libvirt_lockspaces, read_settings
from holdfast.control.api import DiskWish
from holdfast.manager.events import EVENTS_KEPT_MAX, Event, Events
from holdfast.manager.key_locks import KeyLocks
from holdfast.manager.routing import Route, Routing, Rule
from holdfast.model import Mode, Protection, Resource
from holdfast.network_disk import names_network_disk
from holdfast.system import eager_tasks
from holdfast.system.files.proc_locks import locks_on, parse_lock, processes_with
from holdfast.system.host import realtime
from holdfast.system.host.commands import CommandProcess, Ended
from holdfast.system.host.descriptors import bind_socket
from holdfast.system.libvirt.domains import read_domain
from holdfast.testing.fakes import SimulatedClock, settle

AMPLE_S = 30.0
"""A stuck test shall end."""

# --- routing ---


def routing() -> Routing:
    names = ("a", "b", "spaces", "network", "default")
    routes = {name: Route(NopBackend(name), Protection.NONE) for name in names}
    rules = [
        Rule("/dev/vg/*", routes["a"], of_lockspace=False),
        Rule("/dev/*", routes["b"], of_lockspace=False),
        Rule("/srv/*", routes["spaces"], of_lockspace=True),
        Rule("*web*", routes["b"], of_lockspace=False),
        Rule("rbd:*", routes["network"], of_lockspace=False),
    ]
    return Routing(rules, routes["default"], {n: r.backend for n, r in routes.items()})


@pytest.mark.parametrize(
    ("resource", "backend"),
    [
        (Resource("", "/dev/vg/x"), "a"),
        (Resource("", "/dev/vg/x/y"), "a"),
        (Resource("", "/dev/sda"), "b"),
        (Resource("", "/srv/x"), "default"),
        (Resource("", "/vms/web"), "b"),
        (Resource("", "rbd:vms/web"), "network"),
        (Resource("", "nbd://host:10809/web"), "default"),
        (Resource("", "rbd-web"), "b"),
        (Resource("/srv/locks", "n"), "spaces"),
        (Resource("/dev/vg/x", "n"), "default"),
    ],
)
def test_first_rule_that_matches_chooses_the_backend(resource: Resource, backend: str) -> None:
    assert routing().route(resource).backend.name == backend


# --- turns ---


def test_all_who_wait_for_a_turn_wake_at_its_end_and_look_again() -> None:
    async def scene() -> None:
        key_locks, woken = KeyLocks(), []

        async def wait(name: str) -> None:
            await key_locks.wait("thing")
            woken.append(name)

        key_locks.take("thing")
        waiting = [asyncio.create_task(wait(n)) for n in "abc"]
        await settle()
        assert not woken
        assert key_locks.first_taken(("x", "thing")) == "thing"
        waiting[1].cancel()
        await settle()
        key_locks.end("thing")
        assert not key_locks.is_locked("thing")
        await asyncio.gather(*waiting, return_exceptions=True)
        assert woken == ["a", "c"]
        await key_locks.wait("thing")

    asyncio.run(scene())


# --- tasks that start at once ---


def test_coroutine_that_never_waits_has_ended_when_start_returns() -> None:
    async def work() -> int:
        return 7

    got: list[int] = []
    assert eager_tasks.start(work(), got.append)
    assert got == [7]


def test_coroutine_that_waits_goes_on_later_with_what_it_waited_for() -> None:
    async def scene() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        got: list[int] = []

        async def work() -> int:
            first = await future
            await asyncio.sleep(0)
            return first + 1

        assert not eager_tasks.start(work(), got.append)
        future.set_result(7)
        await eager_tasks.all_ended()
        await settle()
        assert got == [8]

    asyncio.run(scene())


def test_exception_is_thrown_into_the_coroutine_and_a_late_one_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        caught: list[str] = []

        async def work() -> None:
            try:
                await future
            except KeyError:
                caught.append("KeyError")
            await asyncio.sleep(0)
            raise ValueError("a bug")

        eager_tasks.start(work())
        future.set_exception(KeyError())
        await eager_tasks.all_ended()
        await settle()
        assert caught == ["KeyError"]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scene())
    assert "unexpected failure in the background" in caplog.text


def test_exception_in_the_first_step_is_raised_to_the_starter() -> None:
    async def work() -> None:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        eager_tasks.start(work())


def test_rest_of_a_started_coroutine_is_one_that_every_event_loop_makes_a_task_of() -> None:
    async def scene() -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        coroutine = work()
        waits_for = coroutine.send(None)
        rest = eager_tasks.rest(coroutine, waits_for)
        # asyncio of 3.11 also takes generators; of 3.12 and later, and uvloop beside them, only these.
        assert inspect.iscoroutine(rest)
        assert await rest == 7

    asyncio.run(scene())


def test_program_is_run_from_the_first_step_of_a_started_coroutine() -> None:
    async def scene() -> None:
        commands = CommandProcess()
        # So that the call below waits for nothing but the program, in its first step.
        writer = await commands.start()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Ended] = loop.create_future()
        # As a signal's handler starts a reload: this callback runs in no task, and this scene in one.
        running = commands.run(["/bin/echo", "hello"], AMPLE_S)
        loop.call_soon(lambda: eager_tasks.start(running, ended.set_result))
        await asyncio.wait((ended,), timeout=AMPLE_S)
        assert ended.done()
        assert (ended.result().code, ended.result().output) == (0, "hello")
        writer.close()
        await writer.wait_closed()
        assert commands._process is not None
        assert commands._process.wait(AMPLE_S) == 0

    asyncio.run(scene())


def test_all_ended_says_after_its_timeout_that_something_still_runs() -> None:
    async def scene() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await future

        eager_tasks.start(work())
        assert not await eager_tasks.all_ended(0.01)
        assert eager_tasks.under_way()
        future.set_result(None)
        assert await eager_tasks.all_ended(AMPLE_S)
        assert not eager_tasks.under_way()

    asyncio.run(scene())


# --- events ---


def test_events_are_numbered_kept_up_to_a_bound_and_told_to_listeners() -> None:
    events = Events(SimulatedClock().wall)
    heard: list[Event] = []
    stop = events.listen(heard.append)
    for _ in range(EVENTS_KEPT_MAX + 5):
        events.emit("acquired", mode=Mode.SHARED)
    stop()
    stop()
    events.emit("released")
    assert len(heard) == EVENTS_KEPT_MAX + 5
    assert [e.number for e in events.recent(after=events.last - 2)] == [events.last - 1, events.last]
    assert len(events.recent()) == EVENTS_KEPT_MAX
    successor = Events(SimulatedClock().wall)
    successor.restore(events.recent())
    successor.emit("daemon-restarted")
    assert successor.last == events.last + 1


# --- /proc/locks ---


def test_processes_with_a_lock_are_found_without_reading_about_sockets_and_pipes(tmp_path: Path) -> None:
    """A host with a thousand VMs has a hundred thousand of those open."""
    opened: list[str] = []
    watching = True

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(heard)
    path = str(tmp_path / "disk.img")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    pair = socket.socketpair()
    try:
        byte_0 = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)  # struct flock of <fcntl.h>
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, byte_0)
        (found,) = [p for p in processes_with(path, locks_on(path)) if p.pid == os.getpid()]
        assert found.lock.of_lock_manager
        read = [name for name in opened if name.startswith(f"/proc/{os.getpid()}/fdinfo/")]
        assert f"/proc/{os.getpid()}/fdinfo/{fd}" in read
        assert not {f"/proc/{os.getpid()}/fdinfo/{end.fileno()}" for end in pair} & set(read)
    finally:
        watching = False
        os.close(fd)
        for end in pair:
            end.close()


def test_lines_of_proc_locks_are_understood() -> None:
    lock = parse_lock(["POSIX", "ADVISORY", "WRITE", "744", "fe:01:131", "0", "0"])
    assert lock is not None
    assert (lock.mode, lock.pid, lock.inode, lock.of_lock_manager, lock.of_qemu) == (
        Mode.EXCLUSIVE,
        744,
        131,
        True,
        False,
    )
    lock = parse_lock(["OFDLCK", "ADVISORY", "READ", "-1", "00:2b:99", "100", "EOF"])
    assert lock is not None
    assert (lock.mode, lock.pid, lock.end, lock.of_qemu) == (Mode.SHARED, -1, None, True)
    for other in ("FLOCK  ADVISORY  WRITE 1 fe:01:1 0 EOF", "LEASE ACTIVE READ 1 fe:01:1 0 EOF", "", "POSIX"):
        assert parse_lock(other.split()) is None


# --- libvirt's files ---


def test_settings_of_libvirt_are_read_unquoted_and_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "qemu.conf"
    file.write_text('# lock_manager = "sanlock"\n lock_manager = "lockd" # yes\nmax = 7 # n\nodd line\n')
    assert read_settings(str(file)) == {"lock_manager": "lockd", "max": "7"}
    assert read_settings(str(tmp_path / "none")) is None


def test_lockspaces_of_libvirt_are_those_of_its_plugin(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "libvirt" / "qemu-lockd.conf"
    file.parent.mkdir(parents=True)
    file.write_text('file_lockspace_dir = "/f"\nlvm_lockspace_dir = "/l"\n#scsi_lockspace_dir = "/s"\n')
    assert libvirt_lockspaces(str(tmp_path)) == ["/f", "/l"]


DOMAIN = """<domain><name>web</name><uuid>u-1</uuid><devices>
<disk type='file' device='disk'><source file='/a.img'/></disk>
<disk type='block' device='disk'><source dev='/dev/b'/><shareable/></disk>
<disk type='file' device='disk'><source file='/ro.img'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/c.iso'/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='x'/></disk>
<disk type='file' device='disk'/></devices></domain>"""


def test_domain_is_read_with_the_disks_that_libvirt_would_lock(tmp_path: Path) -> None:
    running, defined = tmp_path / "run/libvirt/qemu", tmp_path / "etc/libvirt/qemu"
    for directory in (running, defined):
        directory.mkdir(parents=True)
    (running / "web.xml").write_text(f"<domstatus state='running' pid='77'>{DOMAIN}</domstatus>")
    (defined / "web.xml").write_text(DOMAIN)
    (defined / "broken.xml").write_text("<domain")
    (defined / "other.xml").write_text("<network/>")
    (domain,) = domains(str(tmp_path))
    assert (domain.name, domain.uuid, domain.pid) == ("web", "u-1", 77)
    assert [(d.path, d.shareable) for d in domain.disks] == [("/a.img", False), ("/dev/b", True)]


@given(st.binary(max_size=200))
def test_any_file_is_a_domain_or_none(raw: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as f:
        f.write(raw)
        f.flush()
        read_domain(f.name)


# --- holdfast run --disk ---


def test_disk_is_a_path_and_perhaps_a_mode(tmp_path: Path) -> None:
    disk = tmp_path / "a:b.img"
    disk.touch()
    odd = tmp_path / "x:shared"
    odd.touch()
    assert parse_disk(str(disk)) == DiskWish(str(disk))
    assert parse_disk(f"{disk}:shared") == DiskWish(str(disk), shared=True)
    assert parse_disk(f"{disk}:exclusive") == DiskWish(str(disk))
    assert parse_disk(f"{disk}:ro") is None
    assert parse_disk(f"{odd}:exclusive") == DiskWish(str(odd))
    for text, found in (("", "no path"), (":ro", "no path"), (f"{tmp_path}/none", "must exist")):
        with pytest.raises(BadDisk, match=found):
            parse_disk(text)


def test_warning_of_a_limit_names_the_one_in_force_and_what_the_unit_needs() -> None:
    """It named the directive as if it were the value (review, M9)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
    in_force = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    text = realtime.limit_words(resource.RLIMIT_RTPRIO, "LimitRTPRIO=1")
    assert text == (
        f"the limit in force is {in_force}; the unit needs LimitRTPRIO=1, and so does what it runs in"
    )


def test_rule_for_every_path_names_no_network_disk() -> None:
    assert names_network_disk(["/srv/*", "rbd:pool/*"], "rbd:pool/a")
    assert not names_network_disk(["*", "/srv/*", "rbd:other/*"], "rbd:pool/a")


def test_directory_of_a_socket_is_open_to_its_users_whatever_the_umask(tmp_path: Path) -> None:
    """Our units have UMask=0077, and nobody but root would reach a socket of the group sanlock."""
    path = tmp_path / "made" / "run" / "sanlock.sock"
    before = os.umask(0o077)
    try:
        bind_socket(str(path), mode=0o660).close()
    finally:
        os.umask(before)
    expected = 0o755 if os.geteuid() == 0 else 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path.parent.parent)] == [expected] * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
