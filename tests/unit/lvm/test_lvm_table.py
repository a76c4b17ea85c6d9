"""driver = "lvm" in the configuration: its keys, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.test_backends import ports

from holdfast.backends.base import Creation
from holdfast.backends.lvm.config import Settings, settings
from holdfast.backends.lvm.hook_calls import HANDOVER_WAIT_S
from holdfast.backends.registry import make_backend
from holdfast.config import Config
from holdfast.daemon.build import build_routing
from holdfast.errors import ConfigError, Refused, UnknownKey
from holdfast.hooks.qemu import LIMIT_S
from holdfast.model import Resource


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"guard": "san"}, 'guard = "san"'),
        ({"activation": "shared", "guard": "san"}, 'activation = "shared"'),
    ],
)
def test_value_that_is_not_served_yet_is_refused(table: dict[str, object], key: str) -> None:
    settings(table)
    with pytest.raises(ConfigError, match="is not served in this version") as refused:
        make_backend("san-lvm", {"driver": "lvm", **table}, ports(), file="holdfast.toml")
    assert key in str(refused.value)


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
