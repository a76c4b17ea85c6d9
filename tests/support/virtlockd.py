"""Debian's own virtlockd as a subprocess, in a mount namespace of its own because its paths are fixed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.testing.virtlockd_client import VirtlockdClient
from tests.support.daemon import listens
from tests.support.polling import wait_until


class Virtlockd:
    """One real virtlockd."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("virtlockd", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if program is None or shutil.which("unshare") is None:
            pytest.fail("these tests compare with a real virtlockd: as root, run tools/debian-packages test")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "virtlockd.conf").write_text('log_outputs = "4:stderr"\n')
        script = (
            "mount -t tmpfs holdfast-test /run && mkdir -p /run/libvirt && "
            f"exec {program} -f {directory}/virtlockd.conf -p /run/virtlockd.pid"
        )
        self.log = directory / "virtlockd.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "sh", "-c", script], stdout=log, stderr=log
            )
        self.socket = f"/proc/{self.process.pid}/root/run/libvirt/virtlockd-sock"

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return listens(self.socket)

        wait_until(ready, "virtlockd to listen")

    def client(self) -> VirtlockdClient:
        return VirtlockdClient(self.socket, timeout_s=60)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
