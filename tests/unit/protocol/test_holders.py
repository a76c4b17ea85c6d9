"""Who holds a lease, image by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.lease_images import LVER, OWNER, SHARER, Image, images

from holdfast.model import Mode
from holdfast.ondisk.host_block import Dblock, HostBlock, ModeBlock
from holdfast.protocol.holders import (
    Claim,
    Exclusive,
    Free,
    Released,
    Shared,
    Unclear,
    claims_against,
    claims_of,
    holders_of,
    holds_alone,
    may_yet_own,
    needs_owner_block,
    owner_by,
)
from holdfast.protocol.types import Generation, HostId

IMAGES = images("LS", "R")
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)


@each_image
def test_every_image_has_its_one_answer(image: Image) -> None:
    holders = holders_of(image.leader, image.decoded())
    if not image.damaged:
        assert holders == image.known
    else:
        assert isinstance(holders, Unclear)
        assert holders.known == image.known
        assert tuple(host_id for host_id, _ in holders.damaged) == image.damaged
        assert f"host_id {image.damaged[0]} can't be read" in str(holders)


@each_image
def test_the_owner_is_judged_alike_with_and_without_the_other_blocks(image: Image) -> None:
    """A takeover reads one block where a dump reads all."""
    owner = owner_by(image.leader, image.decoded().get(OWNER[0], HostBlock()))
    is_owned = not isinstance(owner, Free | Released)
    assert is_owned == isinstance(image.known, Exclusive)
    if not needs_owner_block(image.leader):
        assert isinstance(owner_by(image.leader, None), Free | Exclusive)


@each_image
def test_only_what_is_held_exclusively_and_not_given_up_is_adopted(image: Image) -> None:
    blocks = {h: b for h, b in image.decoded().items() if isinstance(b, HostBlock)}
    if not image.damaged:  # a block that can't be read ends the read before
        assert holds_alone(image.leader, blocks, OWNER) == image.adopted
        if image.adopted:
            assert isinstance(image.known, Exclusive)
            assert not image.known.releasing


def test_a_block_about_a_newer_version_disputes_an_adoption_but_not_the_claim() -> None:
    image = next(each for each in IMAGES if each.name == "exclusive")
    blocks = {**image.decoded(), HostId(2): HostBlock(dblock=Dblock(mbal=2, lver=LVER + 1))}
    assert holders_of(image.leader, blocks) == image.known
    clean = {h: b for h, b in blocks.items() if isinstance(b, HostBlock)}
    assert not holds_alone(image.leader, clean, OWNER)


@pytest.mark.parametrize(
    ("newer", "adopted"),
    [
        (Dblock(mbal=2, lver=LVER + 1), False),  # a race upon this leader
        (Dblock(mbal=2, bal=2, inp=2, inp2=1, inp3=7, lver=LVER + 1), False),
        (Dblock(mbal=2, bal=2, inp=2, inp2=1, inp3=7, lver=LVER + 1, flags=1), True),  # it has ended
        (
            Dblock(mbal=2, lver=LVER + 2),
            True,
        ),  # upon a leader that nobody wrote while the owner's block stands
        (Dblock(mbal=2, bal=2, inp=2, inp2=1, inp3=7, lver=LVER + 2), True),
    ],
)
def test_blocks_of_a_lease_that_was_put_back_take_nothing_from_who_has_acquired_it_since(
    newer: Dblock, adopted: bool
) -> None:
    image = next(each for each in IMAGES if each.name == "exclusive")
    blocks = {h: b for h, b in image.decoded().items() if isinstance(b, HostBlock)}
    assert holds_alone(image.leader, {**blocks, HostId(2): HostBlock(dblock=newer)}, OWNER) is adopted
    # Unless the owner's own block gives it up.
    own = replace(blocks[OWNER[0]].dblock, flags=1)
    given_up = {**blocks, OWNER[0]: HostBlock(dblock=own), HostId(2): HostBlock(dblock=newer)}
    assert not holds_alone(image.leader, given_up, OWNER)


def test_claims_name_the_owner_first_and_no_host_twice() -> None:
    assert claims_of(Free()) == claims_of(Released(OWNER)) == ()
    both = Exclusive(OWNER, releasing=False, sharers=(OWNER, SHARER))
    assert claims_of(both) == (Claim(OWNER, Mode.EXCLUSIVE), Claim(SHARER, Mode.SHARED))
    assert claims_of(Unclear((), Shared((SHARER,)))) == (Claim(SHARER, Mode.SHARED),)


def test_own_leader_and_own_block_are_in_nobodys_way_but_another_terms_leader_is() -> None:
    ours = Exclusive(OWNER, releasing=False, sharers=(SHARER,))
    assert claims_against(ours, OWNER) == (Claim(SHARER, Mode.SHARED),)
    later = (OWNER[0], Generation(2))
    assert claims_against(ours, later) == claims_of(ours)
    assert claims_against(Shared((OWNER, SHARER)), later) == (Claim(SHARER, Mode.SHARED),)


def test_a_value_that_is_not_withdrawn_may_yet_be_decided_for_its_host() -> None:
    free = IMAGES[1].leader
    standing = Dblock(mbal=9, bal=9, inp=1, inp2=1, inp3=7, lver=LVER + 1)
    assert may_yet_own(free, HostBlock(dblock=standing), OWNER)
    assert not may_yet_own(free, HostBlock(dblock=standing), (OWNER[0], Generation(2)))
    assert not may_yet_own(free, HostBlock(dblock=Dblock(mbal=9, lver=LVER + 1)), OWNER)
    assert not may_yet_own(free, HostBlock(dblock=Dblock(**_released(standing))), OWNER)
    assert not may_yet_own(free, HostBlock(dblock=Dblock(mbal=9, bal=9, inp=1, inp2=1, lver=LVER)), OWNER)


def test_a_shared_hold_counts_by_its_generation() -> None:
    free = IMAGES[1].leader
    blocks = {HostId(3): HostBlock(mode=ModeBlock.shared(7))}
    assert holders_of(free, blocks) == Shared(((HostId(3), Generation(7)),))


def _released(block: Dblock) -> dict[str, int]:
    return {
        "mbal": block.mbal,
        "bal": block.bal,
        "inp": block.inp,
        "inp2": block.inp2,
        "inp3": block.inp3,
        "lver": block.lver,
        "flags": 1,
    }
