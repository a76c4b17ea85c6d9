"""A lock that somebody else took while the daemon was away: no two guests go on writing.

Without a descriptor store, a crash of the daemon lets the kernel locks go, and another host may start a
guest on the disk before the daemon is back.  The daemon that comes back and finds the lock in other hands
says so loudly and pauses its own guest.
"""

import json

import pytest

from tests.e2e.lab.lab import Lab
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused

pytestmark = pytest.mark.virtlockd_fails("it starts knowing nothing of running guests")


def test_guest_whose_lock_was_taken_during_a_crash_is_paused_and_can_be_resumed_later(any_lab: Lab) -> None:
    lab = any_lab
    disk = lab.storage.image("web")
    victim = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    lockd.kill()
    taker = lab.vm(lab.beta, "web2", disk).start()
    lockd.start()
    victim.wait_state("paused")
    assert f"LOCK LOST: {disk.path}" in lockd.said or "LOCK LOST" in lockd.said
    taker.assert_writes()
    assert_refused(victim.refused("resume"))
    taker.destroy()
    lab.wait_free(disk)
    victim.virsh("resume")
    victim.assert_writes()
    assert lab.lock(disk) == "write"
    assert_refused(taker.refused("start"))


def test_lost_lock_shows_in_status_and_events(lab: Lab) -> None:
    disk = lab.storage.image("web")
    victim = lab.vm(lab.alpha, "web1", disk).start()
    lockd = lab.lockd[lab.alpha]
    lockd.kill()
    lab.vm(lab.beta, "web2", disk).start()
    lockd.start()
    events = [json.loads(line) for line in lockd.holdfast("events", "--json").splitlines()]
    lost = [event for event in events if event["kind"] == "lock-lost"]
    assert [event["owner"] for event in lost] == ["web1"]
    until(lambda: victim.state.startswith("paused"), "the victim to be paused")
