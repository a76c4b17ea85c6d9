"""python3-sanlock, unmodified: every function of it, and what vdsm does with it, beside Debian's sanlock and ours.

Both are asked the same, in the same order, at the same time; what they answer is compared line by line.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.interop.sanlock.direct import blank_file
from tests.interop.sanlock_socket.python_client import (
    WRONG_GENERATION,
    PythonClient,
    Transcript,
    disk,
    has_python_sanlock,
)
from tests.interop.sanlock_socket.scene import IO_TIMEOUT_S, NAME, Scene
from tests.interop.sanlock_socket.vdsm_calls import DOMAIN, fencing, vdsm
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import MIB

pytestmark = [
    pytest.mark.interop,
    pytest.mark.long,
    pytest.mark.skipif(not has_python_sanlock(), reason="this Debian release has no python3-sanlock"),
]

PROGRAMS = ("sanlock", "holdfast")
LS = NAME.encode()
EVENT_S = 10
"""An event comes with the second renewal of the other host, four seconds later."""
Script = Callable[[Transcript], None]


@pytest.fixture(scope="module")
def scenes() -> Iterator[tuple[Scene, Scene]]:
    """Each has two hosts in a lockspace: those of Debian's sanlock, and those of holdfastd."""
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    for program in PROGRAMS:
        (place / program).mkdir()
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        begun = [pool.submit(Scene, program, place / program) for program in PROGRAMS]
        theirs, ours = (each.result() for each in begun)
    try:
        yield theirs, ours
    finally:
        with ThreadPoolExecutor(len(PROGRAMS)) as pool:
            list(pool.map(Scene.close, (theirs, ours)))
        shutil.rmtree(place, ignore_errors=True)


def played(script: Script, scene: Scene) -> Transcript:
    transcript = Transcript(scene)
    try:
        script(transcript)
    finally:
        transcript.close()
    return transcript


def lockspaces(t: Transcript) -> None:
    """Written, read, added, inquired, removed."""
    one = t.writes("one", t.client(t.scene.one))
    t.unseen = frozenset((DOMAIN,))
    file, large = blank_file(t.scene.place / "py", 2 * MIB), blank_file(t.scene.place / "py8", 16 * MIB)
    path = str(file)
    one("get_alignment", path)
    one("get_alignment", "/none/none")
    one("write_lockspace", b"PY", path, iotimeout=IO_TIMEOUT_S)
    one("add_lockspace", b"PY", 1, path, iotimeout=IO_TIMEOUT_S, wait=False)
    one("inq_lockspace", b"PY", 1, path)
    one("add_lockspace", b"PY", 1, path, iotimeout=IO_TIMEOUT_S, wait=False)
    one("add_lockspace", b"PY", 2, path, iotimeout=IO_TIMEOUT_S, wait=False)
    one("get_lockspaces")
    one("read_lockspace", path)
    one("read_lockspace", str(large))
    one("read_lockspace", "/none/none")
    # Without an iotimeout sanlock's version decides: from 3.9 on it is the daemon's.
    one("write_lockspace", b"PY8", str(large), iotimeout=7, align=8 * MIB, sector=4096)
    one("read_lockspace", str(large), align=8 * MIB, sector=4096)
    one("read_lockspace", str(large))
    one("write_lockspace", b"PY8", str(large), iotimeout=7, align=MIB, sector=4096)
    one("read_lockspace", str(large), align=MIB, sector=4096)
    one("write_lockspace", b"PY8", str(large), align=3 * MIB)
    one("write_lockspace", b"PY9", path, MIB, max_hosts=7, iotimeout=3)
    one("read_lockspace", path, MIB)
    one("write_lockspace", b"PY", "/none/none")
    one("inq_lockspace", b"PY", 1, path, wait=True)
    one("add_lockspace", b"PY", 1, path, iotimeout=IO_TIMEOUT_S)
    one("get_lockspaces")
    # Until the first renewal is judged the answer is EAGAIN.
    quiet = t.client(t.scene.one)
    wait_until(lambda: isinstance(quiet("get_hosts", b"PY"), list), "its hosts")
    for host_id in (0, 1, 2, 2000, 2001):
        one("get_hosts", b"PY", host_id)
    one("get_hosts", b"none")
    one("inq_lockspace", b"PY", 1, path, MIB)
    one("rem_lockspace", b"PY", 2, path)
    one("rem_lockspace", b"PY", 1, path, unused=True)
    one("inq_lockspace", b"PY", 1, path)
    one("rem_lockspace", b"PY", 1, path, wait=False)
    one("get_lockspaces")


def resources(t: Transcript) -> None:
    """Leases of the process itself, and of another one by its pid."""
    leases = blank_file(t.scene.place / "py-leases", 24 * MIB)
    holder, sleeper = t.client(t.scene.one), t.client(t.scene.one)
    one, other, two = (
        t.writes("one", holder),
        t.writes("other", sleeper),
        t.writes("two", t.client(t.scene.two)),
    )
    first, second, third, large = (disk(leases, at * MIB) for at in (0, 1, 2, 8))
    for name, place in ((b"first", first), (b"second", second), (b"third", third)):
        one("write_resource", LS, name, place)
    # Debian 12's sanlock refuses to acquire this one (-214): its sectors are larger than its lockspace's.
    one("write_resource", LS, b"large", large, align=8 * MIB, sector=4096)
    one("write_resource", LS, b"few", disk(leases, 4 * MIB), max_hosts=7, num_hosts=7)
    one("write_resource", LS, b"gone", disk(leases, 3 * MIB), clear=True)
    one("write_resource", LS, b"none", disk(Path("/none/none")))
    one("write_resource", LS, b"none", [])
    for name, place in ((b"first", first), (b"few", disk(leases, 4 * MIB)), (b"gone", disk(leases, 3 * MIB))):
        one("read_resource", *place[0])
        one("read_resource_owners", LS, name, place)
    one("read_resource", *large[0], align=8 * MIB, sector=4096)
    one("read_resource", *large[0])
    one("read_resource", str(leases), 5 * MIB)
    one("read_resource", "/none/none")
    one("read_resource_owners", LS, b"large", large, align=8 * MIB, sector=4096)
    one("read_resource_owners", LS, b"second", first)
    one("read_resource_owners", b"none", b"first", first)
    one("acquire", LS, b"first", first)
    one("acquire", LS, b"first", first, pid=holder.pid)
    one("inquire")
    one("inquire", pid=holder.pid)
    fd, sleepers = one("register"), sleeper("register")
    one("inquire", slkfd=fd)
    one("acquire", LS, b"first", first, slkfd=fd, lvb=True)
    one("acquire", LS, b"first", first, slkfd=fd)
    one("acquire", LS, b"second", second, slkfd=fd, version=7)
    one("acquire", LS, b"second", second, slkfd=fd, version=0)
    one("acquire", LS, b"third", third, slkfd=fd, shared=True)
    one("acquire", LS, b"gone", disk(leases, 3 * MIB), slkfd=fd)
    one("acquire", LS, b"second", first, slkfd=fd)
    one("acquire", b"none", b"first", first, slkfd=fd)
    one("inquire", slkfd=fd)
    one("inquire", pid=holder.pid)
    other("acquire", LS, b"third", third, slkfd=sleepers, shared=True)
    other("acquire", LS, b"first", first, slkfd=sleepers)
    other("inquire", slkfd=sleepers)
    one("acquire", LS, b"few", disk(leases, 4 * MIB), pid=sleeper.pid)
    one("release", LS, b"few", disk(leases, 4 * MIB), pid=sleeper.pid)
    twos = two("register")
    two("acquire", LS, b"first", first, slkfd=twos)
    two("acquire", LS, b"third", third, slkfd=twos)
    two("acquire", LS, b"third", third, slkfd=twos, shared=True)
    for name, place in ((b"first", first), (b"second", second), (b"third", third)):
        two("read_resource", *place[0])
        two("read_resource_owners", LS, name, place)
    one("set_lvb", LS, b"first", first, b"told by one")
    one("set_lvb", LS, b"second", second, b"no block")
    one("set_lvb", LS, b"first", first, b"v" * 513)
    one("set_lvb", LS, b"none", first, b"v")
    one("get_lvb", LS, b"first", first, 11)
    one("get_lvb", LS, b"first", first, 0)
    one("get_lvb", LS, b"second", second, 11)
    one("release", LS, b"first", first, slkfd=fd)
    one("release", LS, b"first", first, slkfd=fd)
    two("acquire", LS, b"first", first, slkfd=twos, lvb=True)
    two("get_lvb", LS, b"first", first, 11)
    two("get_lvb", LS, b"first", first, 512)
    two("inquire", slkfd=twos)
    one("close", fd)
    quiet = t.client(t.scene.one)
    wait_until(lambda: quiet("read_resource_owners", LS, b"second", second) == [], "the release")
    two("read_resource", *second[0])


def requests(t: Transcript) -> None:
    """What another host asks of a holder: its killpath, or a signal."""
    leases = blank_file(t.scene.place / "py-asked", 4 * MIB)
    asked, forced, plain = (t.client(t.scene.one) for _ in range(3))
    one, two = t.writes("one", asked), t.writes("two", t.client(t.scene.two))
    places = {
        name: disk(leases, at * MIB)
        for at, name in enumerate((b"graceful", b"force", b"without a path", b"nobody's"))
    }
    for name, place in places.items():
        two("write_resource", LS, name, place)
    fd = one("register")
    one("killpath", "/none/" + "x" * 200, [], slkfd=fd)
    one("killpath", "/bin/true", ["x" * 200], slkfd=fd)
    one("killpath", "/bin/sh", ["-c", f"touch {t.scene.place}/asked"], slkfd=fd)
    one("killpath", "/bin/sh", ["-c", "true"])
    one("acquire", LS, b"graceful", places[b"graceful"], slkfd=fd)
    forced("acquire", LS, b"force", places[b"force"], slkfd=forced("register"))
    plain("acquire", LS, b"without a path", places[b"without a path"], slkfd=plain("register"))
    two("request", LS, b"nobody's", places[b"nobody's"])
    two("request", LS, b"none", places[b"graceful"])
    two("request", b"none", b"graceful", places[b"graceful"])
    two("request", LS, b"graceful", places[b"graceful"], version=1)
    two("request", LS, b"graceful", places[b"graceful"], version=2)
    two("request", LS, b"force", places[b"force"], action=1)
    two("request", LS, b"without a path", places[b"without a path"])
    t.say("forced ends", forced.wait_ended(20))
    t.say("plain ends", plain.wait_ended(20))
    wait_until((t.scene.place / "asked").exists, "the killpath to run")
    one("inquire", slkfd=fd)


def events(t: Transcript) -> None:
    """From host to host, as vdsm asks others for room on their disks."""
    one, two = t.writes("one", t.client(t.scene.one)), t.writes("two", t.client(t.scene.two))
    fd = one("reg_event", LS)
    one("reg_event", b"none")
    one("get_event", fd)
    for host_id, generation, flags in ((0, 0, 1), (2001, 0, 1), (1, WRONG_GENERATION, 0), (1, 0, 1)):
        two("set_event", LS, host_id, generation, 7, data=8, flags=flags)
    two("set_event", LS, 1, 0, 9, flags=1)
    one("wait_event", fd, 7, EVENT_S)
    two("set_event", LS, 1, 0, 9, data=10, flags=1 | 8)
    one("wait_event", fd, 9, EVENT_S)
    two("set_event", LS, 1, 0, 0, flags=2)
    two("set_event", b"none", 1, 0, 1)
    one("end_event", fd, LS)
    one("end_event", fd, b"none")


def without_a_daemon(t: Transcript) -> None:
    alone = t.scene.another_host("alone")
    client = t.client(alone)
    one = t.writes("alone", client)
    fd = one("register")
    alone.daemon.kill()
    for name, args, kwargs in (
        ("register", (), {}),
        ("get_lockspaces", (), {}),
        ("acquire", (LS, b"R", disk(Path("/none"))), {"slkfd": fd}),
        ("inquire", (), {"slkfd": fd}),
    ):
        one(name, *args, **kwargs)


SCRIPTS: tuple[Script, ...] = (lockspaces, resources, requests, events, without_a_daemon, vdsm, fencing)


@pytest.fixture(scope="module")
def transcripts(scenes: tuple[Scene, Scene]) -> dict[str, tuple[Transcript, Transcript]]:
    """By script: beside sanlock, and beside holdfastd. All run at once; they share no lease."""
    with ThreadPoolExecutor(2 * len(SCRIPTS)) as pool:
        begun = {s.__name__: [pool.submit(played, s, scene) for scene in scenes] for s in SCRIPTS}
        return {name: (theirs.result(), ours.result()) for name, (theirs, ours) in begun.items()}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_calls_give_what_they_give_beside_sanlock(
    script: Script, transcripts: dict[str, tuple[Transcript, Transcript]]
) -> None:
    theirs, ours = transcripts[script.__name__]
    assert ours.lines == theirs.lines


def test_every_function_was_called(
    scenes: tuple[Scene, Scene], transcripts: dict[str, tuple[Transcript, Transcript]]
) -> None:
    client = PythonClient(scenes[1].one)
    try:
        there_are = client("exists")
    finally:
        client.close()
    called = set().union(*(ours.called for _, ours in transcripts.values()))
    assert isinstance(there_are, list)
    assert "acquire" in there_are
    assert set(there_are) <= called
