"""Commands on areas, played to the real sanlock and to our engine: the same answers, field by field, and the same bytes.

Each has files of its own with the same names. What differs on purpose is not played.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import SanlockDaemon, installed_version
from tests.interop.sanlock_socket.client import SocketClient
from tests.support.leases import SPACE
from tests.support.sanlock_clients import Storage
from tests.support.sanlock_engine import EngineSite, blank

from holdfast.ondisk.geometry import MIB
from holdfast.ondisk.leader import MAGIC_CLEARED
from holdfast.ondisk.padded_name import PaddedName
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import SIZES
from holdfast.wire.sanlock.header import request_header
from holdfast.wire.sanlock.result import Result, described

pytestmark = pytest.mark.interop

Make = Callable[[Path], r.AnyRequest]
FILES = {"f": 16 * MIB, "zeros": 8 * MIB, "x": 16 * MIB, "empty": 0, "small": 4096}
INDEX = "x"
WRITES = (
    r.WriteLockspace,
    r.WriteResource,
    r.FormatRindex,
    r.UpdateRindex,
    r.CreateResource,
    r.DeleteResource,
    r.RebuildRindex,
)
IO_TIMEOUT_S = 1
_WRITE_TIMESTAMP = slice(192, 200)
_EVERY_SIZES = [0, *map(int, SIZES.values())]
_HALF_OR_NONE = [0x10, 0x100, 0x180]
CLEAR, ADD, REM = 1, 0x10000, 0x20000


def lockspace(
    name: str, path: str, at: int = 0, *, host_id: int = 1, flags: int = 0
) -> Callable[..., s.Lockspace]:
    return lambda place: s.Lockspace.of(name, host_id, str(place / path), at, flags=flags)


def resource(
    name: str, path: str, at: int = 0, *, space: str = SPACE, flags: int = 0
) -> Callable[..., s.Resource]:
    return lambda place: s.Resource.of(space, name, s.Disk(str(place / path), at), flags=flags)


def index(
    space: str = SPACE, *, path: str = INDEX, flags: int = 0, entries: int = 0
) -> Callable[..., s.Rindex]:
    return lambda place: s.Rindex(PaddedName.of(space), flags, entries, s.Disk(str(place / path)))


def entry(name: str = "", at: int = 0) -> s.RindexEntry:
    return s.RindexEntry(PaddedName.of(name), at)


def lockspaces() -> Iterator[Make]:
    for path in ("f", "empty", "none", "."):
        yield lambda place, path=path: r.Align(s.Disk(str(place / path)))  # type: ignore[misc]
        yield lambda place, path=path: r.ReadLockspace(lockspace("W", path)(place))  # type: ignore[misc]
    for flags in (*_EVERY_SIZES, *_HALF_OR_NONE, 0):
        of = lockspace("W", "f", 8 * MIB, flags=flags)
        yield lambda place, of=of: r.WriteLockspace(0, 0, 7, of(place))  # type: ignore[misc]
        yield lambda place: r.ReadLockspace(lockspace("", "f", 8 * MIB, host_id=0)(place))
    yield lambda place: r.WriteLockspace(0, 0, 0, lockspace("W0", "f")(place))
    yield lambda place: r.WriteLockspace(0, 0, 1, lockspace("W", "f", 777)(place))
    yield lambda place: r.WriteLockspace(0, 0, 1, lockspace("W", "none")(place))
    for name, path, at, host_id, flags in (
        ("", "f", 0, 0, 0),
        ("X", "f", 0, 1, 0),
        ("W0", "f", 0, 2000, 0x110),
        ("W0", "f", 0, 2001, 0),
        ("W0", "f", 0, 5, 0x280),
        ("W0", "small", 0, 1, 0),
        ("W0", "zeros", 0, 1, 0),
        ("W0", "f", 64 * MIB, 1, 0),
        ("W0", "f", 777, 1, 0),
    ):
        of = lockspace(name, path, at, host_id=host_id, flags=flags)
        yield lambda place, of=of: r.ReadLockspace(of(place))  # type: ignore[misc]


def resources() -> Iterator[Make]:
    def of(wanted: Callable[..., s.Resource], flags: int = 0, first: int = 0, second: int = 0) -> Make:
        return lambda place: r.WriteResource(flags, first, second, wanted(place))

    def readings(wanted: Callable[..., s.Resource]) -> Iterator[Make]:
        yield lambda place: r.ReadResource(wanted(place))
        yield lambda place: r.ReadResourceOwners(wanted(place))

    for flags in (*_EVERY_SIZES, *_HALF_OR_NONE):
        yield of(resource("R", "f", 8 * MIB, flags=flags))
        for asked in (0, flags):
            yield from readings(resource("R", "f", 8 * MIB, flags=asked))
    for hosts in ((5, 0), (0, 5), (3000, 0)):
        yield of(resource("R", "f"), 0, *hosts)
    for path, at in (("none", 0), (".", 0), ("f", 777)):
        yield of(resource("R", path, at))
        yield from readings(resource("R", path, at))
    yield of(resource("R9", "f", MIB, space="elsewhere"))
    yield of(resource("RC", "f", 3 * MIB), CLEAR)
    for name, path, at, space in (
        ("", "f", 0, ""),
        ("R", "f", 0, "X"),
        ("X", "f", 0, SPACE),
        ("RC", "f", 3 * MIB, SPACE),
        ("R9", "f", MIB, "elsewhere"),
        ("R", "zeros", 0, SPACE),
        ("R", "empty", 0, SPACE),
        ("R", "f", 64 * MIB, SPACE),
    ):
        yield from readings(resource(name, path, at, space=space))


def indexes() -> Iterator[Make]:
    def lookup(name: str = "", at: int = 0, of: Callable[..., s.Rindex] = index()) -> Make:  # noqa: B008
        return lambda place: r.LookupRindex(of(place), entry(name, at))

    def create(name: str, first: int = 0, second: int = 0, space: str = SPACE) -> Make:
        return lambda place: r.CreateResource(first, second, index(space)(place), entry(name))

    def delete(name: str, at: int = 0) -> Make:
        return lambda place: r.DeleteResource(index()(place), entry(name, at))

    def update(flags: int, name: str = "", at: int = 0) -> Make:
        return lambda place: r.UpdateRindex(flags, index()(place), entry(name, at))

    yield lookup("a")  # there is none yet
    for of in (
        index("elsewhere"),
        index(path="none"),
        index(flags=0x10),
        index(flags=0x110),
        index(entries=10),
        index(entries=100_000),
        index(entries=3),
    ):
        yield lambda place, of=of: r.FormatRindex(of(place))  # type: ignore[misc]
    for of in (index("elsewhere"), index("elsewhere", flags=1), index(flags=0x280), index(path="none")):
        yield lookup("a", of=of)
    yield lookup()
    yield from (
        create("a"),
        create("b", 5, 0),
        create("c", 0, 6),
        create("d"),
        create("q", space="elsewhere"),
    )
    yield lookup()  # it is full
    for name, at in (("a", 0), ("", 2 * MIB), ("a", 2 * MIB), ("", 777), ("none", 0)):
        yield lookup(name, at)
    yield from (delete("none"), delete(""), delete("", 4 * MIB), delete("a"), create("a2"), delete("b"))
    yield lookup("", 3 * MIB)
    for change in (
        update(0, "u", 3 * MIB),
        update(ADD, "u", 3 * MIB),
        update(ADD, "", 3 * MIB),
        update(ADD, "u"),
        update(ADD, "u", 777),
        update(REM, "u", 3 * MIB),
        update(REM, "", 2 * MIB),
        update(REM, "a2"),
        update(ADD, "v", 3 * MIB),
    ):
        yield change
        yield lookup("", 3 * MIB)
        yield lookup()
    yield lambda place: r.RebuildRindex(index()(place))
    yield lambda place: r.RebuildRindex(index("elsewhere")(place))
    for slot in (2, 3, 4):
        yield lookup("", slot * MIB)


def comparable(path: Path) -> bytes:
    """Without the times of clearing, and without an index's internal lease, which each host takes in its own way."""
    raw = bytearray(path.read_bytes())
    for at in range(0, len(raw), MIB):
        if raw[at : at + 4] == MAGIC_CLEARED.to_bytes(4, "little"):
            raw[at + _WRITE_TIMESTAMP.start : at + _WRITE_TIMESTAMP.stop] = bytes(8)
    if path.name == INDEX:
        raw[MIB : 2 * MIB] = bytes(MIB)
    return bytes(raw)


class Two:
    """The real daemon and our engine, in a lockspace of the same name."""

    def __init__(self, place: Path) -> None:
        self.theirs, self.ours = place / "theirs", place / "ours"
        for each in (self.theirs, self.ours):
            each.mkdir()
        self.daemon = SanlockDaemon(place, "host-1")
        self.site = EngineSite(Storage(self.ours))
        if installed_version() >= (3, 9):
            self.site.daemon.io_timeout_s = IO_TIMEOUT_S  # its option -o counts where clients say none
        joined = s.Lockspace.of(SPACE, 1, str(blank(self.theirs / SPACE, MIB)))
        for request in (
            r.WriteLockspace(0, 0, IO_TIMEOUT_S, joined),
            r.AddLockspace(0, IO_TIMEOUT_S, joined),
        ):
            done = self.ask(request).result
            assert done == Result.OK, described(done)

    def ask(self, request: r.AnyRequest) -> replies.Reply:
        client = SocketClient(self.daemon.socket_path)
        try:
            return client.ask(request)
        finally:
            client.close()

    async def answers(self, make: Make) -> tuple[str, str]:
        """As text, without the places."""
        theirs, request = self.ask(make(self.theirs)), make(self.ours)
        command = request_table.command_of(request)
        reply = await self.site.ask(request)
        ours = replies.decode(command, reply.encode(request_header(command)))
        return (
            repr(theirs).replace(str(self.theirs), ""),
            repr(ours).replace(str(self.ours), ""),
        )


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    place = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    both = Two(place)
    try:
        yield both
    finally:
        both.daemon.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("scene", [lockspaces, resources, indexes], ids=lambda scene: scene.__name__)
def test_answers_and_bytes_are_those_of_sanlock(two: Two, scene: Callable[[], Iterator[Make]]) -> None:
    for name, length in FILES.items():
        for place in (two.theirs, two.ours):
            blank(place / name, length)

    async def play() -> None:
        for number, make in enumerate(scene()):
            what = f"{number}: {make(two.ours)}"
            theirs, ours = await two.answers(make)
            assert ours == theirs, what
            for name in FILES if isinstance(make(two.ours), WRITES) else ():
                assert comparable(two.ours / name) == comparable(two.theirs / name), f"{name} after {what}"

    asyncio.run(play())
