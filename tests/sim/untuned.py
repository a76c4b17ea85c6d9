"""Thirty bugs that nobody tuned for: written from the shipping code alone, by somebody who had not read the simulator.

`mutations` grew beside the simulator, so that it finds them says little about bugs that nobody thought of. These are what
engineers might well write. Each breaks a claim that users rely on (`CLAIMS`); the comment above it gives a history in
which it does harm. None is to be changed because of what the simulator finds.

    python -m tests.sim.untuned               all of them, in whole histories from seed 0: a table
    python -m tests.sim.untuned NAME SEEDS    one
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.sim.mutations import ROOT, MutatingFinder, Mutation, _in

SEEDS_MAX = 500

EXCLUSION = "two hosts, or two virtual machines, never write one disk"
EXPIRY = "a lease expires on its own host before another host takes over"
GUARDED = "no virtual machine runs on a lock that guards nothing"
KEPT = "a held lock, and the virtual machine behind it, survive whatever is not their own end"
LIVENESS = "what nobody holds can be had, and a host comes back by itself"
DOUBT = "doubt is not free"

UNTUNED: tuple[Mutation, ...] = (
    # --- protocol ---
    # Host 1 votes for itself in ballot 1 while host 2 is already in ballot 2002, and is outbid. Host 2 votes, sees all
    # blocks, and has won; before its leader is written, host 1 tries again. Its own block has the greatest promise by
    # now, so its own vote is taken for the decided one, and host 1 has won the same version.
    _in(
        "protocol.ballot",
        "value-of-the-greatest-promise",
        "A ballot adopts the value of the block with the greatest promise, not of the one with the greatest vote.",
        "(block.dblock.bal, value)",
        "(block.dblock.mbal, value)",
    ),
    # Host 1 shares the lease. Host 2 wins its leader, and the read of host 1's block times out: its share is passed
    # over, and host 2 has the lease alone beside a living sharer.
    _in(
        "protocol.paxos_lease",
        "unreadable-sharer-passed-over",
        "A shared hold that can't be read again is taken for one that does not stand any more.",
        "        if not isinstance(block, HostBlock):\n            return block\n",
        "        if not isinstance(block, HostBlock):\n            continue\n",
    ),
    # Hosts 1 and 2 share. Host 1 wants more, wins the leader, sees host 2, writes its share back, and fails to free the
    # leader. The withdrawal of that doubt writes its block without the share, although its virtual machine still
    # shares: when host 2 has let go, host 3 takes the lease alone.
    _in(
        "protocol.paxos_lease",
        "doubtful-upgrade-drops-its-share",
        "The withdrawal of an upgrade that ended in doubt takes the shared hold away as well.",
        "return InDoubt(back.why, back.lease.own, hold)",
        "return InDoubt(back.why, back.lease.own, NO_MODE)",
    ),
    # A replacement machine gets the host id of one that is believed dead, and has half its io_timeout. The old host
    # hangs for longer than the dead bound of the new one and lives: its leases are those of an earlier generation of
    # its successor's own id, which takes them at once.
    _in(
        "protocol.delta_lease",
        "others-bound-by-own-timeout",
        "A host that waits for another one's id waits for the dead bound of its own io_timeout, not of the other's.",
        "dead_s = claim.timing.of_host(first.io_timeout_s, first.host_name.text).dead_s",
        "dead_s = claim.timing.dead_s",
    ),
    # An operator names the wrong host. It renews every two io_timeouts and the time that a write takes, so two looks
    # that are a little more than two io_timeouts apart show one record: the word counts, and its running VM's lease is
    # broken.
    _in(
        "protocol.takeover",
        "silent-for-two-timeouts-is-off",
        "A person's word about a host counts after a silence that a healthy host has between two renewals.",
        "return timing.renewal_s + timing.io_timeout_s",
        "return timing.renewal_s",
    ),
    # On a device host 3 collects a lease at version 7 and clears it. Host 2 makes another one in its place, at version
    # 0; its race is brought forward to version 7, finds host 3's vote there and names host 3 the owner, which holds
    # nothing and lives: the disk can't be started on any other host.
    _in(
        "protocol.resource_index",
        "versions-restart-in-a-used-place",
        "A lease made where another one was begins at version 0 before blocks of later versions.",
        "    leader = replace(leader, lver=lver)\n",
        "",
    ),
    # Host 2 finished the ballot of host 1, so host 1's block is all that can release the lease. The write of that block
    # fails and the release counts as done: host 1 is the owner for as long as it lives. Or the block's write lands
    # late, behind the freed leader, and is remembered as a promise that was there before it: the hole of ADR 0127.
    _in(
        "protocol.paxos_release",
        "unwritten-release-counts",
        "A release whose block could not be written counts as done if nothing is left to do about the leader.",
        "    if isinstance(freed, Released) and block_failed:\n",
        "    if block_failed and not isinstance(freed, Released):\n",
    ),
    # Host 1's attempt ends in doubt and is withdrawn by the flag in its block. Host 2 decides host 1's value and writes
    # the leader as if host 1 had written it: then the flag has no say, and a host that holds nothing has the lease
    # while it lives.
    _in(
        "protocol.paxos_acquire",
        "finished-ballot-signed-by-its-owner",
        "A leader that is written for another host says that this host has written it itself.",
        "            write_id=member.host_id,\n",
        "            write_id=value.owner_id,\n",
    ),
    # --- supervision ---
    # A daemon is killed and started again 70 s after its last renewal. The record can be read, the renewal fails, and
    # storage stays silent for reads: the heartbeat feeds the watchdog for 80 s more, and another host takes over
    # meanwhile.
    _in(
        "supervision.renewal",
        "lease-age-from-its-guarding",
        "The age of a lease counts from when the heartbeat begins to guard it, not from its last renewal.",
        "            held.renewed_at,\n            on_expiring",
        "            self._clock.now(),\n            on_expiring",
    ),
    # Host 1 reads the records, and is paused before it takes the answer in; host 2 renews all the while. Host 1 wakes
    # after the dead bound and takes what it read before for what stands there now: host 2 is DEAD, and its leases are
    # taken.
    _in(
        "supervision.peer_monitor",
        "look-dated-by-its-end",
        "A look at the other hosts counts from when it was taken in, not from when it was begun.",
        "Sampled(read_at, used)",
        "Sampled(now, used)",
    ),
    # A backend says on_lockfailure = "ignore", so the watchdog is to end its VM. Its lockspace is lost, the VM runs,
    # and the ladder reports at once that nobody is left: the watchdog is fed for the next term, and another host takes
    # the disk.
    _in(
        "supervision.escalation",
        "ignored-owners-count-as-gone",
        "Owners that are to be left alone after a loss are not counted among the users of the lockspace.",
        "        if not users:\n",
        "        if all(action is LockFailureAction.IGNORE for action in users.values()):\n",
    ),
    # A host is in two lockspaces; the storage of one hangs, the other is renewed. wdmd is given the later bound with
    # the last feeding before the first one fails. Then the host hangs, and is reset only after its first lease was
    # taken over.
    _in(
        "supervision.lease_monitor",
        "fed-to-the-latest-bound",
        "The watchdog is fed up to the latest bound of all leases, not the earliest.",
        "fed = not over and self._fed(min(",
        "fed = not over and self._fed(max(",
    ),
    # The renewal hangs in a read when the heartbeat declares the lease lost; all users end in a second. The old thread
    # has not ended, so nothing is joined yet, and when it ends nobody joins: the host stays out until the daemon is
    # restarted.
    _in(
        "supervision.lockspace_supervisor",
        "no-rejoin-behind-a-slow-thread",
        "A lockspace whose users are gone before its renewal thread has ended is not joined again.",
        "            elif self._wanted and self.state is LockspaceState.ABSENT:\n",
        "            elif self._wanted and self.state is LockspaceState.LOST:\n",
    ),
    # A killed daemon's watchdog is armed for a VM of lockspace A, whose storage is slow. The next daemon joins B
    # meanwhile, and proves the watchdog, which stops it: if the host hangs now, A's VM comes back to life after another
    # host has its disk.
    _in(
        "supervision.lease_monitor",
        "proof-stops-an-owed-watchdog",
        "The watchdog is proven, and so stopped, while owners of another lockspace depend on it.",
        "            if self._owed:\n"
        "                # To prove it is to stop it, and it may count for owners of whom nobody knows yet.\n"
        '                raise WatchdogRefused(f"lockspace {min(self._owed)} has owners, and is not guarded yet")\n',
        "",
    ),
    # --- backends ---
    # Two hosts make leases on a device. The storage falls silent while host 1 acquires the index's own lease; the
    # attempt is given up, and wins later. Nobody gives the lease back: no host can make or remove a lease as long as
    # host 1 lives.
    _in(
        "backends.paxos.held_lease",
        "late-win-kept-by-nobody",
        "A lease that was won after whoever wanted it had been refused is not given back.",
        "self.lease, self._given_up = outcome, True",
        "self.lease = outcome",
    ),
    # Hosts 1 and 2 share. Host 2 lets go, host 1 wants the lease alone, storage is silent and the conversion is
    # refused; it succeeds later and stays. Host 1 says "shared", storage says "alone": host 2's VM can't resume while
    # host 1's runs.
    _in(
        "backends.paxos.held_lease",
        "late-upgrade-left-exclusive",
        "A conversion that was refused because storage was silent, and succeeds later, is not undone.",
        "self.lease, self._weaken = taken, True  # whoever wanted more has been refused",
        "self.lease, self._weaken = taken, False",
    ),
    # After a restart the read of a held lease times out. The daemon races for the lease, and its block says the next
    # version by now; the ballot fails, too. Another host wrote that leader, so by its owner's block the lease is given
    # up: a third host takes it while the VM runs.
    _in(
        "backends.paxos.backend",
        "silent-lease-raced-for-again",
        "A lease that can't be read after a restart is acquired again, as if storage had said that it is not held.",
        "outcome = resumed if resumed is not None else await holding.acquire(saved.mode)",
        "outcome = resumed if isinstance(resumed, Lease) else await holding.acquire(saved.mode)",
    ),
    # Hosts 1 and 2 read the index; host 1 makes a lease, and enters it. Host 2 gets its turn and writes the same sector
    # from what it read before: host 1's entry is gone. Host 3 starts the same disk, finds no entry, and makes a second
    # lease for it.
    _in(
        "backends.paxos.device_store",
        "index-read-before-its-lease",
        "The index is changed from what was read before its own lease was won.",
        "return await self._work_as_owner(disk, member, holding, work)",
        "return await self._work_as_owner(disk, member, holding, lambda _: work(index))",
    ),
    # Host 1's write of an entry hangs, and it gives the index's lease back. Host 2 puts another lease into the same
    # entry and place. The first write lands: host 2's lease has no entry any more, and host 3 makes a second one for
    # its disk.
    _in(
        "backends.paxos.device_store",
        "index-freed-under-a-late-write",
        "The index's own lease is given back while a write to the index is still in flight.",
        "        if isinstance(made, IoFailed) and made.in_flight:\n"
        "            # What is under way may land on what another host writes next: it gets its turn only afterwards.\n"
        "            self._ports.spawn(self._release_when_settled(disk, holding))\n"
        "        else:\n"
        "            await holding.release()\n",
        "        await holding.release()\n",
    ),
    # `holdfast lease gc` is killed, or its unlink fails, when it has cleared a lease file. Whoever opens the file finds
    # it cleared, takes it for one that is just being removed, and gives up after ten tries: the disk starts nowhere any
    # more.
    _in(
        "backends.paxos.directory_store",
        "cleared-before-its-name-goes",
        "A lease file that is collected is cleared first and removed second.",
        "        # First its name, then its content: whoever opens the path from now on makes a new one.\n"
        "        failed = await self._storage.remove(found.disk.facts)\n",
        "        await clear(member, found, leader)\n"
        "        failed = await self._storage.remove(found.disk.facts)\n",
    ),
    # --- manager ---
    # Leases are named by LVM UUID. A VM has a volume exclusively by one path, and acquires it shared by another one:
    # the lock is made shared for its own sake, and another host shares a disk that this VM believes to have alone.
    _in(
        "manager.lock_table",
        "own-other-name-forgotten",
        "The mode that a lock needs leaves out what the asking owner claims by the disk's other names.",
        "if (claimant, name) != (owner_id, resource) and claimed > needed:",
        "if claimant != owner_id and claimed > needed:",
    ),
    # RUN_DIR is full when a disk is unplugged from a running VM, so the end of its lock can't be recorded; there is
    # room later, and the daemon is killed. The next one takes the lock again for a VM that does not have the disk. If
    # another host has it by then, that VM is stopped for nothing.
    _in(
        "manager.journal",
        "unwritten-end-never-rewritten",
        "A journal that could not record the end of a lock is not rewritten as soon as that works.",
        "        except OSError:\n            self._lacks_an_end = True\n",
        "        except OSError:\n            pass\n",
        damage="rough",
    ),
    # A daemon is restarted, and its lockspace is lost before the leases of its VMs have been read again. The ladder
    # finds no users: the lockspace is joined again, the watchdog is fed, and the VMs run on leases of a term that is
    # over.
    _in(
        "lease_admin.lockspace_loss",
        "only-held-locks-have-users",
        "After a loss owners are passed over whose locks were not yet taken up again after a restart.",
        "            if self._may_be_of(lock, loss.backends):\n                for owner_id in lock.claims:\n",
        "            if lock.held is not None and self._may_be_of(lock, loss.backends):\n"
        "                for owner_id in lock.claims:\n",
    ),
    # A daemon is restarted while the storage of a lockspace is slow: its leases can't be taken up in the first ten
    # seconds, which counts as "another host has it", and every VM there is paused or stopped although each still has
    # its lease.
    _in(
        "manager.lost_locks",
        "absent-lockspace-is-a-certain-loss",
        "A lock that can't be taken again because nothing can be asked counts as taken by somebody else.",
        "lock.lost_reason, lock.lost_for_certain = str(error), False\n",
        "lock.lost_reason, lock.lost_for_certain = str(error), True\n",
    ),
    # The journal was lost. A lease is held for an unknown owner, whose QEMU can't be inspected in /proc: nobody is seen
    # to have the disk open, the lease is released, and another host starts a second VM on it.
    _in(
        "manager.unknown_locks",
        "uninspected-process-has-nothing-open",
        "A scan of open files that could not see every process proves that a disk is closed.",
        "            elif not users.none:\n",
        "            elif users.pids:\n",
        damage="rough",
    ),
    # RUN_DIR is full: the lease is won, its line can't be written, the VM is refused and ends. Nothing in this daemon
    # has the lease, and storage says that this host does: no other host can start the disk.
    _in(
        "manager.acquire",
        "unjournaled-lease-stays-held",
        "A lock that is refused because the journal can't record it is not let go.",
        "            await outcome.release()\n            raise Refused(\n",
        "            raise Refused(\n",
        damage="rough",
    ),
    # A migration is cancelled while the guest stands at its source. libvirt's status file says "confirm3_cancelled"
    # when its RELEASE comes, and the guest runs on there, without a lock: another host starts the same disk.
    _in(
        "system.libvirt.status_words",
        "cancelled-migration-has-left",
        "A guest whose migration was cancelled counts as one that has left its host.",
        '"perform3", "confirm3_cancelled"))',
        '"perform3"))',
    ),
    # --- handover, life cycle, wiring ---
    # A reload closes the gate, one request does not end in two seconds, and the reload is refused. Every later request
    # waits at the gate, renewals too: all lockspaces are lost, and their VMs are stopped.
    _in(
        "daemon.lifecycle",
        "gate-shut-by-a-refused-reload",
        "The gate for requests to storage is opened again only after a failed exec, not after a refusal.",
        "    except OSError as e:\n"
        '        return [f"re-exec failed: {e}; going on as before"]\n'
        "    finally:\n"
        "        gate.open()\n",
        "    except OSError as e:\n"
        "        gate.open()\n"
        '        return [f"re-exec failed: {e}; going on as before"]\n'
        "    finally:\n",
        restarts=True,
    ),
    # The journal is lost, and VMs run. The lockspaces are started first, and nothing in the table says that one is in
    # use: a term that can't be resumed is given up for a new one, the watchdog is fed, and no ladder stops the VMs of
    # the old one.
    _in(
        "daemon.handover",
        "placeholders-behind-the-leases",
        "What a lost journal may have held is entered into the table only after the lockspaces were started.",
        "        if self._manager.doubt:\n"
        "            self._leases.hold_places(self._manager.unknown, self._manager.doubt)\n"
        "        await self._leases.start()\n",
        "        await self._leases.start()\n"
        "        if self._manager.doubt:\n"
        "            self._leases.hold_places(self._manager.unknown, self._manager.doubt)\n",
        damage="rough",
    ),
    # Two backends name one lockspace, and a VM holds a lease of the second one. The daemon is killed; the next one
    # can't read the storage, takes the lockspace for unused, and no watchdog is kept unfed for it: the VM runs on past
    # its dead bound.
    _in(
        "daemon.lockspaces",
        "first-backend-speaks-for-all",
        "Whether a lockspace is in use is asked of the locks of the first backend that named it.",
        "in_use=lambda: self._in_use(backends),",
        "in_use=lambda: self._in_use({backend}),",
    ),
)

CLAIMS: dict[str, str] = {
    "value-of-the-greatest-promise": EXCLUSION,
    "unreadable-sharer-passed-over": DOUBT,
    "doubtful-upgrade-drops-its-share": EXCLUSION,
    "others-bound-by-own-timeout": EXPIRY,
    "silent-for-two-timeouts-is-off": EXCLUSION,
    "versions-restart-in-a-used-place": LIVENESS,
    "unwritten-release-counts": LIVENESS,
    "finished-ballot-signed-by-its-owner": LIVENESS,
    "lease-age-from-its-guarding": EXPIRY,
    "look-dated-by-its-end": EXPIRY,
    "ignored-owners-count-as-gone": GUARDED,
    "fed-to-the-latest-bound": EXPIRY,
    "no-rejoin-behind-a-slow-thread": LIVENESS,
    "proof-stops-an-owed-watchdog": GUARDED,
    "late-win-kept-by-nobody": LIVENESS,
    "late-upgrade-left-exclusive": LIVENESS,
    "silent-lease-raced-for-again": DOUBT,
    "index-read-before-its-lease": EXCLUSION,
    "index-freed-under-a-late-write": EXCLUSION,
    "cleared-before-its-name-goes": LIVENESS,
    "own-other-name-forgotten": EXCLUSION,
    "unwritten-end-never-rewritten": KEPT,
    "only-held-locks-have-users": GUARDED,
    "absent-lockspace-is-a-certain-loss": KEPT,
    "uninspected-process-has-nothing-open": DOUBT,
    "unjournaled-lease-stays-held": LIVENESS,
    "cancelled-migration-has-left": GUARDED,
    "gate-shut-by-a-refused-reload": KEPT,
    "placeholders-behind-the-leases": DOUBT,
    "first-backend-speaks-for-all": GUARDED,
}
"""By name: the claim that the bug breaks."""


def found_by(name: str, seeds_max: int = SEEDS_MAX) -> tuple[int, str]:
    """How many seeds, from 0, it takes the simulator to find one, and the violation; empty if it does not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.untuned", name, str(seeds_max)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return 0, f"the simulator itself fails: {done.stderr.strip().splitlines()[-1]}"
    seeds, violation = json.loads(done.stdout)
    return seeds, violation


def _hunted(name: str, seeds_max: int) -> tuple[int, str]:
    (mutation,) = [each for each in UNTUNED if each.name == name]
    sys.meta_path.insert(0, MutatingFinder(mutation))
    from holdfast_sim.run.seed import play
    from holdfast_sim.storage.disk_names import Naming

    for seed in range(seeds_max):
        # Both came after the figures of docs/safety.md.
        verdict = play(seed, restored_every_s=0, naming=Naming.ONE)
        if not verdict.sound:
            return seed + 1, verdict.violation
    return seeds_max, ""


def _table() -> None:
    names = [mutation.name for mutation in UNTUNED]
    caught = 0
    with ThreadPoolExecutor(2) as two:
        for name, (seeds, violation) in zip(names, two.map(found_by, names), strict=True):
            caught += bool(violation)
            after = str(seeds) if violation else f"not within {seeds}"
            print(f"| `{name}` | {CLAIMS[name]} | {after} | {violation.split(':', 1)[0]} |", flush=True)
    print(f"{caught} of {len(names)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_hunted(sys.argv[1], int(sys.argv[2]))))
    else:
        _table()
