"""The command `holdfast-web`: arguments, token and socket; then the server until it ends."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from holdfast import __version__
from holdfast.config import READ_SOCKET_NAME, default_paths
from holdfast.control.client import ControlClient, DaemonUnreachable
from holdfast.web.access import Access, why_no_token
from holdfast.web.app import App
from holdfast.web.feed import VIEWERS_MAX

LISTEN_DEFAULT = "127.0.0.1:8320"
CONNECTIONS_MAX = 2 * VIEWERS_MAX + 16
"""Beside the streams of all viewers, requests that are short."""
ANSWER_S = 5.0
"""A daemon that is silent for longer is shown as one that does not answer."""
TOKEN_BYTES_MAX = 4096
CREDENTIAL = "token"
"""The name of the token among systemd's credentials (`LoadCredential=token:PATH`)."""
EXIT_USAGE, EXIT_SOCKET = 2, 71
"""EX_OSERR of <sysexits.h>."""


class NotUsable(Exception):
    """The options can't be used; the text says why and what to do."""


def argument_parser() -> argparse.ArgumentParser:
    """Of holdfast-web's options; its manual is made from it."""
    parser = argparse.ArgumentParser(
        prog="holdfast-web",
        description="Serves one page about this host's locks, live, and metrics for Prometheus at /metrics. It only reads: "
        "it asks holdfastd at its read-only socket, where nothing can be changed. Without a token it listens on "
        "loopback alone.",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        default=LISTEN_DEFAULT,
        help="where to listen (default %(default)s); any address that is not loopback needs --token-file",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file with the token that every request needs, on one line; by default the credential 'token', if systemd "
        "passes one",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a further name under which it is asked without a token, through a proxy on this host; may be repeated",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=f"{default_paths(os.environ, 0)['run_dir']}/{READ_SOCKET_NAME}",
        help="holdfastd's read-only socket (default %(default)s)",
    )
    parser.add_argument("-V", "--version", action="version", version=f"holdfast-web {__version__}")
    return parser


def address(listen: str) -> tuple[str, int]:
    """Raises `NotUsable` for anything but a literal IP address, IPv6 in brackets, and a port."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        if not 0 <= int(port) <= 65535:
            raise ValueError(port)
    except ValueError:
        raise NotUsable(
            f"--listen {listen}: must be an IP address and a port, such as 127.0.0.1:8320 or [::1]:8320"
        ) from None
    return host, int(port)


def token(file: str | None) -> bytes | None:
    """The token in a file, or systemd's credential; None if there is neither. Raises `NotUsable`, also for one that can't be
    read: without it every user of the host could read the page.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if file is None and not directory:
        return None
    path = os.path.join(directory, CREDENTIAL) if file is None else file
    try:
        with open(path, "rb") as f:
            if os.fstat(f.fileno()).st_mode & 0o007:
                raise NotUsable(f"{path}: every user of this host may read the token: chmod 600 {path}")
            found = f.read(TOKEN_BYTES_MAX).removesuffix(b"\n")
    except OSError as e:
        if file is None and isinstance(e, FileNotFoundError):
            return None  # credentials of another name
        raise NotUsable(f"{path}: {e.strerror}") from None
    if why := why_no_token(found):
        raise NotUsable(f"{path}: the token {why}; make one: openssl rand -hex 32")
    return found


def bind(host: str, port: int, *, has_token: bool) -> socket.socket:
    """A listening socket; raises `NotUsable`, and OSError if the address can't be had."""
    if not ipaddress.ip_address(host).is_loopback and not has_token:
        raise NotUsable(f"--listen {host}: other hosts reach that address, so it needs --token-file")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def connector(path: str) -> ControlClient:
    """A connection to holdfastd; raises `DaemonUnreachable`."""
    try:
        return ControlClient(path, timeout_s=ANSWER_S)
    except DaemonUnreachable as e:
        if not e.not_permitted:
            raise
        raise DaemonUnreachable(
            f"this user may not ask holdfastd at {path}: it belongs in the group of control.read_group, which must be there "
            "when holdfastd starts or reloads",
            not_permitted=True,
        ) from None


class Server(uvicorn.Server):
    """Ends its streams when it is asked to stop: uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.feed.close()
        super().handle_exit(sig, frame)


def main(arguments: Sequence[str] | None = None) -> int:
    options = argument_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        secret = token(options.token_file)
        host, port = address(options.listen)
        sock = bind(host, port, has_token=secret is not None)
    except NotUsable as e:
        print(f"holdfast-web: {e}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as e:
        what = "another program listens there" if e.errno == errno.EADDRINUSE else e.strerror
        print(f"holdfast-web: {options.listen}: {what}", file=sys.stderr)
        return EXIT_SOCKET
    app = App(Access(secret, options.name), lambda: connector(options.socket))
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
    )
    where = f"[{host}]" if ":" in host else host
    logging.getLogger("holdfast").info("serving http://%s:%d/", where, sock.getsockname()[1])
    Server(config, app).run(sockets=[sock])
    return 0


if __name__ == "__main__":
    sys.exit(main())
