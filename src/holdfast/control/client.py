"""A blocking client of the control socket.

Varlink is JSON with a NUL behind it, so this is small; it exists beside asyncvarlink because `holdfast who` must
answer in the time that starting an event loop takes (ADR 0004).  Replies become the dataclasses of `api`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from holdfast.control.api import (
    ERROR_REFUSED,
    INTERFACE,
    CollectedLease,
    DiskWish,
    EventInfo,
    FencedHost,
    HolderInfo,
    LeaseSpaceInfo,
    MeasuresInfo,
    OwnerInfo,
    Starter,
    StatusInfo,
    VolumeInfo,
)

T = TypeVar("T")
REPLY_BYTES_MAX = 64 << 20
"""Twenty thousand locks with long paths; anything larger is no reply of holdfastd's."""
CALL_TIMEOUT_S = 60.0
"""Longer than the daemon waits for storage by default: its own answer says more than our timeout."""

VOLUME_S = 150.0
"""An order about a volume is up to two of LVM's commands, which wait for storage."""


class DaemonUnreachable(Exception):
    """Nobody answers at the control socket; `not_permitted`: perhaps somebody does, but not to this user; `not_running`: no
    process serves it.
    """

    def __init__(self, text: str, *, not_permitted: bool = False, not_running: bool = False) -> None:
        super().__init__(text)
        self.not_permitted = not_permitted
        self.not_running = not_running


class CallRefused(Exception):
    """The daemon answered with an error; `kind` is the error class or the Varlink error name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ControlClient:
    """One connection to holdfastd's control socket."""

    def __init__(self, path: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.path = path
        self._rest = b""
        self._heard = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as e:
            self._socket.close()
            if isinstance(e, PermissionError):
                raise DaemonUnreachable(
                    f"this user may not connect to holdfastd at {path}: be root, or a member of control.group",
                    not_permitted=True,
                ) from None
            gone = isinstance(e, (FileNotFoundError, NotADirectoryError, ConnectionRefusedError))
            raise DaemonUnreachable(
                f"holdfastd does not answer at {path}: {e.strerror or e}", not_running=gone
            ) from None

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    # --- calls ---

    def status(self) -> StatusInfo:
        return self._one("GetStatus", "status", StatusInfo)

    def owners(self) -> list[OwnerInfo]:
        return self._one("ListOwners", "owners", list[OwnerInfo])

    def locks(self) -> list[HolderInfo]:
        return self._one("ListLocks", "locks", list[HolderInfo])

    def holders(self, path: str) -> list[HolderInfo]:
        return self._one("GetHolders", "holders", list[HolderInfo], path=path)

    def lease_spaces(self) -> list[LeaseSpaceInfo]:
        return self._one("ListLeaseSpaces", "lockspaces", list[LeaseSpaceInfo])

    def measures(self) -> MeasuresInfo:
        """Raises `CallRefused` if the daemon is of an earlier release."""
        return self._one("GetMeasures", "measures", MeasuresInfo)

    def join_lease_space(self, name: str) -> None:
        self._call("JoinLeaseSpace", {"name": name})

    def set_io_timeout(self, name: str, io_timeout_s: int) -> None:
        self._call("SetIoTimeout", {"name": name, "io_timeout_s": io_timeout_s})

    def leave_lease_space(self, name: str) -> None:
        self._call("LeaveLeaseSpace", {"name": name})

    def collect_leases(self, *, dry_run: bool) -> list[CollectedLease]:
        # Each lease takes some requests to storage, and there may be thousands.
        self._socket.settimeout(None)
        return self._one("CollectLeases", "leases", list[CollectedLease], dry_run=dry_run)

    def break_lease(self, path: str, *, attest_off: str, operator: str) -> str:
        return self._one("BreakLease", "proof", str, path=path, attest_off=attest_off, operator=operator)

    def settle_lock(self, lock: str, *, operator: str) -> str:
        """End the claims of an unknown owner on a lock; what was done. Raises `CallRefused`."""
        return self._one("SettleLock", "done", str, lock=lock, operator=operator)

    def fence_host(self, host: str, *, operator: str, lockspace: str = "") -> list[FencedHost]:
        # Each lease takes some requests to storage, and there may be hundreds.
        self._socket.settimeout(None)
        return self._one(
            "FenceHost", "hosts", list[FencedHost], host=host, operator=operator, lockspace=lockspace
        )

    def maintenance(self, *, on: bool, by: str, reason: str = "") -> None:
        """Begin or end the maintenance of this host. Raises `CallRefused`."""
        self._call("SetMaintenance", {"on": on, "by": by, "reason": reason})

    def log_level(self, level: str, *, by: str) -> str:
        """Change the daemon's log level until it ends; the one before. Raises `CallRefused`."""
        return self._one("SetLogLevel", "before", str, level=level, by=by)

    def volumes(self) -> list[VolumeInfo]:
        return self._one("ListVolumes", "volumes", list[VolumeInfo])

    def activate_volume(self, path: str, *, vm: str) -> bool:
        """Whether something was done: False if it was active and exclusive. Raises `CallRefused`."""
        self._socket.settimeout(VOLUME_S)
        return self._one("ActivateVolume", "changed", bool, path=path, vm=vm)

    def deactivate_volume(self, path: str) -> None:
        """Raises `CallRefused`."""
        self._socket.settimeout(VOLUME_S)
        self._call("DeactivateVolume", {"path": path})

    def volume_group_lost(self, vg: str) -> list[str]:
        """What was done about its VMs, in sentences. Raises `CallRefused`."""
        return self._one("VolumeGroupLost", "done", list[str], vg=vg)

    def reload(self) -> None:
        """Ends in `CallRefused` with the reasons, a line each, or in `DaemonUnreachable` when the new program begins."""
        self._call("Reload", {})

    def acquire(
        self, *, pid: int, name: str, disks: list[DiskWish], until_closed: bool = False, family: str = ""
    ) -> None:
        """`until_closed`: what the process has not released when it ends stays until no process has the disk open, and
        nobody is in the control group `family`.
        """
        parameters: dict[str, Any] = {"pid": pid, "name": name, "disks": disks}
        if until_closed:
            parameters["until_closed"] = True
            parameters["family"] = family or None
        self._call("Acquire", parameters)

    def release(self, *, pid: int, paths: list[str]) -> None:
        self._call("Release", {"pid": pid, "paths": paths})

    def hook(
        self,
        operation: str,
        *,
        name: str,
        uuid: str,
        libvirtd: Starter,
        disks: list[DiskWish],
        own_files: Sequence[str] = (),
        network_disks: Sequence[DiskWish] = (),
        unasked_because: str = "",
    ) -> None:
        """libvirt's hook was called for a guest. Raises `CallRefused` with the reason if its disks can't be had.

        `network_disks`: by their names; `unasked_because`: why libvirt will ask for no lock of this guest, empty if it will.
        """
        parameters: dict[str, object] = {
            "operation": operation,
            "name": name,
            "uuid": uuid,
            "libvirtd": libvirtd,
            "disks": disks,
        }
        if own_files:
            parameters["own_files"] = own_files
        if network_disks:
            parameters["network_disks"] = network_disks
        if unasked_because:
            parameters["unasked_because"] = unasked_because
        self._call("Hook", parameters)

    def events(self, *, after: int, follow: bool) -> Iterator[EventInfo]:
        """Events as they come; ends when the daemon says so or goes away."""
        if follow:
            self._socket.settimeout(None)
        self._send("WatchEvents", {"after": after, "follow": follow}, more=True)
        while True:
            reply = self._receive()
            event = self._parameters(reply).get("event")
            if event is not None:
                yield msgspec.convert(event, EventInfo)
            if not reply.get("continues"):
                return

    # --- Varlink ---

    def _one(self, method: str, key: str, kind: type[T], **parameters: object) -> T:
        return msgspec.convert(self._call(method, parameters)[key], kind)

    def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._send(method, parameters)
        return self._parameters(self._receive())

    def _send(self, method: str, parameters: dict[str, Any], *, more: bool = False) -> None:
        message: dict[str, Any] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        if more:
            message["more"] = True
        try:
            self._socket.sendall(msgspec.json.encode(message) + b"\0")
        except OSError as e:
            with contextlib.suppress(DaemonUnreachable):
                self._parameters(self._receive())  # why the daemon has closed the connection
            raise DaemonUnreachable(f"holdfastd went away: {e.strerror or e}") from None

    def _receive(self) -> dict[str, Any]:
        parts = [self._rest]
        size = len(self._rest)
        while b"\0" not in parts[-1]:
            try:
                part = self._socket.recv(1 << 18)
            except TimeoutError:
                raise DaemonUnreachable(f"holdfastd at {self.path} does not answer in time") from None
            except OSError as e:
                raise DaemonUnreachable(f"holdfastd went away: {e.strerror or e}") from None
            size += len(part)
            if not part or size > REPLY_BYTES_MAX:
                hint = "" if self._heard else " (may this user connect?)"
                raise DaemonUnreachable(f"holdfastd closed the connection{hint}")
            parts.append(part)
        raw, _, self._rest = b"".join(parts).partition(b"\0")
        self._heard = True
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(raw, type=dict[str, Any])
        raise DaemonUnreachable(f"{self.path} does not speak Varlink")

    @staticmethod
    def _parameters(reply: dict[str, Any]) -> dict[str, Any]:
        parameters: dict[str, Any] = reply.get("parameters") or {}
        error = reply.get("error")
        if error:
            kind = parameters.get("kind", "") if error == ERROR_REFUSED else error
            raise CallRefused(str(kind), str(parameters.get("message") or error))
        return parameters
