"""What every command prints with --json, as a JSON Schema (docs/json.md): the types, and how the file is made of them.

`JSON_VERSION` goes up when a key is removed or changes its type or meaning. Keys may be added at any time, so programs
ignore those that they don't know. `holdfast-json-VERSION.schema.json` beside this module is made from here:

    .venv/bin/python -m holdfast.cli.json_schema
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from holdfast.cli.doctor.findings import Finding
from holdfast.cli.doctor.rules import Rule
from holdfast.cli.offline.dump import Dump
from holdfast.cli.offline.hosts import HostsSeen
from holdfast.cli.who.report import Answer
from holdfast.control.api import (
    CollectedLease,
    EventInfo,
    FencedHost,
    HolderInfo,
    LeaseSpaceInfo,
    OwnerInfo,
    StatusInfo,
    VolumeInfo,
)
from holdfast.flight.notes import Note
from holdfast.ondisk.host_record import HostRecord

JSON_VERSION = 1
FILE = Path(__file__).with_name(f"holdfast-json-{JSON_VERSION}.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Failed(TypedDict):
    """Any command that could not do what was asked."""

    ok: Literal[False]
    error: str
    exit: int
    field: NotRequired[str]
    """Of a record on storage: what is wrong with it, and the way out."""
    fix: NotRequired[str]


class SpaceState(TypedDict):
    name: str
    state: str
    reason: str
    host_id: int


class UnlockedDisk(TypedDict):
    disk: str
    owner: str
    reason: str


@dataclass
class Status(StatusInfo):
    """The daemon's own keys, and what the command knows besides."""

    degraded: list[str] = field(default_factory=list)
    lease_spaces: list[SpaceState] = field(default_factory=list)
    unlocked_disks: list[UnlockedDisk] = field(default_factory=list)


class Reload(TypedDict):
    ok: bool
    version: str
    reasons: list[str]


class Why(TypedDict):
    ok: Literal[True]
    subject: str
    event: EventInfo | None
    mended: EventInfo | None
    now: Answer | None


class Broken(TypedDict):
    ok: Literal[True]
    disk: str
    proof: str


class Settled(TypedDict):
    ok: Literal[True]
    lock: str
    done: str


class CheckedConfig(TypedDict):
    ok: bool
    files: list[str]
    problems: list[dict[str, str]]
    missing: list[str]
    notes: list[str]


class Named(TypedDict):
    ok: Literal[True]
    lockspace: str


class IoTimeoutSet(TypedDict):
    ok: bool
    lockspace: str
    io_timeout_s: int
    changed: bool


class Switched(TypedDict):
    ok: bool
    pid: int
    locks: int
    doubtful: list[str]


class Switchable(TypedDict):
    ok: Literal[True]
    pid: int
    program: str


class Attached(TypedDict):
    ok: Literal[True]
    vm: str
    disk: str
    target: str


class VolumeActivated(TypedDict):
    ok: Literal[True]
    path: str
    changed: bool


class VolumeDeactivated(TypedDict):
    ok: Literal[True]
    path: str


class LockspaceMade(TypedDict):
    ok: Literal[True]
    path: str
    offset: int
    lockspace: str
    sector: int
    align: int
    hosts_max: int
    io_timeout: int
    index_entries: int
    overwritten: str | None
    access: str


class LeaseMade(TypedDict):
    ok: Literal[True]
    path: str
    offset: int
    lockspace: str
    resource: str
    sector: int
    align: int
    num_hosts: int
    overwritten: str | None
    access: str


class ConfigShown(TypedDict):
    ok: Literal[True]
    sources: list[str]
    toml: str


class Versions(TypedDict):
    ok: Literal[True]
    holdfast: str
    holdfastd: str | None
    json: int


class LogLevel(TypedDict):
    ok: Literal[True]
    level: str
    before: str | None


class VmToMove(TypedDict):
    name: str
    pid: int
    disks: list[str]


class Maintenance(TypedDict):
    ok: Literal[True]
    on: bool
    since: float | None
    by: str
    reason: str
    vms: list[VmToMove]


class Imported(TypedDict):
    toml: str
    remarks: list[str]


class LastEnd(TypedDict):
    ok: Literal[True]
    cause: str | None
    text: str
    notes: list[Note]
    boot: NotRequired[str]
    last: NotRequired[float]
    unfed_since: NotRequired[float | None]


class EndOfAnother(TypedDict):
    ok: Literal[True]
    host: str
    records: list[HostRecord]


class SetupStep(TypedDict):
    id: str
    title: str
    reason: str
    changes: list[str]
    undo: str


class ByHand(TypedDict):
    id: str
    severity: str
    facts: str
    fix: str


class SetupStorage(TypedDict):
    where: str
    kind: str
    backend: str
    protection: int
    shared: bool
    disks: list[str]


class SetupImported(TypedDict):
    """A setting of qemu-sanlock.conf or qemu-lockd.conf."""

    file: str
    setting: str
    used: bool
    reason: str
    fix: str


class Setup(TypedDict):
    ok: bool
    refused: list[str]
    failed: str
    done: list[str]
    steps: list[SetupStep]
    by_hand: list[ByHand]
    storage: list[SetupStorage]
    lock_directories: list[str]
    imported: list[SetupImported]
    reasons: list[str]
    configuration: str
    configuration_difference: list[str]


class Undone(TypedDict):
    ok: bool
    refused: list[str]
    files: list[str]
    done: NotRequired[list[str]]


class Violation(TypedDict):
    seed: int
    violation: str
    history: list[list[str]]


class Simulated(TypedDict):
    first: int
    seeds: int
    violations: list[Violation]
    events: int
    acquired: int
    virtual_s: int
    real_s: float


COMMANDS: dict[str, Any] = {
    "status": Status,
    "reload": Reload,
    "list": list[HolderInfo],
    "list --owners": list[OwnerInfo],
    "vm list": list[OwnerInfo],
    "who": Answer,
    "why": Why,
    "events": EventInfo,
    "break": Broken,
    "settle": Settled,
    "check-config": CheckedConfig,
    "config show": ConfigShown,
    "doctor": list[Finding],
    "doctor --explain": list[Rule],
    "explain-reset": LastEnd,
    "explain-reset HOST": EndOfAnother,
    "host list": (list[LeaseSpaceInfo], HostsSeen),
    "host fenced": list[FencedHost],
    "import-lvmlock": Imported,
    "import-sanlock": Imported,
    "lease dump": Dump,
    "lease gc": list[CollectedLease],
    "lease init": LeaseMade,
    "lockspace init": LockspaceMade,
    "lockspace join": (LeaseSpaceInfo, Named),
    "lockspace leave": Named,
    "lockspace list": list[LeaseSpaceInfo],
    "lockspace set": IoTimeoutSet,
    "log-level": LogLevel,
    "maintenance off": Maintenance,
    "maintenance on": Maintenance,
    "maintenance status": Maintenance,
    "setup": Setup,
    "setup --undo": Undone,
    "sim": Simulated,
    "switch": Switched,
    "switch --dry-run": Switchable,
    "attach": Attached,
    "volume activate": VolumeActivated,
    "volume deactivate": VolumeDeactivated,
    "volume list": list[VolumeInfo],
    "volume who": Answer,
    "version": Versions,
    "failed": Failed,
}
"""By command, with the option that makes it print something else; a tuple has alternatives. `events` prints an object a
line. `failed`: any of them, with any exit code but 0; `run` prints that on stderr.
"""


AS_THEY_SAY = ("Note", "LastEnd", "Undone", "Failed")
"""Definitions with keys that may be absent. All keys of others are always there, also those that another release lacks."""


def schema() -> dict[str, Any]:
    """The whole file: a definition for each command, `$defs/COMMAND`, over those of its parts."""
    kinds = [kind for each in COMMANDS.values() for kind in _alternatives(each)]
    found, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    by_kind = iter(found)
    commands = {name: [next(by_kind) for _ in _alternatives(each)] for name, each in COMMANDS.items()}
    for name, definition in parts.items():
        if definition.get("type") == "object" and name not in AS_THEY_SAY:
            definition["required"] = list(definition["properties"])
        for value in definition.get("properties", {}).values():
            value.pop("default", None)
    return {
        "$schema": DIALECT,
        "$id": f"urn:holdfast:json:{JSON_VERSION}",
        "title": f"What holdfast's commands print with --json, version {JSON_VERSION}",
        "$defs": {
            **{name: each[0] if len(each) == 1 else {"anyOf": each} for name, each in commands.items()},
            **parts,
        },
    }


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def written() -> str:
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
