"""One resource index, used by a real sanlock daemon (host 1) and by holdfastd with `device = …` (host 2), made by either."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.interop.sanlock.daemon import SanlockDaemon, as_holder, beside_holdfastd, held
from tests.interop.sanlock.direct import blank_file, direct
from tests.support.daemon import Holdfastd, make_disk, refusal
from tests.support.polling import wait_until

from holdfast.ondisk.geometry import MIB

pytestmark = pytest.mark.interop

SPACE = "LS1"
ENTRIES = 8
IO_TIMEOUT_S = 1


@dataclass
class Between:
    sanlock: SanlockDaemon
    holdfastd: Holdfastd
    place: Path
    device: Path

    @property
    def index(self) -> str:
        return f"{SPACE}:{self.device}:{MIB}"

    def disk(self, name: str) -> tuple[Path, str]:
        """A disk, and the name of its lease."""
        disk = make_disk(self.place, name)
        return disk, hashlib.md5(str(disk).encode()).hexdigest()

    def refusal(self, disk: Path) -> str:
        """Somebody's try with holdfastd; empty if it was granted (and given back)."""
        return refusal(self.holdfastd, disk)

    def looked_up(self, name: str) -> int | None:
        """Where sanlock's daemon finds a lease by the index; None if it finds none."""
        result = self.sanlock.client("lookup", "-x", self.index, "-e", name, check=False)
        found = re.search(rf"{name}:(\d+)", result) or re.search(r"offset (\d+)", result)
        return int(found.group(1)) if found and "done 0" in result else None

    def lease(self, name: str) -> str:
        offset = self.looked_up(name)
        assert offset is not None, f"sanlock does not find {name}"
        return f"{SPACE}:{name}:{self.device}:{offset}"


def made_by_sanlock(device: Path) -> None:
    blank_file(device, (3 + ENTRIES) * MIB)
    direct("init", "-s", f"{SPACE}:0:{device}:0", "-o", str(IO_TIMEOUT_S))
    direct("format", "-x", f"{SPACE}:{device}:{MIB}")


def made_by_holdfast(device: Path) -> None:
    command = [
        "lockspace",
        "init",
        str(device),
        "--name",
        SPACE,
        "--index",
        str(ENTRIES),
        "--io-timeout",
        "1",
    ]
    subprocess.run(
        [str(Path(sys.executable).parent / "holdfast"), *command], check=True, stdout=subprocess.DEVNULL
    )


@pytest.fixture(params=[made_by_sanlock, made_by_holdfast])
def between(request: pytest.FixtureRequest) -> Iterator[Between]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    device = place / "device"
    request.param(device)
    leases = f'device = "{device}"\nlockspace = "{SPACE}"'
    space = f"{SPACE}:1:{device}:0"
    # The places of a small index are counted: one for each disk.
    with beside_holdfastd(place, leases, space, IO_TIMEOUT_S, identity="path") as (sanlock, holdfastd):
        yield Between(sanlock, holdfastd, place, device)


def test_leases_made_by_either_are_found_held_and_refused_by_the_other(between: Between) -> None:
    b = between
    theirs, their_lease = b.disk("theirs.img")
    ours, our_lease = b.disk("ours.img")
    b.sanlock.client("create", "-x", b.index, "-e", their_lease)
    at = b.looked_up(their_lease)
    holder = held(b.sanlock.hold(b.lease(their_lease)))
    text = wait_until(lambda: b.refusal(theirs), "a refusal")
    assert "on host the-real-one (host_id 1)" in text
    holder.release()
    wait_until(lambda: b.refusal(theirs) == "", "the lease to be free")
    assert b.looked_up(their_lease) == at, "holdfastd has made a second one"

    assert b.looked_up(our_lease) is None
    vm = b.holdfastd.vm([ours], name="web1")
    assert b.looked_up(our_lease) not in (None, at)
    assert isinstance(b.sanlock.hold(b.lease(our_lease)), str), "sanlock acquired what holdfastd holds"
    b.holdfastd.end_vm(vm)
    # The daemon's table is empty before the release is on storage.
    taken = wait_until(
        lambda: as_holder(b.sanlock.hold(b.lease(our_lease))), "sanlock to have what was released"
    )
    assert taken is not None
    taken.release()


def test_entries_taken_out_by_either_are_free_for_the_other(between: Between) -> None:
    b = between
    disk, lease = b.disk("a.img")
    assert b.refusal(disk) == ""
    before = b.looked_up(lease)
    b.sanlock.client("delete", "-x", b.index, "-e", f"{lease}:{before}")
    assert b.looked_up(lease) is None
    assert b.refusal(disk) == ""  # made anew
    assert b.looked_up(lease) == before
    gone = b.holdfastd.cli("lease", "gc")
    assert "1 of 1 leases were taken out" in gone.stdout, gone
    assert b.looked_up(lease) is None
    b.sanlock.client("create", "-x", b.index, "-e", lease)
    assert b.looked_up(lease) == before
    assert b.refusal(disk) == ""


def test_index_that_sanlock_has_rebuilt_has_our_leases(between: Between) -> None:
    b = between
    disks = [b.disk(f"{n}.img") for n in range(3)]
    for disk, _ in disks:
        assert b.refusal(disk) == ""
    before = [b.looked_up(lease) for _, lease in disks]
    b.sanlock.client("rebuild", "-x", b.index)
    assert [b.looked_up(lease) for _, lease in disks] == before
    for disk, _ in disks:
        assert b.refusal(disk) == ""


def test_full_index_or_device_is_told_with_the_fix(between: Between) -> None:
    b = between
    for n in range(ENTRIES):
        assert b.refusal(b.disk(f"{n}.img")[0]) == ""
    text = b.refusal(b.disk("one-too-many.img")[0])
    assert str(b.device) in text
    # sanlock's own index has 16000 entries here too, but the device ends behind the eighth lease.
    assert f"all {ENTRIES} entries of its index that have room on it are used; 'holdfast lease gc'" in text
