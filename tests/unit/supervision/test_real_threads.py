"""The same on the real thing: a file, blocking threads, the system's clock."""

import threading
from pathlib import Path

from holdfast.ondisk.geometry import DEFAULT
from holdfast.protocol import lockspace_area
from holdfast.protocol.host_status import HostState, StateChanged
from holdfast.protocol.membership import Membership
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId
from holdfast.supervision.lease_monitor import LeaseMonitor
from holdfast.supervision.renewal import Joined, Left, RenewalLoop, RenewalNews
from holdfast.system.block_io.blocking_ports import BlockingClock, run_blocking, start_thread
from holdfast.system.block_io.disk import BlockingDisk, open_blocking
from holdfast.system.block_io.worker_pool import WorkerPool
from holdfast.system.watchdog.device import NoWatchdog

# A stuck test shall end.
AMPLE_S = 60.0


def test_a_host_joins_renews_and_leaves_on_threads_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lockspace"
    path.touch()
    pool = WorkerPool("vms")
    disk = open_blocking(str(path), pool)
    assert isinstance(disk, BlockingDisk)
    made = run_blocking(lockspace_area.init(disk, 0, DEFAULT, "vms", io_timeout_s=1, overwrite=True))
    assert made == lockspace_area.Initialised(DEFAULT)

    joined, seen, ended = threading.Event(), threading.Event(), threading.Event()
    members: list[Membership] = []
    ends: list[object] = []

    def read(news: RenewalNews) -> None:
        if isinstance(news, Joined):
            members.append(news.member)
            joined.set()
        elif isinstance(news, StateChanged):
            seen.set()

    def on_end(result: object) -> None:
        ends.append(result)
        ended.set()

    heart_clock, clock = BlockingClock(), BlockingClock()
    lease_monitor = LeaseMonitor(clock=heart_clock, watchdog=NoWatchdog())
    lockspace = RenewalLoop(
        name="vms",
        disk=disk,
        offset_bytes=0,
        host_id=HostId(2),
        host_name="alpha",
        timing=Timing(1),
        clock=clock,
        lease_monitor=lease_monitor,
        report=read,
        interrupt=clock.interrupt,
    )
    start_thread("heartbeat", lease_monitor.run(), lambda _: None)
    start_thread("renewal vms", lockspace.run(), on_end)
    assert joined.wait(AMPLE_S), ends
    assert members[0].may_write()
    assert seen.wait(AMPLE_S)
    assert [(v.host_id, v.state, v.name) for v in lockspace.hosts()] == [(2, HostState.LIVE, "alpha")]
    lockspace.leave()
    assert ended.wait(AMPLE_S)
    assert ends == [Left(released=True)]
    heart_clock.interrupt()
    disk.close()
    pool.close()
