"""PURE: wishes, what is at the lockspace's place and the watchdog, to the configuration that all hosts get.

With leases every disk has one: a rule that names directories would have to be the same on hosts whose domains differ, and a
disk that one host locks by a file and another by a lease has no lock at all between them.
"""

from __future__ import annotations

import posixpath

from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE, RESET
from holdfast.cli.setup.facts import HostThere, Proposal, SanlockPlugin, SpaceSeen, Watchdog, Wishes
from holdfast.cli.setup.profiles import DEFAULT, PROFILES, words
from holdfast.config_toml import to_toml_value
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S, Timing

BACKEND = "leases"
MARK = "# Written by 'holdfast setup', which replaces it only as long as nobody has edited it."
DEVICE_LOCKSPACE = "vms"
_WHY_RESET = (
    'on_loss = "reset": on a network file system writes of a VM that had to be killed may land after another host has its '
    'disk, so this host is reset then; "stop" spares VMs with disks elsewhere, and takes that risk'
)


def propose(
    wishes: Wishes, space: SpaceSeen | None, watchdog: Watchdog, plugin: SanlockPlugin | None = None
) -> Proposal:
    """`space` is None without leases: then the built-in defaults are the proposal. `plugin`: libvirt's sanlock plugin, which
    counts where its leases are those of `space`.
    """
    if space is None:
        return Proposal()
    if plugin is not None and not is_place_of(plugin, space):
        plugin = None
    if space.fault:
        return Proposal(refusals=(f"{space.fault}; {space.fix}",))
    if wishes.join and not space.name:
        return Proposal(
            refusals=(
                f"{wishes.join} has no lockspace to join; mount its storage, or on the first host: "
                f"holdfast setup --leases {wishes.join}",
            )
        )
    refusals: list[str] = []
    timing, profile = _timing(wishes, space, plugin, refusals)
    word = _watchdog(wishes, watchdog, timing, refusals)
    free = space.hosts_max - len(space.hosts) if space.name else wishes.hosts_max
    if free < 1:
        refusals.append(
            f"all {space.hosts_max} host ids of {space.path} are in use; holdfast host list {space.path}"
        )
    if refusals:
        return Proposal(refusals=tuple(refusals))
    lockspace = space.name or (DEVICE_LOCKSPACE if space.is_device else LIBVIRT_LOCKSPACE)
    hosts_max = max(wishes.hosts_max, *(each.host_id for each in space.hosts), 1)
    hosts_max = min(hosts_max, space.hosts_max) if space.hosts_max else hosts_max
    own = plugin.host_id if plugin is not None and plugin.host_id <= hosts_max else 0
    table: dict[str, object] = {
        "driver": "paxos",
        ("device" if space.is_device else "directory"): space.place,
        "lockspace": lockspace,
        "host_id": own or "auto",
        "watchdog": word,
        "io_timeout_s": timing.io_timeout_s,
        "fire_timeout_s": timing.fire_timeout_s,
        "hosts_max": hosts_max,
    }
    resets = space.outlives_its_writers and word != "none"
    if resets:
        table["on_loss"] = RESET
    lines = [
        MARK,
        f"[backend.{BACKEND}]",
        *(f"{k} = {to_toml_value(v)}" for k, v in table.items()),
        "",
        "# The same rules on all hosts: a disk that one locks by a file and another by a lease is not guarded.",
        "[[disk]]",
        'match = "*"',
        f'backend = "{BACKEND}"',
    ]
    where = "device" if space.is_device else "directory"
    reasons = (
        f"leases in the {where} {space.place}, lockspace {lockspace}"
        + (f" ({space.sizes}; {len(space.hosts)} of {space.hosts_max} host ids in use)" if space.name else "")
        + ": they exclude other hosts on any storage, and a host that dies is taken over",
        _why_host_id(own, space),
        _why_watchdog(word),
        *((_WHY_RESET,) if resets else ()),
        f"profile {profile}: {words(timing, has_watchdog=word != 'none')}",
    )
    return Proposal("\n".join(lines) + "\n", reasons, (), timing, profile, word, lockspace)


def is_place_of(plugin: SanlockPlugin, space: SpaceSeen) -> bool:
    """Whether the plugin's leases are those of this lockspace."""
    return (
        not space.is_device
        and posixpath.normpath(plugin.directory) == posixpath.normpath(space.place)
        and space.name in ("", LIBVIRT_LOCKSPACE)
    )


def timing_of(plugin: SanlockPlugin) -> Timing | None:
    """Its hosts', with sanlock's fire timeout; None for an io_timeout that can't be used."""
    timing = Timing(plugin.io_timeout_s, FIRE_TIMEOUT_DEFAULT_S)
    return None if timing.broken() else timing


def _why_host_id(own: int, space: SpaceSeen) -> str:
    if not own:
        return 'host_id = "auto": an id that no other host has, and the same one after a reboot'
    has = next((each.name for each in space.hosts if each.host_id == own), "")
    return (
        f"host_id = {own}: this host's in qemu-sanlock.conf, so that no other host has it"
        + (f"; {has} has it now, and if that is another host this one does not join" if has else "")
    )  # fmt: skip


def _timing(
    wishes: Wishes, space: SpaceSeen, plugin: SanlockPlugin | None, refusals: list[str]
) -> tuple[Timing, str]:
    """By the profile; by what the lockspace records, where there is one: its hosts have to count alike."""
    fixed = wishes.timing or (PROFILES[wishes.profile] if wishes.profile else None)
    if not space.name:
        chosen = fixed or (timing_of(plugin) if plugin is not None else None) or PROFILES[DEFAULT]
        return chosen, _name_of(chosen)
    periods = sorted({each.io_timeout_s for each in space.hosts if each.io_timeout_s})
    fires = sorted({each.fire_timeout_s for each in space.hosts if each.fire_timeout_s})
    if len(periods) > 1 or len(fires) > 1:
        said = ", ".join(_of_host(each) for each in space.hosts)
        refusals.append(
            f"hosts of {space.path} do not agree on their timeouts ({said}); first give them the same ones: see holdfast "
            f"host list {space.path}"
        )
        return PROFILES[DEFAULT], ""
    period = (periods or [space.unused_io_timeout_s or PROFILES[DEFAULT].io_timeout_s])[0]
    fire = fires[0] if fires else _unsaid_fire(space, period, fixed)
    if not fire:
        refusals.append(
            f"hosts of {space.path} do not say their fire timeout, which has to be the same on all of them: give "
            "--profile as on the first host (fire_timeout_s in its holdfast.toml)"
        )
        return PROFILES[DEFAULT], ""
    recorded = Timing(period, fire)
    if recorded.broken():
        refusals.append(f"{space.path} records timeouts that can't be used: {recorded.broken()[0]}")
    if fixed is not None and recorded != fixed:
        asked = f"profile {wishes.profile}" if wishes.profile else "what setup wrote before"
        refusals.append(
            f"{asked} (io_timeout {fixed.io_timeout_s} s, fire timeout {fixed.fire_timeout_s} s) does not fit {space.path}, "
            f"which records io_timeout {recorded.io_timeout_s} s, fire timeout {recorded.fire_timeout_s} s; leave --profile "
            "out, or change the other hosts first"
        )
    return recorded, _name_of(recorded)


def _unsaid_fire(space: SpaceSeen, period_s: int, fixed: Timing | None) -> int:
    """Where no host says its fire timeout: sanlock's where its hosts are, else what was asked for; 0: nobody knows."""
    if any(not each.by_holdfast for each in space.hosts):
        return FIRE_TIMEOUT_DEFAULT_S
    if fixed is not None:
        return fixed.fire_timeout_s
    if space.hosts:
        return 0
    return next(
        (t.fire_timeout_s for t in PROFILES.values() if t.io_timeout_s == period_s), FIRE_TIMEOUT_DEFAULT_S
    )


def _name_of(timing: Timing) -> str:
    return next((name for name, each in PROFILES.items() if each == timing), "as recorded")


def _of_host(host: HostThere) -> str:
    fire = f"/{host.fire_timeout_s}" if host.fire_timeout_s else ""
    return f"{host.name} {host.io_timeout_s}{fire} s"


def _watchdog(wishes: Wishes, there: Watchdog, timing: Timing, refusals: list[str]) -> str:
    """The one that is asked for, or the one that this host has; never none without a word."""
    word = wishes.watchdog
    if word == "none":
        return word
    if not word:
        word = "wdmd" if there.wdmd else "device"
    if word == "wdmd" and not there.wdmd:
        refusals.append("wdmd does not run; systemctl enable --now wdmd")
    if word == "wdmd" and timing.fire_timeout_s != FIRE_TIMEOUT_DEFAULT_S:
        refusals.append(
            f"wdmd resets this host after {FIRE_TIMEOUT_DEFAULT_S} s, and a fire timeout of {timing.fire_timeout_s} s needs "
            "Holdfast's own watchdog driver: stop wdmd (when no VM has a lock in sanlock), then --watchdog device"
        )
    if word == "device":
        if not there.device:
            refusals.append(
                "there is no /dev/watchdog, so nothing would reset this host when it hangs: load the driver of this "
                "machine's watchdog (without such hardware: modprobe softdog, and its name in "
                "/etc/modules-load.d/holdfast.conf). --watchdog none does without: a host that hangs "
                "may write a disk that another one has taken over"
            )
        elif there.used_by:
            refusals.append(
                f"{', '.join(there.used_by)} has /dev/watchdog open, and it can be opened once: if it is systemd, "
                "RuntimeWatchdogSec=0 in /etc/systemd/system.conf.d/holdfast.conf ([Manager]) and a reboot; else disable "
                "that service"
            )
        if there.nowayout:
            refusals.append(
                "the watchdog's driver is loaded with nowayout=1: a holdfastd that is stopped in good order would have this "
                "host reset; load it with nowayout=0 (/etc/modprobe.d)"
            )
        if there.timeout_max_s and there.timeout_max_s < timing.fire_timeout_s:
            refusals.append(
                f"the watchdog's hardware counts to {there.timeout_max_s} s, and the fire timeout is "
                f"{timing.fire_timeout_s} s; a profile with a shorter one, on all hosts"
            )
    return word


def _why_watchdog(word: str) -> str:
    return {
        "device": 'watchdog = "device": holdfastd opens /dev/watchdog, and this host is reset when it loses its leases',
        "wdmd": 'watchdog = "wdmd": wdmd runs here, and shares the watchdog with sanlock',
        "none": 'watchdog = "none", as asked for: NOTHING resets a host that hangs, and its disks may be written twice',
    }[word]
