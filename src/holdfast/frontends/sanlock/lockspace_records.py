"""Lockspaces and hosts as sanlock's clients see them: lists and state records (sanlock-socket.md 2.6, 2.9). No decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.frontends.sanlock.engine_ports import DaemonFacts, LockspaceView, Uses
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.protocol.host_status import HostState as Seen
from holdfast.protocol.host_status import HostView
from holdfast.supervision.named_lockspace import Standing
from holdfast.supervision.renewal import RenewalTimes
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import HostFlag, HostState, LockspaceFlag
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.state_records import NO_CAW, VERSION_3_8_5, RecordType, StateRecord, key_words

_LISTED = {Standing.JOINED: "spaces", Standing.ADDING: "add", Standing.REMOVING: "rem"}
_FLAG = {Standing.JOINED: 0, Standing.ADDING: LockspaceFlag.ADD, Standing.REMOVING: LockspaceFlag.REM}
_ORDER_OF_STATUS = (Standing.JOINED, Standing.ADDING, Standing.REMOVING)
_ORDER_OF_LIST = (Standing.JOINED, Standing.REMOVING, Standing.ADDING)
SANLOCKS_OK = 1
"""How sanlock writes that a request to storage succeeded."""
SH_RETRIES = 8
MAX_SECTORS_KB = 1024
WRITE_INIT_IO_TIMEOUT_S = 60
WORKER_THREADS = 8


def cut_name(text: str) -> PaddedName:
    """A name of any length in the field that records have for it."""
    raw = text.encode("utf-8", "surrogateescape").split(b"\0", 1)[0][:NAME_BYTES]
    return PaddedName(raw.ljust(NAME_BYTES, b"\0"))


def lockspace_of(view: LockspaceView) -> s.Lockspace:
    flags = int(_FLAG[view.standing]) | (LockspaceFlag.NO_TIMEOUT if view.no_timeout else 0)
    return s.Lockspace(cut_name(view.name), view.host_id, flags, s.Disk(view.path, view.offset_bytes))


def listed(views: Iterable[LockspaceView]) -> tuple[s.Lockspace, ...]:
    """GET_LOCKSPACES': joined ones, those that are being removed, those that are being added; each newest first."""
    return tuple(lockspace_of(view) for _, view in _ordered(views, _ORDER_OF_LIST))


def _ordered(
    views: Iterable[LockspaceView], standings: Sequence[Standing]
) -> list[tuple[int, LockspaceView]]:
    """With their numbers, from 1. Those that end together are the oldest first, as sanlock moves its newest first."""

    def place(each: tuple[int, LockspaceView]) -> tuple[int, int]:
        number, view = each
        return standings.index(view.standing), number if view.standing is Standing.REMOVING else -number

    return sorted(enumerate(views, 1), key=place)


# --- hosts ---


def host_of(view: HostView) -> s.Host:
    """One host as GET_HOSTS shows it."""
    flags = int(HostState[view.state.name])
    if view.state is Seen.DEAD:
        flags |= HostFlag.DEAD_EXT if view.marked_by is not None else HostFlag.DEAD_BY_TIME
    timestamp = view.timestamp.written if view.timestamp is not None else 0
    return s.Host(view.host_id, view.generation or 0, timestamp, view.io_timeout_s, flags)


def never_seen(host_id: int) -> s.Host:
    """A host id that no host has used."""
    return s.Host(host_id, 0, 0, 0, HostState.FREE)


def host_record(view: HostView, own_host_id: int, version: int) -> StateRecord:
    """HOST_STATUS's, as that version of sanlock has it. `own_host_id`: of this host in the lockspace."""
    timestamp = view.timestamp.written if view.timestamp is not None else 0
    live = view.changed_at if view.changed_at is not None else view.unchanged_since
    checked = (view.unchanged_since or 0.0) + view.unchanged_s
    generation, marked_by = view.generation or 0, view.marked_by
    words: dict[str, object] = {
        "last_check": int(checked),
        "last_live": int(live or 0.0),
        "last_req": 0,
        "owner_id": view.host_id,
        "owner_generation": generation,
        "timestamp": timestamp,
        "io_timeout": view.io_timeout_s,
        "no_timeout": int(view.no_timeout),
        "dead_ext": int(marked_by is not None),
        "found_dead_ext_gen": generation if marked_by is not None else 0,
        "wrote_dead_ext_gen": generation if marked_by is not None and marked_by[0] == own_host_id else 0,
        "host_flags": f"0x{host_of(view).flags:x}",
        "host_state": view.state.name,
        "owner_name": view.name,
    }
    return StateRecord(
        RecordType.HOST,
        data32=view.host_id,
        data64=timestamp,
        text=key_words(RecordType.HOST, words, version),
    )


def renewal_record(renewal: RenewalTimes) -> StateRecord:
    """RENEWAL's."""
    return StateRecord(
        RecordType.RENEWAL,
        data64=renewal.timestamp,
        text=key_words(RecordType.RENEWAL, dict(renewal._asdict()), VERSION_3_8_5),  # as in all later ones
    )


# --- STATUS ---


def lockspace_records(
    views: Sequence[LockspaceView], uses: dict[str, Uses], version: int
) -> tuple[StateRecord, ...]:
    """As that version of sanlock has them, in its order: joined, being added, being removed; numbered as they were added."""
    return tuple(
        _lockspace_record(number, view, uses.get(view.name, Uses()), version)
        for number, view in _ordered(views, _ORDER_OF_STATUS)
    )


def _lockspace_record(number: int, view: LockspaceView, uses: Uses, version: int) -> StateRecord:
    words: dict[str, object] = {
        "list": _LISTED[view.standing],
        "space_id": number,
        "version": f"0x{view.version:08x}",
        "io_timeout": view.io_timeout_s,
        "sector_size": view.geometry.sector_bytes if view.geometry else 0,
        "align_size": view.geometry.align_bytes if view.geometry else 0,
        "host_generation": view.generation,
        "renew_fail": int(view.renewal_fails),
        "space_dead": int(view.failing),
        "killing_pids": int(view.failing),
        "used_retries": 0,
        "external_used": int(uses.used),
        "used_by_orphans": int(uses.used_by_orphans),
        "no_timeout": int(view.no_timeout),
        "no_watchdog": 0,  # a lockspace without the daemon's watchdog is refused
        **NO_CAW,
        "renewal_read_extend_sec": view.io_timeout_s,
        "set_max_sectors_kb": 0,
        "corrupt_result": view.corrupt_result,
        "acquire_last_result": SANLOCKS_OK if view.acquired_at_s else 0,
        "renewal_last_result": int(Result.ERROR) if view.renewal_fails else SANLOCKS_OK,
        "acquire_last_attempt": view.acquired_at_s,
        "acquire_last_success": view.acquired_at_s,
        "renewal_last_attempt": view.renewal_began_at_s,
        "renewal_last_success": view.renewed_at_s,
    }
    return StateRecord(
        RecordType.LOCKSPACE,
        data64=view.host_id,
        name=cut_name(view.name),
        text=key_words(RecordType.LOCKSPACE, words, version),
        attached=lockspace_of(view),
    )


def daemon_record(facts: DaemonFacts, now_s: int) -> StateRecord:
    """The first one of STATUS. What Holdfast has no setting for is said as sanlock's default is."""
    version = ".".join(str(facts.version >> shift & 0xFF) for shift in (24, 16, 8))
    words: dict[str, object] = {
        "our_host_name": facts.host_name,
        "use_watchdog": int(facts.use_watchdog),
        "high_priority": 0,
        "mlock_level": 1,
        "quiet_fail": 1,
        "debug_renew": 0,
        "debug_hosts": 1,
        "debug_clients": 0,
        "debug_cmds": "0x0",
        "renewal_history_size": facts.renewal_history,
        "gid": facts.gid,
        "uid": facts.uid,
        "sh_retries": SH_RETRIES,
        "max_sectors_kb_ignore": 0,
        "max_sectors_kb_align": 0,
        "max_sectors_kb_num": MAX_SECTORS_KB,
        "max_worker_threads": WORKER_THREADS,
        "num_worker_threads": WORKER_THREADS,
        "use_hugepages": "all",
        "write_init_io_timeout": WRITE_INIT_IO_TIMEOUT_S,
        "use_aio": 1,
        "kill_grace_seconds": facts.kill_grace_s,
        "helper_pid": facts.helper_pid,
        "helper_kill_fd": -1,
        "helper_full_count": 0,
        "helper_last_status": 0,
        "monotime": now_s,
        "version_str": version,
        "version_num": version,  # as sanlock, in spite of its name
        "version_hex": f"{facts.version:08x}",
        "smproto_hex": "00000001",
        "io_timeout": facts.io_timeout_s,
        "use_compare_and_write": "no",
        "watchdog_fire_timeout": facts.fire_timeout_s,
        "create_delta_34": 1,
        "create_delta_40": 0,
        "create_paxos_64": 1,
    }
    return StateRecord(
        RecordType.DAEMON,
        name=cut_name(facts.host_name),
        text=key_words(RecordType.DAEMON, words, facts.version),
    )
