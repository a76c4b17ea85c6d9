"""The rules of the house, read off the source with `ast`: who may import whom, and who may touch the system.

A broken rule is reported with its number, the line, and the reason the rule exists.  Every accepted
exception is listed here with its own reason, and an exception that nobody needs any more is an error too.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import holdfast

SOURCE = Path(holdfast.__file__).parent

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(("holdfastd", "daemon", "cli", "hooks", "web")),
    frozenset(("switch",)),
    frozenset(("daemon.system_ports",)),
    frozenset(("daemon.lifecycle",)),
    frozenset(("daemon.build",)),
    frozenset(
        (
            "daemon.client_backends",
            "daemon.client_lockspaces",
            "daemon.client_places",
            "daemon.handover",
            "daemon.watchdog_choice",
            "daemon.lockspace_calls",
            "daemon.lockspace_reactions",
            "daemon.lockspaces",
            "daemon.volume_claims",
        )
    ),
    frozenset(("frontends", "control")),
    frozenset(("lease_admin",)),
    frozenset(("manager",)),
    frozenset(("backends",)),
    frozenset(("flight",)),
    frozenset(("supervision",)),
    frozenset(("system",)),
    frozenset(("protocol", "wire")),
    frozenset(("ondisk",)),
    frozenset(
        (
            "model",
            "errors",
            "config",
            "config_change",
            "config_hook",
            "config_rules",
            "config_toml",
            "control.api",
            "network_disk",
        )
    ),
)
"""From the top down; a module is on the floor of the longest name that it begins with. `testing` and the simulator stand
beside the house: they may import everything, and nothing imports them.
"""
SIMULATOR = "holdfast_sim"
OUTSIDE = ("testing", SIMULATOR)

WHY = {
    "rule 1": "imports go one way, so that a layer can be replaced, tested and read without those above it",
    "rule 1, wire": "protocol and wire don't know each other, and a frontend is the only place where wire structs meet "
    "manager calls: otherwise a change of libvirt's wire reaches into decisions",
    "rule 1, testing": "the testing kit is for tests and for third parties; what ships must run without it",
    "rule 3": "pure code can be run exhaustively: what waits, logs or asks the system can't",
    "rule 4": "Config stops at the composition root: a constructor that names the few values it needs can be read alone",
    "rule 5": "what the simulator runs is what ships: it replaces system/ and nothing above, so time, processes and "
    "files must come through system's ports",
    "rule 6": "the first step of a coroutine that tasks.start runs is in no task, where these raise since Python 3.12; "
    "asyncio.wait with a timeout works in both",
    "rule 7": "modules that import each other can only be read, tested and moved together",
}

PURE = (
    "ondisk",
    "protocol",
    "wire",
    "manager.lock_table",
    "cli.who.evidence",
    "cli.who.verdict",
    "cli.who.report",
    "cli.setup.facts",
    "cli.setup.profiles",
    "cli.setup.proposal",
    "cli.setup.plan",
    "cli.setup.steps",
    "switch.lock_conversion",
    "switch.virtlockd_state",
)
IMPURE_MODULES = frozenset(
    ("os", "socket", "asyncio", "threading", "time", "random", "subprocess", "logging")
)

PORTED = ("frontends", "lease_admin", "manager", "backends", "supervision")
"""Layers that live on system's ports alone.  The command and the composition root above them are where ports come
from: they do touch the system."""
SYSTEM_MODULES = frozenset(
    ("time", "random", "subprocess", "threading", "multiprocessing", "fcntl", "select")
)
OS_ALLOWED = frozenset(("path", "strerror", "fsencode", "fsdecode"))
"""What of `os` only computes."""
OS_PATH_ASKS_DISK = frozenset(
    (
        "exists",
        "lexists",
        "isfile",
        "isdir",
        "islink",
        "getsize",
        "getmtime",
        "realpath",
        "samefile",
        "ismount",
    )
)

TASKS_ONLY = (
    "asyncio.wait_for",
    "asyncio.timeout",
    "asyncio.timeout_at",
    "asyncio.TaskGroup",
    "asyncio.current_task",
)
"""What of asyncio needs a task around it."""

LOCKS_ONLY = "locks between the renewing and the measuring thread; the threads themselves are system's"

SIMULATOR_COMMAND = "the command that runs the testing kit, imported only when it is asked for"

CONFIGURED = frozenset(
    (
        "daemon.main",
        "daemon.sanlockd",
        "daemon.daemon",
        "daemon.check_config",
        "daemon.system_ports",
        "daemon.build",
        "daemon.kept_config",
        "daemon.kept_file",
        "daemon.reload",
        "config",
        "config_change",
        "config_rules",
        "config_toml",
    )
)
"""The composition root, where Config stops, and what reads or compares configurations for it."""

LVMLOCKD_CLIENT = (
    "a client of another program's socket: its words stop here, in the port's own errors (ADR 0207)"
)
LOCKSPACE_HOSTS = "likewise, of sanlock's socket: what it says of hosts stops here (ADR 0223)"
EXCEPTIONS: Mapping[tuple[str, str, str], str] = {
    ("rule 1, wire", "system.lvm.lvmlockd_client", "import of wire.lvmlockd"): LVMLOCKD_CLIENT,
    ("rule 1, wire", "system.lvm.lvmlockd_client", "import of wire.lvmlockd.LvLock"): LVMLOCKD_CLIENT,
    ("rule 1, wire", "system.lvm.lvmlockd_client", "import of wire.lvmlockd.Mode"): LVMLOCKD_CLIENT,
    ("rule 1, wire", "system.lvm.lvmlockd_client", "import of wire.lvmlockd.OpResult"): LVMLOCKD_CLIENT,
    **{
        ("rule 1, wire", "system.lvm.lockspace_hosts", f"import of wire.sanlock.{name}"): LOCKSPACE_HOSTS
        for name in (
            "replies",
            "request_table",
            "requests",
            "flags.HostState",
            "header.HEADER_BYTES",
            "header.decode_reply_header",
            "malformed.MalformedMessage",
            "state_records.RecordType",
            "structures.Lockspace",
        )
    },
    ("rule 5", "supervision.peer_monitor", "threading"): LOCKS_ONLY,
    ("rule 5", "supervision.renewal", "threading"): LOCKS_ONLY,
    ("rule 5", "supervision.lease_monitor", "threading"): LOCKS_ONLY,
    (
        "rule 1, testing",
        "cli.commands.sim",
        "import of holdfast_sim.run.sweep",
    ): SIMULATOR_COMMAND,
    (
        "rule 1, testing",
        "cli.commands.sim",
        "import of holdfast_sim.run.history",
    ): SIMULATOR_COMMAND,
    (
        "rule 1, testing",
        "cli.commands.sim",
        "import of holdfast_sim.run.seed.Verdict",
    ): SIMULATOR_COMMAND,
    (
        "rule 4",
        "cli.main",
        "config",
    ): "the command is a composition root of its own: it looks up the daemon's socket",
    ("rule 4", "web.main", "config"): "its default is the daemon's read-only socket",
    ("rule 4", "cli.context", "config"): "the command's way to the daemon's socket is in the configuration",
    ("rule 4", "cli.doctor.scene", "config"): "its checks are about the configuration itself",
    ("rule 4", "cli.doctor", "config"): "it makes that scene of a configuration",
    ("rule 4", "cli.setup.survey", "config"): "it names the file that setup proposes",
    ("rule 4", "cli.in_force", "config"): "it compares two configurations for those checks",
    (
        "rule 4",
        "cli.who.inquiry",
        "config",
    ): "it passes the configuration on to what reads the sources",
    (
        "rule 4",
        "cli.who.gather",
        "config",
    ): "with the daemon down it finds journal and lock directories by the configuration",
}


class Broken(NamedTuple):
    """One breach: which rule, by whom, about what."""

    rule: str
    module: str
    what: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.what} breaks {self.rule}: {WHY[self.rule]}"


def module_name(path: Path) -> str:
    """`manager.key_locks` for src/holdfast/manager/key_locks.py; a package is named by itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    """What is installed, and the simulator, whose modules have names that begin with its own."""
    house = {module_name(p): p.read_text() for p in SOURCE.rglob("*.py")}
    beside = SOURCE.parent / SIMULATOR
    for path in beside.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        house[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return house


def layer_of(module: str) -> int | None:
    """Its number from the top; None if it is in none."""
    named = {name: number for number, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((named[prefix] for prefix in prefixes if prefix in named), None)


def imports(module: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module, whole name, with its line; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{module}:{node.lineno}: relative imports hide the layer; write holdfast.…"
            )
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def house_imports(module: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    for name, line in imports(module, tree):
        if name.startswith(f"{SIMULATOR}."):
            yield name, line
        elif name.startswith("holdfast."):
            inner = name.removeprefix("holdfast.")
            if not inner.startswith("__"):
                yield inner, line


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in places)


def imports_go_one_way(modules: Mapping[str, str]) -> Iterator[Broken]:
    for module, text in modules.items():
        here = layer_of(module)
        if module == "" or within(module, OUTSIDE):
            continue
        if here is None:
            yield Broken("rule 1", module, "a module in no layer", 1)
            continue
        own = module.split(".", maxsplit=1)[0]
        for target, line in house_imports(module, ast.parse(text)):
            top = target.split(".", maxsplit=1)[0]
            if top in OUTSIDE:
                yield Broken("rule 1, testing", module, f"import of {target}", line)
                continue
            there = layer_of(target)
            if there is None or there < here:
                yield Broken("rule 1", module, f"import of {target}", line)
            elif (top == "wire" and own not in ("wire", "frontends")) or (
                top == "protocol" and own == "wire"
            ):
                yield Broken("rule 1, wire", module, f"import of {target}", line)


def pure_code_imports_nothing_impure(modules: Mapping[str, str]) -> Iterator[Broken]:
    for module, text in modules.items():
        if within(module, PURE):
            for target, line in imports(module, ast.parse(text)):
                if target.split(".", maxsplit=1)[0] in IMPURE_MODULES:
                    yield Broken("rule 3", module, target.split(".", maxsplit=1)[0], line)


def config_stops_at_the_composition_root(modules: Mapping[str, str]) -> Iterator[Broken]:
    for module, text in modules.items():
        if module in CONFIGURED or within(module, OUTSIDE):
            continue
        for target, line in house_imports(module, ast.parse(text)):
            if within(target, ("config",)):
                yield Broken("rule 4", module, "config", line)


def the_system_is_reached_by_its_ports(modules: Mapping[str, str]) -> Iterator[Broken]:
    for module, text in modules.items():
        if not within(module, PORTED):
            continue
        tree = ast.parse(text)
        for target, line in imports(module, tree):
            if target.split(".", maxsplit=1)[0] in SYSTEM_MODULES:
                yield Broken("rule 5", module, target.split(".", maxsplit=1)[0], line)
            elif target == "asyncio.sleep" or (
                target.startswith("os.") and target.split(".")[1] not in OS_ALLOWED
            ):
                yield Broken("rule 5", module, target, line)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                yield Broken("rule 5", module, "open", node.lineno)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                if (
                    node.value.id == "os" and node.attr not in OS_ALLOWED | {"stat_result"}
                ) or used == "asyncio.sleep":
                    yield Broken("rule 5", module, used, node.lineno)
            elif (
                isinstance(node, ast.Attribute)
                and node.attr in OS_PATH_ASKS_DISK
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "path"
            ):
                yield Broken("rule 5", module, f"os.path.{node.attr}", node.lineno)


def nothing_needs_a_task_around_it(modules: Mapping[str, str]) -> Iterator[Broken]:
    for module, text in modules.items():
        if within(module, OUTSIDE):
            continue
        tree = ast.parse(text)
        for target, line in imports(module, tree):
            if target in TASKS_ONLY:
                yield Broken("rule 6", module, target, line)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                if used in TASKS_ONLY:
                    yield Broken("rule 6", module, used, node.lineno)


def no_module_imports_itself_by_others(modules: Mapping[str, str]) -> Iterator[Broken]:
    """At run time: an import for type checkers alone (`if TYPE_CHECKING`) is none."""
    graph: dict[str, set[str]] = {}
    for module, text in modules.items():
        tree = _Untyped().visit(ast.parse(text))
        named = (_module_of(target, modules) for target, _ in house_imports(module, tree))
        graph[module] = {name for name in named if name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        circle = e.args[1]
        yield Broken("rule 7", circle[0], f"the circle {' > '.join(circle)}", 1)


class _Untyped(ast.NodeTransformer):
    """Without what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        self.generic_visit(node)
        return node


def _module_of(target: str, modules: Mapping[str, str]) -> str:
    """The module that an import of `a.b.c` reads: c may be a name in a.b."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


RULES = (
    imports_go_one_way,
    pure_code_imports_nothing_impure,
    config_stops_at_the_composition_root,
    the_system_is_reached_by_its_ports,
    nothing_needs_a_task_around_it,
    no_module_imports_itself_by_others,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_source_keeps_the_rules_of_the_house(rule: object) -> None:
    assert callable(rule)
    broken = [b for b in rule(sources()) if (b.rule, b.module, b.what) not in EXCEPTIONS]
    assert not broken, "\n" + "\n".join(map(str, broken))


def test_every_listed_exception_is_still_needed() -> None:
    found = {(b.rule, b.module, b.what) for rule in RULES for b in rule(sources())}
    stale = [e for e in EXCEPTIONS if e not in found]
    assert not stale, f"remove these exceptions, nothing needs them any more: {stale}"


@pytest.mark.parametrize(
    ("module", "text", "rule", "what"),
    [
        ("system.clock", "from holdfast.manager import key_locks", "rule 1", "import of manager.key_locks"),
        ("wire.xdr", "import holdfast.system.clock", "rule 1", "import of system.clock"),
        ("model", "from holdfast.ondisk import leader", "rule 1", "import of ondisk.leader"),
        ("manager.key_locks", "from holdfast.wire import xdr", "rule 1, wire", "import of wire.xdr"),
        ("wire.xdr", "from holdfast.protocol import ballot", "rule 1, wire", "import of protocol.ballot"),
        ("protocol.ballot", "from holdfast.wire import xdr", "rule 1, wire", "import of wire.xdr"),
        ("utilities", "", "rule 1", "a module in no layer"),
        ("daemon", "from holdfast.testing import clock", "rule 1, testing", "import of testing.clock"),
        ("wire.xdr", "import os.path", "rule 3", "os"),
        ("protocol.ballot", "from asyncio import sleep", "rule 3", "asyncio"),
        ("manager.lock_table", "def f():\n    import logging", "rule 3", "logging"),
        ("manager.key_locks", "from holdfast.config import Config", "rule 4", "config"),
        (
            "manager.key_locks",
            "import asyncio\nasync def f():\n    await asyncio.sleep(1)",
            "rule 5",
            "asyncio.sleep",
        ),
        ("backends.nop", "def f():\n    return open('/x')", "rule 5", "open"),
        ("supervision.renewal", "import os\nos.kill(1, 9)", "rule 5", "os.kill"),
        ("manager.key_locks", "import os\nos.path.exists('/x')", "rule 5", "os.path.exists"),
        ("manager.key_locks", "from time import monotonic", "rule 5", "time"),
        (
            "system.host.commands",
            "import asyncio\nasync def f(w):\n    await asyncio.wait_for(w, 1)",
            "rule 6",
            "asyncio.wait_for",
        ),
        ("daemon", "from asyncio import timeout", "rule 6", "asyncio.timeout"),
        (
            "manager.key_locks",
            "from holdfast.manager.key_locks import KeyLocks",
            "rule 7",
            "the circle manager.key_locks > manager.key_locks",
        ),
    ],
)
def test_planted_breach_is_found_and_explained(module: str, text: str, rule: str, what: str) -> None:
    found = [b for check in RULES for b in check({module: text})]
    assert (rule, module, what) in [(b.rule, b.module, b.what) for b in found]
    assert all(WHY[b.rule] in str(b) for b in found)


def test_circle_of_three_is_found() -> None:
    circle = {
        "manager.a": "from holdfast.manager import b",
        "manager.b": "def f():\n    from holdfast.manager.c import C",
        "manager.c": "import holdfast.manager.a",
        "manager.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from holdfast.manager import d",
    }
    (broken,) = no_module_imports_itself_by_others(circle)
    assert {"manager.a", "manager.b", "manager.c"} <= set(broken.what.split())
    assert not list(no_module_imports_itself_by_others({"manager.d": circle["manager.d"]}))


def test_every_module_belongs_to_a_layer_that_is_known() -> None:
    assert {m.split(".", maxsplit=1)[0] for m in sources()} <= {
        "",
        *OUTSIDE,
        *(n for names in LAYERS for n in names),
    }
