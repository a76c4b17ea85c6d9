"""The command `holdfastd`: arguments, configuration, run directory; then the daemon until it ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

import uvloop

from holdfast import __version__, config_toml
from holdfast import config as configuration
from holdfast.config import Config
from holdfast.daemon import flight_notes, kept_config, kept_file, reload
from holdfast.daemon.check_config import check_config, remarks_of
from holdfast.daemon.daemon import EXIT_ERROR, Daemon, StartError
from holdfast.errors import ConfigError
from holdfast.switch.fetch import NotFetched, take_over
from holdfast.system.block_io.thread_name import name_this_process
from holdfast.system.files import daemon_lock
from holdfast.system.files.daemon_lock import DaemonLocks
from holdfast.system.files.regular_file import NotAFile
from holdfast.system.host import descriptors as fds
from holdfast.system.host.predecessor import DeadButStuck, Predecessors
from holdfast.system.libvirt.virtlockd_beside import virtlockd_beside
from holdfast.system.logs.log_lines import goes_to_journal
from holdfast.system.logs.log_queue import log_to
from holdfast.system.watchdog import first_feeding

log = logging.getLogger("holdfast")

EXIT_OK, EXIT_REFUSED, EXIT_CONFIG = 0, 75, 78
"""2 is for arguments (argparse), 75 and 78 are EX_TEMPFAIL and EX_CONFIG of <sysexits.h>; the unit does not start it again
after 75.
"""


EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE; the unit starts it again."""


def argument_parser() -> argparse.ArgumentParser:
    """Of holdfastd's options; its manual is made from it."""
    parser = argparse.ArgumentParser(
        prog="holdfastd",
        description="Locks the disks of virtual machines: speaks virtlockd's protocol to libvirt. "
        "Runs in the foreground; SIGUSR1 re-executes it with every lock and connection kept.",
    )
    parser.add_argument(
        "-f", "--config", metavar="FILE", help=f"configuration (default {configuration.SYSTEM_FILE})"
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    parser.add_argument(
        "--show-config", action="store_true", help="print the effective configuration and exit"
    )
    parser.add_argument(
        "--check-virtlockd",
        action="store_true",
        help=f"exit with {EXIT_REFUSED} if a real virtlockd runs, in whose place holdfastd would be; else with 0",
    )
    parser.add_argument("-V", "--version", action="version", version=f"holdfastd {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None, *, exit_code: Callable[[int], int] = int) -> int:
    """`exit_code`: another program's code for one of ours."""
    options = argument_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.check_virtlockd:
        reason = why_not_beside_virtlockd()
        if reason:
            print(f"holdfastd: {reason}", file=sys.stderr)
        return EXIT_REFUSED if reason else EXIT_OK
    config, problems = check_config(options.config)
    if options.check_config or options.show_config:
        return check(options, config, problems)
    signal.pthread_sigmask(signal.SIG_BLOCK, fds.HELD_SIGNALS)
    inherited = fds.inherited(os.environ)
    try:
        switched = may_be_switched_to(config)
        ended = take_over(inherited, os.environ, virtlockd_beside) if switched else None
    except NotFetched as e:
        print(f"holdfastd: {e}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    start = kept_config.choose(options.config, config, problems, inherited)
    if start is None:
        for problem in problems:
            print(f"holdfastd: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    stderr = sys.stderr.fileno()
    log_to(stderr, start.config.log_level.upper(), journal=goes_to_journal(stderr, os.environ))
    if ended is not None:
        log.critical(
            "%d locks of virtlockd's (pid %d) ended in the switch, for it was killed, and VMs ran on without; they are "
            "taken again now, and LOCK LOST follows for each that somebody else has: %s",
            len(ended.locks),
            ended.pid,
            "; ".join(ended.locks),
        )
    for remark in start.remarks:
        log.warning("%s", remark)
    for reason in start.kept_because:
        log.error(
            "the configuration on disk is not used: %s; going on with the one kept in %s",
            reason,
            kept_file.kept_path(start.config.run_dir),
        )
    try:
        take_nobodys_place(start, inherited)
        code = serve(start, inherited)
    except StartError as e:
        log.error("%s", e)
        code = e.code
    # Neither threads that wait for dead storage nor a full log pipe may keep a daemon from ending.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code(code))


def may_be_switched_to(config: Config | None) -> bool:
    """Whether a live switch (ADR 0212) is to this daemon: root's, at libvirt's socket."""
    elsewhere = config is not None and config.virtlockd.socket != configuration.SYSTEM_VIRTLOCKD_SOCKET
    return not elsewhere and os.geteuid() == 0


def why_not_beside_virtlockd() -> str:
    """Why holdfastd can't take virtlockd's place now; empty if it can."""
    pid = virtlockd_beside()
    if pid is None:
        return ""
    return (
        f"virtlockd (pid {pid}) runs, and VMs that hold locks in it would be killed if it were stopped: 'holdfast doctor' "
        "names them and says how to switch"
    )


def take_nobodys_place(start: kept_config.Start, inherited: fds.Inherited) -> None:
    """Raises `StartError` beside a virtlockd, except for a start that holds locks, or may: it must protect them."""
    if start.config.virtlockd.socket != configuration.SYSTEM_VIRTLOCKD_SOCKET or inherited.reexec is not None:
        return
    reason = why_not_beside_virtlockd()
    if not reason:
        return
    if not kept_config.may_hold_locks(start.config, inherited):
        raise StartError(reason, EXIT_REFUSED)
    log.critical("%s; going on, for locks of VMs are held here", reason)


def check(options: argparse.Namespace, config: Config | None, problems: list[ConfigError]) -> int:
    """--check-config and --show-config; a daemon runs the former before a reload (`reload`)."""
    if options.check_config:
        reasons = reload.answer(os.environ, None if problems else config)
        if reasons is not None:
            print(reload.CHECKED, file=sys.stderr)
            print(reload.TAKES_CLIENTS, file=sys.stderr)
            if first_feeding.comes_first():
                print(reload.FEEDS_FIRST, file=sys.stderr)
        for reason in reasons or ():
            print(f"holdfastd: {reason}", file=sys.stderr)
        if reasons:
            return EXIT_CONFIG
    for problem in problems:
        print(f"holdfastd: {problem}", file=sys.stderr)
    if config is None or problems:
        return EXIT_CONFIG
    if options.show_config:
        print(config_toml.to_toml(config), end="")
        return EXIT_OK
    for remark in remarks_of(config):
        print(f"holdfastd: note: {remark}", file=sys.stderr)
    print(f"configuration is fine: {', '.join(config.sources) or 'built-in defaults'}")
    return EXIT_OK


def serve(start: kept_config.Start, inherited: fds.Inherited) -> int:
    """Everything after the configuration; returns the exit code."""
    name_this_process()
    config = start.config
    for remark in remarks_of(config):
        log.warning("%s", remark)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for directory, mode in (
        (config.run_dir, 0o755),
        (config.state_dir, 0o700),
        (config.host_files, 0o700),
    ):
        try:
            os.makedirs(directory, mode=mode, exist_ok=True)
        except OSError as e:
            raise StartError(f"{directory}: can't be made: {e.strerror}", EXIT_CONFIG) from e
    locks = claim_directories(config, inherited.reexec)
    recorder, end = flight_notes.begin(config.state_dir)

    async def go() -> None:
        await Daemon(start, inherited, locks, recorder=recorder, last_end=end).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go())
    return EXIT_OK


def claim_directories(config: Config, reexec: fds.ReexecState | None) -> DaemonLocks:
    """Lock the run directory and the state directory, which one daemon uses at a time. Called before anything is read
    there; raises `StartError`.
    """
    dead: list[DeadButStuck] = []
    taken = []
    for directory, name, inherited in (
        (config.run_dir, daemon_lock.RUN_LOCK, reexec.lock_fd if reexec is not None else -1),
        (config.state_dir, daemon_lock.STATE_LOCK, reexec.state_lock_fd if reexec is not None else -1),
    ):
        path = f"{directory}/{name}"
        if inherited >= 0 and daemon_lock.is_lock_of(inherited, path):
            taken.append(inherited)
            dead += daemon_lock.survey(path)
            continue
        try:
            claimed = daemon_lock.claim(path)
        except daemon_lock.InUse as e:
            other = f"another holdfastd (pid {e.pid or 'unknown'}) uses {directory}"
            raise StartError(f"{directory}: {e.reason}" if e.reason else other, EXIT_ERROR) from None
        except NotAFile as e:
            raise StartError(str(e.strerror), EXIT_ERROR) from None
        except OSError as e:
            raise StartError(f"{directory}: can't be used: {e.strerror}", EXIT_ERROR) from e
        if inherited >= 0:
            os.close(inherited)  # of the directory that the last configuration named
        taken.append(claimed.fd)
        dead += claimed.predecessors
    predecessors = Predecessors(dead)
    for pid in predecessors.pids:
        log.warning(
            "an earlier holdfastd (pid %d) was killed and still has requests inside storage that hangs; "
            "all other storage is served",
            pid,
        )
    return DaemonLocks(taken[0], taken[1], predecessors)


if __name__ == "__main__":
    sys.exit(main())
