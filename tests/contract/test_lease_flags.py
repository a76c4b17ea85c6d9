"""Hosts whose leases never expire by time, on real files: their leases stay, and an order about them frees them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.test_paxos_backend import Scene, play
from tests.support.leases import HostLockspaces, twin

from holdfast.backends.base import HeldElsewhere
from holdfast.errors import LeaseUnusable
from holdfast.model import Mode
from holdfast.ondisk import delta
from holdfast.ondisk.delta import FLAG_NO_TIMEOUT
from holdfast.ondisk.geometry import MIB
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.protocol.host_status import HostState, HostView, SeenTerm
from holdfast.protocol.takeover import NEVER_BY_TIME
from holdfast.protocol.types import Generation, HostId, HostTimestamp, Instant
from holdfast.supervision.lockspace_port import NotAMember
from holdfast.testing.conformance import assert_held, take

FOR_EVER_S = 10_000.0


def sees_silent(
    host: HostLockspaces,
    generation: int,
    state: HostState = HostState.FAIL,
    *,
    no_timeout: bool = True,
    silent_s: float = FOR_EVER_S,
) -> None:
    """The looks of a host show host 1 as it stands, unchanged for ever, or in another state."""
    member = host.presence.member
    assert not isinstance(member, NotAMember)
    view = HostView(
        host_id=HostId(1),
        state=state,
        generation=Generation(generation),
        timestamp=HostTimestamp(100 + generation),
        io_timeout_s=1,
        unchanged_since=Instant(host.clock.now() - silent_s),
        unchanged_s=silent_s,
        no_timeout=no_timeout,
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
        (name,) = await s.two.maintenance.lease_names()
        present = (HostId(1), Generation(2))
        assert await s.two.maintenance.claims_of_term(name, present, older_too=False) == frozenset()
        terms = await s.two.maintenance.claims_of_term(name, present, older_too=True)
        assert terms == {(HostId(1), Generation(1))}
        assert "attested to be off" in await s.two.maintenance.break_of(name, terms)
        held = assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE))
        at = s.alpha.geometry.host_block_offset_bytes(1)
        block = HostBlock.decode(s.lease_file.read_bytes()[at : at + 512])
        assert isinstance(block, HostBlock)
        assert not block.mode.is_shared
        await held.release()

    play(scene)


def test_order_about_an_older_term_does_not_write_the_block_of_a_host_that_is_back(tmp_path: Path) -> None:
    """That its older term is over was proven by a mark; it writes that block itself (seed 102001570)."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", version=delta.VERSION_5)
        assert_held(await take(s.one, s.world(), Mode.SHARED))
        twin(s.alpha, generation=2, flags=FLAG_NO_TIMEOUT)
        sees_silent(s.beta, 2, HostState.LIVE)
        member = s.beta.presence.member
        assert not isinstance(member, NotAMember)
        view = replace(
            member.view(HostId(1)),
            unchanged_s=0.0,
            terms=(SeenTerm(Generation(1), Instant(0.0), 1, seen_to_end=True),),
        )
        s.beta.presence.member = replace(member, view=lambda _: view)
        before = s.lease_file.read_bytes()
        with pytest.raises(
            LeaseUnusable, match="generation 1 stands in the block of host id 1, which a host has again"
        ):
            await s.two.maintenance.break_lease(s.world().resource, "1")
        at = s.alpha.geometry.host_block_offset_bytes(1)
        assert s.lease_file.read_bytes()[at : at + 512] == before[at : at + 512]

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
        maintenance = back.backend(s.directory).maintenance
        (name,) = await maintenance.lease_names()
        assert await maintenance.take_out(name, dry_run=True) == ""  # says what is done then (F13)
        assert await maintenance.take_out(name, dry_run=False) == ""
        await assert_held(await take(s.two, s.world(), Mode.EXCLUSIVE)).release()

    play(scene)


def test_shared_hold_of_an_older_term_is_not_said_to_be_of_a_living_host(tmp_path: Path) -> None:
    async def scene() -> None:
        s = Scene(tmp_path / "leases", version=delta.VERSION_5)
        assert_held(await take(s.one, s.world(), Mode.SHARED))
        twin(s.alpha, generation=2, flags=FLAG_NO_TIMEOUT)
        sees_silent(s.beta, 2, HostState.LIVE)
        refused = await take(s.two, s.world(), Mode.EXCLUSIVE)
        assert isinstance(refused, HeldElsewhere)
        (holder,) = refused.holders
        assert "'holdfast lease gc' on that host gives up what its older generations had" in str(holder)
        assert "alive 1" not in str(holder)

    play(scene)


@pytest.mark.parametrize("no_timeout", [True, False])
def test_gc_gives_up_what_an_older_term_had_of_the_index(no_timeout: bool, tmp_path: Path) -> None:
    """Nobody else could change the index any more; where time frees leases, nobody has to."""

    async def scene() -> None:
        s = Scene(tmp_path / "leases", device=True, version=delta.VERSION_5)
        await assert_held(await take(s.one, s.world(), Mode.EXCLUSIVE)).release()
        at = 2 * MIB

        def index_lease() -> Leader:
            leader = Leader.decode(s.lockspace.read_bytes()[at : at + 512])
            assert isinstance(leader, Leader)
            return leader

        freed = index_lease()
        assert freed.is_free
        with s.lockspace.open("r+b") as file:  # a daemon was killed while it changed the index
            file.seek(at)
            file.write(replace(freed, timestamp=7, write_id=freed.owner_id).sector())
        back = twin(s.alpha, generation=2, flags=FLAG_NO_TIMEOUT if no_timeout else 0)
        sees_silent(back, 2, HostState.LIVE, no_timeout=no_timeout)
        await back.backend().maintenance.free_of_older_terms()
        assert index_lease().is_free is no_timeout

    play(scene)
