"""Which path all hosts should name a disk by, and who is warned about another one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from holdfast.system.files.canonical_path import WARNED_MAX, PathWarnings, canonical_path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`pool` is a link to `images`, and `images/disk.0` one to `web.img` beside it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/web.img").touch()
    (tmp_path / "pool").symlink_to("images")
    (tmp_path / "images/disk.0").symlink_to("web.img")
    (tmp_path / "round").symlink_to("round")
    return tmp_path.resolve()


@pytest.mark.parametrize(
    "name",
    [
        "images/disk.0",
        "pool/web.img",
        "pool/disk.0",
        "images/./web.img",
        "pool/../images/web.img",
        "images//web.img",
    ],
)
def test_every_other_way_to_an_image_leads_to_its_one_path(place: Path, name: str) -> None:
    assert canonical_path(f"{place}/{name}") == f"{place}/images/web.img"


@pytest.mark.parametrize("name", ["images/web.img", "images/new.img", "gone/new.img", "round"])
def test_path_without_links_and_one_that_leads_nowhere_stand_for_themselves(place: Path, name: str) -> None:
    assert canonical_path(f"{place}/{name}") == f"{place}/{name}"


def test_names_that_udev_makes_stand_for_themselves_and_numbers_of_the_device_mapper_for_its_names(
    place: Path,
) -> None:
    (place / "class/block/dm-3/dm").mkdir(parents=True)
    (place / "class/block/dm-3/dm/name").write_text("vg-web\n")
    (place / "disk.1").symlink_to("/dev/dm-3")
    (place / "disk.2").symlink_to("/dev/vg/web")
    assert canonical_path("/dev/vg/web", str(place)) == "/dev/vg/web"
    assert canonical_path("/dev/dm-3", str(place)) == "/dev/mapper/vg-web"
    assert canonical_path("/dev/dm-4", str(place)) == "/dev/dm-4"
    assert canonical_path(f"{place}/disk.1", str(place)) == "/dev/mapper/vg-web"
    assert canonical_path(f"{place}/disk.2", str(place)) == "/dev/vg/web"


def test_each_path_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    warnings = PathWarnings("san")
    with caplog.at_level(logging.WARNING):
        warnings.met("/srv/a", "/srv/a")
        warnings.met("/srv/a", "")
        assert not caplog.records
        for _ in range(2):
            warnings.met("/srv/link", "/srv/a")
        assert len(caplog.records) == 1
        assert "/srv/link is another name of /srv/a: backend 'san' names locks by path" in caplog.text
        for number in range(WARNED_MAX):
            warnings.met(f"/srv/{number}", "/srv/a")
        assert len(warnings._warned) <= WARNED_MAX
