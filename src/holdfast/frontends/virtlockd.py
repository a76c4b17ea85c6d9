"""The virtlockd frontend: serves libvirt's lockd plugin with virtlockd's protocol.

A connection has a state: not registered, registered for an owner, restricted. Requests of one connection are served one
after the other; while one waits for storage, no more is read from that client, and no other client waits. Check order,
codes and texts follow virtlockd-rpc.md 3.1.

A connection whose peer *is* the owner's process is libvirt's leaked descriptor in QEMU: its end means that QEMU has ended.
All others are libvirtd's, on behalf of a VM, and may come and go.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from holdfast.errors import (
    HoldfastError,
    NotRegistered,
    Restricted,
    RpcError,
    StorageFailed,
    UnsupportedFlags,
    libvirt_code,
)
from holdfast.frontends.listener import Listener, Peer
from holdfast.manager.acquire import Outcome
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.maintenance import Maintenance
from holdfast.manager.owners import Owner
from holdfast.manager.unasked_disks import UnaskedDisks
from holdfast.model import AcquireRequest, Mode, OwnerName, Resource
from holdfast.system import eager_tasks
from holdfast.system.epoll import WRITE, Readiness
from holdfast.system.logs.log_limit import LimitedLog
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire
from holdfast.wire.xdr import Reader, XdrError

log = logging.getLogger(__name__)
malformed = LimitedLog(log)

READ_BYTES = 960
"""A request is some hundred bytes; malloc has a buffer of this size at hand, while larger ones cost it a search each."""
READ_BYTES_LARGE = 65536
"""Once a message has turned out to be no such one."""
# Plain integers: socket's enumerations cost more to combine than a whole send() takes.
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT)
_SEND_FLAGS = int(socket.MSG_DONTWAIT) | int(socket.MSG_NOSIGNAL)

_FUNCTIONS = {
    wire.PROC_REGISTER: "virLockSpaceProtocolDispatchRegister",
    wire.PROC_RESTRICT: "virLockSpaceProtocolDispatchRestrict",
    wire.PROC_NEW: "virLockSpaceProtocolDispatchNew",
    wire.PROC_CREATE_RESOURCE: "virLockSpaceProtocolDispatchCreateResource",
    wire.PROC_DELETE_RESOURCE: "virLockSpaceProtocolDispatchDeleteResource",
    wire.PROC_ACQUIRE_RESOURCE: "virLockSpaceProtocolDispatchAcquireResource",
    wire.PROC_RELEASE_RESOURCE: "virLockSpaceProtocolDispatchReleaseResource",
}
"""Function names in flag errors: part of the message that virtlockd sends (virtlockd-rpc.md 3.1)."""

_KEEPALIVE = (rpc.PROGRAM_KEEPALIVE, rpc.VERSION, rpc.TYPE_MESSAGE)
_FLAGS_ALLOWED = {wire.PROC_ACQUIRE_RESOURCE: wire.ACQUIRE_SHARED | wire.ACQUIRE_AUTOCREATE}


class VirtlockdConnection:
    """One client: bytes in, replies out, in order."""

    __slots__ = (
        "_busy",
        "_closed",
        "_current",
        "_fd",
        "_frontend",
        "_held",
        "_out",
        "_pumping",
        "_queue",
        "_readiness",
        "_reading",
        "_sock",
        "_splitter",
        "kept",
        "owner",
        "peer",
        "restricted",
    )

    def __init__(self, frontend: VirtlockdFrontend, sock: socket.SocketType, peer: Peer) -> None:
        self._frontend = frontend
        self._sock = sock
        self._fd = sock.fileno()
        self._readiness = frontend.readiness
        self._splitter: rpc.Splitter | None = None  # made when a message comes in pieces
        self._queue: list[rpc.Message] = []
        self._out = b""
        self._busy = False
        self._pumping = False
        self._current: rpc.Message | None = None
        self._reading = False
        self._closed = False
        self._held = False
        self.peer = peer
        self.owner: Owner | None = None
        self.restricted = False
        self.kept = ""
        """Its name in the descriptor store; empty if it isn't there."""

    def start(self, *, carried: bytes = b"", unsent: bytes = b"") -> None:
        """Begin to serve; `carried` was received and `unsent` was answered before a re-exec."""
        if unsent:
            self._send(unsent)
        if carried:
            self._received(carried)
        elif not unsent:
            self._on_readable()  # the first request is usually there already, and its client waits
        if not self._queue:
            self._read_on()

    def fileno(self) -> int:
        return self._fd

    def leftovers(self) -> tuple[bytes, bytes] | None:
        """(received but not answered, answered but not sent), to resume after a re-exec; None if that is impossible."""
        if self._splitter is not None and not self._splitter.resumable:
            return None
        waiting = ([self._current] if self._current is not None else []) + list(self._queue)
        carried = self._splitter.carried if self._splitter is not None else b""
        return b"".join(rpc.encode(*m) for m in waiting) + carried, self._out

    @property
    def busy(self) -> bool:
        return self._busy

    def hold(self) -> None:
        """Take no further request, until `go_on` or a re-exec."""
        self._held = True
        self._read_no_more()

    def go_on(self) -> None:
        self._held = False
        self._read_on()
        self._pump()

    # --- reading ---

    def _read_on(self) -> None:
        # A client with unsent replies is watched for writing; reading continues when they are sent.
        if not (self._reading or self._closed or self._held or self._out):
            self._reading = True
            self._readiness.add(self._fd, self._on_readable)

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._readiness.remove(self._fd)

    def _on_readable(self) -> None:
        try:
            size = READ_BYTES if self._splitter is None else READ_BYTES_LARGE
            chunk = self._sock.recv(size, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            log.debug("client pid %d: %s", self.peer.pid, e)
            chunk = b""
        if not chunk:
            self.close()
        elif self._splitter is None and not (self._busy or self._queue or self._out or self._held):
            message = rpc.whole_message(chunk)
            if message is None:
                self._received(chunk)
            else:
                self._pumping = True
                self._serve(message)
                self._pumping = False
        else:
            self._received(chunk)

    def _received(self, chunk: bytes) -> None:
        if self._splitter is None:
            self._splitter = rpc.Splitter()
        try:
            messages = self._splitter.feed(chunk)
        except rpc.FramingError as e:
            malformed.write("client pid %d: closing its connection: %s", self.peer.pid, e)
            self.close()
            return
        if self._splitter.idle:
            self._splitter = None
        if messages:
            self._queue += messages
            self._pump()

    # --- serving ---

    def _pump(self) -> None:
        """Serve the queued requests one after the other, until one has to wait."""
        if self._pumping:
            return
        self._pumping = True
        while self._queue and not (self._busy or self._out or self._closed or self._held):
            self._serve(self._queue.pop(0))
        self._pumping = False
        if self._queue:  # it gets its answers first: at most one read is queued
            self._read_no_more()
        elif not (self._reading or self._out):
            self._read_on()

    def _serve(self, message: rpc.Message) -> None:
        header = message.header
        if header.program == rpc.PROGRAM_LOCKSPACE and header.version == rpc.VERSION:
            if header.type in (rpc.TYPE_CALL, rpc.TYPE_CALL_WITH_FDS):
                reply = self._frontend.answer(self, message)
                if isinstance(reply, bytes):
                    self._reply(reply)
                else:
                    self._busy = True
                    self._current = message
                    eager_tasks.start(reply, self._answered)
            return  # anything else is dropped silently
        if (header.program, header.version, header.type) == _KEEPALIVE:
            if header.procedure == rpc.KEEPALIVE_PING:
                self._send(rpc.pong())
            return
        if header.type == rpc.TYPE_CALL:
            reason = f"Cannot find program {header.program} version {header.version}"
            self._send(error_reply(header, RpcError(reason=reason)))

    def _answered(self, reply: bytes) -> None:
        self._busy = False
        self._current = None
        self._reply(reply)
        if not self._pumping:
            self._pump()

    def _reply(self, reply: bytes) -> None:
        if reply:
            self._send(reply)
        else:
            self.close()

    def _send(self, raw: bytes) -> None:
        if self._closed:
            return
        if not self._out:
            try:
                sent = self._sock.send(raw, _SEND_FLAGS)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as e:
                log.debug("client pid %d: %s", self.peer.pid, e)
                self.close()
                return
            if sent == len(raw):
                return
            raw = raw[sent:]
            self._read_no_more()
            self._readiness.add(self._fd, self._on_writable, WRITE)
        # A client that doesn't read its replies gets no further requests served: at most one reply waits.
        self._out += raw

    def _on_writable(self) -> None:
        raw, self._out = self._out, b""
        self._readiness.remove(self._fd)
        self._send(raw)
        if not self._out:
            self._pump()

    def close(self) -> None:
        """The client has gone, or must go."""
        if self._closed:
            return
        self._closed = True
        # systemd has a copy of a kept one, which the loop would still watch.
        unwatch = self._readiness.remove if self.kept else self._readiness.forget
        if self._reading or self._out:
            unwatch(self._fd)
            self._reading = False
            self._out = b""
        self._queue.clear()
        self._frontend.closed(self)
        self._sock.close()


class VirtlockdFrontend:
    """All virtlockd clients. `keep` puts a QEMU's connection into the descriptor store (fd None: removes it). `unasked`
    follows libvirt for what it never asks for; None: there is no such thing.
    """

    def __init__(
        self,
        manager: LockManager,
        *,
        uid: int,
        readiness: Readiness,
        keep: Callable[[str, int | None], None] | None = None,
        unasked: UnaskedDisks | None = None,
    ) -> None:
        self._manager = manager
        self._unasked = unasked
        self._uid = uid
        self.readiness = readiness
        self._keep = keep
        self._kept_count = 0
        self.connections: dict[VirtlockdConnection, None] = {}
        self._adopted: list[tuple[VirtlockdConnection, bytes, bytes]] = []
        self.maintenance: Maintenance | None = None
        """In which no VM begins; None: there is none."""
        self.listener: Listener | None = None

    def admit(self, peer: Peer, _: socket.SocketType) -> str:
        """Root's daemon serves root, a session's daemon that user (virtlockd-rpc.md 1)."""
        return "" if peer.uid == self._uid else f"only uid {self._uid} may use this socket"

    def serve(self, sock: socket.SocketType, peer: Peer) -> None:
        connection = VirtlockdConnection(self, sock, peer)
        self.connections[connection] = None
        connection.start()

    def adopt(
        self,
        sock: socket.SocketType,
        peer: Peer,
        owner: Owner | None,
        *,
        restricted: bool,
        carried: bytes = b"",
        unsent: bytes = b"",
        kept: str = "",
    ) -> None:
        """Restore a connection from before a restart; `serve_adopted` resumes it."""
        connection = VirtlockdConnection(self, sock, peer)
        self.connections[connection] = None
        if self.listener is not None:
            self.listener.adopted()
        if owner is not None:
            connection.owner = owner
            owner.connections += 1
        connection.restricted = restricted
        connection.kept = kept
        if restricted and owner is not None and not kept:  # virtlockd had no store
            self._keep_connection(connection, owner)
        self._adopted.append((connection, carried, unsent))

    def serve_adopted(self) -> None:
        """Resume adopted connections, after the locks are in the table: an end of file ends claims, a request reads them."""
        adopted, self._adopted = self._adopted, []
        for connection, carried, unsent in adopted:
            try:
                connection.start(carried=carried, unsent=unsent)
            except Exception:  # one client's error must not end the daemon here: all locks would end with it
                log.exception("the connection of pid %d could not go on", connection.peer.pid)

    def closed(self, connection: VirtlockdConnection) -> None:
        del self.connections[connection]
        if self.listener is not None:
            self.listener.left()
        if connection.kept and self._keep is not None:
            self._keep(connection.kept, None)
        owner, connection.owner = connection.owner, None
        if owner is not None:
            self._manager.unregister(
                owner,
                holder=owner.pid == connection.peer.pid,
                why="it closed the connection that guards its locks",
            )

    # --- calls ---

    def answer(
        self, connection: VirtlockdConnection, message: rpc.Message
    ) -> bytes | Coroutine[Any, Any, bytes]:
        """The whole reply to a CALL, or a coroutine that returns it; empty bytes: close the connection."""
        header = message.header
        try:
            rest = self._begin(connection, message)
        except Exception as error:
            return _failure(header, error)
        return rpc.ok_reply(header) if rest is None else self._finish(header, rest)

    async def _finish(self, header: rpc.Header, rest: Coroutine[Any, Any, object]) -> bytes:
        try:
            await rest
        except Exception as error:
            return _failure(header, error)
        return rpc.ok_reply(header)

    def _begin(
        self, connection: VirtlockdConnection, message: rpc.Message
    ) -> Coroutine[Any, Any, object] | None:
        """Serve a CALL; None if it is done, else a coroutine for the part that has to wait."""
        header, payload = message
        procedure = header.procedure
        if header.status != rpc.STATUS_OK:
            raise RpcError(reason=f"Unexpected message status {header.status}")
        if header.type == rpc.TYPE_CALL_WITH_FDS:
            if len(payload) < 4 or Reader(payload).u32():
                raise _Confused
            payload = payload[4:]
        call = wire.decode(procedure, payload)
        if call is None:
            raise RpcError(reason=f"unknown procedure: {procedure}")
        if isinstance(call, wire.CreateLockspace):
            if connection.restricted:
                raise Restricted()
            return self._manager.lockspaces.create(call.path)
        if call.flags and call.flags & ~_FLAGS_ALLOWED.get(procedure, 0):
            raise UnsupportedFlags(flags=call.flags, function=_FUNCTIONS[procedure])
        if connection.restricted:
            raise Restricted()
        owner = connection.owner
        if isinstance(call, wire.Register):
            return self._register(connection, call)
        if owner is None:
            raise NotRegistered()
        if isinstance(call, wire.ResourceCall):
            return self._begin_resource_call(owner, procedure, call)
        if isinstance(call, wire.Restrict):
            connection.restricted = True
            self._keep_connection(connection, owner)
            return None
        if isinstance(call, wire.New):
            return self._manager.lockspaces.new(call.path)
        assert_never(call)

    def _begin_resource_call(
        self, owner: Owner, procedure: int, call: wire.ResourceCall
    ) -> Coroutine[Any, Any, object] | None:
        resource: Resource = tuple.__new__(Resource, (call.path, call.name))  # quicker than the class
        manager = self._manager
        if procedure == wire.PROC_ACQUIRE_RESOURCE:
            mode = Mode.SHARED if call.flags & wire.ACQUIRE_SHARED else Mode.EXCLUSIVE
            request = AcquireRequest(resource, mode, bool(call.flags & wire.ACQUIRE_AUTOCREATE))
            if manager.acquire_nowait(owner, request) is Outcome.ACQUIRED:
                return None
            return manager.acquire_waiting(owner, request)
        if procedure == wire.PROC_RELEASE_RESOURCE:
            return manager.begin_release(owner, resource)
        if procedure == wire.PROC_CREATE_RESOURCE:
            return manager.create_resource(resource)
        return manager.delete_resource(resource)

    def _register(
        self, connection: VirtlockdConnection, call: wire.Register
    ) -> Coroutine[Any, Any, None] | None:
        if call.domain_id == 0:
            raise NotRegistered()
        name = OwnerName(call.name, _uuid_text(call.uuid), call.domain_id)
        if self.maintenance is not None and call.pid == connection.peer.pid:
            self.maintenance.must_not_begin(name, call.pid)  # a process that becomes QEMU registers itself
        owner = self._manager.register(call.pid, name)
        before, connection.owner = connection.owner, owner
        if before is not None:
            self._manager.unregister(before, holder=False, why="its connection registered another owner")
        # QEMU registers itself before it runs; later ones come from libvirtd, for one operation each.
        if owner.unasked and self._unasked is not None and owner.pid != connection.peer.pid:
            return self._unasked.registered(owner)
        return None

    def _keep_connection(self, connection: VirtlockdConnection, owner: Owner) -> None:
        """Store QEMU's own connection in the descriptor store: it is the only kind that outlives its request."""
        if self._keep is not None and owner.pid == connection.peer.pid:
            self._kept_count += 1
            connection.kept = f"conn-{self._kept_count}-{owner.id}"
            self._keep(connection.kept, connection.fileno())

    def continue_kept_count(self, last: int) -> None:
        """Names in the descriptor store are never used twice, also not by the next daemon."""
        self._kept_count = max(self._kept_count, last)


class _Confused(Exception):
    """A client sent descriptors, which this protocol never has: it gets no further answers."""


def _failure(header: rpc.Header, error: Exception) -> bytes:
    if isinstance(error, _Confused):
        return b""
    if isinstance(error, XdrError):
        error = RpcError(reason="Unable to decode message payload")
    elif not isinstance(error, HoldfastError):
        log.error("unexpected failure serving procedure %d", header.procedure, exc_info=error)
        error = HoldfastError(reason="unexpected failure; see holdfastd's log")
    return error_reply(header, error)


@functools.lru_cache(maxsize=4096)
def _uuid_text(raw: bytes) -> str:
    """A VM registers with each of its operations."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def error_reply(header: rpc.Header, error: HoldfastError) -> bytes:
    """One of our errors in libvirt's wire format (virtlockd-rpc.md 2.3)."""
    code = libvirt_code(error)
    detail = str(error)
    if isinstance(error, UnsupportedFlags):
        reply = rpc.ErrorReply(
            code=code.code,
            domain=code.domain,
            message=detail,
            str1=str(error.facts["function"]),
            str2="flags",
            int1=0,
            int2=0,
        )
    else:
        reply = rpc.ErrorReply(
            code=code.code,
            domain=code.domain,
            message=code.prefix + detail,
            str1=code.prefix + "%s",
            str2=detail,
            int1=error.errno if isinstance(error, StorageFailed) else -1,
        )
    return rpc.error_reply(header, reply)
