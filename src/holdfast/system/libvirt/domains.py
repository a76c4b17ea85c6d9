"""libvirt's own files about a domain: what it is doing, and which disks it has.

libvirt keeps /run/libvirt/qemu/NAME.xml for each running VM (libvirt-integration.md section 4).  It is the only thing
that separates the good reasons to acquire a disk twice (a guest reboot, a resume, a second commit into one base) from a
bad one: the same disk attached a second time.  Files are only read; one that can't be parsed is no answer, not an error.
Which disks there are, and which of them libvirt locks, `domain_disks` knows.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from holdfast.system.files.folder_watch import watch_folder
from holdfast.system.libvirt.domain_disks import (
    LOCKED_KINDS,
    Access,
    DomainDisk,
    Kind,
    Part,
    Pools,
    Role,
    disks_of,
    parts_of,
)
from holdfast.system.libvirt.storage_pools import DIRECTORIES
from holdfast.system.libvirt.xml_text import NotUnderstood, parse, read

if TYPE_CHECKING:
    from holdfast.system.epoll import Readiness

SUFFIX = ".xml"
XML_BYTES_MAX = 4 << 20
"""A domain with a thousand disks stays below; libvirt's own RPC strings end there."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a domain that libvirt would lock (libvirt-integration.md 2.1)."""

    path: str
    shareable: bool
    cache: str = ""
    """QEMU's cache mode as the domain has it; empty for the default."""
    transient: bool = False
    """Whether QEMU writes to an overlay that libvirt makes at the start: libvirt locks that, and not this path."""


@dataclass(frozen=True, slots=True)
class Domain:
    """``state`` and ``pid`` are of a running domain's status file; empty and None in a definition."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    backing: frozenset[str]
    """Paths of images below the top ones and of data files, which libvirt locks only for block jobs."""
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
    every: tuple[DomainDisk, ...] = ()
    """Each <disk> of whatever kind, also those that libvirt locks never."""
    parts: tuple[Part, ...] = ()
    """What is the domain's own, and no disk: NVRAM and TPM state."""
    leases: tuple[str, ...] = ()
    """Of its <lease> elements: the files that stand for them, as libvirt names them (libvirt-integration.md 2.4)."""

    def runs(self) -> bool:
        """Whether its process is there."""
        return self.pid is not None and os.path.exists(f"/proc/{self.pid}")

    @property
    def readonly(self) -> frozenset[str]:
        """Paths of disks that it only reads: CD-ROMs, and disks that are <readonly/>."""
        return frozenset(each.path for each in self.every if each.access is Access.READ_ONLY and each.path)

    @property
    def networked(self) -> tuple[DomainDisk, ...]:
        """Disks that it may write and that are reached over a network: libvirt asks no lock for them."""
        return tuple(
            each for each in self.unlocked if each.kind is Kind.NETWORK and each.name and not each.transient
        )

    @property
    def unlocked(self) -> tuple[DomainDisk, ...]:
        """Disks that it may write and that have no lock, whatever the lock manager: each says why."""
        return tuple(each for each in self.every if each.why_unlocked)

    @property
    def unresolved(self) -> tuple[DomainDisk, ...]:
        """Disks that libvirt asks a lock for, by a path that is not known: volumes of storage pools."""
        return tuple(each for each in self.every if each.is_asked_for and not each.path)

    @property
    def unguarded(self) -> tuple[Part, ...]:
        """What no lock guards beside the disks themselves: images below, data files, NVRAM, TPM state."""
        parts = (*(part for disk in self.every for part in disk.parts), *self.parts)
        return tuple(part for part in parts if part.role is not Role.COPY or part.kind not in LOCKED_KINDS)


class DomainStatus(Protocol):
    """The port."""

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        """The running domain of that name, if it is that very one."""

    def running(self) -> list[Domain]:
        """Every domain that has a status file."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All status files of one moment, and whether that is all that there is."""

    domains: tuple[Domain, ...] = ()
    """Those whose QEMU lives, or has no pid yet; a file that outlived its QEMU, because libvirtd had ended, is none."""
    unread: tuple[str, ...] = ()
    """Files that can't be read or understood, and the folder if it can't be listed: a VM may be behind each."""


class SurveyedStatus(Protocol):
    """A port for those who act on a VM's absence: they must know whether it is proven."""

    def survey(self) -> Survey:
        """Every domain, and what can't be read."""


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
        self._known: dict[str, tuple[tuple[int, int, int], Domain]] = {}
        """By path: the file that was read for the last survey, and what was in it."""

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

    def survey(self) -> Survey:
        """See `SurveyedStatus`."""
        try:
            names = sorted(os.listdir(self._directory))
        except OSError:
            return Survey(unread=(self._directory,))
        domains, unread = [], []
        known, self._known = self._known, {}
        for path in (os.path.join(self._directory, name) for name in names if name.endswith(SUFFIX)):
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # deleted since the listing
            except OSError:
                unread.append(path)
                continue
            # libvirt replaces the file as a whole.
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            domain = known[path][1] if path in known and known[path][0] == version else read_domain(path)
            if domain is None or domain.pid is None:
                unread.append(path)
                continue
            self._known[path] = (version, domain)
            if not domain.pid or domain.runs():
                domains.append(domain)
        return Survey(tuple(domains), tuple(unread))


def status_directory(environ: Mapping[str, str], uid: int) -> str:
    """Where libvirt's system daemon, or that of a user's session, keeps its status files."""
    if uid == 0:
        return "/run/libvirt/qemu"
    return os.path.join(environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "libvirt", "qemu", "run")


def read_domain(path: str, pools: Pools = DIRECTORIES) -> Domain | None:
    """A domain from its definition or from libvirt's status file. `pools`: where the files of storage pools are."""
    try:
        return domain_in(read(path, XML_BYTES_MAX), pools)
    except NotUnderstood:
        return None


def parse_domain(raw: bytes, pools: Pools = DIRECTORIES) -> Domain:
    """The same from a text. Raises `NotUnderstood`."""
    return domain_in(parse(raw), pools)


def domain_in(tree: ET.Element, pools: Pools) -> Domain:
    """The same from its root element. Raises `NotUnderstood` if there is no domain in it."""
    element = tree if tree.tag == "domain" else tree.find(".//domain")
    if element is None:
        raise NotUnderstood("there is no <domain> in it")
    running = tree.tag == "domstatus"
    every = disks_of(element, pools)
    return Domain(
        name=element.findtext("name", ""),
        uuid=element.findtext("uuid", ""),
        disks=tuple(
            Disk(disk.path, disk.access is Access.SHARED, disk.cache, disk.transient)
            for disk in every
            if disk.is_asked_for and disk.path
        ),
        backing=frozenset(
            part.path
            for disk in every
            for part in disk.parts
            if part.role in (Role.BELOW, Role.DATA) and part.path
        ),
        pid=_pid(tree.get("pid", "")) if running else None,
        state=tree.get("state", "") if running else "",
        async_job=_async_job(tree) if running else "",
        phase=_phase(tree) if running else "",
        reason=tree.get("reason", "") if running else "",
        on_lockfailure=element.findtext("on_lockfailure", "").strip(),
        every=every,
        parts=parts_of(element, pools),
        leases=tuple(_leases(element)),
    )


PID_DIGITS_MAX = 10


def _pid(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= PID_DIGITS_MAX else None


def _async_job(status: ET.Element) -> str:
    job = status.find("job")
    name = job.get("async", "none") if job is not None else "none"
    return "" if name == "none" else name


def _phase(status: ET.Element) -> str:
    job = status.find("job")
    return job.get("phase", "") if job is not None else ""


def _leases(domain: ET.Element) -> Iterator[str]:
    for lease in domain.findall("./devices/lease"):
        target, key = lease.find("target"), lease.findtext("key", "")
        space = lease.findtext("lockspace", "")
        if target is not None and key and space and (path := target.get("path", "")):
            yield f"{path}/{space}/{key}"
