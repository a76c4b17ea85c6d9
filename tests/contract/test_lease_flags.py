"""Hosts whose leases never expire by time, on real files: their leases stay, and an order about them frees them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.test_paxos_backend import Scene, play
from tests.support.leases import LeaseHost, twin

from holdfast.backends.base import HeldElsewhere
from holdfast.model import Mode
from holdfast.ondisk import delta
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT
from holdfast.ondisk.host_block import HostBlock
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.owner_test import NEVER_BY_TIME
from holdfast.protocol.words import Generation, HostId, HostTimestamp, Instant
from holdfast.supervision.presence import Absent
from holdfast.testing.conformance import assert_held, take

FOR_EVER_S = 10_000.0


def sees_silent(host: LeaseHost, generation: int) -> None:
    """The looks of a host show host 1 as it stands, unchanged for ever."""
    member = host.presence.member
    assert not isinstance(member, Absent)
    view = HostView(
        host_id=HostId(1),
        state=HostState.FAIL,
        generation=Generation(generation),
        timestamp=HostTimestamp(100 + generation),
        io_timeout_s=1,
        unchanged_since=Instant(0.0),
        unchanged_s=FOR_EVER_S,
        no_timeout=True,
    )
    host.presence.member = replace(member, view=lambda _: view)


@pytest.mark.parametrize("mode", list(Mode))
def test_leases_of_a_silent_host_stay_until_an_order_about_it_frees_those_of_its_older_terms_too(
    mode: Mode, tmp_path: Path
) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", version=delta.VERSION_5)
        assert_held(await take(s.one, s.world(), mode))
        # It went down, came back as generation 2, and went down again.
        twin(s.alpha, generation=2, flags=FLAG_NO_TIMEOUT)
        sees_silent(s.beta, 2)
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        assert NEVER_BY_TIME in str(refused.holders[0])
        (name,) = await s.two.upkeep.lease_names()
        present = (HostId(1), Generation(2))
        assert await s.two.upkeep.claims_of_term(name, present, older_too=False) == frozenset()
        terms = await s.two.upkeep.claims_of_term(name, present, older_too=True)
        assert terms == {(HostId(1), Generation(1))}
        assert "attested to be off" in await s.two.upkeep.break_of(name, terms)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        at = s.alpha.geometry.host_block_offset_bytes(1)
        block = HostBlock.decode(s.lease_file.read_bytes()[at : at + 512])
        assert isinstance(block, HostBlock)
        assert not block.mode.is_shared
        await held.release()

    play(scene)


def test_host_that_came_back_gives_up_by_gc_what_its_older_terms_had(tmp_path: Path) -> None:
    """To itself they are free at once; to others no time would ever free them."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", version=delta.VERSION_5)
        assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE))
        back = twin(s.alpha, generation=2, flags=FLAG_NO_TIMEOUT)
        sees_silent(s.beta, 2)
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        assert "holdfast lease gc" in str(refused.holders[0])
        upkeep = back.backend(s.directory).upkeep
        (name,) = await upkeep.lease_names()
        assert await upkeep.take_out(name, dry_run=False) == ""
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()

    play(scene)
