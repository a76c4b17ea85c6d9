"""A lockspace that a client of sanlock's has added is named by no configuration: a start without the journal finds it by the
copies of this host's incarnation, and the leases of its clients stay held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.interop.sanlock_socket.scene import NAME, HoldfastDaemon, Scene, holding, on_stage
from tests.support.polling import wait_until

from holdfast.wire.sanlock import replies
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock.flags import ResourceFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import Resource


@pytest.fixture
def scene() -> Iterator[Scene]:
    with on_stage("holdfast") as stage:
        yield stage


@pytest.fixture
def daemon(scene: Scene) -> HoldfastDaemon:
    assert isinstance(scene.one.daemon, HoldfastDaemon)
    return scene.one.daemon


def owners(scene: Scene, lease: Resource) -> list[int]:
    """By storage, as the other host reads it."""
    found = scene.two.client().asked(r.ReadResourceOwners(lease), replies.OwnersRead)
    return [each.host_id for each in found.hosts]


def starts_without_journal(daemon: HoldfastDaemon) -> None:
    daemon.kill()
    (daemon.run_dir / "journal").unlink()
    daemon.start()


def test_leases_of_an_added_lockspace_stay_held_without_the_journal(
    scene: Scene, daemon: HoldfastDaemon
) -> None:
    lease, before = scene.lease(), scene.record_of(scene.one).generation
    holder = holding(scene.one, lease)
    starts_without_journal(daemon)
    daemon.says(f"lockspace {NAME}: gone on with as host_id 1")
    assert scene.record_of(scene.one).generation == before, "its clients depend on that generation"
    asker = scene.one.process()
    assert asker.client.result(r.Acquire(0, r.OWN, (lease,))) != Result.OK
    assert scene.two.result(r.Acquire(0, r.Target(holder.pid), (lease,))) != Result.OK
    assert owners(scene, lease) == [1]
    removed = scene.one.result(r.RemLockspace(0, scene.of(scene.one)))
    assert removed == Result.EBUSY, "what clients hold there can't be listed"
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.count(f"lockspace {NAME}: gone on with as host_id 1") == 2, "the second start")
    assert scene.record_of(scene.one).generation == before, "the journal names it again"


@pytest.mark.long
def test_a_lockspace_that_was_removed_is_not_joined_again_without_the_journal(
    scene: Scene, daemon: HoldfastDaemon
) -> None:
    assert scene.one.result(r.RemLockspace(0, scene.of(scene.one))) == Result.OK
    starts_without_journal(daemon)
    assert not scene.one.is_in(scene.of(scene.one))
    assert scene.one.client().asked(r.GetLockspaces(), replies.Lockspaces).lockspaces == ()
    assert scene.one.result(r.AddLockspace(0, 1, scene.of(scene.one))) == Result.OK, "as a client may ask"


def test_a_name_with_a_slash_makes_no_directory(scene: Scene, daemon: HoldfastDaemon) -> None:
    name = "50%/../x"
    place = scene.new_lockspace("SLASH").disk.path
    lockspace = scene.lockspace.of(name, 1, place)
    assert scene.one.result(r.WriteLockspace(0, 0, 1, lockspace)) == Result.OK
    assert scene.one.result(r.AddLockspace(0, 1, lockspace)) == Result.OK
    lease = scene.lease(lockspace=name)
    holding(scene.one, lease)
    shown = daemon.cli_json("host", "list")
    assert name in json.dumps(shown)
    starts_without_journal(daemon)
    wait_until(lambda: scene.one.is_in(lockspace), "the join")
    assert f"lockspace {name}: gone on with as host_id 1" in daemon.log_text()


def test_a_name_that_is_no_text_is_refused(scene: Scene, daemon: HoldfastDaemon) -> None:
    lockspace = scene.lockspace.of("a\udcff", 1, scene.new_lockspace("BYTES").disk.path)
    assert scene.one.result(r.AddLockspace(0, 1, lockspace)) == Result.EINVAL
    daemon.says("refused ADD_LOCKSPACE 'a\\udcff': a name that is not UTF-8 is not supported")


def lines_of(daemon: HoldfastDaemon) -> list[str]:
    return (daemon.run_dir / "journal").read_text().splitlines(keepends=True)


def kind(line: str) -> str:
    return str(json.loads(line)[0])


def test_a_damaged_name_in_the_journal_is_no_lockspace(scene: Scene, daemon: HoldfastDaemon) -> None:
    lease, before = scene.lease(), scene.record_of(scene.one).generation
    holding(scene.one, lease)
    daemon.kill()
    lines = [
        line.replace(f'"{NAME}"', '"Ls"') if kind(line) == "sanlock-lockspace" else line
        for line in lines_of(daemon)
    ]
    assert "".join(lines).count('"Ls"') == 1
    (daemon.run_dir / "journal").write_text("".join(lines))
    daemon.start()
    daemon.says(f"lockspace {NAME}: gone on with as host_id 1")
    assert scene.record_of(scene.one).generation == before
    daemon.says("lockspace Ls, which a damaged journal says a client of sanlock had added, is not joined")
    found = scene.one.client().asked(r.GetLockspaces(), replies.Lockspaces)
    assert [each.name.text for each in found.lockspaces] == [NAME]


@pytest.mark.long
def test_a_journal_that_lacks_the_lockspace_is_not_believed(scene: Scene, daemon: HoldfastDaemon) -> None:
    """It replays without a fault: an older copy, of a release that kept no extent beside it."""
    lease, before = scene.lease(), scene.record_of(scene.one).generation
    holding(scene.one, lease)
    daemon.kill()
    kept = [line for line in lines_of(daemon) if kind(line) == "start"]
    assert len(kept) == 1
    (daemon.run_dir / "journal").write_text("".join(kept))
    (daemon.run_dir / "journal.extent").unlink()
    daemon.start()
    daemon.says(f"it lacks lockspace {NAME}, which clients of sanlock have added")
    daemon.says(f"lockspace {NAME}: gone on with as host_id 1")
    assert scene.record_of(scene.one).generation == before
    asker = scene.one.process()
    assert asker.client.result(r.Acquire(0, r.OWN, (lease,))) != Result.OK
    assert owners(scene, lease) == [1]


@pytest.mark.long
def test_a_journal_that_is_rewritten_before_the_join_keeps_the_last_copy(
    scene: Scene, daemon: HoldfastDaemon
) -> None:
    holding(scene.one, scene.lease())
    daemon.kill()
    for place in (daemon.run_dir, daemon.directory / "state"):
        (place / f"lockspace-{NAME}.json").unlink()
    lockspace = Path(scene.lockspace.disk.path)
    lockspace.rename(f"{lockspace}.away")
    daemon.start()
    daemon.says("can't be opened: No such file or directory")
    daemon.kill()
    copies = [line for line in lines_of(daemon) if kind(line) == "incarnation" and f'"{NAME}"' in line]
    assert len(copies) == 1, "storage is away: nobody has joined, and there is no other copy"


def test_a_lease_that_outlives_its_client_does_so_when_the_journal_has_lost_that(
    scene: Scene, daemon: HoldfastDaemon
) -> None:
    lease = scene.lease()
    holder = holding(scene.one, lease._replace(flags=ResourceFlag.PERSISTENT))
    daemon.kill()
    lines = lines_of(daemon)
    kept = [line for line in lines if kind(line) != "persistent"]
    assert len(kept) < len(lines)
    (daemon.run_dir / "journal").write_text("".join(kept))
    daemon.start()
    daemon.says(f"lockspace {NAME}: gone on with as host_id 1")
    wait_until(lambda: any(each["held"] for each in daemon.cli_json("list")), "its lease to be held again")
    holder.close()
    wait_until(
        lambda: [each["pid"] for each in daemon.cli_json("list") if lease.name.text in each["name"]] == [0],
        "the lease to be an orphan",
    )
    assert owners(scene, lease) == [1]
