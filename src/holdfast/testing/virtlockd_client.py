"""A small blocking client of the virtlockd protocol, for tests, benchmarks and the curious.

It speaks to a real virtlockd as well as to holdfastd, which is the point.
"""

from __future__ import annotations

import socket
import struct
import uuid as uuids

from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire

SHARED, AUTOCREATE = wire.ACQUIRE_SHARED, wire.ACQUIRE_AUTOCREATE


class CallFailed(Exception):
    """An ERROR reply; `reply` has code, domain and message."""

    def __init__(self, reply: rpc.ErrorReply) -> None:
        super().__init__(f"{reply.code}/{reply.domain} {reply.message}")
        self.reply = reply


class VirtlockdClient:
    """One connection.  Every call raises `CallFailed` on an ERROR reply, `ConnectionError` on a closed socket."""

    def __init__(self, path: str, *, timeout_s: float = 30.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(path)
        self._serial = 0

    def __enter__(self) -> VirtlockdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- raw ---

    def receive(self) -> rpc.Message:
        """The next whole message."""
        length = struct.unpack(">I", self._exactly(4))[0]
        body = self._exactly(length - 4)
        header = rpc.Header._make(struct.unpack_from(">IIiiIi", body))
        return rpc.Message(header, body[rpc.HEADER_BYTES :])

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise ConnectionResetError("the daemon closed the connection")
            parts += part
        return parts

    def call(self, procedure: int, payload: bytes) -> None:
        serial = self._serial
        self._serial += 1
        header = rpc.Header(rpc.PROGRAM_LOCKSPACE, rpc.VERSION, procedure, rpc.TYPE_CALL, serial, 0)
        self.socket.sendall(rpc.encode(header, payload))
        reply = self.receive()
        if reply.header.serial != serial or reply.header.type != rpc.TYPE_REPLY:
            raise ConnectionError(f"unexpected reply {reply.header}")
        if reply.header.status == rpc.STATUS_ERROR:
            raise CallFailed(rpc.ErrorReply.decode(reply.payload))

    # --- calls ---

    def register(
        self, *, pid: int, name: str = "vm", uuid: str = "", domain_id: int = 1, flags: int = 0
    ) -> None:
        raw = (uuids.UUID(uuid) if uuid else uuids.uuid5(uuids.NAMESPACE_DNS, name)).bytes
        self.call(wire.PROC_REGISTER, wire.Register(raw, name, domain_id, pid, flags).encode())

    def restrict(self, flags: int = 0) -> None:
        self.call(wire.PROC_RESTRICT, wire.Restrict(flags).encode())

    def new(self, path: str, flags: int = 0) -> None:
        self.call(wire.PROC_NEW, wire.New(path, flags).encode())

    def create_resource(self, name: str, *, lockspace: str = "", flags: int = 0) -> None:
        self.call(wire.PROC_CREATE_RESOURCE, wire.ResourceCall(lockspace, name, flags).encode())

    def delete_resource(self, name: str, *, lockspace: str = "", flags: int = 0) -> None:
        self.call(wire.PROC_DELETE_RESOURCE, wire.ResourceCall(lockspace, name, flags).encode())

    def acquire(self, name: str, *, lockspace: str = "", flags: int = 0) -> None:
        self.call(wire.PROC_ACQUIRE_RESOURCE, wire.ResourceCall(lockspace, name, flags).encode())

    def release(self, name: str, *, lockspace: str = "", flags: int = 0) -> None:
        self.call(wire.PROC_RELEASE_RESOURCE, wire.ResourceCall(lockspace, name, flags).encode())

    def create_lockspace(self, path: str) -> None:
        self.call(wire.PROC_CREATE_LOCKSPACE, wire.CreateLockspace(path).encode())
