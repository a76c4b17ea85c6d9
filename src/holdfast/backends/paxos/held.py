"""A lease that this host has won, as the manager sees it (`base.Held`)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from holdfast.backends.base import HeldElsewhere, NotedOwner, OwnerNote
from holdfast.backends.paxos import owner_note
from holdfast.backends.paxos.held_lease import HeldLease
from holdfast.backends.paxos.lease_failures import io_failed
from holdfast.backends.paxos.lease_store import Found
from holdfast.model import Mode
from holdfast.ondisk.geometry import Geometry
from holdfast.ondisk.leader import Leader
from holdfast.protocol import types
from holdfast.protocol.paxos_release import Mode as LeaseMode
from holdfast.protocol.paxos_request import Force
from holdfast.system.block_io.offload import TimedOut
from holdfast.system.files.ofd_lock import IoFailed

if TYPE_CHECKING:
    from holdfast.backends.paxos.backend import PaxosBackend


class PaxosHeld:
    """A lease that this host has won."""

    __slots__ = ("_backend", "_disk", "_found", "_holding", "create", "path")

    def __init__(self, backend: PaxosBackend, found: Found, holding: HeldLease, disk: str) -> None:
        self._backend = backend
        self._found = found
        self._holding = holding
        self._disk = disk
        self.path = found.place
        self.create = False

    def descriptor(self) -> int | None:
        return None

    @property
    def is_shared(self) -> bool:
        """See `MayBeShared`."""
        lease = self._holding.lease
        return lease is not None and lease.mode is LeaseMode.SHARED

    def refuses_new(self) -> str:
        """See `RefusesNew`."""
        return self._backend.presence.refuses_new()

    @property
    def sharers_unasked(self) -> bool:
        """See `MayHaveSharers`."""
        return bool(self._holding.sharers_unasked)

    async def ask_sharers(self) -> None:
        """See `MayHaveSharers`."""
        await self._holding.ask_sharers()

    async def why_not_held(self) -> str:
        """See `Rereadable`."""
        return await self._holding.why_not_held()

    @property
    def lver(self) -> int:
        """The version under which it is held; of a shared hold, the one by which it was taken."""
        lease = self._holding.lease
        return 0 if lease is None else lease.lver

    @property
    def geometry(self) -> Geometry:
        return self._holding.area.geometry

    @property
    def found_instead(self) -> Leader | None:
        """The leader that its release found on storage, if others had written over ours."""
        return self._holding.found_instead

    def rename_at_release(self, name: str) -> None:
        """The release makes it a free lease of that name; only of an exclusive one."""
        self._holding.renamed = name

    async def asked(self) -> Force | None:
        """What another host asks of this exclusive lease, by its request record; None also where that can't be read."""
        asked = await self._backend.ports.answer(self._holding.asked, self._holding.member.io_timeout_s)
        return asked if isinstance(asked, Force) else None

    async def read_value_block(self) -> bytes | IoFailed:
        """The lease's lvb: a whole sector."""
        read = await self._backend.ports.answer(
            self._holding.read_value_block, self._holding.member.io_timeout_s
        )
        return (
            io_failed("Unable to read lvb of lease", self.path, read)
            if isinstance(read, types.IoFailed)
            else read
        )

    async def write_value_block(self, value: bytes) -> IoFailed | None:
        """Write the lvb, for its exclusive owner only. Waits for as long as that takes: what lands later could land on what
        the next owner has written.
        """
        holding = self._holding
        done = await self._backend.ports.offload.run(
            lambda job: holding.write_value_block(job, value), holding.member.io_timeout_s
        )
        failed = await done.over if isinstance(done, TimedOut) else done
        return None if failed is None else io_failed("Unable to write lvb of lease", self.path, failed)

    async def convert(self, mode: Mode, note: OwnerNote) -> HeldElsewhere | IoFailed | None:
        holding = self._holding
        if holding.unsettled or holding.lease is None:
            # Its last change has not ended yet, or will be retried soon. Or the lockspace was lost during it.
            return IoFailed("Unable to convert lease", self.path, errno.EAGAIN)
        disk = owner_note.disk_of(holding.area.note) or self._disk
        path = owner_note.path_of(holding.area.note)
        holding.area = self._backend.noted(holding.area, note, disk, path)
        refused = await holding.convert(mode)
        return None if refused is None else await self._backend.refusal(self._found, holding, refused)

    async def noted_owner(self) -> NotedOwner:
        """See `NotesOwner`."""
        return owner_note.noted(await self._backend.maintenance.own_note(self._found, self._holding.member))

    async def release(self) -> None:
        holding = self._holding
        self._backend.unsettled(holding, self._found)
        await holding.release()
        self._backend.tidy(holding)

    def release_nowait(self) -> bool:
        return False

    def forget(self) -> None:
        self._holding.forget()
        self._found.disk.close()
