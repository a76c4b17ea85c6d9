"""Answers the calls of the control socket about logical volumes: `holdfast volume`, `holdfast attach` and `holdfast lvm`."""

from __future__ import annotations

from holdfast.backends.lvm.backend import LvmBackend
from holdfast.backends.lvm.volume_orders import VolumeOrders, VolumeSeen
from holdfast.control.api import VolumeInfo, VolumeUser
from holdfast.errors import Refused

NO_DRIVER = 'no backend with driver = "lvm" is configured'


class VolumeCalls:
    """`backend` None: the configuration has no driver lvm."""

    def __init__(self, backend: LvmBackend | None) -> None:
        self._backend = backend

    @property
    def _orders(self) -> VolumeOrders:
        if self._backend is None:
            raise Refused(reason=NO_DRIVER)
        return self._backend.orders

    async def infos(self) -> list[VolumeInfo]:
        if self._backend is None:
            return []
        return sorted(map(_info, await self._orders.seen()), key=lambda each: each.path)

    async def activate(self, path: str, vm: str) -> bool:
        return await self._orders.activate(path, vm)

    async def deactivate(self, path: str) -> None:
        await self._orders.deactivate(path)

    async def group_lost(self, vg: str) -> list[str]:
        if self._backend is None:
            raise Refused(reason=NO_DRIVER)
        return await self._backend.group_lost(vg)


def _info(seen: VolumeSeen) -> VolumeInfo:
    return VolumeInfo(
        path=str(seen.volume),
        uuid=seen.volume.id.lv_uuid,
        held=seen.held if seen.known else "",
        active=seen.active,
        pinned=seen.pinned is not None,
        users=[VolumeUser(use.name, use.pid, use.role, use.writes) for use in seen.uses],
        problem="" if seen.known else seen.held,
    )
