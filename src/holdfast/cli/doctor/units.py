"""Checks of libvirt's socket, systemd's units, and a virtlockd beside holdfastd.

virtlockd kills every VM that holds a lock when it is stopped, so no fix here stops it while a VM may hold one: the
fix for that case is a chain that suspends these VMs first, asks again whether any is left, and ends at the first failure.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

from holdfast.backends.naming import indirect_name
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Program, Scene, some
from holdfast.cli.doctor.services import START, daemons, virtlockds
from holdfast.cli.libvirt_files import libvirt_lockspaces
from holdfast.switch import left_behind
from holdfast.switch.place import KEEP, LOCKS
from holdfast.system.libvirt.domains import Domain

VIRTLOCKD_UNITS = ("virtlockd.socket", "virtlockd-admin.socket", "virtlockd.service")
STOP_VIRTLOCKD = f"systemctl disable --now {' '.join(VIRTLOCKD_UNITS)}"
SWITCH = f"{STOP_VIRTLOCKD} && systemctl daemon-reload && {START}"
WANTS = "etc/systemd/system/{}.target.wants/{}"
AT_BOOT = (("sockets", "holdfastd.socket"), ("multi-user", "holdfastd.service"))
VIRTLOCKD_AT_BOOT = (
    ("sockets", "virtlockd.socket"),
    ("sockets", "virtlockd-admin.socket"),
    ("multi-user", "virtlockd.service"),
)


# --- virtlockd ---


def virtlockd(scene: Scene) -> Iterator[Finding]:
    running = virtlockds(scene)
    for process in running:
        users = virtlockd_users(scene, process)
        if users:
            yield found(
                "HF022",
                f"virtlockd (pid {process.pid}) runs, and stopping it KILLS {len(users)} VMs that hold locks in "
                f"it, or may: "
                f"{some([each.name for each in users])}. The fix suspends them meanwhile; migrating them away "
                f"does as well",
                safe_switch(users),
            )
        elif scene.status is None:
            yield found(
                "HF028",
                f"virtlockd (pid {process.pid}) runs in holdfastd's place; no running VM uses it",
                SWITCH,
            )
        else:
            yield found(
                "HF028",
                f"virtlockd (pid {process.pid}) runs beside holdfastd; no running VM uses it",
                STOP_VIRTLOCKD,
            )
    yield from _virtlockd_at_boot(scene)


def left_by_a_switch(scene: Scene) -> Iterator[Finding]:
    """virtlockd has ended in a live switch, and holdfastd has not begun."""
    if scene.status is not None:
        return
    try:
        left = _left(scene)
    except OSError as e:
        yield found("HF029", str(e), "holdfast setup")
        return
    if left is None or any(each.pid == left.pid for each in virtlockds(scene)):
        return
    keeper = next((each for each in scene.programs() if KEEP in each.arguments), None)
    has = (
        f"a keeper (pid {keeper.pid}) has them, don't kill it: nobody else gets these disks"
        if keeper is not None
        else "every process that had them was killed, so VMs run WITHOUT these locks"
    )
    yield found(
        "HF029",
        f"virtlockd (pid {left.pid}) has ended in a live switch, and holdfastd does not run. It had "
        f"{len(left.locks)} locks, of {some(left.locks)}; {has}",
        "holdfast setup   # without systemd: start holdfastd",
    )


def _left(scene: Scene) -> left_behind.LeftBehind | None:
    return left_behind.read(scene.path(LOCKS.lstrip("/")))


def _began_after_a_switch(scene: Scene, process: Program) -> bool:
    """Whether it is a virtlockd that somebody's connection has started after another one had ended in a live switch."""
    try:
        left = _left(scene)
    except OSError:
        return False
    return left is not None and left.pid != process.pid


def virtlockd_users(scene: Scene, process: Program) -> list[Domain]:
    """The VMs that a stop of virtlockd would kill, or may: only a VM that surely holds nothing there is left out.

    A suspended VM holds no lock, unless the kernel shows one; a VM whose locks holdfastd has was started by it. What VMs had
    before a live switch is not in a virtlockd that began after it.
    """
    if _began_after_a_switch(scene, process) and not scene.host.locked_by(process.pid):
        return []
    known = {each.pid for each in scene.owners if each.locks}
    spaces = libvirt_lockspaces(scene.root)
    users = []
    for domain in scene.running():
        files = [disk.path for disk in domain.disks]
        files += [f"{space}/{indirect_name(path)}" for space in spaces for path in files]
        locked = any(process.pid in scene.host.lockers(path) for path in files)
        if locked or (domain.state != "paused" and domain.pid not in known):
            users.append(domain)
    return users


def safe_switch(users: Sequence[Domain]) -> str:
    """A chain that can be pasted: it goes no further than the first command that fails."""
    names = [shlex.quote(each.name) for each in users]
    suspend = " && ".join(f"virsh suspend -- {name}" for name in names)
    resume = "; ".join(f"virsh resume -- {name}" for name in names)
    return f"{suspend} && holdfast doctor --only HF022 && {SWITCH} && {{ {resume}; }}"


def _virtlockd_at_boot(scene: Scene) -> Iterator[Finding]:
    for target, unit in VIRTLOCKD_AT_BOOT:
        link = scene.path(WANTS.format(target, unit))
        aliased = os.path.islink(alias := scene.path(f"etc/systemd/system/{unit}")) and _leads_to(
            alias, "holdfastd"
        )
        if os.path.lexists(link) and not aliased and not _leads_to(link, "holdfastd"):
            # `systemctl disable` might take an alias of holdfastd for it, and `--now` would stop what runs.
            yield found(
                "HF023",
                f"{link} starts a real virtlockd at the next boot",
                f"rm -- {shlex.quote(link)} && systemctl daemon-reload",
            )


def _leads_to(link: str, name: str) -> bool:
    try:
        return os.path.basename(os.readlink(link)).startswith(name)
    except OSError:
        return False


# --- libvirt's socket ---


def listening(scene: Scene) -> Iterator[Finding]:
    path = scene.config.virtlockd.socket
    pid = scene.host.listener(path)
    if pid is None:
        yield found(
            "HF020",
            f'nobody listens at {path}: no VM with lock_manager = "lockd" can start',
            "first see the finding about virtlockd" if virtlockds(scene) else START,
        )
        return
    owner = next((each for each in scene.programs() if each.pid == pid), None)
    ours = {each.pid for each in daemons(scene)} | ({scene.status.pid} if scene.status is not None else set())
    if pid in ours or (pid == 1 and _of_holdfast(scene)):
        yield fine("libvirt's socket", f"holdfastd serves {path}")
    elif pid != 1 and (owner is None or owner.name != "virtlockd"):
        name = owner.name if owner is not None else "another program"
        yield found(
            "HF021",
            f"{name} (pid {pid}) listens at {path}, not holdfastd",
            f"find out what it is (ps -fp {pid}) and which unit starts it, end it, then: {START}",
        )
    elif not virtlockds(scene):
        yield found(
            "HF021",
            f"systemd listens at {path} for virtlockd, not for holdfastd",
            SWITCH,
        )
    else:
        yield found(
            "HF021",
            f"virtlockd serves {path}, not holdfastd",
            "see the finding about virtlockd (HF022 or HF028)",
        )


def _of_holdfast(scene: Scene) -> bool:
    """systemd listens: for which service? The unit's own word; a daemon that answers has the socket from it."""
    unit = scene.host.unit("holdfastd.socket")
    if not unit:
        return scene.status is not None
    return unit.get("ActiveState") == "active" and not _is_virtlockd(
        scene, scene.host.unit("holdfastd.service")
    )


def _is_virtlockd(scene: Scene, service: Mapping[str, str]) -> bool:
    pid = service.get("MainPID", "0")
    return any(str(each.pid) == pid for each in virtlockds(scene))


# --- units ---


def units(scene: Scene) -> Iterator[Finding]:
    """By what systemd has loaded and by the links of enabled units; nothing if Holdfast's units are not installed."""
    socket, service = scene.host.unit("holdfastd.socket"), scene.host.unit("holdfastd.service")
    if _is_virtlockd(scene, service):
        yield found(
            "HF026",
            f"systemd takes virtlockd (pid {service['MainPID']}) for holdfastd.service: don't stop or restart it, "
            f"its VMs would "
            "be killed",
            "see the finding about virtlockd (HF022): its fix stops virtlockd when no VM uses it",
        )
    elif socket.get("LoadState") == "loaded" and socket.get("ActiveState") != "active":
        state = f"{socket.get('ActiveState')} ({socket.get('Result')})"
        yield found(
            "HF025",
            f"holdfastd.socket is {state}: libvirtd.service requires it and can't be started",
            "see the finding about virtlockd first"
            if virtlockds(scene)
            else "systemctl reset-failed holdfastd.socket holdfastd.service; systemctl start holdfastd.socket",
        )
    missing = [
        unit for target, unit in AT_BOOT if not os.path.lexists(scene.path(WANTS.format(target, unit)))
    ]
    if service.get("LoadState") == "loaded" and missing:
        yield found(
            "HF024",
            f"{' and '.join(missing)} not enabled: after the next boot nobody serves libvirt's socket",
            # Without --now: nothing is started beside a virtlockd.
            "systemctl enable holdfastd.socket holdfastd.service",
        )
