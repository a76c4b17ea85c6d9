"""Value blocks of leases (sanlock-socket.md 2.3): read at ACQUIRE with the LVB flag, set in memory, written when the
exclusive hold ends. A crash of the daemon loses what was set and not written, as sanlock's.
"""

from __future__ import annotations

import logging

from holdfast.backends.paxos.area_backend import resource_in
from holdfast.backends.paxos.held import PaxosHeld
from holdfast.frontends.sanlock.held_resources import HeldResource, HeldResources
from holdfast.frontends.sanlock.lease_results import of_errno
from holdfast.manager.client_leases import ClientLeases
from holdfast.model import Mode
from holdfast.system.files.ofd_lock import IoFailed
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Resource

log = logging.getLogger(__name__)


class ValueBlocks:
    """SET_LVB and GET_LVB, which any connection may send, and the write at the end of a hold."""

    def __init__(self, held: HeldResources, leases: ClientLeases) -> None:
        self._held = held
        self._leases = leases

    async def set_lvb(self, request: r.SetLvb) -> replies.Plain:
        held = await self._with_value_block(request.resource)
        if not isinstance(held, HeldResource):
            return replies.Plain(held)
        if len(request.value_block) > len(held.read_block):
            return replies.Plain(Result.E2BIG)
        if held.mode is Mode.SHARED:
            return replies.Plain(Result.EINVAL)  # only an owner that is alone may write it
        held.value_block = request.value_block
        return replies.Plain()

    async def get_lvb(self, request: r.GetLvb) -> replies.ValueBlock:
        held = await self._with_value_block(request.resource)
        if not isinstance(held, HeldResource):
            return replies.ValueBlock(held)
        block = held.read_block
        if held.value_block is not None:
            block = held.value_block.ljust(len(block), b"\0")
        wanted = request.wanted_bytes or len(block)
        return replies.ValueBlock(Result.OK, block[:wanted])

    async def _with_value_block(self, resource: Resource) -> HeldResource | int:
        holders = self._held.holders(resource_in(resource.lockspace.text, resource.name.text))
        if not holders:
            return Result.ENOENT
        held = next((each for each in holders if each.has_value_block), None)
        if held is None:
            return Result.EINVAL
        if not held.read_block:  # an earlier daemon had read it
            lock = self._leases.held(held.key)
            lease: object = lock.held if lock is not None else None
            if not isinstance(lease, PaxosHeld):
                return Result.EAGAIN
            read = await lease.read_value_block()
            if isinstance(read, IoFailed):
                return of_errno(read.errno)
            held.read_block = read
        return held

    async def write(self, held: HeldResource) -> None:
        """What SET_LVB has set; a failure is logged, as the release goes on."""
        block = held.value_block
        lock = self._leases.held(held.key)
        lease: object = lock.held if lock is not None else None
        if block is None or held.mode is not Mode.EXCLUSIVE or not isinstance(lease, PaxosHeld):
            return
        held.value_block = None
        if (failed := await lease.write_value_block(block)) is not None:
            log.error("value block of %s is lost: %s", held.key, failed)
        else:
            held.read_block = block.ljust(len(held.read_block), b"\0")
