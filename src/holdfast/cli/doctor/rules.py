"""The table of what `holdfast doctor` can find: a stable id for each, its severity, and the text of its page.

An id is never given to anything else, and stays when the words around it change: monitoring and runbooks name it.
docs/doctor.md is made from this table (`holdfast doctor --explain all`), and a test compares the two.

    HF001-HF019  the configuration and the daemon          HF060-HF079  lockspaces and leases
    HF020-HF029  libvirt's socket, units, virtlockd        HF080-HF089  disks of domains
    HF030-HF049  libvirt's configuration                   HF090-HF099  virtual machines that run
    HF050-HF059  lock directories and mounts               HF100-HF119  hosts beside each other, the storage below
                                                           HF120-HF129 leases beside sanlock
                                                           HF130-      volumes of shared groups

To add one: a row here, `found("HFnnn", facts, fix)` in the module that checks its kind, a case in tests/unit/doctor,
and the page (python tools/doctor_page.py writes it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Rule:
    """``check`` is the subject in one or two words; ``why`` says what happens if nobody acts."""

    id: str
    severity: Literal["note", "problem"]
    check: str
    title: str
    why: str


def _problem(id: str, check: str, title: str, why: str) -> Rule:
    return Rule(id, "problem", check, title, why)


def _note(id: str, check: str, title: str, why: str) -> Rule:
    return Rule(id, "note", check, title, why)


_ALL = (
    # --- the configuration and the daemon ---
    _problem(
        "HF001",
        "configuration",
        "The configuration on disk can't be used",
        "holdfastd refuses to reload it. A daemon that runs keeps the configuration it has; after a boot none "
        "starts, and no VM can.",
    ),
    _problem(
        "HF002",
        "configuration",
        "The configuration on disk is not the one in force",
        "Somebody edited it and nobody loaded it, or a reload was refused. What doctor says about disks and "
        "lockspaces is about the "
        "configuration on disk; VMs get the locks of the one in force.",
    ),
    _problem(
        "HF003",
        "daemon",
        "holdfastd does not answer",
        "No VM can be started or resumed. VMs that run keep their locks if systemd's descriptor store has them; "
        "leases are not "
        "renewed, and this host is reset or its VMs' disks are taken over when they expire.",
    ),
    _problem(
        "HF004",
        "permission",
        "This user may not see enough",
        "What can't be read counts as nothing found, so an answer would be worth nothing.",
    ),
    _problem(
        "HF005",
        "journal",
        "The journal can't be written",
        "A lock that can't be recorded is not granted: no VM can be started, and none that was suspended can be resumed.",
    ),
    _problem(
        "HF006",
        "storage",
        "Storage does not answer holdfastd",
        "Locks there can be neither taken nor released. For leases, the VMs are stopped when the lockspace is lost.",
    ),
    _problem(
        "HF007",
        "unknown owner",
        "A lock is held for an owner that could not be attributed",
        "After a restart with a lost or damaged journal such a lock stays, because its VM may run. It is "
        "released when that is "
        "proven to be over, or by `holdfast settle`.",
    ),
    _problem(
        "HF008",
        "lost lock",
        "A VM runs without a lock that somebody else has now",
        "Two writers on one disk destroy it. By default the VM was paused (`recovery.on_lock_lost`).",
    ),
    _note(
        "HF009",
        "restarts",
        "No descriptor store keeps the locks over a crash",
        "holdfastd was not started by its unit file. If it crashes, its locks are free until it is started again.",
    ),
    _problem(
        "HF010",
        "daemon",
        "holdfastd reports a problem",
        "The daemon found something that a person has to put right; the facts are its own words.",
    ),
    _problem(
        "HF011",
        "daemon",
        "libvirt's status file has words that this version does not know",
        "The lock of a VM that migrates is then released when libvirt says so, which may be before the guest has left.",
    ),
    _problem(
        "HF012",
        "doctor",
        "A check could not be done",
        "What was not checked may be wrong. This is an error in Holdfast, or a file that is unlike all that it "
        "knows: please report it.",
    ),
    _note(
        "HF013",
        "maintenance",
        "This host is in maintenance",
        "An operator has ordered that no VM begins here: starts, restores and incoming migrations are refused until "
        "`holdfast maintenance off`, also after a reboot. VMs that are here go on.",
    ),
    # --- libvirt's socket, units, virtlockd ---
    _problem(
        "HF020",
        "libvirt's socket",
        "Nobody listens at libvirt's socket",
        'No VM can be started with `lock_manager = "lockd"`.',
    ),
    _problem(
        "HF021",
        "libvirt's socket",
        "Another program listens at libvirt's socket",
        "libvirt asks that program for its locks, so holdfastd guards nothing.",
    ),
    _problem(
        "HF022",
        "virtlockd",
        "virtlockd runs, and VMs hold locks in it",
        "virtlockd kills every VM that holds a lock when it is stopped or restarted (SIGTERM; libvirt shows "
        "`crashed`). A VM "
        "that is suspended, or was migrated away, holds none. `holdfast setup` takes virtlockd's locks over "
        "with the VMs running (docs/situations/coming-from-virtlockd.md). By hand: suspend or migrate every VM that "
        "the finding "
        "names, check that "
        "none is left (`holdfast doctor --only HF022` exits with 0), stop virtlockd, start holdfastd, resume. "
        "The fix is one line "
        "whose commands stop at the first failure.",
    ),
    _problem(
        "HF023",
        "virtlockd",
        "virtlockd starts at the next boot",
        "Two daemons would want one socket. Disabling a unit stops nothing that runs.",
    ),
    _problem(
        "HF024",
        "units",
        "holdfastd is not enabled at boot",
        "After the next boot no VM can be started, or virtlockd starts in its place.",
    ),
    _problem(
        "HF025",
        "units",
        "The socket unit does not listen",
        'libvirtd.service requires it: at its next start libvirtd fails with "A dependency job failed", and '
        "there is no libvirt at all.",
    ),
    _problem(
        "HF026",
        "units",
        "A unit of Holdfast stands for a process that is not holdfastd",
        "systemd merged it with a virtlockd that ran when the unit was enabled. `systemctl status holdfastd` "
        "says active, and "
        "`systemctl stop` or `restart` would stop virtlockd, which kills its VMs.",
    ),
    _problem(
        "HF027",
        "daemon",
        "holdfastd runs, but its run directory is hidden by a mount",
        "Something was mounted over it: commands don't reach the daemon, and after a restart it would find "
        "neither its journal "
        "nor the locks of VMs that run.",
    ),
    _problem(
        "HF028",
        "virtlockd",
        "virtlockd runs beside holdfastd",
        "It holds no lock of a running VM that doctor can see, but a libvirtd that was started earlier may still use it.",
    ),
    _problem(
        "HF029",
        "virtlockd",
        "Locks of a virtlockd that was switched, and holdfastd does not run",
        "A live switch was stopped half-way (docs/situations/coming-from-virtlockd.md#if-the-switch-is-killed). "
        "A keeper has the locks, or its process was killed too: then VMs run without locks, and each second counts. "
        "`holdfast setup` goes on from there, and any start of holdfastd takes what there is; it says which locks somebody "
        "else has by then.",
    ),
    # --- libvirt's configuration ---
    _problem(
        "HF030",
        "libvirt",
        "libvirt uses no lock manager",
        "qemu.conf has no `lock_manager`: VMs start without any lock.",
    ),
    _problem(
        "HF031",
        "libvirt",
        "libvirt uses another lock manager",
        "holdfastd is not asked. VMs are guarded by the named one, or with `nop` by none.",
    ),
    _problem(
        "HF032",
        "libvirt",
        "A configuration file of libvirt can't be read",
        "libvirtd (or virtqemud) refuses to start with it, or starts without its QEMU driver. One that runs has "
        "read an earlier version.",
    ),
    _note(
        "HF033",
        "libvirt",
        "A setting is there more than once",
        "libvirt uses the first line and ignores the rest, without a word.",
    ),
    _problem(
        "HF034",
        "libvirt",
        "Disks are not locked by themselves",
        "With `auto_disk_leases = 0` libvirt locks only the `<lease>` elements of a domain.",
    ),
    _problem(
        "HF035",
        "libvirt",
        "A configuration file was changed after libvirt started",
        "libvirt reads it once, at its start.",
    ),
    _note(
        "HF036",
        "libvirt",
        "libvirt's QEMU driver is not configured here",
        "There is no qemu.conf: nothing on this host asks for locks.",
    ),
    _problem(
        "HF037",
        "libvirt",
        "A user's libvirt runs VMs that this holdfastd does not guard",
        "A session libvirt (qemu:///session) reads the user's own qemu.conf and asks a lock daemon in the user's "
        "runtime directory. "
        "The system's holdfastd is never asked. A disk that both may open is not excluded.",
    ),
    _note(
        "HF038",
        "libvirt",
        "Xen domains are not covered",
        "libvirt's Xen driver has a `lock_manager` of its own in libxl.conf. Holdfast answers it, but doctor "
        "does not check its domains.",
    ),
    _problem(
        "HF039",
        "libvirt",
        "libvirt's lockd plugin is not installed",
        'libvirt refuses every start with `lock_manager = "lockd"`. Debian 13 and later have it in a package of its own.',
    ),
    _note(
        "HF040",
        "libvirt",
        "libvirt's augeas lens can't read a line",
        "libvirt reads the file and ignores keys that it does not know: a mistyped key has no effect. The lens, "
        "which comes with "
        "libvirt, knows its keys, and wants double quotes, where libvirt accepts others too.",
    ),
    _problem(
        "HF041",
        "libvirt's hook",
        "The hook is installed, and libvirt asks no holdfastd for locks",
        "A VM's disks are held from its start by the hook alone. A hot-plugged disk has no lock, a suspended VM keeps "
        "its disks, and one that arrives by a migration would run without any lock: the hook refuses that migration.",
    ),
    # --- lock directories and mounts ---
    _problem(
        "HF050",
        "lock directory",
        "A lock directory is not there",
        "VMs whose locks are there can't start. If it is on storage that is not mounted, making the directory "
        "would let this host "
        "lock in a place of its own, and another host could start the same disk.",
    ),
    _problem(
        "HF051",
        "lock directory",
        "Others may write in a lock directory",
        "Somebody who removes a lock file while it is held lets another host have the disk.",
    ),
    _problem(
        "HF052",
        "lock directory",
        "Locks of a lock directory stay on this host",
        "The mount's options keep byte-range locks from other hosts.",
    ),
    _problem(
        "HF053",
        "lock directory",
        "Locks don't work in a lock directory",
        "Two exclusive locks on one file were granted, or none: VMs either exclude nobody or can't start.",
    ),
    _problem(
        "HF054",
        "lock directory",
        "A lock directory is on storage of this host alone",
        "Each host locks in a directory of its own, so none excludes another. The shared storage may not be mounted.",
    ),
    _problem(
        "HF055",
        "lock directory",
        "cross_host = true vouches for storage that other hosts can't see",
        "A local file system is shared with nobody, and protection is shown as level 2 or 3 that does not exist. "
        "The shared storage "
        "may not be mounted.",
    ),
    _problem(
        "HF056",
        "lock files",
        "Others may write to lock files or leases",
        "Who can write to a lease can break it, and who can open a lock file for writing can keep VMs from starting.",
    ),
    _problem(
        "HF057",
        "mount",
        "A shared mount keeps locks on this host",
        "A lock on a disk or lock file there excludes no other host.",
    ),
    # --- lockspaces and leases ---
    _problem(
        "HF060",
        "lockspace",
        "A lockspace is not there",
        "Its disks can't be started. A lockspace that is made on a mount point without its mount is another one: "
        "two hosts that do "
        "so start one VM twice.",
    ),
    _problem(
        "HF061",
        "lockspace",
        "The storage of a lockspace does not answer",
        "When it is silent for 8 io_timeouts the lockspace is lost, and its VMs are stopped.",
    ),
    _problem(
        "HF062",
        "lease directory",
        "Everybody may write in a lease directory",
        "No new lease is taken there: somebody who removes a lease lets another host have the disk.",
    ),
    _note(
        "HF063",
        "lease directory",
        "Another user or group may write in a lease directory",
        "That is how sanlock and vdsm work; a process of that account can free a lease that is held.",
    ),
    _problem(
        "HF064",
        "lockspace",
        "A lockspace is not joined",
        "Every start of a disk there is refused until it is.",
    ),
    _note(
        "HF065",
        "lockspace",
        "Nothing resets a host that hangs",
        'With `watchdog = "none"` a host that hangs may go on writing after its disks were taken over.',
    ),
    _note(
        "HF066",
        "lockspace",
        "A lockspace's settings mean more than they say",
        "The table is used as it is; the facts say what it leads to.",
    ),
    _problem(
        "HF067",
        "lockspace",
        "Leases are on storage of this host alone",
        "Each host has a lockspace of its own, so two hosts start one VM. The shared storage may not be mounted.",
    ),
    _problem(
        "HF068",
        "watchdog",
        "Another program has the watchdog",
        "The device can be opened once. The lockspace is not joined, because nothing would reset this host.",
    ),
    _problem(
        "HF069",
        "lockspace",
        "Another host has this host's id",
        "Two hosts with one host id are never joined at once: this one waits until the other has left.",
    ),
    _problem(
        "HF070",
        "clock rate",
        "The clocks may be slewed too fast",
        "Hosts count each other's silence by their own clocks. A clock that runs fast lets a host take over too early.",
    ),
    _note(
        "HF071",
        "lease directory",
        "Files in a lease directory are no leases of its lockspace",
        "`holdfast lease gc` leaves them alone. They may be leases of another lockspace, or left from another program.",
    ),
    _note(
        "HF072",
        "leases",
        "Leases of deleted disks are never removed",
        "Without the timer they stay, and a device with an index runs full.",
    ),
    _problem(
        "HF073",
        "watchdog",
        "There is no watchdog device",
        "The lockspace is not joined, because nothing would reset this host when it hangs.",
    ),
    _note(
        "HF074",
        "lockspace",
        "A device of leases is not shown to be shared",
        "No other host was seen in its lockspace. If others don't see this device, each has a lockspace of its own.",
    ),
    _note(
        "HF075",
        "lockspace",
        "The records of a lockspace say another io_timeout than the configuration",
        "A host goes by its own `io_timeout_s`, and writes it into its record when it joins; others judge it by that. The "
        "first join of a host id waits by the greater of the two.",
    ),
    # --- disks of domains ---
    _problem(
        "HF080",
        "disks",
        "Shared storage under a lock that stays on this host",
        "Another host may start a VM with the same disk.",
    ),
    _problem(
        "HF081",
        "disks",
        "Less protection than `require_protection` demands",
        "Such VMs can't be started.",
    ),
    _problem(
        "HF082",
        "disk name",
        "A disk by another name than its own",
        "Locks that are named by the path are others for each name, so two VMs that have the disk by two names "
        "are not excluded.",
    ),
    _problem(
        "HF083",
        "unlocked disks",
        "Disks that libvirt never asks a lock for",
        "libvirt's lock plugin is asked for `file` and `block` disks (and `dir`, `volume` that lead to one). "
        "Network disks (rbd, iscsi, "
        "nbd, ...), `nvme`, `vhostuser` and the like are at protection level 0 with every lock manager. So are disks of a "
        "type that Holdfast does not know, as far as it can tell. Network disks that a rule names get a lease by "
        "libvirt's hook ([protection.md](protection.md#network-disks)): here is named which of them it has not asked for.",
    ),
    _note(
        "HF084",
        "disks",
        "Several domains have one disk",
        "The lock lets only one of them run. A copy that was meant to have a disk of its own does not.",
    ),
    _problem(
        "HF085",
        "disks",
        "A shareable disk is cached in this host's memory",
        "With another cache mode than `none` or `directsync`, VMs on several hosts read old data and overwrite "
        "each other's.",
    ),
    _problem(
        "HF086",
        "disks",
        "A disk is shareable in one domain and not in another",
        "The one that has it alone can't start while the other runs, and the other way round.",
    ),
    _note(
        "HF087",
        "disks",
        "Volumes whose path can't be determined",
        "libvirt translates `type='volume'` when the VM starts; doctor can't say which lock such a disk gets.",
    ),
    _note(
        "HF088",
        "disks",
        "Disks under a backend that locks nothing",
        "Driver `nop` is for disks that something else guards. Without that, two VMs may write one disk.",
    ),
    _note(
        "HF089",
        "beside disks",
        "Images below disks, data files, NVRAM and TPM state have no lock",
        "libvirt asks a lock for the top image of each disk. Two VMs may have one of these: images below are meant to be "
        "shared by readers, but a commit writes into them; a data file (`<dataStore>`), NVRAM and TPM state are meant for "
        "one VM. With the hook (docs/install.md), NVRAM and TPM state on a local file system are held for one.",
    ),
    # --- virtual machines that run ---
    _problem(
        "HF090",
        "running VM",
        "A VM runs without any lock",
        "It was started before the lock manager was in use. Another VM may be started on its disks.",
    ),
    _problem(
        "HF091",
        "running VM",
        "A running VM has a disk without a lock",
        "Another VM may be started on that disk.",
    ),
    _problem(
        "HF092",
        "running VM",
        "A lock is of another backend than the rules say now",
        "A VM keeps the lock that it took when it started. Hosts that ask the new backend don't see it: with "
        "leases in place of "
        "file locks, another host is granted the disk while this VM runs.",
    ),
    _problem(
        "HF093",
        "running VM",
        "A QEMU outside libvirt has a disk open",
        "No lock manager knows of it, and a VM with that disk may be started.",
    ),
    _note(
        "HF094",
        "migrations",
        "A migration that fails at the wrong moment leaves a gap",
        'With `migration_peers = "any"` a lock is released when libvirt says so, and taken back if the guest stays.',
    ),
    _problem(
        "HF095",
        "running VM",
        "libvirt's file about a running VM can't be read",
        "What it says is what doctor, `who` and the daemon know of the VM's disks.",
    ),
    _problem(
        "HF096",
        "running VM",
        "A running VM has its disk by path only",
        "Two paths to one disk have two leases. The lease of what the disk is excludes every path, and this VM does not "
        "have it: another host has, or it can't be taken. No VM is stopped for that. "
        "With driver lvm that is its guard's lease.",
    ),
    # --- hosts beside each other, the storage below ---
    _problem(
        "HF100",
        "fire timeout",
        "Watchdogs of a lockspace differ in their fire timeout",
        "A host that counts less than another one's watchdog takes would take over before that host is reset, so this "
        "host refuses starts until they agree.",
    ),
    _note(
        "HF102",
        "fire timeout",
        "Hosts don't say what their fire timeout is",
        "If it is longer than this host's, this host takes over before such a host is reset.",
    ),
    _note(
        "HF103",
        "host names",
        "Hosts of a lockspace have one name",
        "An order that names a host (`holdfast host fenced`) can't say which is meant.",
    ),
    _problem(
        "HF110",
        "LVM",
        "LVM activates volumes of a shared group on this host at boot",
        "An active volume can be opened by accident on two hosts, and a mounted one is destroyed.",
    ),
    _problem(
        "HF111",
        "multipath",
        "A multipath device queues requests while it has no path",
        "A write waits for ever and lands when the path comes back, perhaps after another host took over; the "
        "lease's own requests "
        "hang instead of failing.",
    ),
    _note(
        "HF120",
        "libvirt's lock plugin",
        "libvirt names disks by hashes, and they have leases",
        "Leases are those of the paths all the same, read from libvirt's status files. A disk that stands in no such file "
        "yet, one that is attached to a running VM or copied to, is refused.",
    ),
    # --- volumes of shared groups ---
    _problem(
        "HF130",
        "lvmlockd",
        "lvmlockd does not run",
        "No volume of a shared group can be activated or handed over. VMs that run go on.",
    ),
    _problem(
        "HF131",
        "lvmlockd",
        "lvmlockd was started without --adopt 1",
        "If it dies, the next one does not know the locks of the last one: no volume of this host is handed over or given "
        "up until the host has booted.",
    ),
    _note(
        "HF132",
        "lvmlockd",
        "lvmlockd has a short io_timeout",
        "At 1 s healthy hosts are reset; below 10 s a busy one may be. Shorter times make a takeover sooner, "
        "and nothing else.",
    ),
    _problem(
        "HF133",
        "LVM",
        "LVM's configuration has no host_id",
        "holdfastd can't tell this host's lock on a volume from others', so it lets no VM arrive.",
    ),
    _note(
        "HF134",
        "LVM",
        "LVM has no command for a group whose locks are lost",
        "sanlock's watchdog resets the whole host then, also where stopping a few VMs would do. Not said of groups with "
        "lock type dlm: that command is sanlock's, and what ends a host which dlm has lost is the cluster's fencing.",
    ),
    _problem(
        "HF135",
        "libvirt's hook",
        "Driver lvm is configured, and libvirt's hook is not installed",
        "libvirt looks for a VM's device before it asks for a lock, and only the hook can activate it before that.",
    ),
    _problem(
        "HF136",
        "libvirt's hook",
        "Another hook activates volumes as well",
        "libvirt-hook-lvmlock and its like deactivate at a VM's end what driver lvm needs, and hold exclusively what it "
        "shares for a migration.",
    ),
    _problem(
        "HF137",
        "libvirt's lock plugin",
        "libvirt names volumes by hashes",
        "Driver lvm locks volumes by their paths; a name in a lockspace is refused, so no such VM starts.",
    ),
    _problem(
        "HF138",
        "storage pools",
        "A storage pool of libvirt's activates a shared group",
        "The host that starts it takes every volume that is free, and no VM with these starts on another host.",
    ),
    _note(
        "HF139",
        "disks",
        "A disk is named by its device-mapper path",
        "It is the same volume, and a rule that matches /dev/VG/* does not see that.",
    ),
    _note(
        "HF140",
        "disks",
        "A VM's volume can be active on one host alone",
        "A live migration of that VM is refused by its target.",
    ),
    _problem(
        "HF141",
        "running VMs",
        "A VM runs on a volume without LVM's lock",
        "Another host may activate it and write to it.",
    ),
    _note(
        "HF142",
        "volumes",
        "A volume is active without a VM",
        "No other host can have it. A volume of a program, or one that an operator has activated, is meant to be so.",
    ),
    _note(
        "HF143",
        "libvirt's hook",
        "libvirt may not have found the hook yet",
        "libvirt finds its hooks when it starts. One that has found none activates no volume for a VM, so none starts. A "
        "restart of it touches no VM; where the file was only replaced by a newer one, none is needed.",
    ),
)

RULES = {rule.id: rule for rule in _ALL}


def page_of(rule: Rule) -> str:
    """The rule's part of docs/doctor.md."""
    return f"### {rule.id} {rule.title}\n\n{rule.severity}, `{rule.check}`. {rule.why}\n"
