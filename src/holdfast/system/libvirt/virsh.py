"""Pausing a VM from outside: through libvirt in a helper process, or, if that doesn't answer, by SIGSTOP.

The daemon never calls libvirt itself (DESIGN section 5): libvirt calls *us*, and would wait for us while we wait for
it.  A helper process may hang as long as it likes.
"""

from __future__ import annotations

import logging
from typing import Protocol
from xml.sax.saxutils import escape

from holdfast.model import printable
from holdfast.system.host.commands import Commands

log = logging.getLogger(__name__)

METADATA_URI = "urn:holdfast:lock-failure"
"""Namespace of the element: `virsh metadata DOMAIN urn:holdfast:lock-failure` shows it, `virsh dumpxml` too."""
SUSPEND_TIMEOUT_S = 10.0
"""libvirt answers a suspend in well under a second unless its monitor hangs; two writers must not go on for long."""
ANSWER_TIMEOUT_S = 35.0
"""libvirt itself refuses a query after 30 s (QEMU_JOB_WAIT_TIME) while another one waits for the same QEMU."""


class DomainControl(Protocol):
    """The port."""

    async def suspend(self, uuid: str) -> bool:
        """Ask libvirt to pause a domain; True if it says that it did."""

    async def answers(self, uuid: str) -> bool:
        """Have QEMU's main loop answer a query; True if it did. After a stop it answers none until the guest's requests have
        ended.
        """

    async def start(self, uuid: str) -> bool:
        """Ask libvirt to start a domain; True if it says that it did."""

    async def mark(self, uuid: str, reason: str) -> bool:
        """Write into the live metadata of a domain why it is paused; an empty reason removes that."""


class VirshDomainControl:
    """virsh, run by a helper process."""

    def __init__(self, uri: str, commands: Commands) -> None:
        self._uri = uri
        self._commands = commands

    async def suspend(self, uuid: str) -> bool:
        return await self._virsh("suspend", uuid)

    async def answers(self, uuid: str) -> bool:
        # Of all disks together: QMP query-blockstats, which libvirt answers from nothing of its own.
        return await self._virsh("domblkstat", uuid, timeout_s=ANSWER_TIMEOUT_S)

    async def start(self, uuid: str) -> bool:
        return await self._virsh("start", uuid)

    async def mark(self, uuid: str, reason: str) -> bool:
        change = (
            ("--set", f"<lock-failure>{escape(printable(reason))}</lock-failure>")
            if reason
            else ("--remove",)
        )
        return await self._virsh(
            "metadata", uuid, "--uri", METADATA_URI, "--key", "holdfast", "--live", *change
        )

    async def _virsh(self, verb: str, uuid: str, *more: str, timeout_s: float = SUSPEND_TIMEOUT_S) -> bool:
        ended = await self._commands.run(("virsh", "-q", "-c", self._uri, verb, uuid, *more), timeout_s)
        if ended.code != 0:
            log.warning("virsh %s %s: %s", verb, uuid, ended.output or f"exit status {ended.code}")
        return ended.code == 0
