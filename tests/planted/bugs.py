"""Deliberate bugs that the simulator does not find, each with the tests that have to.

The simulator's own are in `tests.sim.mutations`. These are what a review planted and saw survive (the first five), and one
more of each kind that it named as a blind spot: bounds that are off by less than one read, bounds of hosts with
different io_timeouts, what a restart inherits, a second defence behind which a first one hides, and the file driver with
its descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.mutations import Mutation


@dataclass(frozen=True)
class Planted:
    """A bug, and one test that fails with it (and passes without it, in its own tier)."""

    mutation: Mutation
    test: str


def _in(module: str, name: str, bug: str, piece: str, replacement: str, test: str) -> Planted:
    return Planted(Mutation(name, bug, f"holdfast.{module}", piece, replacement), f"tests/{test}")


BUGS = (
    # --- what the review planted ---
    _in(
        "supervision.keeper",
        "membership-not-asked",
        "a lost lease is shown as joined until the event loop hears of it",
        'return member if member.may_write() else Absent("its lease has just been lost")',
        "return member",
        "unit/supervision/test_keeper_lives.py"
        "::test_a_lease_that_has_failed_is_no_membership_although_the_event_loop_has_not_heard_of_it",
    ),
    _in(
        "protocol.host_status",
        "unchanged-from-begin",
        "a record counts as unchanged from the begin of the look that first showed it",
        "unchanged_since=now,",
        "unchanged_since=begun_at,",
        "unit/protocol/test_host_status.py::test_a_change_counts_from_the_end_of_the_look_that_showed_it",
    ),
    _in(
        "protocol.owner_test",
        "own-io-timeout-for-others",
        "an owner's dead bound is made of our io_timeout",
        "dead_s = member.timing.of_host(max(record.io_timeout_s, watch.io_timeout_s)).dead_s",
        "dead_s = member.timing.dead_s",
        "unit/protocol/test_owner_bounds.py"
        "::test_an_owner_with_a_greater_io_timeout_is_waited_for_by_its_own_bound",
    ),
    _in(
        "backends.file",
        "removed-whatever-the-path",
        "a lock file is unlinked although its path names another holder's by now",
        "if backend.files.same_file(fd, self.path) and (failed := backend.files.remove(self.path)):",
        "if failed := backend.files.remove(self.path):",
        "contract/test_backends.py::test_lock_file_of_another_holder_stays_when_the_path_names_it_by_now",
    ),
    _in(
        "supervision.keeper",
        "leaves-beside-writes",
        "a lockspace is left while writes to its leases are in flight",
        "        if lease_write():\n",
        "        if False:\n",
        "unit/supervision/test_keeper_lives.py"
        "::test_a_lockspace_is_not_left_while_a_write_to_a_lease_may_still_land",
    ),
    # --- bounds that are off by less than one read ---
    _in(
        "protocol.owner_test",
        "bound-passed-during-the-read",
        "an owner is taken over by a read that began before its dead bound and ended after it",
        "        looked_at = clock.now()\n        record = await member.lockspace.read_record(owner, member.io_timeout_s)\n",
        "        record = await member.lockspace.read_record(owner, member.io_timeout_s)\n        looked_at = clock.now()\n",
        "unit/protocol/test_owner_bounds.py"
        "::test_an_owner_is_taken_over_only_by_a_read_that_began_after_its_bound",
    ),
    # --- hosts with different io_timeouts ---
    _in(
        "protocol.delta_lease",
        "own-io-timeout-for-claims",
        "a held host id is claimed after the dead bound of our own io_timeout",
        "dead_s = claim.timing.of_host(first.io_timeout_s).dead_s",
        "dead_s = claim.timing.dead_s",
        "unit/protocol/test_delta_lease.py"
        "::test_a_host_id_of_a_silent_host_with_a_greater_io_timeout_is_claimed_after_its_own_bound",
    ),
    # --- what a restart inherits ---
    _in(
        "system.watchdog",
        "inherited-timeout-kept",
        "a watchdog that an earlier program armed keeps that program's timeout",
        "self._shortened = fd is not None",
        "self._shortened = False",
        "unit/system_disk/test_watchdog.py"
        "::test_a_device_that_an_earlier_program_armed_gets_our_timeout_before_it_is_pinged",
    ),
    _in(
        "protocol.delta_lease",
        "restart-counts-as-renewal",
        "a term that a restart goes on with is as young as the restart until its first renewal",
        "Instant(float(record.timestamp)), certain=False)",
        "clock.now(), certain=False)",
        "unit/protocol/test_delta_lease.py"
        "::test_a_term_that_a_restart_goes_on_with_is_as_old_as_its_record_until_it_is_renewed",
    ),
    # --- one defence behind another ---
    _in(
        "protocol.paxos_release",
        "freed-without-asking-again",
        "a leader is freed although the lease on the host id failed since the block was written",
        "    if not member.may_write():\n        return LockspaceLost()\n    failed = await area.write_leader(free,",
        "    failed = await area.write_leader(free,",
        "unit/protocol/test_owner_bounds.py"
        "::test_a_leader_is_not_freed_when_the_lease_on_the_host_id_fails_between_read_and_write",
    ),
    # --- the file driver and its descriptors ---
    _in(
        "backends.file",
        "released-by-closing-alone",
        "a released lock lives on in a copy of its descriptor",
        "for let_go in (backend.files.unlock, backend.files.close):",
        "for let_go in (backend.files.close,):",
        "contract/test_backends.py"
        "::test_released_lock_is_free_although_a_copy_of_its_descriptor_is_still_open",
    ),
    # --- leases: who holds, and a log that nobody reads ---
    _in(
        "protocol.holders",
        "given-up-by-its-own-leader",
        "a lease counts as free between a release's two writes (who said so until it had one rule)",
        "    if gives_up and needs_owner_block(leader):\n",
        "    if gives_up:\n",
        "contract/test_who_holds.py::test_the_callers_agree_on_every_image",
    ),
    _in(
        "system.open_files",
        "silence-is-closed",
        "a descriptor on storage that does not answer counts as no use of the disk",
        "        if key is None:\n            self._unclear.add(pid)\n        elif",
        "        if",
        "contract/test_open_files.py::test_disk_on_storage_that_hangs_counts_as_used_by_who_may_have_it_open",
    ),
    # --- clients and other users ---
    _in(
        "frontends.varlink_connection",
        "message-without-bound",
        "a message of the control socket may be as long as the client likes",
        "if end > MESSAGE_BYTES_MAX or (end < 0 and len(self._buffer) > MESSAGE_BYTES_MAX):",
        "if False:",
        "daemon/test_abuse.py::test_message_without_an_end_is_refused_at_its_bound_and_not_read_on",
    ),
    _in(
        "frontends.varlink_connection",
        "reads-on-while-unread",
        "requests of a client that doesn't read its replies are read on",
        "if self._out or (self._call is not None and self._buffer):",
        "if self._call is not None and self._buffer:",
        "daemon/test_abuse.py::test_client_that_never_reads_is_not_served_on",
    ),
    _in(
        "frontends.control",
        "places-for-one",
        "one user may have all places of the control socket",
        "if self._taken[uid] >= self._user_max:",
        "if False:",
        "daemon/test_abuse.py::test_one_user_can_not_take_the_places_of_others",
    ),
    _in(
        "system.peer_rights",
        "opened-as-root",
        "a disk is opened with the daemon's rights for a user who asks for it",
        "    _libc.setfsuid(rights.uid)\n",
        "",
        "daemon/test_user_rights.py::test_user_is_refused_what_only_root_may_open",
    ),
    _in(
        "system.checked_open",
        "opened-by-its-name-again",
        "what was examined and what is opened may be two things",
        'os.open(f"/proc/self/fd/{pin}", access',
        "os.open(path, access",
        "contract/test_checked_open.py"
        "::test_name_that_is_exchanged_meanwhile_leads_to_a_file_or_to_a_refusal",
    ),
    _in(
        "manager.lock_manager",
        "another-disk-than-the-checked-one",
        "the path may lead to another disk by the time the lock of one that the user may open is taken",
        "if want.only is not None and want.only not in keys:",
        "if False:",
        "unit/manager/test_asked_by_users.py"
        "::test_path_that_leads_to_another_file_by_now_is_refused_and_nothing_is_locked",
    ),
    _in(
        "backends.paxos",
        "leases-where-everybody-writes",
        "a lease is taken in a directory where everybody may remove it",
        "if untrusted := await self._untrusted():",
        'if untrusted := "":',
        "daemon/test_directories.py"
        "::test_new_leases_are_refused_where_everybody_may_write_and_held_ones_stay",
    ),
    _in(
        "system.log_lines",
        "names-as-they-are",
        "a name with a line feed in it forges a line of the log",
        'text = printable(f"{record.levelname} {record.getMessage()}")',
        'text = f"{record.levelname} {record.getMessage()}"',
        "daemon/test_abuse.py::test_names_of_clients_forge_no_line_of_the_log",
    ),
)
