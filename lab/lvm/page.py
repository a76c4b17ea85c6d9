"""The suite `page`: the commands of docs/shared-lvm.md, exactly as they stand there, from two empty hosts to a migrated VM.

A block of commands is run on the hosts that the line above it names. What a guest lacks of a host (systemd, packages, names
of hosts) is there before: `virt-up PYTHON page`, and `N` and `LUN`, which the page has the admin set.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from lab.fencing.guests import HOST_IDS, HOSTS, LAB, Guests, LabError
from lab.lvm.host import DISK, IN_GUEST
from lab.lvm.vm_host import HOOK, VmHost
from lab.lvm.volumes import DISK_MIB, MEMORY_MIB, cache

PAGE = LAB.parent / "docs" / "shared-lvm.md"
MARK = re.compile(r"^\*\*On (each host|the first host|the other hosts)\*\*")
VM = "web1"


@dataclass(frozen=True)
class Block:
    """Commands, and where the page says to run them."""

    where: str
    commands: str


def blocks(text: str) -> list[Block]:
    """Those of the page, in order."""
    found: list[Block] = []
    where, lines = "", list[str]()
    for line in [*text.splitlines(), "end"]:
        if where and line.startswith("    "):
            lines.append(line[4:])
            continue
        if line.strip() and lines:
            found.append(Block(where, "\n".join(lines) + "\n"))
            where, lines = "", []
        if mark := MARK.match(line):
            where = mark[1]
    return found


class PageSuite:
    """One pair of guests."""

    def __init__(self, name: str, place: Path, python: Path) -> None:
        self.name = name
        self.guests = Guests(
            place,
            python,
            512,
            (DISK_MIB,),
            shares=(IN_GUEST, HOOK),
            variables={"MH_CACHE": cache(), "MH_MEM": MEMORY_MIB},
        )
        self.hosts = [VmHost(self.guests, host, "sanlock") for host in HOSTS]
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{self.name}: {time.monotonic() - self._began:5.0f} s  {text}", flush=True)

    def run(self) -> None:
        self.guests.mh("up", "2")
        names = "\n".join(f"10.77.0.{HOST_IDS[host]} {host}" for host in HOSTS)
        for host in self.hosts:
            host.sh(
                f"hostname {host.name}; echo '{names}' >> /etc/hosts; ln -s {IN_GUEST} /tmp/in_guest; "
                f"{IN_GUEST}/virt-up {self.guests.python} page"
            )
        self.say("two empty hosts are up")
        for block in blocks(PAGE.read_text()):
            for host in self._where(block.where):
                commands = f"N={HOST_IDS[host.name]}; LUN={DISK}\n{block.commands}"
                host.put("/root/block", f"set -e\n{commands}".encode())
                said = host.sh("bash /root/block 2>&1; echo status $?")
                if not said.endswith("status 0"):
                    raise LabError(f"{host.name}: {block.commands}\n{said}")
                self.say(f"{host.name}: {block.commands.strip().splitlines()[0][:90]} ...")
        one, two = self.hosts
        listed = two.sh("holdfast volume list")
        if "/dev/vg/web" not in listed or "exclusive" not in listed or VM not in two.sh("virsh -q list"):
            raise LabError(f"the VM is not on {two.name}: {listed}")
        if VM in one.sh("virsh -q list") or one.sh("[ -e /dev/vg/web ] && echo there; true"):
            raise LabError(f"the VM or its volume is still on {one.name}")
        self.say(f"the VM has migrated: {listed}")

    def _where(self, where: str) -> list[VmHost]:
        return {"each host": self.hosts, "the first host": self.hosts[:1], "the other hosts": self.hosts[1:]}[
            where
        ]
