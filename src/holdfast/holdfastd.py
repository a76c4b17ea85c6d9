"""The command `holdfastd`: arguments, configuration, run directory; then the daemon until it ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence

import uvloop

from holdfast import __version__
from holdfast import config as configuration
from holdfast.backend_wiring import check_config
from holdfast.config import Config
from holdfast.daemon import Daemon, StartError
from holdfast.system import descriptors as fds
from holdfast.system.log_queue import log_to

log = logging.getLogger("holdfast")

EXIT_OK, EXIT_ERROR, EXIT_CONFIG = 0, 1, 2


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
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
    parser.add_argument("-V", "--version", action="version", version=f"holdfastd {__version__}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    config, problems = check_config(options.config)
    for problem in problems:
        print(f"holdfastd: {problem}", file=sys.stderr)
    if config is None or problems:
        return EXIT_CONFIG
    if options.show_config:
        print(configuration.to_toml(config), end="")
        return EXIT_OK
    if options.check_config:
        print(f"configuration is fine: {', '.join(config.sources) or 'built-in defaults'}")
        return EXIT_OK
    log_to(
        sys.stderr.fileno(),
        config.log_level.upper(),
        "%(levelname)s %(message)s"
        if "JOURNAL_STREAM" in os.environ
        else "%(asctime)s %(levelname)s %(message)s",
    )
    try:
        code = serve(config)
    except StartError as e:
        log.error("%s", e)
        code = e.code
    # Neither threads that wait for dead storage nor a log that nobody reads may keep a daemon from ending.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def serve(config: Config) -> int:
    """Everything after the configuration; returns the exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.pthread_sigmask(signal.SIG_BLOCK, fds.HELD_SIGNALS)
    inherited = fds.inherited(os.environ)
    for directory, mode in ((config.run_dir, 0o755), (config.state_dir, 0o700)):
        try:
            os.makedirs(directory, mode=mode, exist_ok=True)
        except OSError as e:
            raise StartError(f"{directory}: can't be made: {e.strerror}", EXIT_CONFIG) from e
    lock = inherited.reexec.lock_fd if inherited.reexec is not None else -1
    if lock < 0:
        try:
            lock = fds.claim_run_dir(f"{config.run_dir}/holdfastd.pid")
        except BlockingIOError as e:
            raise StartError(
                f"another holdfastd (pid {e.strerror}) uses {config.run_dir}", EXIT_ERROR
            ) from None
        except OSError as e:
            raise StartError(f"{config.run_dir}: can't be used: {e.strerror}", EXIT_ERROR) from e

    async def go() -> None:
        await Daemon(config, inherited, lock).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
