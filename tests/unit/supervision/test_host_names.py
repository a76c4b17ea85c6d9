"""What a host calls itself in a lockspace, and which host a name means."""

from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX
from holdfast.supervision.host_names import (
    NODE_BYTES_MAX,
    fresh_name,
    is_called,
    is_of_node,
    may_be_of_node,
    node_in_record,
    node_of,
)

TOKEN = "0123456789ab"
ONE, TWO = (f"prod-eu-central-1-hypervisor-compute-node-00{n}" for n in (1, 2))
"""Longer than fits, and alike for as long as that."""


def test_names_are_fresh_and_short_enough() -> None:
    name = fresh_name(ONE, TOKEN)
    assert len(name.encode()) <= HOST_NAME_BYTES_MAX
    assert name.endswith(TOKEN)
    assert node_of(fresh_name("alpha", TOKEN)) == "alpha"
    assert node_of("3f1c-uuid.alpha") == ""


def test_hosts_whose_names_begin_alike_differ_in_their_records() -> None:
    one, two = fresh_name(ONE, TOKEN), fresh_name(TWO, TOKEN)
    assert one != two
    assert one.startswith(ONE[:20])
    assert is_of_node(one, ONE)
    assert not is_of_node(one, TWO)


def test_name_that_just_fits_stands_whole() -> None:
    node = "n" * NODE_BYTES_MAX
    assert fresh_name(node, TOKEN) == f"{node}.{TOKEN}"
    assert len(fresh_name(node, TOKEN)) == HOST_NAME_BYTES_MAX
    assert len(fresh_name(f"{node}n", TOKEN)) == HOST_NAME_BYTES_MAX


def test_character_is_not_cut_in_the_middle() -> None:
    name = fresh_name("ü" * 40, TOKEN)
    assert len(name.encode()) <= HOST_NAME_BYTES_MAX
    assert is_of_node(name, "ü" * 40)


def test_record_that_an_earlier_version_cut_may_be_of_any_host_whose_name_begins_so() -> None:
    cut = f"{ONE[:NODE_BYTES_MAX]}.{TOKEN}"
    assert not is_of_node(cut, ONE)
    assert may_be_of_node(cut, ONE)
    assert may_be_of_node(cut, TWO)
    assert not may_be_of_node(cut, "alpha")
    assert may_be_of_node(fresh_name(ONE, TOKEN), ONE)
    assert not may_be_of_node(fresh_name(TWO, TOKEN), ONE)


def test_host_is_called_by_its_whole_name_its_node_as_the_record_has_it_or_its_id() -> None:
    name = fresh_name(ONE, TOKEN)
    for said in ("7", name, ONE, node_in_record(ONE)):
        assert is_called(said, 7, name), said
    for said in ("", "8", TWO, ONE[:NODE_BYTES_MAX], TOKEN):
        assert not is_called(said, 7, name), said
