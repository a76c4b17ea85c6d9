"""Decides from libvirt's status file what a migration means for a lock, by one table.

libvirt sends RELEASE when the guest has stopped on the source, before QEMU hands over. If the target dies in between, QEMU
continues the guest at the source, and libvirt acquires nothing (libvirt-hooks-lvm.md 0.7; seen with 9.0, 11.3 and 12.8). So
that RELEASE means "the guest's processors are stopped", not "the disk is free". The outcome is in the status file
(libvirt-hooks-lvm.md 2.2), where `-` is any word:

    job             phase                                      state, reason          RELEASE now      held back before
    migration out   none, perform2, begin3, perform3,          paused, post-copy…     released         released
                    confirm3_cancelled                         -                      held back        still held
                    perform3_done, confirm3                    -                      released         released
                    an unknown word                            -                      released         released, logged
    none, another   -                                          running, shutdown,     released         kept as a claim
                                                               pmsuspended
                                                               paused, migration      released         still held
                                                               paused; crashed; …     released         released
                                                               an unknown word        released         released, logged
    there is no file, or it is another process's                                      released         still held

*Paused, migration* without a job is a source whose libvirtd was restarted: QEMU may continue the guest by itself. A file
that can't be read proves nothing: the lock stays held until QEMU ends.
"""

from __future__ import annotations

import enum

from holdfast.system.libvirt.domains import Domain
from holdfast.system.libvirt.status_words import (
    IN,
    OTHER_JOBS,
    OUT,
    PHASE_ACQUIRES,
    PHASES_DONE,
    PHASES_OPEN,
    POST_COPY,
    RUNS,
    STANDS,
    STARTING_UP,
)


class Outcome(enum.Enum):
    """What becomes of a lock whose RELEASE was held back."""

    OPEN = "the migration is not over"
    GONE = "the guest has left this host"
    STAYED = "the guest runs on here"


def holds_back(domain: Domain | None) -> bool:
    """Whether a RELEASE for this VM now is part of a migration that may still fail, so that the guest may continue here."""
    return domain is not None and domain.async_job == OUT and outcome(domain) is Outcome.OPEN


def outcome(domain: Domain | None) -> Outcome:
    """The outcome of a VM's migration to another host."""
    if domain is None:
        return Outcome.OPEN
    if domain.async_job == OUT:
        if domain.state == "paused" and domain.reason.startswith(POST_COPY):
            return Outcome.GONE
        return Outcome.OPEN if domain.phase in PHASES_OPEN else Outcome.GONE
    if domain.state in RUNS:
        return Outcome.STAYED
    if domain.state == "paused" and domain.reason == "migration":
        return Outcome.OPEN
    return Outcome.GONE


def stands(domain: Domain | None) -> bool:
    """Whether a guest has stopped for its migration, by known words: then libvirt has sent RELEASE, whether or not a daemon
    received it.
    """
    return (
        domain is not None
        and domain.async_job == OUT
        and domain.state == "paused"
        and not not_understood(domain)
    )


def has_left(domain: Domain | None) -> bool:
    """Whether a guest has certainly left this host, by known words."""
    if domain is None or not stands(domain):
        return False
    return domain.phase in PHASES_DONE or domain.reason.startswith(POST_COPY)


def is_arriving(domain: Domain | None) -> bool:
    """Whether an ACQUIRE for this VM now comes from a migration's target, whose source is about to release."""
    return domain is not None and domain.async_job == IN and domain.phase == PHASE_ACQUIRES


def ran_before(domain: Domain | None) -> bool:
    """Whether a VM that acquires its disks ran before, here or on its migration's source."""
    if domain is None:
        return False
    return domain.async_job == IN or (domain.state == "paused" and domain.reason not in ("", STARTING_UP))


def not_understood(domain: Domain | None) -> str:
    """The unknown words of a status file, because of which nothing was held back; empty if all are known."""
    if domain is None:
        return ""
    if domain.async_job == OUT:
        known = domain.phase in PHASES_OPEN | PHASES_DONE or domain.reason.startswith(POST_COPY)
        return "" if known else f"phase '{domain.phase}'"
    if domain.async_job not in OTHER_JOBS:
        return f"job '{domain.async_job}'"
    return "" if domain.state in RUNS | STANDS else f"state '{domain.state}'"
