"""libvirt's own files about a domain: what it is doing, and which disks it has.

libvirt keeps /run/libvirt/qemu/NAME.xml for each running VM (libvirt-integration.md section 4).  It is the only thing
that separates the good reasons to acquire a disk twice (a guest reboot, a resume, a second commit into one base) from a
bad one: the same disk attached a second time.  Files are only read; one that can't be parsed is no answer, not an error.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from holdfast.system.files.folder_watch import watch_folder
from holdfast.system.libvirt.storage_pools import DIRECTORIES, volume_path

if TYPE_CHECKING:
    from holdfast.system.epoll import Readiness

SUFFIX = ".xml"
Pools = tuple[str, ...]
XML_BYTES_MAX = 4 << 20
"""A domain with a thousand disks stays below; libvirt's own RPC strings end there."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a domain that libvirt would lock (libvirt-integration.md 2.1)."""

    path: str
    shareable: bool
    cache: str = ""
    """QEMU's cache mode as the domain has it; empty for the default."""


@dataclass(frozen=True, slots=True)
class Domain:
    """``state`` and ``pid`` are of a running domain's status file; empty and None in a definition."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    backing: frozenset[str]
    """Paths of images below the top ones, which libvirt locks only for block jobs."""
    pid: int | None
    state: str
    async_job: str = ""
    """What libvirt is about with it for some time: ``migration out``, ``save``, ``dump``, ``snapshot``; else empty."""
    phase: str = ""
    """How far a migration is (libvirt-hooks-lvm.md 2.2); empty if none is under way, or if it has just begun."""
    reason: str = ""
    """Of the state: ``booted``, ``migration``, ``post-copy``."""
    on_lockfailure: str = ""
    """pause, poweroff, restart or ignore; empty if the domain does not say."""
    unlocked: tuple[str, ...] = ()
    """Writable disks that libvirt asks no lock for, whatever its lock manager (libvirt-integration.md 2.1), for people."""
    readonly: frozenset[str] = frozenset()
    """Paths of disks that it only reads: CD-ROMs, and disks that are <readonly/>."""
    unresolved: tuple[str, ...] = ()
    """Volumes of storage pools whose path is not known."""
    leases: tuple[str, ...] = ()
    """Of its <lease> elements: the files that stand for them, as libvirt names them (libvirt-integration.md 2.4)."""


class DomainStatus(Protocol):
    """The port."""

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        """The running domain of that name, if it is that very one."""

    def running(self) -> list[Domain]:
        """Every domain that has a status file."""


@runtime_checkable
class WatchedStatus(Protocol):
    """A port that also sends news; one that doesn't is asked from time to time."""

    def watch(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        """Call `on_change` with the name of each VM whose status may have changed; returns the way to stop that."""


class LibvirtStatusFiles:
    """The status files of one libvirt daemon.  Without `readiness` there is no news of them."""

    def __init__(self, directory: str, readiness: Readiness | None = None) -> None:
        self._directory = directory
        self._readiness = readiness

    def watch(self, on_change: Callable[[str], None]) -> Callable[[], None]:
        if self._readiness is None:
            return lambda: None

        def changed(file: str) -> None:
            if file.endswith(SUFFIX):
                on_change(file.removesuffix(SUFFIX))

        return watch_folder(self._directory, self._readiness, changed)

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        if not name or "/" in name or "\0" in name:
            return None
        domain = read_domain(os.path.join(self._directory, f"{name}{SUFFIX}"))
        if domain is None or domain.pid != pid or (uuid and domain.uuid != uuid):
            return None
        return domain

    def running(self) -> list[Domain]:
        try:
            names = sorted(os.listdir(self._directory))
        except OSError:
            return []
        paths = (os.path.join(self._directory, name) for name in names if name.endswith(SUFFIX))
        return [domain for path in paths if (domain := read_domain(path)) is not None]


def status_directory(environ: Mapping[str, str], uid: int) -> str:
    """Where libvirt's system daemon, or that of a user's session, keeps its status files."""
    if uid == 0:
        return "/run/libvirt/qemu"
    return os.path.join(environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "libvirt", "qemu", "run")


def read_domain(path: str, pools: tuple[str, ...] = DIRECTORIES) -> Domain | None:
    """A domain from its definition or from libvirt's status file. `pools`: where the files of storage pools are."""
    try:
        if os.path.getsize(path) > XML_BYTES_MAX:
            return None
        tree = ET.parse(path).getroot()
    except (OSError, ET.ParseError, ValueError):
        return None
    element = tree if tree.tag == "domain" else tree.find(".//domain")
    if element is None:
        return None
    running = tree.tag == "domstatus"
    pid = tree.get("pid", "") if running else ""
    return Domain(
        name=element.findtext("name", ""),
        uuid=element.findtext("uuid", ""),
        disks=tuple(_disks(element, pools)),
        backing=frozenset(_backing(element, pools)),
        pid=int(pid) if pid.isdigit() else None,
        state=tree.get("state", "") if running else "",
        async_job=_async_job(tree) if running else "",
        phase=_phase(tree) if running else "",
        reason=tree.get("reason", "") if running else "",
        on_lockfailure=element.findtext("on_lockfailure", "").strip(),
        unlocked=tuple(_unlocked(element)),
        readonly=frozenset(_readonly(element, pools)),
        unresolved=tuple(_unresolved(element, pools)),
        leases=tuple(_leases(element)),
    )


def _async_job(status: ET.Element) -> str:
    job = status.find("job")
    name = job.get("async", "none") if job is not None else "none"
    return "" if name == "none" else name


def _phase(status: ET.Element) -> str:
    job = status.find("job")
    return job.get("phase", "") if job is not None else ""


def _disks(domain: ET.Element, pools: Pools) -> Iterator[Disk]:
    for disk in _writable(domain):
        path = _path(disk, pools)
        if path:
            driver = disk.find("driver")
            cache = driver.get("cache", "") if driver is not None else ""
            yield Disk(path, disk.find("shareable") is not None, "" if cache == "default" else cache)


def _writable(domain: ET.Element) -> Iterator[ET.Element]:
    for disk in domain.findall("./devices/disk"):
        if disk.find("readonly") is None and disk.get("device") != "cdrom":
            yield disk


def _readonly(domain: ET.Element, pools: Pools) -> Iterator[str]:
    for disk in domain.findall("./devices/disk"):
        if (disk.find("readonly") is not None or disk.get("device") == "cdrom") and (
            path := _path(disk, pools)
        ):
            yield path


def _unlocked(domain: ET.Element) -> Iterator[str]:
    for disk in _writable(domain):
        kind = disk.get("type", "")
        source = disk.find("source")
        if kind in LOCKED_KINDS or source is None:
            continue
        what = source.get("name") or source.get("path") or source.get("namespace") or ""
        target = disk.find("target")
        where = f" ({target.get('dev', '')})" if target is not None else ""
        yield f"{source.get('protocol') or kind}:{what}{where}"


def _unresolved(domain: ET.Element, pools: Pools) -> Iterator[str]:
    for disk in _writable(domain):
        source = disk.find("source")
        if disk.get("type") == "volume" and source is not None and not _path(disk, pools):
            yield f"{source.get('pool', '')}/{source.get('volume', '')}"


def _leases(domain: ET.Element) -> Iterator[str]:
    for lease in domain.findall("./devices/lease"):
        target, key = lease.find("target"), lease.findtext("key", "")
        space = lease.findtext("lockspace", "")
        if target is not None and key and space and (path := target.get("path", "")):
            yield f"{path}/{space}/{key}"


def _backing(domain: ET.Element, pools: Pools) -> Iterator[str]:
    for store in domain.findall("./devices/disk//backingStore"):
        if path := _path(store, pools):
            yield path


LOCKED_KINDS = ("file", "block", "dir", "volume")
"""What libvirt's lock plugins are asked for; ``dir`` is accepted read-only alone, a volume leads to one of the others."""


def _path(element: ET.Element, pools: Pools) -> str:
    source = element.find("source")
    if source is None:
        return ""
    kind = element.get("type", "")
    if kind == "volume":
        return volume_path(source.get("pool", ""), source.get("volume", ""), pools)
    attribute = {"file": "file", "block": "dev", "dir": "dir"}.get(kind)
    return source.get(attribute, "") if attribute else ""
