"""Points of a migration at which everything waits, so that a daemon can be killed there, for as long as the test wants.

before-holdfast, past-holdfast    a hook of libvirt's that libvirt calls before Holdfast's, or after it (in_guest/hook-gate)
open                              the VM's QEMU, before it opens the volume for writing (open_log.c): past ACQUIRE, in `cont`
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lab.lvm.vm_host import VmHost

Gate = Literal["before-holdfast", "past-holdfast", "open"]


@contextmanager
def closed(host: VmHost, gate: Gate, operation: str = "") -> Iterator[None]:
    """Until the end of the block; `operation`: that of libvirt's hook."""
    file = f"/srv/gate.{gate}"
    host.sh(f"rm -f {file}.reached; echo {operation} > {file}")
    try:
        yield
    finally:
        host.sh(f"rm -f {file}")


def is_reached(host: VmHost, gate: Gate) -> bool:
    return host.sh(f"[ -e /srv/gate.{gate}.reached ] && echo yes; true") == "yes"
