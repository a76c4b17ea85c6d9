"""Has a holdfastd kill itself at one step of serving a sanlock client: Python runs this first, by PYTHONPATH.

The file that HOLDFAST_KILL_AT names has the step and the command, as ``done ACQUIRE``. It is removed, so the next daemon
lives.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

ORDER = Path(os.environ.get("HOLDFAST_KILL_AT", "/nonexistent"))


def killed_at(step: str, command: str) -> None:
    try:
        wanted = ORDER.read_text()
    except OSError:
        return
    if wanted == f"{step} {command}":
        ORDER.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def plant() -> None:
    from holdfast.frontends.sanlock.connection import SanlockConnection
    from holdfast.frontends.sanlock.frontend import SanlockFrontend
    from holdfast.frontends.sanlock.resource_commands import ResourceCommands
    from holdfast.manager.lock_registry import LockRegistry
    from holdfast.wire.sanlock.command import Command

    answer, answered, send = SanlockFrontend.answer, SanlockConnection._answered, SanlockConnection._send
    got, unclaim = ResourceCommands._complete, LockRegistry.unclaim

    def name_of(connection: Any) -> str:
        return connection.client.last.name if connection.client.last is not None else ""

    def answer_or_die(self: Any, connection: Any, framed: Any) -> Any:
        killed_at("read", Command(framed.header.command).name)
        return answer(self, connection, framed)

    def answered_or_die(self: Any, reply: Any) -> None:
        killed_at("done", name_of(self))
        answered(self, reply)
        killed_at("sent", name_of(self))

    def send_or_die(self: Any, raw: bytes) -> None:
        if raw and ORDER.exists() and ORDER.read_text() == f"half {name_of(self)}":
            self._sock.send(raw[: len(raw) // 2])
            killed_at("half", name_of(self))
        send(self, raw)

    async def got_or_die(self: Any, held: Any, lock: Any) -> Any:
        reply = await got(self, held, lock)
        killed_at("one", "ACQUIRE")
        return reply

    def unclaim_or_die(self: Any, *arguments: Any) -> Any:
        left = unclaim(self, *arguments)
        killed_at("unclaimed", "RELEASE")
        return left

    SanlockFrontend.answer = answer_or_die  # type: ignore[method-assign]
    SanlockConnection._answered = answered_or_die  # type: ignore[assignment, method-assign]
    SanlockConnection._send = send_or_die  # type: ignore[method-assign]
    ResourceCommands._complete = got_or_die  # type: ignore[method-assign]
    LockRegistry.unclaim = unclaim_or_die  # type: ignore[assignment, method-assign]


if "HOLDFAST_KILL_AT" in os.environ and Path(sys.argv[0] if hasattr(sys, "argv") else "").name in (
    "",
    "holdfastd",
):
    plant()
