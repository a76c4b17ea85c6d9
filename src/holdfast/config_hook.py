"""[[hook.actions]]: a site's own policy for libvirt's hook, by a glob over the paths of disks; the first match counts. PURE.

A rule says for events of the hook what the lock of a disk is after each: exclusive, shared, or unlocked. A VM that runs has
an exclusive lock, or a shared one on a disk that is <shareable/>, so most of it is fixed, and a rule that says otherwise is
refused:

    event                                  may be                       if it is left out
    prepare                                exclusive, shared            what the domain's XML says: shared if <shareable/>
    restore, start, started, reconnect     what prepare is              what prepare is
    migrate: a guest arrives               exclusive, shared, unlock    unlock: held from the moment it is about to run
    stopped, release                       unlock                       unlock
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

Action = Literal["exclusive", "shared", "unlock"]

BEFORE, UNDER, AFTER = ("restore", "start"), ("started", "reconnect"), ("stopped", "release")
"""Events that follow `prepare` before QEMU is there, while it runs, and when it has ended."""


class HookAction(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One rule; None: it does not say."""

    match: str
    prepare: Action | None = None
    restore: Action | None = None
    start: Action | None = None
    started: Action | None = None
    reconnect: Action | None = None
    migrate: Action | None = None
    stopped: Action | None = None
    release: Action | None = None


def problems(
    actions: Sequence[HookAction], covers: Callable[[str, str], bool]
) -> Iterator[tuple[int, str, str]]:
    """What is wrong: the rule's number, its key, and why with the fix. `covers`: whether a glob takes all of another."""
    for number, rule in enumerate(actions, 1):
        if not rule.match.startswith(("/", "*", "[", "?")):
            yield (
                number,
                "match",
                f"'{rule.match}' can't match: paths are absolute; write \"/{rule.match}\"",
            )
        for earlier, other in enumerate(actions[: number - 1], 1):
            if covers(other.match, rule.match):
                yield (
                    number,
                    "match",
                    f"'{rule.match}' can't match: hook.actions[{earlier}] '{other.match}' comes first and takes all of it; "
                    "put the narrower rule first",
                )
                break
        for event, why in _wrong_events(rule):
            yield number, event, why


def _wrong_events(rule: HookAction) -> Iterator[tuple[str, str]]:
    said = {
        event: action for event in rule.__struct_fields__[1:] if (action := getattr(rule, event)) is not None
    }
    if not said:
        yield "match", 'has no event: write migrate = "exclusive", or remove the rule'
    held = said.get("prepare")
    if held == "unlock":
        yield "prepare", f"unlock would start a VM without a lock on its disk: {_either('prepare')}"
    for event in (*BEFORE, *UNDER):
        action = said.get(event)
        if action is None or action == held != "unlock":
            continue
        if action == "unlock" and event in UNDER:
            yield event, "unlock would free the disk of a VM that runs: leave it out"
        elif action == "unlock":
            yield event, f"unlock would start a VM without a lock on its disk: {_either(event)}"
        elif held is None:
            yield (
                event,
                f'{action} is what the disk has since prepare: write prepare = "{action}", or leave it out',
            )
        else:
            yield (
                event,
                f'{action} is not what prepare says, {held}: write {event} = "{held}", or leave it out',
            )
    for event in AFTER:
        if (action := said.get(event, "unlock")) != "unlock":
            yield (
                event,
                f'{action} would hold a disk for a VM that has ended: write {event} = "unlock", or leave it out',
            )


def _either(event: str) -> str:
    return f'write {event} = "exclusive", or "shared" for disks that are <shareable/>'
