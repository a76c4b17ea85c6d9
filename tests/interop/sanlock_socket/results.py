"""One script per result code that a client can be given, beside those of commands (sanlock-socket.md 2.1)."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from tests.interop.sanlock.direct import blank_file, read_at, write_at
from tests.interop.sanlock_socket.scene import IO_TIMEOUT_S, NAME, Scene, head, holding
from tests.interop.sanlock_socket.table import plays
from tests.support.polling import wait_until

from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import PaddedName
from holdfast.ondisk.record_layout import COVERED_BYTES
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import (
    AcquireFlag,
    ForceMode,
    RemoveFlag,
    ResourceFlag,
    SizeFlag,
)
from holdfast.wire.sanlock.header import HEADER_BYTES, decode_header
from holdfast.wire.sanlock.result import Result

NOBODY = r.Target(999_999)
"""A pid of no client."""
VERSION_AT, FLAGS_AT, TIMESTAMP_AT = 4, 8, 152
SILENT_HOST = 7


def acquired(scene: Scene, *resources: s.Resource, flags: int = 0, host: int = 1) -> int:
    """The result of an acquire by a new process of that host."""
    process = (scene.one if host == 1 else scene.two).process()
    return process.client.result(r.Acquire(flags, r.OWN, resources))


# --- errno values ---


@plays("2.1/0", "2.1/-1", "2.1/-17")
def held_here_is_held(scene: Scene) -> None:
    lease = scene.lease()
    assert acquired(scene, lease) == Result.OK
    assert acquired(scene, lease) == Result.EEXIST
    assert acquired(scene, lease._replace(flags=ResourceFlag.SHARED)) == Result.EEXIST
    process = scene.one.process()
    assert process.client.result(r.Release(0, r.OWN, (head(lease),))) == Result.FAILED
    assert scene.one.result(r.AddLockspace(0, IO_TIMEOUT_S, scene.of(scene.one))) == Result.EEXIST


@plays("2.1/-2")
def what_is_not_there_is_said(scene: Scene) -> None:
    unknown = s.Lockspace.of("none", 1, "/none")
    for request in (
        r.InqLockspace(0, unknown),
        r.RemLockspace(0, unknown),
        r.GetHosts(0, unknown),
        r.SetEvent(0, unknown, s.HostEvent(1)),
        r.SetConfig(1, 0, unknown),
        r.RegEvent(unknown),
        r.EndEvent(unknown),
        r.SetLvb(head(scene.lease()), b"v" * 512),
        r.GetLvb(0, head(scene.lease())),
    ):
        assert scene.one.result(request) == Result.ENOENT, request
    nowhere = s.Resource.of(NAME, "R", s.Disk("/none"))
    for on_disk in (r.ReadResource(nowhere), r.WriteResource(0, 0, 0, nowhere)):
        assert scene.one.result(on_disk) == Result.ENOENT
    process = scene.one.process()
    assert process.client.result(r.Convert(0, r.OWN, head(scene.lease()))) == Result.ENOENT
    assert process.client.result(r.Acquire(0, r.OWN, (nowhere,))) == Result.ENOENT


@plays("2.1/-3", "2.1/-16")
def target_has_to_be_registered(scene: Scene) -> None:
    lease = scene.lease()
    for target, result in ((NOBODY, Result.ESRCH), (r.OWN, Result.EBUSY)):
        for request in (
            r.Acquire(0, target, (lease,)),
            r.Release(0, target, (head(lease),)),
            r.Inquire(0, target),
            r.Convert(0, target, head(lease)),
        ):
            assert scene.one.result(request) == result
    holding(scene.one, lease)
    assert scene.one.result(r.RemLockspace(RemoveFlag.UNUSED, scene.of(scene.one))) == Result.EBUSY


@plays("2.1/-7", "2.1/-34")
def refused_before_the_body_is_read(scene: Scene) -> None:
    lease = scene.lease()
    # Six disks and 4128 bytes are whole headers: 3.8.5 reads the body of some refused requests as headers, and a half
    # one stops the daemon.
    six = s.Resource.of(NAME, "R", *[lease.disks[0]] * 6)
    none = s.Resource.of(NAME, "R")
    process = scene.one.process()
    assert process.client.result(r.Acquire(0, r.OWN, (lease,) * 9)) == Result.E2BIG
    for wrong in (six, none):
        assert scene.one.process().client.result(r.Acquire(0, r.OWN, (lease, wrong))) == Result.ERANGE
        for request in (r.Request(0, 1, wrong), r.WriteResource(0, 0, 0, wrong)):
            assert scene.one.result(request) == Result.ERANGE
        for reading in (r.ReadResource(wrong), r.ReadResourceOwners(wrong)):
            found = scene.one.client().ask(reading)
            assert isinstance(found, replies.ResourceRead | replies.OwnersRead)
            assert (found.result, found.resource) == (Result.ERANGE, head(wrong))
    assert scene.one.result(r.SetLvb(head(lease), b"v" * 4128)) == Result.E2BIG


@plays("2.1/-12")
def value_block_of_fewer_bytes_than_none(scene: Scene) -> None:
    raw = request_table.encode(r.SetLvb(head(scene.lease()), b""))
    client = scene.one.client()
    client.send(decode_header(raw)._replace(length=HEADER_BYTES).encode() + raw[HEADER_BYTES:])
    assert client.answer(Command.SET_LVB).result == Result.ENOMEM
    assert client.result(r.Version()) == Result.OK


@plays("2.1/-11", "2.1/-243")
def held_by_a_living_host(scene: Scene) -> None:
    exclusive, shared = scene.lease(), scene.lease()
    holding(scene.two, exclusive, shared._replace(flags=ResourceFlag.SHARED))
    for flags in (0, ResourceFlag.SHARED):
        assert acquired(scene, exclusive._replace(flags=flags)) == Result.ACQUIRE_IDLIVE
    assert acquired(scene, shared) == Result.EAGAIN
    assert acquired(scene, shared._replace(flags=ResourceFlag.SHARED)) == Result.OK


@plays("2.1/-19", "2.1/-22")
def lockspace_that_can_not_be(scene: Scene) -> None:
    ask = scene.one.result
    for path in ("/none/none", "/none"):
        lockspace = s.Lockspace.of("X", 1, path)
        assert ask(r.AddLockspace(0, 1, lockspace)) == Result.ENODEV
        assert ask(r.WriteLockspace(0, 0, 1, lockspace)) == Result.ENODEV
        assert ask(r.ReadLockspace(lockspace)) == Result.ENODEV
        assert ask(r.Align(s.Disk(path))) == Result.ENODEV
    ours = scene.of(scene.one)
    for wrong in (
        s.Lockspace.of("", 1, "/x"),
        s.Lockspace.of("X", 0, "/x"),
        s.Lockspace.of("X", 1, ""),
        ours._replace(host_id=3),
        ours._replace(disk=s.Disk("/x")),
        ours._replace(name=PaddedName.of("X")),
    ):
        assert ask(r.AddLockspace(0, 1, wrong)) == Result.EINVAL, wrong
    lease = scene.lease()
    holding(scene.one, lease)  # without a value block
    assert ask(r.SetLvb(head(lease), b"v" * 512)) == Result.EINVAL
    assert ask(r.GetLvb(0, head(lease))) == Result.EINVAL
    assert ask(r.SetEvent(0, ours, s.HostEvent(0))) == Result.EINVAL


@plays("2.1/-28")
def lockspace_that_is_not_joined(scene: Scene) -> None:
    stranger = scene.lease(lockspace="none")
    assert acquired(scene, stranger) == Result.ENOSPC
    assert scene.one.result(r.Request(0, ForceMode.FORCE, stranger)) == Result.ENOSPC
    for request in (r.HostStatus(s.Lockspace.of("none")), r.Renewal(s.Lockspace.of("none"))):
        assert scene.one.result(request) == Result.ENOSPC


@plays("2.1/-50")
def thirty_third_event_channel(scene: Scene) -> None:
    lockspace = scene.of(scene.one)
    for _ in range(32):
        assert scene.one.client().result(r.RegEvent(lockspace)) == Result.OK
    last = scene.one.client()
    assert last.result(r.RegEvent(lockspace)) == Result.ENOCSI
    assert last.is_closed()
    scene.one.close_clients()
    assert scene.one.result(r.EndEvent(lockspace)) == Result.OK  # those at their end are given up


@plays("2.1/-81")
def path_with_a_space_is_not_in_the_state_string(scene: Scene) -> None:
    path = blank_file(scene.place / "a b", 2 * MIB)
    spaced = s.Resource.of(NAME, "spaced", s.Disk(str(path), MIB))
    assert scene.one.result(r.WriteResource(0, 0, 0, spaced)) == Result.OK
    process = holding(scene.one, scene.lease(), spaced)
    found = process.client.ask(r.Inquire(0, r.OWN))
    assert found == replies.ClientState(Result.ELIBSCN, 2, "")
    assert process.client.header is not None
    assert process.client.header.length == HEADER_BYTES + 1


@plays("2.1/-90")
def end_of_the_file(scene: Scene) -> None:
    beyond = s.Resource.of(NAME, "R", s.Disk(str(scene.leases), 1 << 40))
    assert scene.one.result(r.ReadResource(beyond)) == Result.EMSGSIZE


@plays("2.1/-107")
def body_that_ends_too_early(scene: Scene) -> None:
    lease = scene.lease()
    for request in (
        r.Acquire(0, r.OWN, (lease,)),
        r.Release(0, r.OWN, (head(lease),)),
        r.Killpath(0, r.OWN, "/bin/true", ""),
        r.InqLockspace(0, scene.lockspace),
        r.GetHosts(0, scene.lockspace),
        r.ReadLockspace(scene.lockspace),
        r.ReadResource(lease),
        r.CreateResource(0, 0, s.Rindex(), s.RindexEntry()),
    ):
        client = scene.one.process().client
        client.send(request_table.encode(request)[:-10])
        client.sock.shutdown(1)  # no more is sent
        assert client.answer(request_table.command_of(request)).result == Result.ENOTCONN
        assert client.is_closed()


@plays("2.1/-114")
def mode_that_it_has_already(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    assert process.client.result(r.Convert(0, r.OWN, head(lease))) == Result.EALREADY


@plays("2.1/-117")
def orphan_has_to_be_asked_for(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease._replace(flags=ResourceFlag.PERSISTENT))
    process.close()
    wait_until(lambda: acquired(scene, lease) == Result.EUCLEAN, "the orphan")
    shared = lease._replace(flags=ResourceFlag.SHARED)
    assert acquired(scene, shared, flags=AcquireFlag.ORPHAN) == Result.EUCLEAN
    assert acquired(scene, lease, flags=AcquireFlag.ORPHAN_ONLY) == Result.OK


@plays("2.1/-203")
def watchdog_that_can_not_be_reached(scene: Scene) -> None:
    lockspace = scene.new_lockspace("GUARDED")
    host = scene.another_host("guarded", "-w", "1")
    assert host.result(r.AddLockspace(0, IO_TIMEOUT_S, lockspace)) == Result.WD_ERROR


# --- records on storage ---


def _sealed(sector: bytes, at: int, raw: bytes) -> bytes:
    """A leader's sector with other bytes, and the checksum that fits them."""
    changed = bytearray(sector)
    changed[at : at + len(raw)] = raw
    struct.pack_into("<I", changed, COVERED_BYTES, sanlock_crc32c(bytes(changed[:COVERED_BYTES])))
    return bytes(changed)


@plays("2.1/-223", "2.1/-224", "2.1/-226", "2.1/-227", "2.1/-229")
def leader_record_that_is_none(scene: Scene) -> None:
    assert acquired(scene, scene.blank()) == Result.LEADER_MAGIC
    for at, raw, result in (
        (VERSION_AT, struct.pack("<I", 0x00090000), Result.LEADER_VERSION),
        (TIMESTAMP_AT, b"\1", Result.LEADER_CHECKSUM),
    ):
        lease = scene.lease()
        scene.overwrite(lease, at, raw)
        assert acquired(scene, lease) == result
    lease = scene.lease()
    wrong_name = lease._replace(name=PaddedName.of("another"))
    assert acquired(scene, wrong_name) == Result.LEADER_RESOURCE
    assert scene.one.result(r.ReadResource(wrong_name)) == Result.LEADER_RESOURCE
    wrong_space = lease._replace(lockspace=PaddedName.of("another"))
    assert scene.one.result(r.ReadResource(wrong_space)) == Result.LEADER_LOCKSPACE
    assert acquired(
        scene, scene.lease("theirs", lockspace="another")._replace(lockspace=lease.lockspace)
    ) == (Result.LEADER_LOCKSPACE)


@plays("2.1/-228")
def lease_without_room_for_the_host(scene: Scene) -> None:
    lease = scene.lease(hosts=1)
    assert acquired(scene, lease, host=2) == Result.LEADER_NUMHOSTS
    assert acquired(scene, lease) == Result.OK


@plays("2.1/-222")
def leaders_that_differ(scene: Scene) -> None:
    first, second = scene.lease("both"), scene.lease("both")
    holding(scene.one, first)
    scene.one.close_clients()
    both = s.Resource.of(NAME, "both", *first.disks, *second.disks)
    if scene.start == "holdfast":
        assert (
            acquired(scene, both) == Result.EINVAL
        )  # a lease on several disks is refused: sanlock 5 has dropped them
        return
    wait_until(lambda: acquired(scene, both) == Result.LEADER_DIFF, "the difference")


@plays("2.1/-214")
def host_block_whose_checksum_does_not_match(scene: Scene) -> None:
    lease = scene.lease()
    scene.overwrite(lease, DEFAULT.host_block_offset_bytes(SILENT_HOST), b"\7" * 52)
    assert acquired(scene, lease) == Result.DBLOCK_CHECKSUM


@plays("2.1/-230", "2.1/-231")
def lockspace_whose_sizes_or_host_id_are_impossible(scene: Scene) -> None:
    lockspace = scene.new_lockspace("SIZES")
    ask = scene.one.result
    too_high = lockspace._replace(host_id=2001)
    assert ask(r.AddLockspace(0, IO_TIMEOUT_S, too_high)) == Result.ADDLS_INVALID_HOSTID
    path = Path(lockspace.disk.path)
    eight_mebibytes = struct.pack("<I", SizeFlag.ALIGN_8M)
    write_at(path, 0, _sealed(read_at(path, 0, DEFAULT.sector_bytes), FLAGS_AT, eight_mebibytes))
    assert ask(r.AddLockspace(0, IO_TIMEOUT_S, lockspace)) == Result.ADDLS_SIZES


@plays("2.1/-240")
def version_that_the_lease_does_not_have(scene: Scene) -> None:
    lease = scene.lease()._replace(flags=int(ResourceFlag.LVER), lver=9)
    assert acquired(scene, lease) == Result.ACQUIRE_LVER


@plays("2.1/-247")
def owner_that_may_be_dead(scene: Scene) -> None:
    """A host that was never seen to renew, with a record that is not free."""
    lockspace = scene.new_lockspace("SILENT")
    path, at = Path(lockspace.disk.path), DEFAULT.delta_offset_bytes(SILENT_HOST)
    record = DeltaLease.decode(read_at(path, at, DEFAULT.sector_bytes))
    assert isinstance(record, DeltaLease)
    name = PaddedName.of("silent")
    silent = dataclasses.replace(record, owner_id=SILENT_HOST, generation=1, host_name=name, timestamp=100)
    write_at(path, at, silent.sector())
    lease = scene.lease(lockspace="SILENT")
    leader = Leader.decode(scene.sector(lease, 0))
    assert isinstance(leader, Leader)
    owned = dataclasses.replace(leader, owner_id=SILENT_HOST, owner_generation=1, timestamp=100, lver=1)
    scene.overwrite(lease, 0, owned.sector())
    process = scene.one.process()
    scene.one.join(
        lockspace
    )  # last: after its next renewal sanlock takes a host that it saw for one that lives
    request = r.Acquire(AcquireFlag.OWNER_NOWAIT, r.OWN, (lease,))
    assert process.client.result(request) == Result.ACQUIRE_OWNED_RETRY
    assert scene.one.result(r.RemLockspace(RemoveFlag.ASYNC, lockspace)) == Result.OK


@plays("2.1/-250", "2.1/-251")
def lease_that_was_changed_while_it_was_held(scene: Scene) -> None:
    for result, change in (
        (Result.RELEASE_LVER_3, {"lver": 40}),
        (Result.RELEASE_OWNER_3, {"owner_id": 2}),
    ):
        lease = scene.lease()
        process = holding(scene.one, lease)
        leader = Leader.decode(scene.sector(lease, 0))
        assert isinstance(leader, Leader)
        scene.overwrite(lease, 0, dataclasses.replace(leader, **change).sector())  # type: ignore[arg-type]
        assert process.client.result(r.Release(0, r.OWN, (head(lease),))) == result


@plays("2.1/-270", "2.1/-271", "2.1/-272", "2.1/-273")
def request_that_can_not_be_left(scene: Scene) -> None:
    def requested(lease: s.Resource, lver: int) -> int:
        return scene.two.result(r.Request(0, ForceMode.GRACEFUL, lease._replace(lver=lver)))

    lease = scene.lease()
    process = holding(scene.one, lease)
    assert requested(lease, 1) == Result.REQUEST_OLD
    scene.overwrite(lease, DEFAULT.request_offset_bytes + 8, struct.pack("<Q", 9))
    assert requested(lease, 8) == Result.REQUEST_LVER
    scene.overwrite(lease, DEFAULT.request_offset_bytes + 4, struct.pack("<I", 0x00090000))
    assert requested(lease, 10) == Result.REQUEST_VERSION
    scene.overwrite(lease, DEFAULT.request_offset_bytes, b"\0")
    assert requested(lease, 10) == Result.REQUEST_MAGIC
    assert process.runs()


@plays("2.1/-274", "2.1/-275", "2.1/-276", "2.1/-277", "2.1/-278")
def index_that_is_none(scene: Scene) -> None:
    path = blank_file(scene.place / "index", 8 * MIB)
    index = s.Rindex(PaddedName.of(NAME), 0, 0, s.Disk(str(path)))
    client = scene.one.client()

    def looked_up(entry: s.RindexEntry = s.RindexEntry(), place: s.Rindex = index) -> int:  # noqa: B008
        return client.result(r.LookupRindex(place, entry))

    assert looked_up() == Result.RINDEX_MAGIC
    assert client.result(r.FormatRindex(index)) == Result.OK
    for name in ("one", "two"):
        created = r.CreateResource(0, 0, index, s.RindexEntry(PaddedName.of(name)))
        assert client.result(created) == Result.OK
    assert looked_up(s.RindexEntry(PaddedName.of("one"), 3 * MIB)) == Result.RINDEX_DIFF
    good = read_at(path, 0, DEFAULT.sector_bytes)
    for at, raw, result in (
        (4, struct.pack("<I", 0x00090000), Result.RINDEX_VERSION),
        (24, struct.pack("<Q", MIB), Result.RINDEX_OFFSET),
        (32, b"XX", Result.RINDEX_LOCKSPACE),
    ):
        write_at(path, 0, good[:at] + raw + good[at + len(raw) :])
        assert looked_up() == result
