"""What `holdfast doctor` finds of shared volumes (HF110, HF130 to HF143), with the real programs: one fault at a time.

A host as it should be has no finding, except what the lab itself needs: a short io_timeout, and no kill command. Each
fault is made on the host without the VM where that is possible, found with nothing else beside it, and mended; afterwards
nothing of it is left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from lab.fencing.guests import LabError
from lab.lvm.host import VG
from lab.lvm.moments import HOLDFASTD, Migrating
from lab.lvm.vm_host import DOMAIN, LV, VmHost

DATA = f"/dev/{VG}/lv2"
IDS = ("HF110", *(f"HF{number}" for number in range(130, 144)))
LVM_CONF, HOST_ID = "/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf"
HOOKS = "/etc/libvirt/hooks"
POOL = (
    f"<pool type='logical'><name>san</name><source><name>{VG}</name></source>"
    f"<target><path>/dev/{VG}</path></target></pool>"
)
KILLS = (
    r"sed -i -E 's|^[[:space:]#]*lvmlockctl_kill_command = .*|\tlvmlockctl_kill_command = "
    r'"/usr/bin/holdfast lvm kill"|'
    f"' {LVM_CONF}"
)


def case(site: Migrating) -> str:
    """Both hosts as they are, then each fault."""
    here, there = site.at, site.other
    usual = {host.name: found(host) for host in (here, there)}
    lab_makes = {"HF132", "HF134"}
    if any(set(each) != lab_makes for each in usual.values()):
        raise LabError(f"of the lab's hosts there is to be said {sorted(lab_makes)}, and this is: {usual}")
    for host in (here, there):
        host.sh(f"cp -n {LVM_CONF} {LVM_CONF}.lab; {KILLS}; grep -q 'holdfast lvm kill' {LVM_CONF}")
    said: list[str] = []
    try:
        _none_new(here, there)
        said += [*_of_lvm(there), *_of_libvirt(there), *_of_volumes(here)]
        _none_new(here, there)
    finally:
        for host in (here, there):
            host.sh(f"mv {LVM_CONF}.lab {LVM_CONF}; rm -f {LVM_CONF}.with")
    return f"{len(said)} faults found, each alone: {said}; {site.settled(here)}"


def _of_lvm(host: VmHost) -> Iterator[str]:
    with _without_lvmlockd(host):
        yield _finds(host, "HF130", "no lvmlockd runs", has_timeout=False)
        with _testing_lvmlockd(host):
            yield _finds(host, "HF131", "without --adopt 1", has_timeout=False)
    with _changed(host, f"mv {HOST_ID} {HOST_ID}.away", f"mv {HOST_ID}.away {HOST_ID}"):
        yield _finds(host, "HF133", "no local/host_id")
    without = f"cp {LVM_CONF} {LVM_CONF}.with; cp {LVM_CONF}.lab {LVM_CONF}"
    with _changed(host, without, f"cp {LVM_CONF}.with {LVM_CONF}"):
        yield _finds(host, "HF134", "no global/lvmlockctl_kill_command")


def _of_libvirt(host: VmHost) -> Iterator[str]:
    hook = f"{HOOKS}/qemu.d/holdfast"
    with _changed(host, f"chmod -x {hook}", f"chmod +x {hook}"):
        yield _finds(host, "HF135", hook)
    yield _finds(host, "HF143", "libvirtd")
    host.kill_daemon("libvirtd")
    host.start_daemon("libvirtd")
    other = f"{HOOKS}/qemu"
    with _changed(host, f"printf '#!/bin/sh\\n# lvchange\\n' > {other}; chmod +x {other}", f"rm {other}"):
        yield _finds(host, "HF136", other)
    lockd = "/etc/libvirt/qemu-lockd.conf"
    with _changed(host, f"echo 'lvm_lockspace_dir = \"/srv\"' > {lockd}", f"rm {lockd}"):
        yield _finds(host, "HF137", "lvm_lockspace_dir")
    host.put("/srv/pool.xml", POOL.encode())
    with _changed(host, "virsh -q pool-define /srv/pool.xml 2>&1", "virsh -q pool-undefine san 2>&1"):
        yield _finds(host, "HF138", f"storage pool san is of type logical, over the shared group {VG}")


def _of_volumes(host: VmHost) -> Iterator[str]:
    """On the VM's host."""
    mapper = f"/dev/mapper/{VG}-lv2"
    host.put("/srv/v3.xml", DOMAIN.format(name="v3", number=3, disk=mapper).encode())
    with _changed(host, "virsh -q define /srv/v3.xml 2>&1", "virsh -q undefine v3 2>&1"):
        yield _finds(host, "HF139", f"v3 has the disk {mapper}")
    with _without_its_lock(host):
        yield _finds(host, "HF141", LV)
    auto = f"vgchange --setautoactivation {{}} {VG} 2>&1"
    with _changed(host, auto.format("y"), auto.format("n")):
        yield _finds(host, "HF110", f"LVM activates every volume of {VG} at boot")
    orders = [f"holdfast volume {order} {DATA} 2>&1" for order in ("activate", "deactivate")]
    with _changed(host, *orders):
        yield _finds(host, "HF142", DATA)


def _finds(host: VmHost, id: str, words: str, *, has_timeout: bool = True) -> str:
    """Its facts. `has_timeout`: a lvmlockd runs with the lab's io_timeout, which is found beside."""
    facts = found(host)
    if set(facts) != {id, *(["HF132"] if has_timeout else [])} or words not in facts[id]:
        raise LabError(f"{host.name} is to have {id} with '{words}', and has: {facts}")
    return facts[id]


def found(host: VmHost) -> dict[str, str]:
    """Findings of shared volumes on a host: id to facts."""
    text = host.sh(f"holdfast doctor --json --only {','.join(IDS)} 2>/srv/doctor.log; true")
    try:
        rows = json.loads(text)
    except ValueError:
        raise LabError(
            f"doctor on {host.name} says no JSON: {text}, {host.sh('cat /srv/doctor.log')}"
        ) from None
    return {row["id"]: row["facts"] for row in rows if row["id"] in IDS}


def _none_new(*hosts: VmHost) -> None:
    for host in hosts:
        if set(facts := found(host)) != {"HF132"}:
            raise LabError(f"{host.name} is as it should be, and doctor says: {facts}")


@contextmanager
def _changed(host: VmHost, change: str, undo: str) -> Iterator[None]:
    host.sh(change)
    try:
        yield
    finally:
        host.sh(undo)


@contextmanager
def _without_lvmlockd(host: VmHost) -> Iterator[None]:
    host.kill_daemon("lvmlockd")
    try:
        yield
    finally:
        host.start_daemon("lvmlockd")


@contextmanager
def _testing_lvmlockd(host: VmHost) -> Iterator[None]:
    """One that knows no lock manager (`--test`), with its own socket and no adoption; the real one's file is left alone."""
    files = "--socket-path /srv/t.sock --pid-file /srv/t.pid --adopt-file /srv/t.adopt"
    host.sh(
        f"setsid lvmlockd --test {files} -f >/srv/lvmlockd-test.log 2>&1 </dev/null & sleep 2; pgrep -x lvmlockd"
    )
    try:
        yield
    finally:
        host.sh("kill -9 $(pgrep -x lvmlockd)")


@contextmanager
def _without_its_lock(host: VmHost) -> Iterator[None]:
    """lvmlockd gives the VM's lock up, as it would for whatever asks it; holdfastd, which takes it again, stands still."""
    host.sh(f"kill -STOP $(cat {HOLDFASTD})")
    try:
        host.converted("lv1", "un")
        yield
    finally:
        host.sh(f"kill -CONT $(cat {HOLDFASTD})")
