"""The Debian and the RPM packages, built and installed in a clean root file system: what dpkg, rpm and an admin see.

For the release that this runs on, or for HOLDFAST_PACKAGE_SUITE (in tools/test-on's root: what is committed takes part).
rpm works in the same root, without the dependencies that its own database would have to know.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.machine import PROJECT
from tests.systemd.package_root import Root
from tests.systemd.root_host import make_template

HERE = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
SUITE = os.environ.get("HOLDFAST_PACKAGE_SUITE", HERE)

pytestmark = [
    pytest.mark.long,  # builds a root file system
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@dataclass(frozen=True)
class Format:
    """How packages of one format are handled. `{}` stands for names of packages."""

    install: str
    upgrade: str
    remove: str
    purge: str
    listed: str


DEB = Format(
    "dpkg -i /packages/*.deb",
    "dpkg -i /packages/*.deb",
    "dpkg -r {}",
    "dpkg -P holdfast holdfast-sim holdfast-web",
    "dpkg -L {}",
)
RPM = Format(
    "rpm -i --nodeps /packages/*-1.*.rpm",
    "rpm -U --nodeps /packages/*-2.*.rpm",
    "rpm -e {}",
    "rm -rf /etc/holdfast /var/lib/holdfast /run/holdfast",
    "rpm -ql {}",
)


HELD = (
    "/usr/bin/holdfast", "/usr/bin/holdfastd", "/usr/bin/holdfast-qemu-hook", "/usr/bin/holdfast-sanlockd",
    "/usr/bin/holdfast-virtlockd-switch", "/usr/bin/holdfast-web", "/usr/lib/holdfast/lib/holdfast_sim/__init__.py",
    *(f"/usr/lib/systemd/system/{each}" for each in
      ("holdfastd.service", "holdfastd.socket", "holdfast-sanlockd.service", "holdfast-lease-gc.service",
       "holdfast-lease-gc.timer", "holdfast-vms.target", "holdfast-web.service", "virtlockd.service.d/holdfast.conf",
       "libvirt-guests.service.d/holdfast.conf", "machine-.scope.d/holdfast.conf")),
    "/usr/lib/sysusers.d/holdfast-web.conf", "/usr/share/holdfast/libvirt/qemu-hook",
    "/usr/share/bash-completion/completions/holdfast", "/usr/share/doc/holdfast/examples/holdfast.toml",
    "/usr/share/doc/holdfast/examples/holdfast.rules.yml",
)  # fmt: skip
"""Files that packages of each format have, among others."""
NOT_HELD = ("__pycache__", ".pyx", "direct_url.json", "/etc/")
"""Parts of paths that none has."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    path = tmp_path_factory.mktemp("package") / "root"
    make_template(path, SUITE, "python3,python3-click,python3-rich,python3-uvicorn,adduser,systemd,rpm")
    made = Root(path)
    yield made
    made.close()


def build(root: Root, form: Format) -> None:
    """Into /packages of the root."""
    if form is DEB:
        there = [] if SUITE == HERE else [f"DISTRO={SUITE}"]
        subprocess.run(["make", "-s", "deb", *there], cwd=PROJECT, check=True, timeout=500)
        release = root.ok(". /etc/os-release; echo $VERSION_ID").strip()
        built = (PROJECT / "build" / "deb").glob(f"*+deb{release}_*.deb")
    else:
        for number in ("1", "2"):
            environment = {**os.environ, "HOLDFAST_RELEASE": number}
            subprocess.run(["make", "-s", "rpm"], cwd=PROJECT, check=True, timeout=500, env=environment)
        built = (PROJECT / "build" / "rpm").glob("RPMS/*/holdfast-*.rpm")
    (root.path / "packages").mkdir(exist_ok=True)
    for each in built:
        (root.path / "packages" / each.name).write_bytes(each.read_bytes())


def refused_to_remove(root: Root, form: Format) -> str:
    """What is said of a removal that fails; the package and the hook are still there."""
    code, said = root.run(form.remove.format("holdfast"))
    assert code != 0
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast && test -e /usr/bin/holdfastd")
    return said


def files_of_holdfast(root: Root) -> str:
    return root.ok(
        "find / -xdev -path /packages -prune -o -name '*holdfast*' -print; ls -d /run/holdfast || true"
    )


@pytest.mark.parametrize("form", [DEB, RPM], ids=["deb", "rpm"])
def test_life_of_a_package(root: Root, form: Format) -> None:
    build(root, form)

    # Installed without network: the root has a network namespace of its own. Nothing is enabled, nothing runs.
    root.ok(form.install)
    assert root.ok("find /etc/systemd/system -name '*holdfast*' -o -name virtlockd.socket") == ""
    enabled = root.run("systemctl is-enabled holdfastd.service holdfastd.socket holdfast-lease-gc.timer")[1]
    assert enabled.split() == ["disabled"] * 3
    assert root.run("ls /run/holdfast /etc/libvirt/hooks/qemu.d/holdfast")[0] != 0

    listed = root.ok(form.listed.format("holdfast holdfast-web holdfast-sim")).split("\n")
    assert not set(HELD) - set(listed)
    assert not [each for each in listed if any(part in each for part in NOT_HELD)]

    # The programs work, and only they have the private directory.
    assert "version" in root.ok("holdfast --version")
    root.ok("holdfastd --check-config")
    root.ok("holdfastd --check-config --config /usr/share/doc/holdfast/examples/holdfast.toml")
    assert "0 violations" in root.ok("holdfast sim --seeds 1")
    assert root.run("python3 -c 'import holdfast'")[0] != 0
    assert root.run("python3 -c 'import msgspec'")[0] != 0
    root.ok("ls /usr/share/man/man1/holdfast-who.1* /usr/share/man/man8/holdfastd.8*")

    # The admin's set-up: a hook, a daemon, a lock.
    root.ok("install -D -m 755 /usr/share/holdfast/libvirt/qemu-hook /etc/libvirt/hooks/qemu.d/holdfast")
    root.ok("holdfastd >/tmp/log & daemon=$!")
    root.wait("holdfast list")
    root.ok("truncate -s 1M /srv/x.img")
    root.ok("holdfast run --disk /srv/x.img -- sleep 1000 & runner=$!")
    root.wait("holdfast list | grep -q /srv/x.img")

    # The package doesn't go while there is one, and an upgrade leaves it, over a reload too.
    code, said = root.run(form.remove.format("holdfast-web holdfast-sim holdfast"))
    assert code != 0
    assert "sleep (pid " in said
    assert "/srv/x.img" in said
    root.ok(form.upgrade)
    root.ok("holdfast reload")
    assert "/srv/x.img" in root.ok("holdfast list")
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast")

    # A daemon that can't be asked frees nothing.
    root.ok("kill -9 $daemon; wait $daemon; true")
    root.ok(form.remove.format("holdfast-sim holdfast-web"))
    assert "/srv/x.img" in refused_to_remove(root, form)

    # What had the lock ends while there is no daemon: whether the disk is still in use is for the next one to find out.
    root.ok(
        "for each in $(cat /proc/$runner/task/$runner/children) $runner; do kill -9 $each; done; wait $runner; true"
    )
    assert "start holdfastd" in refused_to_remove(root, form)
    root.ok("pkill -x sleep || for p in $(grep -lx sleep /proc/[0-9]*/comm); do kill ${p//[^0-9]/}; done")
    root.ok("holdfastd >/tmp/log & daemon=$!")
    root.wait("/usr/lib/holdfast/package/locks-held")

    # One that runs and can't be asked is not taken for none, whatever the journal says.
    root.ok("mv /run/holdfast/io.holdfast.Control /run/holdfast/elsewhere")
    assert "does not answer" in refused_to_remove(root, form)
    root.ok("mv /run/holdfast/elsewhere /run/holdfast/io.holdfast.Control")

    # A daemon that no systemd stops is not left without its package.
    assert "still runs" in refused_to_remove(root, form)
    root.ok("test -e /etc/libvirt/hooks/qemu.d/holdfast")
    root.ok("kill $daemon; wait $daemon; true")
    root.ok(form.remove.format("holdfast"))
    assert root.run("test -e /etc/libvirt/hooks/qemu.d/holdfast")[0] == 1
    root.ok(form.purge)
    assert files_of_holdfast(root).split("\n", 1)[0].startswith("ls: ")
