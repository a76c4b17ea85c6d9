"""What the lab needs on the machine, and the three small things it builds: boot sector, preload, QEMU
wrapper."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

QEMU = "/usr/bin/qemu-system-x86_64"
SOURCES = Path(__file__).parent
# The program that must be there, and the Debian package it comes with.
NEEDED = {
    "/usr/sbin/libvirtd": "libvirt-daemon-system",
    "/usr/sbin/virtlockd": "libvirt-daemon-system (12) or libvirt-daemon-lock (13)",
    "virsh": "libvirt-clients",
    QEMU: "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "gcc": "gcc",
    "ld": "binutils",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "losetup": "mount",
}


def missing() -> str:
    """What keeps the lab from running here, as an instruction; empty when nothing does."""
    if os.geteuid() != 0:
        return "the end-to-end tests make namespaces and loop devices: run them as root (e.g. sudo make test)"
    packages = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    if packages:
        return f"missing: {', '.join(sorted(packages))}; as root: tools/debian-packages test"
    return ""


@dataclass(frozen=True, slots=True)
class Programs:
    """The built things, in a folder that every host of the run sees."""

    boot_sector: bytes
    qemu: Path
    qemu_without_own_locks: Path

    @classmethod
    def build(cls, folder: Path) -> "Programs":
        """Assemble and compile them into `folder`."""
        _run("gcc", "-c", "-m32", "-o", folder / "guest.o", SOURCES / "guest.S")
        _run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary",
             "-o", folder / "guest.bin", folder / "guest.o")  # fmt: skip
        preload = folder / "qemu_nolock.so"
        _run("gcc", "-shared", "-fPIC", "-O2", "-o", preload, SOURCES / "qemu_nolock.c", "-ldl")
        wrapper = folder / "qemu-nolock"
        wrapper.write_text(f'#!/bin/sh\nexport LD_PRELOAD={preload}\nexec {QEMU} "$@"\n')
        wrapper.chmod(0o755)
        return cls((folder / "guest.bin").read_bytes(), Path(QEMU), wrapper)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
