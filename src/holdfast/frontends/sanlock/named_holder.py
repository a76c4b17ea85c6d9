"""ACQUIRE2's answer names the host that has the lease, where the protocol has found one (newer-sanlock.md 3)."""

from __future__ import annotations

from holdfast.backends.paxos.area_backend import AreaBackend
from holdfast.errors import HoldfastError, ResourceBusy
from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX, NO_NAME, PaddedName
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_lease import SharedBy
from holdfast.protocol.takeover import Busy, HostUnknown, NeverByTime
from holdfast.protocol.types import HostId
from holdfast.wire.sanlock.flags import HostState
from holdfast.wire.sanlock.replies import Holder
from holdfast.wire.sanlock.structures import Host


def named_holder(result: int, error: HoldfastError, backend: AreaBackend) -> Holder | None:
    """The holder, or None if there is nobody to name."""
    if not isinstance(error, ResourceBusy) or not error.holders:
        return None
    match error.cause:
        case Busy(leader) | HostUnknown(leader) | NeverByTime(leader):
            host_id, generation, timestamp = leader.owner_id, leader.owner_generation, leader.timestamp
        case SharedBy(hosts) if hosts:
            (host_id, generation), timestamp = next(iter(hosts.items())), 0
        case _:
            return None
    member = backend.presence.membership()
    state = HostState.UNKNOWN
    if isinstance(member, Membership):
        state = HostState[member.view(HostId(host_id)).state.name]
    name = error.holders[0].host
    host_name = PaddedName.of(name, HOST_NAME_BYTES_MAX) if name else NO_NAME
    return Holder(result, Host(host_id, generation, timestamp, 0, state), host_name)
