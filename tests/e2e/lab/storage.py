"""What guests write to: images in the folder that both hosts share, and block devices that both hosts see.

A guest's boot disk carries a record of its life in sector 1 (see guest.S); reading it here, behind the back
of libvirt and QEMU, is how the tests know what really reached the disk.
"""

import itertools
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

IMAGE_BYTES = 1 << 20
DEVICE_BYTES = 4 << 20
RECORD_OFFSET_BYTES = 512
RECORD_MAGIC = b"LHB2"


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image or device: its path as the hosts know it, and where the tests find the same bytes."""

    path: str
    file: Path

    @property
    def count(self) -> int:
        """How often a guest has written its record; grows while a guest runs from this disk."""
        return self._record()[0]

    @property
    def boots(self) -> int:
        """How often a guest has booted from this disk."""
        return self._record()[1]

    def _record(self) -> tuple[int, int]:
        with self.file.open("rb", buffering=0) as disk:
            disk.seek(RECORD_OFFSET_BYTES)
            magic, count, boots = struct.unpack("<4sII", disk.read(12))
        return (count, boots) if magic == RECORD_MAGIC else (0, 0)


class SharedFolder:
    """The folder that is /srv on both hosts: the network file system's stand-in."""

    def __init__(self, folder: Path, boot_sector: bytes) -> None:
        self.folder = folder
        self._boot_sector = boot_sector
        self._numbers = itertools.count(1)
        for name in ("images", "locks", "save", "leases"):  # the lock daemon makes lockd itself
            (folder / name).mkdir(parents=True)

    def file(self, path: str) -> Path:
        """A path of the hosts below /srv, as seen from outside."""
        return self.folder / Path(path).relative_to("/srv")

    def image(self, name: str) -> Image:
        """A new raw image that a guest boots from; no two images of a run share a name."""
        image = self.place(name, "raw")
        write_boot_disk(image.file, IMAGE_BYTES, self._boot_sector)
        return image

    def place(self, name: str, suffix: str) -> Image:
        """The name of an image that doesn't exist yet, for libvirt to make."""
        path = f"/srv/images/{name}-{next(self._numbers)}.{suffix}"
        return Image(path, self.file(path))


class LoopDevice:
    """A block device of this machine; the hosts have their own nodes for it, as hosts of a SAN have.

    It is detached as soon as it is attached: the kernel then keeps it exactly as long as somebody has it open, so
    that nothing is left of it even when the test run is killed.
    """

    def __init__(self, *, path: str, backing: Path, boot_sector: bytes) -> None:
        self.path = path
        write_boot_disk(backing, DEVICE_BYTES, boot_sector)
        said = subprocess.run(
            ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
        )
        self.device = Path(said.stdout.strip())
        self._opened = os.open(self.device, os.O_RDONLY)
        subprocess.run(["losetup", "--detach", str(self.device)], check=True)

    @property
    def image(self) -> Image:
        """The device as a disk."""
        return Image(self.path, self.device)

    def detach(self) -> None:
        """Give the loop device back to the machine."""
        os.close(self._opened)


def write_boot_disk(disk: Path, size_bytes: int, boot_sector: bytes) -> None:
    """Fill a file or a device with the guest and nothing else."""
    disk.touch()
    with disk.open("r+b") as file:
        file.write(boot_sector.ljust(size_bytes, b"\0"))
