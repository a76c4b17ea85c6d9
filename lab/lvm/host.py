"""One guest: a lock manager on sanlock's socket, lvmlockd over it, and LVM's commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Literal

from lab.fencing.guests import HOST_IDS, LAB, Guests, LabError

Program = Literal["holdfast", "sanlock", "dlm"]
IO_TIMEOUT_S = 2
"""The least one at which wdmd lets healthy hosts live."""
FIRE_S = 60
DEAD_S = 8 * IO_TIMEOUT_S + FIRE_S
IN_GUEST = LAB / "lvm" / "in_guest"
VG, DISK = "vg", "/dev/disk/by-id/virtio-disk0"
_WAIT_S = 150.0
_FOR_SOCKET = "for _ in $(seq 300); do [ -S {0} ] && break; sleep .2; done; [ -S {0} ]"


class Host:
    """See the module."""

    def __init__(self, guests: Guests, name: str, program: Program) -> None:
        self.guests = guests
        self.name = name
        self.program = program

    @property
    def lock_type(self) -> str:
        """Of the volume group, as LVM calls it."""
        return "dlm" if self.program == "dlm" else "sanlock"

    def sh(self, command: str) -> str:
        return self.guests.sh(self.name, command).strip()

    def start(self) -> None:
        """On a guest that has booted; nothing of the VG is started."""
        own_id = shlex.quote(f"local {{\n\thost_id = {HOST_IDS[self.name]}\n}}\n")
        self.sh(f"hostname {self.name}; printf %s {own_id} > /etc/lvm/lvmlocal.conf")
        self.sh(
            r"sed -i -E 's/^([[:space:]]*#?[[:space:]]*)use_lvmlockd = .*/\tuse_lvmlockd = 1/' /etc/lvm/lvm.conf"
        )
        if self.program == "dlm":
            self.sh(f"{IN_GUEST}/dlm-up 2>&1")
        else:
            self._start_manager()
        self.start_lvmlockd()

    def _start_manager(self) -> None:
        unprivileged = f"daemon -w 1 -U root -G root -o {IO_TIMEOUT_S}"
        if self.program == "holdfast":
            code = "from holdfast.daemon.sanlockd import main; main()"
            start = (
                f"mkdir -p /run/sanlock; PYTHONPATH={self.guests.python} setsid python3 -c {shlex.quote(code)} "
                f"{unprivileged} >>/srv/manager.log 2>&1 </dev/null & echo $! > /srv/manager.pid"
            )
        else:
            start = (
                f"sanlock {unprivileged} -e {self.name} >>/srv/manager.log 2>&1 </dev/null; "
                "cp /run/sanlock/sanlock.pid /srv/manager.pid"
            )
        wdmd = "[ -S /run/wdmd/wdmd.sock ] || /opt/wdmd/bookworm/run -G sanlock"
        self.sh(f"{wdmd}; {_FOR_SOCKET.format('/run/wdmd/wdmd.sock')}")
        self.sh(f"{start}; {_FOR_SOCKET.format('/run/sanlock/sanlock.sock')}")

    def start_lvmlockd(self) -> None:
        options = f"--gl-type {self.lock_type} --adopt 1"
        if self.program != "dlm":
            options += f" --host-id {HOST_IDS[self.name]} --sanlock-timeout {IO_TIMEOUT_S}"
        socket = "/run/lvm/lvmlockd.socket"
        self.sh(
            f"rm -f {socket}; lvmlockd {options} </dev/null >>/srv/lvmlockd.out 2>&1; {_FOR_SOCKET.format(socket)}"
        )

    def kill_lvmlockd(self) -> None:
        self.sh("kill -9 $(cat /run/lvmlockd.pid)")

    def start_vg(self) -> None:
        """Its exit status says little: what counts is that the lockspace is there, and stays. lvmlockd shows one for a
        second that it could not add, as the device of its leases is made in that moment.
        """
        shown = f"vgchange --lock-start {VG} >/dev/null 2>&1; sleep 3; lvmlockctl --info"
        self.wait(lambda: f"LS {self.lock_type}" in self.sh(shown), "the lockspace")

    def lvm(self, command: str) -> None:
        self.sh(f"{command} 2>&1")

    def refused(self, command: str) -> None:
        """Because another host has the lock."""
        said = self.sh(f"{command} 2>&1; echo status $?")
        if "LV locked by other host" not in said or not said.endswith("status 5"):
            raise LabError(f"{self.name}: {command} was not refused: {said}")

    def mode(self, uuid: str) -> str:
        """Of the lock of an LV, as `lvmlockctl --info` shows it."""
        lines = (line.split() for line in self.sh("lvmlockctl --info").splitlines())
        return next((words[2] for words in lines if words[:2] == ["LK", "LV"] and words[3] == uuid), "un")

    def converted(self, lv: str, mode: str) -> None:
        """By lvmlockd's socket alone, with our client."""
        columns = "vg_name,lv_name,lv_uuid,vg_lock_args,lv_lockargs"
        words = self.sh(f"lvs --noheadings -o {columns} {VG}/{lv} 2>/dev/null").split()
        code = (
            "import sys; from holdfast.system.lvm.lvmlockd_client import *; "
            "LvmlockdClient().lock_lv(LvLock(*sys.argv[2:]), Mode(sys.argv[1]))"
        )
        python = f"PYTHONPATH={self.guests.python} python3 -c {shlex.quote(code)}"
        self.sh(f"{python} {mode} {shlex.join(words)}")

    def wait(self, happened: Callable[[], bool], what: str, timeout_s: float = _WAIT_S) -> None:
        until = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > until:
                raise LabError(f"{self.name}: waited {timeout_s:g} s in vain for {what}")
            time.sleep(0.5)

    def log(self) -> str:
        return (
            self.guests.try_sh(self.name, "tail -15 /srv/manager.log; lvmlockctl --dump | tail -25") or "away"
        )
