"""Every disk of a domain by its XML: its kind, how the guest may use it, and whether libvirt asks a lock for it. PURE but
for the files of storage pools.

This is the one place that knows the kinds of disks (libvirt-integration.md 2.1 and 4, newer-libvirt.md). libvirt's lock
plugins are asked for files, block devices, directories and volumes that lead to one of these, unless the guest only reads
them; for nothing else, whatever the plugin. A disk that is not understood is one too, of kind UNKNOWN and with its reason:
nothing says that it has a lock.

Beside its top image a disk may have others that no lock guards: the images below it, and the data file of a qcow2 image
(`<dataStore>`, since 10.10; 9.0 knows nothing of it, and its XML does not show it). NVRAM and TPM state are files of the
domain itself. They are `Part`s: shown, and not locked.
"""

from __future__ import annotations

import enum
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.system.libvirt.network_names import source_name
from holdfast.system.libvirt.storage_pools import Volume, find_volume

Pools = tuple[str, ...]

IMAGES_BELOW_MAX = 1024
"""QEMU opens no chain as long as this; each disk's is read so far."""
NEVER_ASKED = "libvirt's lock plugin never asks for it"


class Kind(enum.StrEnum):
    """The type of a disk, as its XML has it; a volume in a pool that is reached over a network is NETWORK."""

    FILE = "file"
    BLOCK = "block"
    DIR = "dir"
    VOLUME = "volume"
    NETWORK = "network"
    NVME = "nvme"
    VHOSTUSER = "vhostuser"
    VHOSTVDPA = "vhostvdpa"
    EMPTY = "empty"
    """A drive without a medium."""
    UNKNOWN = "unknown"


class Access(enum.StrEnum):
    """What the guest may do, and whether with others: libvirt asks for a lock of that mode, and for none to read."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    READ_ONLY = "read-only"


LOCKED_KINDS = frozenset((Kind.FILE, Kind.BLOCK, Kind.DIR, Kind.VOLUME))
"""What libvirt's lock plugins are asked for; ``dir`` is accepted read-only alone."""


class Role(enum.StrEnum):
    """What a part is of its disk, or of its domain."""

    BELOW = "backing image"
    DATA = "data file"
    COPY = "copy under way"
    """The target of a block job: libvirt asks a lock for it as for a disk of its kind."""
    NVRAM = "NVRAM"
    TPM = "TPM state"


@dataclass(frozen=True, slots=True)
class Part:
    """Something that belongs to a disk (its `target`), or to the domain (`target` empty)."""

    role: Role
    kind: Kind
    name: str
    """A path, or the name of what has none; empty if it is not known."""
    path: str = ""
    target: str = ""

    def __str__(self) -> str:
        of = f" of {self.target}" if self.target else ""
        return f"{self.role}{of} {self.name or '(not known)'}"


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """One <disk>."""

    target: str
    """As the guest's bus names it (``vda``); empty if the XML does not."""
    kind: Kind
    access: Access
    name: str
    """The path, or the name of a disk that has none (`network_names`; nvme, sockets); POOL/VOLUME of a lost volume."""
    path: str = ""
    """By which libvirt locks it; empty for kinds that it does not lock, and for a volume that can't be found."""
    cache: str = ""
    """QEMU's cache mode; empty for the default."""
    reason: str = ""
    """Why it is UNKNOWN, or why the path of a volume is not known."""
    parts: tuple[Part, ...] = ()
    transient: bool = False
    """Whether QEMU writes to an overlay that libvirt makes at the start."""

    @property
    def is_asked_for(self) -> bool:
        """Whether libvirt asks its lock plugin for it."""
        return self.kind in LOCKED_KINDS and self.access is not Access.READ_ONLY

    @property
    def why_unlocked(self) -> str:
        """Why a disk that the guest may write has no lock, whatever the lock manager; empty for all others."""
        if self.access is Access.READ_ONLY or self.kind is Kind.EMPTY or self.is_asked_for:
            return ""
        if self.kind is Kind.UNKNOWN:
            return f"whether libvirt asks a lock for it is not known: {self.reason}"
        return NEVER_ASKED

    def __str__(self) -> str:
        return f"{self.name} ({self.target})" if self.target else self.name


def disks_of(domain: ET.Element, pools: Pools) -> tuple[DomainDisk, ...]:
    """Every <disk>, in the order of the XML."""
    return tuple(_disk(each, pools) for each in domain.findall("./devices/disk"))


def parts_of(domain: ET.Element, pools: Pools) -> tuple[Part, ...]:
    """NVRAM and TPM state. A <tpm> without a source has a directory that libvirt chooses by the domain's UUID."""
    return (*_nvram(domain, pools), *_tpm(domain))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a <source> leads."""

    kind: Kind
    name: str
    path: str = ""
    reason: str = ""


def _disk(disk: ET.Element, pools: Pools) -> DomainDisk:
    target, driver = disk.find("target"), disk.find("driver")
    cache = "" if driver is None else driver.get("cache", "")
    where = "" if target is None else target.get("dev", "")
    place = _place(disk, pools)
    if place.reason == NO_SOURCE and disk.get("device") in ("cdrom", "floppy"):
        place = _Place(Kind.EMPTY, "")
    return DomainDisk(
        target=where,
        kind=place.kind,
        access=_access(disk),
        transient=disk.find("transient") is not None,
        name=place.name,
        path=place.path,
        cache="" if cache == "default" else cache,
        reason=place.reason,
        parts=tuple(_parts(disk, where, pools)),
    )


def _access(disk: ET.Element) -> Access:
    if disk.find("readonly") is not None or disk.get("device") == "cdrom":
        return Access.READ_ONLY
    return Access.SHARED if disk.find("shareable") is not None else Access.EXCLUSIVE


NO_SOURCE = "it has no source"
NOT_WHERE = "its source does not say where it is"


def _place(element: ET.Element, pools: Pools) -> _Place:
    """Of a <disk>, or of any other element with a type and a <source>."""
    source, kind = element.find("source"), element.get("type", "file")
    if source is None:
        source = ET.Element("source")
    match kind:
        case "file" | "block" | "dir":
            path = source.get("dev" if kind == "block" else kind, "")
            place = _Place(Kind(kind), path, path)
        case "volume":
            place = _volume(source, pools)
        case "network":
            place = _Place(Kind.NETWORK, source_name(source))
        case "nvme":
            place = _Place(Kind.NVME, _nvme(source))
        case "vhostuser":
            place = _Place(Kind.VHOSTUSER, _prefixed("vhostuser:", source.get("path", "")))
        case "vhostvdpa":
            place = _Place(Kind.VHOSTVDPA, _prefixed("vhostvdpa:", source.get("dev", "")))
        case _:
            reason = "Holdfast does not know disks of that type"
            return _Place(Kind.UNKNOWN, f"type={kind!r}", reason=reason)
    if place.name:
        return place
    # What kind it is decides whether libvirt asks; a path that is missing leaves open what libvirt would ask for.
    known = Kind.UNKNOWN if place.kind in LOCKED_KINDS else place.kind
    says_nothing = set(source.keys()) <= {"startupPolicy", "index"}
    return _Place(known, f"type={kind!r}", reason=NO_SOURCE if says_nothing else NOT_WHERE)


def _volume(source: ET.Element, pools: Pools) -> _Place:
    """Newer libvirt notes in its status files where a volume was when the VM started: that counts."""
    pool, volume = source.get("pool", ""), source.get("volume", "")
    name = f"{pool}/{volume}" if pool or volume else ""
    actual = source.get("actualType", "")
    if path := source.get("dev" if actual == "block" else actual or "file", ""):
        return _Place(Kind.VOLUME, path, path)
    if actual == "network" and name:
        return _Place(
            Kind.NETWORK,
            source_name(source) or find_volume(pool, volume, pools, direct=True).network_name or name,
        )
    found = (
        find_volume(pool, volume, pools, direct=source.get("mode") == "direct")
        if name
        else Volume(reason=NOT_WHERE)
    )
    if found.network_name:
        return _Place(Kind.NETWORK, found.network_name)
    return _Place(Kind.VOLUME, found.path or name, found.path, found.reason)


def _nvme(source: ET.Element) -> str:
    """nvme://0000:01:00.0/NAMESPACE: the controller's PCI address and the namespace on it."""
    address, namespace = source.find("address"), source.get("namespace", "")
    if address is None or not namespace:
        return ""
    try:
        domain, bus, slot, function = (
            int(address.get(each, "0"), 16) for each in ("domain", "bus", "slot", "function")
        )
    except ValueError:
        return ""
    return f"nvme://{domain:04x}:{bus:02x}:{slot:02x}.{function:x}/{namespace}"


def _prefixed(prefix: str, text: str) -> str:
    return f"{prefix}{text}" if text else ""


# --- what belongs to a disk, or to the domain ---


def _parts(disk: ET.Element, target: str, pools: Pools) -> Iterator[Part]:
    yield from _data_file(disk, target, pools)
    yield from _below(disk, target, pools)
    mirror = disk.find("mirror")
    if mirror is not None and mirror.find("source") is not None:
        yield _part(Role.COPY, mirror, target, pools)
        yield from _data_file(mirror, target, pools)
        yield from _below(mirror, target, pools)


def _below(image: ET.Element, target: str, pools: Pools) -> Iterator[Part]:
    """The chain ends at an empty <backingStore/>."""
    below = image.find("backingStore")
    for _ in range(IMAGES_BELOW_MAX):
        if below is None or below.find("source") is None:
            return
        yield _part(Role.BELOW, below, target, pools)
        yield from _data_file(below, target, pools)
        below = below.find("backingStore")


def _data_file(image: ET.Element, target: str, pools: Pools) -> Iterator[Part]:
    for store in (*image.findall("source/dataStore"), *image.findall("dataStore")):
        yield _part(Role.DATA, store, target, pools)


def _part(role: Role, element: ET.Element, target: str, pools: Pools) -> Part:
    place = _place(element, pools)
    return Part(role, place.kind, place.name, place.path, target)


def _nvram(domain: ET.Element, pools: Pools) -> Iterator[Part]:
    """The path is the element's text, or it has a <source> as disks do (since 8.5)."""
    for nvram in domain.findall("./os/nvram"):
        if nvram.find("source") is not None:
            yield _part(Role.NVRAM, nvram, "", pools)
        else:
            path = (nvram.text or "").strip()
            yield Part(Role.NVRAM, Kind.FILE, path, path)
    for store in domain.findall("./os/varstore"):
        path = store.get("path", "")
        yield Part(Role.NVRAM, Kind.FILE, path, path)


TPM_FOLDER = "/var/lib/libvirt/swtpm"


def _tpm(domain: ET.Element) -> Iterator[Part]:
    """Of emulated ones: a passed-through device or an external emulator keeps its state elsewhere."""
    for backend in domain.findall("./devices/tpm/backend[@type='emulator']"):
        source, uuid = backend.find("source"), domain.findtext("uuid", "")
        path = "" if source is None else source.get("path", "")
        if not path and uuid:
            path = f"{TPM_FOLDER}/{uuid}/tpm{'1.2' if backend.get('version') == '1.2' else '2'}"
        kind = Kind.FILE if source is not None and source.get("type") == "file" else Kind.DIR
        yield Part(Role.TPM, kind, path, path)
