"""A client that knows nothing of Holdfast but its interface's name and one method.

No `from __future__ import annotations` here: asyncvarlink reads the types at run time.
"""

import asyncio

import asyncvarlink

from holdfast.control.api import HolderInfo


class Control(asyncvarlink.VarlinkInterface, name="io.holdfast.Control"):
    @asyncvarlink.varlinkmethod(return_parameter="locks")
    def ListLocks(self) -> list[HolderInfo]:  # noqa: N802
        raise NotImplementedError


async def locks_by_asyncvarlink(path: str) -> object:
    transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, path)
    try:
        return await protocol.make_proxy(Control).ListLocks()
    finally:
        transport.close()
        await asyncio.sleep(0)
