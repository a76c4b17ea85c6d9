"""The suites `volumes`: driver = "lvm" of holdfastd under real libvirtd and QEMU, over the real LVM and lvmlockd.

Each case begins and ends with one VM that runs on one host, which alone has the volume. Whatever is killed: there is one VM
afterwards, its guest has not booted again (unless its host lost power), the counter it writes has never gone back, and
nothing is active where no VM is.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.fencing.guests import HOSTS, Guests, LabError
from lab.lvm import doctor, figures, kinds, moments, pause, shared, storage_lost, traced
from lab.lvm.host import DEAD_S, DISK, IN_GUEST, VG, Program
from lab.lvm.open_log import build, compared
from lab.lvm.vm_host import EJECT, GUARDS_MIB, HOOK, LV, MONITOR, VM, Guarded, State, VmHost
from lab.lvm.volume_record import Observer, Record, boot_sector

DISK_MIB = 2048
PACKAGES = "libvirt-daemon,libvirt-daemon-driver-qemu,libvirt-clients,qemu-system-x86"
MEMORY_MIB = "1024"
BOOT_S = 240.0
CASE_S = 300.0
"""The limit of a case, which holds for each of its waits."""
ENDS_MS = 10000
"""A guest may stand for so long: what it rewrites in a round takes 0.5 s to send at the least bandwidth."""
STILL_S = 5.0
"""A guest that has not written for so long is taken to stand; one that runs writes 18 times a second on an idle machine."""
RUNS_ON = f"runs on here: its migration failed, and {LV} was never given up"
"""What holdfastd logs of a guest that needs its lock again without an ACQUIRE."""
KILLED = tuple(
    (daemon, side) for daemon in ("holdfastd", "lvmlockd", "libvirtd") for side in ("source", "target")
)


UNGUARDED = ("holdfastd",)
"""Words of cases that end a holdfastd. With guards that loses wdmd's connection, which no systemd keeps here, and the host
is reset.
"""
UNSHARED = ("at-prepare", "operators", "figures", "starts", "doctor", "kinds")
"""Of cases in which a volume is exclusive to one host: with activation "shared" none is, and no target waits for that."""


class VolumeSuite:
    """One pair of guests."""

    def __init__(
        self,
        name: str,
        place: Path,
        python: Path,
        programs: tuple[Program, Program],
        sector_bytes: int,
        *,
        guarded: Guarded = "",
    ) -> None:
        """`guarded`: each VM has a lease of its volume as well, in a lockspace of leases on a second disk; or that alone."""
        self.name = name
        self._guarded = guarded
        self.guests = Guests(
            place,
            python,
            sector_bytes,
            (DISK_MIB, GUARDS_MIB) if guarded else (DISK_MIB,),
            shares=(IN_GUEST, HOOK),
            variables={"MH_CACHE": cache(), "MH_MEM": MEMORY_MIB},
        )
        self.one, self.two = (
            VmHost(self.guests, host, program, guarded=guarded)
            for host, program in zip(HOSTS, programs, strict=True)
        )
        self.at = self.one
        """Where the VM runs."""
        self.uuid = ""
        self._place = place
        self._began = time.monotonic()
        self.observer: Observer | None = None
        self.cases: dict[str, Callable[[], str]] = {
            "refused-start": self.refused_start,
            "there-and-back": self.there_and_back,
            **({"traced": lambda: traced.case(self)} if sector_bytes == 512 else {}),
            "cancelled": self.cancelled,
            "operators": self.operators,
            "who": self.who,
            "doctor": lambda: doctor.case(self),
            "kinds": lambda: kinds.case(self),
            "figures": lambda: figures.conversions(self),
            "starts": lambda: figures.starts(self),
            "pause": lambda: pause.measured(self),
            **{f"kill-{daemon}-of-{side}": self.killing(daemon, side) for daemon, side in KILLED},
            "holdfastd-away-at-acquire": self.target_refuses,
            "runs-on-after-release": self.runs_on,
            "target-qemu-dies": self.target_qemu_dies,
            **moments.cases(self),
            "target-power-off": self.target_power_off,
            "source-power-off": self.source_power_off,
        }
        if not guarded:
            self.cases["storage-lost"] = lambda: storage_lost.case(self)
        if guarded == "shared":
            self.cases = {
                "shared": lambda: shared.case(self),
                "hot-plug": lambda: shared.hot_plug(self),
                **self.cases,
            }
        if guarded == "guarded":
            self.cases["becomes-shared"] = lambda: shared.becomes_shared(self)
        left_out = (*(UNGUARDED if guarded else ()), *(UNSHARED if guarded == "shared" else ()))
        self.cases = {
            name: case for name, case in self.cases.items() if not any(each in name for each in left_out)
        }

    @property
    def owns(self) -> str:
        """The mode in which the VM's host has LVM's lock."""
        return "sh" if self._guarded == "shared" else "ex"

    @property
    def other(self) -> VmHost:
        return self.two if self.at is self.one else self.one

    def say(self, text: str) -> None:
        print(f"{self.name}: {time.monotonic() - self._began:5.0f} s  {text}", flush=True)

    # --- the suite ---

    def run(self, only: list[str], logs: Path) -> int:
        """How many cases failed. After a failure both guests lose power and begin again."""
        self.set_up()
        failed = 0
        for name, case in self.cases.items():
            if only and name not in only:
                continue
            began = time.monotonic()
            try:
                said = case()
                self.check_record()
            except LabError as e:
                failed += 1
                self.say(f"{name}: FAILED after {time.monotonic() - began:.0f} s: {e}")
                for host in (self.one, self.two):
                    host.keep_logs(logs / self.name / name, self.uuid)
                self.say(f"logs: {logs / self.name / name}")
                self.begin_again()
            else:
                self.say(f"{name}: passed in {time.monotonic() - began:.0f} s: {said}")
        return failed

    def set_up(self) -> None:
        self.guests.mh("up", "2")
        self.say("two guests are up")
        preload = build(self._place).read_bytes()
        one, two = self.one, self.two
        self.both(lambda host: host.start())
        one.lvm(f"vgcreate --yes --shared {VG} {DISK}")
        one.lvm(f"vgchange --setautoactivation n {VG}")
        two.start_vg()
        for name in ("lv1", "lv2"):
            one.lvm(f"lvcreate --yes -an --size 64M --name {name} {VG}")
        self.uuid = one.sh(f"lvs --noheadings -o lv_uuid {VG}/lv1 2>/dev/null")
        one.lvm(f"lvchange -aey {VG}/lv1")
        sector = boot_sector(self._place).hex()
        one.sh(f"python3 -c {shlex.quote(WRITE_SECTOR)} {LV} {sector}")
        start = int(one.sh(f"dmsetup table {VG}-lv1").split()[-1])
        one.lvm(f"lvchange -an {VG}/lv1")
        self.observer = Observer(self.guests.disk(0), start * 512)
        self.say("a shared VG is started on both, with an LV that a guest boots from")
        if self._guarded:
            one.make_guards()
        self.both(lambda host: host.put("/usr/local/lib/open_log.so", preload))
        self.both(lambda host: host.virt_up())
        self.both(lambda host: host.define())
        self.say("holdfastd, its hook and libvirtd are up on both")
        self.start_vm(one)
        self.say(f"the VM runs on {one.name}: {self.settled(one)}")

    def both(self, step: Callable[[VmHost], object]) -> None:
        """At the same time, as each waits for emulated machines."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(step, (self.one, self.two)))

    def begin_again(self) -> None:
        """Whatever a failed case has left."""
        for host in (self.one, self.two):
            with contextlib.suppress(LabError):  # it has no power already
                self.guests.mh("kill", host.name)
        self.both(self.power_on)
        assert self.observer is not None
        self.observer.went_back.clear()
        self.start_vm(self.one)
        self.settled(self.one)

    def power_on(self, host: VmHost) -> None:
        """Boot it, which may take long on a busy machine, and start everything it ran before."""
        with contextlib.suppress(LabError):  # `mh start` gives up after a minute
            self.guests.mh("start", host.name)
        self.guests.mh("wait", "-t", str(BOOT_S), host.name, timeout_s=2 * BOOT_S)
        host.start()
        host.start_vg()
        host.virt_up()

    # --- what a case is made of ---

    def start_vm(self, host: VmHost) -> None:
        """It may be refused for as long as a dead host is not dead for sure."""
        said = ""

        def started() -> bool:
            nonlocal said
            said = host.sh(f"virsh -q create /root/{VM}.xml 2>&1; echo status $?")
            return said.endswith("status 0")

        self.wait(started, lambda: f"{VM} to start on {host.name}: {said}", 3 * DEAD_S)
        self.at = host

    def wait(self, happened: Callable[[], bool], what: Callable[[], str], timeout_s: float = CASE_S) -> None:
        until = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > until:
                raise LabError(f"waited {timeout_s:g} s in vain for {what()}")
            time.sleep(0.3)

    def settled(self, owner: VmHost) -> str:
        """Wait until the VM runs on `owner` alone, which alone has the volume; in which time, and how. With activation
        "shared" the other host may have it too, in shared mode like `owner`, if it is not without a lock of LVM's.
        """
        other = self.two if owner is self.one else self.one
        began, seen = time.monotonic(), (State(), State())

        def is_so() -> bool:
            nonlocal seen
            seen = owner.now(self.uuid), other.now(self.uuid)
            here, there = seen
            runs = (here.mode, here.active, here.state, here.job, here.qemus) == (
                *(self.owns, True),
                *("running", "", 1),
            )
            may_be = {("un", False), ("sh", True)} if self._guarded == "shared" else {("un", False)}
            return runs and (there.mode, there.active) in may_be and (there.state, there.qemus) == ("", 0)

        self.wait(
            is_so,
            lambda: f"the VM to be {owner.name}'s alone; {owner.name}: {seen[0]}; {other.name}: {seen[1]}",
        )
        self.at = owner
        self.grows()
        return f"{owner.name} has it alone, {time.monotonic() - began:.0f} s later"

    def grows(self) -> None:
        """The guest's counter."""
        before = self.record
        self.wait(lambda: self.record.count > before.count, lambda: "the guest to write", 60)

    def stands_still(self) -> bool:
        before = self.record
        time.sleep(STILL_S)
        return self.record == before

    @property
    def record(self) -> Record:
        assert self.observer is not None
        return self.observer.last

    def check_record(self) -> None:
        assert self.observer is not None
        if self.observer.went_back:
            raise LabError(f"what the guest has written went back: {self.observer.went_back}")

    def live_phase(self) -> None:
        """A migration that does not end by itself: its guest writes memory faster than it may be sent."""
        source, target = self.at, self.other
        source.sh(f"virsh migrate-setmaxdowntime {VM} 1")  # a guest that is slow on a busy machine would do
        source.in_background(
            "migrate", f"virsh migrate --live --p2p --bandwidth 1 {VM} qemu+tcp://{target.address}/system"
        )
        seen = (State(), State())

        def is_live() -> bool:
            nonlocal seen
            if said := source.ended("migrate"):
                raise LabError(f"the migration ended too early: {said}")
            seen = source.now(self.uuid), target.now(self.uuid)
            here, there = seen
            return (here.phase, here.mode, there.mode, there.job) == ("perform3", "sh", "sh", "migration in")

        self.wait(is_live, lambda: f"the live phase; source: {seen[0]}; target: {seen[1]}")

    def go_on(self) -> str:
        """What virsh said when the migration was let end."""
        self.let_end()
        return self.migration_ended()

    def let_end(self) -> None:
        """Not waited for: libvirt may answer only when the lock manager has."""
        self.at.sh(f"setsid virsh migrate-setmaxdowntime {VM} {ENDS_MS} </dev/null >/dev/null 2>&1 &")

    def migration_ended(self) -> str:
        said = ""

        def ended() -> bool:
            nonlocal said
            said = self.at.ended("migrate") or ""
            return bool(said)

        self.wait(ended, lambda: "the migration to end")
        self.at.sh(f"virsh migrate-setmaxdowntime {VM} 300 2>/dev/null; true")  # where the VM stayed
        return said

    # --- cases ---

    def refused_start(self) -> str:
        said = self.other.is_refused("virsh create /root/v2.xml")
        if f"held by host {self.at.name}" not in said:
            raise LabError(f"the refusal does not name {self.at.name}: {said}")
        self.settled(self.at)
        return "holdfast: " + said.partition("holdfast: ")[2].splitlines()[0]

    def there_and_back(self) -> str:
        """By what every QEMU notes, the two descriptors that may write are never open at the same time."""
        self.at.sh(f"virsh destroy {VM}")
        self.both(lambda host: host.sh("rm -f /srv/*.opens"))
        self.start_vm(self.at)
        self.settled(self.at)
        boots, said = self.record.boots, []
        for _ in range(2):
            source, target = self.at, self.other
            began = time.monotonic()
            source.sh(f"virsh -q migrate --live --p2p {VM} qemu+tcp://{target.address}/system 2>&1")
            said.append(f"{source.name} to {target.name} in {time.monotonic() - began:.0f} s")
            self.settled(target)
            if self.record.boots != boots:
                raise LabError("the guest has booted again")
        with pause.clock(self):
            ahead_s, wrong_s = pause.ahead(self)
        notes = [
            host.sh('for f in /srv/*.opens; do echo "== $f"; cat $f; done') for host in (self.one, self.two)
        ]
        found = compared(notes[0], notes[1], ahead_s)
        if found.least_gap_s <= wrong_s:
            raise LabError(f"both could write: {found}, clocks compared to {wrong_s:.4f} s; {notes}")
        return (
            f"{', '.join(said)}; {found.turns} turns of writing, at least {found.least_gap_s * 1000:.0f} ms between two "
            f"(clocks compared to {wrong_s * 1000:.1f} ms)"
        )

    def operators(self) -> str:
        """`holdfast volume`, `holdfast attach` with a disk that libvirt refuses and one that it attaches, and who."""
        here, there, data = self.at, self.other, f"/dev/{VG}/lv2"
        here.sh(f"holdfast volume activate {data} 2>&1")
        said = there.is_refused(f"holdfast volume activate {data}")
        if f"held by host {here.name}" not in said or "status 75" not in said:
            raise LabError(f"the refusal does not name {here.name}: {said}")
        who = there.sh(f"holdfast volume who {data} 2>&1; echo status $?")
        if here.name not in who or not who.endswith("status 0"):
            raise LabError(f"who does not name {here.name}: {who}")
        here.sh(f"holdfast volume deactivate {data} 2>&1")
        said = here.is_refused(f"holdfast volume deactivate {LV}")
        if f"is a disk of VM {VM}" not in said:
            raise LabError(f"the refusal does not name {VM}: {said}")
        said = here.is_refused(f"holdfast attach {VM} {data} vda")
        if "inactive again" not in said:
            raise LabError(f"it was not undone: {said}")
        here.sh(f"[ ! -e {data} ]")
        here.sh(f"holdfast attach {VM} {data} vdb 2>&1")
        if data not in (listed := here.sh("holdfast volume list")):
            raise LabError(f"it is not listed: {listed}")
        there.is_refused(f"holdfast volume activate {data}")
        here.sh(f"virsh detach-disk {VM} vdb 2>&1")
        here.sh("; ".join(f"{MONITOR} 'o/4 {port:#x} {value}'" for port, value in EJECT))
        self.wait(
            lambda: here.sh(f"[ -e {data} ] || echo gone") == "gone",
            lambda: "the detached volume to be inactive",
        )
        return f"{said.splitlines()[0]}; listed: {listed}"

    def who(self) -> str:
        """`holdfast who` of the VM's volume: on another host its host and since when, on its own host the VM as well; with a
        guard lease, which has its name, everywhere.
        """
        said = {
            host.name: " / ".join(host.sh(f"holdfast who {LV} 2>&1; echo status $?").splitlines())
            for host in (self.at, self.other)
        }
        here, there = said[self.at.name], said[self.other.name]
        named = f"VM {VM} " in there if self._guarded else "exclusively for" in there
        if VM not in here or self.at.name not in there or not named:
            raise LabError(f"the holder is not named: {said}")
        same = self.other.sh(f"holdfast volume who {LV} 2>&1; echo status $?")
        if self.at.name not in same:
            raise LabError(f"holdfast volume who does not name the holder: {same}")
        return f"on {self.at.name}: {here}; on {self.other.name}: {there}"

    def cancelled(self) -> str:
        self.live_phase()
        self.at.sh(f"virsh domjobabort {VM}")
        self.migration_ended()
        return self.settled(self.at)

    def killing(self, daemon: str, side: str) -> Callable[[], str]:
        """It is killed in the live phase, and started again."""

        def case() -> str:
            boots = self.record.boots
            source, target = self.at, self.other
            struck = source if side == "source" else target
            self.live_phase()
            struck.kill_daemon(daemon)
            struck.start_daemon(daemon)
            if daemon == "libvirtd":
                self.migration_ended()
                said = self.settled(source)
            else:
                ended = self.go_on()
                if "status 0" not in ended:
                    raise LabError(f"the migration failed: {ended}")
                said = self.settled(target)
            if self.record.boots != boots:
                raise LabError("the guest has booted again")
            return said

        return case

    def target_refuses(self) -> str:
        """The target's holdfastd is away when libvirt asks for the lock there."""
        source, target = self.at, self.other
        self.live_phase()
        target.kill_daemon("holdfastd")
        ended = self.go_on()
        if "status 0" in ended:
            raise LabError(f"the migration went through: {ended}")
        target.start_daemon("holdfastd")
        self.wait(
            lambda: source.sh(f"virsh resume {VM} 2>&1; virsh domstate {VM}").endswith("running"),
            lambda: "the guest to be resumed at its source",
        )
        return self.settled(source)

    def runs_on(self) -> str:
        """Row 11a: QEMU and libvirtd of the target die while the source's RELEASE waits; libvirt lets the guest run on there
        and asks for no lock.
        """
        source, target, boots = self.at, self.other, self.record.boots
        self.live_phase()
        with moments.switch_over(self):
            target.kill_daemon("libvirtd")
            target.sh("kill -9 $(pgrep -f ^/usr/bin/qemu-system)")
            before = source.logged(moments.RELEASED)
        if "status 0" in (said := self.migration_ended()):
            raise LabError(f"the migration went through: {said}")
        target.start_daemon("libvirtd")
        for host in (source, target):
            said = host.is_refused("virsh create /root/v2.xml")
            if not any(words in said for words in ("held by", f"locked by VM {VM} ")):
                raise LabError(f"{host.name} refuses a second VM for another reason: {said}")
        said = self.settled(source)
        if self.record.boots != boots:
            raise LabError("the guest has booted again")
        after = source.logged(moments.RELEASED)
        if len(after) != len(before) + 1:
            raise LabError(f"the RELEASE did not come after the target's death: {before}, then {after}")
        if not (taken_back := source.logged(RUNS_ON)):
            raise LabError("holdfastd did not take the volume back by itself")
        return f"{after[-1]!r}, {taken_back[-1]!r}; no second VM on either host; {said}"

    def target_qemu_dies(self) -> str:
        source, target = self.at, self.other
        self.live_phase()
        target.sh("kill -9 $(pgrep -f ^/usr/bin/qemu-system)")
        self.migration_ended()
        return self.settled(source)

    def target_power_off(self) -> str:
        source, target = self.at, self.other
        boots = self.record.boots
        self.live_phase()
        self.guests.mh("kill", target.name)
        began = time.monotonic()
        self.migration_ended()
        self.wait(
            lambda: source.now(self.uuid).mode == self.owns,
            lambda: "the source to have it alone",
            4 * DEAD_S,
        )
        took_s = time.monotonic() - began
        self.power_on(target)
        self.settled(source)
        if self.record.boots != boots:
            raise LabError("the guest has booted again")
        return f"the guest ran on, and {source.name} had it alone {took_s:.0f} s later (dead for sure: {DEAD_S} s)"

    def source_power_off(self) -> str:
        source, target = self.at, self.other
        self.live_phase()
        self.guests.mh("kill", source.name)
        began = time.monotonic()
        self.start_vm(target)
        took_s = time.monotonic() - began
        self.power_on(source)
        self.settled(target)
        if took_s < DEAD_S / 2:
            raise LabError(f"that is too early: {took_s:.0f} s")
        return f"started on {target.name} {took_s:.0f} s later (dead for sure: {DEAD_S} s)"


WRITE_SECTOR = (
    "import mmap,os,sys; m=mmap.mmap(-1,8192); m[:512]=bytes.fromhex(sys.argv[2]); "
    "os.pwritev(os.open(sys.argv[1],os.O_WRONLY|os.O_DIRECT),[m],0)"
)


def cache() -> str:
    """Where the images of these guests are: they have more packages than those of the other suites."""
    given = os.environ.get("MH_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return given or f"{home}/micro-hosts-volumes"
