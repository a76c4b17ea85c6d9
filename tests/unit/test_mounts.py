"""The mount table: real and odd lines, and a walk along symbolic links that never touches what may block."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model import Protection
from holdfast.system.files.mounts import LINKS_MAX, MountTable, is_block_device, parse_mountinfo

LINE = "36 35 98:0 /mnt1 {point} rw,noatime master:1 - {type} {source} {options}\n"


def line(point: str, kind: str, options: str = "rw", source: str = "src") -> str:
    return LINE.format(point=point, type=kind, source=source, options=options)


def table(tmp_path: Path, *lines: str) -> MountTable:
    path = tmp_path / "mountinfo"
    path.write_text(line("/", "ext4") + "".join(lines))
    return MountTable(str(path))


def test_line_of_proc_5_is_understood() -> None:
    (mount,) = parse_mountinfo(
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/a\\134b rw,errors=continue\n"
    )
    assert (mount.point, mount.type, mount.source) == ("/mnt 2", "ext3", "/dev/a\\b")
    assert {"rw", "noatime", "errors=continue"} <= mount.options


def test_own_mount_table_is_understood() -> None:
    text = Path("/proc/self/mountinfo").read_text()
    assert len(parse_mountinfo(text)) == len(text.splitlines())


@given(st.text(max_size=200))
def test_odd_text_is_passed_over(text: str) -> None:
    parse_mountinfo(text)


@pytest.mark.parametrize(
    ("kind", "options", "protection", "warning"),
    [
        ("nfs4", "rw,vers=4.2", Protection.CROSS_HOST, ""),
        ("nfs", "rw,nolock", Protection.SAME_HOST, "nolock"),
        ("nfs", "rw,local_lock=all", Protection.SAME_HOST, "local_lock=all"),
        ("nfs", "rw,local_lock=posix", Protection.SAME_HOST, "local_lock=posix"),
        ("nfs", "rw,local_lock=none", Protection.CROSS_HOST, ""),
        ("cifs", "rw,nobrl", Protection.SAME_HOST, "nobrl"),
        ("ocfs2", "rw,localflocks", Protection.SAME_HOST, "host-local locks"),
        ("9p", "rw", Protection.SAME_HOST, "does not carry locks"),
        ("gfs2", "rw", Protection.CROSS_HOST, ""),
        ("ext4", "rw", Protection.SAME_HOST, ""),
        ("something-new", "rw", Protection.SAME_HOST, ""),
    ],
)
def test_worth_of_a_lock_follows_the_file_system_and_its_options(
    tmp_path: Path, kind: str, options: str, protection: Protection, warning: str
) -> None:
    mount, _ = table(tmp_path, line("/m", kind, options)).locate("/m/x")
    assert mount.protection is protection
    assert warning in mount.lock_warning
    assert bool(warning) == bool(mount.lock_warning)
    assert mount.may_block == (kind != "ext4")


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("nfs4", "rw,vers=4.2", ""),
        ("nfs", "rw,nolock", ""),
        ("ocfs2", "rw,localflocks", ""),
        ("gfs2", "rw", ""),
        ("gfs2", "rw,lockproto=lock_nolock", "for this host alone"),
        ("fuse.sshfs", "rw", "not known to show other hosts"),
        ("fuse", "rw", "(fuse) is local to this host"),
        ("ext4", "rw", "(ext4) is local to this host"),
    ],
)
def test_leases_ask_for_shared_data_and_for_no_lock(
    tmp_path: Path, kind: str, options: str, why: str
) -> None:
    found = table(tmp_path, line("/m", kind, options)).mount_of("/m/x").not_shared
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize(
    ("kind", "outlives"),
    [
        ("nfs4", True),
        ("fuse.glusterfs", True),
        ("gfs2", False),
        ("ocfs2", False),
        ("xfs", False),
        ("fuse", False),
    ],
)
def test_network_file_systems_write_on_for_processes_that_were_killed(
    tmp_path: Path, kind: str, outlives: bool
) -> None:
    assert table(tmp_path, line("/m", kind, "rw")).mount_of("/m/x").outlives_its_writers is outlives


@pytest.mark.parametrize(
    ("kind", "options", "shared"),
    [("nfs", "rw,nolock", True), ("9p", "rw", True), ("gfs2", "rw,lockproto=lock_nolock", False), ("xfs", "rw", False)],
)  # fmt: skip
def test_files_of_a_cluster_file_system_are_others_too_whatever_its_locks_do(
    tmp_path: Path, kind: str, options: str, shared: bool
) -> None:
    assert table(tmp_path, line("/m", kind, options)).mount_of("/m/x").is_shared is shared


def test_longest_mount_point_wins_and_a_later_mount_hides_an_earlier_one(tmp_path: Path) -> None:
    mounts = table(
        tmp_path, line("/a", "ext4", source="one"), line("/a/b", "nfs"), line("/a", "xfs", source="two")
    )
    assert mounts.mount_of("/a/bc").source == "two"
    assert mounts.mount_of("/a/b/c").type == "nfs"
    assert mounts.mount_of("/else").point == "/"
    assert mounts.mounted_at("/a/b/c") is None


def test_walk_follows_links_and_stops_at_the_first_component_that_may_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (tmp_path / "link").symlink_to("remote/deep")
    (tmp_path / "up").symlink_to("../" + tmp_path.name + "/link")
    (remote / "deep").symlink_to("/never/looked/at")
    mounts = table(tmp_path, line(str(remote), "nfs"))
    asked: list[str] = []
    real = os.readlink

    def readlink(path: str) -> str:
        asked.append(path)
        return real(path)

    monkeypatch.setattr(os, "readlink", readlink)
    for name in ("link", "up", "remote/deep", "./remote/../remote/x"):
        mount, at = mounts.locate(f"{tmp_path}/{name}/rest")
        assert mount.type == "nfs", name
        assert at.startswith(str(remote))
    assert not [p for p in asked if p.startswith(str(remote))], "the mount that may block was touched"


def test_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    mount, _ = table(tmp_path).locate(f"{tmp_path}/a/x")
    assert mount.point == "/"
    assert LINKS_MAX == 40


def test_missing_path_is_on_its_parents_mount(tmp_path: Path) -> None:
    mount, at = table(tmp_path).locate(f"{tmp_path}/not/there")
    assert mount.point == "/"
    assert at == f"{tmp_path}/not/there"
    assert not is_block_device(f"{tmp_path}/not/there")
