"""Volumes of other kinds than linear, over the real LVM and device-mapper: what may start, and what may not migrate.

thin, raid1, with a snapshot    the VM starts; its live migration is refused at `migrate`, with the kind; doctor says so
a snapshot                      the VM does not start: LVM has no lock for one
an inner device                 is no volume
of a group that isn't shared    is none either
"""

from __future__ import annotations

import shlex

from lab.fencing.guests import LabError
from lab.lvm.doctor import found
from lab.lvm.host import VG
from lab.lvm.moments import Migrating
from lab.lvm.vm_host import DOMAIN, VmHost

NAME, XML = "v3", "/srv/v3.xml"
POOL = f"{VG}/pool"
NO_CHECK = "--config 'global/thin_check_executable=\"\"'"
"""thin_check is in a package that the guests don't have; a pool just made needs none."""
KINDS = {
    "thin": (
        f"lvcreate -y {NO_CHECK} --type thin-pool -L 32M -n pool {VG} && "
        f"lvcreate -y {NO_CHECK} -V 16M --thin -n other {POOL}",
        f"its thin pool {POOL} can't be active on two hosts",
        f"lvremove -y {NO_CHECK} {POOL}",
    ),
    "raid1": (
        f"lvcreate -y --type raid1 -m 1 --alloc anywhere -L 16M -n other {VG}",
        "a volume of type raid,raid1 can't be active on two hosts",
        f"lvremove -y {VG}/other",
    ),
    "origin": (
        f"lvcreate -y -L 16M -n other {VG} && lvcreate -y -s -L 8M -n snap {VG}/other",
        "a volume that has snapshots can't be active on two hosts",
        f"lvremove -y {VG}/snap {VG}/other",
    ),
}
"""How it is made, what the refusal of its migration and doctor say, how it is removed."""
DISK = f"/dev/{VG}/other"
CONFIG = "/etc/holdfast/holdfast.toml"
MORE_RULES = "".join(
    f'\\n[[disk]]\\nmatch = "{match}"\\nbackend = "san-lvm"\\n'
    for match in ("/dev/local/*", f"/dev/mapper/{VG}-pool*")
)
"""What no rule names does not reach the driver. In the words of printf."""


def case(site: Migrating) -> str:
    """All of them, on the host of the lab's VM, which runs on beside."""
    here, there = site.at, site.other
    here.sh(f"cp {CONFIG} {CONFIG}.lab; printf {shlex.quote(MORE_RULES)} >> {CONFIG}; holdfast reload 2>&1")
    try:
        said = [_kind(site, here, there, kind) for kind in KINDS]
        said.append(_unshared(here))
    finally:
        here.sh(f"mv {CONFIG}.lab {CONFIG}; holdfast reload 2>&1")
    return f"{'; '.join(said)}; {site.settled(here)}"


def _kind(site: Migrating, here: VmHost, there: VmHost, kind: str) -> str:
    make, refusal, remove = KINDS[kind]
    here.sh(f"({make}) 2>&1")
    here.sh(f"lvchange -an {DISK} 2>&1")
    try:
        here.put(XML, DOMAIN.format(name=NAME, number=3, disk=DISK).encode())
        here.sh(f"virsh -q create {XML} 2>&1")
        refused = here.is_refused(f"virsh migrate --live --p2p {NAME} qemu+tcp://{there.address}/system")
        if refusal not in refused:
            raise LabError(f"{kind}: the refusal does not say '{refusal}': {refused}")
        if "running" not in (state := here.sh(f"virsh domstate {NAME}")):
            raise LabError(f"{kind}: the VM does not run on at its source: {state}")
        facts = found(here).get("HF140", "")
        if NAME not in facts or refusal not in facts:
            raise LabError(f"{kind}: doctor does not say it: {found(here)}")
        said = f"{kind}: {facts}"
        if kind == "origin":
            said += f"; {_snapshot(here)}"
        if kind == "thin":
            said += f"; {_inner(here)}"
        here.sh(f"virsh -q destroy {NAME}")
        site.wait(
            lambda: here.sh(f"[ -e {DISK} ] || echo gone") == "gone",
            lambda: f"the volume of kind {kind} to be inactive when its VM has ended",
        )
    finally:
        here.sh(f"virsh -q destroy {NAME} 2>/dev/null; sleep 1; ({remove}) 2>&1; true")
    return said


def _snapshot(here: VmHost) -> str:
    here.put("/srv/v4.xml", DOMAIN.format(name="v4", number=4, disk=f"/dev/{VG}/snap").encode())
    refused = here.is_refused("virsh create /srv/v4.xml")
    if "is a snapshot, and LVM has no lock for one" not in refused:
        raise LabError(f"a snapshot is refused for another reason: {refused}")
    return "a snapshot refused"


def _inner(here: VmHost) -> str:
    device = f"/dev/mapper/{VG}-pool_tdata"
    refused = here.is_refused(f"holdfast volume activate {device}")
    if "is no logical volume" not in refused:
        raise LabError(f"an inner device is refused for another reason: {refused}")
    return "an inner device refused"


def _unshared(here: VmHost) -> str:
    """A group of one host, on a file."""
    here.sh(
        "modprobe loop; truncate -s 64M /srv/local.img; losetup --find --show /srv/local.img > /srv/local.dev; "
        "vgcreate --yes local $(cat /srv/local.dev) 2>&1; "
        "lvcreate -y -L 16M -n one local 2>&1"
    )
    try:
        refused = here.is_refused("holdfast volume activate /dev/local/one")
    finally:
        here.sh("vgremove -y local 2>&1; losetup -d $(cat /srv/local.dev); rm /srv/local.img")
    if "not shared" not in refused:
        raise LabError(f"a volume that is not shared is refused for another reason: {refused}")
    return "one of a group that is not shared refused"
