"""The comparison with the record of histories names each seed that differs; the digests themselves belong to no test.

Code that ships may change what a seed plays, and does so often; who moves code runs `python -m tests.sim.histories`.
"""

from __future__ import annotations

from tests.sim import histories


def test_comparison_names_each_seed_that_differs_from_the_record() -> None:
    record = histories.recorded()
    changed = {**record, "campaign 3": "0" * 16, "campaign 1000000": "0" * 16}
    del changed["campaign 7"]
    assert histories.differing(record, record) == []
    assert histories.differing(record, changed) == ["campaign 1000000", "campaign 3", "campaign 7"]


def test_record_has_every_history_that_the_script_plays() -> None:
    assert {f"{part} {seed}" for part, seed in histories.all_keys()} == set(histories.recorded())


def test_same_seed_gives_the_same_digest_and_another_seed_another_one() -> None:
    first, again, other = (histories.digest(("campaign", seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
