"""PURE: what becomes of each setting of qemu-sanlock.conf and qemu-lockd.conf: taken over, or not, and then what to do.

The first is the configuration of libvirt's sanlock plugin, which holdfast.toml stands for; the second stays libvirt's own.
None is left out: a setting that is not known here is a line too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE
from holdfast.cli.libvirt_conf import ConfFile
from holdfast.cli.setup.facts import Carried, Proposal, SanlockPlugin, SpaceSeen
from holdfast.cli.setup.proposal import is_place_of
from holdfast.config_toml import to_toml_value
from holdfast.system.files.regular_file import Unreadable

SANLOCK = "qemu-sanlock.conf"
LOCKD = "qemu-lockd.conf"
DIRECTORIES = ("file_lockspace_dir", "lvm_lockspace_dir", "scsi_lockspace_dir")


@dataclass(frozen=True, slots=True)
class Sanlock:
    """qemu-sanlock.conf; `backend` as `sanlock_settings.Imported` has it. `fault`: why it says nothing."""

    conf: ConfFile
    backend: Mapping[str, object] = field(default_factory=dict)
    fault: str = ""

    @property
    def plugin(self) -> SanlockPlugin | None:
        """None where libvirt makes no leases by itself."""
        directory, host_id, io_timeout_s = (
            self.backend.get(key) for key in ("directory", "host_id", "io_timeout_s")
        )
        if not isinstance(directory, str) or not isinstance(io_timeout_s, int):
            return None
        return SanlockPlugin(directory, host_id if isinstance(host_id, int) else 0, io_timeout_s)


def of_sanlock(
    sanlock: Sanlock, space: SpaceSeen | None, proposal: Proposal, *, manager: str, configured: bool
) -> Iterator[Carried]:
    """`manager`: lock_manager of qemu.conf; `configured`: holdfast.toml is somebody else's, and stays."""
    if sanlock.fault:
        yield Carried(
            SANLOCK, "", False, sanlock.fault, "correct it, and setup again; or remove it, if no host uses it"
        )
        return
    plugin = sanlock.plugin
    for name in dict.fromkeys(each.name for each in sanlock.conf.settings):
        value = sanlock.conf.text(name)
        said = Carried(
            SANLOCK, f"{name} = {value}", False, "it is not known here", "see docs/sanlock.md, and remove it"
        )
        if name == "auto_disk_leases":
            used, reason, fix = _automatic(plugin)
        elif name == "require_lease_for_disks":
            used, reason, fix = _required(plugin, value)
        elif name in ("user", "group"):
            used, reason, fix = _owner(name, value, plugin, space)
        elif name not in ("disk_lease_dir", "host_id", "io_timeout"):
            used, reason, fix = said.used, said.reason, said.fix
        elif plugin is None:
            used, reason, fix = (
                False,
                "auto_disk_leases is not 1, so libvirt makes no leases there by itself",
                "",
            )
        elif manager == "sanlock" or configured:
            why = (
                "libvirt asks sanlock"
                if manager == "sanlock"
                else "holdfast.toml is there, and stays as it is"
            )
            used, reason, fix = False, why, "compare with what holdfast import-sanlock prints"
        elif space is None:
            used, reason, fix = False, "without --leases and --join there are no leases", _asks(name, plugin)
        elif not is_place_of(plugin, space):
            used, reason, fix = _elsewhere(name, plugin, space)
        elif proposal.refusals:
            used, reason, fix = False, "the proposal is refused", "as the refusal says"
        else:
            used, reason, fix = _proposed(name, plugin, proposal)
        yield Carried(said.file, said.setting, used, reason, fix)
        yield from _twice(SANLOCK, sanlock.conf, name)


def _asks(name: str, plugin: SanlockPlugin) -> str:
    if name != "disk_lease_dir":
        return ""
    return f"holdfast setup --join {shlex.quote(plugin.directory)} has them, on all hosts that use it"


def _automatic(plugin: SanlockPlugin | None) -> tuple[bool, str, str]:
    if plugin is not None:
        return True, "a disk has a lock without a <lease> element, with Holdfast by default", ""
    return (
        False,
        "with Holdfast every disk has a lock, not <lease> elements alone",
        f"if only these are to be locked: auto_disk_leases = 0 in {LOCKD}",
    )


def _required(plugin: SanlockPlugin | None, value: str) -> tuple[bool, str, str]:
    if plugin is not None:
        return True, "every disk has a lease, so no VM is without one", ""
    return False, "it has no key in holdfast.toml", f"write require_lease_for_disks = {value} into {LOCKD}"


def _owner(
    name: str, value: str, plugin: SanlockPlugin | None, space: SpaceSeen | None
) -> tuple[bool, str, str]:
    reason = "holdfastd gives a lease file the owner, group and mode of its lockspace's file"
    if plugin is None:
        return False, reason, ""
    path = (
        space.path
        if space is not None and is_place_of(plugin, space)
        else f"{plugin.directory}/{LIBVIRT_LOCKSPACE}"
    )
    command = shlex.join(["chown" if name == "user" else "chgrp", "--", value, path])
    return False, reason, f"if ls -l {shlex.quote(path)} shows another {name}: {command}"


def _elsewhere(name: str, plugin: SanlockPlugin, space: SpaceSeen) -> tuple[bool, str, str]:
    if name == "disk_lease_dir":
        return (
            False,
            f"leases are in {space.place}, as asked for",
            f"hosts with leases in {plugin.directory} and hosts with leases in {space.place} DO NOT exclude each other: no "
            "host may use the former any more",
        )
    return False, f"it is about {plugin.directory}, and leases are in {space.place}", ""


def _proposed(name: str, plugin: SanlockPlugin, proposal: Proposal) -> tuple[bool, str, str]:
    if name == "disk_lease_dir":
        return (
            True,
            "its leases are libvirt's: this host and those with the sanlock plugin exclude each other",
            "",
        )
    if name == "host_id":
        if plugin.host_id and f"host_id = {to_toml_value(plugin.host_id)}\n" in proposal.text:
            return True, "so that no other host has it", ""
        why = "it is greater than hosts_max" if plugin.host_id else "it is no host id"
        return (
            False,
            f'{why}, and host_id = "auto" finds a free one',
            "or --hosts-max N, the same on all hosts",
        )
    assert proposal.timing is not None
    if proposal.timing.io_timeout_s == plugin.io_timeout_s:
        return True, f"io_timeout_s = {plugin.io_timeout_s}", ""
    return (
        False,
        f"the lockspace's records or the profile say {proposal.timing.io_timeout_s} s",
        "hosts of a lockspace may differ in it for a time only: the same on all of them",
    )


def of_lockd(conf: ConfFile | Unreadable, *, leases: bool) -> Iterator[Carried]:
    """What libvirt's lockd plugin goes by, before and after. `leases`: holdfastd has a backend with leases."""
    if isinstance(conf, Unreadable):
        if not conf.missing:
            yield Carried(LOCKD, "", False, f"it can't be read: {conf.reason}", "correct it, and setup again")
        return
    if conf.error:
        yield Carried(
            LOCKD, "", False, f"line {conf.error_line}: {conf.error}", "correct it, and setup again"
        )
    for name in dict.fromkeys(each.name for each in conf.settings):
        value = conf.text(name)
        used, reason, fix = True, "libvirt itself goes by it, as before", ""
        if name in DIRECTORIES and value:
            used = not leases
            reason = f"lock files stay in {value}: hosts with virtlockd take part there"
            if leases:
                reason = (
                    "with leases no lock file is used, and libvirt asks for disks by hashes, so that none can be attached "
                    "to a running VM"
                )
                fix = f"when all hosts have leases, and no VM runs here: remove it from {LOCKD}, and restart libvirt"
        elif name == "auto_disk_leases" and value == "0":
            reason, fix = (
                "libvirt asks for <lease> elements alone, no disk is locked",
                "remove it, if disks are to be locked",
            )
        elif name not in ("auto_disk_leases", "require_lease_for_disks", *DIRECTORIES):
            used, reason, fix = False, "it is not known here", "see the manual of this libvirt"
        yield Carried(LOCKD, f"{name} = {value}", used, reason, fix)
        yield from _twice(LOCKD, conf, name)


def _twice(file: str, conf: ConfFile, name: str) -> Iterator[Carried]:
    for each in conf.ignored(name):
        yield Carried(
            file,
            f"{name} = {each.value}",
            False,
            f"line {each.line}: libvirt goes by the first one",
            "remove it",
        )
