"""`activation = "shared"` with a guard lease (ADR 0233) over the real LVM: the suite `volumes-shared`, and the way to it.

The volume is active on both hosts in LVM's shared mode, so what keeps a second VM away is the lease alone. lvmlockd's own
log says whether anybody has asked for an exclusive lock.
"""

from __future__ import annotations

from lab.fencing.guests import LabError
from lab.lvm.host import VG
from lab.lvm.moments import Migrating
from lab.lvm.vm_host import DOMAIN, EJECT, LV, MONITOR, VM, VmHost

DATA = f"/dev/{VG}/lv2"
EXCLUSIVE = r"lvmlockctl --dump | grep -E 'R {0} (convert_san|lock_san) (.* to )?ex' ; true"
"""What lvmlockd has logged of exclusive locks of a volume: few thousand lines are kept, some minutes."""


def case(site: Migrating) -> str:
    """A second VM is refused where the volume is inactive, and where it is active; there and back without a conversion."""
    here, there = site.at, site.other
    boots = site.record.boots
    before = {host.name: _exclusive(host, site.uuid) for host in (here, there)}
    refused = [_refused(there, here)]
    for source, target in ((here, there), (there, here)):
        source.sh(f"virsh -q migrate --live --p2p {VM} qemu+tcp://{target.address}/system 2>&1")
        site.settled(target)
        left = source.now(site.uuid)
        if (left.mode, left.active) != ("sh", True):
            raise LabError(f"what {source.name} has left is not active there in shared mode: {left}")
        refused.append(_refused(source, target))
    if site.record.boots != boots:
        raise LabError("the guest has booted again")
    if asked := [
        line
        for host in (here, there)
        for line in _exclusive(host, site.uuid)
        if line not in before[host.name]
    ]:
        raise LabError(f"lvmlockd was asked for an exclusive lock: {asked}")
    return f"refused: {refused[0]!r}; {refused[-1]!r}; {_said(here, there)}"


def _refused(host: VmHost, holder: VmHost) -> str:
    """A second VM on `host`, by the lease of the VM on `holder`."""
    said = host.is_refused("virsh create /root/v2.xml")
    if f"VM {VM} " not in said or f"host {holder.name}" not in said:
        raise LabError(f"the refusal does not name {VM} on {holder.name}: {said}")
    return said.partition("holdfast: ")[2].splitlines()[0] or said


def _exclusive(host: VmHost, uuid: str) -> list[str]:
    return host.sh(EXCLUSIVE.format(uuid)).splitlines()


def _said(here: VmHost, there: VmHost) -> str:
    """What the commands say of it on both hosts; the VM is on `here`."""
    listed = {host.name: host.sh("holdfast volume list") for host in (here, there)}
    owned, idle = (
        next((line for line in listed[host.name].splitlines() if line.startswith(LV)), "")
        for host in (here, there)
    )
    if not all(word in owned for word in ("shared", " active", VM, "writes")):
        raise LabError(f"{here.name} does not list what {VM} has: {listed}")
    if idle and (VM in idle or "exclusive" in idle):
        raise LabError(f"{there.name} lists what is not so: {listed}")
    who = {
        host.name: host.sh(f"holdfast who {LV} 2>&1; holdfast volume who {LV} 2>&1 | head -1")
        for host in (here, there)
    }
    for name, said in who.items():
        if VM not in said or here.name not in said:
            raise LabError(f"{name} does not name {VM} on {here.name}: {said}")
    shown = here.sh("holdfast list --json | tr -d ' \\n'")
    if '"protection":3' not in shown:
        raise LabError(f"the lock is not protected across hosts and fenced: {shown}")
    doctor = {host.name: host.sh("holdfast doctor 2>&1; true") for host in (here, there)}
    for name, said in doctor.items():
        if found := [
            line for line in said.splitlines() if any(id in line for id in ("HF096", "HF141", "HF142"))
        ]:
            raise LabError(f"doctor on {name} finds what is not so: {found}")
    return f"{owned!r}; elsewhere {idle!r}; who: {who}; doctor: {doctor}"


def becomes_shared(site: Migrating) -> str:
    """The page's way from "exclusive" to "shared" and back, by reloads under a VM that runs."""
    here, there = site.at, site.other
    boots = site.record.boots
    config = "/etc/holdfast/holdfast.toml"
    for host in (here, there):
        host.sh(f"sed -i '/^guard = /a activation = \"shared\"' {config}; holdfast reload 2>&1")
    site.wait(lambda: here.now(site.uuid).mode == "sh", lambda: "the volume to be shared")
    there.lvm(f"vgchange -asy {VG}")
    refused = _refused(there, here)
    there.sh(f"holdfast volume deactivate {LV} 2>&1; holdfast volume deactivate {DATA} 2>&1")
    for host in (there, here):
        host.sh(f"sed -i '/^activation = /d' {config}; holdfast reload 2>&1")
    settled = site.settled(here)
    if site.record.boots != boots:
        raise LabError("the guest has booted again")
    return f"shared, and {refused!r} where it is active as well; exclusive again: {settled}"


def hot_plug(site: Migrating) -> str:
    """A volume that all hosts have active needs no activation; a VM on another host that wants it is refused."""
    here, there = site.at, site.other
    for host in (here, there):
        host.lvm(f"vgchange -asy {VG}")
    here.sh(
        f"virsh -q attach-disk {VM} {DATA} vdb --live --sourcetype block --driver qemu --subdriver raw --cache none 2>&1"
    )
    domain = DOMAIN.format(name="v3", number=3, disk=DATA)
    there.put("/root/v3.xml", domain.encode())
    said = there.is_refused("virsh create /root/v3.xml")
    if f"VM {VM} " not in said:
        raise LabError(f"the refusal does not name {VM}: {said}")
    here.sh(f"virsh detach-disk {VM} vdb 2>&1")
    here.sh("; ".join(f"{MONITOR} 'o/4 {port:#x} {value}'" for port, value in EJECT))
    site.wait(
        lambda: "attached" not in here.sh(f"virsh domblklist {VM} | grep -q {DATA} && echo attached; true"),
        lambda: "the disk to be detached",
    )
    began = there.sh("virsh -q create /root/v3.xml 2>&1; virsh domstate v3")
    if "running" not in began:
        raise LabError(f"it is not to be had on {there.name} afterwards: {began}")
    there.sh("virsh -q destroy v3")
    for host in (here, there):
        if host.sh(f"[ -e {DATA} ] && echo active; true") != "active":
            raise LabError(f"it is active no more on {host.name}")
        host.sh(f"for _ in $(seq 30); do holdfast volume deactivate {DATA} && exit 0; sleep 1; done; exit 1")
    return f"attached without an activation; refused: {said.partition('holdfast: ')[2].splitlines()[0]!r}"
