"""The configuration in force, kept in RUN_DIR beside the journal, and the choice of one at a start.

A start with locks of this boot must not stop protecting them because a file was edited meanwhile. So each start and reload
first keeps the configuration that it works with, and the next start chooses:

    on disk                                               locks held     in force
    can't be used (not TOML, a key of another version)    none           nothing: the start ends with the reason
    can't be used                                         some           the kept one; red in `status` and `doctor`
    lacks what held locks need (`config_change`)          some           the kept one; red in `status` and `doctor`
    anything else                                                        the one on disk

A journal that is damaged, missing or of another boot beside a kept configuration of this boot may have held anything: it
counts as "some" (ADR 0137).
The file (`kept_file`) is read leniently, as another version of the program may have written it. A file that can't be used
is reported and ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from holdfast import config as configuration
from holdfast.backends.paxos.config import LIBVIRT_LOCKSPACE
from holdfast.config import Config
from holdfast.config_change import ABSENT, USERS_NAMED_MAX, HeldNeed, differences, same_backend
from holdfast.daemon import kept_file
from holdfast.daemon.check_config import problems_of
from holdfast.daemon.handover import Before, may_hold_leases
from holdfast.daemon.kept_file import encode, kept_path, run_dir_of
from holdfast.daemon.system_ports import lease_host_ports
from holdfast.errors import ConfigError, UnknownKey
from holdfast.manager.journal_replay import SavedClaims, SavedState, replay, replay_with_extent
from holdfast.model import IDENTITY_LOCKSPACE, OwnerName
from holdfast.supervision.incarnation_copies import IncarnationCopies
from holdfast.system.files.daemon_lock import RUN_LOCK, claimed_last_ns
from holdfast.system.files.fixed_record import SystemFixedRecord
from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.files.state_file import StatePort
from holdfast.system.host.descriptors import Inherited
from holdfast.system.host.process import boot_id

JOURNAL_BYTES_MAX = 256 << 20
"""As much as a re-exec state may have; a larger one counts as damaged."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A configuration that was in force in this boot.

    `renamed`: tables that the journal may still call by an earlier name; `dropped`: keys that this version does not know or
    can't use any more. `text` has all of it.
    """

    config: Config
    text: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The configuration and facts for a start.

    `file`: from the command line; `kept_because`: why the configuration on disk is not in force; `renamed`: present names
    of the journal's backends; `leases_held`: leases of this boot are held, or may be; `daemon_was_here`: a daemon of this
    boot has kept its configuration.
    """

    config: Config
    file: str | None = None
    kept_because: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    leases_held: bool = False
    daemon_was_here: bool = False
    kept_text: str = ""

    def before(self, boot: str) -> Before:
        """The input for the object graph. A kept configuration is passed on unchanged, with keys this version can't use."""
        return Before(
            renamed=self.renamed,
            leases_held=self.leases_held,
            daemon_was_here=self.daemon_was_here,
            configuration=self.kept_text or encode(self.config, boot, self.renamed),
        )


# --- the file, as this version can use it ---


def decode(text: str, name: str, boot: str) -> Kept | Unreadable:
    """The configuration from a text of `kept_file.encode`, perhaps of another version."""
    written = kept_file.decode(text, name, boot)
    if isinstance(written, Unreadable):
        return written
    config, dropped = written.config, list(written.dropped)
    while unusable := problems_of(config):
        problem = unusable[0]
        backends = {each: dict(table) for each, table in config.backend.items()}
        at_fault = [
            each
            for each in backends
            if problem.facts["key"] in (f"backend.{each}", f"backend.{each}.driver", f"backend.{each}.guard")
        ]
        if not at_fault or len(dropped) >= configuration.DROPPED_KEYS_MAX:
            return Unreadable(str(problem))
        if isinstance(problem, UnknownKey):
            configuration.drop_key({"backend": backends}, problem.place)
        else:
            backends[at_fault[0]] = {"driver": ABSENT, "reason": str(problem.facts["reason"])}
        dropped.append(str(problem))
        config = msgspec.structs.replace(config, backend=backends)
    return Kept(config, text, written.renamed, tuple(dropped))


def load(run_dir: str, boot: str) -> Kept | Unreadable:
    text = kept_file.read(run_dir)
    return text if isinstance(text, Unreadable) else decode(text, kept_path(run_dir), boot)


def in_force(file: str | None) -> Config | None:
    """The kept configuration, for commands whose configuration on disk can't be used."""
    found = load(run_dir_of(file), boot_id())
    return found.config if isinstance(found, Kept) else None


# --- the choice ---


def choose(
    file: str | None, config: Config | None, problems: list[ConfigError], inherited: Inherited
) -> Start | None:
    """The configuration for a start; None if that on disk can't be used and there is no reason to use the kept one."""
    boot = boot_id()
    usable = config if config is not None and not problems else None
    run_dir = usable.run_dir if usable is not None else run_dir_of(file)
    kept: Kept | Unreadable = Unreadable("", missing=True)
    if inherited.reexec is not None and inherited.reexec.configuration:
        kept = decode(inherited.reexec.configuration, "the last program's configuration", boot)
    if isinstance(kept, Unreadable):
        kept = load(run_dir, boot)
        if isinstance(kept, Kept) and usable is not None and is_older_than_the_last_daemon(run_dir):
            kept = Unreadable("a daemon of a release that keeps none has run since it was written")
    return decide(
        usable,
        problems,
        kept,
        file=file,
        boot=boot,
        journal=lambda config: _journal(config, inherited),
        copies=lambda config: lease_host_ports((config.state_dir, config.run_dir)).incarnation_files,
    )


def decide(
    usable: Config | None,
    problems: Sequence[ConfigError],
    kept: Kept | Unreadable,
    *,
    file: str | None,
    boot: str,
    journal: Callable[[Config], SavedState],
    copies: Callable[[Config], Callable[[str], Sequence[StatePort]]],
) -> Start | None:
    """As `choose`, with the files read already: `usable` is the configuration on disk, None if it has these problems.

    `journal` reads the journal that a configuration names; `copies` has the incarnation files that it names, by lockspace.
    """
    if isinstance(kept, Unreadable):
        if usable is None:
            return None
        remarks = () if kept.missing else (f"{kept_path(usable.run_dir)} is ignored: {kept.reason}",)
        leases_held = may_hold_leases(journal(usable), boot)
        return Start(config=usable, file=file, remarks=remarks, leases_held=leases_held)
    saved = journal(kept.config)
    held = held_in(saved, kept, boot, copies(kept.config))
    leases_held = may_hold_leases(saved, boot) or saved.boot != boot
    because = (
        [str(problem) for problem in problems] if usable is None else differences(kept.config, usable, held)
    )
    if usable is None and not held:
        return None
    if because:
        return Start(
            config=msgspec.structs.replace(kept.config, sources=(kept_path(kept.config.run_dir),)),
            file=file,
            kept_because=tuple(because),
            remarks=kept.dropped,
            renamed=kept.renamed,
            kept_text=kept.text,
            leases_held=leases_held,
            daemon_was_here=True,
        )
    assert usable is not None
    return Start(
        config=usable,
        file=file,
        renamed=_renamed(kept, usable),
        leases_held=leases_held,
        daemon_was_here=True,
    )


def may_hold_locks(config: Config, inherited: Inherited) -> bool:
    """Whether a start with this configuration finds locks of this boot, or can't exclude them."""
    saved = _journal(config, inherited)
    if not saved.is_whole:
        # A journal is missing where no daemon of this boot has run yet, too.
        return not isinstance(load(config.run_dir, boot_id()), Unreadable)
    return saved.boot == boot_id() and bool(saved.locks)


def is_older_than_the_last_daemon(run_dir: str) -> bool:
    """Whether a daemon has started that did not keep its configuration. Each one writes its pid first, then that."""
    try:
        kept_ns = os.lstat(kept_path(run_dir)).st_mtime_ns
    except OSError:
        return False
    return kept_ns < claimed_last_ns(f"{run_dir}/{RUN_LOCK}")


def _renamed(kept: Kept, new: Config) -> dict[str, str]:
    """Backend names that a journal of this boot may have, with their present names."""
    places = same_backend(kept.config, new)
    earlier = {
        old: places.get(name, name) for old, name in kept.renamed.items() if old not in kept.config.backend
    }
    every = {**earlier, **places}
    return {old: name for old, name in every.items() if old != name}


def _journal(config: Config, inherited: Inherited) -> SavedState:
    if inherited.reexec is not None:
        return replay(inherited.reexec.journal)
    raw = read_regular(config.journal_path, JOURNAL_BYTES_MAX)
    if isinstance(raw, Unreadable):
        return SavedState(damage=raw.reason)
    return replay_with_extent(raw, SystemFixedRecord(config.extent_path).read())


def held_in(
    state: SavedState, kept: Kept, boot: str, files: Callable[[str], Sequence[StatePort]]
) -> list[HeldNeed]:
    """The needs of a journal's locks, beside a kept configuration of this boot; a journal that is not whole may have had
    locks of every backend.
    """
    config = kept.config
    if state.is_whole and state.boot != boot:
        state = SavedState()  # stale: it is not of the daemon that has kept this configuration
    locks: dict[str, list[SavedClaims]] = {}
    for lock in state.locks.values():
        locks.setdefault(kept.renamed.get(lock.backend, lock.backend), []).append(lock)
    needs = [
        HeldNeed(
            backend=name,
            count=len(found),
            users=tuple(_user(state, lock) for lock in found[:USERS_NAMED_MAX]),
            host_id=_last_host_id(state, config, name, boot, files),
        )
        for name, found in ((name, _by_path(locks)) for name, locks in locks.items())
    ]
    if not state.is_whole:
        needs += [
            HeldNeed(backend=name, count=0, host_id=_last_host_id(state, config, name, boot, files))
            for name in config.backend
            if name not in locks
        ]
    return needs


def _by_path(locks: list[SavedClaims]) -> list[SavedClaims]:
    """The locks as people count them: those of identities go with their paths."""
    paths = [
        lock
        for lock in locks
        if any(name.lockspace != IDENTITY_LOCKSPACE for names in lock.claims.values() for name in names)
    ]
    return paths or locks


def _user(state: SavedState, lock: SavedClaims) -> str:
    for owner_id, names in lock.claims.items():
        owner = state.owners.get(owner_id)
        for resource in names:
            return user_text(owner.name if owner is not None else None, str(resource))
    return lock.path


def user_text(owner: OwnerName | None, resource: str) -> str:
    """One user of a lock, as refusals name it."""
    if owner is None:
        return resource
    return f"{'VM ' if owner.uuid else ''}{owner.name}: {resource}"


def _last_host_id(
    state: SavedState,
    config: Config,
    backend: str,
    boot: str,
    files: Callable[[str], Sequence[StatePort]],
) -> int | None:
    """This host's id in a backend's lockspace, from any copy of its incarnation; None if there is none."""
    table = config.backend.get(backend, {})
    if table.get("driver") != "paxos":
        return None
    name = table.get("lockspace", LIBVIRT_LOCKSPACE)
    carried = state.incarnations.get(name)
    term = IncarnationCopies(name, files(name), lambda: [] if carried is None else [carried]).newest(boot)
    return term.host_id if term is not None else None
