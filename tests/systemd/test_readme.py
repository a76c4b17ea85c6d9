"""README alone, followed by a script: from the packages to a VM that starts on the second host after the first has died.

Two hosts with a systemd each, and Debian's libvirtd and QEMU. What is not README's: these hosts have no watchdog, so setup
is asked for none and for its shortest timeouts, without a question; and QEMU goes without its own image locks, which on
the one kernel of both hosts would refuse the second start before the lock manager is asked (tests/e2e/lab/qemu_nolock.c).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab.domains import Disk, Domain
from tests.e2e.lab.polling import until
from tests.e2e.lab.programs import Programs
from tests.e2e.lab.storage import IMAGE_BYTES, Image, write_boot_disk
from tests.support.fuse_storage import FaultyStorage
from tests.systemd.machine import PROJECT, require
from tests.systemd.root_host import SHARED, RootHost, hosts, make_template

pytestmark = [
    pytest.mark.long,  # builds packages and a root file system
    pytest.mark.timeout(1500),
]
BLOCK = "## Two hosts, from the package"
HERE = "--profile fast --watchdog none --yes"
"""What these hosts add to README's `holdfast setup`."""
PROTECTED_WITHIN_S = 120.0
UNEXPLAINED_S = 3.0
"""A last look at the host takes up to that; the wait for a lease that has just been claimed is longer."""
LAB = "/opt/lab"


@dataclass(frozen=True, slots=True)
class Line:
    """One of README's commands: `who` is the host's name, or "both"; `note` is what the page says of it."""

    command: str
    who: str
    note: str


def lines_of_readme() -> list[Line]:
    """The commands of the block, in their order."""
    text = (PROJECT / "README.md").read_text()
    block = text.split(f"{BLOCK}\n", 1)[1].split("\n## ", 1)[0]
    found = []
    for line in block.splitlines():
        if not line.startswith("    "):
            continue
        command, _, note = line.strip().partition(" # ")
        who = re.match(r"\w+", note.strip())
        assert who, f"README does not say where {command!r} is run"
        found.append(Line(command.strip(), who[0], note.strip()))
    return found


class Page:
    """README's commands are taken from it one by one, so that none is left out and none is made up."""

    def __init__(self) -> None:
        self._lines = lines_of_readme()

    def next(self, who: str, begin: str) -> Line:
        line = self._lines.pop(0)
        assert (line.who, line.command[: len(begin)]) == (who, begin), f"README says {line}"
        return line

    def is_done(self) -> bool:
        return not self._lines


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    root = tmp_path_factory.mktemp("readme") / "template"
    make_template(root)
    return root


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `build/deb`, as `make deb` leaves it."""
    made = subprocess.run(
        ["make", "-s", "deb"], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True, timeout=900
    ).stdout.split()
    place = tmp_path_factory.mktemp("packages")
    (place / "build/deb").mkdir(parents=True)
    for each in made:
        if each.endswith(".deb"):
            shutil.copy(PROJECT / each, place / "build/deb")
    return place


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[FaultyStorage]:
    """What both hosts mount, under the type of a cluster file system: on one kernel any file system is one."""
    storage = FaultyStorage(tmp_path / "storage", tmp_path / "mounted", "fuse.glusterfs")
    yield storage
    storage.close()


def install_lab(directory: Path, storage: FaultyStorage) -> Domain:
    """The VM's image on the shared storage; its definition, and a QEMU without locks of its own, for LAB on each host."""
    lab = directory / "lab"
    lab.mkdir()
    programs = Programs.build(lab)
    wrapper = programs.qemu_without_own_locks
    wrapper.write_text(wrapper.read_text().replace(str(lab), LAB))
    image = Image(f"{SHARED}/web1.img", storage.source / "web1.img")
    write_boot_disk(image.file, IMAGE_BYTES, programs.boot_sector)
    domain = Domain("web1", (Disk(image),), Path(LAB) / wrapper.name)
    (lab / "web1.xml").write_text(domain.xml())
    return domain


def await_writes(image: Image) -> None:
    """The guest runs: it counts on its disk."""
    before = image.count
    until(lambda: image.count > before + 1, "the VM to write to its disk")


def setup(host: RootHost, command: str) -> float:
    """Carries README's setup out and shows it; the seconds that its lease needed, which it gives a reason for."""
    said = host.lines(f"{command} {HERE}")
    show(host, said)
    assert "this host is set up" in said[-1][1], said
    joining = next((at for at, line in said if re.match(r"\d+/\d+ .*join", line)), None)
    if joining is None:
        return 0.0  # the steps before have taken longer than the lease needed
    reasons = [line for at, line in said if at >= joining and re.match(r"    \w+: .", line)]
    ended = said[-1][0]
    assert reasons or ended - joining < UNEXPLAINED_S, f"the wait for the lockspace has no reason: {said}"
    return ended - joining


def newer(packages: Path) -> None:
    """Beside each package the same one of a later version, which its program says as well, in `build/newer`."""
    (packages / "build/newer").mkdir()
    for each in ("holdfast", "holdfast-web"):
        [package] = (packages / "build/deb").glob(f"{each}_*.deb")
        tree = packages / each
        subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
        was = re.search(r"^Version: (.*)$", control := (tree / "DEBIAN/control").read_text(), re.MULTILINE)
        assert was
        (tree / "DEBIAN/control").write_text(control.replace(was[1], f"{was[1]}.1"))
        module = tree / "usr/lib/holdfast/lib/holdfast/__init__.py"
        if module.exists():
            module.write_text(
                re.sub(r'(?m)^__version__ = "(.*)"$', r'__version__ = "\1.later"', module.read_text())
            )
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", tree, packages / "build/newer"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        shutil.rmtree(tree)


class Rival:
    """Tries to start the VM on another host, again and again: every try has to be refused with the holder's name."""

    def __init__(self, host: RootHost) -> None:
        self.tries = 0
        self.wrong: list[str] = []
        self._host = host
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            done = self._host.try_run("virsh start web1")
            self.tries += 1
            if done.returncode == 0 or "locked by VM web1" not in done.stderr:
                self.wrong.append(done.stdout + done.stderr)

    def __enter__(self) -> Rival:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def daemon_of(host: RootHost) -> tuple[str, str]:
    """Its pid and its version."""
    version = json.loads(host.run("holdfast version --json"))["holdfastd"]
    return host.show("holdfastd.service", "MainPID"), version


def upgraded_with_its_vm(host: RootHost, other: RootHost, image: Image) -> None:
    """The daemon becomes the new program in place, with the VM's lock, and a rival never gets it."""
    pid, before = daemon_of(host)
    qemu = host.run("cat /run/libvirt/qemu/web1.pid")
    began = time.monotonic()
    with Rival(other) as rival:
        host.run("apt-get install -y ./build/newer/holdfast_*.deb ./build/newer/holdfast-web_*.deb")
        took = time.monotonic() - began
        until(lambda: daemon_of(host)[1] != before, "holdfastd to be the new program")
        await_writes(image)
    assert daemon_of(host) == (pid, f"{before}.later")
    assert host.run("cat /run/libvirt/qemu/web1.pid") == qemu
    assert "web1" in host.run("holdfast list")
    assert rival.tries > 1 and rival.wrong == [], rival.wrong
    assert host.show("holdfast-web.service", "ActiveState") == "active"
    print(f"{host.name}: upgraded in {took:.1f} s with its VM; a rival was refused {rival.tries} times")


def not_removed_with_its_vm(host: RootHost, other: RootHost, image: Image) -> None:
    """dpkg names the VM and the disk, and all goes on."""
    before = daemon_of(host)
    removal = host.try_run("dpkg -r holdfast-web holdfast")
    print(f"{host.name}: dpkg -r holdfast: {removal.stderr.strip()}")
    assert removal.returncode != 0
    assert "web1" in removal.stderr and f"{SHARED}/web1.img" in removal.stderr
    assert daemon_of(host) == before
    refused = other.try_run("virsh start web1")
    assert "locked by VM web1" in refused.stderr
    await_writes(image)


def back_to_virtlockd(host: RootHost, image: Image) -> None:
    """Setup goes back once the VM is off, and then the package can go, also while the VM runs by virtlockd."""
    undo = host.try_run("holdfast setup --undo --yes")
    assert undo.returncode != 0
    assert "web1" in undo.stdout + undo.stderr, undo
    host.run("virsh destroy web1")
    host.run("holdfast setup --undo --yes")
    assert host.try_run("grep '^lock_manager' /etc/libvirt/qemu.conf").returncode == 1
    assert host.show("virtlockd.socket", "ActiveState") == "active"
    host.run("virsh start web1")
    await_writes(image)
    host.run("apt-get purge -y holdfast holdfast-web")
    assert host.run("virsh domstate web1").strip() == "running"
    await_writes(image)


def show(host: RootHost, said: list[tuple[float, str]]) -> None:
    for at, line in said:
        print(f"{host.name} {at:6.1f} s  {line}")


def test_readme_leads_from_the_package_to_a_vm_that_outlives_its_host(
    template: Path, packages: Path, shared: FaultyStorage, tmp_path: Path
) -> None:
    page = Page()
    newer(packages)
    domain = install_lab(tmp_path, shared)
    image = Image("", shared.source / "web1.img")
    with hosts(tmp_path, template, shared.at, "alpha", "beta") as (alpha, beta):
        for host in (alpha, beta):
            host.put(tmp_path / "lab", LAB)
            host.put(packages / "build", "/root/build")
            host.run(f"virsh define {LAB}/web1.xml")

        # From the package to a protected host.
        install = page.next("both", "apt install ")
        leases = page.next("alpha", "holdfast setup --leases ")
        join = page.next("beta", "holdfast setup --join ")
        for host, command in ((alpha, leases.command), (beta, join.command)):
            began = time.monotonic()
            host.run(install.command.replace("apt install", "apt-get install -y", 1))
            installed = time.monotonic()
            waited = setup(host, command)
            took = time.monotonic() - began
            print(
                f"{host.name}: protected {took:.1f} s after the package (apt {installed - began:.1f} s, "
                f"setup {took - waited - (installed - began):.1f} s, lease {waited:.1f} s)"
            )
            assert took - waited < PROTECTED_WITHIN_S

        # One VM, one host.
        host_one = page.next("alpha", "virsh start")
        alpha.run(host_one.command)
        await_writes(image)
        second = page.next("beta", "virsh start")
        refused = beta.try_run(second.command)
        print(f"beta: {second.command}: {refused.stderr.strip()}")
        assert refused.returncode != 0
        assert f"locked by VM {domain.name}" in refused.stderr
        assert "on host alpha" in refused.stderr

        # The page.
        enable = page.next("both", "systemctl enable --now holdfast-web")
        [url] = re.findall(r"http://\S+", enable.note)
        for host in (alpha, beta):
            host.run(enable.command)
            shown = host.run(
                f"curl --silent --show-error --fail --retry 20 --retry-connrefused --retry-delay 1 {url}"
            )
            assert "<title>" in shown.lower()
            metrics = host.run(f"curl --silent --show-error --fail {url}metrics")
            assert "holdfast_" in metrics
        assert alpha.show("holdfast-web.service", "ActiveState") == "active"
        await_writes(image)

        # The package with its VM running.
        upgraded_with_its_vm(alpha, beta, image)
        not_removed_with_its_vm(alpha, beta, image)

        # Its host dies, with QEMU, in one moment.
        alpha.kill()
        fenced = page.next("beta", "holdfast host fenced alpha")
        said = beta.lines(fenced.command)
        show(beta, said)
        assert any(re.search(r"waiting for silence: alpha .* s left", line) for _, line in said)
        assert f"{SHARED}/web1.img" in said[-1][1] and "free" in said[-1][1], said
        beta.run(page.next("beta", "virsh start").command)
        await_writes(image)
        assert page.is_done()
        back_to_virtlockd(beta, image)
