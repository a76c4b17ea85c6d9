"""Locks of VMs that are being started: prepared by libvirt's hook, then their QEMU's without a gap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.manager.world import HOST, MOUNTS, World, locked, run, want

from holdfast.backends.naming import indirect_name
from holdfast.errors import OwnerGone, Refused, ResourceBusy
from holdfast.manager import events as ev
from holdfast.manager.hook_operations import INCOMING_S, HookOperations
from holdfast.manager.hook_policy import HookPolicy
from holdfast.manager.journal_replay import replay
from holdfast.manager.owners import Owner
from holdfast.manager.prepared_locks import STATUS_CHECK_S
from holdfast.manager.queries import Inspection
from holdfast.manager.unasked_disks import UnaskedDisks
from holdfast.model import HOST_LOCKSPACE, AcquireRequest, Mode, OwnerName, ProcessId, Resource
from holdfast.system.files.lockspace_files import LockspaceFiles
from holdfast.system.files.mounts import Mount, MountTable
from holdfast.system.files.ofd_lock import FileKey
from holdfast.system.files.storage_executor import InlineStorage
from holdfast.system.libvirt.domains import Disk, Domain
from holdfast.system.libvirt.status_words import IN, OUT
from holdfast.testing.fakes import settle

LIBVIRTD, QEMU, OTHER = 100, 200, 300
WEB = OwnerName("web1", "uuid-web1")


class StatusFiles:
    """libvirt's status files; a test says of which UUIDs there is one."""

    def __init__(self) -> None:
        self.uuids: set[str] = set()
        self.domain: Domain | None = None
        """What there is of whichever VM is looked for."""

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return self.domain

    def running(self) -> list[Domain]:
        return [
            Domain(name=uuid, uuid=uuid, disks=(), backing=frozenset(), pid=None, state="paused")
            for uuid in self.uuids
        ]


class Host:
    """A host with a libvirtd whose hook asks; `before`: its holdfastd was killed, and this is the next one."""

    def __init__(
        self,
        directory: Path,
        before: Host | None = None,
        *,
        leases: bool = False,
        slow: bool = False,
        acquire_wait_s: float = 0.0,
        lends: bool = False,
        policy: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        self.status: StatusFiles = before.status if before else StatusFiles()
        world = before.world if before else None
        self.world: World = World(
            directory,
            before=world,
            status=self.status,
            leases=leases,
            slow=slow,
            acquire_wait_s=acquire_wait_s,
            lends=lends,
        )
        self.manager = self.world.manager
        inspection = Inspection(self.manager, files=LockspaceFiles(), storage=InlineStorage(), host=HOST)
        self.hook_operations = HookOperations(
            self.manager, inspection, self.world.clock, mounts=MOUNTS, policy=HookPolicy(policy)
        )
        self.libvirtd: ProcessId = (
            before.libvirtd if before else self.world.processes.start(LIBVIRTD, program="libvirtd")
        )

    async def prepare(self, *disks: str, name: OwnerName = WEB, mode: Mode = Mode.EXCLUSIVE) -> Owner:
        wants: Sequence[AcquireRequest] = [want(disk, mode) for disk in disks]
        return await self.hook_operations.prepare(name, self.libvirtd, wants)

    def qemu(self, pid: int = QEMU, name: OwnerName = WEB) -> Owner:
        """libvirt's child registers; its connection is kept open by QEMU."""
        self.world.processes.start(pid)
        return self.manager.register(pid, name)

    async def registers(self, owner: Owner) -> None:
        """libvirtd connects for a VM that runs, as for each operation on it."""
        rest = UnaskedDisks(self.manager, self.status).registered(owner)
        if rest is not None:
            await rest

    def says(self, state: str, reason: str = "", job: str = "", phase: str = "", pid: int = QEMU) -> None:
        """libvirt's status file of the VM."""
        self.status.domain = Domain(
            WEB.name, WEB.uuid, (), frozenset(), pid, state, async_job=job, phase=phase, reason=reason
        )

    async def arrived(self, *disks: str) -> Owner:
        """A guest whose disks only the hook asks for, up to `finish3` on the target: it is about to run."""
        self.hook_operations.arrives(WEB.uuid, self.libvirtd)
        await self.prepare(*disks)
        qemu = self.qemu()
        self.says("paused", "migration", IN, "finish3")
        return qemu

    async def restarted(self) -> Host:
        """The next daemon, after this one was killed."""
        self.world.crash()
        after = Host(self.world.directory, self)
        saved = after.world.saved()
        await after.world.recovery.locks(saved, after.world.recovery.owners(saved), {})
        return after

    async def passes(self, seconds: float) -> None:
        await self.world.clock.advance(seconds)
        await settle()


def owners_of(host: Host, disk: str) -> list[int]:
    """The pids that claim a disk; 0 for a VM without a process."""
    lock = host.manager.table.named(Resource("", disk))
    owners = host.manager.owners
    return [] if lock is None else [o.pid for i in lock.claims if (o := owners.get(i)) is not None]


def test_second_start_is_refused_with_the_name_of_the_vm_that_is_being_started(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        assert locked(disk)
        with pytest.raises(ResourceBusy, match=r"VM web1 \(uuid uuid-web1\) on host alpha.*being started"):
            await host.prepare(disk, name=OwnerName("web2", "uuid-web2"))
        assert len(host.manager.owners) == 1, "the refused VM is forgotten"

    run(scene)


def test_all_disks_are_prepared_or_none(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        taken, free = host.world.disk("z.img"), host.world.disk("a.img")
        await host.manager.acquire(host.world.owner(OTHER), want(taken))
        with pytest.raises(ResourceBusy, match="vm300"):
            await host.prepare(free, taken)
        assert not locked(free)

    run(scene)


def test_disk_that_is_not_there_is_left_to_libvirt(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk("a.img")
        await host.prepare(disk, str(tmp_path / "b.img"))
        assert owners_of(host, disk) == [0]
        await host.prepare(str(tmp_path / "c.img"), name=OwnerName("web2", "uuid-web2"))
        assert len(host.manager.owners) == 1, "a VM that holds nothing is forgotten"

    run(scene)


def test_register_makes_prepared_locks_those_of_qemu_without_a_gap(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        before = len(host.world.file.raw)
        qemu = host.qemu()
        assert owners_of(host, disk) == [QEMU]
        assert len(host.manager.owners) == 1
        # At each line of the journal somebody has it: a daemon that is killed there finds it held.
        added = host.world.file.raw[before:].splitlines(keepends=True)
        for end in range(len(added) + 1):
            state = replay(host.world.file.raw[:before] + b"".join(added[:end]))
            assert [lock for lock in state.locks.values() if lock.claims], added[:end]
        assert not await host.manager.acquire(qemu, want(disk)), "libvirt's ACQUIRE finds it held"
        await host.manager.release(qemu, Resource("", disk))
        assert not locked(disk), "from the ACQUIRE on it follows libvirt"
        kinds = [e.kind for e in host.world.events.recent()]
        assert kinds == [ev.ACQUIRED, ev.STARTED, ev.RELEASED]

    run(scene)


def test_gap_between_prepare_and_acquire_lets_nobody_in(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk, other = host.world.disk(), host.world.owner(OTHER)
        await host.prepare(disk)
        for step in (lambda: None, host.qemu):
            step()
            with pytest.raises(ResourceBusy, match="web1"):
                await host.manager.acquire(other, want(disk))

    run(scene)


def test_start_that_is_left_paused_keeps_its_disks_until_qemu_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        host.qemu()
        await host.passes(3600)
        assert locked(disk)
        host.world.processes.end(QEMU)
        await settle()
        assert not locked(disk)

    run(scene)


def test_release_of_the_guest_frees_what_its_start_did_not_use(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk, kept = host.world.disk(), host.world.disk("kept.img")
        other = OwnerName("web2", "uuid-web2")
        await host.prepare(disk)
        await host.prepare(kept, name=other)
        host.hook_operations.release(WEB.uuid, host.libvirtd)
        await settle()
        assert not locked(disk)
        assert locked(kept), "that guest's start is still under way"

    run(scene)


def test_release_by_another_libvirtd_frees_nothing_while_the_first_one_lives(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk, second = host.world.disk(), host.world.processes.start(LIBVIRTD + 1)
        await host.prepare(disk)
        host.hook_operations.release(WEB.uuid, second)
        await settle()
        assert locked(disk)
        host.status.uuids.add(WEB.uuid)
        host.world.processes.end(LIBVIRTD)
        await settle()
        host.hook_operations.release(WEB.uuid, second)
        await settle()
        assert not locked(disk)

    run(scene)


@pytest.mark.parametrize("restarts", [False, True])
def test_end_of_libvirtd_frees_them_when_there_is_neither_status_file_nor_qemu(
    tmp_path: Path, restarts: bool
) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        lock = host.manager.table.named(Resource("", disk))
        assert lock is not None
        host.status.uuids.add(WEB.uuid)
        host.world.open_files.open[QEMU] = {FileKey(*lock.keys[0])}
        host.world.processes.end(LIBVIRTD)
        if restarts:
            host = await host.restarted()
        await host.passes(10 * STATUS_CHECK_S)
        assert locked(disk), "libvirt's status file says that the VM is there"
        host.status.uuids.clear()
        await host.passes(10 * STATUS_CHECK_S)
        assert locked(disk), "some process has the disk open"
        host.world.open_files.open.clear()
        await host.passes(20.0)
        assert not locked(disk)
        assert not len(host.manager.table)

    run(scene)


def test_killed_daemon_keeps_them_for_the_same_start(tmp_path: Path) -> None:
    async def scene() -> None:
        first = Host(tmp_path)
        disk = first.world.disk()
        await first.prepare(disk)
        host = await first.restarted()
        assert locked(disk)
        await host.passes(10 * STATUS_CHECK_S)
        with pytest.raises(ResourceBusy, match="web1"):
            await host.manager.acquire(host.world.owner(OTHER), want(disk))
        host.qemu()
        assert owners_of(host, disk) == [QEMU]

    run(scene)


def test_with_a_damaged_journal_they_stay_for_whoever_has_the_disk_open(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        host.world.crash()
        host.world.file.raw += b"[damage"
        after = Host(tmp_path, host)
        saved = after.world.saved()
        await after.world.recovery.locks(saved, after.world.recovery.owners(saved), {})
        assert len(after.manager.unknown) == 1
        assert locked(disk)
        lock = after.manager.table.named(Resource("", disk))
        assert lock is not None
        qemu = after.qemu()
        after.world.open_files.open[QEMU] = {FileKey(*lock.keys[0])}
        with pytest.raises(ResourceBusy, match="web1"):
            await after.manager.acquire(after.world.owner(OTHER), want(disk))
        await after.manager.acquire(qemu, want(disk))
        assert owners_of(after, disk) == [QEMU]

    run(scene)


def test_vms_of_a_libvirtd_that_has_ended_are_freed_each_when_it_is_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disks = {n: host.world.disk(f"{n}.img") for n in range(5)}
        for n, disk in disks.items():
            await host.prepare(disk, name=OwnerName(f"vm{n}", f"uuid-{n}"))
            host.status.uuids.add(f"uuid-{n}")
        host.world.processes.end(LIBVIRTD)
        for n, disk in disks.items():
            await host.passes(10 * STATUS_CHECK_S)
            assert locked(disk)
            host.status.uuids.remove(f"uuid-{n}")
            await host.passes(2 * STATUS_CHECK_S)
            assert not locked(disk)

    run(scene)


@pytest.mark.parametrize("then", ["release", "the start again"])
def test_start_that_libvirt_gives_up_while_storage_is_slow_leaves_nothing(tmp_path: Path, then: str) -> None:
    async def scene() -> None:
        host = Host(tmp_path, slow=True)
        disk, gates = host.world.disk(), host.world.slow.gates
        first = host.world.start(host.prepare(disk))
        await gates.waits_for(f"take {disk}")
        again = None
        if then == "release":
            host.hook_operations.release(WEB.uuid, host.libvirtd)
        else:
            again = host.world.start(host.prepare(disk))
        await settle()
        gates.open_gate = True
        gates.let_all_go()
        with pytest.raises(OwnerGone):
            await first
        if again is None:
            assert not locked(disk)
            assert not len(host.manager.owners)
        else:
            await again
            assert owners_of(host, disk) == [0]
            assert len(host.manager.owners) == 1

    run(scene)


def test_lease_is_prepared_for_a_vm_without_a_process(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path, leases=True)
        disk = host.world.disk("leased/disk.img")
        await host.prepare(disk)
        assert owners_of(host, disk) == [0]
        assert not host.world.processes.signals

    run(scene)


def test_start_after_one_that_came_to_nothing_takes_its_place(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk)
        await host.prepare(disk)
        await settle()
        assert owners_of(host, disk) == [0]
        assert len(host.manager.owners) == 1

    run(scene)


def test_shareable_disks_are_prepared_shared(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        await host.prepare(disk, mode=Mode.SHARED)
        await host.prepare(disk, mode=Mode.SHARED, name=OwnerName("web2", "uuid-web2"))
        with pytest.raises(ResourceBusy, match="web1"):
            await host.prepare(disk, name=OwnerName("web3", "uuid-web3"))

    run(scene)


@pytest.mark.parametrize("released", [False, True])
def test_disk_that_libvirt_asks_for_by_its_hash_follows_that_lock(tmp_path: Path, released: bool) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk, other = host.world.disk(), host.world.disk("other.img")
        await host.manager.lockspaces.create(str(host.world.locks_directory))
        hashed = want(indirect_name(disk), lockspace=str(host.world.locks_directory), create=True)
        await host.prepare(disk, other)
        qemu = host.qemu()
        disks = (Disk(disk, shareable=False), Disk(other, shareable=False))
        if released:
            await host.manager.release(qemu, Resource("", disk))
        host.status.domain = Domain(WEB.name, WEB.uuid, disks, frozenset(), QEMU, "paused")
        await host.manager.acquire(qemu, hashed)
        assert not locked(disk), "the lock by the path is not held beside that by the hash"
        assert locked(other)
        with pytest.raises(ResourceBusy, match="web1"):
            await host.prepare(disk, name=OwnerName("web2", "uuid-web2"))
        assert not locked(disk)
        await host.manager.release(qemu, hashed.resource)
        await host.prepare(disk, name=OwnerName("web2", "uuid-web2"))

    run(scene)


# --- incoming ---


def test_arriving_guest_takes_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        await host.prepare(disk)
        assert not locked(disk)
        await host.prepare(disk)
        assert locked(disk), "only the first prepare after migrate is incoming"

    run(scene)


def test_arriving_guest_is_refused_where_another_vm_has_its_disk(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk, own = host.world.disk(), host.world.disk("own.img")
        alias = str(tmp_path / "alias.img")
        os.symlink(disk, alias)
        await host.manager.acquire(host.world.owner(OTHER), want(disk))
        await host.manager.acquire(host.qemu(), want(own))
        for path in (disk, alias):
            host.hook_operations.arrives(WEB.uuid, host.libvirtd)
            with pytest.raises(ResourceBusy, match="vm300"):
                await host.prepare(path)
            refused = [e for e in host.manager.events.recent() if e.kind == ev.REFUSED]
            assert (str(refused[-1].owner), refused[-1].resource) == (str(WEB), Resource("", path))
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        await host.prepare(own)  # its holder runs this very VM

    run(scene)


def test_migrate_without_prepare_is_forgotten(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        await host.passes(INCOMING_S)
        await host.prepare(disk)
        assert locked(disk)
        host.hook_operations.release(WEB.uuid, host.libvirtd)
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        host.hook_operations.release(WEB.uuid, host.libvirtd)
        await host.prepare(disk)
        assert locked(disk)
        host.hook_operations.release(WEB.uuid, host.libvirtd)
        host.hook_operations.arrives(WEB.uuid, ProcessId(LIBVIRTD + 1, 1))
        await host.prepare(disk)
        assert locked(disk), "another libvirtd's guest arrives"

    run(scene)


# --- what is a VM's own ---


class Nfs(MountTable):
    """Everything below /shared is on a file server."""

    def locate(self, path: str) -> tuple[Mount, str]:
        where, options = ("nfs4", "/shared") if path.startswith("/shared/") else ("ext4", "/")
        return Mount(options, where, "", frozenset()), path


def test_own_files_have_a_lock_if_only_this_host_has_them(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        inspection = Inspection(host.manager, files=LockspaceFiles(), storage=InlineStorage(), host=HOST)
        hook_operations = HookOperations(
            host.manager, inspection, host.world.clock, mounts=Nfs(), policy=HookPolicy()
        )
        wants = hook_operations.own_files(["/var/vars.fd", "/shared/vars.fd", "/var/swtpm/tpm2"])
        assert [want.resource for want in wants] == [
            Resource(HOST_LOCKSPACE, "/var/vars.fd"),
            Resource(HOST_LOCKSPACE, "/var/swtpm/tpm2"),
        ]

    run(scene)


# --- what libvirt never asks for, over a migration ---


def test_disks_that_libvirt_never_asks_for_are_taken_in_finish3_and_held_until_qemu_ends(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disks = [host.world.disk(f"{n}.img") for n in "ab"]
        qemu = await host.arrived(*disks)
        assert not any(map(locked, disks)), "the source has them"
        await host.registers(qemu)
        assert [owners_of(host, disk) for disk in disks] == [[QEMU], [QEMU]]
        for state in ("running", "paused", "running"):
            host.says(state, "user")
            await host.registers(qemu)
            assert all(map(locked, disks)), state
        host.world.processes.end(QEMU)
        await settle()
        assert not any(map(locked, disks))
        assert not len(host.manager.owners)

    run(scene)


@pytest.mark.parametrize("after", ["prepare", "REGISTER"])
def test_killed_daemon_still_takes_what_an_arriving_guest_needs(tmp_path: Path, after: str) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        disk = host.world.disk()
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        await host.prepare(disk)
        if after == "REGISTER":
            host.qemu()
        host = await host.restarted()
        qemu = host.manager.owners.with_pid(QEMU) if after == "REGISTER" else host.qemu()
        assert qemu is not None
        host.says("paused", "migration", IN, "finish3")
        await host.registers(qemu)
        assert owners_of(host, disk) == [QEMU]

    run(scene)


@pytest.mark.parametrize("lets_go", [True, False])
def test_target_waits_for_the_source_to_let_go_and_fails_after_that(tmp_path: Path, lets_go: bool) -> None:
    async def scene() -> None:
        for name in ("source", "target"):
            (tmp_path / name).mkdir()
        source, host = World(tmp_path / "source"), Host(tmp_path / "target", acquire_wait_s=10.0)
        free, disk = host.world.disk("a.img"), host.world.disk("z.img")
        guest = source.owner(1)
        await source.manager.acquire(guest, want(disk))
        qemu = await host.arrived(free, disk)
        asked = host.world.start(host.registers(qemu))
        await host.passes(5.0)
        assert not asked.done()
        if lets_go:
            await source.manager.release(guest, Resource("", disk))
            await host.passes(1.0)
            await asked
            assert owners_of(host, disk) == [QEMU]
            return
        await host.passes(6.0)
        with pytest.raises(ResourceBusy):
            await asked
        assert not locked(free), "all or none"
        await source.manager.release(guest, Resource("", disk))
        await host.registers(qemu)
        assert owners_of(host, free) == owners_of(host, disk) == [QEMU], "the next operation takes them"

    run(scene)


@pytest.mark.parametrize("ends", ["it leaves", "it stays", "QEMU ends"])
@pytest.mark.parametrize("lends", [False, True])
def test_source_holds_what_libvirt_never_releases_until_the_guest_has_left(
    tmp_path: Path, ends: str, lends: bool
) -> None:
    async def scene() -> None:
        host = Host(tmp_path, lends=lends)
        disk = host.world.disk()
        await host.prepare(disk)
        qemu = host.qemu()
        host.says("running", "booted")
        await host.registers(qemu)
        host.says("running", "booted", OUT, "perform3")
        await host.registers(qemu)
        host.says("paused", "migration", OUT, "perform3")
        await host.passes(60.0)
        assert locked(disk)
        if ends == "it leaves":
            host.says("paused", "migration", OUT, "perform3_done")
            await host.passes(1.0)
            assert not locked(disk)
            await host.registers(qemu)
            assert not locked(disk), "it is the target's"
            return
        if ends == "it stays":
            host.says("running", "unpaused")
            await host.passes(1.0)
            await host.registers(qemu)
            host.says("paused", "user")
            await host.passes(60.0)
            assert locked(disk)
        host.world.processes.end(QEMU)
        await settle()
        assert not locked(disk)

    run(scene)


def test_disk_that_libvirt_asks_for_or_releases_follows_libvirt_from_then_on(tmp_path: Path) -> None:
    async def scene() -> None:
        host = Host(tmp_path)
        asked, released, unasked = (host.world.disk(f"{n}.img") for n in "abc")
        await host.prepare(asked, released, unasked)
        qemu = host.qemu()
        await host.manager.acquire(qemu, want(asked))
        await host.manager.release(qemu, Resource("", asked))
        await host.manager.release(qemu, Resource("", released))
        for again in (False, True):
            if again:
                host = await host.restarted()
                restored = host.manager.owners.with_pid(QEMU)
                assert restored is not None
                qemu = restored
            await host.registers(qemu)
            assert [owners_of(host, disk) for disk in (asked, released, unasked)] == [[], [], [QEMU]]

    run(scene)


# --- a site's own policy ---


@pytest.mark.parametrize("demanded", [Mode.EXCLUSIVE, Mode.SHARED])
def test_start_is_refused_whose_disk_is_not_as_its_rule_demands(tmp_path: Path, demanded: Mode) -> None:
    async def scene() -> None:
        rules = [("*/free.img", "", ""), ("*.img", demanded.word, "")]
        host = Host(tmp_path, policy=rules)
        disk, free = host.world.disk(), host.world.disk("free.img")
        other = Mode.SHARED if demanded is Mode.EXCLUSIVE else Mode.EXCLUSIVE
        with pytest.raises(Refused, match=rf"hook.actions\[2\] '\*.img' has prepare = \"{demanded.word}\""):
            await host.prepare(disk, mode=other)
        assert not locked(disk)
        await host.prepare(disk, mode=demanded)
        await host.prepare(free, mode=other, name=OwnerName("web2", "uuid-web2"))
        assert locked(disk)
        assert locked(free), "the first rule that matches counts"

    run(scene)


def test_guest_does_not_arrive_before_its_source_lets_go_if_its_rule_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        for name in ("source", "target"):
            (tmp_path / name).mkdir()
        source = World(tmp_path / "source")
        host = Host(tmp_path / "target", policy=[("*", "", "exclusive")])
        disk, guest = host.world.disk(), source.owner(1)
        await source.manager.acquire(guest, want(disk))
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        with pytest.raises(ResourceBusy):
            await host.prepare(disk)
        await source.manager.release(guest, Resource("", disk))
        qemu = await host.arrived(disk)
        assert owners_of(host, disk) == [QEMU]
        await host.registers(qemu)
        assert owners_of(host, disk) == [QEMU]

    run(scene)


@pytest.mark.parametrize("shareable", [False, True])
def test_guest_that_arrives_shared_runs_with_what_its_disk_needs(tmp_path: Path, shareable: bool) -> None:
    async def scene() -> None:
        host = Host(tmp_path, policy=[("*", "", "shared")])
        disk = host.world.disk()
        mode = Mode.SHARED if shareable else Mode.EXCLUSIVE
        host.hook_operations.arrives(WEB.uuid, host.libvirtd)
        await host.prepare(disk, mode=mode)
        qemu = host.qemu()
        assert host.manager.claimed(qemu, Resource("", disk)) is Mode.SHARED
        host.says("paused", "migration", IN, "finish3")
        await host.registers(qemu)
        assert host.manager.claimed(qemu, Resource("", disk)) is mode

    run(scene)
