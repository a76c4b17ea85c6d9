"""What a VM is to its disks on this host, from libvirt's status file, by one table (libvirt-hooks-lvm.md 2.2). PURE.

`-` is any word:

    job             phase                              state, reason          role
    migration out   none, begin3, perform2, perform3   -                      SOURCE: it may write, and may have to go on
                    confirm3_cancelled                 -                      CAME_BACK: the migration has failed
                    perform3_done, confirm3            -                      LEFT: its QEMU writes no more
                    -                                  paused, post-copy…     LEFT
    migration in    none, prepare                      -                      TARGET: it may not write yet
                    finish3                            -                      FINISHING: its ACQUIRE is due
    none, another   -                                  paused, migration      UNSETTLED: a source of a libvirtd that was
                                                                              restarted, or a target that is to be destroyed
                    -                                  -                      OWNER
    an unknown word                                                           OWNER, and `unknown_words` names it

OWNER is what an unknown word must be: it asks for an exclusive lock, which lvmlockd refuses while another host has any.
So a libvirt with other words has its migrations refused, and never two writers.
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
)

CANCELLED = "confirm3_cancelled"
PHASES_IN = frozenset(("", "none", "prepare"))
"""The target has the disk open to read alone."""


class Role(enum.Enum):
    """What a VM's process on this host is to its disks."""

    OWNER = "owner"
    SOURCE = "source of a migration"
    CAME_BACK = "source of a migration that has failed"
    LEFT = "source of a migration that the guest has left"
    TARGET = "target of a migration"
    FINISHING = "target of a migration that is about to run the guest"
    UNSETTLED = "one end of a migration that libvirt knows no more of"


def role(domain: Domain) -> Role:
    """The role of a VM by its status file."""
    if domain.async_job == OUT:
        if domain.state == "paused" and domain.reason.startswith(POST_COPY):
            return Role.LEFT
        if domain.phase == CANCELLED:
            return Role.CAME_BACK
        if domain.phase in PHASES_OPEN:
            return Role.SOURCE
        return Role.LEFT if domain.phase in PHASES_DONE else Role.OWNER
    if domain.async_job == IN:
        if domain.phase == PHASE_ACQUIRES:
            return Role.FINISHING
        return Role.TARGET if domain.phase in PHASES_IN else Role.OWNER
    if domain.state == "paused" and domain.reason == "migration":
        return Role.UNSETTLED
    return Role.OWNER


def runs(domain: Domain) -> bool:
    """Whether its guest's processors run, or may without any call of libvirt's: words that are not known may mean that."""
    return domain.state not in STANDS


def unknown_words(domain: Domain) -> str:
    """The words of a status file that this table does not know; empty if it knows all."""
    if domain.async_job == OUT:
        known = domain.phase in PHASES_OPEN | PHASES_DONE or domain.reason.startswith(POST_COPY)
        return "" if known else f"phase '{domain.phase}'"
    if domain.async_job == IN:
        return "" if domain.phase in PHASES_IN | {PHASE_ACQUIRES} else f"phase '{domain.phase}'"
    if domain.async_job not in OTHER_JOBS:
        return f"job '{domain.async_job}'"
    return "" if domain.state in RUNS | STANDS else f"state '{domain.state}'"
