"""`holdfast run`: hold disks as long as a command runs.

The owner is the command's own process, not this one: we fork, the child waits, the daemon locks for the
child's pid, the child becomes the command.  From then on nothing depends on us:

    holdfast ── fork ──► child waits on a pipe
       │ Acquire(pid of child) ──► daemon, which watches that process
       │ "go" ─────────────────► exec COMMAND (same pid, same start time)
       └ passes signals on, waits, exits as the command did
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

import click

from holdfast.cli import exits
from holdfast.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.control_api import DiskWish

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


def hold_and_run(socket: str, disks: Sequence[DiskWish], command: list[str], name: str) -> int:
    """The exit code for the caller; see `holdfast run --help`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        _become(command, go_read)
    os.close(go_read)
    try:
        with ControlClient(socket) as client:
            client.acquire(pid=pid, name=name, disks=list(disks))
    except (DaemonUnreachable, CallRefused) as e:
        os.close(go_write)  # the child ends without having run anything
        os.waitpid(pid, 0)
        click.echo(f"holdfast: {command[0]} was not started: {e}", err=True)
        return exits.UNREACHABLE if isinstance(e, DaemonUnreachable) else exits.REFUSED
    os.write(go_write, b"!")
    os.close(go_write)
    return _wait(pid)


def _become(command: list[str], go: int) -> None:
    """In the child: wait for the word, then be the command.  Never returns."""
    try:
        if os.read(go, 1) != b"!":
            os._exit(exits.REFUSED)
        os.close(go)
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


def _wait(pid: int) -> int:
    """Pass signals on until the command has ended.

    A key such as Ctrl-C reaches the whole foreground group, the command too: passing that on would give it twice.
    Such signals come from the kernel, not from a process.
    """
    while True:
        got = signal.sigwaitinfo(_WAITED_FOR)
        if got.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done == pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else exits.SIGNAL_BASE - code
        elif got.si_code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL: sent by somebody to us alone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, got.si_signo)
