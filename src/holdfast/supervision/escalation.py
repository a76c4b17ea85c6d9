"""Escalation against owners whose leases are lost: steps with deadlines, as a state machine without I/O.

Only owners that depend on the lockspace that failed are touched.

    loss            + grace / 2      + grace               8 io + fire
    |-- act ----------|-- SIGTERM -----|-- SIGKILL ----------|-- the watchdog has spoken
    pause, poweroff   still there      still there           others may take over

The grace counts from the moment at which the lease failed, or was found to be over, whichever came first: a daemon that
slept through the deadlines kills at once. Owners with action `ignore` keep running; while one remains, the watchdog is
not fed. An owner is *gone* when it no longer depends on the lockspace: it has ended, or it was paused, libvirt has
released its locks, and QEMU has answered since, so that no request of the guest is under way. When all are gone the
lockspace may be joined again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.model import LockFailureAction
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import Instant

AGAIN_S = 5.0
"""Between two signals of one kind to an owner that does not end."""


@dataclass(frozen=True, slots=True)
class Act:
    """Carry out the action that is configured for the owner."""

    owner: int
    action: LockFailureAction


@dataclass(frozen=True, slots=True)
class Terminate:
    owner: int


@dataclass(frozen=True, slots=True)
class Kill:
    owner: int


@dataclass(frozen=True, slots=True)
class AllGone:
    """No owner depends on the lockspace any more."""


@dataclass(frozen=True, slots=True)
class OutOfTime:
    """Other hosts may take over from now on while these owners still run: only the watchdog can stop them."""

    owners: tuple[int, ...]


LadderAction = Act | Terminate | Kill | AllGone | OutOfTime


class Escalation:
    """One loss of one lockspace. `renewed_at` None: the age of the lease is not known, so there is no grace."""

    def __init__(self, timing: Timing, *, lost_at: Instant, renewed_at: Instant | None) -> None:
        if renewed_at is None:
            self.kill_at = self.terminate_at = lost_at
            self.dead_at = Instant(lost_at + timing.fire_timeout_s)
        else:
            begun_at = min(lost_at, renewed_at + timing.fail_s)
            self.kill_at = Instant(begun_at + timing.grace_s)
            self.terminate_at = Instant(begun_at + timing.grace_s / 2)
            self.dead_at = Instant(renewed_at + timing.dead_s)
        self._acted: set[int] = set()
        self._signalled_at: dict[tuple[int, type], Instant] = {}
        self._out_of_time = False
        self._over = False

    def step(self, now: Instant, users: Mapping[int, LockFailureAction]) -> tuple[LadderAction, ...]:
        """The actions that are due. `users`: pid and configured action of each owner that depends on the lockspace now."""
        if self._over:
            return ()
        if not users:
            self._over = True
            return (AllGone(),)
        actions: list[LadderAction] = []
        for owner, action in users.items():
            if action is not LockFailureAction.IGNORE:
                actions += self._step_one(now, owner, action)
        if now >= self.dead_at and not self._out_of_time:
            self._out_of_time = True
            actions.append(OutOfTime(tuple(users)))
        return tuple(actions)

    def _step_one(self, now: Instant, owner: int, action: LockFailureAction) -> list[LadderAction]:
        if now >= self.kill_at:
            return self._signal(now, Kill(owner))
        if owner not in self._acted:
            self._acted.add(owner)
            if action is LockFailureAction.PAUSE:
                return [Act(owner, action)]
            return [Act(owner, action), *self._signal(now, Terminate(owner))]
        if now >= self.terminate_at or action is not LockFailureAction.PAUSE:
            return self._signal(now, Terminate(owner))
        return []

    def _signal(self, now: Instant, action: Terminate | Kill) -> list[LadderAction]:
        before = self._signalled_at.get((action.owner, type(action)))
        if before is not None and now - before < AGAIN_S:
            return []
        self._signalled_at[action.owner, type(action)] = now
        return [action]
