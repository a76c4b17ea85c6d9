"""One script per command: what it answers, field by field, and whether its connection stays (sanlock-socket.md 2)."""

from __future__ import annotations

import struct
import time

from tests.interop.sanlock.direct import blank_file
from tests.interop.sanlock_socket.client import SocketClient
from tests.interop.sanlock_socket.scene import IO_TIMEOUT_S, NAME, Scene, head, holding
from tests.interop.sanlock_socket.table import plays
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.ondisk.padded_name import PaddedName
from holdfast.system.lvm.lockspace_hosts import lockspace_seen
from holdfast.wire.sanlock import replies, request_table
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import (
    AcquireFlag,
    AddFlag,
    ConfigOrder,
    ForceMode,
    HostState,
    LockspaceFlag,
    ReleaseFlag,
    RemoveFlag,
    RequestFlag,
    ResourceFlag,
    RestrictFlag,
    SizeFlag,
)
from holdfast.wire.sanlock.header import EXIT_HEADER, HEADER_BYTES
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import RecordType, StateRecord, keys_of
from holdfast.wire.sanlock.state_string import parse

OK = replies.Plain()
TICK_S = 1.0
"""Of the daemon's main loop."""
SIZES_512 = SizeFlag.ALIGN_1M | SizeFlag.SECTOR_512


SINCE_3_9 = (RecordType.WORKER, RecordType.RESOURCE_THREAD)
"""Records between the daemon's and the clients'."""


def says_its_keys(scene: Scene, record: StateRecord) -> bool:
    """Whether its text has the keys of the version that its daemon answers, all of them and in their order."""
    version = scene.one.client().ask(r.Version())
    assert isinstance(version, replies.Plain)
    return tuple(record.words) == keys_of(record.type, version.data2)


def stays(client: SocketClient) -> bool:
    """Whether the connection answers on, and nothing else comes before."""
    return client.result(r.Version()) == Result.OK


# --- clients ---


@plays("2/1")
def register_has_no_answer_and_is_seen_at_once(scene: Scene) -> None:
    process = scene.one.process()
    assert scene.one.client().ask(r.Inquire(0, r.Target(process.pid))) == replies.ClientState()
    assert process.client.is_silent()
    assert stays(process.client)


@plays("2/7")
def acquire_is_all_or_nothing_and_leaves_the_connection(scene: Scene) -> None:
    first, second, unformatted = scene.lease(), scene.lease(), scene.blank()
    process = scene.one.process()
    request = r.Acquire(0, r.OWN, (first, second, unformatted))
    assert process.client.ask(request) == replies.Plain(Result.LEADER_MAGIC)
    assert process.client.ask(r.Inquire(0, r.OWN)) == replies.ClientState()
    options = s.Options(PaddedName.of("web1"))
    assert process.client.ask(r.Acquire(0, r.OWN, (first, second), options)) == OK
    state = process.client.asked(r.Inquire(0, r.OWN), replies.ClientState)
    assert parse(state.text) == tuple(
        each._replace(lver=2, flags=ResourceFlag.LVER)
        for each in (first, second)  # the second time that they are acquired
    )
    assert process.client.ask(r.Acquire(0, r.OWN, ())) == OK
    records = scene.one.client().asked(r.Status(2), replies.Records).records
    assert [each.name.text for each in records if each.data32 == process.pid] == [
        ""
    ]  # of the last one: no options


@plays("2/8")
def release_names_what_it_gives_back(scene: Scene) -> None:
    leases = [scene.lease() for _ in range(3)]
    process = holding(scene.one, *leases)
    ask = process.client.ask
    assert ask(r.Release(0, r.OWN, (head(leases[0]), head(scene.blank("none"))))) == replies.Plain(
        Result.FAILED
    )
    assert ask(r.Release(0, r.Target(process.pid), (head(leases[1]),))) == OK
    state = process.client.asked(r.Inquire(0, r.OWN), replies.ClientState)
    assert [each.name for each in parse(state.text)] == [leases[2].name]
    assert ask(r.Release(ReleaseFlag.ALL, r.OWN, ())) == OK
    assert ask(r.Release(ReleaseFlag.ALL, r.OWN, ())) == OK
    assert ask(r.Inquire(0, r.OWN)) == replies.ClientState()


@plays("2/8")
def release_may_rename_a_lease_on_disk(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    renamed = lease._replace(name=PaddedName.of("new-name"))
    request = r.Release(ReleaseFlag.RENAME, r.OWN, (head(lease), head(renamed)))
    assert process.client.ask(request) == OK
    found = scene.one.client().asked(r.ReadResource(renamed), replies.ResourceRead)
    assert (found.result, found.resource.name.text) == (Result.OK, "new-name")


@plays("2/8")
def release_of_orphans_answers_how_many(scene: Scene) -> None:
    leases = [scene.lease() for _ in range(2)]
    holding(scene.one, *[each._replace(flags=ResourceFlag.PERSISTENT) for each in leases]).close()
    asking = scene.one.process()

    def orphans() -> int:
        records = scene.one.client().asked(r.Status(), replies.Records).records
        return sum(each.words.get("list") == "orphan" for each in records)

    wait_until(lambda: orphans() == 2, "orphans")
    every = s.Resource(lockspace=scene.lockspace.name)
    assert asking.client.ask(r.Release(ReleaseFlag.ORPHAN, r.OWN, (every,))) == replies.Plain(2)
    wait_until(lambda: orphans() == 0, "their release")


@plays("2/9")
def inquire_answers_count_and_state_string(scene: Scene) -> None:
    first, second = scene.lease(), scene.lease()
    process = holding(scene.one, first, second._replace(flags=ResourceFlag.SHARED))
    found = scene.one.client().asked(r.Inquire(0, r.Target(process.pid)), replies.ClientState)
    path = str(scene.leases)
    assert found == replies.ClientState(
        Result.OK,
        2,
        f"{NAME}:{first.name.text}:{path}:{first.disks[0].offset_bytes}:1 "
        f"{NAME}:{second.name.text}:{path}:{second.disks[0].offset_bytes}:SH",
    )


@plays("2/10")
def restricted_connection_is_deaf_and_its_client_alive(scene: Scene) -> None:
    lease = scene.lease()
    process = scene.one.process()
    assert process.client.ask(r.Restrict(RestrictFlag.SIGTERM)) == OK
    assert stays(process.client)
    process.client.send(r.Restrict(RestrictFlag.ALL), r.Version(), r.Inquire(0, r.OWN))
    assert process.client.answer(Command.RESTRICT) == OK
    assert process.client.is_silent()
    assert scene.one.client().ask(r.Acquire(0, r.Target(process.pid), (lease,))) == OK


@plays("2/17")
def killpath_is_taken_for_the_own_connection(scene: Scene) -> None:
    process = scene.one.process()
    assert process.client.ask(r.Killpath(0, r.OWN, "/bin/true", "one two")) == OK
    assert stays(process.client)
    assert scene.one.result(r.Killpath(0, r.OWN, "/bin/true", "")) == Result.EBUSY


@plays("2/25", "2/26")
def value_block_is_kept_with_the_lease(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease, flags=AcquireFlag.LVB)
    block = bytes(range(256)) * 2
    other = scene.one.client()
    assert other.ask(r.SetLvb(head(lease), block)) == OK
    assert other.ask(r.GetLvb(0, head(lease))) == replies.ValueBlock(Result.OK, block)
    assert other.ask(r.GetLvb(100, head(lease))) == replies.ValueBlock(Result.OK, block[:100])
    assert process.client.ask(r.Release(ReleaseFlag.ALL, r.OWN, ())) == OK
    assert other.ask(r.GetLvb(0, head(lease))) == replies.ValueBlock(Result.ENOENT)
    again = holding(scene.two, lease, flags=AcquireFlag.LVB)
    assert again.client.ask(r.GetLvb(0, head(lease))) == replies.ValueBlock(Result.OK, block)


@plays("2/27")
def convert_changes_the_mode(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease)
    shared = head(lease)._replace(flags=ResourceFlag.SHARED)
    assert process.client.ask(r.Convert(0, r.OWN, shared)) == OK
    other = holding(scene.two, lease._replace(flags=ResourceFlag.SHARED))
    assert process.client.ask(r.Convert(0, r.OWN, head(lease))) == replies.Plain(Result.EAGAIN)
    other.close()

    def exclusive() -> bool:
        return process.client.result(r.Convert(0, r.OWN, head(lease))) == Result.OK

    wait_until(exclusive, "the shared holder to be gone")


# --- the daemon ---


@plays("2/28")
def version_is_answered_whatever_the_header_says(scene: Scene) -> None:
    client = scene.one.client()
    raw = bytearray(request_table.encode(r.Version()))
    struct.pack_into("<I", raw, 4, 0x20000)  # another major version
    struct.pack_into("<I", raw, 12, 7)  # flags
    struct.pack_into("<I", raw, 20, 9)  # seq
    client.send(bytes(raw))
    found = client.answer(Command.VERSION)
    assert isinstance(found, replies.Plain)
    assert (found.result, found.data2 >> 24, found.data2 & 0xFF) == (Result.OK, 3, 0)
    assert client.header is not None
    assert (client.header.flags, client.header.seq) == (0, 0)
    assert stays(client)


@plays("2/4")
def shutdown_without_force_is_silent_and_ignored_while_joined(scene: Scene) -> None:
    client = scene.one.client()
    client.send(r.Shutdown(0))
    assert client.is_closed()
    assert scene.one.is_in(scene.of(scene.one))


@plays("2/29")
def shutdown_wait_is_refused_while_joined_and_answered_at_the_exit(scene: Scene) -> None:
    client = scene.one.client()
    assert client.ask(r.ShutdownWait(0)) == replies.Plain(Result.EBUSY)
    assert stays(client)
    other = scene.another_host("wait")
    last = other.client()
    last.send(r.ShutdownWait(0))
    assert last.rest() == EXIT_HEADER.encode()


@plays("2/5")
def status_streams_records_and_ends(scene: Scene) -> None:
    lease = scene.lease()
    process = holding(scene.one, lease, options=s.Options(PaddedName.of("web2")))
    client = scene.one.client()
    records = client.asked(r.Status(), replies.Records).records
    assert client.header is not None
    assert (client.header.length, client.header.data2) == (HEADER_BYTES, 0)
    types = [each.type for each in records if each.type not in SINCE_3_9]
    assert types == sorted(types)
    assert types[0] == RecordType.DAEMON
    assert says_its_keys(scene, records[0])
    clients = [each for each in records if each.type == RecordType.CLIENT]
    assert all(says_its_keys(scene, each) for each in clients)
    assert [each.name.text for each in clients[:2]] == ["helper", "listener"]
    assert [each.words["ci"] for each in clients[:2]] == ["0", "1"]
    (holder,) = [each for each in clients if each.data32 == process.pid]
    assert (holder.name.text, holder.words["cmd_last"]) == ("web2", str(Command.ACQUIRE.value))
    assert [each.data32 for each in clients if each.name.text == "status"] == [2**32 - 1]
    (space,) = [each for each in records if each.type == RecordType.LOCKSPACE and each.name.text == NAME]
    assert says_its_keys(scene, space)
    assert (space.data64, space.words["list"], space.words["io_timeout"]) == (1, "spaces", str(IO_TIMEOUT_S))
    assert isinstance(space.attached, s.Lockspace)
    assert space.attached.disk == scene.lockspace.disk
    (held,) = [each for each in records if each.type == RecordType.RESOURCE and each.name == lease.name]
    assert says_its_keys(scene, held)
    assert (held.data32, held.data64, held.words["list"]) == (process.pid, 1, "held")
    assert isinstance(held.attached, s.Resource)
    assert held.attached.disks == lease.disks
    for upto, last in ((1, 1), (2, 2), (3, 3)):
        some = scene.one.client().asked(r.Status(upto), replies.Records).records
        assert max(each.type for each in some if each.type not in SINCE_3_9) == last


@plays("2/6")
def log_dump_says_its_size_in_data_and_ends(scene: Scene) -> None:
    client = scene.one.client()
    log = client.asked(r.LogDump(), replies.Log)
    assert client.header is not None
    assert client.header.length == HEADER_BYTES
    assert scene.log_of_a_join in log.text


# --- lockspaces ---


@plays("2/2", "2/3", "2/16", "2/33")
def lockspace_is_added_kept_and_removed(scene: Scene) -> None:
    lockspace = scene.new_lockspace("ADDED")
    client = scene.one.client()
    began = time.monotonic()
    assert client.ask(r.AddLockspace(0, IO_TIMEOUT_S, lockspace)) == OK
    assert time.monotonic() - began >= 2 * IO_TIMEOUT_S
    assert client.ask(r.InqLockspace(0, lockspace)) == OK
    assert client.ask(r.InqLockspace(0, lockspace._replace(host_id=0))) == OK
    assert client.ask(r.InqLockspace(0, lockspace._replace(host_id=2))) == replies.Plain(Result.ENOENT)

    def order(number: int, seconds: int = 0) -> int:
        asking = scene.one.client()
        result = asking.result(r.SetConfig(number, seconds, lockspace))
        assert asking.is_closed()
        return result

    for number in (ConfigOrder.USED_BY_ORPHANS, ConfigOrder.UNUSED_BY_ORPHANS, ConfigOrder.USED):
        assert order(number) == Result.OK
    assert order(99) == Result.EINVAL
    # Only sanlock 5 changes it while the lockspace is joined (test_newer_commands.py).
    assert order(ConfigOrder.IO_TIMEOUT, 3) == Result.EINVAL
    removing = scene.one.client()
    removing.send(r.RemLockspace(0, lockspace))
    time.sleep(2 * TICK_S)
    assert removing.is_silent()  # it is used
    assert scene.one.is_in(lockspace)
    assert order(ConfigOrder.UNUSED) == Result.OK
    assert removing.answer(Command.REM_LOCKSPACE) == OK
    assert client.ask(r.InqLockspace(0, lockspace)) == replies.Plain(Result.ENOENT)


@plays("2/3", "2/16", "2/22", "2.1/-115")
def lockspace_that_is_removed_in_the_background_is_seen_leaving(scene: Scene) -> None:
    lockspace = scene.new_lockspace("LEAVING")
    client = scene.one.client()
    assert client.ask(r.AddLockspace(AddFlag.ASYNC, IO_TIMEOUT_S, lockspace)) == OK
    assert client.ask(r.InqLockspace(0, lockspace)) == replies.Plain(Result.EINPROGRESS)
    assert client.ask(r.AddLockspace(0, IO_TIMEOUT_S, lockspace)) == replies.Plain(Result.EINPROGRESS)
    asking = scene.one.client()
    found = asking.asked(r.GetLockspaces(), replies.Lockspaces).lockspaces
    assert asking.is_closed()
    by_name = {each.name.text: each for each in found}
    assert (by_name[NAME].host_id, by_name[NAME].flags, by_name[NAME].disk) == (1, 0, scene.lockspace.disk)
    assert by_name["LEAVING"].flags == LockspaceFlag.ADD
    assert client.ask(r.InqLockspace(1, lockspace)) == OK  # WAIT
    assert client.ask(r.RemLockspace(RemoveFlag.ASYNC, lockspace)) == OK
    seen = [OK.result]

    def gone() -> bool:
        result = client.result(r.InqLockspace(0, lockspace))
        if result != seen[-1]:
            seen.append(result)
            if result == Result.EINPROGRESS:
                assert client.result(r.RemLockspace(0, lockspace)) == Result.EINPROGRESS
                assert client.result(r.AddLockspace(0, IO_TIMEOUT_S, lockspace)) == Result.EAGAIN
        return result == Result.ENOENT

    wait_until(gone, "the lockspace to be gone")
    assert seen == [Result.OK, Result.EINPROGRESS, Result.ENOENT]


@plays("2/13", "2/14")
def examine_answers_0_always(scene: Scene) -> None:
    client = scene.one.client()
    for lockspace in (scene.of(scene.one), s.Lockspace.of("none", 1, "/none")):
        assert client.ask(r.ExamineLockspace(lockspace)) == OK
    assert client.ask(r.ExamineResource(head(scene.lease()))) == OK
    assert stays(client)


@plays("2/15")
def host_status_streams_the_hosts_and_ends(scene: Scene) -> None:
    records = scene.one.client().asked(r.HostStatus(scene.of(scene.one)), replies.Records).records
    assert [(each.type, each.data32) for each in records] == [(RecordType.HOST, 1), (RecordType.HOST, 2)]
    assert all(says_its_keys(scene, each) for each in records)
    assert [each.words["owner_name"] for each in records] == [
        scene.record_of(host).host_name.text for host in (scene.one, scene.two)
    ]
    assert all(each.data64 for each in records)
    unknown = scene.one.client().ask(r.HostStatus(s.Lockspace.of("none")))
    assert unknown == replies.Records(Result.ENOSPC)


@plays("2/15")
def hosts_of_a_lockspace_are_those_that_who_names(scene: Scene) -> None:
    space, path = scene.lockspace.name.text, str(scene.one.daemon.socket_path)
    seen = lockspace_seen(space, path)
    assert seen is not None
    assert seen.host_id == 1
    found = [(each.host_id, each.generation, each.state, each.io_timeout_s) for each in seen.hosts]
    assert found == [
        (host_id, scene.record_of(host).generation, "LIVE", IO_TIMEOUT_S)
        for host_id, host in ((1, scene.one), (2, scene.two))
    ]
    assert [each.name for each in seen.hosts] == [
        scene.record_of(host).host_name.text for host in (scene.one, scene.two)
    ]
    assert all(each.unchanged_s < 8 * IO_TIMEOUT_S for each in seen.hosts)
    assert lockspace_seen("none", path) is None


@plays("2/34")
def renewal_streams_the_history_and_ends(scene: Scene) -> None:
    found = scene.one.client().asked(r.Renewal(scene.of(scene.one)), replies.Records)
    assert (found.result, found.data2) == (Result.OK, IO_TIMEOUT_S)
    assert {each.type for each in found.records} == {RecordType.RENEWAL}
    assert all(says_its_keys(scene, each) for each in found.records)
    assert (found.records[0].words["read_ms"], found.records[0].words["write_ms"]) == ("0", "0")
    times = [each.data64 for each in found.records]
    assert times == sorted(times)
    assert scene.one.client().ask(r.Renewal(s.Lockspace.of("none"))) == replies.Records(Result.ENOSPC)


@plays("2/23")
def get_hosts_lists_used_ids_or_the_one_that_is_asked_for(scene: Scene) -> None:
    def hosts(host_id: int) -> tuple[s.Host, ...]:
        client = scene.one.client()
        found = client.asked(r.GetHosts(0, scene.lockspace._replace(host_id=host_id)), replies.Hosts)
        assert found.result == Result.OK
        assert client.is_closed()
        return found.hosts

    assert [(h.host_id, h.generation, h.io_timeout_s, h.state) for h in hosts(0)] == [
        (1, scene.record_of(scene.one).generation, IO_TIMEOUT_S, HostState.LIVE),
        (2, scene.record_of(scene.two).generation, IO_TIMEOUT_S, HostState.LIVE),
    ]
    (free,) = hosts(3)
    assert (free.host_id, free.generation, free.timestamp, free.state) == (3, 0, 0, HostState.FREE)
    assert hosts(2001) == ()


@plays("2/30", "2/31", "2/32")
def event_reaches_the_other_hosts_channel(scene: Scene) -> None:
    channel, quiet = scene.one.client(), scene.one.client()
    assert channel.ask(r.RegEvent(scene.of(scene.one))) == OK
    assert quiet.ask(r.RegEvent(scene.of(scene.one))) == OK
    event = s.HostEvent(1, scene.record_of(scene.one).generation, 0xABC, 0xDEF)
    assert scene.two.result(r.SetEvent(0, scene.of(scene.two), event)) == Result.OK
    for _ in range(2):  # at each renewal of the sender while its bit is set
        raw = channel.receive(s.EVENT_CALLBACK_BYTES)
        assert s.EventCallback.decode(raw) == s.EventCallback(event, 2, scene.record_of(scene.two).generation)
    channel.send(b"\1\0\0\0")
    assert scene.one.result(r.EndEvent(scene.of(scene.one))) == Result.OK
    assert len(channel.rest()) % s.EVENT_CALLBACK_BYTES == 0
    assert s.EventCallback.decode(quiet.receive(s.EVENT_CALLBACK_BYTES)).event == event  # it was not ended


# --- leases on storage ---


@plays("2/12")
def align_of_a_file_is_a_mebibyte(scene: Scene) -> None:
    client = scene.one.client()
    assert client.ask(r.Align(s.Disk(str(scene.leases)))) == replies.Plain(MIB)
    assert stays(client)


@plays("2/18", "2/20")
def lockspace_is_written_and_read(scene: Scene) -> None:
    path = blank_file(scene.place / "WRITTEN", 8 * MIB)
    sizes = SizeFlag.ALIGN_8M | SizeFlag.SECTOR_4K
    for flags, expected in ((0, SIZES_512), (sizes, sizes)):
        lockspace = s.Lockspace.of("WRITTEN", 3, str(path), flags=flags)
        client = scene.one.client()
        assert client.ask(r.WriteLockspace(0, 0, 7, lockspace)) == OK
        found = client.asked(r.ReadLockspace(s.Lockspace.of("", 3, str(path))), replies.LockspaceRead)
        assert (found.result, found.io_timeout_s) == (Result.OK, 7)
        assert found.lockspace == s.Lockspace.of("WRITTEN", 3, str(path), flags=expected)
        assert stays(client)


@plays("2/19", "2/21")
def resource_is_written_read_and_cleared(scene: Scene) -> None:
    resource = scene.blank()
    client = scene.one.client()
    assert client.ask(r.WriteResource(0, 0, 0, resource)) == OK
    nameless = s.Resource(num_disks=1, disks=resource.disks)
    found = client.asked(r.ReadResource(nameless), replies.ResourceRead)
    assert found == replies.ResourceRead(Result.OK, head(resource)._replace(flags=SIZES_512))
    assert client.ask(r.WriteResource(1, 0, 0, resource)) == OK  # CLEAR
    assert client.ask(r.ReadResource(resource)).result == Result.LEADER_MAGIC
    assert stays(client)


@plays("2/24")
def owners_are_the_exclusive_one_or_those_that_share(scene: Scene) -> None:
    lease = scene.lease()

    def owners() -> replies.OwnersRead:
        return scene.two.client().asked(r.ReadResourceOwners(lease), replies.OwnersRead)

    assert (owners().result, owners().hosts) == (Result.OK, ())
    process = holding(scene.one, lease)
    (host,) = owners().hosts
    assert (host.host_id, host.io_timeout_s, host.flags) == (1, 0, 0)
    assert host.generation == scene.record_of(scene.one).generation
    assert host.timestamp
    assert owners().resource.lver == 1
    assert process.client.result(r.Release(ReleaseFlag.ALL, r.OWN, ())) == Result.OK
    for each in (scene.one, scene.two):
        holding(each, lease._replace(flags=ResourceFlag.SHARED))
    assert [(h.host_id, h.timestamp) for h in owners().hosts] == [(1, 0), (2, 0)]
    assert owners().resource.flags & ResourceFlag.SHARED


@plays("2/11")
def request_is_left_for_the_holder(scene: Scene) -> None:
    lease = scene.lease()
    client = scene.two.client()
    graceful = r.Request(RequestFlag.NEXT_LVER, ForceMode.GRACEFUL, lease)
    assert client.ask(graceful) == OK  # free: nothing is written
    assert struct.unpack_from("<IIQI", scene.sector(lease, DEFAULT.request_offset_bytes))[2:] == (0, 0)
    process = holding(scene.one, lease)
    assert client.ask(graceful) == OK
    assert struct.unpack_from("<IIQI", scene.sector(lease, DEFAULT.request_offset_bytes))[2:] == (2, 2)
    assert process.terms(wait_s=10) == 1
    assert process.client.result(r.Release(ReleaseFlag.ALL, r.OWN, ())) == Result.OK
    assert stays(client)


def _index(scene: Scene) -> tuple[s.Rindex, s.Lockspace]:
    """A fresh one of the scene's lockspace."""
    path = blank_file(scene.place / f"index-{time.monotonic_ns()}", 8 * MIB)
    return s.Rindex(PaddedName.of(NAME), 0, 0, s.Disk(str(path))), scene.lockspace


@plays("2/35", "2/36", "2/37", "2/38", "2/39", "2/40")
def index_finds_what_was_created(scene: Scene) -> None:
    index, _ = _index(scene)
    client = scene.one.client()

    def entry(name: str = "", offset_bytes: int = 0) -> s.RindexEntry:
        return s.RindexEntry(PaddedName.of(name), offset_bytes)

    def found(request: r.AnyRequest) -> tuple[int, str, int]:
        reply = client.asked(request, replies.IndexEntry)
        assert client.header is not None
        assert client.header.length == HEADER_BYTES + s.RINDEX_ENTRY_BYTES
        return reply.result, reply.entry.name.text, reply.entry.offset_bytes

    assert client.ask(r.FormatRindex(index)) == OK
    assert found(r.CreateResource(0, 0, index, entry("one"))) == (0, "", 2 * MIB)
    assert found(r.CreateResource(0, 0, index, entry("two"))) == (0, "", 3 * MIB)
    assert found(r.LookupRindex(index, entry("two"))) == (0, "two", 3 * MIB)
    assert found(r.LookupRindex(index, entry("", 2 * MIB))) == (0, "one", 2 * MIB)
    assert found(r.LookupRindex(index, entry()))[2] == 4 * MIB  # the first free one
    assert found(r.LookupRindex(index, entry("none")))[0] == Result.ENOENT
    assert found(r.DeleteResource(index, entry("one"))) == (0, "", 0)
    assert found(r.LookupRindex(index, entry("one")))[0] == Result.ENOENT
    added = s.RindexEntry(PaddedName.of("three"), 5 * MIB)
    update = index._replace(flags=0x10000)
    assert found(r.UpdateRindex(0x10000, update, added._replace(flags=0x10000))) == (0, "three", 5 * MIB)
    assert found(r.LookupRindex(index, entry("three"))) == (0, "three", 5 * MIB)
    assert client.ask(r.RebuildRindex(index)) == OK  # there is no lease at its place
    assert found(r.LookupRindex(index, entry("three")))[0] == Result.ENOENT
    assert found(r.LookupRindex(index, entry("two"))) == (0, "two", 3 * MIB)
    assert stays(client)
