"""Whether an AppArmor profile allows what a program was seen to do: its rules against the accesses of a trace.

The kernel need not have AppArmor. A profile is what apparmor_parser makes of it when it has put in every include. A trace is
strace's, one file per thread (`-ff -y`, the system calls of `TRACED`). What the kernel asks AppArmor about is said at each
system call below, by apparmor.d(5) and the hooks of Linux 6.1's security/apparmor/lsm.c; it does not ask about stat(2),
access(2), readlink(2), nor about a path that is not there. What a trace does not show is not judged: capabilities, which the
unit's bounding set already limits to those of the profile, the peers of signals, and a file's owner (`owner` is not read).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

TRACED = (
    "%file,%process,%network,flock,fcntl,mmap,fchmod,fchown,ftruncate,kill,tkill,tgkill,pidfd_send_signal,pidfd_getfd,"
    "ptrace,process_vm_readv,mount,umount2"
)
PARSER = "/usr/sbin/apparmor_parser"

_RULE = re.compile(
    r'^(?:(audit|allow|deny|owner) +)*(?P<path>"[^"]+"|[/@]\S*)\s+(?P<modes>[a-zA-Z]+)(?:\s*->.*)?,$'
)
_VARIABLE = re.compile(r"^(@\{\w+\})\s*(\+?=)\s*(.*)$")
_EXEC = re.compile(r"[pPcCuUi]+x|(?<![a-zA-Z])x")
_LINE = re.compile(r"^(?P<call>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+|\?)(?P<rest>.*)$")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FD = re.compile(r"(?:AT_FDCWD|\b\d+)<((?:[^<>\\]|\\.)*)>")


def preprocessed(profile: str) -> str:
    """The profile with every include in its place; raises with the parser's words about one that it does not accept."""
    done = subprocess.run(
        [PARSER, "-Q", "-K", "--skip-kernel-load", "-p"],
        input=profile,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _expanded(pattern: str, variables: dict[str, list[str]]) -> Iterator[str]:
    """The pattern with each of its variables' values; none for one that is not known."""
    parts = re.split(r"(@\{\w+\})", pattern)
    choices = [
        [deeper for value in variables.get(part, ()) for deeper in _expanded(value, variables)]
        if at % 2
        else [part]
        for at, part in enumerate(parts)
    ]
    for each in product(*choices):
        yield re.sub(r"/{2,}", "/", "".join(each))


def _regex(glob: str) -> str:
    """AppArmor's globbing: `*` within a directory, `**` also below it, and neither is empty as a whole component."""
    found, at, depth = "", 0, 0
    while at < len(glob):
        char = glob[at]
        if char == "*":
            stars = 2 if glob[at : at + 2] == "**" else 1
            after = glob[at + stars : at + stars + 1]
            if glob[at - 1 : at] == "/" and after in ("", "/"):
                found += "[^/]"
            found += ".*" if stars == 2 else "[^/]*"
            at += stars - 1
        elif char == "?":
            found += "[^/]"
        elif char == "[":
            end = glob.index("]", at + 1)
            found += glob[at : end + 1]
            at = end
        elif char == "{":
            found, depth = found + "(?:", depth + 1
        elif char == "}":
            found, depth = found + ")", depth - 1
        elif char == "," and depth:
            found += "|"
        elif char == "\\":
            at += 1
            found += re.escape(glob[at])
        else:
            found += re.escape(char)
        at += 1
    return found


@dataclass(frozen=True, slots=True)
class _FileRule:
    matches: re.Pattern[str]
    modes: frozenset[str]
    execution: str
    """How a program is executed, such as "ix"; empty if not."""
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Access:
    """One thing that the kernel asks AppArmor about: a file with the letters of its modes, or a rule of another kind."""

    path: str
    """Of the file, a directory's with a slash behind it; else the rule without its comma, such as "network inet stream"."""
    modes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.path} {''.join(sorted(self.modes))}".rstrip()


SIGNAL = Access("signal")
SIGNAL_TO_ITSELF = Access("signal peer=@{profile_name}")
"""As abstractions/base has it."""


@dataclass
class Profile:
    """One profile's rules, of its text as `preprocessed` gives it."""

    attachment: str = ""
    _allowed: list[_FileRule] = field(default_factory=list)
    _denied: list[_FileRule] = field(default_factory=list)
    _others: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, text: str) -> Profile:
        profile = cls()
        variables: dict[str, list[str]] = {}
        for raw in text.splitlines():
            line = " ".join(raw.split("#", 1)[0].split()) if not raw.strip().startswith('"') else raw.strip()
            if variable := _VARIABLE.match(line):
                name, how, values = variable.groups()
                known = variables.get(name, []) if how == "+=" else []
                variables[name] = known + [each.strip('"') for each in values.split()]
            elif opening := re.match(r"^profile \S+ (/\S+) .*\{$", line):
                profile.attachment = opening[1]
            elif rule := _RULE.match(line):
                profile._add(rule, "deny" in line.split("/", 1)[0].split(), variables)
            elif line.endswith(","):
                profile._others.add(line[:-1])
        return profile

    def _add(self, rule: re.Match[str], is_denied: bool, variables: dict[str, list[str]]) -> None:
        modes = rule["modes"]
        execution = _EXEC.search(modes)
        rest = modes.replace(execution[0], "") if execution else modes
        path = rule["path"].strip('"')
        for each in _expanded(path, variables):
            made = _FileRule(
                re.compile(_regex(each), re.DOTALL),
                frozenset(rest) | (frozenset("a") if "w" in rest else frozenset()),
                execution[0] if execution else "",
                not re.search(r"[*?\[{]", each),
            )
            (self._denied if is_denied else self._allowed).append(made)

    def allows(self, access: Access) -> bool:
        if not access.path.startswith("/"):
            return any(self._covers(rule, access.path) for rule in self._others)
        granted: set[str] = set()
        for rule in self._allowed:
            if rule.matches.fullmatch(access.path):
                granted |= rule.modes
        for rule in self._denied:
            if rule.matches.fullmatch(access.path):
                granted -= rule.modes
        return access.modes <= granted

    @staticmethod
    def _covers(rule: str, wanted: str) -> bool:
        """A rule without conditions covers all of its kind; "network inet stream" is covered by "network inet" as well."""
        return rule == wanted or wanted.startswith(f"{rule} ") or rule == wanted.split(" ", 1)[0]

    def execution(self, path: str) -> str:
        """How a program is executed: an exact path's rule goes before a pattern's. Empty if it may not be."""
        found = [rule for rule in self._allowed if rule.execution and rule.matches.fullmatch(path)]
        exact = [rule for rule in found if rule.is_exact]
        return next((rule.execution for rule in exact or found), "")


@dataclass
class Host:
    """What a trace doesn't show of the paths in it."""

    real: Callable[[str], str]
    """The path without symbolic links, also of one that is not there any more."""
    is_directory: Callable[[str], bool]


class Trace:
    """What was done under a profile: by the program that it is attached to, its threads, and those of their children that
    execute no program with a profile of its own, or without one.
    """

    def __init__(self, directory: Path, profile: Profile, host: Host) -> None:
        self._directory = directory
        self._profile = profile
        self._host = host
        self.accesses: dict[Access, str] = {}
        """Each with the line that it was seen at first."""
        self.programs: set[str] = set()
        """What they executed."""
        for file in sorted(directory.iterdir()):
            if not self._is_child(file):
                self._walk(file, inside=False)

    def refused(self) -> list[str]:
        """What the profile does not allow, with the line of the trace."""
        return [f"{each}: {line}" for each, line in self.accesses.items() if not self._profile.allows(each)]

    def _is_child(self, file: Path) -> bool:
        """Whether it does not begin with the program's own start: it is walked from its parent then."""
        with file.open() as lines:
            return not lines.readline().startswith("execve(")

    def _walk(self, file: Path, *, inside: bool) -> None:
        if not file.exists():
            return  # the thread did nothing that is traced
        for line in file.read_text(errors="replace").splitlines():
            parsed = _LINE.match(line)
            if parsed is None or (parsed["result"] == "-1" and "EINPROGRESS" not in parsed["rest"]):
                continue
            call, arguments = parsed["call"], parsed["arguments"]
            if call in ("execve", "execveat"):
                inside = self._executes(arguments, line, inside=inside)
            elif call in ("clone", "clone3", "fork", "vfork"):
                self._walk(file.with_suffix(f".{parsed['result']}"), inside=inside)
            elif inside:
                for access in self._accesses(call, arguments, parsed["rest"]):
                    named = re.split(r"\W+", arguments)[:2] if call in ("kill", "tkill", "tgkill") else []
                    to_itself = access == SIGNAL and file.suffix[1:] in named
                    self.accesses.setdefault(SIGNAL_TO_ITSELF if to_itself else access, line)

    def _executes(self, arguments: str, line: str, *, inside: bool) -> bool:
        path = self._host.real(self._paths(arguments)[0])
        if not inside:
            return path == self._profile.attachment
        self.programs.add(path)
        how = self._profile.execution(path)
        if not how:
            self.accesses.setdefault(Access(path, frozenset("x")), line)
        return how in ("", "ix") or path == self._profile.attachment

    def _paths(self, arguments: str) -> list[str]:
        """The names in a call, as absolute paths: each after its directory's descriptor, if there is one."""
        found = []
        for name in _STRING.finditer(arguments):
            path = name[1].encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")
            before = _FD.findall(arguments[: name.start()])
            found.append(path if path.startswith("/") or not before else f"{before[-1]}/{path}")
        return found

    def _named(self, path: str) -> str:
        """A name in its directory, which may be reached by symbolic links; the name itself is not followed."""
        directory, _, name = path.rstrip("/").rpartition("/")
        return f"{self._host.real(directory or '/').rstrip('/')}/{name}"

    def _followed(self, path: str) -> str:
        return self._as_rule_sees(self._host.real(path))

    def _as_rule_sees(self, path: str) -> str:
        return path.rstrip("/") + "/" if self._host.is_directory(path) else path

    def _accesses(self, call: str, arguments: str, rest: str) -> Iterator[Access]:
        match call:
            case "open" | "openat" | "openat2" | "creat":
                yield from self._opened(call, arguments, rest)
            case "mmap":
                if "PROT_EXEC" in arguments:
                    yield from self._by_descriptor(arguments, "m")
            case "unlink" | "unlinkat" | "rmdir":
                name = self._named(self._paths(arguments)[0])
                is_directory = call == "rmdir" or "AT_REMOVEDIR" in arguments
                yield Access(name + "/" if is_directory else name, frozenset("w"))
            case "rename" | "renameat" | "renameat2":
                old, new = (self._named(each) for each in self._paths(arguments)[:2])
                slash = "/" if self._host.is_directory(new) else ""
                yield Access(old + slash, frozenset("rw"))
                yield Access(new + slash, frozenset("w"))
            case "link" | "linkat":
                yield Access(self._named(self._paths(arguments)[-1]), frozenset("l"))
            case "symlink" | "symlinkat":
                yield Access(self._named(self._paths(arguments)[-1]), frozenset("w"))
            case "mkdir" | "mkdirat":
                yield Access(self._named(self._paths(arguments)[0]) + "/", frozenset("w"))
            case "mknod" | "mknodat":
                yield Access(self._named(self._paths(arguments)[0]), frozenset("w"))
            case (
                "chmod"
                | "chown"
                | "lchown"
                | "fchmodat"
                | "fchownat"
                | "truncate"
                | "utimensat"
                | "fchmodat2"
            ):
                for path in self._paths(arguments)[:1]:
                    yield Access(self._followed(path), frozenset("w"))
            case "fchmod" | "fchown" | "ftruncate":
                yield from self._by_descriptor(arguments, "w")
            case "flock":
                yield from self._by_descriptor(arguments, "kw" if "LOCK_EX" in arguments else "k")
            case "fcntl":
                if re.search(r"\bF_(OFD_)?SETLKW?\b", arguments):
                    yield from self._by_descriptor(arguments, "kw" if "F_WRLCK" in arguments else "k")
            case "socket" | "socketpair":
                yield from self._socket(arguments)
            case "connect" | "bind" | "sendto" | "sendmsg" | "sendmmsg":
                for path in re.findall(r'sun_path="((?:[^"\\]|\\.)*)"', arguments):
                    yield Access(
                        self._named(path) if call == "bind" else self._host.real(path),
                        frozenset("rw" if call == "connect" else "w"),
                    )
            case "kill" | "tkill" | "tgkill" | "pidfd_send_signal":
                if re.search(r"\bSIG[A-Z]", arguments):
                    yield SIGNAL
            case "ptrace" | "process_vm_readv" | "pidfd_getfd":
                yield Access("ptrace (read)")
            case "mount" | "umount2":
                yield Access(call.rstrip("2"))
            case _:
                pass

    def _opened(self, call: str, arguments: str, rest: str) -> Iterator[Access]:
        """By the path that the kernel found; a directory's has a slash. A name only (O_PATH) is not asked about."""
        path = re.match(r"^<((?:[^<>\\]|\\.)*)>", rest)
        if (
            path is None
            or not path[1].startswith("/")
            or path[1].startswith("/memfd:")
            or "O_PATH" in arguments
        ):
            return
        modes = "w" if call == "creat" or "O_WRONLY" in arguments else "rw" if "O_RDWR" in arguments else "r"
        if "O_CREAT" in arguments or "O_TRUNC" in arguments or "O_TMPFILE" in arguments:
            modes += "w"
        yield Access(self._as_rule_sees(path[1]), frozenset(modes))

    def _by_descriptor(self, arguments: str, modes: str) -> Iterator[Access]:
        for path in _FD.findall(arguments)[:1]:
            if path.startswith("/") and not path.startswith("/memfd:"):
                yield Access(self._as_rule_sees(path), frozenset(modes))

    @staticmethod
    def _socket(arguments: str) -> Iterator[Access]:
        family, kind = re.findall(r"(?:AF|SOCK)_(\w+)", arguments)[:2]
        if family in ("UNIX", "LOCAL"):
            yield Access("unix")
        else:
            yield Access(f"network {family.lower()} {kind.lower()}")
