"""What a client of the virtlockd socket sees: the captured bytes, odd input, check order, codes (virtlockd-rpc.md 1-3)."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd, bystander, exists, locked, make_disk
from tests.support.examples import PING, PONG, REPLIES, UNKNOWN_PROCEDURE
from tests.support.polling import wait_until

from holdfast.testing.virtlockd_client import AUTOCREATE, SHARED, CallFailed, VirtlockdClient
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire
from holdfast.wire import xdr

NOBODY = 65534


def frame(
    procedure: int,
    payload: bytes = b"",
    *,
    serial: int = 0,
    program: int = rpc.PROGRAM_LOCKSPACE,
    version: int = 1,
    kind: int = 0,
    status: int = 0,
) -> bytes:
    return rpc.encode(rpc.Header(program, version, procedure, kind, serial, status), payload)


def exchange(client: VirtlockdClient, raw: bytes) -> rpc.Message:
    client.socket.sendall(raw)
    return client.receive()


def error_of(client: VirtlockdClient, raw: bytes) -> rpc.ErrorReply:
    header, payload = exchange(client, raw)
    assert (header.type, header.status) == (rpc.TYPE_REPLY, rpc.STATUS_ERROR)
    return rpc.ErrorReply.decode(payload)


def assert_alive(client: VirtlockdClient) -> None:
    client.socket.sendall(PING)
    assert client.receive().header.procedure == rpc.KEEPALIVE_PONG


def assert_closed(client: VirtlockdClient) -> None:
    try:
        assert client.socket.recv(1) == b""
    except ConnectionResetError:
        pass


def acquire_frame(name: str, *, lockspace: str = "", flags: int = 0, serial: int = 0) -> bytes:
    return frame(6, wire.ResourceCall(lockspace, name, flags).encode(), serial=serial)


@pytest.fixture
def client(shared_daemon: Holdfastd) -> Iterator[VirtlockdClient]:
    with shared_daemon.client() as client:
        yield client


# --- captured bytes ---


def test_captured_dialogue_is_answered_byte_for_byte(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    with shared_daemon.client() as client:
        space = tmp_path / "spaces" / "files"
        steps = [
            (frame(8, wire.CreateLockspace(str(space)).encode()), REPLIES["create_lockspace"][0]),
            (
                frame(1, wire.Register(bytes(16), "vm1", 1, bystander(), 0).encode(), serial=1),
                REPLIES["register"][0],
            ),
            (acquire_frame(str(make_disk(tmp_path)), serial=2), REPLIES["acquire"][0]),
            (acquire_frame("/nope", serial=6), REPLIES["no_file"][0]),
            (UNKNOWN_PROCEDURE, REPLIES["unknown_procedure"][0]),
            (PING, PONG),
        ]
        for call, reply in steps:
            client.socket.sendall(call)
            assert client._exactly(len(reply)) == reply
        client.release(str(tmp_path / "disk.img"))


def test_refusal_is_87_51_and_begins_as_virtlockds_and_names_the_holder(
    shared_daemon: Holdfastd, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path)
    uuid = "11111111-2222-3333-4444-555555555555"
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander(), name="web1", uuid=uuid)
        one.acquire(str(disk))
        two.register(pid=bystander(1), name="web2")
        reply = error_of(two, acquire_frame(str(disk)))
        assert (reply.code, reply.domain, reply.int1, reply.int2) == (87, 51, -1, -1)
        assert reply.str1 == "resource busy: %s"
        assert reply.message == f"resource busy: {reply.str2}"
        assert reply.message.startswith(f"resource busy: Lockspace resource '{disk}' is locked")
        for fact in ("web1", uuid, str(bystander()), os.uname().nodename, "since "):
            assert fact in reply.message
        one.release(str(disk))


# --- odd input, table 2.1 ---


@pytest.mark.parametrize("length", [0, 1, 2, 3, 33554437, 0xFFFFFFFF])
def test_impossible_length_closes_the_connection_without_an_answer(
    client: VirtlockdClient, length: int
) -> None:
    client.socket.sendall(struct.pack(">I", length))
    assert_closed(client)


@pytest.mark.parametrize("length", [4, 5, 27])
def test_short_header_closes_the_connection_once_it_has_come(client: VirtlockdClient, length: int) -> None:
    client.socket.sendall(struct.pack(">I", length) + bytes(length - 4))
    assert_closed(client)


def test_largest_length_is_waited_for_while_others_are_served(shared_daemon: Holdfastd) -> None:
    with shared_daemon.client() as waiting, shared_daemon.client() as other:
        waiting.socket.sendall(struct.pack(">I", 33554436) + bytes(1000))
        assert_alive(other)
        waiting.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.socket.recv(1)


def test_largest_message_is_taken_whole_and_answered(client: VirtlockdClient) -> None:
    payload = wire.CreateLockspace("").encode()
    raw = bytearray(frame(8, payload + bytes(33554436 - 28 - len(payload))))
    assert len(raw) == 33554436
    assert exchange(client, bytes(raw)).header.status == rpc.STATUS_OK
    assert_alive(client)


def test_bytes_may_come_one_at_a_time(client: VirtlockdClient) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    raw = frame(8, wire.CreateLockspace("").encode(), serial=9)
    for i in range(len(raw)):
        client.socket.sendall(raw[i : i + 1])
    assert client.receive().header == rpc.Header(rpc.PROGRAM_LOCKSPACE, 1, 8, rpc.TYPE_REPLY, 9, 0)


def test_pipelined_calls_are_answered_in_order(client: VirtlockdClient) -> None:
    register = wire.Register(bytes(16), "vm", 1, bystander(), 0).encode()
    raw = frame(1, register) + b"".join(acquire_frame("/none", serial=i) for i in range(1, 200))
    client.socket.sendall(raw)
    assert [client.receive().header.serial for _ in range(200)] == list(range(200))


def test_end_in_mid_message_is_a_normal_close(shared_daemon: Holdfastd, client: VirtlockdClient) -> None:
    before = shared_daemon.count("closing its connection")
    client.socket.sendall(frame(8, b"")[:10])
    client.close()
    with shared_daemon.client() as other:
        assert_alive(other)
    assert shared_daemon.count("closing its connection") == before


@pytest.mark.parametrize(("program", "version"), [(0x06900690, 1), (rpc.PROGRAM_LOCKSPACE, 2), (0, 0)])
def test_unknown_program_or_version_is_39_7_and_everything_is_echoed(
    client: VirtlockdClient, program: int, version: int
) -> None:
    header, payload = exchange(client, frame(-5, program=program, version=version, serial=77))
    assert header == rpc.Header(program, version, -5, rpc.TYPE_REPLY, 77, rpc.STATUS_ERROR)
    reply = rpc.ErrorReply.decode(payload)
    assert (reply.code, reply.domain) == (39, 7)
    assert reply.message == f"Cannot find program {program} version {version}"
    assert_alive(client)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, -1])
def test_unknown_program_that_is_no_call_is_dropped_silently(client: VirtlockdClient, kind: int) -> None:
    client.socket.sendall(frame(1, program=0x1234, kind=kind))
    assert_alive(client)


@pytest.mark.parametrize("procedure", [0, 9, 99, -1, -(2**31), 2**31 - 1])
def test_unknown_procedure_is_39_7_with_its_signed_number(client: VirtlockdClient, procedure: int) -> None:
    reply = error_of(client, frame(procedure))
    assert (reply.code, reply.domain, reply.message) == (39, 7, f"unknown procedure: {procedure}")
    assert_alive(client)


@pytest.mark.parametrize("status", [1, 2, 3, -1])
def test_call_with_a_status_is_39_7(client: VirtlockdClient, status: int) -> None:
    reply = error_of(client, frame(1, status=status))
    assert (reply.code, reply.domain, reply.message) == (39, 7, f"Unexpected message status {status}")
    assert_alive(client)


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6, 7, -1])
def test_what_is_no_call_to_the_lock_program_is_dropped_silently(client: VirtlockdClient, kind: int) -> None:
    client.socket.sendall(frame(8, wire.CreateLockspace("/nope/nope").encode(), kind=kind))
    assert_alive(client)


@pytest.mark.parametrize(
    ("procedure", "payload"),
    [
        (1, b""),
        (1, bytes(16)),
        (6, xdr.string(b"")),
        (6, xdr.u32(3) + b"abc"),
        (6, xdr.u32(65537) + bytes(65540) + bytes(8)),
        (8, xdr.u32(0xFFFFFFFF)),
    ],
)
def test_payload_that_is_not_there_is_39_7(client: VirtlockdClient, procedure: int, payload: bytes) -> None:
    reply = error_of(client, frame(procedure, payload))
    assert (reply.code, reply.domain, reply.message) == (39, 7, "Unable to decode message payload")
    assert_alive(client)


def test_extra_bytes_padding_values_and_text_behind_a_nul_are_ignored(
    shared_daemon: Holdfastd, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path)
    with shared_daemon.client() as client:
        client.register(pid=bystander())
        name = os.fsencode(disk) + b"\0behind"
        padded = xdr.u32(len(name)) + name + b"\xff" * (-len(name) & 3)
        reply = exchange(client, frame(6, xdr.string(b"") + padded + xdr.u32(0) + b"extra"))
        assert reply.header.status == rpc.STATUS_OK
        assert locked(disk)
        client.release(str(disk))


def test_call_with_fds_and_none_is_a_call_and_more_than_32_closes(client: VirtlockdClient) -> None:
    payload = wire.CreateLockspace("").encode()
    header = exchange(client, frame(8, xdr.u32(0) + payload, kind=4)).header
    assert (header.type, header.status) == (rpc.TYPE_REPLY, rpc.STATUS_OK)
    client.socket.sendall(frame(8, xdr.u32(33) + payload, kind=4))
    assert_closed(client)


# --- keepalive, 2.2 ---


def test_ping_is_answered_and_pong_and_others_are_ignored(client: VirtlockdClient) -> None:
    for procedure in (2, 3, -1):
        client.socket.sendall(frame(procedure, program=rpc.PROGRAM_KEEPALIVE, kind=rpc.TYPE_MESSAGE))
    assert exchange(client, PING).header == rpc.Header(rpc.PROGRAM_KEEPALIVE, 1, 2, 2, 0, 0)


def test_ping_as_a_call_or_of_another_version_is_an_unknown_program(client: VirtlockdClient) -> None:
    reply = error_of(client, frame(1, program=rpc.PROGRAM_KEEPALIVE))
    assert reply.message == f"Cannot find program {rpc.PROGRAM_KEEPALIVE} version 1"
    reply = error_of(client, frame(1, program=rpc.PROGRAM_KEEPALIVE, version=2))
    assert (reply.code, reply.domain) == (39, 7)
    client.socket.sendall(frame(1, program=rpc.PROGRAM_KEEPALIVE, version=2, kind=rpc.TYPE_MESSAGE))
    assert_alive(client)


# --- check order, 3.1 ---

Flagged = wire.Register | wire.Restrict | wire.New | wire.ResourceCall
CALLS: dict[int, Flagged] = {
    1: wire.Register(bytes(16), "vm", 1, 1, 0x80),
    2: wire.Restrict(0x80),
    3: wire.New("/unknown", 0x80),
    4: wire.ResourceCall("/unknown/deep", "n", 0x80),
    5: wire.ResourceCall("/unknown/deep", "n", 0x80),
    6: wire.ResourceCall("/unknown/deep", "n", 0x80),
    7: wire.ResourceCall("/unknown/deep", "n", 0x80),
}
FUNCTIONS = {
    1: "Register",
    2: "Restrict",
    3: "New",
    4: "CreateResource",
    5: "DeleteResource",
    6: "AcquireResource",
    7: "ReleaseResource",
}


@pytest.mark.parametrize("procedure", CALLS)
def test_unknown_flags_come_first_even_when_restricted(client: VirtlockdClient, procedure: int) -> None:
    client.register(pid=bystander())
    client.restrict()
    reply = error_of(client, frame(procedure, CALLS[procedure].encode()))
    function = f"virLockSpaceProtocolDispatch{FUNCTIONS[procedure]}"
    assert (reply.code, reply.domain) == (8, 7)
    assert reply.message == f"unsupported flags (0x80) in function {function}"
    assert (reply.str1, reply.str2, reply.int1, reply.int2) == (function, "flags", 0, 0)


@pytest.mark.parametrize("procedure", [*CALLS, 8])
def test_restricted_connection_is_refused_every_call(client: VirtlockdClient, procedure: int) -> None:
    client.register(pid=bystander())
    client.restrict()
    call = wire.CreateLockspace("/x") if procedure == 8 else CALLS[procedure]._replace(flags=0)
    reply = error_of(client, frame(procedure, call.encode()))
    assert (reply.code, reply.domain) == (29, 7)
    assert reply.message == "operation forbidden: lock manager connection has been restricted"


def test_restriction_is_of_one_connection(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander())
        two.register(pid=bystander())
        one.restrict()
        two.acquire(str(make_disk(tmp_path)))
        two.release(str(tmp_path / "disk.img"))


@pytest.mark.parametrize("procedure", [2, 3, 4, 5, 6, 7])
def test_unregistered_connection_is_refused_before_the_lockspace_is_looked_at(
    client: VirtlockdClient, procedure: int
) -> None:
    reply = error_of(client, frame(procedure, CALLS[procedure]._replace(flags=0).encode()))
    assert (reply.code, reply.domain) == (55, 7)
    assert reply.message == "Requested operation is not valid: lock owner details have not been registered"


@pytest.mark.parametrize("procedure", [4, 5, 6, 7])
def test_unknown_lockspace_is_1_7(client: VirtlockdClient, procedure: int) -> None:
    client.register(pid=bystander())
    reply = error_of(client, frame(procedure, CALLS[procedure]._replace(flags=0).encode()))
    assert (reply.code, reply.domain) == (1, 7)
    assert reply.message == "internal error: Lockspace for path /unknown/deep does not exist"


def test_register_with_id_0_is_refused_and_registering_again_replaces(
    client: VirtlockdClient, tmp_path: Path
) -> None:
    with pytest.raises(CallFailed, match=r"55/7 .*not been registered"):
        client.register(pid=bystander(), domain_id=0)
    client.register(pid=0)
    client.register(pid=2**32 - 1)
    client.register(pid=bystander(), name="at-last")
    client.acquire(str(make_disk(tmp_path)))
    client.release(str(tmp_path / "disk.img"))


# --- lockspaces and resources, 3.3, 3.4 ---


def failed(function: object, *arguments: object, **options: object) -> tuple[int, int, str]:
    assert callable(function)
    with pytest.raises(CallFailed) as refused:
        function(*arguments, **options)
    reply = refused.value.reply
    return reply.code, reply.domain, reply.message


def test_lockspaces_are_made_as_virtlockd_makes_them(client: VirtlockdClient, tmp_path: Path) -> None:
    client.register(pid=bystander())
    space = tmp_path / "a" / "b"
    client.create_lockspace(str(space))
    client.create_lockspace(str(space))
    client.create_lockspace("")
    assert space.stat().st_mode & 0o777 == 0o700
    assert failed(client.new, "")[:2] == (55, 7)
    assert failed(client.new, str(space)) == (
        1,
        7,
        f"internal error: Lockspace for path {space} already exists",
    )
    client.new(str(tmp_path / "c"))
    assert (tmp_path / "c").is_dir()
    other = make_disk(tmp_path)
    text = f"internal error: Lockspace location {other} exists, but is not a directory"
    assert failed(client.create_lockspace, str(other)) == (1, 51, text)
    assert failed(client.new, str(other))[:2] == (1, 51), "virtlockd answers OK and leaves a broken entry"
    code, domain, message = failed(client.create_lockspace, f"{other}/below")
    assert (code, domain) == (38, 51)
    assert message == f"Unable to create lockspace {other}/below: Not a directory"


def test_lock_file_of_a_lockspace_is_made_and_removed_with_the_lock(
    client: VirtlockdClient, tmp_path: Path
) -> None:
    client.register(pid=bystander())
    client.create_lockspace(str(tmp_path))
    assert failed(client.acquire, "n", lockspace=str(tmp_path))[0] == 38
    client.acquire("n", lockspace=str(tmp_path), flags=AUTOCREATE)
    file = tmp_path / "n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert locked(file)
    client.release("n", lockspace=str(tmp_path))
    assert not file.exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "../x"])
def test_names_that_lead_out_of_a_lockspace_are_refused(
    client: VirtlockdClient, tmp_path: Path, name: str
) -> None:
    client.register(pid=bystander())
    client.create_lockspace(str(tmp_path))
    for procedure in (4, 5, 6, 7):
        reply = error_of(client, frame(procedure, wire.ResourceCall(str(tmp_path), name, 0).encode()))
        assert (reply.code, reply.domain) == (8, 51)
    assert list(tmp_path.iterdir()) == []


def test_release_of_what_is_not_held_is_a_quiet_answer(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander())
        two.register(pid=bystander(1))
        text = f"resource busy: Lockspace resource '{disk}' is not locked"
        assert failed(one.release, str(disk)) == (87, 51, text)
        one.acquire(str(disk))
        assert failed(two.release, str(disk)) == (
            1,
            51,
            "internal error: owner PID does not hold the resource lock",
        )
        one.release(str(disk))


def test_same_owner_may_acquire_again_and_one_release_frees_it(
    shared_daemon: Holdfastd, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path)
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander())
        two.register(pid=bystander())
        for client in (one, two, one):
            client.acquire(str(disk))
        two.release(str(disk))
        assert not locked(disk)


def test_create_and_delete_resource_leave_a_held_file_alone(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    (tmp_path / "alias").symlink_to(disk)
    with shared_daemon.client() as client:
        client.register(pid=bystander())
        client.create_resource(str(tmp_path / "new"))
        client.create_resource(str(tmp_path / "new"))
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
        client.delete_resource(str(tmp_path / "new"))
        client.delete_resource(str(tmp_path / "new"))
        assert failed(client.create_resource, "/nope/x") == (
            38,
            0,
            "cannot create file '/nope/x': No such file or directory",
        )
        client.acquire(str(disk))
        for name in (disk, tmp_path / "alias"):
            assert failed(client.create_resource, str(name))[:2] == (87, 51)
            assert failed(client.delete_resource, str(name))[:2] == (87, 51)
        assert locked(disk)
        client.release(str(disk))


def test_shared_locks_join_and_exclude_a_writer(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander(), name="r1")
        two.register(pid=bystander(1), name="r2")
        one.acquire(str(disk), flags=SHARED)
        two.acquire(str(disk), flags=SHARED)
        assert failed(one.acquire, str(disk))[:2] == (87, 51)
        two.release(str(disk))
        one.acquire(str(disk))
        assert failed(two.acquire, str(disk), flags=SHARED)[:2] == (87, 51)
        one.release(str(disk))


@pytest.mark.parametrize("how", ["symlink", "hard link", "dots", "lockspace"])
def test_alias_of_a_held_disk_is_refused_to_others(
    shared_daemon: Holdfastd, tmp_path: Path, how: str
) -> None:
    disk = make_disk(tmp_path)
    alias, lockspace = str(tmp_path / "alias"), ""
    if how == "symlink":
        os.symlink(disk, alias)
    elif how == "hard link":
        os.link(disk, alias)
    elif how == "dots":
        alias = f"{tmp_path}/x/../disk.img"
        (tmp_path / "x").mkdir()
    else:
        alias, lockspace = "disk.img", str(tmp_path)
    with shared_daemon.client() as one, shared_daemon.client() as two:
        one.register(pid=bystander(), name="first")
        two.register(pid=bystander(1), name="second")
        one.acquire(str(disk))
        assert "first" in failed(two.acquire, alias, lockspace=lockspace)[2]
        one.release(str(disk))
        assert not locked(disk)


# --- who may connect, and how many ---


def test_other_users_are_closed_at_once_and_the_log_names_them(shared_daemon: Holdfastd) -> None:
    os.chmod(shared_daemon.socket, 0o777)
    os.chmod(shared_daemon.directory, 0o755)
    program = (
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "try: sys.exit(len(s.recv(1)))\nexcept ConnectionResetError: pass"
    )
    ended = subprocess.run(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            program,
            shared_daemon.socket,
        ],
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, "it got an answer"
    shared_daemon.says(f"uid {NOBODY}: only uid 0 may use this socket")


def test_socket_is_for_its_user_alone(make_daemon: Factory) -> None:
    daemon = make_daemon().start()
    assert os.stat(daemon.socket).st_mode & 0o777 == 0o700
    assert os.stat(daemon.control).st_mode & 0o777 == 0o600


def test_clients_over_the_cap_wait_and_are_then_served(make_daemon: Factory) -> None:
    daemon = make_daemon(virtlockd="max_clients = 8").start()
    clients = [daemon.client() for _ in range(8)]
    for client in clients:
        assert_alive(client)
    waiting = daemon.client()
    waiting.socket.sendall(PING)
    daemon.says(
        "virtlockd: all 8 connections are taken; further clients (VM starts!) wait until one closes; "
        "raise virtlockd.max_clients"
    )
    waiting.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.socket.recv(1)
    waiting.socket.settimeout(60)
    clients[0].close()
    assert waiting.receive().header.procedure == rpc.KEEPALIVE_PONG
    for client in (*clients, waiting):
        client.close()


# --- slow, silent and deaf clients ---


def test_silent_and_slow_clients_hold_up_nobody(shared_daemon: Holdfastd, tmp_path: Path) -> None:
    silent = [shared_daemon.client() for _ in range(20)]
    for i, client in enumerate(silent):
        client.socket.sendall(acquire_frame("/x")[: i * 3])
    with shared_daemon.client() as client:
        client.register(pid=bystander())
        client.acquire(str(make_disk(tmp_path)))
        client.release(str(tmp_path / "disk.img"))
    for client in silent:
        client.close()


def test_client_that_never_reads_gets_no_more_served_and_holds_up_nobody(shared_daemon: Holdfastd) -> None:
    with shared_daemon.client() as deaf, shared_daemon.client() as other:
        deaf.socket.setblocking(False)
        raw = frame(99) * 1000
        sent = 0
        while True:  # until its own replies, unread, stop the daemon from reading on
            try:
                sent += deaf.socket.send(raw)
            except BlockingIOError:
                assert_alive(other)
                try:
                    sent += deaf.socket.send(raw)
                except BlockingIOError:
                    break
            assert sent < 200_000_000, "the daemon reads on and on: where does it keep the replies?"
        assert_alive(other)
        deaf.socket.setblocking(True)
        deaf.socket.settimeout(60)
        header = deaf.receive().header
        assert header.procedure == 99, "what was asked is answered once it reads again"


def test_daemon_uses_no_processor_time_for_a_client_that_never_reads(shared_daemon: Holdfastd) -> None:
    """The order of events only: it is asleep, not running, whenever one looks."""
    with shared_daemon.client() as deaf:
        deaf.socket.setblocking(False)
        try:
            while True:
                deaf.socket.send(frame(99) * 1000)
        except BlockingIOError:
            pass
        wait_until(lambda: _state(shared_daemon.pid) == "S", "the daemon to sleep")
    assert exists(shared_daemon.pid)


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        return f.read().rsplit(")", 1)[1].split()[0]


def test_two_hundred_clients_come_and_go_and_no_descriptor_stays(shared_daemon: Holdfastd) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{shared_daemon.pid}/fd"))

    with shared_daemon.client() as first:
        assert_alive(first)
    wait_until(lambda: count() == count(), "a steady count")
    before = count()
    for _ in range(200):
        with shared_daemon.client() as client:
            client.register(pid=bystander())
    wait_until(lambda: count() <= before, "all descriptors to be closed")
