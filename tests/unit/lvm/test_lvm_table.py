"""driver = "lvm" in the configuration: its keys are checked, and a table that is right is refused all the same."""

from __future__ import annotations

import pytest
from tests.contract.test_backends import ports

from holdfast.backends.lvm.config import NOT_USABLE, Settings, settings
from holdfast.backends.registry import make_backend
from holdfast.errors import ConfigError, UnknownKey


@pytest.mark.parametrize(
    "table", [{}, {"activation": "exclusive", "guard": "san"}, {"activation": "shared", "guard": "san"}]
)
def test_table_that_is_right_is_refused_because_nothing_would_be_locked(table: dict[str, object]) -> None:
    settings(table)
    with pytest.raises(ConfigError, match="would have no lock") as refused:
        make_backend("san-lvm", {"driver": "lvm", **table}, ports(), file="holdfast.toml")
    assert NOT_USABLE in str(refused.value)


def test_driver_is_not_offered() -> None:
    with pytest.raises(ConfigError) as refused:
        make_backend("b", {"driver": "zfs"}, ports(), file="holdfast.toml")
    assert "lvm" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"activation": "sometimes"}, "activation must be one of exclusive, shared, not 'sometimes'"),
        ({"activation": "shared"}, 'activation = "shared" needs a guard'),
        ({"guard": 1}, "guard must be the name of a backend"),
        ({"handover_wait_s": -1}, "handover_wait_s must be a number of seconds from 0 to 600, not -1"),
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
    assert settings({}) == Settings("exclusive", "", 30.0, 5.0)
