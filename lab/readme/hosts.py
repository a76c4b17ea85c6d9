"""The guests: two hosts as an administrator has them before README's first line, and the server of their storage."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from lab.fencing.guests import MICRO_HOSTS, Guests, LabError
from tests.e2e.lab.domains import Disk, Domain
from tests.e2e.lab.programs import QEMU, Programs
from tests.e2e.lab.storage import IMAGE_BYTES, RECORD_OFFSET_BYTES, Image, write_boot_disk
from tests.support.readme import timed_lines
from tests.systemd.root_host import SHARED, SUITE, of_libvirt_hosts

NAMES = {"alpha": "h1", "beta": "h2", "store": "h3"}
EXPORT = "/srv/nfs"
STORE_ADDRESS = "10.77.0.3"
MEMORY_MIB = "1024"
BOOT_S = 240.0
COMMAND_S = 300
BESIDES = "python3,udev,kmod,nfs-common,busybox-static"
"""What a guest needs besides the packages of any libvirt host."""


def build_images(suite: str) -> dict[str, str]:
    """The variables of `mh` that name them: of hosts of that release, each with its kernel. The store is a guest as the
    other suites have them.
    """
    given = os.environ.get("MH_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    systemd = f"{given or f'{home}/micro-hosts'}-systemd{'' if suite == SUITE else f'-{suite}'}"
    build = str(MICRO_HOSTS / "build")
    subprocess.run([build], check=True)
    packages = f"{of_libvirt_hosts(suite)},{BESIDES}"
    subprocess.run(
        [build],
        check=True,
        env={**os.environ, "MH_CACHE": systemd, "MH_SYSTEMD": packages, "MH_SUITE": suite},
    )
    return {
        "MH_CACHE_h1": systemd,
        "MH_CACHE_h2": systemd,
        "MH_NAMES": ",".join(NAMES),
        "MH_MEM": MEMORY_MIB,
        "MH_BOOT_S": f"{BOOT_S:.0f}",
        "MH_SHARE": "",
    }


class GuestHost:
    """One guest with systemd; `tests.support.readme.Host`."""

    def __init__(self, guests: Guests, name: str) -> None:
        self.name = name
        self.guest = NAMES[name]
        self._guests = guests

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._enter(command), env=self._guests.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def run(self, command: str) -> str:
        return "\n".join(line for _, line in self.lines(command))

    def lines(self, command: str) -> list[tuple[float, str]]:
        code, said = timed_lines(self._enter(command), self._guests.environment)
        if code != 0:
            text = "\n".join(line for _, line in said)
            raise LabError(f"{self.name}: {command}: exit {code}:\n{text}")
        return said

    def put(self, source: Path, at: str) -> None:
        """A copy of a directory."""
        packed = BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source, ".")
        self._guests.put(self.guest, f"mkdir -p {at} && tar -C {at} --no-same-owner -x", packed.getvalue())

    def await_boot(self, old: str | None = None) -> None:
        """Until systemd has done it; `old` is the boot id that it must not have."""
        self._guests.mh(
            "wait", "-t", f"{BOOT_S:.0f}", self.guest, *([old] if old else []), timeout_s=BOOT_S + 30
        )
        state = self.try_run(
            "systemctl is-system-running --wait; systemctl --failed --plain --no-legend"
        ).stdout
        if state.split()[:1] != ["running"]:
            raise LabError(f"{self.name} has not booted as it should: {state}")

    def boot(self) -> str:
        return self._guests.boot(self.guest)

    def _enter(self, command: str) -> list[str]:
        shell = f"export DEBIAN_FRONTEND=noninteractive; cd /root && {command}"
        return self._guests.command("sh", "-t", str(COMMAND_S), self.guest, shell)


class Storage:
    """The directory that both hosts mount, as its server has it."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests

    def serve(self, place: Path) -> None:
        """With the VM's image in it."""
        lab = place / "vm"
        lab.mkdir()
        image = lab / "web1.img"
        write_boot_disk(image, IMAGE_BYTES, Programs.build(lab).boot_sector)
        self._guests.put("h3", f"mkdir -p {EXPORT} && cat > {EXPORT}/web1.img", image.read_bytes())
        self._guests.sh("h3", f"mh-nfsd start {EXPORT}")

    def writes(self) -> int:
        """How often the VM has written its record."""
        words = self._guests.sh(
            "h3", f"od -A n -t u4 -j {RECORD_OFFSET_BYTES + 4} -N 4 {EXPORT}/web1.img"
        ).split()
        return int(words[0])

    def await_writes(self, timeout_s: float = 60.0) -> None:
        before = self.writes()
        wait(lambda: self.writes() > before + 1, "the VM to write to its disk", timeout_s)


def prepare(host: GuestHost, packages: Path) -> None:
    """What README takes for granted: one directory that both mount, one VM that both define, the packages."""
    host.run(
        f"mkdir -p {SHARED} && echo '{STORE_ADDRESS}:{EXPORT} {SHARED} nfs4 _netdev 0 0' >> /etc/fstab && "
        f"systemctl daemon-reload && mount {SHARED}"
    )
    image = Image(f"{SHARED}/web1.img", Path())
    domain = Domain("web1", (Disk(image, cache="none"),), Path(QEMU))
    host.run(f"printf %s {shlex.quote(domain.xml())} > web1.xml && virsh define web1.xml")
    host.put(packages / "build", "/root/build")


def wait(happened: Callable[[], object], what: str, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > until:
            raise LabError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.3)
