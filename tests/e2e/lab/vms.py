"""A guest in the tests' hands: where it lives, what virsh says about it, and whether it really writes."""

import re
import subprocess
from collections.abc import Callable

from tests.e2e.lab.domains import Disk, Domain
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.polling import until
from tests.e2e.lab.processes import Process
from tests.e2e.lab.storage import Image


class Vm:
    """One defined domain on one host; a migration moves it to another."""

    def __init__(self, domain: Domain, host: Host) -> None:
        self.domain = domain
        self.host = host
        self.name = domain.name

    def define(self) -> None:
        """Make the domain known to the host's libvirtd."""
        file = self.host.folder / f"{self.name}.xml"
        file.write_text(self.domain.xml())
        self.host.virsh("define", str(file))

    def virsh(self, command: str, *arguments: str) -> str:
        """`virsh COMMAND NAME ARGUMENTS` on its host."""
        return self.host.virsh(command, self.name, *arguments)

    def refused(self, command: str, *arguments: str) -> str:
        """The same, but it must fail; returns what the user sees."""
        return self.host.virsh_refused(command, self.name, *arguments)

    def start(self) -> "Vm":
        """Start it, and wait until it has written to its disk."""
        self.virsh("start")
        self.assert_writes()
        return self

    def destroy(self) -> None:
        """Pull its plug."""
        self.virsh("destroy")

    @property
    def state(self) -> str:
        """virsh's word, with the reason: "running (booted)"."""
        return self.virsh("domstate", "--reason")

    def wait_state(self, wanted: str) -> None:
        """Wait until the state starts with `wanted`."""
        until(lambda: self.state.startswith(wanted), f"{self.name} to be {wanted}")

    def assert_writes(self, disk: Image | None = None) -> None:
        """It runs: its disk's record (or, behind an overlay, its count of writes) still grows."""
        qemu, count = self.process, self._counter(disk)
        before = count()
        until(
            lambda: count() > before + 1 or not qemu.is_alive(),
            f"{self.name} on {self.host.name} to write to its disk",
        )
        assert qemu.is_alive(), f"{self.name} on {self.host.name} is dead"

    @property
    def process(self) -> Process:
        """Its QEMU."""
        return self.host.process(self.inner_pid)

    @property
    def inner_pid(self) -> int:
        """QEMU's pid as its host counts."""
        return int(self.host.path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def kill_qemu(self) -> None:
        """kill -9, and wait until libvirt has noticed."""
        self.process.kill()
        self.wait_state("shut off")

    def migrate(self, target: Host, *options: str) -> None:
        """Move it, live, with its definition; the lab's folder isn't known as shared, hence --unsafe."""
        self.virsh("migrate", *self._move(target), "--undefinesource", "--persistent", *options)
        self.host = target

    def migrate_refused(self, target: Host, *options: str) -> str:
        """A migration that must fail; returns what the user sees."""
        return self.refused("migrate", *self._move(target), *options)

    def start_migration(self, target: Host, *options: str) -> subprocess.Popen[str]:
        """The move as `migrate` does it; the caller waits for its output and end, and says where the guest is then."""
        return self.host.start_virsh("migrate", self.name, *self._move(target), *options)

    def start_slow_migration(self, target: Host, *options: str) -> subprocess.Popen[str]:
        """A migration that never converges; returns once it is under way."""
        running = self.start_migration(target, "--bandwidth", "1", *options)
        until(lambda: is_under_way(self.virsh("domjobinfo")), f"the migration of {self.name} to be under way")
        # What the guest rewrites between two rounds takes half a second to send: far longer than it may stop for.
        self.virsh("migrate-setmaxdowntime", "1")
        return running

    def _move(self, target: Host) -> tuple[str, ...]:
        return (f"qemu+tcp://{target.name}/system", "--live", "--unsafe")

    def top_image(self, target: str = "vda") -> str:
        """The image that guest writes reach now, as libvirt lists it."""
        for line in self.virsh("domblklist").splitlines():
            words = line.split()
            if words and words[0] == target:
                return words[1]
        raise AssertionError(f"{self.name} has no disk {target}")

    @property
    def boot_image(self) -> Image:
        """What it boots from."""
        assert self._boot.image is not None
        return self._boot.image

    @property
    def _boot(self) -> Disk:
        return next(device for device in self.domain.devices if isinstance(device, Disk))

    def _counter(self, disk: Image | None) -> Callable[[], int]:
        if disk is not None:
            return lambda: disk.count
        boot, image = self._boot, self.boot_image
        if boot.transient or boot.format != "raw" or self.top_image(boot.target) != image.path:
            return self._writes
        return lambda: image.count

    def _writes(self) -> int:
        said = self.virsh("domblkstat", "vda")
        found = re.search(r"wr_req (\d+)", said)
        assert found, said
        return int(found[1])


def is_under_way(job: str) -> bool:
    """Whether a job, as `virsh domjobinfo` reports it, is a migration that has moved data already."""
    return "Outgoing migration" in job and re.search(r"Data processed: +[^0 ]", job) is not None
