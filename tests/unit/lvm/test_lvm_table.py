"""driver = "lvm" in the configuration: its keys, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from tests.contract.test_backends import ports

from holdfast.backends.base import BackendPorts, Creation
from holdfast.backends.lvm.config import Settings, remarks, settings
from holdfast.backends.lvm.hook_calls import HANDOVER_WAIT_S
from holdfast.backends.registry import make_backend
from holdfast.config import Config, DiskRule
from holdfast.daemon.build import build_routing
from holdfast.daemon.check_config import ports_for_a_look
from holdfast.errors import ConfigError, Refused, UnknownKey
from holdfast.hooks.qemu import LIMIT_S
from holdfast.model import IDENTITY_LOCKSPACE, Protection, Resource
from holdfast.system.files.mounts import MountTable

SAN = {"driver": "paxos", "directory": "/srv/leases", "host_id": 1, "watchdog": "none"}


def guarded(
    table: dict[str, object], guard: dict[str, object], identity: Literal["auto", "path"] = "auto"
) -> Config:
    return Config(
        run_dir="",
        state_dir="",
        backend={"vol": {"driver": "lvm", **table}, "san": guard},
        default_backend="san",
        disk=(DiskRule(match="/dev/vg/*", backend="vol", identity=identity),),
    )


def lease_ports() -> BackendPorts:
    mounts = MountTable()
    try:
        return ports_for_a_look(guarded({}, SAN), mounts)
    finally:
        mounts.close()


@pytest.mark.parametrize(
    ("config", "key", "says"),
    [
        (
            guarded({"guard": "sun"}, SAN),
            "backend.vol.guard",
            "no [backend.sun] is configured: name one with driver = ",
        ),
        (
            guarded({"guard": "vol"}, SAN),
            "backend.vol.guard",
            "backend 'vol' has no leases: name one with driver = ",
        ),
        (guarded({"guard": "san"}, {"driver": "file"}), "backend.vol.guard", "backend 'san' has no leases"),
        (guarded({"guard": "san"}, SAN | {"name_by": "lvm-uuid"}), "backend.vol.guard", "(name_by)"),
        (
            guarded({"guard": "san"}, SAN, "path"),
            "disk[1].identity",
            "is \"path\", and the guard of backend 'vol'",
        ),
    ],
)
def test_guard_that_can_not_be_one_is_refused_with_the_key(config: Config, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_routing(config, lease_ports())
    assert (refused.value.facts["key"], says in str(refused.value)) == (key, True), str(refused.value)


@pytest.mark.parametrize("activation", ["exclusive", "shared"])
def test_guard_has_the_lock_of_what_a_volume_is_and_its_own_backend_that_of_the_path(activation: str) -> None:
    routing = build_routing(guarded({"guard": "san", "activation": activation}, SAN), lease_ports())
    by_path = routing.route(Resource("", "/dev/vg/lv1"))
    by_identity = routing.route(Resource(IDENTITY_LOCKSPACE, "lvm:uuid"), "/dev/vg/lv1")
    assert (by_path.backend.name, by_identity.backend.name) == ("vol", "san")
    assert by_path.min_at_start is by_identity.min_at_start is Protection.CROSS_HOST
    other = routing.route(Resource(IDENTITY_LOCKSPACE, "lvm:uuid"), "/dev/other/lv1")
    assert (other.backend.name, other.guard) == ("san", None)
    # Not joined: the guard is worth nothing, and LVM's lock keeps other hosts out only where it is exclusive.
    level, why = by_path.backend.protection("/dev/vg/lv1")
    assert level is (Protection.CROSS_HOST if activation == "exclusive" else Protection.NONE)
    assert "not in lockspace" in why


def test_remark_says_what_shared_activation_needs() -> None:
    (experimental, shared) = remarks("vol", {"activation": "shared", "guard": "san"})
    assert "experimental" in experimental
    assert 'need guard = "san", in one lockspace, before any has this' in shared
    assert len(remarks("vol", {"guard": "san"})) == 1


def test_driver_that_is_experimental_is_not_offered() -> None:
    with pytest.raises(ConfigError) as refused:
        make_backend("b", {"driver": "zfs"}, ports(), file="holdfast.toml")
    assert "lvm" not in str(refused.value)


def test_table_that_is_only_tried_out_serves_nothing() -> None:
    backend = make_backend("san-lvm", {"driver": "lvm"}, ports(), file="holdfast.toml")

    async def scene() -> None:
        with pytest.raises(Refused, match="not served here"):
            await backend.open(Resource("", "/dev/vg/lv1"), create=Creation.NONE)

    asyncio.run(scene())


def test_two_tables_are_refused_because_a_host_has_one_lvmlockd() -> None:
    config = Config(
        run_dir="",
        state_dir="",
        backend={"one": {"driver": "lvm"}, "two": {"driver": "lvm"}},
        default_backend="one",
    )
    with pytest.raises(ConfigError, match=r"backend\.two\.driver.* is lvm, as that of backend\.one"):
        build_routing(config, ports())


def test_wait_for_the_source_ends_before_the_hook_does() -> None:
    activation_s = 7.5  # of a refused shared one, at most (libvirt-hooks-lvm.md 3.1)
    assert HANDOVER_WAIT_S + activation_s < LIMIT_S - 1


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"activation": "sometimes"}, "activation must be one of exclusive, shared, not 'sometimes'"),
        ({"activation": "shared"}, 'activation = "shared" needs a guard'),
        ({"guard": 1}, "guard must be the name of a backend"),
        ({"handover_wait_s": -1}, "handover_wait_s must be a number of seconds from 0 to 20, not -1"),
        ({"handover_wait_s": True}, "not True"),
        ({"acquire_wait_s": "5"}, "acquire_wait_s must be a number of seconds from 0 to 600, not '5'"),
    ],
)
def test_key_that_is_wrong_is_named(table: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_backend("b", {"driver": "lvm", **table}, ports(), file="holdfast.toml")
    assert says in str(refused.value)


def test_key_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnknownKey, match="handover"):
        make_backend("b", {"driver": "lvm", "handover": 1}, ports(), file="holdfast.toml")


def test_defaults() -> None:
    assert settings({}) == Settings("exclusive", "", 20.0, 5.0)
