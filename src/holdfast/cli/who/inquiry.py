"""`holdfast who`: everything that can be known about who holds a disk, and what may safely be done next.

Five layers, each of which works without the others:
* the daemon: exact, for this host;
* the lock file: the kernel says whether the lock is taken (also by another host, through the file system), the owner
  record in it says by whom;
* the kernel's lock table: which process of this host has byte 0 of the disk or of its lock file: a virtlockd, another
  holdfastd;
* leases on shared storage: which host and VM hold it across hosts, and whether that host lives;
* QEMU's own image locks: somebody has the disk open, whatever the lock managers think.
"""

from __future__ import annotations

import os
import shlex
import socket as sockets
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from holdfast.backends.file import owner_record
from holdfast.backends.naming import indirect_name
from holdfast.cli.libvirt_files import domain_disks, lease_paths, libvirt_lockspaces, libvirt_names
from holdfast.cli.who.disk_users import no_disk, users
from holdfast.config import Config
from holdfast.control.api import HolderInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.manager.journal_replay import SavedState, replay
from holdfast.model import Holder, wall_text
from holdfast.system.files.bounded_question import ANSWER_S, Silent, answer_in_time
from holdfast.system.files.disk_identity import SystemDiskIdentities
from holdfast.system.files.proc_locks import LockingProcess, locks_on, processes_with, refused_by
from holdfast.system.files.regular_file import open_regular
from holdfast.system.host.process import boot_id, start_ticks

if TYPE_CHECKING:
    from holdfast.cli.who.leases import LeaseSeen

DISKS_SHOWN_MAX = 64


LEASES_ANSWER_S = 15.0
"""For all leases that one disk may have in a backend: each takes a few requests."""


@dataclass
class Layer:
    name: str
    lines: list[str]


@dataclass
class Answer:
    """What is known about one disk or one VM.  ``verdict``: held, free or unknown."""

    subject: str
    verdict: str = "unknown"
    headline: str = ""
    next_step: str = ""
    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    holders: list[HolderInfo] = field(default_factory=list)
    disks: list[Answer] = field(default_factory=list)

    def add(self, name: str, line: str) -> None:
        for layer in self.layers:
            if layer.name == name:
                layer.lines.append(line)
                return
        self.layers.append(Layer(name, [line]))


def ask(config: Config, socket: str, what: str, *, root: str = "/") -> Answer:
    """The answer for a path, or for a VM's name or UUID. `root`: where libvirt's files are."""
    inquiry = _Inquiry(config, socket, root)
    try:
        if "/" in what or os.path.exists(what):
            return inquiry.disk(os.path.abspath(what))
        return inquiry.lock(what) or inquiry.lease(what) or inquiry.domain(what)
    finally:
        inquiry.disconnect()


class _Inquiry:
    """One question; connects once."""

    def __init__(self, config: Config, socket: str, root: str) -> None:
        self._config = config
        self._root = root
        self._host = sockets.gethostname()
        self._client: ControlClient | None = None
        self._down = ""
        try:
            self._client = ControlClient(socket, timeout_s=10)
        except DaemonUnreachable as e:
            self._down = str(e)
        self._journal: SavedState | None = None
        self._silent: set[str] = set()
        """Directories that did not answer."""

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- a VM ---

    def domain(self, name: str) -> Answer:
        answer = Answer(name)
        claims = self._claims_of(name)
        answer.holders = claims
        disks = set(domain_disks(name, self._root))
        hashes = {indirect_name(d) for d in disks}
        # A claim in a hash lockspace is one of the disks that we know by path.
        disks |= {c.resource for c in claims if c.name not in hashes}
        for disk in sorted(disks)[:DISKS_SHOWN_MAX]:
            one = self.disk(disk)
            answer.disks.append(one)
            answer.add("disk", f"{disk}: {one.headline}")
        if claims:
            answer.verdict = "held"
            answer.headline = f"holds {len(claims)} disk{'s' if len(claims) != 1 else ''}"
            answer.next_step = (
                f"its disks are in use; stop the VM (virsh shutdown {name}) before anything else uses them"
            )
        elif (worst := _worst(answer.disks)) is not None:
            answer.verdict = worst.verdict
            answer.headline = f"its disk {worst.subject}: {worst.headline}"
            answer.next_step = worst.next_step
        elif disks:
            answer.verdict = "free"
            answer.headline = "holds no lock now"
            answer.next_step = "a paused or stopped VM holds nothing; see each disk above"
        else:
            answer.verdict = "free" if self._client is not None else "unknown"
            answer.headline = "holds nothing that is known here"
            answer.next_step = (
                f"check the name with: virsh list --all; for one disk: holdfast who /path (host {self._host}); for a "
                "<lease>: holdfast who TARGET/LOCKSPACE/KEY"
            )
        self._note_blindness(answer)
        if self._down:
            answer.notes.append(self._down)
        return answer

    def lock(self, name: str) -> Answer | None:
        """By the key of a `<lease>`, or a hash: the holders of a lock of that name here; None if there is none."""
        if self._client is None:
            return None
        holders = [h for h in self._client.locks() if h.name == name]
        if not holders:
            return None
        answer = (
            self.disk(holders[0].path or holders[0].resource)
            if holders[0].path.startswith("/")
            else Answer(name)
        )
        if not answer.holders:
            answer.holders = holders
            self._conclude(answer, [], [], None)
        answer.subject = f"{name} ({holders[0].resource})"
        return answer

    def lease(self, key: str) -> Answer | None:
        """By the key of a `<lease>` that nobody has here: its file says whether another host has it."""
        paths = lease_paths(key, self._root)
        if not paths:
            return None
        answers = [self.disk(path, is_lock_file=True) for path in paths]
        answer = _worst(answers) or answers[0]
        others = [each.subject for each in answers if each is not answer]
        if others:
            answer.notes.append(f"other leases have this key too: holdfast who {shlex.join(others)}")
        answer.subject = f"{key} ({answer.subject})"
        return answer

    def _note_blindness(self, answer: Answer) -> None:
        if os.geteuid() != 0:
            answer.notes.append(
                "this user is not root: processes and locks of other users can't be seen (sudo holdfast who ...)"
            )

    def _claims_of(self, name: str) -> list[HolderInfo]:
        if self._client is not None:
            return [h for h in self._client.locks() if name in (h.owner, h.owner_uuid)]
        return []

    # --- a disk ---

    def disk(self, path: str, *, is_lock_file: bool = False) -> Answer:
        """`is_lock_file`: it stands for a `<lease>`, so what is written in it is an owner's record, and no guest's."""
        answer = Answer(path)
        if what := no_disk(path):
            answer.headline = f"{what}: no disk of a VM"
            answer.next_step = "name a disk's path, or a VM: holdfast list"
            return answer
        lock_files = self._lock_files(answer, path) + [path] * is_lock_file
        self._ask_daemon(answer, path)
        record = self._ask_lock_files(answer, lock_files)
        processes = self._ask_kernel(answer, path, lock_files)
        leases = self._ask_leases(answer, path)
        refused = None if leases else self._ask_storage(answer, path, lock_files)
        self._conclude(answer, record, processes, refused)
        if leases:
            self._conclude_leases(answer, leases)
        self._conclude_users(answer, path, processes)
        self._note_blindness(answer)
        return answer

    def _conclude_users(self, answer: Answer, path: str, processes: list[LockingProcess]) -> None:
        """VMs that use it without a lock of their own on it: as the image below another one, or to read."""
        if any(h.held for h in answer.holders):
            return
        open_in = {p.pid for p in processes if p.lock.of_qemu}
        uses = users(path, open_in, self._root)
        for domain, how in uses:
            answer.add(
                "libvirt",
                f"VM {domain.name} (pid {domain.pid}) has it {how}: libvirt locks the top images alone",
            )
        only_qemu = (
            answer.verdict == "held" and open_in and not any(p.lock.of_lock_manager for p in processes)
        )
        if uses and (answer.verdict == "free" or only_qemu):
            domain, how = uses[0]
            more = f" and {len(uses) - 1} more" if len(uses) > 1 else ""
            answer.verdict = "held"
            answer.headline = f"in use by VM {domain.name}{more} {how}"
            answer.next_step = "other VMs may read it too; nothing may write to it while they run"

    def _ask_leases(self, answer: Answer, path: str) -> list[LeaseSeen]:
        """What storage says in every backend whose locks are leases."""
        tables = {n: t for n, t in self._config.backend.items() if t.get("driver") == "paxos"}
        if not tables:
            return []
        from holdfast.cli.who import leases as lease_holders

        spaces = self._client.lease_spaces() if self._client is not None else []
        disk = SystemDiskIdentities().look(path)
        resources = libvirt_names(path, disk, self._root)
        found: list[LeaseSeen] = []
        for name, table in tables.items():
            where = str(table.get("directory") or table.get("device"))
            try:
                if where in self._silent:
                    raise Silent
                looking = partial(lease_holders.look, name, table, resources, disk, spaces)
                found += answer_in_time(looking, LEASES_ANSWER_S)
            except Silent:
                reason = "its storage did not answer in time"
                found.append(lease_holders.LeaseSeen(name, where, unreadable=reason))
        for seen in found:
            for line in seen.lines:
                answer.add("lease", f"{line} ({seen.place})")
            if seen.unreadable:
                answer.notes.append(f"lease {seen.place}: {seen.unreadable}")
        return found

    @staticmethod
    def _conclude_leases(answer: Answer, leases: list[LeaseSeen]) -> None:
        """A lease says more than the locks of this kernel: it counts for all hosts."""
        if any(h.held for h in answer.holders):
            return  # the daemon's own word: it holds it here
        holders = [holder for seen in leases for holder in seen.holders]
        if holders:
            answer.verdict = "held"
            answer.headline = f"held by {holders[0]}" + (
                f" and {len(holders) - 1} more" if len(holders) > 1 else ""
            )
            answer.next_step = (
                f"on that host: holdfast who {answer.subject}; stop or migrate the VM there. If the host is dead, start "
                "the VM here again when the seconds are over"
            )
        elif any(seen.unreadable for seen in leases):
            answer.verdict = "unknown"
            answer.headline = "can't be told: its lease can't be read"
            answer.next_step = "see the notes; start nothing on this disk before you know"
        elif answer.verdict == "unknown":
            answer.verdict = "free"
            answer.headline = "free"
            answer.next_step = "nobody holds its lease; a VM that uses it can be started"

    def _lock_files(self, answer: Answer, path: str) -> list[str]:
        """Lock files that stand for a disk: in the configured directories, and where libvirt keeps its own."""
        hashed = indirect_name(path)
        directories = [
            str(t["directory"]) for t in self._config.backend.values() if isinstance(t.get("directory"), str)
        ]
        directories += libvirt_lockspaces(self._root)
        directories += self._lockspaces()
        found = []
        for directory in dict.fromkeys(directories):
            file = f"{directory}/{hashed}"
            try:
                if answer_in_time(lambda file=file: os.path.exists(file)):  # type: ignore[misc]
                    found.append(file)
            except Silent:
                self._silent.add(directory)
                answer.notes.append(
                    f"{directory} did not answer within {ANSWER_S:g} s: a lock file there may say more"
                )
        return found

    def _lockspaces(self) -> list[str]:
        """The directories that libvirt made lockspaces in. With the daemon down its journal is read, which takes longer than
        the whole of the answer on a host with a thousand VMs.
        """
        if self._client is not None:
            try:
                return self._client.status().lockspaces
            except CallRefused:
                pass
            except DaemonUnreachable as e:
                self.disconnect()  # a second question would wait as long
                self._down = str(e)
        return list(self._saved().lockspaces)

    def _saved(self) -> SavedState:
        if self._journal is None:
            try:
                with open(open_regular(self._config.journal_path, os.O_RDONLY), "rb") as f:
                    self._journal = replay(f.read())
            except OSError:
                self._journal = SavedState()
        return self._journal

    def _ask_daemon(self, answer: Answer, path: str) -> None:
        if self._client is not None:
            try:
                answer.holders = self._client.holders(path)
            except (CallRefused, DaemonUnreachable) as e:
                answer.notes.append(str(e))
            for h in answer.holders:
                state = (
                    f"protection {h.protection} ({h.protection_word})" if h.held else f"LOST: {h.lost_reason}"
                )
                since = f" since {wall_text(h.since)}" if h.since is not None else ""
                answer.add(
                    "holdfastd",
                    f"{h.mode} lock of {h.owner or 'an unnamed owner'} (pid {h.pid}"
                    f"{', uuid ' + h.owner_uuid if h.owner_uuid else ''}) on {h.host}{since}; {state}",
                )
                if h.held and h.protection_note:
                    answer.notes.append(h.protection_note)
            return
        answer.notes.append(self._down)
        saved = self._saved()
        if saved.boot != boot_id():
            return
        for lock in saved.locks.values():
            for owner_id, names in lock.claims.items():
                if any(r.name == path or r.name == indirect_name(path) for r in names):
                    owner = saved.owners[owner_id]
                    alive = start_ticks(owner.process.pid) == owner.process.start_ticks
                    answer.add(
                        "journal",
                        f"{lock.mode.word} lock of {owner.name.name} (pid {owner.process.pid}, "
                        f"{'still running' if alive else 'ended'}); holdfastd will "
                        f"{'retake' if alive else 'drop'} it when it starts",
                    )

    def _ask_lock_files(self, answer: Answer, lock_files: list[str]) -> list[Holder]:
        found: list[Holder] = []
        for file in lock_files:
            try:
                with open(file, "rb") as f:
                    told = owner_record.decode(f.read(owner_record.RECORD_FILE_BYTES_MAX))
            except OSError as e:
                answer.notes.append(f"{file}: {e.strerror}")
                continue
            found += told
            for h in told:
                answer.add("lock file", f"{h} ({file})")
        return found

    def _ask_kernel(self, answer: Answer, path: str, lock_files: list[str]) -> list[LockingProcess]:
        found: list[LockingProcess] = []
        for file in dict.fromkeys([path, *lock_files]):
            try:
                locks = [k for k in locks_on(file) if k.of_lock_manager or k.of_qemu]
                processes = processes_with(file, locks)
            except OSError as e:
                answer.notes.append(f"{file}: {e.strerror}")
                continue
            found += processes
            seen = set()
            for p in processes:
                layer = "kernel" if p.lock.of_lock_manager else "QEMU"
                if (layer, p.pid) not in seen:
                    seen.add((layer, p.pid))
                    what = (
                        f"{p.lock.mode.word} lock on byte 0 of {file}"
                        if layer == "kernel"
                        else "has the image open (its own image lock)"
                    )
                    if layer == "kernel" and p.pid == 1:
                        what += " (its descriptor store keeps holdfastd's locks over a restart)"
                    answer.add(layer, f"{p.program or 'a process'} (pid {p.pid}): {what}")
            if not processes and any(k.of_lock_manager for k in locks):
                answer.add("kernel", f"byte 0 of {file} is locked by a process that this user can't see")
        return found

    def _ask_storage(self, answer: Answer, path: str, lock_files: list[str]) -> bool | None:
        """Whether some lock manager has it, here or on another host; None if that can't be found out."""
        answers: list[bool] = []
        for file in lock_files or [path]:
            try:
                answers.append(refused_by(file) is not None)
            except OSError as e:
                answer.notes.append(f"{file}: can't be asked for its lock: {e.strerror}")
        return any(answers) if answers else None

    def _conclude(
        self, answer: Answer, record: list[Holder], processes: list[LockingProcess], refused: bool | None
    ) -> None:
        held = [h for h in answer.holders if h.held]
        lost = [h for h in answer.holders if not h.held]
        managers = [p for p in processes if p.lock.of_lock_manager]
        qemus = [p for p in processes if p.lock.of_qemu]
        elsewhere = [h for h in record if h.host and h.host != self._host]
        journal = any(layer.name == "journal" for layer in answer.layers)
        answer.verdict = "held"
        if lost and not held:
            h = lost[0]
            answer.headline = f"LOCK LOST: {h.owner} runs without it ({h.lost_reason})"
            answer.next_step = (
                f"make sure that only one VM uses it: virsh suspend {h.owner}; then look at the other holder"
            )
        elif held:
            h = held[0]
            more = f" and {len(held) - 1} more" if len(held) > 1 else ""
            answer.headline = (
                f"held by {h.owner or 'pid ' + str(h.pid)}{more} on {h.host}{', ' * bool(h.until)}{h.until}"
            )
            stop = f"virsh shutdown {h.owner}" if h.owner_uuid else f"end process {h.pid}"
            answer.next_step = f"in use here; to free it: {stop} (or migrate it)"
        elif managers:
            p = managers[0]
            answer.headline = f"held through {p.program or 'a process'} (pid {p.pid}) on this host"
            answer.next_step = (
                "a real virtlockd has it for one of its VMs: virsh list; holdfast doctor"
                if p.program == "virtlockd"
                else f"see what process {p.pid} is before you end it: ps -fp {p.pid}"
            )
        elif refused and elsewhere:
            other = elsewhere[0]
            answer.headline = f"held by {other}"
            answer.next_step = (
                f"on host {other.host}: holdfast who {answer.subject}; stop or migrate the VM there. "
                "Never delete the lock file: it doesn't free the disk"
            )
        elif refused:
            answer.headline = "held by another host or a process that can't be seen from here"
            answer.next_step = (
                f"run this on the other hosts that share the storage: holdfast who {answer.subject}"
                if os.geteuid() == 0
                else f"ask again as root, who sees every process of this host: sudo holdfast who {answer.subject}"
            )
        elif journal:
            answer.headline = "not locked now, but holdfastd's journal has an owner"
            answer.next_step = (
                "start holdfastd: it retakes the locks of VMs that still run (systemctl start holdfastd)"
            )
        elif elsewhere and refused is False:
            other = elsewhere[0]
            answer.verdict = "unknown"
            answer.headline = f"not locked now, but its lock file names {other}"
            answer.next_step = (
                f"on host {other.host}: see whether that VM still runs (virsh list) and start holdfastd there if so; "
                "start nothing else on this disk before you know"
            )
        elif qemus:
            p = qemus[0]
            answer.headline = f"open in {p.program} (pid {p.pid}), but no lock manager has it"
            answer.next_step = (
                "a paused VM, or one that was started without lock manager: virsh list --all; holdfast doctor"
            )
        elif refused is False:
            answer.verdict = "free"
            answer.headline = "free"
            answer.next_step = "nobody holds it; a VM that uses it can be started"
            if record:
                answer.notes.append(
                    "the owner record in its lock file is left from a crash; the next owner overwrites it"
                )
        else:
            answer.verdict = "unknown"
            answer.headline = "can't be told"
            answer.next_step = "see the notes; try again as root on a host that sees the disk"


def _worst(disks: list[Answer]) -> Answer | None:
    """The first disk that is not plainly free."""
    return next((d for d in disks if d.verdict != "free"), None)
