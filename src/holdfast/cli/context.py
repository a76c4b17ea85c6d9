"""What all commands share: where the configuration is, how to reach the daemon, and how a command ends with an error.

Commands that only ask must work when the configuration on disk is broken: they use the one in force, or at the least the
daemon's socket. A user who is not root means the system's daemon, unless it has one of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from holdfast.cli import exits
from holdfast.model import printable

if TYPE_CHECKING:
    from holdfast.config import Config
    from holdfast.control.client import ControlClient

F = TypeVar("F", bound=Callable[..., Any])
_JSON = "holdfast.json"
SENTENCE_MAX = 1000
"""Letters of what is shown of a command in the list of a group's help; click cuts it at a line's end by default."""
START_IT = "'holdfast setup' on a host that is not set up yet, else 'systemctl status holdfastd'"


@dataclass
class Context:
    """What the options before the command say."""

    config_file: str | None
    socket: str | None

    def config(self) -> Config:
        """The configuration on disk, or the one in force with a word on stderr; ends the command if there is none."""
        from holdfast.errors import ConfigError

        try:
            return self.on_disk()
        except ConfigError as e:
            from holdfast.daemon.kept_config import in_force

            kept = in_force(self.config_file)
            if kept is None:
                fail(str(e), exits.BAD_CONFIG)
            click.echo(f"holdfast: {printable(str(e))}; using the configuration in force", err=True)
            return kept

    def backends(self) -> Mapping[str, Mapping[str, object]]:
        """The tables of the configuration on disk, or of the one in force; none without a word if there is neither."""
        from holdfast.errors import ConfigError

        try:
            return self.on_disk().backend
        except ConfigError:
            from holdfast.daemon.kept_config import in_force

            kept = in_force(self.config_file)
            return kept.backend if kept is not None else {}

    def on_disk(self) -> Config:
        from holdfast import config

        uid = os.geteuid()
        if uid != 0 and self.config_file is None:
            own = config.load(None, environ=os.environ, uid=uid)
            if not os.path.exists(own.control_socket):
                system = config.default_paths({}, 0)
                if os.path.isdir(system["run_dir"]):
                    return config.load(None, environ=os.environ, uid=0)
            return own
        return config.load(self.config_file, environ=os.environ, uid=uid)

    def control_socket(self) -> str:
        """Also of a daemon whose configuration on disk can't be read by anybody."""
        from holdfast.config import CONTROL_SOCKET_NAME
        from holdfast.errors import ConfigError

        if self.socket:
            return self.socket
        try:
            return self.on_disk().control_socket
        except ConfigError as e:
            from holdfast.daemon.kept_config import in_force
            from holdfast.daemon.kept_file import run_dir_of

            kept = in_force(self.config_file)
            click.echo(f"holdfast: {printable(str(e))}; asking the daemon that runs", err=True)
            return kept.control_socket if kept else f"{run_dir_of(self.config_file)}/{CONTROL_SOCKET_NAME}"

    def connect(self) -> ControlClient:
        from holdfast.control.client import ControlClient

        return ControlClient(self.control_socket())


def fail(text: str, code: int) -> NoReturn:
    """One line of what is wrong, to stderr, and out; with --json an object on stdout as well."""
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get(_JSON):
        _say_json(text, code)
    click.echo(f"holdfast: {printable(text)}", err=True)
    sys.exit(code)


def _say_json(text: str, code: int) -> None:
    from holdfast.cli import render

    render.as_json({"ok": False, "error": text, "exit": code})


def _remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def json_option(function: F) -> F:
    return click.option(
        "--json", "as_json", is_flag=True, callback=_remember, help="Machine-readable output, errors too."
    )(function)


def who_asks() -> str:
    """The person at the terminal, as far as it is known: for records of what was ordered."""
    import pwd

    if sudo := os.environ.get("SUDO_USER"):
        return sudo
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


class WholeHelpGroup(click.Group):
    """A group whose help has the whole first sentence of each command, in as many lines as that takes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [
            (name, command) for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))
        ]
        if rows := [(name, each.get_short_help_str(SENTENCE_MAX)) for name, each in shown if not each.hidden]:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


WholeHelpGroup.group_class = WholeHelpGroup


class HelpfulGroup(WholeHelpGroup):
    """Turns what the daemon refuses, and mistakes on the command line, into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from holdfast.control.client import CallRefused, DaemonUnreachable

        try:
            return super().invoke(ctx)
        except DaemonUnreachable as e:
            if e.not_permitted:
                fail(str(e), exits.NOT_PERMITTED)
            fail(f"{e}; next: {START_IT}" if e.not_running else str(e), exits.UNREACHABLE)
        except CallRefused as e:
            from holdfast.control.api import ERROR_NOT_PERMITTED

            fail(str(e), exits.NOT_PERMITTED if e.kind == ERROR_NOT_PERMITTED else exits.REFUSED)
        except BrokenPipeError:
            os._exit(0)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        ours = words[: words.index("--")] if "--" in words else words
        if "--json" not in ours or not more.get("standalone_mode", True):
            return super().main(args, *rest, **more)
        try:
            super().main(args, *rest, **{**more, "standalone_mode": False})
        except click.exceptions.Exit as e:
            sys.exit(e.exit_code)
        except click.ClickException as e:
            _say_json(e.format_message(), e.exit_code)
            e.show()
            sys.exit(e.exit_code)
        sys.exit(exits.OK)
