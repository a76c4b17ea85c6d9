"""One tree of refusals, one table to wire codes.

A refusal names the facts: every class has a template over its own keyword attributes, so a frontend never composes text,
and an error has the same text in virsh, in the CLI and in the log.
Codes and domains are libvirt's (virtlockd-rpc.md 2.3); the words of the templates keep the beginning that
virtlockd's own messages have, because scripts match on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import ClassVar, NamedTuple, Protocol

from holdfast.model import Holder, Protection, Resource


class HoldfastError(Exception):
    """Root of everything that Holdfast refuses on purpose; ``str()`` is the whole message."""

    template: ClassVar[str] = "{reason}"

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__(self.template.format_map(facts))

    @property
    def message(self) -> str:
        return str(self)

    def add(self, note: str) -> None:
        """Say more at the end of the message: facts that who raised it did not have."""
        self.args = (f"{self}{note}",)


class ConfigError(HoldfastError):
    """Configuration that cannot be used; names the file, the key and the fix."""

    template = "{file}: {key}: {reason}"


class UnknownKey(ConfigError):
    """A key that this version does not know; `place` is its path through the tables of the file."""

    def __init__(self, *, file: str, key: str, reason: str, place: tuple[str | int, ...]) -> None:
        self.place = place
        super().__init__(file=file, key=key, reason=reason)


# --- answers of the lock manager ---------------------------------------------------------------------


class LockError(HoldfastError):
    """A request to the lock manager that was not granted."""


class ResourceBusy(LockError):
    template = "Lockspace resource '{name}' is locked by {holders}"

    def __init__(
        self, resource: Resource, holders: Iterable[Holder], note: str = "", cause: object = None
    ) -> None:
        self.resource = resource
        self.cause = cause
        """Of another host's hold: the refusal of the protocol that has found it; None for a hold of this host."""
        self.holders = tuple(holders)
        named = "; ".join(str(h) for h in self.holders[:HOLDERS_TOLD_MAX])
        if len(self.holders) > HOLDERS_TOLD_MAX:
            named += f"; and {len(self.holders) - HOLDERS_TOLD_MAX} more"
        super().__init__(name=resource.name, holders=named + note)


HOLDERS_TOLD_MAX = 4
"""Holders named in one message: a shared disk may have fifty, too many for an error line."""


class DiskTwice(ResourceBusy):
    """A VM is about to get a disk that it already has: its second writer would be itself."""

    def __init__(self, resource: Resource, holder: Holder) -> None:
        super().__init__(
            resource, (holder,), note=": that VM has this disk already; one VM can't have it twice"
        )


class ResourceNotLocked(LockError):
    template = "Lockspace resource '{name}' is not locked"


class ResourceInUse(LockError):
    """CREATE_RESOURCE or DELETE_RESOURCE on a resource that is held."""

    template = "Lockspace resource '{name}' is locked"


class NotAnOwner(LockError):
    template = "owner PID does not hold the resource lock"


class LockspaceUnknown(LockError):
    template = "Lockspace for path {path} does not exist"


class LockspaceExists(LockError):
    template = "Lockspace for path {path} already exists"


class DefaultLockspaceExists(LockError):
    template = "the default lockspace already exists"


class LockspaceNotDirectory(LockError):
    template = "Lockspace location {path} exists, but is not a directory"


class NameRefused(LockError):
    template = "invalid argument: resource name '{name}' in lockspace '{lockspace}' {reason}"


class ProtectionTooWeak(LockError):
    template = (
        "disk '{name}' needs protection level {need} ({need_word}) but backend '{backend}' gives {got} "
        "({got_word}) here: {fix}"
    )

    def __init__(self, *, name: str, need: Protection, got: Protection, backend: str, fix: str) -> None:
        super().__init__(
            name=name,
            need=int(need),
            need_word=need.word,
            got=int(got),
            got_word=got.word,
            backend=backend,
            fix=fix,
        )


class StorageFailed(LockError):
    """A system call on the lock's file failed; ``errno`` is kept for the wire."""

    template = "{what} {path}: {reason}"

    def __init__(self, *, what: str, path: str, errno: int, reason: str = "") -> None:
        self.errno = errno
        super().__init__(what=what, path=path, reason=reason or os.strerror(errno))


class FailedCall(Protocol):
    """The facts of a failed system call (`system.files.ofd_lock.IoFailed`)."""

    @property
    def what(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def errno(self) -> int: ...
    @property
    def reason(self) -> str: ...


def storage_failed(failed: FailedCall) -> StorageFailed:
    """The refusal for a failed call; virtlockd quotes the path in one of its texts (virtlockd-rpc.md 3.4)."""
    path = f"'{failed.path}'" if failed.what.endswith("lock on") else failed.path
    return StorageFailed(what=failed.what, path=path, errno=failed.errno, reason=failed.reason)


class LockFileCreateFailed(StorageFailed):
    """CREATE_RESOURCE's failure, which virtlockd reports in no domain (virtlockd-rpc.md 3.4)."""


class StorageSilent(LockError):
    """The storage of a lock did not answer within the bound; the late answer will be undone."""

    template = "storage of {path} did not answer within {timeout_s} s"


class OwnerGone(LockError):
    template = "owner process {pid} ended while its lock on '{name}' was being acquired"


class Refused(LockError):
    """The manager does not take requests of this kind now."""

    template = "{reason}"


class HostNotKnown(Refused):
    template = "host '{host}' is in no lockspace of this daemon ('holdfast lockspace list' shows who is)"


class LockspaceAbsent(LockError):
    """This host is not in the lockspace whose leases would hold the disk."""

    template = "disk '{name}' can't be held: this host is not in lockspace {lockspace} now: {reason}"


class LeaseUnusable(LockError):
    """The lease is in a state in which no host may take it, or storage failed during the acquire."""

    template = "lease of '{name}' at {place} can't be taken: {reason}"


class NotOnLease(LeaseUnusable):
    """The host that is attested to be off has no claim on the lease."""


class AttemptLeft(LeaseUnusable):
    """An earlier daemon of this host tried to take it and was killed; until the attempt is withdrawn, another host's ballot
    has to decide for it. No VM depends on it.
    """


class DiskNotKnown(LockError):
    """A disk is named by its hash, and a rule or lease depends on its path, which is not known."""

    template = (
        "no disk of {owner} in libvirt's status file has the name {name}, by which libvirt asks for it in {lockspace} "
        "(file_lockspace_dir, lvm_lockspace_dir or scsi_lockspace_dir in qemu-lockd.conf), and its lease or its rule "
        "depends on its path: it can't be attached to a running VM, or copied to; start the VM with it"
    )


class NoLeaseName(LockError):
    template = "disk '{name}' has no {kind}, by which backend '{backend}' names leases: {fix}"


# --- answers of the virtlockd frontend -----------------------------------------------------------------


class CallError(HoldfastError):
    """A call that never reached the manager."""


class UnsupportedFlags(CallError):
    template = "unsupported flags (0x{flags:x}) in function {function}"


class Restricted(CallError):
    template = "lock manager connection has been restricted"


class NotRegistered(CallError):
    template = "lock owner details have not been registered"


class RpcError(CallError):
    """Framing or dispatch: unknown program, procedure, status, payload."""

    template = "{reason}"


class WireCode(NamedTuple):
    """libvirt's error code and domain, and the prefix that its message template puts before the detail."""

    code: int
    domain: int
    prefix: str


_RPC, _LOCKSPACE, _NONE = 7, 51, 0

LIBVIRT_CODES: dict[type[HoldfastError], WireCode] = {
    ResourceBusy: WireCode(87, _LOCKSPACE, "resource busy: "),
    DiskTwice: WireCode(87, _LOCKSPACE, "resource busy: "),
    ResourceNotLocked: WireCode(87, _LOCKSPACE, "resource busy: "),
    ResourceInUse: WireCode(87, _LOCKSPACE, "resource busy: "),
    NotAnOwner: WireCode(1, _LOCKSPACE, "internal error: "),
    LockspaceUnknown: WireCode(1, _RPC, "internal error: "),
    LockspaceExists: WireCode(1, _RPC, "internal error: "),
    DefaultLockspaceExists: WireCode(55, _RPC, "Requested operation is not valid: "),
    LockspaceNotDirectory: WireCode(1, _LOCKSPACE, "internal error: "),
    NameRefused: WireCode(8, _LOCKSPACE, ""),
    ProtectionTooWeak: WireCode(55, _LOCKSPACE, "Requested operation is not valid: "),
    StorageFailed: WireCode(38, _LOCKSPACE, ""),
    LockFileCreateFailed: WireCode(38, _NONE, ""),
    StorageSilent: WireCode(38, _LOCKSPACE, ""),
    LockspaceAbsent: WireCode(55, _LOCKSPACE, "Requested operation is not valid: "),
    LeaseUnusable: WireCode(38, _LOCKSPACE, ""),
    DiskNotKnown: WireCode(55, _LOCKSPACE, "Requested operation is not valid: "),
    NoLeaseName: WireCode(8, _LOCKSPACE, ""),
    OwnerGone: WireCode(1, _LOCKSPACE, "internal error: "),
    Refused: WireCode(55, _LOCKSPACE, "Requested operation is not valid: "),
    UnsupportedFlags: WireCode(8, _RPC, ""),
    Restricted: WireCode(29, _RPC, "operation forbidden: "),
    NotRegistered: WireCode(55, _RPC, "Requested operation is not valid: "),
    RpcError: WireCode(39, _RPC, ""),
}
"""Every leaf of the tree that may travel to libvirt (a test keeps it complete)."""


def libvirt_code(error: HoldfastError) -> WireCode:
    """The wire code of an error, by its nearest listed class; INTERNAL_ERROR for anything else."""
    for cls in type(error).__mro__:
        if (code := LIBVIRT_CODES.get(cls)) is not None:
            return code
    return WireCode(1, _LOCKSPACE, "internal error: ")
