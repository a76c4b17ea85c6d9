"""Pausing a VM from outside: through libvirt in a helper process, or, if that doesn't answer, by SIGSTOP.

The daemon never calls libvirt itself (DESIGN section 5): libvirt calls *us*, and would wait for us while we wait for
it.  A helper process may hang as long as it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

log = logging.getLogger(__name__)

SUSPEND_TIMEOUT_S = 10.0
"""libvirt answers a suspend in well under a second unless its monitor hangs; two writers must not go on for long."""


class DomainControl(Protocol):
    """The port."""

    async def suspend(self, uuid: str) -> bool:
        """Ask libvirt to pause a domain; True if it says that it did."""

    async def start(self, uuid: str) -> bool:
        """Ask libvirt to start a domain; True if it says that it did."""


class VirshDomainControl:
    """virsh as the helper process."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def suspend(self, uuid: str) -> bool:
        return await self._virsh("suspend", uuid)

    async def start(self, uuid: str) -> bool:
        return await self._virsh("start", uuid)

    async def _virsh(self, verb: str, uuid: str) -> bool:
        try:
            process = await asyncio.create_subprocess_exec(
                "virsh",
                "-q",
                "-c",
                self._uri,
                verb,
                uuid,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as e:
            log.warning("virsh can't be started: %s", e)
            return False
        try:
            _, told = await asyncio.wait_for(process.communicate(), SUSPEND_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            log.warning("virsh %s %s did not answer within %g s", verb, uuid, SUSPEND_TIMEOUT_S)
            return False
        if process.returncode != 0:
            log.warning("virsh %s %s: %s", verb, uuid, told.decode(errors="replace").strip())
        return process.returncode == 0
