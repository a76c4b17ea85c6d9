"""What alpha's end and beta's start were, and whether the bounds were kept.

    struck ──► alpha's watchdog fires (or its power is off) ……… beta's last refusal ……… the try that starts web1
               |<------------- before beta has web1 ----------->|
    |<---- at least the dead bound less one renewal, at most the greatest takeover ---------------->|

After a reboot in good order it is the other way round: alpha has freed its host id, so nobody waits for the dead bound.

`lab.fencing` has the narrow bounds, by what is on the disk; here an administrator's commands are timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.protocol.timing import Timing

Cause = Literal["power", "freeze", "network", "reboot"]
CAUSES: dict[Cause, str] = {
    "power": "alpha's power is cut",
    "freeze": "alpha's processor stops, and its watchdog resets it",
    "network": "alpha's storage answers no more",
    "reboot": "alpha is rebooted in good order: nobody waits for its dead bound",
}
NOISE_S = 15.0
"""Three emulated guests on two shared cores: a try takes seconds, and so does the start of a QEMU in a QEMU."""
RENEWAL_NOISE_S = 2.0
"""The last renewal may have begun so much earlier than the next one is due."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """Seconds since the cause. `began` and `ended` are those of the try that started the VM."""

    cause: Cause
    began: float
    ended: float
    fired: float | None
    """When alpha's watchdog did, None if it did not."""
    refusals: tuple[str, ...]

    def broken(self, timing: Timing) -> list[str]:
        """Every bound that was not kept."""
        found = []
        least = timing.dead_s - timing.renewal_s - RENEWAL_NOISE_S
        most = timing.takeover_s[1] + NOISE_S
        if self.cause == "reboot":
            if self.ended >= least:
                found.append(f"beta had web1 only after {self.ended:.1f} s, as if alpha had died")
            if self.fired is not None:
                found.append(f"alpha was reset by its watchdog after {self.fired:.1f} s")
        elif self.ended < least:
            found.append(f"beta had web1 after {self.ended:.1f} s, and alpha may have lived for {least:g} s")
        if self.began > most:
            found.append(f"beta had web1 only after {self.ended:.1f} s, not after {most:g} s")
        if self.cause == "freeze" and self.fired is None:
            found.append("alpha's watchdog did not reset it")
        if self.fired is not None and self.fired >= self.ended:
            found.append(f"alpha was reset after {self.fired:.1f} s, when beta had web1 already")
        if not self.refusals and self.cause != "reboot":
            found.append("beta was never refused web1")
        for said in self.refusals:
            if "locked by VM web1" not in said or "on host alpha" not in said:
                found.append(f"beta was refused for another reason: {said}")
                break
        return found
