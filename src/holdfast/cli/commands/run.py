"""`holdfast run`: hold disks as long as a command, or anything that it has started, runs.

The owner is neither this process nor the command, but a *keeper* between them. It is a subreaper: whatever the command
starts stays its descendant, however often it forks into the background. It ends when the last of them has.

    holdfast ── fork ──► keeper, waits on a pipe
       │ Acquire(pid of keeper, until_closed) ──► daemon, which watches that process
       │ "go" ─────────────► fork ──► exec COMMAND
       │ passes signals on ◄─ its pid
       │ ◄─ its exit code, and the pids that still run
       └ exits as the command did       └ waits for all others, releases the disks, ends

Nothing depends on this process once the command runs. Should the keeper be killed, the daemon keeps each lock until no
process of the host has the disk open (`until_closed`). The command is in a control group of its own where one can be
made: then the lock stays, too, until that is empty, for something in it may not have opened the disk yet.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import click
import msgspec

from holdfast.cli import exits
from holdfast.control.api import DiskWish
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.model import printable
from holdfast.system.host import cgroups
from holdfast.system.host.process import (
    become_subreaper,
    descendants,
    program_name,
    signal_descendants,
    start_ticks,
)

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
)
_WAITED_FOR = frozenset((*PASSED_ON, signal.SIGCHLD))


class BadDisk(Exception):
    """A --disk that can't be understood."""


class _Started(msgspec.Struct, tag="started"):
    """The command runs; `start` is its start time, which distinguishes it from a later process with that pid."""

    pid: int
    start: int


class _Ended(msgspec.Struct, tag="ended"):
    """The command has ended; `running`: its descendants that have not."""

    code: int
    running: list[int]


_News = _Started | _Ended
_decoder: msgspec.json.Decoder[_News] = msgspec.json.Decoder(_News)


def parse_disk(text: str) -> DiskWish | None:
    """PATH, PATH:shared or PATH:ro; None for a read-only disk, which needs no lock."""
    path, colon, mode = text.rpartition(":")
    if not colon or mode not in ("shared", "ro", "exclusive"):
        path, mode = text, "exclusive"
    if not path:
        raise BadDisk(f"--disk {text!r}: no path; write --disk /path/to/disk, /path:shared or /path:ro")
    if not os.path.exists(path):
        raise BadDisk(f"--disk {text!r}: there is no {path}; the disk must exist before it is locked")
    return None if mode == "ro" else DiskWish(os.path.abspath(path), mode == "shared")


def hold_and_run(
    socket: str, disks: Sequence[DiskWish], command: list[str], name: str, *, as_json: bool = False
) -> int:
    """The exit code for the caller; see `holdfast run --help`. `as_json`: a refusal is an object on stderr."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    go_read, go_write = os.pipe()
    news_read, news_write = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(go_write)
        os.close(news_read)
        _keep(socket, disks, command, go_read, news_write)
    os.close(go_read)
    os.close(news_write)
    family = cgroups.make(f"holdfast-run-{supervisor}") if disks else ""
    try:
        with ControlClient(socket) as client:
            client.acquire(
                pid=supervisor, name=name, disks=list(disks), until_closed=bool(disks), family=family
            )
    except (DaemonUnreachable, CallRefused) as e:
        os.close(go_write)  # the keeper ends without having run anything
        os.waitpid(supervisor, 0)
        cgroups.remove(family)
        code = exits.UNREACHABLE if isinstance(e, DaemonUnreachable) else exits.REFUSED
        text = f"{command[0]} was not started: {e}"
        if as_json:
            click.echo(msgspec.json.encode({"ok": False, "error": text, "exit": code}).decode(), err=True)
        else:
            click.echo(f"holdfast: {printable(text)}", err=True)
        return code
    if not disks:
        click.echo(
            f"holdfast: nothing is locked while {command[0]} runs: no --disk names a disk to hold", err=True
        )
    os.write(go_write, os.fsencode(family) + b"\n")
    os.close(go_write)
    return _Waiter(news_read, disks).wait()


# --- the keeper ---


def _keep(socket: str, disks: Sequence[DiskWish], command: list[str], go: int, news: int) -> NoReturn:
    """In the keeper: run the command, and stay as long as anything that it has started."""
    try:
        with open(go, "rb") as word:
            line = word.readline()
        if not line:
            os._exit(exits.REFUSED)
        family = os.fsdecode(line.rstrip(b"\n"))
        become_subreaper()
        known_read, known_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(known_write)
            if not os.read(known_read, 1):
                os._exit(exits.NOT_EXECUTABLE)  # the keeper was killed before its caller knew of this process
            if family:
                cgroups.enter(family)
            _become(command)
        _send(news, _Started(pid, start_ticks(pid)))
        os.write(known_write, b"\n")
        _leave_the_terminal(news)
        code = _stay(pid, news)
        if disks:
            # In order: no descendant is left. Should the daemon be away, it finds this process ended when it starts.
            with contextlib.suppress(DaemonUnreachable, CallRefused), ControlClient(socket) as client:
                client.release(pid=os.getpid(), paths=[disk.path for disk in disks])
        cgroups.remove(family)
        # Only now: a script that waits for the command's end finds its disks free.
        _send(news, _Ended(code, []))
        os._exit(exits.OK)
    finally:
        os._exit(exits.NOT_EXECUTABLE)


def _become(command: list[str]) -> NoReturn:
    """In the command's process: be the command."""
    try:
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR)
        os.execvp(command[0], command)
    except FileNotFoundError:
        sys.stderr.write(f"holdfast: {command[0]}: command not found\n")
        os._exit(exits.NOT_FOUND)
    except OSError as e:
        sys.stderr.write(f"holdfast: {command[0]}: {e.strerror}\n")
        os._exit(exits.NOT_EXECUTABLE)
    finally:
        os._exit(exits.NOT_EXECUTABLE)


def _leave_the_terminal(news: int) -> None:
    """What the keeper inherited is the command's: a caller may wait for the end of its output, or for an unmount."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, news)
    os.closerange(news + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    # A key such as Ctrl-C and the end of the terminal concern the command.
    os.setsid()


def _stay(command: int, news: int) -> int:
    """Return the command's exit code when the last descendant has ended; if the command has left some behind, its
    end is reported before. Signals for the keeper are passed on to the command, then to those that are left.
    """
    code, runs, reported = exits.OK, True, False
    # Who continues a stopped keeper means those that it keeps locks for.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCONT,))
    while True:
        number = signal.sigwaitinfo({*_WAITED_FOR, signal.SIGCONT}).si_signo
        if number != signal.SIGCHLD:
            if runs and number != signal.SIGCONT:
                os.kill(command, number)
            else:
                signal_descendants(os.getpid(), number)
            continue
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == command:
                    runs, code = False, os.waitstatus_to_exitcode(ended[1])
                    code = code if code >= 0 else exits.SIGNAL_BASE - code
        except ChildProcessError:
            return code
        # Asked again with each end: one that forks into the background just now may be missed once.
        if not runs and not reported and (left := [each.pid for each in descendants(os.getpid())]):
            _send(news, _Ended(code, left))
            reported = True


def _send(news: int, what: _News) -> None:
    """The other side may have been killed meanwhile."""
    with contextlib.suppress(BrokenPipeError):
        os.write(news, msgspec.json.encode(what) + b"\n")


# --- the process that the caller waits for ---


class _Waiter:
    """Passes signals on until the command has ended.

    A key such as Ctrl-C reaches the whole foreground group, the command too: passing that on would give it twice.
    Such signals come from the kernel, not from a process.
    """

    def __init__(self, news: int, disks: Sequence[DiskWish]) -> None:
        self._news = news
        self._disks = disks
        self._pidfd = -1
        self._early: list[int] = []
        """Signals that came before the command was started."""
        self._ended: _Ended | None = None
        self._over = False

    def wait(self) -> int:
        waiting = threading.main_thread().ident
        assert waiting is not None

        def listen() -> None:
            with open(self._news, "rb") as lines:
                for line in lines:
                    self._hear(_decoder.decode(line))
                    if self._ended is not None:
                        break
                    signal.pthread_kill(waiting, signal.SIGCHLD)
            self._over = True
            signal.pthread_kill(waiting, signal.SIGCHLD)

        threading.Thread(target=listen, daemon=True).start()
        while True:
            got = signal.sigwaitinfo(_WAITED_FOR)
            if self._over:
                return self._conclude()
            # SI_USER, SI_QUEUE, SI_TKILL: sent by somebody to us alone
            if got.si_signo != signal.SIGCHLD and got.si_code <= 0:
                self._early.append(got.si_signo)
            if self._pidfd >= 0:
                while self._early:
                    self._pass_on(self._early.pop(0))

    def _hear(self, news: _News) -> None:
        match news:
            case _Started(pid, start):
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(pid)
                    if start_ticks(pid) == start:
                        self._pidfd = pidfd
            case _Ended():
                self._ended = news

    def _pass_on(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _conclude(self) -> int:
        held = ", ".join(disk.path for disk in self._disks)
        if self._ended is not None:
            if self._ended.running and self._disks:
                pids = ", ".join(f"{pid} ({program_name(pid)})" for pid in self._ended.running)
                click.echo(
                    f"holdfast: the command has ended; {held} stays locked as long as these run: pid {pids}",
                    err=True,
                )
            return self._ended.code
        if self._pidfd >= 0:
            if self._disks:
                click.echo(
                    f"holdfast: the process that keeps the lock was killed; {held} stays locked until no process of this "
                    "host has it open and nothing that the command has started runs",
                    err=True,
                )
            select.select([self._pidfd], [], [])  # the command goes on
        return exits.SIGNAL_BASE + signal.SIGKILL
