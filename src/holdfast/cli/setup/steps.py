"""PURE: what a step of `holdfast setup` is: why, and what is done, as a value that `execute` carries out.

A step has no check of its own: it is needed as long as `plan` finds it in the facts, before it and after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EditLibvirt:
    """Settings of one of libvirt's files, by its augeas lens."""

    path: str
    lens: str
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A whole file. `run`, `undo_run`: a command after it, and after it was restored. `source`: the file that it is a copy
    of, in place of `text`.
    """

    path: str
    text: str = ""
    mode: int = 0o644
    run: tuple[str, ...] = ()
    undo_run: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str
    mode: int = 0o700


@dataclass(frozen=True, slots=True)
class MakeLockspace:
    path: str
    name: str
    hosts_max: int
    io_timeout_s: int
    with_index: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Commands, up to the first that fails."""

    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """virtlockd goes and holdfastd comes, while libvirt is stopped, and only if no VM has a lock in virtlockd."""

    stop: tuple[str, ...]
    """Units of virtlockd's."""


@dataclass(frozen=True, slots=True)
class SwitchLive:
    """virtlockd becomes holdfastd, with the locks and connections of VMs that run, while libvirt is stopped (ADR 0211)."""

    stop: tuple[str, ...]
    """Units of virtlockd's."""
    backend: str


@dataclass(frozen=True, slots=True)
class Reload:
    """holdfastd takes the configuration on disk."""


@dataclass(frozen=True, slots=True)
class AwaitJoined:
    lockspace: str


Action = (
    EditLibvirt | WriteFile | MakeDirectory | MakeLockspace | Run | Switch | SwitchLive | Reload | AwaitJoined
)


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    title: str
    reason: str
    action: Action
    undo: str
    """What `--undo` does about it, in words."""


@dataclass(frozen=True, slots=True)
class ByHand:
    """What setup does not do: facts, and the fix that a person may paste. `id`: `holdfast doctor`'s; `severity` too."""

    id: str
    severity: str
    facts: str
    fix: str


@dataclass(frozen=True, slots=True)
class Plan:
    """With a refusal nothing is done at all. `reasons`: of the proposal."""

    refusals: tuple[str, ...]
    steps: tuple[Step, ...]
    by_hand: tuple[ByHand, ...]
    reasons: tuple[str, ...]
