"""The mode table and the one step towards it, and the rules for ACQUIRE and RELEASE, each as a whole table."""

from __future__ import annotations

import itertools

import pytest

from holdfast.backends.lvm.modes import Step, Use, Want, step, wanted
from holdfast.backends.lvm.ports import Problem, Refused
from holdfast.backends.lvm.roles import Role
from holdfast.backends.lvm.write_rules import Grant, Holding, Needs, Vm, by_status, on_acquire, on_release
from holdfast.model import Mode

EX, SH = Mode.EXCLUSIVE, Mode.SHARED
VM, OTHER = Vm("uuid-1", 7), Vm("uuid-2", 8)

BY_ROLE = {
    Role.OWNER: Want.EXCLUSIVE,
    Role.CAME_BACK: Want.EXCLUSIVE,
    Role.SOURCE: Want.SHARED,
    Role.LEFT: Want.SHARED,
    Role.TARGET: Want.SHARED,
    Role.FINISHING: Want.SHARED,
    Role.UNSETTLED: Want.KEEP,
}


@pytest.mark.parametrize("role", Role)
def test_mode_follows_the_role_of_the_one_vm(role: Role) -> None:
    assert wanted([Use(role, EX)]) is BY_ROLE[role]


@pytest.mark.parametrize("role", Role)
def test_owner_beside_any_other_vm_wants_it_exclusively(role: Role) -> None:
    assert wanted([Use(role, EX), Use(Role.OWNER, EX)]) is Want.EXCLUSIVE


def test_volume_that_all_share_is_held_shared() -> None:
    assert wanted([Use(Role.OWNER, SH), Use(Role.OWNER, SH)]) is Want.SHARED
    assert wanted([Use(Role.OWNER, SH), Use(Role.OWNER, EX)]) is Want.EXCLUSIVE


def test_nothing_is_wanted_only_when_no_vm_is_proven() -> None:
    assert wanted([]) is Want.NOTHING
    assert wanted([], announced=True) is Want.KEEP
    assert wanted([], doubt=True) is Want.KEEP


@pytest.mark.parametrize("role", Role)
def test_volume_that_only_one_host_can_have_active_is_never_shared(role: Role) -> None:
    assert wanted([Use(role, EX)], one_host=True) is Want.EXCLUSIVE
    assert wanted([], one_host=True) is Want.NOTHING


STEPS = {
    # want: (active: none, shared, exclusive), (not active: none, shared, exclusive)
    Want.EXCLUSIVE: (
        (Step.LOCK_EXCLUSIVE, Step.LOCK_EXCLUSIVE, Step.NONE),
        (Step.ACTIVATE_EXCLUSIVE, Step.ACTIVATE_EXCLUSIVE, Step.ACTIVATE_EXCLUSIVE),
    ),
    Want.SHARED: (
        (Step.LOCK_SHARED, Step.NONE, Step.LOCK_SHARED),
        (Step.ACTIVATE_SHARED, Step.ACTIVATE_SHARED, Step.ACTIVATE_SHARED),
    ),
    Want.KEEP: ((Step.LOCK_SHARED, Step.NONE, Step.NONE), (Step.NONE, Step.NONE, Step.NONE)),
    Want.NOTHING: (
        (Step.DEACTIVATE, Step.DEACTIVATE, Step.DEACTIVATE),
        (Step.NONE, Step.DEACTIVATE, Step.DEACTIVATE),
    ),
    Want.RESTING: (
        (Step.LOCK_SHARED, Step.NONE, Step.LOCK_SHARED),
        (Step.NONE, Step.DEACTIVATE, Step.DEACTIVATE),
    ),
}


@pytest.mark.parametrize("role", Role)
def test_volume_that_all_hosts_have_active_is_never_exclusive(role: Role) -> None:
    known = Want.KEEP if role is Role.UNSETTLED else Want.SHARED
    assert wanted([Use(role, EX)], shares=True) is known
    assert wanted([Use(role, EX)], shares=True, unguarded=True) is Want.KEEP
    assert wanted([], shares=True) is Want.RESTING
    assert wanted([], shares=True, doubt=True) is Want.KEEP
    assert wanted([], shares=True, announced=True) is Want.KEEP
    assert wanted([Use(role, EX)], shares=True, one_host=True) is Want.EXCLUSIVE
    assert wanted([], shares=True, one_host=True) is Want.NOTHING


@pytest.mark.parametrize("role", Role)
def test_sharing_does_not_begin_under_a_guest_without_its_guard_lease(role: Role) -> None:
    owns = role in (Role.OWNER, Role.CAME_BACK)
    assert wanted([Use(role, EX)], unguarded=True) is (Want.EXCLUSIVE if owns else Want.KEEP)
    assert wanted([Use(role, SH)], unguarded=True) is Want.KEEP


@pytest.mark.parametrize(("want", "active"), list(itertools.product(Want, (True, False))))
def test_one_step_towards_each_mode(want: Want, active: bool) -> None:
    steps = STEPS[want][0 if active else 1]
    assert tuple(step(want, held, active=active) for held in (None, SH, EX)) == steps


@pytest.mark.parametrize(("want", "active"), list(itertools.product(Want, (True, False))))
def test_nothing_is_done_while_lvmlockd_does_not_say_what_is_held(want: Want, active: bool) -> None:
    assert step(want, Refused(Problem.NO_ANSWER), active=active) is Step.WAIT


@pytest.mark.parametrize("role", Role)
def test_exclusive_grant_needs_an_exclusive_lock_but_for_a_target_that_finishes(role: Role) -> None:
    assert on_acquire(VM, EX, role, EX, ()) is None
    shared = on_acquire(VM, EX, role, SH, ())
    assert shared == (None if role is Role.FINISHING else Needs(EX))
    assert on_acquire(VM, EX, role, None, ()) == Needs(EX)


@pytest.mark.parametrize("role", Role)
def test_shared_grant_needs_any_lock(role: Role) -> None:
    assert on_acquire(VM, SH, role, EX, ()) is None
    assert on_acquire(VM, SH, role, SH, ()) is None
    assert on_acquire(VM, SH, role, None, ()) == Needs(SH)


@pytest.mark.parametrize("role", Role)
def test_where_all_hosts_have_it_active_any_lock_will_do(role: Role) -> None:
    assert on_acquire(VM, EX, role, SH, (), shares=True) is None
    assert on_acquire(VM, EX, role, EX, (), shares=True) is None
    assert on_acquire(VM, EX, role, None, (), shares=True) == Needs(SH)
    theirs = Holding(OTHER, "v2", SH, Grant.HELD)
    assert on_acquire(VM, EX, role, SH, (theirs,), shares=True) is theirs


@pytest.mark.parametrize("grant", Grant)
def test_another_vms_grant_on_this_host_is_in_the_way_also_when_it_is_yielded(grant: Grant) -> None:
    theirs = Holding(OTHER, "v2", EX, grant)
    assert on_acquire(VM, EX, Role.OWNER, EX, (theirs,)) is theirs
    assert on_acquire(VM, SH, Role.OWNER, EX, (theirs,)) is theirs
    assert on_acquire(OTHER, EX, Role.OWNER, EX, (theirs,)) is None
    shared = Holding(OTHER, "v2", SH, grant)
    assert on_acquire(VM, SH, Role.OWNER, SH, (shared,)) is None
    assert on_acquire(VM, EX, Role.OWNER, EX, (shared,)) is shared


def test_release_is_yielded_only_while_the_guest_may_run_on_by_itself() -> None:
    yields = {Role.SOURCE, Role.CAME_BACK, Role.UNSETTLED}
    for role in Role:
        assert on_release(role) is (Grant.YIELDED if role in yields else None), role
    assert on_release(None) is Grant.YIELDED


BY_STATUS = {
    # role: a yielded grant while the guest runs, while it stands
    Role.OWNER: (Grant.HELD, None),
    Role.SOURCE: (Grant.YIELDED, Grant.YIELDED),
    Role.CAME_BACK: (Grant.HELD, Grant.YIELDED),
    Role.LEFT: (None, None),
    Role.TARGET: (Grant.YIELDED, Grant.YIELDED),
    Role.FINISHING: (Grant.YIELDED, Grant.YIELDED),
    Role.UNSETTLED: (Grant.YIELDED, Grant.YIELDED),
}


@pytest.mark.parametrize("role", Role)
def test_what_becomes_of_a_grant_by_the_status_file(role: Role) -> None:
    assert tuple(by_status(Grant.YIELDED, role, runs=runs) for runs in (True, False)) == BY_STATUS[role]
    held = None if role is Role.LEFT else Grant.HELD
    assert {by_status(Grant.HELD, role, runs=runs) for runs in (True, False)} == {held}
