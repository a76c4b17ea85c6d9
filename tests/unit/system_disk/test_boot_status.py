"""What a watchdog's device says of the boot before this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.system.watchdog.boot_status import resetter


@pytest.mark.parametrize(
    ("said", "by"),
    [("32\n", "/dev/watchdog1"), ("33\n", "/dev/watchdog1"), ("0\n", ""), ("1\n", ""), ("", "")],
)
def test_the_device_that_reset_this_machine_is_named(tmp_path: Path, said: str, by: str) -> None:
    for number, text in enumerate(("0\n", said)):
        device = tmp_path / f"sys/class/watchdog/watchdog{number}"
        device.mkdir(parents=True)
        (device / "bootstatus").write_text(text)
    assert resetter(str(tmp_path)) == by


def test_no_watchdog_says_nothing(tmp_path: Path) -> None:
    assert resetter(str(tmp_path)) == ""
