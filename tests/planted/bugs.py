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
    _in(
        "protocol.paxos_acquire",
        "former-sharer-written-over",
        "a shared hold that another host has under this host's id is written over",
        "        if term >= member.generation or member.has_ended((member.host_id, term)):",
        "        if True:",
        "unit/protocol/test_former_user.py"
        "::test_lease_of_an_older_generation_is_not_taken_with_the_host_id[exclusive-shared]",
    ),
    _in(
        "protocol.delta_lease",
        "proof-forgotten-by-renewal",
        "a renewal forgets what the claimed record proved, so own leases wait for the dead bound",
        "    renewed = Held(claim, record, begun_at, ended_generation=held.ended_generation)",
        "    renewed = Held(claim, record, begun_at)",
        "unit/protocol/test_former_user.py::test_proof_is_kept_by_renewals",
    ),
    _in(
        "supervision.host_identity",
        "damaged-proof-believed",
        "a damaged copy of an incarnation proves generations over that are not",
        "    if found.ended_check != _ended_check(raw, found.ended_generation):",
        "    if False:",
        "unit/protocol/test_former_user.py::test_damaged_proof_counts_as_none",
    ),
    _in(
        "protocol.host_status",
        "just-landed-is-not-disputed",
        "a free record that another host has just written over a member's ends the member's generation",
        "view.disputed and not _is_of_another_host(fresh, view):",
        "view.disputed:",
        "unit/protocol/test_host_status.py"
        "::test_free_record_of_another_name_than_the_table_has_seen_is_no_proof",
    ),
    _in(
        "protocol.host_status",
        "bound-of-the-last-name",
        "a generation that sanlock has shown too counts by the name that it shows last",
        "self._timing.of_host(seen.io_timeout_s, *seen.names)",
        "self._timing.of_host(seen.io_timeout_s, *seen.names[-1:])",
        "unit/protocol/test_host_status.py::test_longer_bound_counts_if_two_programs_have_shown_one_term",
    ),
    # --- beside sanlock ---
    _in(
        "protocol.timing",
        "own-fire-timeout-for-sanlock",
        "a host of sanlock's, whose watchdog fires after 60 s, is dead after our own shorter fire timeout",
        "        fire_s = max(self.fire_timeout_s, FIRE_TIMEOUT_DEFAULT_S) if of_others else self.fire_timeout_s\n",
        "        fire_s = self.fire_timeout_s\n",
        "unit/protocol/test_host_status.py"
        "::test_watchdog_of_a_host_that_is_not_holdfasts_fires_after_60_s_whatever_ours_does",
    ),
    # --- two hosts with one generation ---
    _in(
        "protocol.host_status",
        "disputed-term-given-back",
        "a free record ends a generation that another host has shown, whose VMs may run",
        "if given_back and not view.disputed and",
        "if given_back and",
        "unit/protocol/test_host_status.py"
        "::test_term_that_two_hosts_have_shown_is_not_over_when_one_of_them_gives_it_back",
    ),
    _in(
        "protocol.takeover",
        "word-about-one-of-two",
        "a word about one of two hosts that have shown a generation frees the leases of the other",
        "    if view.disputed:\n        return timing.dead_s\n",
        "",
        "unit/protocol/test_attestation.py"
        "::test_word_about_one_of_two_hosts_that_have_shown_a_term_waits_for_the_dead_bound_of_the_other",
    ),
    _in(
        "lease_admin.garbage_collection",
        "one-absent-lockspace-keeps-all",
        "gc frees nothing anywhere while this host is not in one of its lockspaces",
        "        if len(failed) == len(backends):",
        "        if failed:",
        "daemon/test_leases.py::test_collection_goes_through_the_lockspaces_that_can_be_asked",
    ),
    # --- many leases ---
    _in(
        "backends.paxos.backend",
        "all-adopted-at-once",
        "a restart takes up more leases at once than its storage has room for, and calls the rest lost",
        "ADOPTIONS_MAX = 64",
        "ADOPTIONS_MAX = 10_000",
        "daemon/test_many_leases.py::test_leases_are_held_again_after_a_kill_and_none_is_called_lost[1200]",
    ),
    # --- hosts that look alike ---
    _in(
        "supervision.lockspace_supervisor",
        "namesake-tried-for-ever",
        "a host tries the host id of its namesake, or clone, for ever",
        "self._others.add(seen)",
        "pass",
        "unit/supervision/test_host_ids.py::test_two_hosts_of_one_name_get_and_keep_ids_of_their_own",
    ),
    _in(
        "supervision.host_identity",
        "cut-name-is-over",
        "an incarnation whose name an earlier version cut is taken for over while its VMs may run",
        "may_be_of_node(record.host_name.text, self.identity.node) and 0 <= age_s <= timing.dead_s",
        "is_of_node(record.host_name.text, self.identity.node) and 0 <= age_s <= timing.dead_s",
        "unit/supervision/test_host_identity.py"
        "::test_record_that_an_earlier_version_cut_is_not_resumed_and_not_over_either",
    ),
    _in(
        "supervision.host_records",
        "fire-timeouts-differ",
        "a host joins although another one says another fire timeout",
        "found.append(each)",
        "pass",
        "unit/supervision/test_host_record_files.py"
        "::test_host_with_another_fire_timeout_is_kept_out_and_the_other_one_is_named",
    ),
    _in(
        "supervision.host_records",
        "stale-record-believed",
        "a record of another term of the host keeps a host out for ever",
        "isinstance(record, DeltaLease) and each.is_about(record) and not record.is_free",
        "isinstance(record, DeltaLease) and not record.is_free",
        "unit/supervision/test_host_record_files.py"
        "::test_record_of_a_host_that_left_or_of_another_term_keeps_nobody_out",
    ),
    _in(
        "lease_admin.host_meant",
        "both-namesakes-fenced",
        "an order about a name that two hosts have is about both",
        "if each.lockspace == other.lockspace:",
        "if False:",
        "unit/manager/test_host_meant.py::test_name_that_two_hosts_have_is_refused_with_both_and_a_host_id_is_not",
    ),
    # --- what the review planted ---
    _in(
        "supervision.lockspace_supervisor",
        "membership-not-asked",
        "a lost lease is shown as joined until the event loop hears of it",
        'return member if member.may_write() else NotAMember("its lease has just been lost")',
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
        "protocol.takeover",
        "own-io-timeout-for-others",
        "an owner's dead bound is made of our io_timeout",
        "dead_s = _bounds(member.timing, shown_s, record, view).dead_s",
        "dead_s = member.timing.dead_s",
        "unit/protocol/test_owner_bounds.py"
        "::test_an_owner_with_a_greater_io_timeout_is_waited_for_by_its_own_bound",
    ),
    _in(
        "backends.file.backend",
        "removed-whatever-the-path",
        "a lock file is unlinked although its path names another holder's by now",
        "if backend.files.same_file(fd, self.path) and (failed := backend.files.remove(self.path)):",
        "if failed := backend.files.remove(self.path):",
        "contract/test_backends.py::test_lock_file_of_another_holder_stays_when_the_path_names_it_by_now",
    ),
    _in(
        "supervision.lockspace_supervisor",
        "leaves-beside-writes",
        "a lockspace is left while writes to its leases are in flight",
        "        if lease_write():\n",
        "        if False:\n",
        "unit/supervision/test_keeper_lives.py"
        "::test_a_lockspace_is_not_left_while_a_write_to_a_lease_may_still_land",
    ),
    # --- bounds that are off by less than one read ---
    _in(
        "protocol.takeover",
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
        "dead_s = claim.timing.of_host(first.io_timeout_s, first.host_name.text).dead_s",
        "dead_s = claim.timing.dead_s",
        "unit/protocol/test_delta_lease.py"
        "::test_a_host_id_of_a_silent_host_with_a_greater_io_timeout_is_claimed_after_its_own_bound",
    ),
    # --- what a restart inherits ---
    _in(
        "system.watchdog.device",
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
        "        Instant(float(record.timestamp)),",
        "        clock.now(),",
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
        "backends.file.backend",
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
        "system.files.open_files",
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
        "frontends.varlink",
        "places-for-one",
        "one user may have all places of the control socket",
        "if self._taken[uid] >= self._user_max:",
        "if False:",
        "daemon/test_abuse.py::test_one_user_can_not_take_the_places_of_others",
    ),
    _in(
        "system.host.peer_rights",
        "opened-as-root",
        "a disk is opened with the daemon's rights for a user who asks for it",
        "    _libc.setfsuid(rights.uid)\n",
        "",
        "daemon/test_user_rights.py::test_user_is_refused_what_only_root_may_open",
    ),
    _in(
        "system.files.checked_open",
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
        "backends.paxos.backend",
        "leases-where-everybody-writes",
        "a lease is taken in a directory where everybody may remove it",
        "if untrusted := await self._untrusted():",
        'if untrusted := "":',
        "daemon/test_directories.py"
        "::test_new_leases_are_refused_where_everybody_may_write_and_held_ones_stay",
    ),
    _in(
        "system.logs.log_lines",
        "names-as-they-are",
        "a name with a line feed in it forges a line of the log",
        'text = printable(f"{record.levelname} {record.getMessage()}")',
        'text = f"{record.levelname} {record.getMessage()}"',
        "daemon/test_abuse.py::test_names_of_clients_forge_no_line_of_the_log",
    ),
    # --- found by a seed of the simulator, and by no present one within reach ---
    _in(
        "lease_admin.garbage_collection",
        "left-behind-tried-once",
        "what a killed daemon left is given up when storage fails once (found by seed 700426)",
        "            if names != []:\n                await",
        "            if names != []:\n                return\n                await",
        "contract/test_lease_removal.py"
        "::test_what_a_killed_daemon_left_behind_is_freed_although_storage_fails_meanwhile",
    ),
    # --- versions and flags of sanlock 4 and 5, which the simulator does not play ---
    _in(
        "ondisk.record_layout",
        "newer-is-unreadable",
        "a record of a newer version is one that may be made again by force",
        "reason = Reason.NEWER if major_of(found_version) >= known.majors.stop else Reason.VERSION",
        "reason = Reason.VERSION",
        "unit/ondisk/test_versions.py"
        "::test_a_greater_major_version_and_unknown_flags_are_newer_and_never_made_again",
    ),
    _in(
        "ondisk.leader",
        "newest-version-for-all",
        "a new lease is of a version that hosts of the lockspace can't read",
        "return VERSION_7 if major_of(delta_version) >= _MAJOR_WITH_7 else VERSION",
        "return VERSION_7",
        "contract/test_lease_versions.py::test_new_lease_has_the_version_of_its_lockspaces_family",
    ),
    _in(
        "protocol.paxos_acquire",
        "version-lost-on-commit",
        "the winner of a lease writes its leader in our own version",
        "            lver=lver,\n            owner_id=value.owner_id,\n",
        "            version=0x00060004,\n            lver=lver,\n            owner_id=value.owner_id,\n",
        "contract/test_lease_versions.py"
        "::test_version_flags_and_unused_fields_of_a_lease_outlive_every_write",
    ),
    _in(
        "protocol.delta_lease",
        "flags-lost-on-claim",
        "a claim drops the flags of a record",
        "        justified.without_mark(),\n",
        "        replace(justified.without_mark(), flags=-1),\n",
        "unit/protocol/test_no_timeout.py"
        "::test_host_id_of_its_own_name_or_given_back_is_claimed_and_keeps_the_flag",
    ),
    _in(
        "protocol.delta_lease",
        "field-at-160-lost",
        "a claim forgets who marked an earlier term",
        "        justified.without_mark(),\n",
        "        replace(justified.without_mark(), unused=(0, 0)),\n",
        "unit/protocol/test_dead_mark.py"
        "::test_marked_id_is_claimed_after_the_large_delay_and_the_claim_takes_the_mark_away",
    ),
    _in(
        "ondisk.delta",
        "no-timeout-forgotten",
        "hosts whose leases never expire are taken over by time",
        "return self._has(FLAG_NO_TIMEOUT)",
        "return False",
        "unit/protocol/test_no_timeout.py"
        "::test_owner_that_was_silent_for_ever_keeps_its_lease_and_nobody_waits_for_it",
    ),
    _in(
        "protocol.host_status",
        "no-timeout-dies-in-the-table",
        "the table calls a host dead whose leases never expire",
        "return not seen.no_timeout and seen",
        "return seen",
        "unit/protocol/test_no_timeout.py::test_host_that_is_silent_for_ever_fails_and_never_is_dead",
    ),
    _in(
        "protocol.host_status",
        "no-timeout-not-kept",
        "a flag that somebody takes from all records lets present owners expire",
        "return record.is_no_timeout or (same_term and before is not None and before.no_timeout)",
        "return record.is_no_timeout",
        "unit/protocol/test_no_timeout.py::test_flag_that_vanishes_from_a_record_still_counts_for_that_term",
    ),
    _in(
        "protocol.host_status",
        "no-timeout-succeeded-by-time",
        "a newer term ends an older one that never expires",
        "if fresh.is_no_timeout or view.no_timeout or any(seen.no_timeout for seen in own):",
        "if False:",
        "unit/protocol/test_no_timeout.py"
        "::test_newer_term_proves_nothing_however_long_it_is_seen_unless_the_older_one_was_seen_free",
    ),
    _in(
        "protocol.delta_lease",
        "no-timeout-id-claimed",
        "a host id that never expires is claimed after the dead bound",
        "(first.is_no_timeout and not first.is_marked_dead)",
        "False",
        "unit/protocol/test_no_timeout.py::test_host_id_of_a_silent_host_is_never_claimed_by_another_name",
    ),
    _in(
        "protocol.host_status",
        "mark-of-any-generation",
        "a mark of another generation is believed",
        "    if fresh.generation > term:\n        return any(",
        "    if fresh.is_marked_dead:\n        return True\n    if fresh.generation > term:\n        return any(",
        "unit/protocol/test_dead_mark.py::test_mark_is_about_the_generation_in_its_record_alone",
    ),
    _in(
        "protocol.host_status",
        "mark-that-is-gone",
        "a mark that the latest look showed counts after the host has renewed over it",
        "        and view.marked_by is None  # by time, not by a mark that does not stand any more\n",
        "",
        "unit/protocol/test_dead_mark.py"
        "::test_mark_that_is_gone_from_the_record_proves_nothing_although_the_last_look_showed_it",
    ),
    _in(
        "protocol.delta_lease",
        "own-mark-renewed-away",
        "a host that was marked as dead renews over the mark when a write of its own was in doubt",
        "    if found.is_marked_dead and _is_about(found, held):",
        "    if False:",
        "unit/protocol/test_dead_mark.py"
        "::test_marked_host_ends_its_term_at_its_next_renewal_and_leaves_the_mark",
    ),
    _in(
        "protocol.delta_lease",
        "doubt-excuses-anything",
        "after a failed write a renewal goes over flags that somebody has changed",
        "    if found != _as_expected(held, found):",
        "    if held.certain and found != held.record:",
        "unit/protocol/test_dead_mark.py"
        "::test_flags_that_others_change_under_us_end_the_term_even_after_a_failed_write",
    ),
    _in(
        "protocol.delta_lease",
        "marked-id-at-once",
        "the id of a host that was marked as dead is claimed at once under its own name",
        "(record.host_name.says(claim.host_name) and not record.is_marked_dead)",
        "record.host_name.says(claim.host_name)",
        "unit/protocol/test_dead_mark.py"
        "::test_marked_id_is_claimed_after_the_large_delay_and_the_claim_takes_the_mark_away",
    ),
    _in(
        "protocol.dead_mark",
        "any-generation-is-marked",
        "a host that came back is marked by an order about its earlier term",
        "    if found.generation != generation:",
        "    if found.generation < 0:",
        "unit/protocol/test_dead_mark.py::test_nothing_is_marked_that_looks_have_not_shown_so",
    ),
    _in(
        "protocol.dead_mark",
        "mark-not-read-again",
        "a mark that a living host has renewed away is reported as standing",
        "    if again != marked:",
        "    if False:",
        "unit/protocol/test_dead_mark.py::test_mark_that_does_not_stand_afterwards_is_reported_as_none",
    ),
    _in(
        "ondisk.leader",
        "caw-lease-used",
        "a lease that is kept by COMPARE AND WRITE is won by a ballot",
        "        return self.write_fault()\n\n    def write_fault",
        "        return None\n\n    def write_fault",
        "contract/test_lease_caw.py::test_lease_area_of_the_protocol_alone_refuses_it_too",
    ),
    _in(
        "protocol.lockspace_area",
        "caw-lockspace-joined",
        "a lockspace that is kept by COMPARE AND WRITE is joined",
        "first.verify(space_name, 1) or first.write_fault()",
        "first.verify(space_name, 1)",
        "contract/test_lease_caw.py::test_lockspace_is_not_joined",
    ),
    _in(
        "backends.paxos.maintenance",
        "lvb-taken-out",
        "gc removes a lease that says which VM owns the disk",
        "            if belongs := await self._kept_by_lvb(found, member):\n",
        '            if belongs := "":\n',
        "contract/test_lease_lvb.py"
        "::test_lease_that_keeps_something_there_is_not_taken_out_and_its_uses_leave_it_alone",
    ),
    _in(
        "protocol.resource_index",
        "lvb-inherited",
        "a new lease gets the place, and the owner, of a removed one",
        "            if lvb:\n                continue\n",
        "",
        "contract/test_lease_lvb.py::test_place_that_keeps_something_of_another_disk_gets_no_new_lease",
    ),
    # --- migrations ---
    _in(
        "manager.departures",
        "release-lets-go",
        "a release for a migration lets go at once",
        "if not (holds_back(domain) or (departs and domain is None)):",
        "if domain is not None or not departs:",
        "unit/manager/test_departures.py::test_lock_released_for_a_migration_is_held_until_the_guest_has_left",
    ),
    _in(
        "manager.migration_roles",
        "unreadable-is-gone",
        "a status file that can't be read lets go of what departs",
        "    if domain is None:\n        return Outcome.OPEN",
        "    if domain is None:\n        return Outcome.GONE",
        "unit/manager/test_departures.py::test_file_that_can_not_be_read_holds_the_lock_until_qemu_ends",
    ),
    _in(
        "manager.migration_roles",
        "cancelled-is-gone",
        "a migration that is being cancelled counts as one that went well",
        '"perform3", "confirm3_cancelled"))',
        '"perform3"))',
        "unit/manager/test_departures.py::test_guest_that_runs_on_has_its_lock_as_before",
    ),
    _in(
        "manager.departures",
        "departs-for-ever",
        "a guest that runs on keeps a lock that a later migration's words let go",
        "            self._book.stayed(owner, lock, resource)\n",
        "            pass\n",
        "unit/manager/test_departures.py::test_guest_that_runs_on_has_its_lock_as_before",
    ),
    _in(
        "manager.departures",
        "news-unheard",
        "news of a status file is not acted on",
        "stop: Callable[[], None] = news.watch(self.read) if isinstance(news, WatchedStatus) else _no_news",
        "stop: Callable[[], None] = _no_news",
        "unit/manager/test_departures.py::test_news_is_acted_on_without_a_wait",
    ),
    _in(
        "manager.lock_registry",
        "acquired-and-departing",
        "what libvirt acquires again is let go when its old migration ends",
        "        lock.departing.discard((owner.id, want.resource))\n",
        "",
        "unit/manager/test_departures.py::test_acquire_by_the_same_owner_ends_it",
    ),
    _in(
        "manager.lock_registry",
        "departing-not-rewritten",
        "a journal that is rewritten does not say what departs",
        "            lines.extend(departing_line(lock, *claim) for claim in sorted(lock.departing))\n",
        "",
        "unit/manager/test_departures.py::test_journal_that_is_rewritten_has_what_departs",
    ),
    _in(
        "manager.adoption",
        "target-is-a-stranger",
        "a daemon that was away takes the target for a stranger, and stops the source",
        "if over or (not regained and manager.departures.have_left(lock)):",
        "if over:",
        "unit/manager/test_departures.py::test_target_that_takes_the_lock_while_we_try_is_no_stranger",
    ),
    _in(
        "manager.departures",
        "unheard-release-forgotten",
        "a release that no daemon heard is never made up for",
        "            self._depart_if_it_stands(owner)\n        self._claims =",
        "            pass\n        self._claims =",
        "unit/manager/test_departures.py::test_next_daemon_finds_out_that_libvirt_released_while_nobody_listened",
    ),
    _in(
        "manager.departures",
        "lent-for-ever",
        "a lock that was lent is not taken back",
        "        if seen is Outcome.STAYED and not is_ours:\n",
        "        if False:\n",
        "unit/manager/test_departures.py::test_lent_lock_is_let_go_at_once_and_taken_back",
    ),
    _in(
        "manager.arrivals",
        "asks-once",
        "a target does not wait for its source",
        "if not self._wait_s or owner.gone or not self._arrives(owner):",
        "if True:",
        "unit/manager/test_departures.py::test_target_waits_for_a_source_that_is_about_to_let_go",
    ),
    # --- what operators restore, and what a start reads ---
    _in(
        "manager.lost_locks",
        "reread-once",
        "a lease is given up by one read, whatever was done with it meanwhile",
        'if not why or lock.held is not held or not lock.claims:\n            return ""',
        'if lock.held is not held or not lock.claims:\n            return ""',
        "unit/manager/test_rereading.py::test_change_while_it_was_read_counts_as_no_loss",
    ),
    _in(
        "backends.paxos.held_lease",
        "late-leader-takes-away",
        "another host's late leader takes a held lease away",
        "if leader.lver > lease.lver or (leader.lver == lease.lver and not self.member.owns(leader)):",
        "if not self.member.owns(leader):",
        "contract/test_paxos_backend.py::test_late_leader_of_another_host_takes_no_lease_away",
    ),
    _in(
        "manager.adoption",
        "note-not-read",
        "the lock of an owner that has ended is released whatever its note says",
        "kept = regained and await manager.unknown.keep_for_noted(lock, gone)",
        "kept = False",
        "unit/manager/test_unknown_locks.py"
        "::test_older_journal_does_not_free_what_another_process_has_taken_since",
    ),
    _in(
        "manager.owners",
        "numbers-given-again",
        "an owner gets a number that the journal has for another one",
        "self._last_id = max(self._last_id, *numbers, 0)",
        "pass",
        "unit/manager/test_unknown_locks.py"
        "::test_older_journal_does_not_free_what_another_process_has_taken_since",
    ),
    _in(
        "lease_admin.lockspace_loss",
        "restart-owed-for-ever",
        "a domain that was started again is started by each later daemon too",
        "        self._manager.book.restart_is_tried(lockspace, uuid)\n        kind",
        "        kind",
        "unit/manager/test_lockspace_loss.py::test_restart_is_owed_over_a_restart_of_the_daemon",
    ),
    _in(
        "supervision.lockspace_entry",
        "page-cache-will-do",
        "storage that refuses O_DIRECT is joined like any other",
        "if not (disk.facts.direct or self._spec.page_cache):",
        "if False:",
        "daemon/test_restored_areas.py::test_storage_that_refuses_o_direct_is_joined_by_an_operators_word_only",
    ),
    _in(
        "supervision.renewal",
        "grace-for-the-taken",
        "owners get their grace although another host has the id",
        "self.taken = not found.is_free",
        "self.taken = False",
        "daemon/test_restored_areas.py::test_owners_get_no_grace_when_another_host_has_the_id",
    ),
    _in(
        "manager.hashed_names",
        "lease-of-the-hash",
        "a disk that libvirt names by a hash has a lease that no other host knows",
        "if self._routing.route(want.resource, path).backend.capabilities.fenced:\n            return",
        "if False:\n            return",
        "unit/manager/test_hashed_names.py::test_lease_is_that_of_the_path_and_goes_by_the_name_that_libvirt_knows",
    ),
    _in(
        "manager.moved_disks",
        "moved-is-not-guarded",
        "a running VM whose rule came to name leases is met by nobody who goes by the new rule",
        "            done = await self._guarded(moved) and done",
        "            pass",
        "daemon/test_moved_disks.py"
        "::test_no_host_is_granted_the_disk_by_the_new_rule_while_the_vm_has_the_old_lock",
    ),
    _in(
        "manager.moved_disks",
        "lease-outlives-its-lock",
        "the lease that was taken along stays when the VM gives its lock up",
        "            self._manager.goes_with = self.goes_with",
        "            pass",
        "daemon/test_moved_disks.py"
        "::test_lease_is_given_up_with_the_lock_and_the_vm_that_asks_again_has_the_lease_alone",
    ),
    _in(
        "manager.unknown_locks",
        "adopted-is-not-guarded",
        "a lock that a VM adopts after the start is not guarded by the lease of a new rule",
        "it is %s's now\", resource, owner, asker)\n            self.on_known(lock)",
        "it is %s's now\", resource, owner, asker)",
        "daemon/test_moved_disks.py"
        "::test_lock_that_is_attributed_only_when_its_vm_asks_again_is_guarded_from_then_on",
    ),
    _in(
        "manager.lock_manager",
        "adopted-under-another-name",
        "the unknown lock of a path is adopted under the name of another path, or of what the disk is",
        "is_of_disk_only=not its_own):",
        "is_of_disk_only=False):",
        "unit/manager/test_unknown_locks.py::test_unknown_lock_of_another_path_to_the_disk_keeps_its_name",
    ),
    _in(
        "backends.file.backend",
        "lock-directory-by-path-only",
        "a lock directory that other hosts see has no lock for what a disk is",
        "        return await self._known.of(resource.name)",
        "        return None",
        "daemon/test_identity.py::test_second_path_is_refused_in_a_lock_directory_also_over_a_kill",
    ),
    _in(
        "backends.file.backend",
        "identity-file-not-recognized",
        "a lock file of what a disk is is found without the journal, and nobody knows what it is for",
        "        if strong and indirect_name(str(identity)) == name:",
        "        if False:",
        "daemon/test_identity.py::test_both_locks_of_a_directory_are_found_without_the_journal",
    ),
    _in(
        "manager.identity_locks",
        "unread-identity-stays",
        "the identity of a path that is released before its identity is known stays held",
        "            self._parted.add((owner.id, path))  # the lock was found without the keys of its disk\n",
        "",
        "daemon/test_identity.py::test_identity_is_released_with_its_path_after_the_journal_was_lost",
    ),
    _in(
        "manager.lost_locks",
        "regained-is-not-guarded",
        "a lock that is held again after the start is not guarded by the lease of a new rule",
        "            self.on_regained(lock)",
        "            pass",
        "daemon/test_moved_disks.py::test_lock_that_is_held_again_only_later_is_guarded_from_then_on",
    ),
    _in(
        "lease_admin.garbage_collection",
        "two-locks-of-one-name",
        "a lease that was taken beside a file lock gets its name when the journal is lost",
        "if self._manager.table.named(resource) is not None:",
        "if False:",
        "daemon/test_moved_disks.py::test_both_locks_are_found_and_go_together_when_the_journal_is_lost",
    ),
    _in(
        "backends.file.backend",
        "found-under-its-hash",
        "a lock file that is found without a journal is not the disk's that its record names",
        "if noted.disk and indirect_name(noted.disk) == name:",
        "if False:",
        "daemon/test_moved_disks.py::test_both_locks_are_found_and_go_together_when_the_journal_is_lost",
    ),
    _in(
        "manager.moved_disks",
        "hashed-is-not-guarded",
        "a disk that libvirt names by a hash is not guarded by the lease of a new rule",
        "if leases and lock.create and lock.backend not in leases:",
        "if False:",
        "daemon/test_moved_disks.py"
        "::test_disk_that_libvirt_names_by_a_hash_is_guarded_by_the_lease_of_its_path",
    ),
    _in(
        "daemon.build",
        "local-leases-will-do",
        "a VM starts with leases that no other host can see",
        "start_min = Protection.CROSS_HOST if backend.capabilities.fenced and not says else Protection.NONE",
        "start_min = Protection.NONE",
        "daemon/test_leases.py::test_leases_on_a_file_system_of_this_host_alone_start_no_vm",
    ),
    _in(
        "manager.routing",
        "place-by-the-paths-rule",
        "a disk in a lockspace has one lock file where its path is known and another one where it is not",
        "return found if place.backend.capabilities.fenced else found._replace(backend=place.backend)",
        "return found",
        "unit/manager/test_hashed_names.py"
        "::test_place_of_a_lock_without_a_lease_does_not_depend_on_whether_the_path_is_known",
    ),
    _in(
        "manager.hashed_names",
        "unknown-path-is-granted",
        "a hash whose path is not known gets a lease of its own",
        "if not self._must_know:",
        "if True:",
        "unit/manager/test_hashed_names.py::test_disk_whose_path_is_not_known_is_refused",
    ),
    _in(
        "cli.offline.lockspace_before",
        "init-does-not-watch",
        "a lockspace is made again under a host that renews there",
        "if record != before.get(host_id):",
        "if False:",
        "daemon/test_restored_areas.py::test_lockspace_in_use_is_not_made_again",
    ),
    _in(
        "supervision.lockspace_use",
        "refused-record-left",
        "two daemons that are recorded in a lockspace keep each other out although no VM depends on one of them",
        "if users_gone and self._is_recorded() and not self._lock.held:",
        "if False:",
        "unit/supervision/test_lockspace_use.py"
        "::test_refused_daemon_that_no_vm_depends_on_does_not_keep_the_other_one_out",
    ),
    _in(
        "supervision.lockspace_use",
        "refused-record-removed-under-vms",
        "a refused daemon forgets an incarnation that its VMs may depend on",
        "if users_gone and self._lock.held and self._stuck(self._dead) is None:",
        "if self._lock.held and self._stuck(self._dead) is None:",
        "unit/supervision/test_lockspace_use.py"
        "::test_refused_daemon_stays_recorded_as_long_as_vms_may_depend_on_it",
    ),
    _in(
        "supervision.lockspace_use",
        "refused-record-removed-beside-late-write",
        "a refused daemon's record goes while a dead one of it may write",
        "if users_gone and self._lock.held and self._stuck(self._dead) is None:",
        "if users_gone and self._lock.held:",
        "unit/supervision/test_lockspace_use.py"
        "::test_refused_daemon_stays_recorded_while_a_dead_one_of_it_may_write",
    ),
    _in(
        "protocol.delta_lease",
        "chosen-id-taken-from-another-host",
        "a host that chose an id for its own record takes it from the host that was restored there",
        "if claim.only_of and not first.host_name.says(claim.only_of):",
        "if False:",
        "unit/protocol/test_delta_lease.py"
        "::test_id_that_another_host_has_by_now_is_left_to_it_if_it_was_chosen_for_a_name",
    ),
    _in(
        "supervision.renewal",
        "notified-by-own-io-timeout",
        "a host with a longer io_timeout does not see the bit by which another one asks it to read its requests",
        "timing.of_host(max(theirs_s, timing.io_timeout_s)).notify_s",
        "timing.notify_s",
        "unit/supervision/test_lockspace.py::test_host_that_renews_rarely_is_notified_by_one_that_renews_often",
    ),
    _in(
        "backends.paxos.held_lease",
        "own-lease-broken-after-a-failed-read",
        "after one failed read `lease break` and gc take away a lease of this host that no lock here accounts for",
        "            if not isinstance(seen, Snapshot):\n                return seen  # a second read",
        "            if not isinstance(seen, Snapshot):\n                return await acquire_lease("
        "self.area, self.member, self._ports, mode, attested=attested)  # a second read",
        "contract/test_paxos_backend.py"
        "::test_lease_that_a_killed_daemon_left_is_not_free_after_a_read_that_failed",
    ),
    _in(
        "protocol.paxos_release",
        "release-asks-too-early",
        "a release asks whether it may write, then reads the clock for something else, then writes",
        "    promises = may_promise and not member.beside_others()  # reads the clock: before the question below\n"
        "    if not member.may_write():\n        return LockspaceLost()\n    own = lease.own\n",
        "    if not member.may_write():\n        return LockspaceLost()\n"
        "    promises = may_promise and not member.beside_others()\n    own = lease.own\n",
        "unit/protocol/test_paxos_lease.py::test_release_asks_last_whether_it_may_write",
    ),
    _in(
        "manager.departures",
        "released-before-it-was-found",
        "a lock is held until QEMU ends whose RELEASE came before it was found, if its guest stopped just after",
        "            self._to_stop.add(owner.id)\n",
        "            pass\n",
        "unit/manager/test_departures.py::test_lock_that_is_found_by_its_note_departs_if_its_guest_has_stopped",
    ),
    _in(
        "backends.paxos.breaking",
        "block-of-a-host-that-is-back-written",
        "an order about an older term writes the block of the host that has the id again",
        "            stands = HoldStands((host_id, incarnation))\n            continue\n",
        "            stands = HoldStands((host_id, incarnation))\n",
        "contract/test_lease_flags.py"
        "::test_order_about_an_older_term_does_not_write_the_block_of_a_host_that_is_back",
    ),
    _in(
        "backends.paxos.directory_store",
        "unmounted-directory-is-empty",
        "an empty mount point is taken for a lease directory without leases",
        "            away = await self._away(member)\n        if away is not None:\n",
        "            away = None\n        if False:\n",
        "contract/test_paxos_backend.py::test_directory_that_is_not_mounted_is_not_one_without_leases",
    ),
    # --- one disk under two paths ---
    _in(
        "manager.identity_locks",
        "identity-not-released",
        "the lease of what a disk is stays when its path is released",
        "            return found, identity\n",
        "            return None\n",
        "daemon/test_identity.py::test_owner_with_two_paths_keeps_what_the_disk_is_until_it_has_released_both",
    ),
    _in(
        "manager.identity_locks",
        "identity-released-too-early",
        "the lease of what a disk is goes with the first of two paths of one owner",
        "        if owner.id in lock.claims or known in of_paths.values():\n            return None\n",
        "        if known is not None and (held := table.named(known)) is not None:\n            return held, known\n",
        "daemon/test_identity.py"
        "::test_owner_with_two_paths_keeps_what_the_disk_is_until_it_has_released_both",
    ),
    _in(
        "manager.identity_locks",
        "identity-kept-after-a-refusal",
        "an owner that was refused a disk by its path keeps the lease of what it is",
        "            await self._as_before(owner, second, before)\n            raise\n",
        "            raise\n",
        "daemon/test_identity.py"
        "::test_path_that_is_held_by_its_path_alone_is_refused_and_leaves_its_identity_free",
    ),
    _in(
        "manager.identity_locks",
        "running-machine-forgotten",
        "a machine that ran before its rule said so gets no lease of what its disk is",
        "        if self._begun and self._is_wanted and any(True for _ in self._paths()):\n",
        "        if False:\n",
        "daemon/test_identity.py::test_running_vm_gets_the_second_lease_or_is_left_alone_and_named",
    ),
    _in(
        "system.files.strong_identity",
        "repeated-names-count",
        "a name that a clone keeps counts as what a disk is",
        '    known = kind in ("naa", "eui", "uuid") and dot',
        "    known = dot",
        "unit/test_strong_identity.py::test_names_of_makers_count_and_those_that_repeat_do_not",
    ),
    # --- who holds a disk: evidence to verdict ---
    _in(
        "cli.who.verdict",
        "who-unread-is-free",
        "`holdfast who` calls a disk free though one of its sources could not be read",
        "    if not sources or not _looks_free(e):\n",
        "    if True:\n",
        "unit/test_who_verdict.py::test_source_that_could_not_be_read_leaves_nothing_free",
    ),
    _in(
        "cli.who.verdict",
        "who-one-trial-is-enough",
        "a lock file that is free makes the disk free, though another one could not be tried",
        "    return bool(e.trial) and all(",
        "    return any(",
        "unit/test_who_verdict.py::test_lock_that_could_not_be_tried_is_not_free",
    ),
    _in(
        "cli.who.verdict",
        "who-unreadable-lease-before-holders",
        "a damaged block of a lease hides the owner whose block can be read",
        "    _lease_held,\n    _lease_unreadable,\n",
        "    _lease_unreadable,\n    _lease_held,\n",
        "unit/test_who_verdict.py::test_verdict",
    ),
    _in(
        "cli.who.evidence",
        "who-ended-incarnation-holds",
        "a lease that an incarnation which is over has left behind counts as held",
        "for claim in self.claims if not claim.over)",
        "for claim in self.claims)",
        "unit/test_who_verdict.py::test_verdict",
    ),
    _in(
        "cli.who.gather",
        "who-unsearchable-directory-is-empty",
        "a directory that can't be searched is taken for one without a lock file of the disk",
        "                except (FileNotFoundError, NotADirectoryError):\n                    continue\n",
        "                except OSError:\n                    continue\n",
        "unit/test_who_gather.py::test_directory_that_can_not_be_searched_may_have_a_lock_file",
    ),
    # --- kinds of disks ---
    _in(
        "system.libvirt.domain_disks",
        "volume-forgotten",
        "a disk that is a volume of a storage pool is no kind that libvirt locks",
        '        case "volume":\n',
        '        case "pool":\n',
        "unit/test_domain_disks.py::test_volume_of_a_running_vm_is_the_file_that_libvirt_locks",
    ),
    _in(
        "system.libvirt.domain_disks",
        "network-disk-dropped",
        "a network disk is in no list, as libvirt asks no lock for it",
        'for each in domain.findall("./devices/disk"))',
        'for each in domain.findall("./devices/disk") if each.get("type") != "network")',
        "daemon/test_kinds_of_disks.py::test_vm_with_an_nbd_disk_is_named_by_every_command",
    ),
    _in(
        "system.libvirt.domain_disks",
        "unknown-kind-dropped",
        "a disk of a type that is not known is taken for one that needs no lock",
        "self.kind is Kind.EMPTY or self.is_asked_for:",
        "self.kind in (Kind.EMPTY, Kind.UNKNOWN) or self.is_asked_for:",
        "unit/test_who_users.py::test_vm_with_a_disk_that_libvirt_never_locks_is_named",
    ),
    _in(
        "system.libvirt.domain_disks",
        "read-only-is-exclusive",
        "a disk that is only read counts as one that needs a lock",
        'disk.find("readonly") is not None or disk.get("device") == "cdrom"',
        'disk.get("device") == "cdrom"',
        "unit/test_domain_disks.py::test_chain_copy_and_modes_of_a_running_vm_are_read",
    ),
    _in(
        "cli.doctor.running",
        "lost-volume-needs-no-lock",
        "a VM that runs without a lock on a volume whose path is not known is not found",
        "if (d.disks or d.unresolved) and",
        "if d.disks and",
        "daemon/test_kinds_of_disks.py::test_running_vm_with_a_volume_and_no_lock_is_found",
    ),
    _in(
        "manager.repeated_acquire",
        "volume-detached-once-is-free",
        "a volume of a lost pool that a VM has twice is freed when it detaches one of the two",
        "_may_be_twice(resource, domain)\n        if",
        "_is_twice(resource, domain)\n        if",
        "unit/manager/test_repeated_acquire.py::test_volume_that_is_attached_twice_stays_held_when_one_is_detached",
    ),
    _in(
        "system.libvirt.xml_text",
        "entities-expanded",
        "a file with a document type is read, and its entities grow",
        '        raise NotUnderstood("it has a document type, and libvirt writes none")\n',
        "        pass\n",
        "unit/test_domain_disks.py::test_entities_are_refused_before_they_grow",
    ),
    _in(
        "frontends.varlink",
        "caller-of-the-hook-believed",
        "any process may prepare locks in the name of a libvirtd that has not called it",
        "        if caller is None or caller != ProcessId(libvirtd.pid, libvirtd.start_ticks):",
        "        caller = ProcessId(libvirtd.pid, libvirtd.start_ticks)\n        if False:",
        "daemon/test_qemu_hook.py::test_only_the_process_that_calls_the_hook_can_be_its_libvirtd",
    ),
    _in(
        "manager.unasked_disks",
        "arriving-disk-not-taken",
        "a guest that arrives runs without a lock on the disks that libvirt never asks for",
        "return self._acquire(owner, missing) if missing else None",
        "return None",
        "unit/manager/test_prepared_locks.py"
        "::test_disks_that_libvirt_never_asks_for_are_taken_in_finish3_and_held_until_qemu_ends",
    ),
    _in(
        "manager.unasked_disks",
        "leaving-disk-kept",
        "a source keeps the disk that libvirt never releases of a guest that has left, so the target does not get it",
        "                self._manager.departures.go_with(owner, owner.unasked)\n",
        "                pass\n",
        "unit/manager/test_prepared_locks.py"
        "::test_source_holds_what_libvirt_never_releases_until_the_guest_has_left",
    ),
    _in(
        "manager.prepared_locks",
        "prepared-lock-stays",
        "a lock that was prepared for a start is not released when its libvirtd has ended",
        "                self.give_up(owner)\n            self._orphans =",
        "                pass\n            self._orphans =",
        "unit/manager/test_prepared_locks.py"
        "::test_end_of_libvirtd_frees_them_when_there_is_neither_status_file_nor_qemu",
    ),
    _in(
        "manager.prepared_locks",
        "prepared-lock-goes-under-qemu",
        "a lock that was prepared for a start is released with its libvirtd, although a process has the disk open",
        "        owner.until_closed = True\n        self._end(owner)",
        "        self._end(owner)",
        "unit/manager/test_prepared_locks.py"
        "::test_end_of_libvirtd_frees_them_when_there_is_neither_status_file_nor_qemu",
    ),
    _in(
        "manager.lock_registry",
        "gap-at-the-hand-over",
        "the journal ends a prepared claim before it has the claim of the VM's process",
        "        old = list(lock.claims[before.id])\n",
        "        old = list(lock.claims[before.id])\n"
        "        self._journal.append_end(*(unclaim_line(lock, before.id, name) for name in old))\n",
        "unit/manager/test_prepared_locks.py::test_register_makes_prepared_locks_those_of_qemu_without_a_gap",
    ),
    _in(
        "manager.prepared_locks",
        "released-at-the-hand-over",
        "a process that registers takes nothing over: what was prepared is released, and it has to acquire it",
        "                self._book.started(lock, prepared, owner)\n",
        "                self._end(prepared)\n",
        "unit/manager/test_prepared_locks.py::test_gap_between_prepare_and_acquire_lets_nobody_in",
    ),
    _in(
        "manager.preparation",
        "incoming-takes-a-lock",
        "the disks of an arriving guest are taken, while it runs on the source",
        "self._policy.at_arrival(wants) if arrives else list(wants)",
        "list(wants)",
        "unit/manager/test_prepared_locks.py::test_arriving_guest_takes_nothing",
    ),
    _in(
        "manager.preparation",
        "shared-nvram-held-here",
        "NVRAM on a file server gets a lock of this host alone, as if nobody else could have it",
        "            if not self._mounts.locate(path)[0].may_block\n",
        "",
        "unit/manager/test_prepared_locks.py::test_own_files_have_a_lock_if_only_this_host_has_them",
    ),
    _in(
        "manager.prepared_locks",
        "unasked-not-handed-over",
        "what libvirt never asks for is forgotten when QEMU registers, so a guest that arrives runs without it",
        "                    self._book.wanted_by_hook(owner, prepared.unasked)",
        "                    pass",
        "unit/manager/test_prepared_locks.py"
        "::test_disks_that_libvirt_never_asks_for_are_taken_in_finish3_and_held_until_qemu_ends",
    ),
    _in(
        "hooks.qemu",
        "guest-arrives-where-nobody-asks",
        "a guest migrates to a host whose libvirt asks nobody for locks, and runs there without any",
        "    if unasked and domain.disks:",
        "    if False:",
        "daemon/test_qemu_hook.py::test_guest_does_not_arrive_where_libvirt_asks_nobody_for_locks",
    ),
    _in(
        "config_hook",
        "policy-unlocks-a-running-vm",
        "check-config accepts a policy of the hook that frees a disk under a VM that runs",
        "for event in (*BEFORE, *UNDER):",
        "for event in BEFORE:",
        "unit/test_config.py::test_refusal_names_file_key_and_fix",
    ),
    _in(
        "wire.sanlock.framer",
        "refused-body-is-kept",
        "a client that announces 2^32 disks makes the daemon keep whatever it sends",
        "        if not self._refused or self._piece <= RESOURCE_BYTES:",
        "        if True:",
        "unit/wire/sanlock/test_framer.py::test_four_thousand_million_disks_are_counted_away_without_memory",
    ),
    _in(
        "wire.sanlock.request_table",
        "refused-early-out-of-sync",
        "the disks of a refused resource are read as the next request",
        "    yield Piece(count * s.DISK_BYTES, refused)",
        "    yield Piece(0 if refused else count * s.DISK_BYTES, refused)",
        "contract/test_sanlock_frontend.py"
        "::test_too_many_resources_and_disks_are_refused_at_once_and_leave_the_stream_in_sync",
    ),
    _in(
        "frontends.sanlock.frontend",
        "register-overtaken",
        "a command by pid is refused although that process's REGISTER arrived before it",
        "        if self._catching_up:\n            return False",
        "        if True:\n            return False",
        "contract/test_sanlock_frontend.py"
        "::test_register_is_seen_before_a_command_that_another_client_sent_after_it",
    ),
    _in(
        "frontends.sanlock.frontend",
        "dead-client-never-cleaned-up",
        "the leases of a client that died while another acquired for it are never released",
        "            if not target.connected:",
        "            if False:",
        "contract/test_sanlock_frontend.py"
        "::test_client_that_dies_while_another_acquires_for_it_is_cleaned_up_behind_that",
    ),
    _in(
        "frontends.sanlock.frontend",
        "daemons-end-is-the-clients-end",
        "a stop of the daemon counts as the death of every registered client: their leases are released",
        "        if client.registered and not self._ending:",
        "        if client.registered:",
        "contract/test_sanlock_frontend.py::test_end_of_the_daemon_is_no_clients_end",
    ),
    _in(
        "frontends.sanlock.clients",
        "killed-client-acquires",
        "a client that is being killed for a lost lockspace gets new leases",
        "        if found.kill_count and header.command in _ACQUIRE:",
        "        if False:",
        "contract/test_sanlock_frontend.py::test_client_that_is_being_killed_may_release_but_not_acquire",
    ),
    _in(
        "backends.paxos.maintenance",
        "own-stray-of-a-living-vm-goes",
        "a lease that no name leads to is taken from a process of this host that lives",
        "        return owner_note.is_of_upkeep(note) or (process is not None and has_ended(process))",
        "        return True",
        "contract/test_device_store.py"
        "::test_stray_that_names_this_host_goes_if_its_note_says_that_nobody_has_it[alive]",
    ),
    _in(
        "manager.identity_locks",
        "departing-has-an-identity",
        "a VM that is being migrated away counts as one that needs no lease of what its disk is, also if it stays",
        "            return False  # it goes with the VM",
        "            return True  # it goes with the VM",
        "sim/test_pinned_seeds.py"
        "::test_a_seed_that_found_a_bug_as_it_is_drawn_with_these_names_is_sound[106002982-Naming.LATE]",
    ),
    _in(
        "manager.routing",
        "paths-take-network-disks",
        "a rule for paths takes disks that are reached over a network",
        "        return bool(path) and is_network_name(path) is self.of_network and self._matches(path) is not None",
        "        return bool(path) and self._matches(path) is not None",
        "unit/test_small_parts.py::test_first_rule_that_matches_chooses_the_backend[resource5-network]",
    ),
    _in(
        "hooks.qemu",
        "network-disks-not-asked-for",
        "the hook asks for no disk that is reached over a network",
        "    networked = domain.networked if operation in (MUST_HOLD, ARRIVES) else ()",
        "    networked = ()",
        "daemon/test_network_disks.py::test_second_start_is_refused_on_both_hosts_and_named_everywhere",
    ),
    _in(
        "manager.preparation",
        "arrives-unconnected",
        "a guest with a network disk arrives where libvirt will not connect, so nobody takes its lease",
        "        if unasked and (found := self.over_network(wants)):",
        "        if False and (found := self.over_network(wants)):",
        "daemon/test_network_disks.py::test_guest_does_not_arrive_where_libvirt_will_not_connect",
    ),
    _in(
        "manager.lock_manager",
        "waits-for-an-end-that-can-not-come",
        "a daemon that goes down asks for ever for the lock of an owner that has ended",
        "        if self.closing:\n            raise self._busy(want, others, keys)\n",
        "",
        "unit/manager/test_lock_manager.py"
        "::test_lock_of_an_ended_owner_is_refused_while_the_daemon_goes_down",
    ),
)
