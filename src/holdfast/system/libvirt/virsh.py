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


class DomainControl(Protocol):
    """The port."""

    async def suspend(self, uuid: str) -> bool:
        """Ask libvirt to pause a domain; True if it says that it did."""

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

    async def _virsh(self, verb: str, uuid: str, *more: str) -> bool:
        ended = await self._commands.run(
            ("virsh", "-q", "-c", self._uri, verb, uuid, *more), SUSPEND_TIMEOUT_S
        )
        if ended.code != 0:
            log.warning("virsh %s %s: %s", verb, uuid, ended.output or f"exit status {ended.code}")
        return ended.code == 0
