"""Lease storage that is damaged under a live daemon for a time of your choice (`make fuzz`).

    python -m tests.fuzz.damaged_storage SECONDS [SEED]

A host has two lockspaces. In the *struck* one sectors of lockspace, index and leases are damaged without end: bits, bytes,
whole sectors, sectors of another place, records whose checksum is right although their content is not, a file that is cut.
The *sound* one has a VM. After each blow a command reads the struck storage or asks for a disk there, and then:

* the daemon lives and has the sound lock, another host is refused it, and it renews;
* nothing ends in a traceback, and no command takes longer than the storage's own time-outs;
* descriptors and memory don't grow.

Once in a while the struck storage is made again, or nothing but refusals would be tried.
"""

from __future__ import annotations

import itertools
import random
import shutil
import struct
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from holdfast.ondisk import delta, leader
from holdfast.ondisk.checksum import sanlock_crc32c
from holdfast.ondisk.geometry import DEFAULT
from tests.daemon.test_fuzzed_frames import descriptors, resident_kib
from tests.support.daemon import Holdfastd, exists, make_disk, refusal
from tests.support.leases import make_lockspace
from tests.support.polling import wait_until

SOUND, STRUCK = "sound", "struck"
SECTOR = DEFAULT.sector_bytes
BLOWS_EACH = 30
"""Before the struck storage is made again."""
COMMAND_S_MAX = 45.0
"""More than any time-out of a command, on a loaded machine; a stall of others has no end."""
GROWTH_KIB_MAX = 32 * 1024
RECORD_COVERED_BYTES, BLOCK_COVERED_BYTES = 168, 48
"""What the checksum of a delta lease or leader covers, and that of a host's block; it follows (sanlock-disk.md 2, 5)."""


def configuration(directory: Path, host_id: int) -> str:
    tables = "".join(
        f'[backend.{space}]\ndriver = "paxos"\ndirectory = "{directory / space}"\nlockspace = "{space}"\n'
        f"host_id = {host_id}\n"
        f'cross_host = true\nwatchdog = "none"\nio_timeout_s = 1\nfire_timeout_s = 60\n'
        for space in (SOUND, STRUCK)
    )
    rules = "".join(f'[[disk]]\nmatch = "*/{space}-*"\nbackend = "{space}"\n' for space in (SOUND, STRUCK))
    return tables + rules


class Scene:
    """Two hosts; the first one is looked at."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = Path(tempfile.mkdtemp(prefix="hf-"))
        for space in (SOUND, STRUCK):
            (self.directory / space).mkdir()
            make_lockspace(self.directory / space / space, name=space, index_entries=4)
        self.alpha, self.beta = (
            Holdfastd(self.directory / name, configuration(self.directory, number))
            for number, name in enumerate(("alpha", "beta"), 1)
        )
        for host in (self.alpha, self.beta):
            host.start()
        self.sound = make_disk(self.directory, "sound-a.img")
        self.struck = [make_disk(self.directory, f"struck-{n}.img") for n in range(3)]
        for host in (self.alpha, self.beta):
            wait_until(partial(self.may_start_on, host), "the sound lockspace to be joined")
        self.vm = self.alpha.vm([self.sound], name="guarded")
        self.begun = (descriptors(self.alpha.pid), resident_kib(self.alpha.pid))

    def may_start_on(self, host: Holdfastd) -> bool:
        return refusal(host, self.sound) == ""

    def close(self) -> None:
        for host in (self.alpha, self.beta):
            host.stop_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    def blow(self) -> str:
        """Damage one file of the struck storage; what was done."""
        path = self.random.choice(sorted((self.directory / STRUCK).iterdir()))
        size = path.stat().st_size
        if not size:
            return f"{path.name} is empty"
        # Most records are at the begin.
        sector = self.random.choice(
            (0, 0, 1, self.random.randrange(8), self.random.randrange(size // SECTOR or 1))
        )
        with path.open("r+b") as file:
            file.seek(sector * SECTOR)
            raw = bytearray(file.read(SECTOR).ljust(SECTOR, b"\0"))
            kind = self.random.choice(
                ("bit", "bytes", "field", "field", "field", "sector", "elsewhere", "cut")
            )
            if kind == "cut":
                file.truncate(self.random.randrange(size))
                return f"{path.name}: {kind}"
            if kind == "bit":
                raw[self.random.randrange(SECTOR)] ^= 1 << self.random.randrange(8)
            elif kind == "bytes":
                at = self.random.randrange(SECTOR)
                raw[at : at + 8] = self.random.randbytes(8)[: SECTOR - at]
            elif kind == "field":
                at = 4 * self.random.randrange(40)
                value = self.random.choice(
                    (0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, self.random.getrandbits(32))
                )
                raw[at : at + 4] = struct.pack("<I", value)
                repaired(raw)
            elif kind == "sector":
                raw[:] = self.random.choice((bytes(SECTOR), b"\xff" * SECTOR, self.random.randbytes(SECTOR)))
            else:
                file.seek(SECTOR * self.random.randrange(size // SECTOR or 1))
                raw[:] = file.read(SECTOR).ljust(SECTOR, b"\0")
            file.seek(sector * SECTOR)
            file.write(raw)
        return f"{path.name}, sector {sector}: {kind}"

    def command(self) -> str:
        """Ask something of the struck storage; returns what, for the report of a failure."""
        path = self.random.choice(sorted((self.directory / STRUCK).iterdir()))
        disk = self.random.choice(self.struck)
        commands: tuple[tuple[str, ...], ...] = (
            ("lease", "dump", str(path)),
            ("lease", "dump", str(path), "--json"),
            ("host", "list", str(self.directory / STRUCK / STRUCK)),
            ("lockspace", "list"),
            ("lease", "gc", "--dry-run"),
            ("who", str(disk)),
            ("status",),
        )
        words = self.random.choice((*commands, (), (), ()))
        begun = time.monotonic()
        if not words:
            words = ("acquire", str(disk))
            refusal(self.random.choice((self.alpha, self.beta)), disk)
        else:
            done = self.alpha.cli(*words)
            assert "Traceback" not in done.stderr, (words, done.stderr)
        took_s = time.monotonic() - begun
        assert took_s < COMMAND_S_MAX, (words, took_s)
        return " ".join(words)

    def holds(self) -> None:
        """What damage in one lockspace must not touch."""
        for host in (self.alpha, self.beta):
            assert host.process is not None
            assert host.process.poll() is None, host.log_text()[-3000:]
            assert "Traceback" not in host.log_text(), host.log_text()[-3000:]
        assert exists(self.vm)
        assert "guarded" in refusal(self.beta, self.sound)
        fds, kib = self.begun
        wait_until(lambda: descriptors(self.alpha.pid) < fds + 40, "descriptors to be closed")
        assert resident_kib(self.alpha.pid) < kib + GROWTH_KIB_MAX

    def make_again(self) -> None:
        """As an operator would who has lost the storage: no host of this lockspace runs a VM."""
        for path in (self.directory / STRUCK).iterdir():
            path.unlink()
        make_lockspace(self.directory / STRUCK / STRUCK, name=STRUCK, index_entries=4)
        deadline = time.monotonic() + COMMAND_S_MAX
        while refusal(self.alpha, self.struck[0]) and time.monotonic() < deadline:
            time.sleep(1)


def repaired(raw: bytearray) -> None:
    """Give a record the checksum of its content, as a program with a fault would write it."""
    (magic,) = struct.unpack_from("<I", raw)
    at = RECORD_COVERED_BYTES if magic in (delta.MAGIC, leader.MAGIC) else BLOCK_COVERED_BYTES
    struct.pack_into("<I", raw, at, sanlock_crc32c(bytes(raw[:at])))


def main() -> None:
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    until = time.monotonic() + float(sys.argv[1])
    print(f"seed {seed}", flush=True)
    scene, done = Scene(seed), list[str]()
    try:
        for number in itertools.count(1):
            if time.monotonic() > until:
                break
            done.append(f"{scene.blow()}; {scene.command()}")
            scene.holds()
            if number % BLOWS_EACH == 0:
                scene.make_again()
    except BaseException:
        print(*done[-BLOWS_EACH:], sep="\n")
        raise
    finally:
        print(f"{len(done)} blows; {scene.begun[1]} to {resident_kib(scene.alpha.pid)} KiB resident")
        scene.close()


if __name__ == "__main__":
    main()
