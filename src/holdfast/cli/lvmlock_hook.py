"""PURE: what a host with libvirt-hook-lvmlock needs in holdfast.toml: a rule for each shared volume group that domains use.

The hook's own file (as its repository has it in 2026) names no volume group, so they come from the domains and from LVM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from holdfast.backends.lvm.volumes import LOCK_TYPES, OTHER_NAME
from holdfast.cli.sanlock_settings import Imported
from holdfast.config_toml import to_toml_value
from holdfast.system.libvirt.domains import Domain

BACKEND = "volumes"
GROUPS = ("vgs", "--noheadings", "--readonly", "-o", "vg_name,vg_lock_type")
"""The command that says which groups are shared (lvmlockd(8)); it needs no lock."""
_VOLUME = re.compile(r"/dev/([\w+.-]+)/[\w+.-]+")
_NO_GROUPS = frozenset(("mapper", "disk", "block", "shm", "pts", "vfio"))


def imported(
    script: str, actions: dict[str, str], domains: Sequence[Domain], groups: str, *, source: str
) -> Imported:
    """`script`: the hook, if libvirt runs it. `groups`: the output of `GROUPS`. `source`: where `actions` are from."""
    kinds = {name: kind for name, _, kind in (line.strip().partition(" ") for line in groups.splitlines())}
    users: dict[str, list[str]] = {}
    remarks: list[str] = []
    for domain in domains:
        for disk in domain.disks:
            if OTHER_NAME.match(disk.path):
                remarks.append(
                    f"{domain.name} has the disk {disk.path}: write it as /dev/GROUP/VOLUME (virsh edit), "
                    "which is the name that rules match"
                )
            elif (named := _VOLUME.fullmatch(disk.path)) and named[1] not in _NO_GROUPS:
                users.setdefault(named[1], []).append(domain.name)
    shared = [name for name in sorted(users) if kinds.get(name, "").strip() in LOCK_TYPES]
    for name in sorted(users.keys() - set(shared)):
        why = "is not shared" if name in kinds else "is not known to vgs here"
        remarks.append(f"volume group {name} {why}, and gets no rule: {', '.join(sorted(set(users[name])))}")
    for operation, action in actions.items():
        remarks.append(f"{source}: {operation} = {action} is not needed: a volume's mode follows its VM")
    if script:
        remarks.append(
            f"{script} has to go, on all hosts, before Holdfast's hook comes: two hooks would each deactivate what the "
            "other one has activated. Remove it while no VM with a volume runs on that host, and restart libvirt"
        )
    lines = [
        "# made by 'holdfast import-lvmlock' from libvirt's domains and vgs",
        f"[backend.{BACKEND}]",
        'driver = "lvm"',
        '# guard = "NAME"   # of a backend with driver = "paxos", if the hosts have a lockspace: docs/shared-lvm.md',
    ]
    for name in shared:
        lines += ["", "[[disk]]", f"match = {to_toml_value(f'/dev/{name}/*')}", f'backend = "{BACKEND}"']
    if not shared:
        remarks.append("no domain here has a disk on a shared volume group: the result has no rule")
    return Imported("\n".join(lines) + "\n", tuple(remarks))
