"""What a kept configuration and a journal say together: which backends have locks, or may have, and as which host id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from holdfast.backends.paxos.names import LEASE_KEY_DEVICE
from holdfast.config import Config
from holdfast.config_change import HeldNeed
from holdfast.daemon import kept_config, kept_file
from holdfast.daemon.handover import may_hold_leases
from holdfast.daemon.kept_config import Kept
from holdfast.daemon.system_ports import lease_host_ports
from holdfast.manager.journal_replay import SavedClaims, SavedState
from holdfast.model import Mode
from holdfast.supervision.host_identity import Incarnation, encode_term
from holdfast.system.files import daemon_lock
from holdfast.system.files.ofd_lock import FileKey

BOOT, EARLIER = "this-boot", "earlier-boot"
LEASES: dict[str, Any] = {"driver": "paxos", "directory": "/srv/leases", "lockspace": "vms", "host_id": 1}


def kept(place: Path, **renamed: str) -> Kept:
    config = Config(
        run_dir=str(place / "run"),
        state_dir=str(place / "state"),
        backend={"file": {"driver": "file"}, "san": LEASES},
    )
    return Kept(config, "", renamed)


def journal(boot: str, *locks: tuple[str, int], damage: str = "") -> SavedState:
    """`locks`: (backend, device of the key)."""
    return SavedState(
        boot=boot,
        damage=damage,
        locks={
            number: SavedClaims(
                number, backend, f"/disk{number}", False, Mode.EXCLUSIVE, (FileKey(device, number),), 0.0
            )
            for number, (backend, device) in enumerate(locks, 1)
        },
    )


def held_in(state: SavedState, kept: Kept, boot: str) -> list[HeldNeed]:
    dirs = (kept.config.state_dir, kept.config.run_dir)
    return kept_config.held_in(state, kept, boot, lease_host_ports(dirs).incarnation_files)


def counts(needs: list[HeldNeed]) -> dict[str, int]:
    return {need.backend: need.count for need in needs}


def test_whole_journal_of_this_boot_is_all_there_is(tmp_path: Path) -> None:
    assert held_in(journal(BOOT), kept(tmp_path), BOOT) == []
    found = held_in(journal(BOOT, ("san", -2), ("san", -2)), kept(tmp_path), BOOT)
    assert counts(found) == {"san": 2}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (journal(""), {"file": 0, "san": 0}),
        (journal(BOOT, ("file", 1), damage="line 2"), {"file": 1, "san": 0}),
        (journal(EARLIER, ("file", 1)), {"file": 0, "san": 0}),
    ],
    ids=["missing", "damaged", "stale"],
)
def test_backends_may_have_locks_that_the_journal_does_not_have(
    tmp_path: Path, state: SavedState, expected: dict[str, int]
) -> None:
    """The configuration was kept by a daemon of this boot: it may have granted anything."""
    assert counts(held_in(state, kept(tmp_path), BOOT)) == expected


def test_lock_that_the_journal_calls_by_an_earlier_name_counts_for_the_table_that_it_is_in(
    tmp_path: Path,
) -> None:
    """A daemon that was killed before it had written the journal again has left the name from before it."""
    found = held_in(journal(BOOT, ("leases", -2)), kept(tmp_path, leases="san"), BOOT)
    assert counts(found) == {"san": 1}


@pytest.mark.parametrize("copy", ["state", "run", "journal"])
def test_host_id_in_use_is_known_by_each_copy_of_the_incarnation(tmp_path: Path, copy: str) -> None:
    term = Incarnation(
        lockspace="vms",
        host_id=7,
        generation=3,
        host_name="alpha",
        boot=BOOT,
        machine="m",
        io_timeout_s=10,
        fire_timeout_s=60,
    )
    state = journal(BOOT, ("san", -2))
    if copy == "journal":
        state.incarnations["vms"] = encode_term(term).encode()
    else:
        (tmp_path / copy).mkdir()
        (tmp_path / copy / "lockspace-vms.json").write_text(encode_term(term))
    (need,) = held_in(state, kept(tmp_path), BOOT)
    assert need.host_id == 7


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (journal(BOOT, ("san", LEASE_KEY_DEVICE)), True),
        (journal(BOOT, ("file", 1)), False),
        (journal(""), True),
        (journal(BOOT, ("file", 1), damage="line 2"), True),
        (journal(EARLIER, ("san", LEASE_KEY_DEVICE)), False),
    ],
    ids=["lease", "file lock", "missing", "damaged", "earlier boot"],
)
def test_watchdog_is_needed_as_long_as_the_journal_may_have_leases(state: SavedState, expected: bool) -> None:
    assert may_hold_leases(state, BOOT) is expected


def test_kept_configuration_is_older_than_a_daemon_that_took_another_number_of_the_lock(
    tmp_path: Path,
) -> None:
    """A dead daemon that is stuck in storage still has the first one."""
    run_lock = tmp_path / daemon_lock.RUN_LOCK
    assert daemon_lock.claimed_last_ns(str(run_lock)) == 0
    second, kept = Path(f"{run_lock}.1"), tmp_path / kept_file.KEPT_FILE
    for seconds, file in enumerate((run_lock, kept, second)):
        file.write_text("")
        os.utime(file, (seconds, seconds))
    assert daemon_lock.claimed_last_ns(str(run_lock)) == second.stat().st_mtime_ns
    assert kept_config.is_older_than_the_last_daemon(str(tmp_path))


def test_volumes_whose_guard_can_not_be_made_any_more_are_refused_and_the_rest_is_in_force() -> None:
    config = Config(
        run_dir="/run/holdfast",
        state_dir="/var/lib/holdfast",
        backend={
            "file": {"driver": "file"},
            "san": {"driver": "of-a-package-that-was-removed"},
            "vol": {"driver": "lvm", "guard": "san", "activation": "shared"},
        },
    )
    kept = kept_config.decode(kept_file.encode(config, BOOT, {}), "kept", BOOT)
    assert isinstance(kept, Kept), kept
    drivers = {name: table["driver"] for name, table in kept.config.backend.items()}
    assert drivers == {"file": "file", "san": "absent", "vol": "absent"}
    assert "backend 'san' has no leases" in str(kept.config.backend["vol"]["reason"])
