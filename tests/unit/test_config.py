"""Configuration: what is refused and how it is told, what files add up to, and that it survives being printed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast import config as cf
from holdfast.config import Config
from holdfast.config_hook import HookAction
from holdfast.config_rules import covers
from holdfast.config_toml import to_toml
from holdfast.errors import ConfigError
from holdfast.model import Protection

ROOT = {"HOME": "/root"}


def write(directory: Path, text: str, name: str = "holdfast.toml") -> str:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def problems(directory: Path, text: str) -> list[ConfigError]:
    config, found = cf.check(write(directory, text), environ=ROOT, uid=0)
    assert (config is None) == bool(found)
    return found


REFUSALS = [
    ("run_dri = '/x'", "run_dri", "is not known; known are run_dir"),
    ("run_dir = 7", "run_dir", "expected text in quotes"),
    ("run_dir = 'relative'", "run_dir", "must be an absolute path, not 'relative'"),
    ("state_dir = 'relative'", "state_dir", "must be an absolute path"),
    ('run_dir = "/a\\u0000b"', "run_dir", "NUL"),
    ("log_level = 'loud'", "log_level", "not one of the known values: 'loud'"),
    ("require_protection = 4", "require_protection", "<= 3"),
    ("require_protection = 'high'", "require_protection", "expected a whole number"),
    (
        "default_backend = 'shared'",
        "default_backend",
        "no [backend.shared] is configured; configured are: file",
    ),
    ("virtlockd = 'x'", "virtlockd", "must be a table: write [virtlockd]"),
    ("[virtlockd]\nsokcet = '/x'", "virtlockd.sokcet", "is not known; known here are socket, max_clients"),
    ("[virtlockd]\nsocket = 'x'", "virtlockd.socket", "must be an absolute path"),
    (
        f"[virtlockd]\nsocket = '/{'x' * 107}'",
        "virtlockd.socket",
        "is 108 bytes long, a socket path has at most 107",
    ),
    ("[virtlockd]\nmax_clients = 1", "virtlockd.max_clients", ">= 8"),
    ("[virtlockd]\nmax_clients = 1000000", "virtlockd.max_clients", "<= 100000"),
    ("[virtlockd]\nmax_clients = true", "virtlockd.max_clients", "expected a whole number"),
    ("[control]\nmax_clients = 0", "control.max_clients", ">= 1"),
    ("[control]\ngroup = 'nobody-has-this-group'", "control.group", "create it or leave it out"),
    (
        "[sanlock]\ngroup = 'nobody-has-this-group'\nuser = 'root'",
        "sanlock.group",
        "create it or leave it out",
    ),
    ("[sanlock]\ngroup = 'root'", "sanlock.user", "is needed with group"),
    ("[sanlock]\nuser = 'nobody-has-this-name'", "sanlock.user", "create it or leave it out"),
    ("[sanlock]\nversion = 'three'", "sanlock.version", "a version of sanlock"),
    ("[sanlock]\nsocket = 'sanlock.sock'", "sanlock.socket", "absolute path"),
    ("[sanlock]\nwatchdog_device = '/dev/watchdog0'", "sanlock.watchdog_device", "is for watchdog"),
    (
        "[virtlockd]\nsocket = '/s'\n[control]\nsocket = '/s'",
        "control.socket",
        "is the same as virtlockd.socket",
    ),
    ("[limits]\nstorage_timeout_s = 0.5", "limits.storage_timeout_s", ">= 1"),
    ("[limits]\nstorage_timeout_s = nan", "limits.storage_timeout_s", "number"),
    ("[limits]\nstorage_timeout_s = inf", "limits.storage_timeout_s", "<= 3600"),
    ("[limits]\nowners_max = 1", "limits.owners_max", ">= 8"),
    ("[recovery]\non_lock_lost = 'panic'", "recovery.on_lock_lost", "not one of the known values: 'panic'"),
    ("backend = 3", "backend", "must be tables: write [backend.NAME]"),
    ("[backend]\nx = 3", "backend", "must be tables: write [backend.NAME]"),
    ("[backend.x]\ndirectory = '/d'", "backend.x", "misses the key driver"),
    ("[backend.'a b']\ndriver = 'file'", "backend.a b", "name must be letters"),
    ("disk = 3", "disk", "must be an array of tables: write [[disk]]"),
    ("[[disk]]\nbackend = 'file'", "disk[1]", "needs exactly one of match = and lockspace ="),
    ("[[disk]]\nmatch='/a'\nlockspace='/b'\nbackend='file'", "disk[1]", "needs exactly one of"),
    ("[[disk]]\nmatch = '/a'", "disk[1]", "misses the key `backend`"),
    ("[[disk]]\nmatch = '/a'\nbackend = 'x'", "disk[1].backend", "no [backend.x] is configured"),
    ("[[disk]]\nmatch = 'a'\nbackend = 'file'", "disk[1].match", 'write "/a" or "*/a"'),
    ("[[disk]]\nmatsh = '/a'\nbackend = 'file'", "disk[1].matsh", "is not known"),
    (
        "[[disk]]\nmatch = '/a'\nbackend = 'file'\nrequire_protection = 9",
        "disk[1].require_protection",
        "<= 3",
    ),
    ("disk = [3]", "disk[1]", "expected a table"),
    ("hook = 3", "hook", "must be a table: write [[hook.actions]]"),
    ("[hook]\nlimit = 3", "hook.limit", "is not known; known here are actions"),
    ("[hook.actions]\nprepare = 'exclusive'", "hook.actions", "must be an array of tables"),
    ("[[hook.actions]]\nprepare = 'exclusive'", "hook.actions[1]", "misses the key"),
    (
        "[[hook.actions]]\nmatch = '/a'\nsuspend = 'unlock'",
        "hook.actions[1].suspend",
        "is not known; known here",
    ),
    (
        "[[hook.actions]]\nmatch = '/a'\nmigrate = 'ex'",
        "hook.actions[1].migrate",
        "not one of the known values",
    ),
    ("[[hook.actions]]\nmatch = 'a'\nmigrate = 'shared'", "hook.actions[1].match", 'write "/a"'),
    ("[[hook.actions]]\nmatch = '/a'", "hook.actions[1].match", "has no event"),
    *(
        (
            f"[[hook.actions]]\nmatch = '/a'\n{event} = 'unlock'",
            f"hook.actions[1].{event}",
            f'would start a VM without a lock on its disk: write {event} = "exclusive", or "shared" for disks',
        )
        for event in ("prepare", "restore", "start")
    ),
    *(
        (
            f"[[hook.actions]]\nmatch = '/a'\n{event} = 'unlock'",
            f"hook.actions[1].{event}",
            "unlock would free the disk of a VM that runs: leave it out",
        )
        for event in ("started", "reconnect")
    ),
    *(
        (
            f"[[hook.actions]]\nmatch = '/a'\nprepare = 'exclusive'\n{event} = 'shared'",
            f"hook.actions[1].{event}",
            f'shared is not what prepare says, exclusive: write {event} = "exclusive"',
        )
        for event in ("restore", "start", "started", "reconnect")
    ),
    (
        "[[hook.actions]]\nmatch = '/a'\nstart = 'exclusive'",
        "hook.actions[1].start",
        'exclusive is what the disk has since prepare: write prepare = "exclusive"',
    ),
    *(
        (
            f"[[hook.actions]]\nmatch = '/a'\n{event} = 'shared'",
            f"hook.actions[1].{event}",
            f'shared would hold a disk for a VM that has ended: write {event} = "unlock"',
        )
        for event in ("stopped", "release")
    ),
    (
        "[[hook.actions]]\nmatch = '/a/*'\nmigrate = 'shared'\n[[hook.actions]]\nmatch = '/a/b'\nmigrate = 'unlock'",
        "hook.actions[2].match",
        "hook.actions[1] '/a/*' comes first and takes all of it",
    ),
    ("run_dir = ", "syntax", "is not TOML"),
    ("run_dir = '/a'\nrun_dir = '/b'", "syntax", "is not TOML"),
    ("a" * (cf.CONFIG_BYTES_MAX + 1), "file", "is larger than"),
]


@pytest.mark.parametrize(
    ("text", "key", "expected"), REFUSALS, ids=[f"{k}: {t[:20]}" for _, k, t in REFUSALS]
)
def test_refusal_names_file_key_and_fix(tmp_path: Path, text: str, key: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert found, "it was accepted"
    (problem, *_) = [p for p in found if p.facts["key"] == key] or found
    assert problem.facts["key"] == key
    assert problem.facts["file"] == str(tmp_path / "holdfast.toml")
    assert expected in str(problem)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "run_dir = 'x'\nstate_dir = 'y'\ndefault_backend = 'z'")
    assert [p.facts["key"] for p in found] == [
        "run_dir",
        "state_dir",
        "control.socket",  # it is in run_dir
        "default_backend",
    ]


def test_named_file_must_be_there_and_the_default_one_need_not(tmp_path: Path) -> None:
    config, found = cf.check(str(tmp_path / "none.toml"), environ=ROOT, uid=0)
    assert config is None
    assert "can't be read: No such file or directory" in str(found[0])
    # A short path: the control socket's has room for 107 bytes, which pytest's own directories may use up.
    config, found = cf.check(None, environ={"HOME": "/nowhere"}, uid=1000)
    assert config is not None
    assert not found
    assert config.run_dir == "/nowhere/.cache/holdfast"


def test_file_that_is_not_utf8_is_told_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_bytes(b"# \xff")
    _, found = cf.check(str(path), environ=ROOT, uid=0)
    assert "is not UTF-8 at byte 2" in str(found[0])


def test_directory_in_place_of_a_file_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "x.toml").mkdir(parents=True)
    _, found = cf.check(write(tmp_path, ""), environ=ROOT, uid=0)
    assert "Is a directory" in str(found[0])


def test_defaults_of_root_are_the_systems_paths(tmp_path: Path) -> None:
    config = cf.load(write(tmp_path, ""), environ={}, uid=0)
    assert (config.run_dir, config.state_dir) == ("/run/holdfast", "/var/lib/holdfast")
    assert config.virtlockd.socket == "/run/libvirt/virtlockd-sock"
    assert config.control_socket == "/run/holdfast/io.holdfast.Control"
    assert config.backend == {"file": {"driver": "file"}}


def test_defaults_of_a_user_are_xdg_directories(tmp_path: Path) -> None:
    environ = {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/s"}
    config = cf.load(write(tmp_path, ""), environ=environ, uid=7)
    assert (config.run_dir, config.state_dir) == ("/run/user/7/holdfast", "/s/holdfast")
    assert config.virtlockd.socket == "/run/user/7/libvirt/virtlockd-sock"
    assert cf.default_file({"XDG_CONFIG_HOME": "/c"}, 7) == "/c/holdfast/holdfast.toml"


def test_later_files_overrule_keys_add_backends_and_append_rules(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        "run_dir = '/a'\n[limits]\nowners_max = 100\nstorage_timeout_s = 5\n[backend.b]\ndriver = 'file'\n"
        "directory = '/one'\n[[disk]]\nmatch = '/first'\nbackend = 'b'\n",
    )
    write(
        tmp_path, "[[disk]]\nmatch = '/third'\nbackend = 'c'\n[backend.c]\ndriver = 'nop'\n", "conf.d/20.toml"
    )
    write(
        tmp_path,
        "run_dir = '/b'\n[limits]\nowners_max = 200\n[backend.b]\ndirectory = '/two'\n"
        "[[disk]]\nmatch = '/second'\nbackend = 'b'\n",
        "conf.d/10.toml",
    )
    write(tmp_path, "not toml", "conf.d/ignored.conf")
    write(tmp_path, "not toml", "conf.d/.hidden.toml")
    config = cf.load(main, environ=ROOT, uid=0)
    assert config.run_dir == "/b"
    assert (config.limits.owners_max, config.limits.storage_timeout_s) == (200, 5)
    assert config.backend["b"] == {"driver": "file", "directory": "/two"}
    assert [r.match for r in config.disk] == ["/first", "/second", "/third"]
    assert [Path(f).name for f in config.sources] == ["holdfast.toml", "10.toml", "20.toml"]
    assert [Path(f).name for f in config.rule_sources] == ["holdfast.toml", "10.toml", "20.toml"]


def test_problem_in_a_snippet_names_the_snippet(tmp_path: Path) -> None:
    main = write(tmp_path, "[virtlockd]\nmax_clients = 100\n")
    snippet = write(tmp_path, "[virtlockd]\nmax_clients = 1\n", "conf.d/a.toml")
    _, found = cf.check(main, environ=ROOT, uid=0)
    assert found[0].facts["file"] == snippet
    assert found[0].facts["key"] == "virtlockd.max_clients"


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [("/dev/*", "/dev/vg/a"), ("/dev/*", "/dev/vg/*"), ("*", "/a"), ("/a", "/a"), ("*/x", "/a/*/x")],
)
def test_rule_behind_a_wider_one_is_refused_with_the_number_of_the_wider(
    tmp_path: Path, wide: str, narrow: str
) -> None:
    text = f"[[disk]]\nmatch = '{wide}'\nbackend = 'file'\n[[disk]]\nmatch = '{narrow}'\nbackend = 'file'\n"
    (problem,) = problems(tmp_path, text)
    assert problem.facts["key"] == "disk[2].match"
    assert f"disk[1] '{wide}' comes first and takes all of it; put the narrower rule first" in str(problem)
    assert not covers(narrow, wide) or wide == narrow


def test_rule_on_lockspaces_does_not_shadow_a_rule_on_disks(tmp_path: Path) -> None:
    text = "[[disk]]\nlockspace = '*'\nbackend = 'file'\n[[disk]]\nmatch = '/a'\nbackend = 'file'\n"
    assert not problems(tmp_path, text)


GLOB = st.text(alphabet="ab/*?[]!", max_size=6)


@given(GLOB, GLOB, st.text(alphabet="ab/[]!", max_size=6))
def test_rule_that_is_said_to_be_covered_matches_nothing_that_the_wider_one_doesnt(
    wide: str, narrow: str, path: str
) -> None:
    import fnmatch

    if covers(wide, narrow) and fnmatch.fnmatchcase(path, narrow):
        assert fnmatch.fnmatchcase(path, wide)


def test_stricter_of_the_two_protections_counts(tmp_path: Path) -> None:
    text = "require_protection = 1\n[[disk]]\nmatch = '/a'\nbackend = 'file'\nrequire_protection = 2\n"
    config = cf.load(write(tmp_path, text), environ=ROOT, uid=0)
    assert cf.protection_min(config, config.disk[0]) is Protection.CROSS_HOST
    assert cf.protection_min(config, None) is Protection.SAME_HOST


@pytest.mark.parametrize("held", ["exclusive", "shared"])
def test_policy_of_the_hook_may_say_whatever_keeps_a_disk_locked_while_its_vm_runs(
    tmp_path: Path, held: str
) -> None:
    events = "".join(
        f"{event} = '{held}'\n" for event in ("prepare", "restore", "start", "started", "reconnect")
    )
    for migrate in ("exclusive", "shared", "unlock"):
        text = f"[[hook.actions]]\nmatch = '/a'\n{events}migrate = '{migrate}'\nstopped = 'unlock'\nrelease = 'unlock'\n"
        assert not problems(tmp_path, text)
    write(tmp_path, "[[hook.actions]]\nmatch = '/b'\nstart = 'unlock'\n", "conf.d/10.toml")
    _, (problem,) = cf.check(str(tmp_path / "holdfast.toml"), environ=ROOT, uid=0)
    assert (problem.facts["key"], Path(str(problem.facts["file"])).name) == (
        "hook.actions[2].start",
        "10.toml",
    )


PRINTABLE = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    PRINTABLE | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PRINTABLE, inner, max_size=3),
    max_leaves=5,
)
CONFIGS = st.builds(
    Config,
    run_dir=st.just("/run/x"),
    state_dir=PRINTABLE.map(lambda t: "/" + t.replace("\0", "")),
    log_level=st.sampled_from(("debug", "info", "warning", "error")),
    limits=st.builds(cf.LimitsTable, storage_timeout_s=st.floats(1, 3600), owners_max=st.integers(8, 1000)),
    virtlockd=st.just(cf.VirtlockdTable(socket="/v")),
    backend=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True),
        st.dictionaries(PRINTABLE, VALUES, max_size=3).map(lambda d: {**d, "driver": "file"}),
        max_size=3,
    ).map(lambda d: {**d, "file": {"driver": "file"}}),
    disk=st.lists(
        st.builds(
            cf.DiskRule,
            backend=st.just("file"),
            match=PRINTABLE.map(lambda t: "/" + t),
            require_protection=st.integers(0, 3),
        ),
        max_size=2,
        unique_by=lambda r: r.match,
    ).map(tuple),
    hook_actions=st.lists(
        st.builds(
            HookAction,
            match=PRINTABLE.map(lambda t: "/" + t),
            prepare=st.sampled_from(("exclusive", "shared")),
            migrate=st.sampled_from(("exclusive", "shared", "unlock", None)),
            stopped=st.sampled_from(("unlock", None)),
        ),
        max_size=2,
        unique_by=lambda r: r.match,
    ).map(tuple),
)


@given(CONFIGS)
def test_printed_configuration_loads_to_the_same(config: Config) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), to_toml(config))
        read, found = cf.check(path, environ=ROOT, uid=0)
        if found:  # a rule may be covered by the other one: that is its own refusal, not the printing's
            assert all("comes first and takes all of it" in str(p) for p in found)
            return
    assert read is not None
    same = msgspec.structs.replace(read, sources=(), rule_sources=(), action_sources=())
    assert same == config


TOML_TEXT = st.lists(
    st.sampled_from(
        (
            *(
                "[",
                "]",
                "[[",
                "]]",
                "{",
                "}",
                "=",
                ".",
                ",",
                '"',
                "'",
                '"""',
                "\n",
                " ",
                "#",
                "\\",
                "\x7f",
                "\0",
            ),
            *(
                "run_dir",
                "virtlockd",
                "max_clients",
                "backend",
                "driver",
                "disk",
                "match",
                "limits",
                "control",
            ),
            *("storage_timeout_s", "default_backend", "recovery", "group", "socket", "file", "lockspace"),
            *(
                "1",
                "-1",
                "9" * 30,
                "9" * 5000,
                "1e400",
                "nan",
                "inf",
                "true",
                "1979-05-27T07:32:00Z",
                "07:32:00",
            ),
            *('"/x"', "'/y'", "[disk]", "[[disk]]", "[backend.a]", "= 1\n", '= "/"\n', "= []\n", "= {}\n"),
        )
    )
    | st.text(max_size=3),
    max_size=30,
).map("".join)


@given(TOML_TEXT)
@example("x = " + "[" * 3000)
@example("[limits]\nowners_max = " + "9" * 5000)
@example("[limits]\nowners_max = " + "9" * 30)
@example("[backend.a]\ndriver = 'file'\nx = 1979-05-27T07:32:00Z")
@example('[control]\ngroup = "a\\u0000b"')
@example("[control]\ngroup = '\udc80'".encode("utf-8", "surrogateescape").decode("latin-1"))
@example('[virtlockd]\nsocket = "/\\u0000"')
@example("[[disk]]\nmatch = '/[z-a]'\nbackend = 'file'")
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "holdfast.toml")
        Path(path).write_text(text, errors="surrogatepass", newline="")
        config, found = cf.check(path, environ=ROOT, uid=0)
        assert (config is None) == bool(found)
        if config is None:
            with pytest.raises(ConfigError):
                cf.load(path, environ=ROOT, uid=0)
        else:
            to_toml(config)


# --- a configuration that another version has written ---


def lenient(text: str) -> tuple[Config | None, list[str]]:
    config, reasons = cf.load_lenient(text, "kept", environ=ROOT, uid=0)
    return config, [str(each) for each in reasons]


def test_keys_that_this_version_does_not_know_are_dropped_and_the_rest_is_in_force() -> None:
    config, dropped = lenient(
        "shiny = 1\nrun_dir = '/x'\n[limits]\nspeed = 3\nowners_max = 9\n[future]\na = 1\n"
        "[[disk]]\nmatch = '/a'\nbackend = 'file'\n[[disk]]\nmatch = '/b'\nbackend = 'file'\nhue = 'red'\n"
        "[hook]\nlimit = 3\n[[hook.actions]]\nmatch = '/a'\nmigrate = 'shared'\nsuspend = 'unlock'\n"
    )
    assert config is not None
    assert (config.run_dir, config.limits.owners_max, len(config.disk)) == ("/x", 9, 2)
    assert [action.migrate for action in config.hook_actions] == ["shared"]
    assert sorted(d.split(": ")[1] for d in dropped) == sorted(
        ["shiny", "future", "limits.speed", "disk[2].hue", "hook.limit", "hook.actions[1].suspend"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "not TOML",
        "run_dir = 7",
        "[[disk]]\nmatch = '/a'\nbackend = 'nowhere'",
        "".join(f"k{n} = 1\n" for n in range(cf.DROPPED_KEYS_MAX + 1)),
    ],
    ids=["syntax", "kind", "rule", "too many"],
)
def test_what_can_not_be_made_sense_of_by_dropping_keys_is_refused(text: str) -> None:
    config, reasons = lenient(text)
    assert config is None
    assert reasons


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling link"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "holdfast.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    config, found = cf.check(str(path), environ=ROOT, uid=0)
    assert config is None
    assert [p.facts["key"] for p in found] == ["file"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('migration_peers = "some"', "migration_peers"),
        ("[limits]\nacquire_wait_s = -1", "limits.acquire_wait_s"),
        ("[limits]\nacquire_wait_s = 601", "limits.acquire_wait_s"),
    ],
)
def test_wrong_words_about_migrations_are_named(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text(text)
    config, problems = cf.check(str(file), environ={}, uid=0)
    assert config is None
    assert [problem.facts["key"] for problem in problems] == [key]


def test_migrations_are_configured(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text("")
    config = cf.load(str(file), environ={}, uid=0)
    assert (config.migration_peers, config.limits.acquire_wait_s) == ("holdfast", 10)
    file.write_text('migration_peers = "any"\n[limits]\nacquire_wait_s = 0\n')
    config = cf.load(str(file), environ={}, uid=0)
    assert (config.migration_peers, config.limits.acquire_wait_s) == ("any", 0)
