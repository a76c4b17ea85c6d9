"""The verdict of the lab that follows README: each bound that is broken is named, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab.readme.verdict import Takeover

from holdfast.cli.setup.profiles import PROFILES

FAST = PROFILES["fast"]
REFUSED = "3.0 s: error: Requested operation is not valid: Lockspace resource '…' is locked by VM web1 on host alpha"
GOOD = Takeover("freeze", began=25.0, ended=29.0, fired=18.0, refusals=(REFUSED,))


def test_a_good_takeover_breaks_nothing() -> None:
    assert GOOD.broken(FAST) == []
    assert replace(GOOD, cause="power", fired=None).broken(FAST) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"began": 15.0, "ended": 19.0}, "may have lived"),
        ({"began": 60.0, "ended": 61.0}, "only after"),
        ({"fired": None}, "did not reset it"),
        ({"fired": 29.5}, "already"),
        ({"refusals": ()}, "never refused"),
        ({"refusals": (REFUSED, 'Failed to get "write" lock')}, "another reason"),
        ({"refusals": ("is locked by VM web1 on host beta",)}, "another reason"),
    ],
)
def test_each_broken_bound_is_named(changes: dict[str, object], said: str) -> None:
    [broken] = replace(GOOD, **changes).broken(FAST)  # type: ignore[arg-type]
    assert said in broken


def test_a_reboot_in_good_order_is_no_death() -> None:
    orderly = replace(GOOD, cause="reboot", began=8.0, ended=10.0, fired=None)
    assert orderly.broken(FAST) == []
    assert replace(orderly, refusals=()).broken(FAST) == []  # its first try came when alpha had left
    [waited] = replace(orderly, began=25.0, ended=27.0).broken(FAST)
    assert "as if alpha had died" in waited
    [reset] = replace(orderly, fired=9.0).broken(FAST)
    assert "reset by its watchdog" in reset
