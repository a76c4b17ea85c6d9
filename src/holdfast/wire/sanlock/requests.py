"""Requests as values, one class per command. Header words stand first in each, then the parts of the body.

Which word is which field, and which parts a body has, says the table in `request_table`. A request is what the client
said; whether its flags, names and numbers are acceptable is not decided here.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.wire.sanlock.header import U32_MAX, signed
from holdfast.wire.sanlock.structures import (
    Disk,
    Host,
    HostEvent,
    HostRecord,
    Lockspace,
    Options,
    Resource,
    Rindex,
    RindexEntry,
)


class Target(NamedTuple):
    """Whose leases a command is about (sanlock-socket.md 2.2): a pid or a client id; `OWN` is the sender's connection."""

    number: int
    by_client_id: bool = False

    def __str__(self) -> str:
        if self == OWN:
            return "the sender"
        return f"{'client id' if self.by_client_id else 'pid'} {signed(self.number)}"


OWN = Target(U32_MAX)


# --- a client about itself and its leases ---


class Register(NamedTuple):
    pass


class Restrict(NamedTuple):
    flags: int = 0


class Killpath(NamedTuple):
    flags: int
    target: Target
    path: str
    arguments: str


class Acquire(NamedTuple):
    flags: int
    target: Target
    resources: tuple[Resource, ...]
    options: Options = Options()


class Acquire2(NamedTuple):
    """As `Acquire`; its answer names the holder."""

    flags: int
    target: Target
    resources: tuple[Resource, ...]
    options: Options = Options()


class Release(NamedTuple):
    """`resources` without disks; none with the flag ALL."""

    flags: int
    target: Target
    resources: tuple[Resource, ...]


class Inquire(NamedTuple):
    flags: int
    target: Target


class Convert(NamedTuple):
    flags: int
    target: Target
    resource: Resource


class SetLvb(NamedTuple):
    resource: Resource
    value_block: bytes


class GetLvb(NamedTuple):
    """`wanted_bytes` 0: a whole sector."""

    wanted_bytes: int
    resource: Resource


# --- the daemon ---


class Version(NamedTuple):
    pass


class Shutdown(NamedTuple):
    force: int = 0


class ShutdownWait(NamedTuple):
    force: int = 0


class Status(NamedTuple):
    """`upto` 1 ends behind the daemon, 2 behind clients, 3 behind lockspaces."""

    upto: int = 0


class LogDump(NamedTuple):
    pass


# --- lockspaces ---


class AddLockspace(NamedTuple):
    """`io_timeout_s` 0: the daemon's default."""

    flags: int
    io_timeout_s: int
    lockspace: Lockspace


class RemLockspace(NamedTuple):
    flags: int
    lockspace: Lockspace


class InqLockspace(NamedTuple):
    flags: int
    lockspace: Lockspace


class ExamineLockspace(NamedTuple):
    lockspace: Lockspace


class HostStatus(NamedTuple):
    lockspace: Lockspace


class Renewal(NamedTuple):
    lockspace: Lockspace


class WriteLockspace(NamedTuple):
    """`max_hosts` is ignored by sanlock."""

    flags: int
    max_hosts: int
    io_timeout_s: int
    lockspace: Lockspace


class ReadLockspace(NamedTuple):
    lockspace: Lockspace


class GetLockspaces(NamedTuple):
    pass


class GetHosts(NamedTuple):
    flags: int
    lockspace: Lockspace


class RegEvent(NamedTuple):
    """`event` is ignored."""

    lockspace: Lockspace
    event: HostEvent = HostEvent()


class EndEvent(NamedTuple):
    lockspace: Lockspace


class SetEvent(NamedTuple):
    flags: int
    lockspace: Lockspace
    event: HostEvent


class SetConfig(NamedTuple):
    """`order` is a `ConfigOrder`; `seconds` belongs to IO_TIMEOUT."""

    order: int
    seconds: int
    lockspace: Lockspace


class ReadLockspaceHost(NamedTuple):
    lockspace: Lockspace


class InitLockspaceHost(NamedTuple):
    flags: int
    io_timeout_s: int
    lockspace: Lockspace
    record: HostRecord


class SetHost(NamedTuple):
    """`mark` is a `HostMark`; of `host`, id and generation count."""

    mark: int
    io_timeout_s: int
    lockspace: Lockspace
    host: Host


# --- leases on storage ---


class Request(NamedTuple):
    """REQUEST: asks the holder for a lease. `force_mode` is a `ForceMode`."""

    flags: int
    force_mode: int
    resource: Resource


class ExamineResource(NamedTuple):
    resource: Resource


class Align(NamedTuple):
    disk: Disk


class WriteResource(NamedTuple):
    """sanlock takes `first_number` as the number of hosts and ignores the other (sanlock-socket.md 2.7)."""

    flags: int
    first_number: int
    second_number: int
    resource: Resource


class ReadResource(NamedTuple):
    resource: Resource


class ReadResourceOwners(NamedTuple):
    resource: Resource


class FormatRindex(NamedTuple):
    rindex: Rindex


class RebuildRindex(NamedTuple):
    rindex: Rindex


class UpdateRindex(NamedTuple):
    flags: int
    rindex: Rindex
    entry: RindexEntry


class LookupRindex(NamedTuple):
    rindex: Rindex
    entry: RindexEntry


class CreateResource(NamedTuple):
    max_hosts: int
    num_hosts: int
    rindex: Rindex
    entry: RindexEntry


class DeleteResource(NamedTuple):
    rindex: Rindex
    entry: RindexEntry


AnyRequest = (
    Register
    | Restrict
    | Killpath
    | Acquire
    | Acquire2
    | Release
    | Inquire
    | Convert
    | SetLvb
    | GetLvb
    | Version
    | Shutdown
    | ShutdownWait
    | Status
    | LogDump
    | AddLockspace
    | RemLockspace
    | InqLockspace
    | ExamineLockspace
    | HostStatus
    | Renewal
    | WriteLockspace
    | ReadLockspace
    | GetLockspaces
    | GetHosts
    | RegEvent
    | EndEvent
    | SetEvent
    | SetConfig
    | ReadLockspaceHost
    | InitLockspaceHost
    | SetHost
    | Request
    | ExamineResource
    | Align
    | WriteResource
    | ReadResource
    | ReadResourceOwners
    | FormatRindex
    | RebuildRindex
    | UpdateRindex
    | LookupRindex
    | CreateResource
    | DeleteResource
)
ClientRequest = Acquire | Acquire2 | Release | Inquire | Convert | Killpath
"""What is bound to a registered client."""
