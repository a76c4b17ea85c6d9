"""The mode in which this host should hold a volume, and the one step towards it: mode follows role. PURE.

Activation and writing are two things. A host that holds a volume *shared* may have it active and must not let a VM write,
but for the end of a migration (`write_rules`). All that would be dangerous asks for *exclusive*, and lvmlockd refuses that
while another host holds the volume in any mode (libvirt-hooks-lvm.md 2.3):

    on this host                                               wanted
    a VM, and the volume can't be active on two hosts          exclusive
    a VM that owns it                                          exclusive; shared if all who use it share it or only read
    else a VM that migrates away or arrives                    shared
    else a VM with no known outcome, or one that is announced  what is held; shared at least, for an active volume
    no VM, and that is proven                                  nothing: it is deactivated
    no VM, and a status file can't be read                     what is held

With `activation = "shared"` a volume is active on all hosts, and a guard lease alone says who may write (ADR 0233): each
"exclusive" above is *shared*, and what no VM uses stays active, but not exclusive. A volume that can't be active on two
hosts is held as without that.

A host with a guard never begins to share a volume while a guest runs that has no guard lease: another host may take
"shared" and a free guard lease for leave to write.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from holdfast.backends.lvm.ports import Refused
from holdfast.backends.lvm.roles import Role
from holdfast.model import Mode

OWNS = frozenset((Role.OWNER, Role.CAME_BACK))
MIGRATES = frozenset((Role.SOURCE, Role.LEFT, Role.TARGET, Role.FINISHING))


class Want(enum.Enum):
    """What this host should hold of a volume."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    KEEP = "what is held"
    NOTHING = "nothing"
    RESTING = "nothing, and it stays active"


UNUSED = frozenset((Want.NOTHING, Want.RESTING))
"""No VM needs the volume, and that is proven."""


class Step(enum.Enum):
    """One request that brings it nearer."""

    NONE = "it is so"
    LOCK_EXCLUSIVE = "convert to exclusive"
    LOCK_SHARED = "convert to shared"
    ACTIVATE_EXCLUSIVE = "activate exclusively"
    ACTIVATE_SHARED = "activate shared"
    DEACTIVATE = "deactivate"
    WAIT = "lvmlockd does not say what is held"


@dataclass(frozen=True, slots=True)
class Use:
    """One VM with this volume as a disk."""

    role: Role
    mode: Mode
    """SHARED for a disk that is shareable or read-only."""


def wanted(
    uses: Collection[Use],
    *,
    announced: bool = False,
    doubt: bool = False,
    one_host: bool = False,
    shares: bool = False,
    unguarded: bool = False,
) -> Want:
    """What this host should hold. `announced`: a VM with it is being started or arrives, and has no status file yet;
    `doubt`: a status file, or their folder, can't be read; `one_host`: the volume can't be active on two hosts; `shares`:
    all hosts have it active; `unguarded`: a guest runs with it and has not the guard lease that it should have.
    """
    if one_host and uses:
        return Want.EXCLUSIVE
    owners = [use for use in uses if use.role in OWNS]
    if owners and not shares and any(use.mode is Mode.EXCLUSIVE for use in owners):
        return Want.EXCLUSIVE
    if owners or any(use.role in MIGRATES for use in uses):
        return Want.KEEP if unguarded else Want.SHARED
    if uses or announced or doubt:
        return Want.KEEP
    return Want.RESTING if shares and not one_host else Want.NOTHING


def step(want: Want, held: Mode | Refused | None, *, active: bool) -> Step:
    """The one request to make now. `held`: the lock by lvmlockd; `active`: the device is there."""
    if isinstance(held, Refused):
        return Step.WAIT
    match want:
        case Want.NOTHING:
            return Step.DEACTIVATE if active or held is not None else Step.NONE
        case Want.RESTING if not active:
            return Step.DEACTIVATE if held is not None else Step.NONE
        case Want.RESTING:
            return Step.NONE if held is Mode.SHARED else Step.LOCK_SHARED
        case Want.KEEP:
            return Step.LOCK_SHARED if active and held is None else Step.NONE
        case Want.EXCLUSIVE:
            if not active:
                return Step.ACTIVATE_EXCLUSIVE
            return Step.NONE if held is Mode.EXCLUSIVE else Step.LOCK_EXCLUSIVE
        case Want.SHARED:
            if not active:
                return Step.ACTIVATE_SHARED
            return Step.NONE if held is Mode.SHARED else Step.LOCK_SHARED
