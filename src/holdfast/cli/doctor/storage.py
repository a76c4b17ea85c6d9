"""Checks of the storage below: what LVM and multipath do with devices that hosts share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from holdfast.cli.doctor.findings import Finding, found
from holdfast.cli.doctor.lockspaces import lease_tables
from holdfast.cli.doctor.scene import Scene, some
from holdfast.model import Protection

MULTIPATH_CONF = "etc/multipath.conf"
_QUEUE = re.compile(r"^\s*(no_path_retry\s+\"?queue\"?|features\s+.*queue_if_no_path)", re.MULTILINE)
_VOLUME = re.compile(r"/dev/(?!mapper/|disk/|vg/null)([A-Za-z0-9+_.][A-Za-z0-9+_.-]*)/[A-Za-z0-9+_.-]+\Z")
_NOT_GROUPS = frozenset(
    ("mapper", "disk", "block", "loop", "shm", "pts", "bus", "rbd", "zvol", "md", "drbd", "cciss")
)


def multipath(scene: Scene) -> Iterator[Finding]:
    """Devices whose requests wait for ever without a path. Only where disks or leases are on devices at all."""
    if not (_devices(scene) or lease_tables(scene.config.backend)):
        return
    tables = scene.host.output("dmsetup", "table", "--target", "multipath")
    queueing = [line.partition(":")[0] for line in tables.splitlines() if "queue_if_no_path" in line]
    if queueing:
        yield found(
            "HF111",
            f"multipath devices {some(queueing)} queue requests without a path (queue_if_no_path)",
            f"write 'no_path_retry fail' (or a number of retries below 8 io_timeouts) into "
            f"{scene.path(MULTIPATH_CONF)}, then: "
            "multipathd reconfigure",
        )
        return
    try:
        with open(scene.path(MULTIPATH_CONF), encoding="utf-8", errors="replace") as f:
            text = "\n".join(line.split("#", 1)[0].split("!", 1)[0] for line in f.read(1 << 20).splitlines())
    except OSError:
        return
    if (line := _QUEUE.search(text)) is not None:
        yield found(
            "HF111",
            f"{scene.path(MULTIPATH_CONF)} has '{line[1].strip()}': requests wait for ever without a path",
            "write 'no_path_retry fail' (or a number of retries below 8 io_timeouts) there, then: multipathd reconfigure",
        )


def lvm(scene: Scene) -> Iterator[Finding]:
    """Volume groups of VMs' disks under locks or leases of several hosts, which every host activates at boot."""
    groups: dict[str, list[str]] = {}
    for domain, path in _devices(scene):
        match = _VOLUME.match(path)
        if match is not None and match[1] not in _NOT_GROUPS:
            groups.setdefault(match[1], []).append(f"{path} of {domain}")
    for name, table in lease_tables(scene.config.backend).items():
        match = _VOLUME.match(str(table.get("device", "")))
        if match is not None and match[1] not in _NOT_GROUPS:
            groups.setdefault(match[1], []).append(f"{table['device']} of backend '{name}'")
    shared = {group: which for group, which in groups.items() if _is_shared(scene, which)}
    if not shared:
        return
    auto = _auto_activated(scene, sorted(shared))
    for group in auto:
        yield found(
            "HF110",
            f"LVM activates every volume of {group} at boot ({some(shared[group])}), on each host that sees it",
            f"vgchange --setautoactivation n -- {shlex.quote(group)}",
        )


def _devices(scene: Scene) -> list[tuple[str, str]]:
    return [(d.name, disk.path) for d in scene.domains for disk in d.disks if disk.path.startswith("/dev/")]


def _is_shared(scene: Scene, which: list[str]) -> bool:
    """Whether the configuration says that other hosts have it: leases, or a lock directory that reaches them."""
    for text in which:
        path, _, of = text.partition(" of ")
        if of.startswith("backend '"):
            return True
        backend = scene.routing.route(scene.resource(path, [])).backend
        promised = getattr(backend, "promised", None)
        level = promised()[0] if promised is not None else backend.protection(path)[0]
        if level >= Protection.CROSS_HOST:
            return True
    return False


def _auto_activated(scene: Scene, groups: list[str]) -> list[str]:
    """Those that LVM says are activated by themselves; of a group that it says nothing of, nothing is known."""
    output = scene.host.output(
        "vgs", "--noheadings", "--readonly", "--separator", "|", "-o", "vg_name,autoactivation"
    )
    activated = []
    for line in output.splitlines():
        group, _, state = line.strip().partition("|")
        if group in groups and state.strip() in ("enabled", "1"):
            activated.append(group)
    return [group for group in activated if not _listed_volumes(scene, group)]


def _listed_volumes(scene: Scene, group: str) -> bool:
    """Whether lvm.conf restricts activation to groups that this one is not among."""
    text = scene.host.output("lvmconfig", "activation/auto_activation_volume_list")
    if not text.startswith("auto_activation_volume_list"):
        return False
    names = re.findall(r'"([^"]*)"', text)
    return not any(name == group or name.startswith(f"{group}/") for name in names)
