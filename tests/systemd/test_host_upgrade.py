"""A host with a VM: libvirt's packages installed again in either release, and the host from Debian 12 to 13, with the VM
running.

A host with a systemd, Debian's libvirtd and QEMU, and no network: what apt needs was fetched into its root before it booted.
Another domain with the same disk is tried again and again; QEMU goes without its own image locks, so that the lock alone
refuses it. docs/situations/upgrades.md is what an admin reads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.lab.domains import Disk, Domain
from tests.e2e.lab.polling import until
from tests.e2e.lab.programs import Programs
from tests.e2e.lab.storage import IMAGE_BYTES, Image, write_boot_disk
from tests.support.readme import build_packages
from tests.systemd.machine import PROJECT, require
from tests.systemd.root_host import LOCKD, SUITE, RootHost, hosts, make_template
from tests.systemd.test_readme import LAB, Rival, await_writes, daemon_of

NEXT = "trixie"
LIBVIRT = "libvirt-daemon libvirt-daemon-system"
"""With virtlockd and its units, in Debian 12."""
DISK = "/var/lib/libvirt/images/web1.img"
PLACE = "/root/packages"
APT = "apt-get -y -o Dpkg::Options::=--force-confold"

pytestmark = [
    pytest.mark.long,  # builds packages of two releases, and upgrades a system
    pytest.mark.timeout(3600),
]


def libvirts(suite: str) -> str:
    """The packages with virtlockd, its units and what asks for it."""
    return LIBVIRT if suite == "bookworm" else f"{LIBVIRT} {LOCKD}"


def fetch_again(root: Path, suite: str) -> None:
    """The packages that the root has installed, into apt's cache there, so that they can be installed once more."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    dumped = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    ).stdout
    wanted = ("::Proxy", "::Check-Valid-Until", "::Check-Date", "::Retries")
    kept = [line for line in dumped.splitlines() if any(f"{each} " in line for each in wanted)]
    (root / "etc/apt/apt.conf.d/99-lab").write_text("\n".join(kept) + "\n")
    _apt(root, "update")
    _apt(root, f"install --reinstall {libvirts(suite)}")


def fetch_next(root: Path) -> None:
    """What the host's apt will install; its lists are those of the next release then."""
    mirror = subprocess.run([PROJECT / "tools" / "debian-mirror"], capture_output=True, text=True, check=True)
    (root / "etc/apt/sources.list").write_text(f"deb {mirror.stdout.strip()} {NEXT} main\n")
    _apt(root, "update")
    _apt(root, f"full-upgrade {LOCKD}")


def _apt(root: Path, command: str) -> None:
    subprocess.run(
        ["chroot", root, "sh", "-c", f"apt-get -q -y --download-only {command}"],
        check=True, timeout=900, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip


def packages(at: Path) -> None:
    """Holdfast's of this release in `now`, and of the next one in `next`, with an index for apt."""
    for name, suite in (("now", SUITE), ("next", NEXT)):
        build_packages(at / f"of-{suite}", suite).joinpath("build/deb").rename(at / name)
        assert list((at / name).iterdir())
    with (at / "next/Packages").open("w") as index:
        subprocess.run(
            ["dpkg-scanpackages", "."], cwd=at / "next", stdout=index, stderr=subprocess.DEVNULL, check=True
        )


def is_held(host: RootHost, qemu: str, image: Image) -> None:
    """By holdfastd, for the VM that runs on; nobody else serves libvirt's socket."""
    await_writes(image)
    assert host.run("cat /run/libvirt/qemu/web1.pid") == qemu
    assert "web1" in host.run("holdfast list")
    assert host.try_run("pgrep -x virtlockd").stdout == ""
    listens = host.show("holdfastd.socket", "Listen")
    assert "/run/libvirt/virtlockd-sock" in listens
    assert host.show("virtlockd.socket", "Id") == "holdfastd.socket"
    until(lambda: _is_refused(host), "a refusal that names the holder")


def _is_refused(host: RootHost) -> bool:
    """The other domain is not started; libvirt may say that another call is about to start it."""
    done = host.try_run("virsh start web2")
    assert done.returncode != 0, done
    return "locked by VM web1" in done.stderr


def build_lab(directory: Path) -> Path:
    """web1, web2 with the same disk, and a QEMU without locks of its own."""
    lab = directory / "lab"
    lab.mkdir()
    programs = Programs.build(lab)
    wrapper = programs.qemu_without_own_locks
    wrapper.write_text(wrapper.read_text().replace(str(lab), LAB))
    write_boot_disk(lab / "web1.img", IMAGE_BYTES, programs.boot_sector)
    for name in ("web1", "web2"):
        domain = Domain(name, (Disk(Image(DISK, lab / "web1.img")),), Path(LAB) / wrapper.name)
        (lab / f"{name}.xml").write_text(domain.xml())
    (directory / "shared").mkdir()
    return lab


def define(host: RootHost, lab: Path, directory: Path) -> Image:
    """The lab's domains; the disk as it is seen from outside."""
    host.put(lab, LAB)
    host.run(f"cp {LAB}/web1.img {DISK}; virsh define {LAB}/web1.xml; virsh define {LAB}/web2.xml")
    return Image(DISK, directory / host.name / "upper" / DISK.lstrip("/"))


@pytest.mark.parametrize("suite", sorted({SUITE, NEXT}))
def test_libvirts_packages_installed_again_leave_holdfastd_on_the_socket(suite: str, tmp_path: Path) -> None:
    """After a switch from virtlockd with the VM running."""
    require()
    template = tmp_path / "template"
    make_template(template, suite)
    fetch_again(template, suite)
    made = build_packages(tmp_path / "packages", suite)
    lab = build_lab(tmp_path)
    with hosts(tmp_path, template, tmp_path / "shared", "alpha") as (alpha,):
        image = define(alpha, lab, tmp_path)
        alpha.run(
            "echo 'lock_manager = \"lockd\"' >>/etc/libvirt/qemu.conf; systemctl restart libvirtd; virsh start web1"
        )
        assert alpha.run("pgrep -x virtlockd")
        qemu = alpha.run("cat /run/libvirt/qemu/web1.pid")
        alpha.put(made / "build/deb", f"{PLACE}/now")
        alpha.run(f"dpkg -i {PLACE}/now/holdfast_*.deb")
        alpha.run("holdfast setup --yes")
        is_held(alpha, qemu, image)
        daemon = daemon_of(alpha)
        with Rival(alpha, "web2") as rival:
            alpha.run(f"{APT} install --reinstall {libvirts(suite)}")
            is_held(alpha, qemu, image)
            # What the next boot begins with.
            alpha.run("systemctl daemon-reload")
            is_held(alpha, qemu, image)
            assert "virtlockd" not in alpha.run("ls /etc/systemd/system/*.wants")
            assert alpha.run("readlink /etc/systemd/system/virtlockd.socket").endswith("/holdfastd.socket")
        assert rival.started == 0
        assert daemon_of(alpha) == daemon
        alpha.run("virsh destroy web1 && virsh start web2")
        assert "locked by VM web2" in alpha.try_run("virsh start web1").stderr


@pytest.mark.skipif(SUITE != "bookworm", reason="the way begins at Debian 12")
def test_no_upgrade_takes_the_lock_of_a_vm_that_runs(tmp_path: Path) -> None:
    require()
    template = tmp_path / "template"
    make_template(template)
    fetch_again(template, SUITE)
    fetch_next(template)
    packages(tmp_path / "packages")
    lab = build_lab(tmp_path)

    with hosts(tmp_path, template, tmp_path / "shared", "alpha") as (alpha,):
        image = define(alpha, lab, tmp_path)
        alpha.put(tmp_path / "packages", PLACE)
        alpha.run(f"dpkg -i {PLACE}/now/holdfast_*.deb")
        alpha.run("holdfast setup --yes")
        alpha.run("virsh start web1")
        qemu = alpha.run("cat /run/libvirt/qemu/web1.pid")
        is_held(alpha, qemu, image)
        pid, before = daemon_of(alpha)

        with Rival(alpha, "web2") as rival:
            alpha.run(f"dpkg -i $(for p in {LIBVIRT}; do echo /var/cache/apt/archives/${{p}}_9*.deb; done)")
            is_held(alpha, qemu, image)
            print(
                f"libvirt's packages installed again; a rival was refused {rival.tries - len(rival.wrong)} times"
            )

            alpha.run(
                f"echo 'deb [trusted=yes] file:{PLACE}/next ./' > /etc/apt/sources.list.d/holdfast.list"
            )
            alpha.run(
                "apt-get update -o Dir::Etc::sourcelist=sources.list.d/holdfast.list -o Dir::Etc::sourceparts=- "
                "-o APT::Get::List-Cleanup=0"
            )
            alpha.run(f"{APT} full-upgrade")
            assert alpha.run("cat /etc/debian_version").startswith("13")
            is_held(alpha, qemu, image)
            until(lambda: daemon_of(alpha)[1] != before or "python3.13" in _exe(alpha), "the new holdfastd")
            print(f"{SUITE} to {NEXT}; a rival was refused {rival.tries - len(rival.wrong)} times")

            alpha.run(f"{APT} install {LOCKD}")
            is_held(alpha, qemu, image)
            alpha.run("kill -9 $(systemctl show -P MainPID holdfastd.service)")
            until(lambda: alpha.try_run("holdfast list").returncode == 0, "the next holdfastd")
            is_held(alpha, qemu, image)
        assert rival.started == 0
        assert rival.tries - len(rival.wrong) > 3  # libvirtd was away for the others
        assert daemon_of(alpha)[0] != pid
        alpha.run("virsh destroy web1 && virsh start web2")
        assert "locked by VM web2" in alpha.try_run("virsh start web1").stderr


def _exe(host: RootHost) -> str:
    return host.run("readlink /proc/$(systemctl show -P MainPID holdfastd.service)/exe")
