"""Refusals and the shared words: every error has its wire code, every text names the facts."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import errors
from holdfast.errors import (
    LIBVIRT_CODES,
    CallError,
    HoldfastError,
    LockError,
    ProtectionTooWeak,
    ResourceBusy,
    StorageFailed,
    libvirt_code,
)
from holdfast.model import Holder, Mode, Protection, Resource, wall_text


def subclasses(cls: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.mark.parametrize("cls", [*subclasses(LockError), *subclasses(CallError)], ids=lambda c: c.__name__)
def test_every_refusal_that_may_travel_to_libvirt_has_its_code(cls: type[HoldfastError]) -> None:
    listed = next(c for c in cls.__mro__ if c in LIBVIRT_CODES)
    assert listed is cls or cls.__mro__[1] is listed, "it is listed itself, or is a kind of one that is"


def test_codes_are_libvirts() -> None:
    codes = {c.__name__: (k.code, k.domain) for c, k in LIBVIRT_CODES.items()}
    assert codes["ResourceBusy"] == codes["ResourceNotLocked"] == codes["ResourceInUse"] == (87, 51)
    assert codes["NotAnOwner"] == codes["LockspaceNotDirectory"] == (1, 51)
    assert codes["LockspaceUnknown"] == codes["LockspaceExists"] == (1, 7)
    assert codes["DefaultLockspaceExists"] == codes["NotRegistered"] == (55, 7)
    assert codes["StorageFailed"] == (38, 51)
    assert codes["LockFileCreateFailed"] == (38, 0)
    assert (codes["UnsupportedFlags"], codes["Restricted"], codes["RpcError"]) == ((8, 7), (29, 7), (39, 7))


def test_error_outside_the_table_is_an_internal_error() -> None:
    assert libvirt_code(HoldfastError(reason="x"))[:2] == (1, 51)


def test_refusal_names_four_holders_and_counts_the_rest() -> None:
    holders = [Holder(name=f"web{i}", uuid="u", pid=i, host="alpha") for i in range(1, 8)]
    text = str(ResourceBusy(Resource("", "/disk"), holders))
    assert text.startswith(
        "Lockspace resource '/disk' is locked by VM web1 (uuid u, pid 1) on host alpha; VM web2"
    )
    assert "web4" in text
    assert "web5" not in text
    assert text.endswith("; and 3 more")


def test_failed_storage_keeps_errno_and_says_what_and_where() -> None:
    error = StorageFailed(what="Unable to open resource", path="/nope", errno=errno.ENOENT)
    assert str(error) == "Unable to open resource /nope: No such file or directory"
    assert error.errno == errno.ENOENT


def test_weak_protection_is_told_in_numbers_words_and_with_the_fix() -> None:
    error = ProtectionTooWeak(
        name="/d", need=Protection.CROSS_HOST, got=Protection.SAME_HOST, backend="file", fix="share it"
    )
    assert str(error) == (
        "disk '/d' needs protection level 2 (across hosts) but backend 'file' gives 1 (same host) here: share it"
    )


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(), "another host or process that left no owner record"),
        (Holder(pid=7), "a process (pid 7)"),
        (Holder(pid=7, program="virtlockd", host="a"), "process virtlockd (pid 7) on host a"),
        (Holder(name="backup", pid=7), "backup (pid 7)"),
        (Holder(name="web", uuid="u", mode=Mode.SHARED), "VM web (uuid u), shared"),
        (Holder(name="web", since_wall_s=0.0), "web since 1970-01-01 00:00:00 UTC"),
    ],
)
def test_holder_is_told_with_all_that_is_known(holder: Holder, text: str) -> None:
    assert str(holder) == text


@given(st.floats())
def test_any_number_is_a_time_or_an_impossible_one(seconds: float) -> None:
    assert wall_text(seconds)


def test_larger_mode_includes_the_smaller() -> None:
    assert Mode.EXCLUSIVE > Mode.SHARED
    assert [m.word for m in Mode] == ["shared", "exclusive"]
    assert [p.word for p in Protection][-1] == "across hosts, fenced"
    assert str(Resource("/s", "n")) == "/s/n"
    assert str(Resource("", "/d")) == "/d"
    assert errors.HOLDERS_TOLD_MAX == 4
