"""Delta leases of sanlock 4 and 5: version, flags and the field at 160 outlive every write of ours."""

from dataclasses import replace

from tests.unit.protocol.simulated import World

from holdfast.ondisk import areas, delta
from holdfast.ondisk.delta import DeltaLease
from holdfast.ondisk.geometry import DEFAULT, MIB
from holdfast.protocol import delta_lease
from holdfast.protocol.lockspace_area import LockspaceArea, open_area
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId


def test_delta_lease_keeps_version_flags_and_the_field_at_160() -> None:
    """Through a claim, renewals and a release."""
    world = World(1, size_bytes=MIB)
    host = world.host()
    area_bytes, first = areas.lockspace_area(DEFAULT, "LS", 1, version=delta.VERSION_5)
    world.content[:MIB] = first + area_bytes[len(first) :]
    record = replace(areas.fresh_delta_lease(DEFAULT, "LS", 1, version=delta.VERSION_5), unused=(0x20001, 0))
    world.content[512 : 512 + DeltaLease.BYTES] = record.encode()

    def found() -> DeltaLease:
        decoded = DeltaLease.decode(bytes(world.content[512:1024]))
        assert isinstance(decoded, DeltaLease)
        return decoded

    def assert_kept() -> None:
        assert (found().version, found().flags, found().unused) == (
            record.version,
            record.flags,
            record.unused,
        )

    area = host.run(open_area(host.disk, 0, "LS", 1))
    assert isinstance(area, LockspaceArea)
    assert area.version == delta.VERSION_5
    held = host.run(
        delta_lease.acquire(area, host.clock, delta_lease.Claim(HostId(2), "beta", Timing(1, 60)))
    )
    assert isinstance(held, delta_lease.Held)
    assert_kept()
    renewed = host.run(delta_lease.renew(area, host.clock, held))
    assert isinstance(renewed, delta_lease.Renewed)
    assert_kept()
    assert isinstance(host.run(delta_lease.release(area, host.clock, renewed.held)), delta_lease.Released)
    assert found().is_free
    assert_kept()
