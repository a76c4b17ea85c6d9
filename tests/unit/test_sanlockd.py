"""Options and configuration of sanlock's daemon as settings of ours: what counts, what is named, what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from holdfast.config import load
from holdfast.daemon.sanlockd import RUN_DIR, Settings, Unusable, settings_of

CONF = """# a comment
io_timeout = 5
use_watchdog = 1
 kill_grace_seconds=7 trailing words
uname = root
gname = root
our_host_name = web.example
use_zfs = 1
quiet_fail = 0
"""


def test_file_and_command_line_come_to_settings_and_the_command_line_wins() -> None:
    settings = settings_of(["-D", "-w", "0", "-o", "3", "-e", "alpha", "-h", "0"], CONF)
    assert (settings.user, settings.group, settings.watchdog, settings.io_timeout_s) == (
        "root",
        "root",
        "none",
        3,
    )
    said = "\n".join(settings.remarks)
    for word in ("our_host_name is not used", "use_zfs is not known", "kill_grace_seconds is 40"):
        assert word in said
    assert "quiet_fail" not in said


def test_nothing_means_sanlocks_defaults() -> None:
    settings = settings_of([], "")
    assert (settings.watchdog, settings.io_timeout_s, settings.fire_timeout_s) == ("wdmd", 10, 60)
    assert not settings.remarks


@pytest.mark.parametrize(
    ("options", "conf", "why"),
    [
        (["-x", "1"], "", "option -x is not one of sanlock daemon's"),
        (["-w"], "", "option -w needs a value"),
        (["-o", "ten"], "", "io_timeout must be a whole number from 1 to 255, not 'ten'"),
        ([], "io_timeout = 300", "io_timeout must be"),
        (["-w", "2"], "", "use_watchdog must be"),
        ([], "kill_grace_seconds = 61", "kill_grace_seconds must be"),
    ],
)
def test_what_can_not_be_used_is_named(options: list[str], conf: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        settings_of(options, conf)


@pytest.mark.parametrize("run_dir", [RUN_DIR, "/srv/elsewhere"])
def test_the_configuration_loads(run_dir: str, tmp_path: Path) -> None:
    text = Settings(user="root", group="root", watchdog="none", io_timeout_s=7).toml(run_dir)
    file = tmp_path / "sanlockd.toml"
    file.write_text(text)
    config = load(str(file), environ={}, uid=0)
    assert config.sanlock.socket == f"{run_dir}/sanlock.sock"
    assert (config.sanlock.io_timeout_s, config.sanlock.watchdog) == (7, "none")
    assert config.virtlockd.socket.startswith(run_dir), "libvirt's lockd plugin asks elsewhere"
    top = tomllib.loads(text)
    places = {top["run_dir"], top["state_dir"], top["host_locks"]}
    assert len(places) == 3
    if run_dir != RUN_DIR:
        assert all(place.startswith(run_dir) for place in places), "several of them can run on one kernel"
