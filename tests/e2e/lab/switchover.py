"""A migration that stands still at its switch-over: the guest has stopped on the source, and nothing goes on yet.

libvirt tells the source's QEMU to hand over only when the source's lock daemon has answered the RELEASE that follows the
guest's stop.  So a lock daemon that is stopped by a signal holds a migration at that place, before the answer, and a
QEMU that is stopped then holds it there behind the answer, for as long as a test needs to break something.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.processes import Process
from tests.e2e.lab.vms import Vm

STILL_S = 1.5
"""The guest writes five times a second: one that has not written for so long has stopped."""
HELD = "held until the migration ends"


@contextmanager
def release_unanswered(lab: Lab, vm: Vm, target: Host, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start a migration and hold it where RELEASE waits for its answer; it goes on when the block ends."""
    with stopped(lab.lockd[vm.host].process):
        migration = vm.start_migration(target, *options)
        until(lambda: stands_still(vm), f"{vm.name} to stop for the switch-over")
        yield migration


@contextmanager
def release_answered(lab: Lab, vm: Vm, target: Host, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The same, held where RELEASE is answered and the source's QEMU does not hand over yet."""
    with release_unanswered(lab, vm, target, *options) as migration, stopped(vm.process):
        lab.lockd[vm.host].process.send(signal.SIGCONT)
        # One of two: held until it is over, or let go (and taken back, if it fails).
        until(
            lambda: HELD in lab.lockd[vm.host].holdfast("list") or lab.lock(vm.boot_image) is None,
            f"the release of {vm.name} to be answered",
        )
        yield migration


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """SIGSTOP for a while; the block may end the process."""
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        if process.is_alive():
            process.send(signal.SIGCONT)


def stands_still(vm: Vm) -> bool:
    """Whether the guest has not written for a while."""
    before = vm.boot_image.count
    time.sleep(STILL_S)
    return vm.boot_image.count == before
