"""The command `holdfast-sanlockd`: takes the options and the configuration of sanlock's daemon, and is holdfastd with them.

    /etc/sanlock/sanlock.conf ─┐  (the command line wins)
    sanlock daemon OPTIONS ────┴─► settings ─► RUN_DIR/holdfast/sanlockd.toml ─► holdfastd --config that

What has no counterpart here is named in a line on stderr, and what an operator may rely on with a reason (docs/specs/
sanlock-socket.md 5.3, 5.4). It runs in the foreground, as units of systemd want it.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.backends.paxos.config import IO_TIMEOUT_DEFAULT_S
from holdfast.config import HOST_LOCKS_DEFAULT
from holdfast.config_toml import to_toml_value
from holdfast.daemon import main as holdfastd
from holdfast.daemon.daemon import EXIT_SOCKET
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S, IO_TIMEOUT_MAX_S, Timing
from holdfast.system.files.regular_file import Unreadable, read_regular, replace_regular

RUN_DIR, CONF = "/run/sanlock", "/etc/sanlock/sanlock.conf"
STATE_DIR = "/var/lib/holdfast-sanlockd"
SANLOCKS_USER = "sanlock"
CONF_BYTES_MAX = 1 << 16
EXIT_USAGE = 1
"""sanlock's for every failure, also where another instance runs."""

_OPTIONS: Mapping[str, str] = {
    "-D": "",
    "-Q": "quiet_fail",
    "-R": "debug_renew",
    "-H": "renewal_history_size",
    "-L": "logfile_priority",
    "-S": "syslog_priority",
    "-U": "uname",
    "-G": "gname",
    "-t": "max_worker_threads",
    "-g": "kill_grace_seconds",
    "-o": "io_timeout",
    "-w": "use_watchdog",
    "-h": "high_priority",
    "-l": "mlock_level",
    "-b": "set_bitmap_seconds",
    "-e": "our_host_name",
    "-a": "use_aio",
}
"""Options of `sanlock daemon`, by the key of sanlock.conf that they stand for."""
_USED = ("uname", "gname", "io_timeout", "use_watchdog", "watchdog_fire_timeout")
_DIFFERENT: Mapping[str, str] = {
    "our_host_name": "Holdfast names its hosts itself, by the host's name and random digits",
    "use_compare_and_write": "records are written plainly; those that other hosts change by it are left to them",
    "set_bitmap_seconds": "it is six times the io_timeout",
}
_WITHOUT_EFFECT = frozenset(
    (
        *_OPTIONS.values(),
        "logfile_use_utc",
        "names_log_priority",
        "sh_retries",
        "renewal_read_extend_sec",
        "write_init_io_timeout",
        "paxos_debug_all",
        "debug_io",
        "debug_clients",
        "debug_hosts",
        "debug_cmd",
        "max_sectors_kb",
        "use_hugepages",
        "create_old_delta_disk_version",
        "create_old_paxos_disk_version",
        "caw_fua",
        "caw_dpo",
    )
)
"""About its log, threads and requests: what they are for is decided otherwise here, and nobody relies on them."""


class Unusable(Exception):
    """The options, or the file, can't be used; the text says which and why."""


@dataclass(slots=True)
class Settings:
    """What sanlock's options come to. `remarks`: what is not as there."""

    user: str = ""
    group: str = ""
    io_timeout_s: int = IO_TIMEOUT_DEFAULT_S
    watchdog: str = "wdmd"
    fire_timeout_s: int = FIRE_TIMEOUT_DEFAULT_S
    remarks: list[str] = field(default_factory=list)

    def toml(self, run_dir: str) -> str:
        """The configuration of holdfastd; all its files are beside the socket, but for what must outlive a boot."""
        own = f"{run_dir}/holdfast"
        is_default = run_dir == RUN_DIR
        top = {
            "run_dir": own,
            "state_dir": STATE_DIR if is_default else f"{run_dir}/holdfast-state",
            "host_locks": HOST_LOCKS_DEFAULT if is_default else f"{run_dir}/holdfast-locks",
        }
        tables: dict[str, dict[str, object]] = {
            "virtlockd": {"socket": f"{own}/virtlockd.sock"},
            "sanlock": {
                "socket": f"{run_dir}/sanlock.sock",
                "group": self.group,
                "user": self.user,
                "watchdog": self.watchdog,
                "fire_timeout_s": self.fire_timeout_s,
                "io_timeout_s": self.io_timeout_s,
            },
        }
        lines = ["# made by holdfast-sanlockd at each start"]
        lines += [f"{key} = {to_toml_value(value)}" for key, value in top.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {to_toml_value(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def settings_of(options: Sequence[str], conf: str) -> Settings:
    """`options`: without the word `daemon`; `conf`: the text of sanlock.conf. Raises `Unusable`."""
    given = {**dict(_of_file(conf)), **dict(_of_command_line(options))}
    settings = Settings()
    for key in given:
        if key in _DIFFERENT:
            settings.remarks.append(f"{key} is not used: {_DIFFERENT[key]}")
        elif key not in _WITHOUT_EFFECT and key not in _USED:
            settings.remarks.append(f"{key} is not known and not used")
    settings.io_timeout_s = _number(given, "io_timeout", IO_TIMEOUT_DEFAULT_S, 1, IO_TIMEOUT_MAX_S)
    settings.fire_timeout_s = _number(given, "watchdog_fire_timeout", FIRE_TIMEOUT_DEFAULT_S, 1, 3600)
    settings.watchdog = "wdmd" if _number(given, "use_watchdog", 1, 0, 1) else "none"
    timing = Timing(settings.io_timeout_s, settings.fire_timeout_s)
    if broken := timing.broken():
        raise Unusable(f"io_timeout and watchdog_fire_timeout: {'; '.join(map(str, broken))}")
    grace_s = int(timing.grace_s)
    if _number(given, "kill_grace_seconds", grace_s, 0, 60) != grace_s:
        settings.remarks.append(
            f"kill_grace_seconds is {grace_s}: it follows from watchdog_fire_timeout = {settings.fire_timeout_s}"
        )
    settings.user = given.get("uname") or (SANLOCKS_USER if _has_user(SANLOCKS_USER) else "root")
    settings.group = given.get("gname") or (SANLOCKS_USER if _has_group(SANLOCKS_USER) else "root")
    return settings


def _of_command_line(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(options)
    while rest:
        option = rest.pop(0)
        key = _OPTIONS.get(option)
        if key is None:
            raise Unusable(f"option {option} is not one of sanlock daemon's: {' '.join(_OPTIONS)}")
        if key:
            if not rest:
                raise Unusable(f"option {option} needs a value")
            yield key, rest.pop(0)


def _of_file(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line.startswith("#") or "=" not in line:
            continue
        key, _, value = line.partition("=")
        words = value.split()
        yield key.strip(), words[0] if words else ""


def _number(given: Mapping[str, str], key: str, default: int, least: int, greatest: int) -> int:
    text = given.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= greatest:
        raise Unusable(f"{key} must be a whole number from {least} to {greatest}, not '{text}'")
    return int(text)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["daemon"]:
        del words[0]
    checks = "--check-config" in words  # a reload asks the program on disk (`reload`)
    if checks:
        words.remove("--check-config")
    run_dir = os.environ.get("SANLOCK_RUN_DIR", RUN_DIR).rstrip("/")
    file = f"{run_dir}/holdfast/sanlockd.toml"
    try:
        settings = settings_of(words, _conf())
        os.makedirs(f"{run_dir}/holdfast", mode=0o755, exist_ok=True)
        replace_regular(file, settings.toml(run_dir).encode())
    except (Unusable, OSError) as e:
        print(f"holdfast-sanlockd: {e}", file=sys.stderr)
        return EXIT_USAGE
    for remark in settings.remarks:
        print(f"holdfast-sanlockd: note: {remark}", file=sys.stderr)
    return holdfastd.main(
        ["--config", file, *(["--check-config"] if checks else [])],
        exit_code=lambda code: EXIT_USAGE if code == EXIT_SOCKET else code,
    )


def _conf() -> str:
    raw = read_regular(CONF, CONF_BYTES_MAX)
    if isinstance(raw, Unreadable):
        if raw.missing:
            return ""
        raise Unusable(f"{CONF}: {raw.reason}")
    return raw.decode("utf-8", "replace")
