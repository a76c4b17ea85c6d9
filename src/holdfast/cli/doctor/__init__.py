"""`holdfast doctor`: protection that is silently off, found before it is needed.

Each check is a function that yields findings; none changes anything, except that a lock directory is tried with a
file of its own. `rules` is the table of all that can be found, `scene` what the checks see, and each other module checks one
kind. A check that fails is a finding itself (HF012), and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from holdfast.cli.doctor import (
    clock_rate,
    disks,
    hosts,
    libvirt,
    lock_directories,
    lockspaces,
    running,
    services,
    shared_volumes,
    storage,
    units,
)
from holdfast.cli.doctor.findings import Finding, fine, found
from holdfast.cli.doctor.scene import Host, Scene, ThisHost
from holdfast.cli.libvirt_files import domains
from holdfast.config import Config
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.daemon import kept_config
from holdfast.system.files.mounts import MountTable

ANSWER_S = 10.0
"""For each answer of the daemon."""

Check = Callable[[Scene], Iterator[Finding]]

CHECKS: Sequence[Check] = (
    services.permission,
    services.daemon,
    services.not_in_force,
    units.virtlockd,
    units.left_by_a_switch,
    units.listening,
    units.units,
    libvirt.qemu_conf,
    libvirt.lockd_conf,
    libvirt.hook,
    libvirt.read_too_early,
    libvirt.other_drivers,
    lock_directories.lock_directories,
    lockspaces.lockspaces,
    lockspaces.collection,
    hosts.hosts,
    clock_rate.clock_rate,
    storage.multipath,
    storage.lvm,
    shared_volumes.shared_volumes,
    lock_directories.mounts,
    disks.disks,
    disks.unlocked,
    disks.beside_disks,
    disks.names,
    disks.shared_by_domains,
    running.running,
    running.unread,
    running.other_backend,
    running.outside_libvirt,
    running.migrations,
)


def examine(
    config_file: str | None, socket: str | None, root: str = "/", *, host: Host | None = None
) -> list[Finding]:
    """All findings, in the order of the checks."""
    from holdfast.daemon.check_config import check_config

    config, problems = check_config(config_file)
    findings = [found("HF001", str(p), "correct it, then: holdfast reload") for p in problems]
    in_force = kept_config.in_force(config_file)
    if config is None or problems:
        config = in_force
        if config is None:
            return findings
    else:
        findings.append(fine("configuration", ", ".join(config.sources) or "built-in defaults"))
    scene = _scene(config, in_force, config_file, socket, root, host)
    for check in CHECKS:
        findings += run(check, scene)
    return findings


def scene_of(
    config_file: str | None, socket: str | None, root: str = "/", *, host: Host | None = None
) -> Scene:
    """What the checks would see by that configuration; raises `ConfigError` if it can't be used."""
    from holdfast.daemon.check_config import check_config

    config, problems = check_config(config_file)
    if config is None or problems:
        raise problems[0]
    return _scene(config, kept_config.in_force(config_file), config_file, socket, root, host)


def _scene(
    config: Config,
    in_force: Config | None,
    config_file: str | None,
    socket: str | None,
    root: str,
    host: Host | None,
) -> Scene:
    from holdfast.daemon.build import build_routing
    from holdfast.daemon.check_config import ports_for_a_look

    mounts = MountTable()
    unread: list[str] = []
    scene = Scene(
        root,
        config,
        build_routing(config, ports_for_a_look(config, mounts)),
        mounts,
        list(domains(root, unread)),
        None,
        [],
        [],
        None,
        "",
        host=host or ThisHost(),
        config_file=config_file,
        in_force=in_force,
        unread=unread,
    )
    try:
        with ControlClient(socket or config.control_socket, timeout_s=ANSWER_S) as client:
            scene.status, scene.owners, scene.locks = client.status(), client.owners(), client.locks()
            scene.spaces = client.lease_spaces()
    except (DaemonUnreachable, CallRefused) as e:
        scene.unreachable = str(e)
        scene.not_permitted = isinstance(e, DaemonUnreachable) and e.not_permitted
    return scene


def run(check: Check, scene: Scene) -> list[Finding]:
    """What one check finds; its own failure is a finding, and no reason not to do the others."""
    findings: list[Finding] = []
    try:
        findings.extend(check(scene))
    except Exception as e:
        name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
        findings.append(
            found(
                "HF012",
                f"the check {name} could not be done: {type(e).__name__}: {e}",
                "report it with the output of: holdfast doctor --json",
            )
        )
    return findings
