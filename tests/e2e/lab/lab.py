"""Two hosts or three, their daemons and their storage, brought up as one and taken down without a trace.

A lab is made for a lock daemon per host and a way of asking for locks (direct or indirect).  It also knows
the answer that every scenario comes back to: which file carries the kernel lock of a disk, and who holds
it.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Protocol

from tests.e2e.lab.daemons import LEASES, Daemon, Kind, Libvirtd, LockDaemon, LockMode
from tests.e2e.lab.domains import Device, Disk, Domain, LockFailureAction
from tests.e2e.lab.hosts import NAMES, Host
from tests.e2e.lab.kernel_locks import Mode, hashed_name, probe
from tests.e2e.lab.polling import until
from tests.e2e.lab.programs import Programs
from tests.e2e.lab.storage import DEVICE_BYTES, IMAGE_BYTES, Image, LoopDevice, SharedFolder, write_boot_disk
from tests.e2e.lab.vms import Vm
from tests.support.leases import SPACE, make_lockspace

HOOK = Path(__file__).parents[3] / "packaging" / "libvirt" / "qemu-hook"
MARK = "===="
ASK_GUESTS = f"echo {MARK}; list --name; echo {MARK}; list --name --all --persistent"


class Lab:
    """The whole: `alpha`, `beta`, what runs on them and what they share."""

    def __init__(
        self,
        *,
        folder: Path,
        cache: Path,
        programs: Programs,
        kinds: tuple[Kind, ...],
        mode: LockMode,
        hook: bool = False,
    ) -> None:
        self.mode = mode
        self.hook = hook
        self._folder = folder
        self._programs = programs
        self.storage = SharedFolder(folder / "shared", programs.boot_sector)
        self.devices: list[LoopDevice] = []
        self.hosts: list[Host] = []
        self.lockd: dict[Host, LockDaemon] = {}
        self.libvirtd: dict[Host, Libvirtd] = {}
        for name, kind in zip(NAMES[: len(kinds)], kinds, strict=True):
            host = Host(name=name, folder=folder / name, shared=self.storage.folder, cache=cache)
            host.folder.mkdir()
            self.hosts.append(host)
            self.lockd[host] = LockDaemon(host, kind, mode)
            self.libvirtd[host] = Libvirtd(host, kind, mode)
        self.alpha, self.beta = self.hosts[:2]
        self._used = False

    def up(self) -> None:
        """Bring everything up; on failure leave nothing behind."""
        try:
            for name in ("sda", "sdb"):
                self.devices.append(
                    LoopDevice(
                        path=f"/dev/lab/{name}",
                        backing=self._folder / f"{name}.backing",
                        boot_sector=self._programs.boot_sector,
                    )
                )
            for host in self.hosts:
                host.up({device.path: device.device for device in self.devices})
            if self.hook:
                self._install_hook()
            self.alpha.connect_to(self.beta)
            for alone in self.hosts[2:]:  # its libvirtd listens all the same
                alone.run("ip", "address", "add", f"{alone.address}/32", "dev", "lo")
            if self.mode in LEASES:
                leases = self.storage.folder / "disk-leases"
                leases.mkdir()
                make_lockspace(leases / SPACE)
            self.start_daemons()
        except BaseException:
            self.down()
            raise

    def _install_hook(self) -> None:
        """As docs/install.md says, with this checkout's programs; libvirtd reads which hooks there are when it starts."""
        text = HOOK.read_text().replace("PATH=", f"PATH={Path(sys.executable).parent}:")
        for host in self.hosts:
            if self.lockd[host].kind != "holdfastd":
                continue
            file = host.folder / "etc-libvirt" / "hooks" / "qemu.d" / "holdfast"
            file.parent.mkdir(parents=True)
            file.write_text(text)
            file.chmod(0o755)

    def down(self) -> None:
        """End the hosts with all that runs on them; give the devices back; remove the files."""
        for host in self.hosts:
            host.down()
        for device in self.devices:
            device.detach()
        self.devices.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def daemons(self) -> list[Daemon]:
        """Of all hosts, the lock daemons first."""
        return [*self.lockd.values(), *self.libvirtd.values()]

    def start_daemons(self) -> None:
        """Start whatever doesn't run: lock daemons first, since libvirtd asks them when it starts."""
        for host in self.hosts:
            lockd, libvirtd = self.lockd[host], self.libvirtd[host]
            lockd.start()
            if (
                lockd.kind == "virtlockd"
                and libvirtd.is_up
                and lockd.process.is_younger_than(libvirtd.process)
            ):
                libvirtd.stop()  # a new virtlockd hears of lockspaces only from a new libvirtd
            libvirtd.start()

    def reset(self) -> None:
        """No guests, all daemons up: the state in which a scenario begins."""
        self.start_daemons()
        if self._used:
            for host in self.hosts:
                host.kill_guests()
            orders = [ASK_GUESTS] * len(self.hosts)
            until(lambda: self._carry_out(orders), "all guests to be gone")
            self._used = False

    def _carry_out(self, orders: list[str]) -> bool:
        """Give each host its virsh commands, all at once, and replace them by what is left to do: nothing?"""
        running = [host.start_virsh(order) for host, order in zip(self.hosts, orders, strict=True)]
        orders[:] = [removal(virsh.communicate()[0]) for virsh in running]
        return all(order == ASK_GUESTS for order in orders)

    def vm(
        self,
        host: Host,
        name: str,
        *devices: Image | Device,
        on_poweroff: str = "destroy",
        on_lockfailure: LockFailureAction | None = None,
        qemu_locks_its_images: bool = False,
    ) -> Vm:
        """Define a guest on a host; a bare image becomes its boot disk (vda)."""
        wrapped = tuple(Disk(device) if isinstance(device, Image) else device for device in devices)
        domain = Domain(
            name=name,
            devices=wrapped,
            emulator=self._programs.qemu if qemu_locks_its_images else self._programs.qemu_without_own_locks,
            on_poweroff="restart" if on_poweroff == "restart" else "destroy",
            on_lockfailure=on_lockfailure,
        )
        vm = Vm(domain, host)
        self._used = True
        vm.define()
        return vm

    def vm_at(self, host: Host, vm: Vm) -> Vm:
        """The same guest, as another host knows it (during a migration both do)."""
        return Vm(vm.domain, host)

    def other(self, host: Host) -> Host:
        """The host's peer."""
        return self.beta if host is self.alpha else self.alpha

    def device(self, name: str) -> Image:
        """A block device that both hosts see, with a fresh guest on it."""
        device = next(device for device in self.devices if device.path == f"/dev/lab/{name}")
        write_boot_disk(device.image.file, DEVICE_BYTES, self._programs.boot_sector)
        return device.image

    def private_images(self, name: str) -> list[Image]:
        """One path that is another file on each host; the disks as alpha and as beta have them."""
        path = f"/var/lib/libvirt/images/{name}.raw"
        images = [Image(path, host.path(path)) for host in self.hosts]
        for image in images:
            image.file.parent.mkdir(exist_ok=True)
            write_boot_disk(image.file, IMAGE_BYTES, self._programs.boot_sector)
        return images

    def sparse_image(self, host: Host, path: str) -> Image:
        """A boot disk of one host that takes up only what the guest has written."""
        image = Image(path, host.path(path))
        image.file.write_bytes(self._programs.boot_sector)
        os.truncate(image.file, IMAGE_BYTES)
        return image

    def lock_file(self, image: Image) -> Path:
        """The file whose byte 0 carries the lock of a disk, with this lab's way of asking."""
        if self.mode == "indirect":
            return self.storage.folder / "lockd" / hashed_name(image.path)
        if image.path.startswith("/dev/lab/"):
            return self.storage.folder / "locks" / hashed_name(image.path)
        return image.file

    def lock(self, image: Image) -> Mode | None:
        """What the kernel says about a disk right now."""
        return probe(self.lock_file(image))

    def wait_free(self, image: Image) -> None:
        """Wait until nobody holds the disk."""
        until(lambda: self.lock(image) is None, f"the lock of {image.path} to be free")

    def held_files(self) -> list[Path]:
        """Every file of the shared folder that somebody holds a lock on."""
        files = (file for file in self.storage.folder.rglob("*") if file.is_file())
        return [file for file in files if probe(file) is not None]


def removal(said: str) -> str:
    """The virsh commands that end and forget the guests which an earlier answer to `ASK_GUESTS` listed."""
    _, running, persistent = said.rsplit(MARK, 2)
    commands = [f"destroy {name}" for name in running.split()]
    commands += [
        f"undefine {name} --managed-save --snapshots-metadata --keep-nvram" for name in persistent.split()
    ]
    return "; ".join([*commands, ASK_GUESTS])


class LabFactory(Protocol):
    """Brings up labs; `hook`: with libvirt's hook on all hosts that have holdfastd."""

    def __call__(self, kinds: tuple[Kind, ...], mode: LockMode, *, hook: bool = False) -> Lab: ...
