"""What is run: pairs of guests, and what happens to the one that holds the lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.protocol.timing import Timing

Program = Literal["holdfastd", "sanlock"]
Release = Literal["bookworm", "trixie"]
Cause = Literal["kill9", "hang", "error", "freeze", "power"]

CAUSES: dict[Cause, str] = {
    "kill9": "the lease daemon is killed and not started again",
    "hang": "the lease disk answers no more",
    "error": "the lease disk answers EIO",
    "freeze": "the processor stops; clock, watchdog and disks run on",
    "power": "the power is cut",
}
MADE_HARMLESS_BY: dict[Cause, tuple[str, ...]] = {
    "kill9": ("watchdog",),
    "hang": ("watchdog", "ladder"),
    "error": ("watchdog", "ladder"),
    "freeze": ("watchdog",),
    "power": ("power",),
}
IO_TIMEOUT_S = 2
"""The least one at which wdmd lets healthy hosts live: it warns 10 s before the expiry at 8 io_timeouts."""
DEVICE_FIRE_S = 10
WDMD_FIRE_S = 60
"""Built into wdmd 3.8.5, and the default of later ones."""
WDMD_VERSIONS: dict[Release, str] = {"bookworm": "3.8.", "trixie": "3.9."}
"""How their versions begin. The former has its device open from the start, the latter opens it when it is asked to."""


@dataclass(frozen=True, slots=True)
class Suite:
    """One pair of guests: h1 holds, h2 takes over."""

    name: str
    about: str
    watchdog: Literal["device", "wdmd"]
    causes: tuple[Cause, ...]
    holder: Program = "holdfastd"
    taker: Program = "holdfastd"
    sector_bytes: int = 512
    wdmd_of: Release = "bookworm"

    @property
    def timing(self) -> Timing:
        return Timing(IO_TIMEOUT_S, DEVICE_FIRE_S if self.watchdog == "device" else WDMD_FIRE_S)

    def expected_s(self) -> float:
        """About how long it takes: what a case waits for, boots, and the wait with nothing wrong."""
        return 60 + self.control_s + len(self.causes) * (self.timing.dead_s + 45)

    @property
    def control_s(self) -> float:
        """With nothing wrong no host may be reset for so long: a watchdog that nobody feeds would have fired."""
        return self.timing.fire_timeout_s + 20.0


SUITES = (
    Suite("device", 'watchdog = "device"', "device", ("kill9", "hang", "error", "freeze", "power")),
    Suite("4096", "disks with 4096-byte sectors", "device", ("kill9", "hang", "error"), sector_bytes=4096),
    Suite("wdmd", "the real wdmd 3.8.5", "wdmd", ("kill9", "hang", "error", "freeze", "power")),
    Suite(
        "wdmd39",
        "the real wdmd 3.9.5",
        "wdmd",
        ("kill9", "hang", "error", "freeze", "power"),
        wdmd_of="trixie",
    ),
    Suite(
        "to-sanlock",
        "the real sanlock takes over from holdfastd",
        "wdmd",
        ("kill9", "power"),
        taker="sanlock",
    ),
    Suite(
        "from-sanlock",
        "holdfastd takes over from the real sanlock",
        "wdmd",
        ("kill9", "hang", "power"),
        holder="sanlock",
    ),
)


def chosen(words: list[str]) -> list[tuple[Suite, tuple[Cause, ...]]]:
    """The cases that these words name: SUITE, CAUSE or SUITE/CAUSE; raises `ValueError` for one that names none."""
    wanted: set[tuple[str, str]] = set()
    for word in words or ["*"]:
        named = {
            (suite.name, cause)
            for suite in SUITES
            for cause in suite.causes
            if word in ("*", suite.name, cause, f"{suite.name}/{cause}")
        }
        if not named:
            raise ValueError(word)
        wanted |= named
    picked = ((s, tuple(c for c in s.causes if (s.name, c) in wanted)) for s in SUITES)
    return [(suite, causes) for suite, causes in picked if causes]
