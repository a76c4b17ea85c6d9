"""`holdfast-virtlockd-switch`: the program that stands in virtlockd's place when that re-executes itself (ADR 0211).

It has virtlockd's pid, its descriptors and its POSIX locks, and nothing else opens or closes a file of a lock here before
they are converted. Then it executes holdfastd, or gives everything to a keeper and ends. If anything is not as it should be,
the real virtlockd is executed with its state file as it was: so it is too where nobody has ordered a switch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import NoReturn

from holdfast.model import Mode
from holdfast.switch import keeper, left_behind, place
from holdfast.switch.as_reexec import Facts, as_reexec
from holdfast.switch.lock_conversion import TRY_PAUSE_S, Converted, ProcessLock, WentBack, convert, revert
from holdfast.switch.virtlockd_state import STATE_BYTES_MAX, STATE_FILE, Unusable, VirtlockdState, decode
from holdfast.system.files.process_locks import KernelRecordLocks
from holdfast.system.files.regular_file import Unreadable, read_regular
from holdfast.system.host import fd_messages
from holdfast.system.host.descriptors import HELD_SIGNALS, exec_with

KEEPER_S = 30.0
"""Within which a keeper answers: it has one client at a time."""
CHECK = "--holdfast-check"
"""An option that virtlockd does not have: to say that this program can run here."""


def main() -> int:
    if sys.argv[1:] == [place.KEEP]:
        return keeper.main()
    if sys.argv[1:] == [CHECK]:
        return 0
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    plan = place.read_plan()
    try:
        why = _switch(plan)
    except Exception as e:  # whatever it is: virtlockd goes on, if its locks are still its own
        why = f"{type(e).__name__}: {e}"
    return _execute_virtlockd(plan, why, before)


def _switch(plan: place.Plan | None) -> str:
    """Does not return after a switch; else returns why virtlockd has to go on. Its locks are its own then."""
    if plan is None or plan.pid != os.getpid() or not plan.is_ordered():
        return "no switch is ordered for this process"
    raw = read_regular(STATE_FILE, STATE_BYTES_MAX)
    if isinstance(raw, Unreadable):
        return f"{STATE_FILE}: {raw.reason}"
    state = decode(raw, os.getpid())
    if isinstance(state, Unusable):
        return f"{STATE_FILE} can't be gone by: {state.reason}"
    try:
        wanted = [_process_lock(each.fd, each.mode) for each in state.locks]
        for client in state.clients:
            os.fstat(client.fd)
        facts = keeper.facts(plan.backend, {each.fd: each.fd for each in state.locks})
    except OSError as e:
        return f"a descriptor of {STATE_FILE} can't be used: {e.strerror}"
    try:
        left_behind.write(state, facts, os.getpid())
        place.write(place.RESULT, place.Result(os.getpid(), "begun", locks=left_behind.as_before(state)))
    except OSError as e:
        return f"{place.DIRECTORY} can't be written: {e.strerror}"
    if plan.command:
        return _become_holdfastd(plan, raw, state, wanted, facts)
    return _give_to_keeper(plan, raw, state, wanted)


def _process_lock(fd: int, mode: Mode) -> ProcessLock:
    found = os.fstat(fd)
    return ProcessLock(fd, (found.st_dev, found.st_ino), mode)


def _converted(
    state: VirtlockdState, wanted: list[ProcessLock], locks: KernelRecordLocks
) -> dict[int, Converted] | str:
    found = convert(wanted, locks, spare=state.spare, pause=lambda: time.sleep(TRY_PAUSE_S))
    if isinstance(found, WentBack):
        for fd in found.weaker:
            _say(f"descriptor {fd} has a shared lock now, since somebody else has one too")
        return found.why
    return {each.fd: each for each in found}


def _become_holdfastd(
    plan: place.Plan, raw: bytes, state: VirtlockdState, wanted: list[ProcessLock], facts: Facts
) -> str:
    """Where there is no service manager: the same process becomes holdfastd."""
    if len(state.listeners) != 1:
        return f"virtlockd has {len(state.listeners)} sockets of its protocol, not one"
    if not os.access(plan.command[0], os.X_OK):
        return f"{plan.command[0]} can't be executed"
    passed = _inheritable()
    locks = KernelRecordLocks()
    found = _converted(state, wanted, locks)
    if isinstance(found, str):
        return found
    made = keeper.results(state, found)
    for each in made:
        if each.mode != each.wanted:
            _say(f"LOCK IN DOUBT: {each}")
    try:
        place.write(place.RESULT, place.Result(os.getpid(), "holdfastd", locks=made))
        with contextlib.suppress(OSError):
            place.remove(plan.target)
        os.unlink(STATE_FILE)
        reexec = as_reexec(state, facts)
        _close_on_exec(passed)
        exec_with(reexec, plan.command[0], plan.command, os.environ)
        why = "it was not executed"
    except OSError as e:
        why = f"{plan.command[0]} can't be executed: {e}"
    for fd in passed:  # virtlockd's again
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, True)
    return _revert(why, raw, state, wanted, locks)


def _give_to_keeper(plan: place.Plan, raw: bytes, state: VirtlockdState, wanted: list[ProcessLock]) -> str:
    """Under a service manager: all goes to the keeper, and this process ends."""
    locks = KernelRecordLocks()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(KEEPER_S)
        try:
            sock.connect(place.KEEPER)
            memory = fd_messages.memory_file(raw, "virtlockd-state")
            header = {"kind": "keep", "pid": os.getpid(), "backend": plan.backend}
            fd_messages.send(sock, header, [memory, *keeper.passed(state)])
            answer = fd_messages.receive(sock)
        except OSError as e:
            return f"the keeper does not answer: {e}"
        if answer is None or answer[0]["kind"] != "kept":
            return "the keeper takes nothing"
        sock.settimeout(None)  # from here on only its end means that it takes no lock
        found = _converted(state, wanted, locks)
        if isinstance(found, str):
            _ask(sock, "back")
            return found
        if not _ask(sock, "converted"):
            return _revert("the keeper has ended", raw, state, wanted, locks)
    with contextlib.suppress(OSError):
        os.unlink(STATE_FILE)
    with contextlib.suppress(OSError):
        place.remove(plan.target)
    _say("locks and connections are at the keeper until holdfastd starts")
    os._exit(0)


def _ask(sock: socket.socket, kind: str) -> bool:
    """False if the keeper has ended."""
    try:
        fd_messages.send(sock, {"kind": kind})
        return fd_messages.receive(sock) is not None
    except OSError:
        return False


def _revert(
    why: str, raw: bytes, state: VirtlockdState, wanted: list[ProcessLock], locks: KernelRecordLocks
) -> str:
    """virtlockd's own locks and state file again."""
    weaker = set(revert(wanted, locks))
    for each in state.locks:
        if each.fd in weaker:
            _say(f"{each.path} is not locked exclusively by virtlockd any more: somebody else has it too")
    fd = os.open(STATE_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o700)
    with os.fdopen(fd, "wb") as f:
        f.write(raw)
    return why


def _inheritable() -> list[int]:
    """What virtlockd has passed on."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _close_on_exec(fds: Iterable[int]) -> None:
    """What holdfastd gets is made inheritable by the exec itself; whatever else virtlockd had ends with that."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)


def _execute_virtlockd(plan: place.Plan | None, why: str, mask: Iterable[int]) -> NoReturn:
    """The real one, as if nothing had been: same arguments, same descriptors, same signals."""
    _say(f"the real virtlockd is executed: {why}")
    ours = plan is not None and plan.pid == os.getpid()  # else these files are of another process's switch
    if ours:
        with contextlib.suppress(OSError):
            place.write(place.RESULT, place.Result(os.getpid(), "back", why))
    target = plan.target if plan is not None else os.path.realpath(sys.argv[0])
    real = place.REAL
    try:
        place.remove(target)
        real = target
    except OSError as e:
        _say(f"{target}: {e.strerror}; going by {real}")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    if ours:
        with contextlib.suppress(OSError):
            left_behind.remove()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.execv(real, sys.argv)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"holdfast: {text}", file=sys.stderr, flush=True)
