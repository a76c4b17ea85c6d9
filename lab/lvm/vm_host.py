"""One guest of the suites `volumes`: what `Host` is, and holdfastd with driver lvm, its hook, libvirtd and QEMU."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lab.fencing.guests import HOST_IDS, LAB, Guests, LabError
from lab.lvm.host import IN_GUEST, VG, Host, Program

HOOK = LAB.parent / "packaging" / "libvirt"
VM = "v1"
LV = f"/dev/{VG}/lv1"
GUARDS, GUARDS_MIB = "/dev/disk/by-id/virtio-disk1", 64
GUARD_IO_TIMEOUT_S = 5
"""Of their lockspace: a holdfastd that is stopped for less than eight times that loses nothing."""
Guarded = Literal["", "guarded", "shared"]
"""Volumes have LVM's lock alone; a guard lease beside it; that lease, and are active on all hosts."""
DOMAIN = """<domain type='qemu'><name>{name}</name><uuid>11111111-2222-4333-8444-00000000000{number}</uuid>
<memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<on_crash>destroy</on_crash><devices><emulator>/usr/local/bin/qemu-noted</emulator><disk type='block' device='disk'>
<driver name='qemu' type='raw' cache='none'/><source dev='{disk}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""
MONITOR = f"timeout 30 virsh -q qemu-monitor-command {VM} --hmp"
"""What the guest's processor and its disk do: a guest that writes no more may wait for either."""
EJECT = ((0xAE10, 0), (0xAE08, 1 << 3))
"""Port and value: what a guest's operating system writes when it lets a disk in PCI slot 3 go; this guest has none."""
DAEMONS = {
    "holdfastd": "/srv/holdfastd.pid",
    "lvmlockd": "/run/lvmlockd.pid",
    "libvirtd": "/run/libvirtd.pid",
}


@dataclass(frozen=True)
class State:
    """Of one host: the mode of its lock, whether the device is there, and the VM by libvirt's status file."""

    mode: str = "un"
    active: bool = False
    state: str = ""
    """`running`, `paused`; empty: there is no status file."""
    reason: str = ""
    job: str = ""
    phase: str = ""
    qemus: int = 0
    words: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        vm = " ".join(filter(None, (self.state, self.reason, self.job, self.phase))) or "no VM"
        device = "active" if self.active else "no device"
        return f"{self.mode}, {device}, {vm}, {self.qemus} QEMU"


class VmHost(Host):
    """See the module. `guarded`: the guards' lockspace is on the second disk."""

    def __init__(self, guests: Guests, name: str, program: Program, *, guarded: Guarded = "") -> None:
        super().__init__(guests, name, program)
        self._guarded = guarded

    def make_guards(self) -> None:
        """The lockspace of the guards; once, before holdfastd is started on any host."""
        code = "import sys; from holdfast.cli.main import main; sys.argv[0] = 'holdfast'; sys.exit(main())"
        self.sh(
            f"PYTHONPATH={self.guests.python} python3 -S -c {shlex.quote(code)} lockspace init {GUARDS} --name guards "
            f"--hosts-max 8 --index 8 --io-timeout {GUARD_IO_TIMEOUT_S} 2>&1"
        )

    @property
    def address(self) -> str:
        return f"10.77.0.{HOST_IDS[self.name]}"

    def virt_up(self) -> None:
        """holdfastd and libvirtd, if they don't run."""
        self.sh(f"{IN_GUEST}/virt-up {self.guests.python} {self._guarded} 2>&1")

    def define(self) -> None:
        """The files of both VMs, which outlive a loss of power as all that was written before; nothing is started."""
        for name, number in (("v1", 1), ("v2", 2)):
            text = DOMAIN.format(name=name, number=number, disk=LV)
            self.sh(f"printf %s {shlex.quote(text)} > /root/{name}.xml; sync")

    def kill_daemon(self, program: str) -> None:
        self.sh(
            f"kill -9 $(cat {DAEMONS[program]}); while kill -0 $(cat {DAEMONS[program]}) 2>/dev/null; do :; done"
        )

    def start_daemon(self, program: str) -> None:
        if program == "lvmlockd":
            self.start_lvmlockd()
        elif program == "holdfastd":
            self.sh(f"{IN_GUEST}/holdfastd-up 2>&1")
        else:
            self.virt_up()

    def now(self, uuid: str) -> State:
        """All of it, in one call. Raises `LabError` when the guest does not answer."""
        words = dict(
            line.split(" ", 1)
            for line in self.sh(f"{IN_GUEST}/state {uuid} {VM}").splitlines()
            if " " in line
        )
        return State(
            mode=words.get("mode", ""),
            active=words.get("active") == "yes",
            state=words.get("state", ""),
            reason=words.get("reason", ""),
            job=words.get("job", ""),
            phase=words.get("phase", ""),
            qemus=int(words.get("qemus", "0")),
        )

    def is_refused(self, command: str) -> str:
        """What it says; raises `LabError` if it ends well."""
        said = self.sh(f"{command} 2>&1; echo status $?")
        if said.endswith("status 0"):
            raise LabError(f"{self.name}: {command} was not refused: {said}")
        return said

    def put(self, path: str, raw: bytes) -> None:
        """A file of the guest."""
        subprocess.run(
            self.guests.command("sh", "-i", "-t", "60", self.name, f"cat > {path}"),
            env=self.guests.environment,
            input=raw,
            check=True,
        )

    def logged(self, words: str) -> list[str]:
        """holdfastd's lines with these words, of all its lives since the boot."""
        return self.sh(f"grep -F {shlex.quote(words)} /srv/holdfastd.log; true").splitlines()

    def in_background(self, name: str, command: str) -> None:
        """Its output and exit status are in /srv/NAME.out."""
        log = f"/srv/{name}.log"
        inner = f"{command} >{log} 2>&1; echo status $? >>{log}; mv {log} /srv/{name}.out"
        self.sh(f"rm -f /srv/{name}.out; setsid bash -c {shlex.quote(inner)} </dev/null >/dev/null 2>&1 &")

    def ended(self, name: str) -> str | None:
        """What a program in the background said, with its exit status; None while it runs."""
        return self.sh(f"cat /srv/{name}.out 2>/dev/null; true") or None

    def keep_logs(self, place: Path, uuid: str) -> None:
        """Of everything that has one, to find the reason of a failure by."""
        place.mkdir(parents=True, exist_ok=True)
        files = (
            "/srv/*.log /srv/*.out /srv/*.opens /srv/*.trace.* /var/log/libvirt/libvirtd.log /var/log/libvirt/qemu/*.log "
            "/run/libvirt/qemu/*.xml /run/holdfast/*.json /run/holdfast/journal"
        )
        logged = (
            ("lvmlockctl --info", "info"),
            ("lvmlockctl --dump", "lvmlockd-dump"),
            ("dmsetup info -c", "dm"),
            ("ps axf", "ps"),
            (f"{IN_GUEST}/state {uuid} {VM}", "state"),
            ("timeout 30 holdfast status", "status"),
            (f"for n in 1 2 3; do {MONITOR} 'info registers'; done; {MONITOR} 'info pic'", "registers"),
            (f"{MONITOR} 'info block'; {MONITOR} 'info blockstats'", "blocks"),
        )
        commands = (f"{{ {command}; }} > /srv/{name}.log 2>&1" for command, name in logged)
        self.guests.try_sh(self.name, "; ".join((*commands, "true")))
        with open(place / f"{self.name}.tar", "wb") as out:
            subprocess.run(
                self.guests.command("sh", "-t", "60", self.name, f"tar cf - {files} 2>/dev/null"),
                env=self.guests.environment,
                stdout=out,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                check=False,
            )
