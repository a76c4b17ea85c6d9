"""`holdfast metrics`: `status`, `list`, `lockspace list` and what the daemon measures, in Prometheus' text format.

For node_exporter's textfile collector, and for holdfast-web's `/metrics`: a daemon that can't be reached is a metric too.
Names and labels stay the same over releases. Counters and histograms begin with the daemon, which a reload is too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from holdfast.cli.commands.status import Answer
from holdfast.control.api import (
    ERROR_METHOD_NOT_FOUND,
    HistogramInfo,
    HolderInfo,
    LeaseSpaceInfo,
    MeasuresInfo,
)
from holdfast.control.client import CallRefused, ControlClient
from holdfast.manager.events import KINDS
from holdfast.system.files.regular_file import replace_regular

HELP = {
    "up": "Whether holdfastd answers.",
    "info": "Version and host of holdfastd.",
    "start_time_seconds": "When holdfastd began, in seconds since 1970.",
    "owners": "VMs and other processes that are known.",
    "locks": "Locks that are held.",
    "locks_lost": "Locks of running owners that somebody else has.",
    "locks_unknown": "Locks held for owners that could not be attributed.",
    "connections": "Connections of libvirt's.",
    "connections_max": "As many as are served at once.",
    "journal_ok": "Whether the journal can be written: else no lock is granted.",
    "descriptor_store": "Whether locks outlive a crash of holdfastd.",
    "storage_waiting": "Storage that does not answer.",
    "maintenance": "Whether no VM begins on this host, by an operator's order.",
    "degraded": "Reasons for which `holdfast status` is red.",
    "disk_protection": "What a disk's lock is worth: 0 none, 1 this host, 2 all hosts, 3 with fencing.",
    "lockspace_joined": "Whether this host is in the lockspace: else its disks can't be started.",
    "lockspace_fenced": "Whether a watchdog resets this host when it loses the lockspace.",
    "lockspace_age_seconds": "Since the last renewal.",
    "lockspace_bound_seconds": "The age at which the lockspace is lost.",
    "lockspace_leases": "Leases held there.",
    "lockspace_hosts": "Hosts that this one sees there, by state.",
    "lockspace_renewal_seconds": "What a renewal that succeeded took, its read and its write.",
    "lockspace_renewal_failures_total": "Renewals that failed.",
    "watchdog_feeds_total": "How often this host's watchdog was fed.",
    "watchdog_fed_age_seconds": "Since the last time.",
    "event_loop_delay_seconds": "How late holdfastd's event loop is: so long each request waits.",
    "events_total": "What happened, by kind: refusals, lost and regained locks, VMs that were started again.",
}
HISTOGRAMS = ("lockspace_renewal_seconds", "event_loop_delay_seconds")

Labels = Mapping[str, str]


class Sample(NamedTuple):
    family: str
    labels: Labels
    value: float
    suffix: str = ""
    """Of a histogram's parts."""


def samples(answer: Answer, locks: Sequence[HolderInfo], measures: MeasuresInfo | None) -> Iterator[Sample]:
    """Of a daemon that answers; ``measures``: None of one that is of an earlier release."""
    for found in _of_status(answer, locks):
        yield Sample(*found)
    if measures is not None:
        yield from _of_measures(measures)


def _of_status(answer: Answer, locks: Sequence[HolderInfo]) -> Iterator[tuple[str, Labels, float]]:
    s = answer.daemon
    yield "up", {}, 1
    yield "info", {"version": s.version, "host": s.host}, 1
    yield "start_time_seconds", {}, s.started
    for name in ("owners", "locks", "locks_lost", "locks_unknown", "connections", "connections_max"):
        yield name, {}, getattr(s, name)
    yield "journal_ok", {}, s.journal == "ok"
    yield "descriptor_store", {}, s.descriptor_store
    yield "storage_waiting", {}, len(s.storage_waiting)
    yield "maintenance", {}, s.maintenance_since is not None
    yield "degraded", {}, len(answer.degraded)
    seen = set()
    for lock in (*locks, *answer.unlocked):
        labels = {"disk": lock.resource, "vm": lock.owner, "pid": str(lock.pid), "backend": lock.backend}
        if (key := tuple(labels.values())) not in seen:  # a disk may be held twice by one owner
            seen.add(key)
            # A lost lock excludes nobody, whatever it was worth.
            lost = not lock.held and lock.source == "holdfastd"
            yield "disk_protection", labels, 0 if lost else lock.protection
    for space in answer.spaces:
        yield from _of_lockspace(space)


def _of_measures(measures: MeasuresInfo) -> Iterator[Sample]:
    for space in measures.lockspaces:
        labels = {"lockspace": space.name}
        yield from _histogram("lockspace_renewal_seconds", labels, space.latency)
        yield Sample("lockspace_renewal_failures_total", labels, space.failures)
    if measures.watchdog_fed_s_ago is not None:
        yield Sample("watchdog_feeds_total", {}, measures.watchdog_feeds)
        yield Sample("watchdog_fed_age_seconds", {}, measures.watchdog_fed_s_ago)
    yield from _histogram("event_loop_delay_seconds", {}, measures.loop_delay)
    for kind in KINDS:  # each of them: a rate needs the 0 before the first one
        yield Sample("events_total", {"kind": kind}, measures.events.get(kind, 0))


def _histogram(family: str, labels: Labels, found: HistogramInfo) -> Iterator[Sample]:
    bounds = [*(f"{bound:g}" for bound in found.bounds), "+Inf"]
    below = list(accumulate(found.counts))
    for bound, count in zip(bounds, below, strict=True):
        yield Sample(family, {**labels, "le": bound}, count, "_bucket")
    yield Sample(family, labels, found.sum_s, "_sum")
    yield Sample(family, labels, below[-1], "_count")


def _of_lockspace(space: LeaseSpaceInfo) -> Iterator[tuple[str, Labels, float]]:
    labels = {"lockspace": space.name}
    yield "lockspace_joined", labels, space.state == "joined"
    yield "lockspace_fenced", labels, space.fenced
    yield "lockspace_leases", labels, space.leases
    if space.renewed_s_ago is not None and space.fails_in_s is not None:
        yield "lockspace_age_seconds", labels, space.renewed_s_ago
        yield "lockspace_bound_seconds", labels, space.renewed_s_ago + space.fails_in_s
    for state, number in sorted(Counter(each.state for each in space.hosts).items()):
        yield "lockspace_hosts", {**labels, "state": state}, number


UNREACHABLE: tuple[Sample, ...] = (Sample("up", {}, 0),)


def text(found: Sequence[Sample]) -> str:
    """The exposition format 0.0.4: each family once, with its help, and its samples together."""
    lines = []
    for name, words in HELP.items():
        ours = [each for each in found if each.family == name]
        if ours:
            lines += [f"# HELP holdfast_{name} {words}", f"# TYPE holdfast_{name} {_kind(name)}"]
        lines += [
            f"holdfast_{name}{each.suffix}{_labels(each.labels)} {float(each.value):.17g}" for each in ours
        ]
    return "\n".join(lines) + "\n"


def _kind(family: str) -> str:
    if family in HISTOGRAMS:
        return "histogram"
    return "counter" if family.endswith("_total") else "gauge"


def ask(client: ControlClient, unlocked: Callable[[Sequence[HolderInfo]], list[HolderInfo]]) -> list[Sample]:
    """The samples of a daemon; ``unlocked``: the disks that have no lock for their kind, by what it holds."""
    locks = client.locks()
    answer = Answer(client.status(), client.lease_spaces(), unlocked(locks))
    try:
        measures = client.measures()
    except CallRefused as e:
        if e.kind != ERROR_METHOD_NOT_FOUND:
            raise
        measures = None
    return list(samples(answer, locks, measures))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """A path may hold any byte but NUL."""
    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(path: str, content: str) -> None:
    """All of it or nothing, as the collector wants it, and readable for all; raises OSError."""
    replace_regular(path, content.encode())
    os.chmod(path, 0o644)
