"""libvirt's ACQUIRE and RELEASE over volumes: which VM of this host may write, by `write_rules`, and what it needs first."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from holdfast.backends.lvm.host_volumes import TRY_S_MIN, HostVolumes, held_here
from holdfast.backends.lvm.ports import LeaseSeen, Problem, Refused, Volume
from holdfast.backends.lvm.roles import role
from holdfast.backends.lvm.write_rules import Grant, Holding, Needs, Vm, on_acquire, on_release
from holdfast.model import Mode

ACQUIRE_WAIT_S = 5.0
"""How long an ACQUIRE waits for an exclusive lock: a target that has just failed gives its own up in that time."""


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a VM may not write, in one sentence, and who is in the way as far as that is known."""

    text: str
    here: Holding | None = None
    """A VM of this host."""
    lease: LeaseSeen | None = None
    """Of the volume, if it shows other hosts."""
    refused: Refused | None = None
    """What lvmlockd or LVM did not do; None if that was not the reason."""

    def __str__(self) -> str:
        return self.text


class WriteGrants:
    """The grants of this host's VMs."""

    def __init__(self, host: HostVolumes, *, acquire_wait_s: float = ACQUIRE_WAIT_S) -> None:
        self._host = host
        self._acquire_wait_s = acquire_wait_s

    def of(self, volume: Volume) -> tuple[Holding, ...]:
        """Which VMs of this host may write to it, or may again without asking."""
        return tuple(self._host.kept.holdings.get(volume.id, ()))

    async def acquire(self, vm: Vm, name: str, volume: Volume, mode: Mode) -> Denied | None:
        """Let a VM write; None, or why not. Waits up to `acquire_wait_s` for the mode that it needs."""
        until = self._host.clock.now() + self._acquire_wait_s
        while True:
            async with self._host.alone(volume):
                why = await self._acquired(vm, name, volume, mode)
            if not isinstance(why, Refused):
                return why
            if self._host.clock.now() >= until:
                text, lease = await self._host.refusal(volume, why)
                return Denied(text, lease=lease, refused=why)
            await self._host.clock.sleep(TRY_S_MIN)

    async def _acquired(self, vm: Vm, name: str, volume: Volume, mode: Mode) -> Denied | Refused | None:
        shares = self._host.shares(volume)
        held = await self._host.locks.query(volume)
        for _ in range(2):
            if isinstance(held, Refused):
                return held
            if self._host.misses_guard(vm, volume, mode):
                return Denied(f"{volume}: the guard lease that its VM needs is not held")
            role_now = self._host.role_of(vm)
            others = self._host.holdings_on(volume)
            answer = on_acquire(vm, mode, role_now, held, others, shares=shares)
            if isinstance(answer, Holding):
                return Denied(held_here(volume, answer), here=answer)
            if (rival := self._host.runs_here(volume, vm, mode)) is not None:
                return Denied(
                    f"{volume} is used by VM {rival.name} (pid {rival.pid}): by libvirt's status file it runs on this host"
                )
            if answer is None:
                before = next((each for each in self.of(volume) if each.vm == vm), None)
                self._host.hold(volume, Holding(vm, name, mode, Grant.HELD))
                if failed := self._host.saved():
                    self._host.drop(volume.id, vm)
                    if before is not None:  # it may run by that
                        self._host.hold(volume, before)
                    return Denied(failed)
                self._host.news.set()
                return None
            refused = await self._have(volume, answer)
            if refused is not None:
                return refused
            held = await self._host.locks.query(volume)
        return Refused(Problem.NO_ANSWER, "the lock is not held, although it was granted")

    async def _have(self, volume: Volume, needs: Needs) -> Refused | None:
        if self._host.locks.is_active(volume):
            return await self._host.locks.lock(volume, needs.mode)
        return await self._host.activate(volume, needs.mode)

    def let_go(self, vm: Vm, volume: Volume) -> Grant | None:
        """libvirt's RELEASE, answered at once: what becomes of the VM's grant; None: it is over.

        The volume keeps its mode: it is given up when the VM's process has ended.
        """
        found = [each for each in self._host.kept.holdings.get(volume.id, ()) if each.vm == vm]
        if not found:
            return None
        grant = None
        if not vm.is_program:
            domain = self._host.domain_of(vm)
            grant = on_release(role(domain) if domain is not None else None)
        if grant is None:
            self._host.drop(volume.id, vm)
        else:
            self._host.hold(volume, dataclasses.replace(found[0], grant=grant))
        self._host.saved()
        self._host.news.set()
        return grant
