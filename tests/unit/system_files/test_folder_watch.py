"""News of a folder, and of libvirt's status files in it: from the real inotify."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.system.epoll import Readiness
from holdfast.system.files.folder_watch import names, watch_folder
from holdfast.system.libvirt.domains import LibvirtStatusFiles


class Heard:
    """Names in the order in which they came."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, name: str) -> None:
        self.names.append(name)
        self._more.set()

    async def until(self, name: str) -> None:
        while name not in self.names:
            self._more.clear()
            await self._more.wait()


def on_loop(scene: Callable[[Readiness], object]) -> None:
    async def go() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        try:
            await scene(readiness)  # type: ignore[misc]
            assert len(readiness) == 0, "nothing is watched any more"
        finally:
            readiness.close()

    asyncio.run(go())


def test_file_that_is_written_replaced_or_removed_is_named(tmp_path: Path) -> None:
    async def scene(readiness: Readiness) -> None:
        heard = Heard()
        stop = watch_folder(str(tmp_path), readiness, heard)
        (tmp_path / "written").write_text("x")
        await heard.until("written")
        (tmp_path / "new").write_text("y")
        (tmp_path / "new").rename(tmp_path / "replaced")
        await heard.until("replaced")
        heard.names.clear()
        (tmp_path / "written").unlink()
        await heard.until("written")
        stop()
        stop()

    on_loop(scene)


def test_folder_that_is_made_later_is_watched_from_then_on(tmp_path: Path) -> None:
    """After a boot holdfastd starts before libvirt has its folder; and one that is removed may be made again."""

    async def scene(readiness: Readiness) -> None:
        heard = Heard()
        folder = tmp_path / "run" / "libvirt" / "qemu"
        stop = watch_folder(str(folder), readiness, heard)
        for _ in range(2):
            heard.names.clear()
            folder.mkdir(parents=True)
            (folder / "early").write_text("x")
            await heard.until("early")
            (folder / "late").write_text("y")
            await heard.until("late")
            for name in ("early", "late"):
                (folder / name).unlink()
            for gone in (folder, folder.parent, folder.parent.parent):
                gone.rmdir()
        stop()

    on_loop(scene)


def test_folder_that_can_not_be_watched_sends_no_news_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(readiness: Readiness) -> None:
        heard = Heard()
        (tmp_path / "file").write_text("")
        with caplog.at_level(logging.WARNING):
            stop = watch_folder(str(tmp_path / "file"), readiness, heard)
        assert "file can't be watched: Not a directory" in caplog.text
        stop()

    on_loop(scene)


def test_status_files_tell_which_vm_changed(tmp_path: Path) -> None:
    async def scene(readiness: Readiness) -> None:
        heard = Heard()
        stop = LibvirtStatusFiles(str(tmp_path), readiness).watch(heard)
        (tmp_path / "web1.pid").write_text("1")
        (tmp_path / "web1.xml.new").write_text("<x/>")
        (tmp_path / "web1.xml.new").rename(tmp_path / "web1.xml")
        await heard.until("web1")
        assert heard.names == ["web1"]
        stop()

    on_loop(scene)


def test_several_events_in_one_read_are_taken_apart() -> None:
    event = b"\1\0\0\0\x80\0\0\0\0\0\0\0"
    raw = (
        event
        + b"\x10\0\0\0"
        + b"web1.xml".ljust(16, b"\0")
        + event
        + b"\0\0\0\0"
        + event
        + b"\x04\0\0\0"
        + b"a\0\0\0"
    )
    assert names(raw) == ["web1.xml", "", "a"]
    assert names(raw[:-2]) == ["web1.xml", "", "a"]
    assert names(b"") == []


STATUS = """<domstatus state='{state}' reason='{reason}' pid='7'>
  <job type='none' async='{job}' phase='{phase}' flags='0x3'/>
  <domain type='kvm' id='1'><name>web1</name><uuid>u</uuid></domain>
</domstatus>
"""


def test_status_file_is_read_with_reason_and_phase(tmp_path: Path) -> None:
    files = LibvirtStatusFiles(str(tmp_path))
    words = {"state": "paused", "reason": "migration", "job": "migration out", "phase": "perform3"}
    (tmp_path / "web1.xml").write_text(STATUS.format(**words))
    domain = files.look("web1", "u", 7)
    assert domain is not None
    assert (domain.state, domain.reason, domain.async_job, domain.phase) == (
        "paused",
        "migration",
        "migration out",
        "perform3",
    )
    (tmp_path / "web1.xml").write_text(
        "<domstatus state='running' pid='7'><domain><name>web1</name></domain></domstatus>"
    )
    domain = files.look("web1", "", 7)
    assert domain is not None
    assert (domain.reason, domain.async_job, domain.phase) == ("", "", "")
    files.watch(lambda _: None)()
