"""One disk that two hosts call by two paths: a link, a pool, a second name of a device (ADR 0197).

With QEMU's own image locks, as it is delivered, and without them, as where the hosts' kernels know nothing of each other.
"""

import pytest

from tests.e2e.lab.domains import Disk, Volume
from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.refusals import assert_told_by_the_hook
from tests.e2e.lab.storage import Image
from tests.e2e.lab.vms import Vm

pytestmark = [
    pytest.mark.holdfast_only("virtlockd knows paths only"),
    pytest.mark.parametrize("qemu_locks", [True, False], ids=["qemu locks", "no qemu locks"]),
]
LINK = "/srv/link"


def by_link(lab: Lab, image: Image) -> Disk:
    """The image by a path through a linked directory."""
    link = lab.storage.file(LINK)
    if not link.is_symlink():
        link.symlink_to("images")
    return Disk(Image(image.path.replace("/srv/images", LINK), image.file))


def by_pool(host: Host, image: Image) -> Volume:
    """The image as a volume of a pool in the linked directory."""
    if "linked" not in host.virsh("pool-list", "--all", "--name").split():
        host.virsh("pool-define-as", "linked", "dir", "--target", LINK)
        host.virsh("pool-start", "linked")
    host.virsh("pool-refresh", "linked")
    return Volume("linked", image.file.name)


def named(holder: Vm) -> tuple[str, str]:
    """What a refusal says of it, on each host: another one knows no process of a VM that was about to start."""
    return f"VM {holder.name} (uuid {holder.domain.uuid}", "on host alpha"


@pytest.mark.parametrize("hooked_lab", ["leases"], indirect=True)
def test_image_is_refused_by_every_path_with_the_holders_name(hooked_lab: Lab, qemu_locks: bool) -> None:
    lab = hooked_lab
    image = lab.storage.image("web")
    alias = by_link(lab, image)
    holder = lab.vm(lab.alpha, "web1", image, qemu_locks_its_images=qemu_locks).start()
    for host in lab.hosts:
        disks: tuple[Disk | Volume, ...] = (alias, by_pool(host, image))
        for number, disk in enumerate(disks, 2):
            second = lab.vm(host, f"web{number}-{host.name}", disk, qemu_locks_its_images=qemu_locks)
            assert_told_by_the_hook(second.refused("start"), *named(holder))
    holder.assert_writes()
    assert image.boots == 1
    holder.destroy()
    lab.wait_free(image)
    second = lab.vm(lab.beta, "web4", by_pool(lab.beta, image), qemu_locks_its_images=qemu_locks)
    second.virsh("start")
    first = lab.vm(lab.alpha, "web5", image, qemu_locks_its_images=qemu_locks)
    assert f"VM web4 (uuid {second.domain.uuid}" in first.refused("start")
    second.destroy()


@pytest.mark.parametrize("hooked_lab", ["direct"], indirect=True)
def test_device_is_refused_by_its_second_name_in_a_lock_directory(hooked_lab: Lab, qemu_locks: bool) -> None:
    lab = hooked_lab
    device = lab.device("sda")
    for host in lab.hosts:
        host.run("ln", "-sfn", "sda", "/dev/lab/by-id")
    alias = Disk(Image("/dev/lab/by-id", device.file))
    holder = lab.vm(lab.alpha, "web1", device, qemu_locks_its_images=qemu_locks).start()
    for host in lab.hosts:
        second = lab.vm(host, f"web-{host.name}", alias, qemu_locks_its_images=qemu_locks)
        assert_told_by_the_hook(second.refused("start"), *named(holder))
    holder.assert_writes()
    holder.destroy()
    lab.wait_free(device)
    lab.vm(lab.beta, "web4", alias, qemu_locks_its_images=qemu_locks).virsh("start")
