"""What happens to clients whose lockspace fails or is removed, step by step (sanlock-socket.md 3.3).

These scripts wait for seconds, so they are played beside all others, each with a daemon of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.interop.sanlock.direct import write_at
from tests.interop.sanlock_socket.scene import IO_TIMEOUT_S, Host, Scene, head, holding
from tests.interop.sanlock_socket.table import plays
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import DEFAULT
from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.flags import KillpathFlag, ReleaseFlag, RestrictFlag
from holdfast.wire.sanlock.result import Result

FAIL_S = 8 * IO_TIMEOUT_S


@plays("3.3/2a", "3.3/2d", "3.3/3")
def removal_kills_and_leaves_when_nobody_uses_it(scene: Scene) -> None:
    with scene.lone_host("removed") as host:
        _removal(scene, host)


def _removal(scene: Scene, host: Host) -> None:
    lockspace = scene.new_lockspace("REMOVED", by=host)
    host.join(lockspace)
    killed_lease, kept_lease = (scene.lease(lockspace="REMOVED", by=host) for _ in range(2))
    killed, restricted = holding(host, killed_lease), holding(host, kept_lease)
    assert restricted.client.result(r.Restrict(RestrictFlag.SIGKILL)) == Result.OK
    channel = host.client()
    assert channel.result(r.RegEvent(lockspace)) == Result.OK
    removing = host.client()
    removing.send(r.RemLockspace(0, lockspace))
    assert killed.wait_killed()
    killed.client.close()
    assert restricted.terms(wait_s=scene.ticks_s) >= 1  # in SIGKILL's place
    assert restricted.terms(wait_s=scene.ticks_s) >= 1  # and again
    assert restricted.runs()
    assert host.is_in(lockspace)
    assert restricted.client.result(r.Acquire(0, r.OWN, (kept_lease,))) == Result.EBUSY
    assert restricted.client.result(r.Release(ReleaseFlag.ALL, r.OWN, ())) == Result.OK
    assert removing.answer(Command.REM_LOCKSPACE) == replies.Plain()
    assert host.result(r.InqLockspace(0, lockspace)) == Result.ENOENT
    assert channel.is_closed()
    assert restricted.runs()
    for lease in (killed_lease, kept_lease):  # sanlock releases neither on disk, not even that of the RELEASE
        owners = host.client().asked(r.ReadResourceOwners(lease), replies.OwnersRead)
        assert [each.host_id for each in owners.hosts] == ([] if scene.start == "holdfast" else [1])


@plays("3.3/1", "3.3/2b", "3.3/2c", "3.3/2d")
def failure_asks_first_and_kills_after_the_grace(scene: Scene) -> None:
    with scene.lone_host("failing", "-g", str(scene.grace_s)) as host:
        _failure(scene, host)


def _failure(scene: Scene, host: Host) -> None:
    lockspace = scene.new_lockspace("FAILING", by=host)
    host.join(lockspace)
    leases = [scene.lease(lockspace="FAILING", by=host) for _ in range(5)]
    plain, with_path, gives_up, only_term = (holding(host, each) for each in leases[:4])
    ran = Path(tempfile.mkdtemp(dir=scene.place))
    killpath = r.Killpath(KillpathFlag.PID, r.OWN, "/usr/bin/mkdir", f"-p {ran}/a\\ b")
    assert with_path.client.result(killpath) == Result.OK
    assert only_term.client.result(r.Restrict(RestrictFlag.SIGKILL)) == Result.OK
    began = time.monotonic()
    # Its own record is another's: that counts as failure at the next renewal.
    write_at(scene.place / "FAILING", DEFAULT.delta_offset_bytes(1), bytes(DEFAULT.sector_bytes))

    def refused() -> bool:
        return plain.client.result(r.Acquire(0, r.OWN, (leases[4],))) in (Result.ENOSPC, Result.EBUSY)

    wait_until(lambda: bool(plain.terms()), "the first signal")
    assert refused()
    assert host.process().client.result(r.Acquire(0, r.OWN, (leases[4],))) == Result.ENOSPC
    assert host.is_in(lockspace)
    assert plain.terms(wait_s=scene.ticks_s) >= 1  # once a second
    wait_until((ran / "a b").is_dir, "the killpath")
    assert not with_path.terms()
    assert gives_up.terms(wait_s=scene.ticks_s) >= 1
    assert gives_up.client.result(r.Release(0, r.OWN, (head(leases[2]),))) in _FORGOTTEN
    assert all(each.runs() for each in (plain, with_path, gives_up))
    for process in (plain, with_path):
        assert process.wait_killed(FAIL_S + scene.grace_s + 5)
        process.client.close()
    # sanlock counts from the last renewal, Holdfast from when it finds that the lease is over.
    counted_s = scene.grace_s if scene.start == "holdfast" else FAIL_S + scene.grace_s
    assert time.monotonic() - began > counted_s - 2 * IO_TIMEOUT_S - 2
    only_term.terms()  # counted until here
    assert only_term.terms(wait_s=scene.ticks_s) >= 1
    assert only_term.runs()
    assert gives_up.runs()
    only_term.close()
    wait_until(lambda: host.result(r.InqLockspace(0, lockspace)) == Result.ENOENT, "the lockspace to be gone")
    assert gives_up.client.result(r.Inquire(0, r.OWN)) == Result.OK


_FORGOTTEN = range(-299, 1)
"""A lease of a failing lockspace is given up whatever the answer says."""
