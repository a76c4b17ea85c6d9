"""[backend.NAME] with driver = "paxos": every value that can't be used is refused with the key and the fix."""

import pytest
from tests.contract.test_backends import MOUNTS

from holdfast.backends.base import BackendPorts
from holdfast.backends.paxos.backend import PaxosBackend
from holdfast.backends.paxos.config import remarks
from holdfast.backends.registry import make_backend
from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.daemon.system_ports import lease_host_ports
from holdfast.errors import ConfigError
from holdfast.model import LockFailureAction, Protection
from holdfast.supervision.host_identity import HostIdentity
from holdfast.system.clock import SystemClock
from holdfast.system.files.ofd_lock import SystemLockFiles
from holdfast.system.files.storage_executor import InlineStorage

GOOD = {"driver": "paxos", "directory": "/srv/leases", "host_id": 1, "watchdog": "none"}


def lease_host() -> HostLockspaces:
    return HostLockspaces(
        ports=lease_host_ports("/nonexistent"), clock=SystemClock(), identity=HostIdentity("alpha", "b", "m")
    )


def made(*tables: dict[str, object]) -> list[PaxosBackend]:
    ports = BackendPorts(
        files=SystemLockFiles(),
        storage=InlineStorage(),
        mounts=MOUNTS,
        clock=SystemClock(),
        host="alpha",
        leases=lease_host().ports(),
    )
    found = []
    for n, table in enumerate(tables):
        backend = make_backend(f"b{n}", table, ports, file="holdfast.toml")
        assert isinstance(backend, PaxosBackend)
        found.append(backend)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"directory": None}, "needs exactly one of directory"),
        ({"device": "/dev/vg/locks"}, "needs exactly one of directory"),
        ({"directory": "leases"}, "directory must be an absolute path"),
        ({"host_id": None}, "misses the key host_id"),
        ({"host_id": 0}, "host_id must be a number from 1 to 2000"),
        ({"host_id": True}, "host_id must be a number"),
        ({"host_id": "any"}, "\"auto\", not 'any'"),
        ({"watchdog": None}, 'misses the key watchdog: "device"'),
        ({"watchdog": "softdog"}, "watchdog must be one of device, wdmd, none"),
        ({"watchdog_device": "/dev/watchdog1"}, 'not for "none"'),
        ({"io_timeout_s": 0}, "io_timeout_s must be a whole number from 1 to 255"),
        ({"io_timeout_s": 2.5}, "io_timeout_s must be a whole number"),
        ({"hosts_max": 2001}, "hosts_max must be a whole number from 1 to 2000"),
        ({"host_id": 9, "hosts_max": 8}, "host_id 9 must be at most hosts_max 8"),
        ({"name_by": "inode"}, "name_by must be one of path-md5, path-sha256, lvm-uuid, scsi-wwid"),
        ({"on_lockfailure": "panic"}, "on_lockfailure must be one of ignore, pause, poweroff, restart"),
        ({"on_lockfailure": "ignore"}, 'on_lockfailure = "ignore" needs a watchdog'),
        ({"on_loss": "kill"}, "on_loss must be one of stop, reset"),
        ({"on_loss": "reset"}, 'on_loss = "reset" needs a watchdog'),
        ({"page_cache": 1}, "page_cache must be true or false"),
        ({"lockspace": "a/b"}, 'lockspace must be a name without "/"'),
        ({"lockspace": "x" * 48}, "lockspace: a name has at most 47 bytes"),
        ({"cross_host": 1}, "cross_host must be true or false"),
        ({"hostid": 1}, "unknown key 'hostid'"),
    ],
)
def test_value_that_can_not_be_used_is_refused_with_the_fix(
    changes: dict[str, object], expected: str
) -> None:
    table = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    with pytest.raises(ConfigError) as refused:
        made(table)
    assert expected in str(refused.value)
    assert str(refused.value).startswith("holdfast.toml: backend.b0: ")


def test_fire_timeout_that_leaves_no_time_for_the_action_is_remarked() -> None:
    short = {**GOOD, "watchdog": "device", "fire_timeout_s": 29, "io_timeout_s": 1}
    assert "leaves no time for on_lockfailure" in remarks("san", short)[0]
    assert remarks("san", {**short, "fire_timeout_s": 30}) == []


@pytest.mark.parametrize(("fire_s", "least_s"), [(60, 2), (59, 2), (30, 2)])
def test_leases_that_look_expired_to_wdmd_are_reported(fire_s: int, least_s: int) -> None:
    wdmd = {**GOOD, "watchdog": "wdmd", "fire_timeout_s": fire_s}
    assert remarks("san", {**wdmd, "io_timeout_s": least_s}) == []
    (said,) = remarks("san", {**wdmd, "io_timeout_s": least_s - 1})
    assert f"although its leases are renewed every {2 * (least_s - 1)} s: io_timeout_s = {least_s}" in said
    assert remarks("san", {**wdmd, "watchdog": "device", "io_timeout_s": 1}) == []


def test_backends_share_a_watchdog_and_may_share_a_lockspace() -> None:
    with pytest.raises(ConfigError, match="watchdog: a host has one"):
        made(GOOD, {**GOOD, "directory": "/srv/more", "lockspace": "more", "watchdog": "wdmd"})
    with pytest.raises(ConfigError, match="named by another backend with other values"):
        made(GOOD, {**GOOD, "directory": "/srv/more"})
    one, two = made(GOOD, {**GOOD, "on_lockfailure": "poweroff", "name_by": "path-sha256"})
    assert one.presence is two.presence
    assert two.on_lockfailure is LockFailureAction.POWEROFF


def test_directory_on_local_storage_protects_this_host_alone() -> None:
    backend = made({**GOOD, "directory": "/"})[0]
    assert backend._reach is Protection.SAME_HOST
    assert made({**GOOD, "directory": "/", "cross_host": True})[0]._reach is Protection.CROSS_HOST
