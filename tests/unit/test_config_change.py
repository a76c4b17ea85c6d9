"""Which changes of the configuration are refused while locks are held, and how the refusal names key, values and locks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.backends.naming import NameBy
from holdfast.backends.paxos import config as paxos_table
from holdfast.config import Config, SanlockTable
from holdfast.config_change import (
    LEASE_DEFAULTS,
    WATCHDOG_DEVICE_DEFAULTS,
    HeldNeed,
    differences,
    same_backend,
)
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S

LEASES: dict[str, Any] = {
    "driver": "paxos",
    "directory": "/srv/leases",
    "host_id": 1,
    "watchdog": "wdmd",
    "fire_timeout_s": 60,
}
NEED = HeldNeed(
    backend="leases", count=3, users=("VM web1: /srv/web1.img", "VM web2: /srv/web2.img"), host_id=1
)
NAMED = "3 locks are held as host_id 1 (VM web1: /srv/web1.img, VM web2: /srv/web2.img, ...)"


def config(
    *, run_dir: str = "/run/holdfast", state_dir: str = "/var/lib/holdfast", **backends: Any
) -> Config:
    return Config(run_dir=run_dir, state_dir=state_dir, backend={"file": {"driver": "file"}, **backends})


def changed(table: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The table with other values; None leaves a key out."""
    return {k: v for k, v in {**table, **changes}.items() if v is not None}


REFUSED = [
    ({"host_id": 2}, "backend.leases.host_id: 1 -> 2"),
    ({"host_id": 2, "hosts_max": 8}, "backend.leases.host_id: 1 -> 2"),
    ({"directory": "/srv/other"}, 'backend.leases.directory: "/srv/leases" -> "/srv/other"'),
    (
        {"directory": None, "device": "/dev/vg/locks"},
        'backend.leases.directory: "/srv/leases" -> left out',
    ),
    ({"lockspace": "OTHER"}, 'backend.leases.lockspace: "__LIBVIRT__DISKS__" -> "OTHER"'),
    ({"name_by": "lvm-uuid"}, 'backend.leases.name_by: "path-md5" -> "lvm-uuid"'),
    ({"io_timeout_s": 5}, "backend.leases.io_timeout_s: 10 -> 5"),
    ({"fire_timeout_s": 30}, "backend.leases.fire_timeout_s: 60 -> 30"),
    ({"watchdog": "none"}, 'backend.leases.watchdog: "wdmd" -> "none"'),
    ({"watchdog": "device"}, 'backend.leases.watchdog: "wdmd" -> "device"'),
    (
        {"watchdog_device": "/run/other.sock"},
        'backend.leases.watchdog_device: "/run/wdmd/wdmd.sock" -> "/run/other.sock"',
    ),
    ({"driver": "nop"}, 'backend.leases.driver: "paxos" -> "nop"'),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED)
def test_what_a_held_lease_needs_may_not_change(changes: dict[str, Any], expected: str) -> None:
    old, new = config(leases=LEASES), config(leases=changed(LEASES, **changes))
    assert f"{expected}, but {NAMED}" in differences(old, new, [NEED])
    assert differences(old, new, []) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"host_id": "auto"},
        {"io_timeout_s": 10},
        {"fire_timeout_s": None},
        {"watchdog_device": "/run/wdmd/wdmd.sock"},
        {"lockspace": "__LIBVIRT__DISKS__"},
        {"directory": "/srv/leases/"},
        {"on_lockfailure": "poweroff"},
        {"cross_host": True},
        {"hosts_max": 8},
    ],
)
def test_what_no_held_lease_needs_may_change(changes: dict[str, Any]) -> None:
    assert differences(config(leases=LEASES), config(leases=changed(LEASES, **changes)), [NEED]) == []


@pytest.mark.parametrize(
    ("before", "after", "in_use", "accepted"),
    [
        ("auto", 5, 5, True),
        ("auto", 4, 5, False),
        ("auto", 5, None, False),
        (5, "auto", 5, True),
        (5, "auto", None, True),
        (5, 4, None, False),
    ],
)
def test_found_host_id_may_be_spelled_out_and_back(
    before: object, after: object, in_use: int | None, accepted: bool
) -> None:
    old = config(leases=changed(LEASES, host_id=before))
    new = config(leases=changed(LEASES, host_id=after))
    need = HeldNeed(backend="leases", count=1, host_id=in_use)
    assert (differences(old, new, [need]) == []) is accepted


def test_fewer_hosts_than_our_own_id_are_refused() -> None:
    old = config(leases=changed(LEASES, host_id="auto"))
    new = config(leases=changed(LEASES, host_id="auto", hosts_max=4))
    need = HeldNeed(backend="leases", count=1, host_id=5)
    assert differences(old, new, [need]) == [
        "backend.leases.hosts_max: left out -> 4, but 1 lock is held as host_id 5"
    ]
    assert differences(old, new, [HeldNeed(backend="leases", count=1, host_id=4)]) == []


def test_table_that_is_removed_is_named_with_what_needs_it() -> None:
    assert differences(config(leases=LEASES), config(), [NEED]) == [
        f"backend.leases: is removed, but {NAMED}; put the table back"
    ]


def test_renamed_table_keeps_its_locks_and_its_keys_are_compared_all_the_same() -> None:
    old = config(leases=LEASES)
    assert differences(old, config(san=LEASES), [NEED]) == []
    assert same_backend(old, config(san=LEASES)) == {"file": "file", "leases": "san"}
    assert differences(old, config(san=changed(LEASES, host_id=2)), [NEED]) == [
        f"backend.san.host_id: 1 -> 2, but {NAMED}"
    ]


def test_name_that_now_stands_for_another_lockspace_does_not_get_the_locks() -> None:
    old = config(leases=LEASES, other=changed(LEASES, directory="/srv/other"))
    new = config(other=LEASES, leases=changed(LEASES, directory="/srv/other"))
    assert same_backend(old, new) == {"file": "file", "leases": "other", "other": "leases"}


def test_table_stays_itself_though_another_one_is_the_same() -> None:
    both = config(a=LEASES, b=changed(LEASES, on_lockfailure="ignore"))
    assert same_backend(both, both) == {"file": "file", "a": "a", "b": "b"}


def test_removing_what_nothing_needs_is_accepted() -> None:
    old = config(leases=LEASES, spare=changed(LEASES, lockspace="SPARE"))
    assert differences(old, config(leases=LEASES), [NEED]) == []


def test_lock_files_need_their_directory_and_nothing_else() -> None:
    old = config(shared={"driver": "file", "directory": "/srv/locks"})
    need = HeldNeed(backend="shared", count=1)
    moved = config(shared={"driver": "file", "directory": "/srv/other"})
    assert differences(old, moved, [need]) == [
        'backend.shared.directory: "/srv/locks" -> "/srv/other", but 1 lock is held'
    ]
    vouched = config(shared={"driver": "file", "directory": "/srv/locks", "cross_host": True})
    assert differences(old, vouched, [need]) == []


def test_backend_of_a_third_party_needs_its_whole_table() -> None:
    old, new = config(x={"driver": "x", "url": "a"}), config(x={"driver": "x", "url": "b"})
    assert differences(old, new, [HeldNeed(backend="x", count=1)]) == [
        'backend.x.url: "a" -> "b", but 1 lock is held'
    ]


def test_directories_of_the_daemon_stay_while_anything_is_held() -> None:
    old, new = config(), config(run_dir="/run/x", state_dir="/var/x")
    assert differences(old, new, [HeldNeed(backend="file", count=1)]) == [
        'run_dir: "/run/holdfast" -> "/run/x", but 1 lock is held',
        'state_dir: "/var/lib/holdfast" -> "/var/x", but 1 lock is held',
    ]
    assert differences(old, new, []) == []


def test_unchanged_configuration_is_never_refused_though_a_lock_has_lost_its_backend() -> None:
    assert differences(config(), config(), [HeldNeed(backend="gone", count=1)]) == []


def test_defaults_are_those_of_the_driver() -> None:
    drivers = {
        "lockspace": paxos_table.LIBVIRT_LOCKSPACE,
        "name_by": NameBy.PATH_MD5.value,
        "io_timeout_s": paxos_table.IO_TIMEOUT_DEFAULT_S,
        "fire_timeout_s": FIRE_TIMEOUT_DEFAULT_S,
    }
    devices = {
        "device": paxos_table.WATCHDOG_DEVICE_DEFAULT,
        "wdmd": paxos_table.WDMD_SOCKET_DEFAULT,
        "none": "",
    }
    assert (drivers, devices) == (LEASE_DEFAULTS, WATCHDOG_DEVICE_DEFAULTS)


# --- leases of sanlock's clients ---

CLIENTS = HeldNeed(backend="sanlock:__LIBVIRT__DISKS__", count=2, users=("VM web1: R1",), host_id=1)


def with_socket(
    *, socket: str = "/run/s.sock", watchdog: Any = "wdmd", fire_s: int = 60, **backends: Any
) -> Config:
    table = SanlockTable(socket=socket, watchdog=watchdog, fire_timeout_s=fire_s)
    return msgspec.structs.replace(config(**backends), sanlock=table)


@pytest.mark.parametrize(
    ("new", "key"),
    [
        (with_socket(socket=""), "sanlock.socket: "),
        (with_socket(watchdog="none"), "sanlock.watchdog: "),
        (with_socket(fire_s=30), "sanlock.fire_timeout_s: 60 -> 30"),
        # Another storage under the name of their lockspace would hold other leases for theirs.
        (with_socket(leases=LEASES), "backend.leases.lockspace: "),
    ],
)
def test_what_leases_of_sanlocks_clients_need_may_not_change(new: Config, key: str) -> None:
    (refusal,) = differences(with_socket(), new, [CLIENTS])
    assert refusal.startswith(key)
    assert "2 locks are held as host_id 1 (VM web1: R1, ...)" in refusal
    assert differences(with_socket(), new, []) == []


def test_a_table_that_names_the_lockspace_of_clients_may_not_change_either() -> None:
    old = with_socket(leases=LEASES)
    assert differences(old, old, [CLIENTS]) == []
    assert differences(old, with_socket(renamed=LEASES), [CLIENTS]) == []
    (moved,) = differences(old, with_socket(leases=changed(LEASES, directory="/srv/other")), [CLIENTS])
    assert moved.startswith("backend.leases.directory: ")
    (gone,) = differences(old, with_socket(), [CLIENTS])
    assert gone.startswith("backend.leases: is removed")
    other = changed(LEASES, lockspace="OTHER")
    assert differences(with_socket(), with_socket(leases=other), [CLIENTS]) == []


VOLUMES: dict[str, Any] = {"driver": "lvm"}
OF_VOLUMES = HeldNeed(backend="vol", count=1, users=("VM web1: /dev/vg/web1",))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"guard": "san"}),
        ({"guard": "san"}, {}),
        ({"guard": "san"}, {"guard": "sun"}),
        ({"guard": "san"}, {"guard": "san", "activation": "shared"}),
        ({"guard": "san", "activation": "shared"}, {"guard": "san"}),
        ({}, {"handover_wait_s": 5}),
    ],
)
def test_guard_or_activation_may_change_under_a_volume(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = config(vol={**VOLUMES, **before}), config(vol={**VOLUMES, **after})
    assert differences(old, new, [OF_VOLUMES]) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"guard": "san", "activation": "shared"}),
        ({"guard": "san", "activation": "shared"}, {}),
        ({"guard": "san", "activation": "shared"}, {"guard": "sun", "activation": "shared"}),
    ],
)
def test_guard_may_not_change_where_it_alone_excludes_hosts(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = config(vol={**VOLUMES, **before}), config(vol={**VOLUMES, **after})
    (why,) = differences(old, new, [OF_VOLUMES])
    assert why.startswith(
        f"backend.vol.guard: '{before.get('guard', '')}' -> '{after.get('guard', '')}' where activation is \"shared\", but "
        "1 lock is held (VM web1: /dev/vg/web1); on all hosts first set activation = "
    )
    assert differences(old, new, []) == []
