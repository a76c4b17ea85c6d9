"""PURE: facts to the steps that are still needed, in their order, and to what a person has to do.

    lockspace ► holdfast.toml ► qemu.conf ► virtlockd out, holdfastd in ► timer ► libvirt reads its files ► hook ► joined

Findings of `holdfast doctor` say what is wrong; those that no step mends are left to a person, with doctor's own fix.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from holdfast.cli.doctor.findings import NOTE
from holdfast.cli.setup.facts import Facts, Proposal, SpaceSeen, Wishes
from holdfast.cli.setup.steps import (
    AwaitJoined,
    ByHand,
    EditLibvirt,
    MakeDirectory,
    MakeLockspace,
    Plan,
    Reload,
    Run,
    Step,
    Switch,
    SwitchLive,
    WriteFile,
)

HOLDFAST_UNITS = ("holdfastd.socket", "holdfastd.service")
GC_TIMER = "holdfast-lease-gc.timer"
MENDED = frozenset(
    [
        "HF001",
        "HF002",
        "HF003",
        "HF004",
        "HF020",
        "HF021",
        "HF022",
        "HF023",
        "HF024",
        "HF025",
        "HF026",
        "HF028",
        "HF029",
        "HF030",
        "HF035",
        "HF041",
    ]
)
"""Findings that a step or a refusal is about."""
MENDED_WITH_LEASES = frozenset(("HF060", "HF064"))
"""Those of a lockspace that setup itself makes and joins."""
SLEW_PPM = 500


def plan(wishes: Wishes, facts: Facts, proposal: Proposal, space: SpaceSeen | None) -> Plan:
    refusals = tuple(_refusals(wishes, facts, proposal))
    steps = () if proposal.refusals else tuple(_steps(wishes, facts, proposal, space))
    return Plan(refusals, steps, tuple(_by_hand(facts, proposal)), proposal.reasons)


def is_foreign(facts: Facts) -> bool:
    """Whether the configuration is somebody else's, so that setup leaves it alone."""
    return facts.config_text is not None and not facts.config_is_ours


def has_locks(facts: Facts) -> bool:
    """Whether virtlockd has a lock of somebody, or may have one."""
    return bool(facts.virtlockd_users or facts.virtlockd_files)


def _refusals(wishes: Wishes, facts: Facts, proposal: Proposal) -> Iterator[str]:
    if not facts.is_root:
        yield "this user is not root: sudo holdfast setup"
    if not facts.systemd:
        yield "systemctl does not answer: setup installs units, and works with systemd alone; see docs/install.md"
    elif not facts.units_there:
        yield "holdfastd.service is not installed: install the package (apt install ./holdfast_*.deb), then setup again"
    if not facts.libvirt_here:
        yield f"there is no {facts.qemu_conf}: install libvirt's QEMU driver (libvirt-daemon-system) first"
    if wishes.hook and not facts.hook_there and not facts.hook_source:
        yield "the package's copy of libvirt's hook is not there (/usr/share/holdfast/libvirt/qemu-hook): leave --hook out"
    if facts.config_broken:
        yield f"{facts.config_broken}; correct {facts.config_file} first"
    if facts.lock_manager == "sanlock":
        yield (
            f'{facts.qemu_conf} has lock_manager = "sanlock": VMs may have locks there, and setup moves none of them. '
            "docs/sanlock.md has the way, host by host; holdfast import-sanlock prints the configuration"
        )
    for each in facts.findings:
        if each.id in ("HF032", "HF039", "HF067", "HF062") or (
            each.id == "HF021"
            and not facts.virtlockd_pid
            and "listens at" in each.facts
            and "systemd" not in each.facts
        ):
            yield f"{each.facts}; {each.fix}"
    if is_foreign(facts) and proposal.text not in ("", facts.config_text):
        yield (
            f"{facts.config_file} was not written by setup, or was edited since, and is left as it is: take over what the "
            "difference shows, or move it away; without --leases and --join setup goes by what is there"
        )
    if facts.cannot_edit and facts.lock_manager != "lockd":
        yield facts.cannot_edit
    kills = f"virtlockd (pid {facts.virtlockd_pid}) runs, and stopping it KILLS"
    bars = facts.virtlockd_not_live
    if facts.virtlockd_users:
        names = [shlex.quote(each) for each in facts.virtlockd_users]
        suspend = " && ".join(f"virsh suspend -- {each}" for each in names)
        resume = "; ".join(f"virsh resume -- {each}" for each in names)
        if bars:
            yield (
                f"{kills} {len(names)} VMs that have locks in it, or may: {', '.join(facts.virtlockd_users)}. They can't be "
                f"taken over while they run: {bars}. Mend that, and setup again; or migrate them away or suspend them, then "
                f"setup again, then resume: {suspend} && holdfast setup; {resume}"
            )
    elif facts.virtlockd_files and bars:
        yield (
            f"{kills} who has locks in it, and it has some on {', '.join(facts.virtlockd_files)}: find out who that is "
            f"(holdfast who FILE), and end it first. It can't be taken over as it is: {bars}"
        )
    yield from proposal.refusals


def _steps(wishes: Wishes, facts: Facts, proposal: Proposal, space: SpaceSeen | None) -> Iterator[Step]:
    if space is not None and not space.name:
        yield from _lockspace(wishes, proposal, space)
    writes = not is_foreign(facts) and proposal.text not in ("", facts.config_text)
    if writes:
        yield Step(
            "configuration",
            f"write {facts.config_file}",
            "; ".join(proposal.reasons[:1]),
            WriteFile(facts.config_file, proposal.text),
            "restores what was there, or removes the file",
        )
    if facts.has("HF070") and facts.chrony_drop_in:
        yield Step(
            "clock-rate",
            f"write {facts.chrony_drop_in}",
            "hosts count each other's silence by their own clocks, and chrony may slew this host's too fast",
            WriteFile(
                facts.chrony_drop_in,
                f"# Written by 'holdfast setup'.\nmaxslewrate {SLEW_PPM}\n",
                run=("systemctl", "try-restart", facts.chrony_unit),
                undo_run=("systemctl", "try-restart", facts.chrony_unit),
            ),
            "removes the file, and restarts chrony",
        )
    edits = facts.lock_manager not in ("lockd", "sanlock")
    if edits:
        has = f"has lock_manager = {facts.lock_manager!r}" if facts.lock_manager else "has no lock_manager"
        yield Step(
            "qemu-conf",
            f'lock_manager = "lockd" in {facts.qemu_conf}',
            f"it {has}, so libvirt asks nobody for locks",
            EditLibvirt(facts.qemu_conf, "Libvirtd_qemu.lns", (("lock_manager", "lockd"),)),
            "restores the file",
        )
    switches = bool(facts.virtlockd_units)
    if switches and has_locks(facts):
        yield Step(
            "switch",
            f"virtlockd becomes holdfastd while VMs run; disable {', '.join(facts.virtlockd_units)}; enable and start "
            f"{' and '.join(HOLDFAST_UNITS)}",
            f"it has locks of {', '.join(facts.virtlockd_users or facts.virtlockd_files)}. libvirt is stopped meanwhile, so "
            "that no VM starts in between; none is suspended or stopped, and nobody can get a disk",
            SwitchLive(facts.virtlockd_units, facts.direct_backend),
            "the other way round, once no VM has a lock in holdfastd",
        )
    elif switches:
        yield Step(
            "switch",
            f"stop and disable {', '.join(facts.virtlockd_units)}; enable and start {' and '.join(HOLDFAST_UNITS)}",
            "both serve one socket. libvirt is stopped meanwhile, so that no VM starts in between; VMs run on",
            Switch(facts.virtlockd_units),
            "the other way round",
        )
    elif facts.has("HF003", "HF020", "HF021", "HF024", "HF025") or not facts.holdfastd_runs:
        yield Step(
            "start",
            f"enable and start {' and '.join(HOLDFAST_UNITS)}",
            "nobody serves libvirt's socket, now or after the next boot",
            Run((("systemctl", "daemon-reload"), ("systemctl", "enable", "--now", *HOLDFAST_UNITS))),
            "stops and disables them",
        )
    if proposal.text and facts.has("HF072") and facts.gc_timer_there:
        yield Step(
            "lease-gc",
            f"enable {GC_TIMER}",
            "leases of deleted disks would stay",
            Run((("systemctl", "enable", "--now", GC_TIMER),)),
            "disables it",
        )
    if facts.holdfastd_runs and (facts.has("HF002") or writes):
        yield Step(
            "reload",
            "holdfastd loads its configuration",
            "it runs with another one than the one on disk",
            Reload(),
            "nothing: it is stopped",
        )
    # The switch stops what runs; its files are read by the daemon, which may idle.
    daemons = _daemons(facts)
    restarted = (*facts.libvirt_stopped, *(facts.libvirt_active if switches else daemons))
    if restarted and (edits or switches or facts.has("HF035") or facts.libvirt_stopped):
        yield Step(
            "libvirt",
            f"restart {', '.join(restarted)}",
            "libvirt reads its files when it starts; no VM is touched",
            Run((("systemctl", "restart", *restarted),)),
            "starts it again with the files that were restored",
        )
    if wishes.hook and not facts.hook_there and facts.hook_source:
        yield Step(
            "hook",
            f"install {facts.hook_path}, and restart libvirt, which looks for hooks when it starts",
            "it was asked for: holdfastd is asked before QEMU opens a disk, so that a refusal names the holder",
            WriteFile(
                facts.hook_path,
                mode=0o755,
                source=facts.hook_source,
                run=("systemctl", "try-restart", *daemons) if daemons else (),
            ),
            "removes the file",
        )
    if proposal.lockspace and not facts.joined:
        yield Step(
            "join",
            f"wait until lockspace {proposal.lockspace} is joined",
            "starts of disks with leases are refused until then",
            AwaitJoined(proposal.lockspace),
            "nothing: a daemon that is stopped leaves it",
        )


def _daemons(facts: Facts) -> tuple[str, ...]:
    return tuple(each for each in facts.libvirt_active if each.endswith(".service"))


def _lockspace(wishes: Wishes, proposal: Proposal, space: SpaceSeen) -> Iterator[Step]:
    if not space.has_directory:
        yield Step(
            "lease-directory",
            f"make the directory {space.place}",
            "leases are files in it; only root may write there",
            MakeDirectory(space.place),
            "nothing: other hosts may use it by then",
        )
    assert proposal.timing is not None
    path = space.path if space.is_device else f"{space.place}/{proposal.lockspace}"
    yield Step(
        "lockspace",
        f"make the lockspace {proposal.lockspace} in {path}",
        "hosts prove to each other there that they are alive; it is made once, and other hosts join it",
        MakeLockspace(
            path, proposal.lockspace, wishes.hosts_max, proposal.timing.io_timeout_s, space.is_device
        ),
        "nothing: other hosts may use it by then",
    )


def _by_hand(facts: Facts, proposal: Proposal) -> Iterator[ByHand]:
    for each in facts.findings:
        if not each.id or each.id in MENDED or (proposal.text and each.id in MENDED_WITH_LEASES):
            continue
        if (each.id == "HF070" and facts.chrony_drop_in) or (each.id == "HF072" and facts.gc_timer_there):
            continue
        fix = each.fix
        if each.id == "HF080" and not proposal.text:
            fix = (
                "leases: holdfast setup --leases DIRECTORY-OR-DEVICE on shared storage, then on each other host "
                "holdfast setup --join the same; or " + fix
            )
        yield ByHand(each.id, each.severity, each.facts, fix)
    if facts.config_is_ours and not proposal.text and facts.config_text is not None:
        yield ByHand("", NOTE, f"{facts.config_file} stays as setup wrote it before", "")
