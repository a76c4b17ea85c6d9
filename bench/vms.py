"""Stand-ins for QEMU: processes that keep a registered, restricted connection open, and what libvirtd says for them.

Frames are built beforehand, so that the client's own work is the same small sum for both daemons.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.testing.virtlockd_client import VirtlockdClient
from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire

REPLY_BYTES = 28


def frame(procedure: int, serial: int, payload: bytes) -> bytes:
    return rpc.encode(
        rpc.Header(rpc.PROGRAM_LOCKSPACE, rpc.VERSION, procedure, rpc.TYPE_CALL, serial, 0), payload
    )


@dataclass
class Vm:
    """One VM process and its two disks."""

    number: int
    pid: int
    acquire: tuple[bytes, ...]
    release: tuple[bytes, ...]


def make_vm(number: int, pid: int, directory: Path) -> Vm:
    disks = [str(directory / f"{number}-{letter}.img") for letter in "ab"]
    for disk in disks:
        Path(disk).touch()
    uuid = number.to_bytes(16, "big")
    register = frame(wire.PROC_REGISTER, 0, wire.Register(uuid, f"vm{number}", number + 1, pid, 0).encode())
    calls = [wire.ResourceCall("", disk, 0).encode() for disk in disks]
    return Vm(
        number,
        pid,
        (register, *(frame(wire.PROC_ACQUIRE_RESOURCE, i + 1, c) for i, c in enumerate(calls))),
        (register, *(frame(wire.PROC_RELEASE_RESOURCE, i + 1, c) for i, c in enumerate(calls))),
    )


def fork_vms(count: int, sockets: Sequence[str], directory: Path) -> list[Vm]:
    """Processes that register themselves with every daemon and then sleep."""
    vms = []
    for number in range(count):
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                kept = []
                for path in sockets:
                    client = VirtlockdClient(path, timeout_s=120)
                    client.register(pid=os.getpid(), name=f"vm{number}", domain_id=number + 1)
                    client.restrict()
                    kept.append(client)
                os.write(tell, b".")
                os.close(tell)
                os.close(ready)
                while True:
                    signal.pause()
            finally:
                os._exit(code)
        os.close(tell)
        if os.read(ready, 1) != b".":
            raise RuntimeError(f"VM process {number} could not register")
        os.close(ready)
        vms.append(make_vm(number, pid, directory))
    return vms


def speak(path: str, frames: Sequence[bytes]) -> None:
    """One short connection of libvirtd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.connect(path)
        for each in frames:
            s.sendall(each)
            reply = s.recv(4096)
            if len(reply) != REPLY_BYTES:
                raise RuntimeError(f"refused: {reply[28:]!r}")
