"""A live switch (ADR 0211) on a host with the real libvirtd, QEMU and virtlockd: VMs run through it, and keep disks."""

from __future__ import annotations

import fcntl
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import clean
from tests.e2e.lab.daemons import HOLDFAST_TOML, LockDaemon, _program
from tests.e2e.lab.kernel_locks import Waiter
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.refusals import assert_refused
from tests.e2e.lab.vms import Vm

pytestmark = [
    pytest.mark.holdfast_only("begins with virtlockd"),
    pytest.mark.without_hook("libvirt has the hook from the start"),
]


@pytest.fixture(params=["indirect", pytest.param("direct", marks=pytest.mark.long)])
def virtlockd_lab(request: pytest.FixtureRequest, make_lab: LabFactory) -> Iterator[Lab]:
    """alpha on virtlockd, which is switched, beta on holdfastd. alpha has virtlockd again for the next scenario."""
    scenarios = clean(request, make_lab(("virtlockd", "holdfastd"), request.param))
    lab = next(scenarios)
    yield lab
    lab.alpha.kill_guests()
    if lab.libvirtd[lab.alpha].is_up:
        lab.libvirtd[lab.alpha].stop()
    lab.lockd[lab.alpha].kill()
    lab.start_daemons()
    for _ in scenarios:
        pass


class Rivals:
    """Another process that asks for every disk's lock, all the while, as F_SETLK does."""

    def __init__(self, files: list[Path]) -> None:
        self.got: list[Path] = []
        self.tries = 0
        self._files = files
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        opened = [(path, path.open("r+b")) for path in self._files]
        while not self._stop.is_set():
            for path, file in opened:
                self.tries += 1
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
                except BlockingIOError:
                    continue
                self.got.append(path)
                self._stop.set()
            time.sleep(0.0002)
        for _, file in opened:
            file.close()

    def __enter__(self) -> Rivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def holdfast(lab: Lab, *arguments: str) -> str:
    """The command on alpha, where holdfastd comes to be."""
    return lab.alpha.run(
        _program("holdfast"), "--config", str(lab.alpha.folder / "holdfast.toml"), *arguments
    )


def switch(lab: Lab) -> float:
    """With libvirt stopped, as the docs say. Returns how many seconds virtlockd's process was something else."""
    (lab.alpha.folder / "holdfast.toml").write_text(HOLDFAST_TOML)
    lab.libvirtd[lab.alpha].stop()
    before = time.monotonic()
    said = holdfast(lab, "switch")
    assert "locks of virtlockd's" in said
    assert "in doubt" not in said
    return time.monotonic() - before


def started(lab: Lab, count: int) -> list[Vm]:
    vms = [lab.vm(lab.alpha, f"web{number}", lab.storage.image(f"web{number}")) for number in range(count)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Vm.start, vms))
    return vms


def test_vms_run_through_the_switch_and_nobody_gets_their_disks(virtlockd_lab: Lab) -> None:
    lab = virtlockd_lab
    lockd: LockDaemon = lab.lockd[lab.alpha]
    vms = started(lab, 3)
    files = [lab.lock_file(vm.boot_image) for vm in vms]
    qemus = [vm.inner_pid for vm in vms]
    with Waiter(files[0]) as waiter, Rivals(files[1:]) as rivals:
        switch(lab)
        assert (rivals.got, waiter.was_granted) == ([], False)
    assert rivals.tries > 10
    assert "holdfastd" in lab.alpha.run("cat", f"/proc/{lockd._running.inner_pid}/cmdline")  # type: ignore[union-attr]
    listed = holdfast(lab, "list")
    for vm in vms:
        assert vm.name in listed
        assert lab.lock(vm.boot_image) == "write"
        assert_refused(lab.vm(lab.beta, "thief", vm.boot_image).refused("start"))
        assert vm.name in holdfast(lab, "who", vm.boot_image.path)
    # libvirt comes back, finds its VMs, and goes on by the lock daemon that is there now.
    lab.libvirtd[lab.alpha].start()
    for vm, qemu in zip(vms, qemus, strict=True):
        assert vm.inner_pid == qemu
        vm.assert_writes()
    assert_refused(lab.vm(lab.alpha, "thief", vms[1].boot_image).refused("start"))
    vms[0].destroy()
    lab.wait_free(vms[0].boot_image)
    vms[1].virsh("suspend")
    lab.wait_free(vms[1].boot_image)
    vms[1].virsh("resume")
    assert lab.lock(vms[1].boot_image) == "write"
    vms[2].process.kill()
    lab.wait_free(vms[2].boot_image)
    assert vms[0].start().boot_image.boots == 2
    until(lambda: "web0" in holdfast(lab, "list"), "a VM that is started afterwards to be holdfastd's")


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("virtlockd_lab", ["direct"], indirect=True)
def test_fifty_vms_are_switched(virtlockd_lab: Lab) -> None:
    """Most of them stand still meanwhile, for two cores can't run so many without hardware support."""
    lab = virtlockd_lab
    vms: list[Vm] = []
    for number in range(50):
        vms.append(lab.vm(lab.alpha, f"web{number}", lab.storage.image(f"web{number}")).start())
        if number > 2:
            vms[-1].process.send(signal.SIGSTOP)
    with Rivals([lab.lock_file(vm.boot_image) for vm in vms]) as rivals:
        seconds = switch(lab)
        assert rivals.got == []
    print(f"50 VMs: 'holdfast switch' took {seconds:.1f} s; others tried {rivals.tries} times meanwhile")
    listed = holdfast(lab, "list")
    for vm in vms:
        assert lab.lock(vm.boot_image) == "write"
        assert vm.name in listed
        vm.process.send(signal.SIGCONT)
        assert vm.process.is_alive()
    lab.libvirtd[lab.alpha].start()
    vms[0].assert_writes()
    vms[-1].process.kill()
    lab.wait_free(vms[-1].boot_image)
