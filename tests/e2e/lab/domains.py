"""Domain XML of the lab's guests: the smallest machine that libvirt starts and that reacts to its power
button."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

from tests.e2e.lab.storage import Image

DomainUuid = uuid.UUID
LockFailureAction = Literal["poweroff", "pause"]


@dataclass(frozen=True, slots=True)
class Disk:
    """One <disk>; `image` None is a drive without a medium."""

    image: Image | None
    target: str = "vda"
    format: Literal["raw", "qcow2"] = "raw"
    device: Literal["disk", "cdrom", "floppy"] = "disk"
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    cache: Literal["none"] | None = None
    """None: libvirt's default."""

    def xml(self) -> str:
        """The element; a path below /dev is a block device, any other a file."""
        kind, attribute, source = "file", "file", ""
        if self.image is not None:
            if self.image.path.startswith("/dev/"):
                kind, attribute = "block", "dev"
            source = f"<source {attribute}={quoteattr(self.image.path)}/>"
        bus = {"v": "virtio", "s": "scsi", "f": "fdc", "h": "ide"}[self.target[0]]
        flags = "".join(
            f"<{name}/>" for name in ("readonly", "shareable", "transient") if getattr(self, name)
        )
        cache = f" cache='{self.cache}'" if self.cache else ""
        return (
            f"<disk type='{kind}' device='{self.device}'><driver name='qemu' type='{self.format}'{cache}/>{source}"
            f"<target dev='{self.target}' bus='{bus}'/>{flags}</disk>"
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """One <lease>: a lock that an administrator names, beside or instead of those on disks."""

    folder: str
    lockspace: str
    key: str

    def xml(self) -> str:
        """The element."""
        return (
            f"<lease><lockspace>{self.lockspace}</lockspace><key>{self.key}</key>"
            f"<target path={quoteattr(self.folder)}/></lease>"
        )


@dataclass(frozen=True, slots=True)
class Volume:
    """A <disk> that is a volume of a storage pool of its host."""

    pool: str
    volume: str
    target: str = "vda"

    def xml(self) -> str:
        """The element."""
        return (
            f"<disk type='volume' device='disk'><driver name='qemu' type='raw'/>"
            f"<source pool={quoteattr(self.pool)} volume={quoteattr(self.volume)}/>"
            f"<target dev='{self.target}' bus='virtio'/></disk>"
        )


@dataclass(frozen=True, slots=True)
class NetworkDisk:
    """A <disk> that QEMU reaches over a network, by default at its own host."""

    protocol: Literal["nbd", "iscsi"]
    name: str
    server: str = "localhost"
    target: str = "vda"

    def xml(self) -> str:
        """The element."""
        return (
            f"<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
            f"<source protocol='{self.protocol}' name={quoteattr(self.name)}>"
            f"<host name={quoteattr(self.server)}/></source>"
            f"<target dev='{self.target}' bus='virtio'/></disk>"
        )


Device = Disk | Lease | Volume | NetworkDisk


@dataclass(frozen=True, slots=True)
class Domain:
    """A whole guest.  Its uuid follows from its name, so that the same guest can be defined on both hosts."""

    name: str
    devices: tuple[Device, ...]
    emulator: Path
    on_poweroff: Literal["destroy", "restart"] = "destroy"
    on_lockfailure: LockFailureAction | None = None

    @property
    def uuid(self) -> DomainUuid:
        """The same on every host."""
        return uuid.uuid5(uuid.NAMESPACE_OID, self.name)

    def xml(self) -> str:
        """The document for `virsh define`."""
        devices = "".join(device.xml() for device in self.devices)
        action = f"<on_lockfailure>{self.on_lockfailure}</on_lockfailure>" if self.on_lockfailure else ""
        return (
            f"<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid>"
            f"<memory unit='MiB'>32</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>"
            f"<on_poweroff>{self.on_poweroff}</on_poweroff>{action}"
            f"<devices><emulator>{self.emulator}</emulator>{devices}"
            f"<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        )
