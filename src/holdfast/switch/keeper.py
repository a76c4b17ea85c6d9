"""The keeper: has locks and connections of a virtlockd that has ended, until holdfastd takes them.

It is a service of its own (`systemd-run`), for virtlockd's unit ends with virtlockd, and holdfastd's begins after that: both
have libvirt's socket. Descriptors come before anything is converted: whatever is converted by the time that the
program in virtlockd's place ends, also by kill -9, stays, and the keeper takes the rest if nobody else has.

    the program: keep (state file, descriptors) ─► keeper      kept; then: converted, or its end ─► keeper confirms each lock
    holdfastd:   fetch ─► keeper      state of a re-exec, descriptors ─► holdfastd has them in systemd's store: taken ─► ends
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace

from holdfast.switch import place
from holdfast.switch.as_reexec import Facts, as_reexec, users
from holdfast.switch.lock_conversion import RIVAL_TRIES, TRY_PAUSE_S, Converted, ProcessLock, confirm
from holdfast.switch.virtlockd_state import STATE_BYTES_MAX, Unusable, VirtlockdState, decode
from holdfast.system.files.ofd_lock import key_of
from holdfast.system.files.process_locks import KernelRecordLocks
from holdfast.system.host import fd_messages
from holdfast.system.host.descriptors import HELD_SIGNALS, encode_state
from holdfast.system.host.process import boot_id, host_name, start_ticks

IDLE_S = 600.0
"""A keeper that got nothing by then is of a switch that was given up."""


@dataclass(slots=True)
class Kept:
    """What is kept: virtlockd's state, its descriptors by number there and here, and what the locks are."""

    pid: int
    state: VirtlockdState
    fds: dict[int, int]
    facts: Facts
    """As they were when it was given: a VM may end, and its pid have another process, before all is fetched."""
    found: dict[int, Converted] | None = None


def facts(backend: str, keys_of: dict[int, int]) -> Facts:
    """`keys_of`: descriptors here by virtlockd's numbers."""
    keys = {fd: key_of(os.fstat(here)) for fd, here in keys_of.items()}
    return Facts(boot_id(), host_name(), backend, time.time(), start_ticks, keys)


def results(state: VirtlockdState, found: dict[int, Converted]) -> list[place.LockResult]:
    """For people; by virtlockd's descriptors."""
    made = []
    for lock in state.locks:
        each = found[lock.fd]
        mode = each.mode.word if each.mode is not None else ""
        resource = lock.path or str(lock.resource)
        made.append(place.LockResult(resource, users(state, lock.owners), lock.mode.word, mode, each.why))
    return made


def main() -> int:
    """Serve until holdfastd has everything."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # a stop would end locks of VMs that run
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.KEEPER)
    os.makedirs(place.DIRECTORY, mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(place.KEEPER)
    listener.listen(8)
    kept: Kept | None = None
    while kept is None or kept.found is not None:
        if kept is None and not select.select([listener], [], [], IDLE_S)[0]:
            break
        client, _ = listener.accept()
        with client:
            try:
                done, kept = _serve(client, kept)
            except OSError as e:
                done = False
                _say(f"a client went: {e}")
            except Exception as e:
                if kept is None:
                    raise  # the other end of it goes back
                done = False  # whatever it is: locks end with this process
                _say(f"a client is not served: {type(e).__name__}: {e}")
        if done:
            break
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.KEEPER)
    return 0


def _serve(client: socket.socket, kept: Kept | None) -> tuple[bool, Kept | None]:
    """One client; whether this was the last one, and what is kept now."""
    message = fd_messages.receive(client)
    if message is None:
        return False, kept
    header, fds = message
    if header["kind"] == "keep" and kept is None:
        new = _kept(header, fds)
        if new is not None:
            return False, _until_converted(client, new)
    elif header["kind"] == "fetch" and kept is not None and kept.found is not None:
        return _fetched(client, kept), kept
    elif header["kind"] == "ask" and kept is not None:
        fd_messages.send(client, {"kind": "has"})
        return False, kept
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    fd_messages.send(client, {"kind": "nothing"})
    return False, kept


def _until_converted(client: socket.socket, kept: Kept) -> Kept | None:
    """Waits for the end of the conversion, or of who converts; None if that one goes back to virtlockd."""
    answer = None
    with contextlib.suppress(OSError):
        fd_messages.send(client, {"kind": "kept"})
        answer = fd_messages.receive(client)
    if answer is not None and answer[0]["kind"] == "back":
        for fd in kept.fds.values():
            os.close(fd)
        after = None
    else:
        kept.found = _confirmed(kept)
        made = results(kept.state, kept.found)
        for each in made:
            if not each.mode:
                _say(f"LOCK LOST: {each}")
            elif each.mode != each.wanted:
                _say(f"LOCK IN DOUBT: {each}")
        _say(
            f"{len(made)} locks of virtlockd's (pid {kept.pid}) are here until holdfastd runs: holdfast setup; don't kill "
            "this"
        )
        try:
            place.write(place.RESULT, place.Result(kept.pid, "kept", locks=made))
        except OSError as e:  # what is kept does not depend on it
            _say(f"{place.RESULT} can't be written: {e.strerror}")
        after = kept
    with contextlib.suppress(OSError):
        fd_messages.send(client, {"kind": "done"})
    return after


def _kept(header: dict[str, object], fds: list[int]) -> Kept | None:
    pid = int(str(header["pid"]))
    state = decode(fd_messages.read_memory_file(fds[0], STATE_BYTES_MAX), pid)
    if isinstance(state, Unusable):
        return None
    here = dict(zip(passed(state), fds[1:], strict=True))
    found = facts(str(header["backend"]), {each.fd: here[each.fd] for each in state.locks})
    pids = {pid for each in state.locks for pid in each.owners} | {each.pid for each in state.clients}
    ticks = {each: start_ticks(each) for each in pids if each}
    return Kept(pid, state, here, replace(found, start_ticks=lambda pid: ticks.get(pid, 0)))


def passed(state: VirtlockdState) -> list[int]:
    """The descriptors that a keeper gets, in this order."""
    return [*(each.fd for each in state.locks), *(each.fd for each in state.clients)]


def _confirmed(kept: Kept) -> dict[int, Converted]:
    """Takes what can be had of each lock, by its copy here."""
    locks = KernelRecordLocks()
    found: dict[int, Converted] = {}
    for _ in range(RIVAL_TRIES):
        for lock in kept.state.locks:
            if lock.fd not in found or not found[lock.fd].is_whole:
                found[lock.fd] = confirm(ProcessLock(kept.fds[lock.fd], (0, 0), lock.mode), locks)
        if all(each.is_whole for each in found.values()):
            break
        time.sleep(TRY_PAUSE_S)
    return found


def _fetched(client: socket.socket, kept: Kept) -> bool:
    order = passed(kept.state)
    numbers = {fd: number for number, fd in enumerate(order)}
    reexec = as_reexec(kept.state, kept.facts, numbers, listens=False)
    memory = fd_messages.memory_file(encode_state(reexec), "holdfast-switch")
    try:
        fd_messages.send(client, {"kind": "state"}, [memory, *(kept.fds[fd] for fd in order)])
    finally:
        os.close(memory)
    answer = fd_messages.receive(client)
    return answer is not None and answer[0]["kind"] == "taken"


def _say(text: str) -> None:
    print(f"holdfast: {text}", file=sys.stderr, flush=True)
