"""Which VM of this host may write to a volume: libvirt's ACQUIRE and RELEASE over a lock that may be shared. PURE.

    ACQUIRE by                         is granted when this host holds the volume
    a target in `finish3`              shared or exclusive: libvirt sends it only after the source has completed
    a VM whose disk is shareable       shared or exclusive
    any other VM, the source included  exclusive
    any, beside another VM's grant     never

Where all hosts have the volume active (`shares`), "exclusive" is "shared or exclusive" in this table: there a guard lease,
which the caller has asked for, excludes other hosts (ADR 0233).

The source is no exception: when libvirt asks again for it, the target may have been granted already, and the answer was
lost. The target's lock, shared, then keeps the source from an exclusive one.

    RELEASE by                                    makes the grant
    a source, or a VM whose file can't be read    yielded: QEMU may run the guest again without any ACQUIRE (section 0.7)
    any other                                     over

    a yielded grant, when the status file says    becomes
    the migration goes on, or nothing is known    yielded still: free for nobody on this host
    the guest has left, or its process has ended  over
    running, and no migration                     held again, if this host still has the volume's lock
    standing, and no migration                    over: libvirt asks before the guest runs

A yielded grant refuses all VMs of this host; those of others are refused by the volume's lock, which this host has until the
VM's process has ended. Facts: libvirt-hooks-lvm.md 1.3, 2.3 and row 11a of 2.5.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.backends.lvm.roles import Role
from holdfast.model import Mode


class Vm(NamedTuple):
    """One process of a VM, or of another program (`holdfast run`)."""

    uuid: str
    """Empty for a program."""
    pid: int

    @property
    def is_program(self) -> bool:
        """Whether libvirt knows nothing of it, so that no status file says what it does."""
        return not self.uuid


class Grant(enum.Enum):
    """How far a VM may write to a volume."""

    HELD = "held"
    YIELDED = "yielded"


@dataclass(frozen=True, slots=True)
class Holding:
    """A VM's grant on one volume."""

    vm: Vm
    name: str
    mode: Mode
    grant: Grant


@dataclass(frozen=True, slots=True)
class Needs:
    """Nothing can be granted before this host holds the volume in that mode."""

    mode: Mode


def on_acquire(
    vm: Vm, mode: Mode, role: Role, held: Mode | None, others: Iterable[Holding], *, shares: bool = False
) -> Holding | Needs | None:
    """None: granted. Else the grant of another VM here that is in the way, or what this host needs first.

    `held`: the mode in which this host holds the volume; `others`: all grants on the volume here; `shares`: a guard lease
    keeps other hosts out, and the VM has it.
    """
    for holding in others:
        if holding.vm != vm and Mode.EXCLUSIVE in (mode, holding.mode):
            return holding
    if held is Mode.EXCLUSIVE:
        return None
    if mode is Mode.SHARED or shares:
        return None if held is Mode.SHARED else Needs(Mode.SHARED)
    if role is Role.FINISHING and held is Mode.SHARED:
        return None
    return Needs(Mode.EXCLUSIVE)


def on_release(role: Role | None) -> Grant | None:
    """What a grant becomes; None: over. `role` None: the VM's status file can't be read."""
    return Grant.YIELDED if role in (None, Role.SOURCE, Role.CAME_BACK, Role.UNSETTLED) else None


def by_status(grant: Grant, role: Role, *, runs: bool) -> Grant | None:
    """What a grant becomes by the status file of its VM, which is there; None: over."""
    if role is Role.LEFT:
        return None
    if grant is Grant.HELD or role in (Role.SOURCE, Role.UNSETTLED, Role.TARGET, Role.FINISHING):
        return grant
    if runs:
        return Grant.HELD
    return grant if role is Role.CAME_BACK else None
