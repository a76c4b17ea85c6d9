"""A host that shuts down in good order: its VM ends first, then holdfastd leaves its lockspace, then the storage goes.

Another host starts the VM at once, not after the dead bound. `lab/readme` plays it with a kernel, NFS and a watchdog; here
are also the cases in which no unit of libvirt's stands between the VM and holdfastd.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from holdfast.cli.setup.profiles import PROFILES
from tests.e2e.lab.polling import until
from tests.support.fuse_storage import FaultyStorage
from tests.support.readme import Page, build_packages, protect
from tests.systemd.machine import require
from tests.systemd.root_host import SUITE, RootHost, hosts, make_template
from tests.systemd.test_readme import HERE, await_writes, equip, install_lab, shared_image

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
IN_A_SCOPE = (
    "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit "
    "'ssa(sv)a(sa(sv))' machine-qemu-web1.scope fail 3 PIDs au 1 $(cat /run/libvirt/qemu/web1.pid) "
    "After as 1 libvirtd.service Before as 1 virt-guest-shutdown.target 0"
)
"""As systemd-machined has it for libvirt, which asks it only where there are cgroup controllers."""
CASES = {
    "libvirt-guests ends the VM": "true",
    "libvirtd was stopped": f"{IN_A_SCOPE} && systemctl stop "
    "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service",
    "libvirt-guests does nothing": f"{IN_A_SCOPE} && systemctl mask libvirt-guests.service",
}
"""What is done before the shutdown. The second and third VM end by the scope's SIGTERM."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    root = tmp_path_factory.mktemp("reboot") / "template"
    make_template(root, SUITE)
    return root


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_packages(tmp_path_factory.mktemp("packages"))


def state_of_alpha(beta: RootHost) -> str:
    """As beta sees host id 1."""
    found = re.search(r"^1\t[^\t]*\t(\w+)\t", beta.run("holdfast host list"), re.MULTILINE)
    return found[1] if found else "FREE"


@pytest.mark.parametrize("case", CASES)
def test_vm_of_a_host_that_shuts_down_starts_elsewhere_at_once(
    case: str, template: Path, packages: Path, shared: FaultyStorage, tmp_path: Path
) -> None:
    image = shared_image(shared, "web1")
    install_lab(tmp_path, {"web1": image})
    with hosts(tmp_path, template, shared.at, "alpha", "beta") as (alpha, beta):
        for host in (alpha, beta):
            equip(host, tmp_path, packages, "web1")
        protect(Page(), alpha, beta, HERE)
        alpha.run("virsh start web1")
        await_writes(image)
        until(lambda: state_of_alpha(beta) == "LIVE", "alpha to be LIVE for beta")
        alpha.run(CASES[case])
        began = time.monotonic()
        alpha.try_run("systemctl poweroff")
        refusals = []
        while (done := beta.try_run("virsh start web1")).returncode != 0:
            refusals.append(done.stderr)
            assert time.monotonic() - began < 90.0, refusals
        took = time.monotonic() - began
        print(f"{case}: web1 runs on beta after {took:.1f} s, {len(refusals)} refusals")
        assert took < PROFILES["fast"].dead_s - PROFILES["fast"].renewal_s
        assert all("locked by VM web1" in each for each in refusals), refusals
        await_writes(image)
