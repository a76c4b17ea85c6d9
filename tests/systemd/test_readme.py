"""README alone, followed by a script: from the packages to a VM that starts on the second host after the first has died.
And the way out of it: what a purge does while VMs run, and what it leaves.

Two hosts with a systemd each, and Debian's libvirtd and QEMU, of this release and (`long`) of the next one. What is not
README's: these hosts have no watchdog, so setup is asked for none and for its shortest timeouts, without a question; and
QEMU goes without its own image locks, which on the one kernel of both hosts would refuse the second start before the lock
manager is asked (tests/e2e/lab/qemu_nolock.c).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.lab.domains import Disk, Domain
from tests.e2e.lab.polling import until
from tests.e2e.lab.programs import Programs
from tests.e2e.lab.storage import IMAGE_BYTES, Image, write_boot_disk
from tests.support.fuse_storage import FaultyStorage
from tests.support.readme import Page, build_packages, one_vm_one_host, open_page, protect, show
from tests.systemd.machine import require
from tests.systemd.root_host import SHARED, SUITE, RootHost, hosts, make_template

pytestmark = pytest.mark.timeout(1500)  # it builds packages and a root file system
HERE = "--profile fast --watchdog none --yes"
"""What these hosts add to README's `holdfast setup`."""
LAB = "/opt/lab"
NEXT = "trixie"
HOOK = "/etc/libvirt/hooks/qemu.d/holdfast"


@pytest.fixture(
    scope="module", params=[SUITE, *([] if SUITE == NEXT else [pytest.param(NEXT, marks=pytest.mark.long)])]
)
def suite(request: pytest.FixtureRequest) -> str:
    """The hosts' release."""
    return str(request.param)


@pytest.fixture(scope="module")
def template(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    root = tmp_path_factory.mktemp("readme") / "template"
    make_template(root, suite)
    return root


@pytest.fixture(scope="module")
def packages(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`build/deb`, and in `build/newer` the same of a later version."""
    made = build_packages(tmp_path_factory.mktemp("packages"), suite)
    newer(made)
    return made


def install_lab(directory: Path, images: dict[str, Image]) -> None:
    """The image of each VM; for LAB on each host their definitions, and a QEMU without locks of its own."""
    lab = directory / "lab"
    lab.mkdir()
    programs = Programs.build(lab)
    wrapper = programs.qemu_without_own_locks
    wrapper.write_text(wrapper.read_text().replace(str(lab), LAB))
    for name, image in images.items():
        if not image.file.exists():
            write_boot_disk(image.file, IMAGE_BYTES, programs.boot_sector)
        domain = Domain(name, (Disk(image),), Path(LAB) / wrapper.name)
        (lab / f"{name}.xml").write_text(domain.xml())


def shared_image(storage: FaultyStorage, name: str) -> Image:
    return Image(f"{SHARED}/{name}.img", storage.source / f"{name}.img")


def await_writes(image: Image) -> None:
    """The guest runs: it counts on its disk."""
    before = image.count
    until(lambda: image.count > before + 1, "the VM to write to its disk")


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
    """Tries to start a domain with the disk of `holder` all the while. `wrong`: starts, and refusals without that name."""

    def __init__(self, host: RootHost, domain: str = "web1", holder: str = "web1") -> None:
        self.tries = 0
        self.started = 0
        self.wrong: list[str] = []
        self._host = host
        self._domain = domain
        self._holder = holder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            done = self._host.try_run(f"virsh start {self._domain}")
            self.tries += 1
            self.started += done.returncode == 0
            if done.returncode == 0 or f"locked by VM {self._holder}" not in done.stderr:
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


def back_to_virtlockd(host: RootHost, image: Image, name: str = "web1") -> None:
    """Setup goes back once the VM is off, and then the package can go, also while the VM runs by virtlockd."""
    undo = host.try_run("holdfast setup --undo --yes")
    assert undo.returncode != 0
    assert name in undo.stdout + undo.stderr, undo
    host.run(f"virsh destroy {name}")
    host.run("holdfast setup --undo --yes")
    assert host.try_run("grep '^lock_manager' /etc/libvirt/qemu.conf").returncode == 1
    assert host.show("virtlockd.socket", "ActiveState") == "active"
    host.run(f"virsh start {name}")
    await_writes(image)
    host.run("apt-get purge -y holdfast holdfast-web")
    assert host.run(f"virsh domstate {name}").strip() == "running"
    await_writes(image)


def equip(host: RootHost, directory: Path, packages: Path, *names: str) -> None:
    """The lab, the packages and the VMs' definitions."""
    host.put(directory / "lab", LAB)
    host.put(packages / "build", "/root/build")
    for name in names:
        host.run(f"virsh define {LAB}/{name}.xml")


def test_readme_leads_from_the_package_to_a_vm_that_outlives_its_host(
    template: Path, packages: Path, shared: FaultyStorage, tmp_path: Path
) -> None:
    page = Page()
    image = shared_image(shared, "web1")
    install_lab(tmp_path, {"web1": image})
    with hosts(tmp_path, template, shared.at, "alpha", "beta") as (alpha, beta):
        for host in (alpha, beta):
            equip(host, tmp_path, packages, "web1")

        protect(page, alpha, beta, HERE)
        one_vm_one_host(page, alpha, beta, lambda: await_writes(image))
        open_page(page, (alpha, beta))
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


def is_untouched(host: RootHost, name: str, before: tuple[str, ...], image: Image) -> None:
    """The VM runs and writes by the same QEMU, the same daemon has its lock, and the hook is there."""
    assert lock_of(host, name) == before
    host.run(f"test -x {HOOK} && holdfast list | grep -q {name}")
    await_writes(image)


def lock_of(host: RootHost, name: str) -> tuple[str, ...]:
    """QEMU's pid, and the daemon's with its version."""
    return host.run(f"cat /run/libvirt/qemu/{name}.pid"), *daemon_of(host)


def purge_is_refused(host: RootHost, rival_host: RootHost, name: str, image: Image) -> None:
    """apt names the VM and its disk, changes nothing, and another host never gets the disk meanwhile."""
    before = lock_of(host, name)
    with Rival(rival_host, name, name) as rival:
        refused = host.try_run("apt-get purge -y holdfast-web holdfast")
        until(lambda: rival.tries > 1, "the rival to try")
    said = refused.stdout + refused.stderr
    print(f"{host.name}: apt-get purge: {refused.stderr.strip()}")
    assert refused.returncode != 0, said
    assert f"  {name} (pid {before[0]}): {image.path}" in said, said
    assert rival.wrong == [], rival.wrong
    is_untouched(host, name, before, image)
    status = host.run("dpkg-query -W -f '${db:Status-Eflag} ${db:Status-Status}' holdfast")
    assert status == "ok installed"


def left_behind(host: RootHost) -> set[str]:
    """Files and links of Holdfast's that are there, and links of units that lead nowhere."""
    found = host.run(
        "find / -xdev \\( -path /root -o -path /srv -o -path /var/log \\) -prune -o -name '*holdfast*' -print; "
        "find /run -name '*holdfast*'; find /etc/systemd /etc/libvirt -xtype l"
    )
    return {each for each in found.split("\n") if each}


@pytest.mark.long
def test_purge_kills_no_vm_and_leaves_nothing(
    template: Path, packages: Path, shared: FaultyStorage, tmp_path: Path
) -> None:
    images = {name: shared_image(shared, name) for name in ("web1", "web2")}
    install_lab(tmp_path, images)
    with hosts(tmp_path, template, shared.at, "alpha", "beta") as (alpha, beta):
        for host in (alpha, beta):
            equip(host, tmp_path, packages, *images)
        before = left_behind(alpha)
        protect(Page(), alpha, beta, HERE)
        for host, name in ((alpha, "web1"), (beta, "web2")):
            host.run(f"virsh start {name}")
            await_writes(images[name])
        purge_is_refused(alpha, beta, "web1", images["web1"])
        purge_is_refused(beta, alpha, "web2", images["web2"])

        # alpha's VM has ended: beta's is no reason to keep alpha's package.
        alpha.run("virsh destroy web1")
        held = lock_of(beta, "web2")
        said = alpha.run("apt-get remove -y holdfast-web holdfast")
        assert "virtlockd sees no lease" in said, said
        assert {"/etc/holdfast", "/var/lib/holdfast"} <= left_behind(alpha)
        alpha.run("apt-get purge -y holdfast-web holdfast")
        assert left_behind(alpha) == before
        assert alpha.run(
            "dpkg --audit; systemctl --failed --plain --no-legend; dpkg-query -W 'holdfast*' || true"
        ).strip() in (
            "",
            "dpkg-query: no packages found matching holdfast*",
        )
        is_untouched(beta, "web2", held, images["web2"])

        back_to_virtlockd(beta, images["web2"], "web2")
        assert left_behind(beta) == before
