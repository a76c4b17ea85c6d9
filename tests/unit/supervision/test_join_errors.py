"""Why a lockspace is not joined, in words that lead to the fix."""

from __future__ import annotations

import errno

from holdfast.protocol.delta_lease import Claim
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId, IoFailed
from holdfast.supervision.join_errors import refused

CLAIM = Claim(HostId(1), "alpha", Timing(10, 60))


def test_request_that_is_smaller_than_a_sector_leads_to_the_sizes_of_sectors() -> None:
    """public-reports.md 12: a lockspace of 512-byte sectors that was copied to a device with 4096-byte ones."""
    reason = refused("vms", CLAIM, IoFailed(errno.EINVAL)).reason
    assert "Invalid argument. Its sectors may be larger than the lockspace's" in reason
    assert "blockdev --getss" in reason
    assert "sector" not in refused("vms", CLAIM, IoFailed(errno.EIO)).reason
