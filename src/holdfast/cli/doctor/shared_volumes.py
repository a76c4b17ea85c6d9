"""Checks of hosts with driver lvm: LVM, lvmlockd and libvirt as the driver needs them (libvirt-hooks-lvm.md 5)."""

from __future__ import annotations

import getopt
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.backends.lvm.config import SHARED
from holdfast.backends.lvm.volumes import OTHER_NAME, why_one_host
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.libvirt import DAEMONS, HASHING, began_before, restart
from holdfast.cli.doctor.scene import Scene, some
from holdfast.cli.libvirt_files import LOCKD_CONF, read_settings
from holdfast.system.libvirt.volume_hooks import HOOK, volume_hooks

LVMLOCKD = "lvmlockd"
DLM = "dlm"
"""A group's lock type. Its locks are on no storage: nothing calls the kill command for it, and no watchdog resets a host."""
POOL_BYTES_MAX = 1 << 18
POOLS = ("etc/libvirt/storage", "run/libvirt/storage")
IO_TIMEOUTS = ("--sanlock-timeout", "-o")
ADOPTS = ("--adopt", "-A")
SHORT_OPTIONS = "hVTfDp:s:S:g:i:F:o:A:"
LONG_OPTIONS = (
    *("help", "version", "test", "foreground", "daemon-debug"),
    *(
        "pid-file=",
        "socket-path=",
        "adopt-file=",
        "syslog-priority=",
        "gl-type=",
        "host-id=",
        "host-id-file=",
    ),
    *("sanlock-timeout=", "adopt="),
)
"""lvmlockd's, by its manual page (2.03.16)."""
LEAST_IO_TIMEOUT_S = 10
LVS = "vg_name,lv_name,lv_uuid,vg_lock_type,lv_layout,lv_role,pool_lv"
"""Of `lvs --readonly`, which waits for no lock, and so says nothing of lv_active."""


@dataclass(frozen=True, slots=True)
class Row:
    """One volume of a shared group, by `lvs`."""

    path: str
    uuid: str
    lock_type: str
    why_one_host: str
    """Why only one host can have it active; empty if two can."""


def shared_volumes(scene: Scene) -> Iterator[Finding]:
    """All of them; nothing where driver lvm is not configured."""
    table = next((each for each in scene.config.backend.values() if each.get("driver") == "lvm"), None)
    if table is None:
        return
    shares = table.get("activation") == SHARED
    trouble = [
        *_lvmlockd(scene),
        *_lvm_configuration(scene),
        *_libvirt(scene),
        *_pools(scene),
        *_volumes(scene, shares=shares),
    ]
    yield from trouble
    if not trouble:
        yield fine("shared volumes", "LVM, lvmlockd and libvirt are as driver lvm needs them")


def _lvmlockd(scene: Scene) -> Iterator[Finding]:
    daemons = scene.programs(LVMLOCKD)
    if not daemons:
        yield found(
            "HF130",
            "no lvmlockd runs: no volume of a shared group can be activated",
            "systemctl enable --now lvmlockd",
        )
        return
    words = daemons[0].arguments
    if _option(words, ADOPTS) != "1":
        yield found(
            "HF131",
            f"lvmlockd (pid {daemons[0].pid}) was started without --adopt 1",
            "systemctl edit lvmlockd (ExecStart= with --adopt 1), and start it so at the next boot: it writes the file "
            "that it adopts from only if it was itself started with that",
        )
    seconds = _option(words, IO_TIMEOUTS)
    if seconds.isdigit() and 0 < int(seconds) < LEAST_IO_TIMEOUT_S:
        yield found(
            "HF132",
            f"lvmlockd (pid {daemons[0].pid}) uses an io_timeout of {seconds} s",
            f"leave out {IO_TIMEOUTS[0]}, on all hosts",
        )


def _option(words: tuple[str, ...], names: tuple[str, ...]) -> str:
    """The last value of an option of lvmlockd's, read as it reads them: also `-fA1`; empty without it. A word
    with an option that is not known here, of a later version, is left out.
    """
    left = list(words[1:])
    for _ in words:
        try:
            options, _ = getopt.gnu_getopt(left, SHORT_OPTIONS, LONG_OPTIONS)
        except getopt.GetoptError as e:
            left = [word for word in left if word.partition("=")[0].lstrip("-") != e.opt]
            continue
        return next((value for name, value in reversed(options) if name in names), "")
    return ""


def _lvm_configuration(scene: Scene) -> Iterator[Finding]:
    text = scene.host.output("lvmconfig", "local/host_id")
    if scene.host.root() and not re.search(r"host_id\s*=\s*[1-9]", text):
        yield found(
            "HF133",
            "lvmlocal.conf has no local/host_id: arriving VMs are refused, as a host must know its own lock from others'",
            "write local { host_id = N } into /etc/lvm/lvmlocal.conf, with the number that lvmlockd uses, another "
            "one on each host",
        )
    text = scene.host.output("lvmconfig", "--typeconfig", "current", "global/lvmlockctl_kill_command")
    types = {row.lock_type for row in _rows(scene)}
    if types != {DLM} and not re.search(r'lvmlockctl_kill_command\s*=\s*"[^"]', text):
        yield found(
            "HF134",
            "lvm.conf has no global/lvmlockctl_kill_command: a host that loses the storage of its leases is reset by "
            "sanlock's watchdog, with every VM it has",
            'write lvmlockctl_kill_command = "/usr/bin/holdfast lvm kill" into the section global of /etc/lvm/lvm.conf',
        )


def _libvirt(scene: Scene) -> Iterator[Finding]:
    hook = scene.path(HOOK)
    if not os.access(hook, os.X_OK):
        yield found(
            "HF135",
            f"libvirt's hook is not installed ({hook}): no volume is activated for a VM, and none migrates",
            f"install -D -m 755 /usr/share/holdfast/libvirt/qemu-hook {hook}; {restart(scene)}",
        )
    else:
        yield from _not_found_yet(scene, hook)
    for file in volume_hooks(scene.root):
        yield found(
            "HF136",
            f"{file} is another hook that activates volumes: each would deactivate what the other one has activated",
            f"remove it when no VM with a volume runs here, on all hosts; then {restart(scene)}",
        )
    settings = read_settings(scene.path(LOCKD_CONF)) or {}
    if used := [name for name in HASHING if settings.get(name)]:
        yield found(
            "HF137",
            f"{scene.path(LOCKD_CONF)} sets {', '.join(used)}: names in a lockspace are no volumes, and are refused",
            f"shut down or migrate this host's VMs, remove these lines, then: {restart(scene)}",
        )


def _not_found_yet(scene: Scene, hook: str) -> Iterator[Finding]:
    """libvirt finds its hooks when it starts (libvirt-integration.md 5); `install` keeps no time but that of the inode."""
    installed = os.stat(hook).st_ctime
    for program in scene.programs(*DAEMONS):
        if began_before(program, installed):
            yield found(
                "HF143",
                f"{hook} was installed or changed after {program.name} (pid {program.pid}) started: it may not be called",
                f"systemctl restart {program.name}",
            )


def _pools(scene: Scene) -> Iterator[Finding]:
    """libvirt starts such a pool by activating the whole group."""
    groups = {row.path.split("/")[2] for row in _rows(scene)}
    for folder in POOLS:
        try:
            names = sorted(os.listdir(scene.path(folder)))
        except OSError:
            continue
        for name in names:
            if not name.endswith(".xml"):
                continue
            try:
                with open(os.path.join(scene.path(folder), name), encoding="utf-8", errors="replace") as f:
                    text = f.read(POOL_BYTES_MAX)
            except OSError:
                continue
            named = re.search(r"<source>.*?<name>([^<]+)</name>", text, re.DOTALL)
            if re.search(r"<pool type=['\"]logical['\"]", text) and named and named[1] in groups:
                pool = name.removesuffix(".xml")
                yield found(
                    "HF138",
                    f"libvirt's storage pool {pool} is of type logical, over the shared group {named[1]}: its start takes "
                    "all volumes that are free for this host",
                    f"virsh pool-destroy {pool}; virsh pool-undefine {pool}   # no volume is removed by that",
                )


def _volumes(scene: Scene, *, shares: bool) -> Iterator[Finding]:
    """`shares`: volumes are active on all hosts, whether a VM uses them or not; then in no host's exclusive lock."""
    rows = {row.path: row for row in _rows(scene)}
    used = {disk.path for domain in scene.running() for disk in domain.disks}
    for domain in scene.domains:
        for disk in domain.disks:
            if OTHER_NAME.match(disk.path):
                yield found(
                    "HF139",
                    f"{domain.name} has the disk {disk.path}: a rule for /dev/VG/* does not match that name",
                    f"virsh edit {domain.name}: give it /dev/VG/LV",
                )
            row = rows.get(disk.path)
            if row is not None and row.why_one_host:
                yield found(
                    "HF140",
                    f"{domain.name} can't be migrated live: {disk.path}: {row.why_one_host}",
                    "shut it down and start it on the other host, or copy the disk to a linear volume",
                )
    modes = _modes(scene)
    lost = [row.path for row in rows.values() if row.path in used and modes.get(row.uuid) == "un"]
    if lost:
        yield found(
            "HF141",
            f"a VM runs here, and lvmlockd has no lock of its volume: {some(lost)}",
            "holdfast volume list; holdfast who PATH says who has it; where nobody has: restart holdfastd",
        )
    idle = [
        row.path
        for row in rows.values()
        if os.path.exists(scene.path(row.path.lstrip("/")))
        and row.path not in used
        and not (shares and modes.get(row.uuid) == "sh")
    ]
    if idle:
        yield found(
            "HF142",
            f"active on this host, and no VM here uses it: {some(idle)}",
            "holdfast volume deactivate PATH, if no other program needs it",
        )


def _rows(scene: Scene) -> list[Row]:
    output = scene.host.output("lvs", "--noheadings", "--readonly", "--separator", "|", "-o", LVS)
    rows = []
    for line in output.splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) == len(LVS.split(",")) and words[3] not in ("", "none"):
            vg, lv, uuid, lock_type, layout, roles, pool = words
            in_pool = pool and f"{vg}/{pool.strip('[]')}"
            rows.append(Row(f"/dev/{vg}/{lv}", uuid, lock_type, why_one_host(layout, roles, in_pool)))
    return rows


def _modes(scene: Scene) -> dict[str, str]:
    """By UUID of the volume, as `lvmlockctl --info` has it: `LK LV MODE UUID`."""
    lines = (line.split() for line in scene.host.output("lvmlockctl", "--info").splitlines())
    return {words[3]: words[2] for words in lines if words[:2] == ["LK", "LV"] and len(words) > 3}
