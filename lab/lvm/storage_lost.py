"""The storage of a volume group's leases is lost under a VM: lvmlockd runs `holdfast lvm kill`, and the host is not reset.

    disk fails ── sanlock can't renew ── lvmlockctl --kill VG ── holdfast lvm kill VG ── exit 0: lvmlockctl drops the locks
                                                                  the VM by its on_lockfailure, then the error target

The other host starts the VM when this one is dead for sure by its lease. Then the disk is there again, and the first host
starts the group again.
"""

from __future__ import annotations

import time

from lab.fencing.guests import LabError
from lab.lvm.host import DEAD_S, VG
from lab.lvm.moments import Migrating
from lab.lvm.vm_host import VM

NOTES = "/srv/kill.log"
NOTED = f"""#!/bin/sh
/usr/local/bin/holdfast lvm kill "$@" >>{NOTES} 2>&1
code=$?
echo "status $code" >>{NOTES}
exit $code
"""
"""The kill command, and what it says: lvmlockctl keeps nothing of that."""
SET = (
    "sed -i -E 's|^[[:space:]#]*lvmlockctl_kill_command = .*|"
    r"\tlvmlockctl_kill_command = \"/usr/local/bin/kill-noted\"|'"
)
AFTER_S = 20.0
"""A host that was to be reset would have been by then."""


def case(site: Migrating) -> str:
    """The VM's host loses the disk; both the VM and the group are well again afterwards."""
    here, there = site.at, site.other
    boot = here.guests.boot(here.name)
    here.put("/usr/local/bin/kill-noted", NOTED.encode())
    here.sh(f"chmod 755 /usr/local/bin/kill-noted; rm -f {NOTES}; {SET} /etc/lvm/lvm.conf")
    here.sh("lvmconfig global/lvmlockctl_kill_command | grep kill-noted")
    began = time.monotonic()
    here.guests.mh("disk", here.name, "error")
    site.wait(
        lambda: "status " in here.sh(f"cat {NOTES} 2>/dev/null; true"), lambda: "the kill command", DEAD_S
    )
    killed_s = time.monotonic() - began
    said = here.sh(f"cat {NOTES}").splitlines()
    tables = here.sh(f"dmsetup table {VG}-lv1")
    if said[-1] != "status 0" or " error" not in tables:
        raise LabError(f"the volumes are not cut off: {said}, {tables}")
    vm = here.sh(f"virsh domstate {VM} --reason 2>/dev/null; true").strip()
    if vm.startswith("running"):
        raise LabError(f"the VM runs on: {vm}; {said}")
    site.start_vm(there)
    started_s = time.monotonic() - began
    if started_s < DEAD_S / 2:
        raise LabError(f"that is too early: {started_s:.0f} s")
    time.sleep(max(0.0, began + DEAD_S + AFTER_S - time.monotonic()))
    if here.guests.boot(here.name) != boot:
        raise LabError(f"{here.name} was reset, although nothing there could write: {said}")
    here.guests.mh("disk", here.name, "ok")
    here.sh(f"virsh destroy {VM} 2>/dev/null; true")
    here.start_vg()
    here.sh(f"lvchange -an {VG}/lv1 2>&1; true")
    settled = site.settled(there)
    return (
        f"killed after {killed_s:.0f} s, the VM {vm or 'ended'}: {said[:-1]}; started on {there.name} after "
        f"{started_s:.0f} s (dead for sure: {DEAD_S} s), {here.name} not reset; {settled}"
    )
