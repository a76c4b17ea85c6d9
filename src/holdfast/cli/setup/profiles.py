"""PURE: timeouts by name, and what they mean in seconds, by the protocol's own formulas (`protocol.timing`)."""

from __future__ import annotations

from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S, Timing

DEFAULT = "sanlock"
PROFILES = {
    DEFAULT: Timing(10, FIRE_TIMEOUT_DEFAULT_S),
    "balanced": Timing(5, 30),
    "fast": Timing(2, 10),
}


def words(timing: Timing, *, has_watchdog: bool) -> str:
    """What an operator gets by these two numbers."""
    least, greatest = timing.takeover_s
    grace = (
        f"VMs have {timing.grace_s} s to end before they are killed"
        if timing.grace_s
        else "VMs are killed at once"
    )
    end = f"when the lockspace is lost {grace}" + (
        f", and the host is reset after {timing.dead_s} s"
        if has_watchdog
        else ", and nothing resets a host that hangs"
    )
    return (
        f"io_timeout {timing.io_timeout_s} s, fire timeout {timing.fire_timeout_s} s: takeover of a dead host in {least} to "
        f"{greatest} s, survives a storage stall of {timing.stall_s} s; {end}"
    )
