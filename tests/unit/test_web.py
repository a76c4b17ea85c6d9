"""holdfast-web without a server: who may read, and what a viewer is sent."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_top import EVENT, LOCK, SPACE, STATUS

from holdfast.control.api import EventInfo, HolderInfo, LeaseSpaceInfo, MeasuresInfo, StatusInfo
from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
from holdfast.web import feed as feeding
from holdfast.web.access import Access, token_of, why_no_token
from holdfast.web.app import PAGES
from holdfast.web.changes import changes, rows_of
from holdfast.web.feed import BEHIND_MAX, Feed
from holdfast.web.main import NotUsable, address, bind, token

TOKEN = b"0123456789abcdef0123456789abcdef"


def status_of(access: Access, **headers: bytes) -> int:
    found = access.refusal([(name.encode(), value) for name, value in headers.items()])
    return found.status if found is not None else 200


# --- access ---


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:8320", b"127.0.0.1:1", b"[::1]", b"[::1]:8320", b"localhost:"]
)
def test_without_a_token_loopback_is_answered_by_its_names(host: bytes) -> None:
    assert status_of(Access(None), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example:8320",
        b"127.0.0.1:8320@evil.example",
        b"evil.example:127.0.0.1",
        b"",
        b"[::1",
        b"\xff",
    ],
)
def test_a_page_of_somebody_elses_that_resolves_to_loopback_is_refused(host: bytes) -> None:
    assert status_of(Access(None), host=host) == 403


def test_no_host_and_two_hosts_are_refused() -> None:
    assert status_of(Access(None)) == 403
    twice = [(b"host", b"localhost"), (b"host", b"evil.example")]
    refusal = Access(None).refusal(twice)
    assert refusal is not None
    assert refusal.status == 403


def test_a_name_that_was_added_is_answered() -> None:
    assert status_of(Access(None, ["Status.example"]), host=b"status.example") == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (b"Bearer " + TOKEN, 200),
        (b"basic " + base64.b64encode(b"anybody:" + TOKEN), 200),
        (b"Basic " + base64.b64encode(b":" + TOKEN), 200),
        (b"Bearer " + TOKEN[:-1], 401),
        (b"Bearer " + TOKEN + b"0", 401),
        (b"Bearer", 401),
        (b"Basic " + TOKEN, 401),
        (b"Basic " + base64.b64encode(TOKEN), 401),
        (b"Digest " + TOKEN, 401),
        (b"Basic \xff", 401),
        (b"", 401),
    ],
)
def test_with_a_token_nothing_else_counts(authorization: bytes, status: int) -> None:
    access = Access(TOKEN)
    assert status_of(access, authorization=authorization, host=b"any.example") == status
    assert status_of(access, host=b"localhost") == 401


def test_an_empty_token_never_equals_an_empty_header() -> None:
    assert token_of(b"Bearer ") == b""
    assert "less than" in why_no_token(b"")


def test_token_is_read_from_a_file_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN + b"\n")
    file.chmod(0o644)
    with pytest.raises(NotUsable, match="every user"):
        token(str(file))
    file.chmod(0o640)
    assert token(str(file)) == TOKEN
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert token(None) == TOKEN
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "none"))
    assert token(None) is None
    for content in (b"short\n", b"two lines\n" + TOKEN, TOKEN + b"\r\n", b"\n"):
        file.write_bytes(content)
        with pytest.raises(NotUsable, match="the token"):
            token(str(file))


def test_credential_that_can_not_be_read_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").symlink_to(
        "token"
    )  # a loop: as unreadable for root as a forbidden directory for others
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(NotUsable, match=r"token: Too many levels of symbolic links"):
        token(None)


def test_other_addresses_than_loopback_need_a_token() -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0"):
        with pytest.raises(NotUsable, match="needs --token-file"):
            bind(*address(listen), has_token=False)
    with bind(*address("0.0.0.0:0"), has_token=True), bind(*address("127.0.0.2:0"), has_token=False):
        pass
    for listen in ("localhost:1", "127.0.0.1", ":8320", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(NotUsable, match="must be an IP address"):
            address(listen)


# --- the page's files ---


def test_page_needs_nothing_from_elsewhere_and_writes_no_markup() -> None:
    texts = {
        name: (resources.files("holdfast.web") / "static" / name).read_text() for name, _ in PAGES.values()
    }
    for name, text in texts.items():
        without_namespace = text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", without_namespace), name
    script = texts["page.js"]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.srcdoc|new Function", script
    )
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", texts["index.html"]), (
        "inline code, which CSP forbids"
    )


# --- what is sent ---


def test_rows_have_a_key_that_stays_and_only_changes_are_sent() -> None:
    one, other = replace(LOCK, number=4), replace(LOCK, number=5, resource="/srv/b.img", name="/srv/b.img")
    before = rows_of([one, other])
    assert len(before) == 2
    found = changes(before, rows_of([replace(one, held=False, lost_reason="gone")]))
    assert [row["lost_reason"] for row in found.rows.values()] == ["gone"]
    assert set(found.rows) < set(before)
    assert found.gone == [key for key in before if key not in found.rows]
    assert len(rows_of([one, one])) == 2, "no claim hides another one"


class Daemon:
    """What the feed asks; `down` has the reason while it does not answer."""

    def __init__(self) -> None:
        self.down = ""
        self.old = False
        self.now = replace(STATUS, last_event=1)
        self.held: list[HolderInfo] = [LOCK]
        self.asked_for_locks = 0

    def connect(self) -> ControlClient:
        if self.down:
            raise DaemonUnreachable(self.down)
        return self  # type: ignore[return-value]

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self) -> StatusInfo:
        return self.now

    def lease_spaces(self) -> list[LeaseSpaceInfo]:
        return [SPACE]

    def measures(self) -> MeasuresInfo:
        raise CallRefused("org.varlink.service.MethodNotFound", "an earlier release")

    def locks(self) -> list[HolderInfo]:
        self.asked_for_locks += 1
        return self.held

    def events(self, *, after: int, follow: bool) -> Iterator[EventInfo]:
        return (replace(EVENT, number=n) for n in range(after + 1, self.now.last_event + 1))


def parsed(sent: bytes) -> tuple[str, Any]:
    found = re.fullmatch(rb"event: (\w+)\ndata: ([^\n]+)\n\n", sent)
    assert found, sent
    return found[1].decode(), json.loads(found[2])


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(feeding, "LOOK_S", 0.01)
    monkeypatch.setattr(feeding, "LOCKS_PAUSE_FACTOR", 0)
    return Daemon()


def test_viewer_gets_everything_then_changes_and_hears_of_a_daemon_that_is_gone(daemon: Daemon) -> None:
    async def go() -> None:
        feed = Feed(daemon.connect)
        running = asyncio.create_task(feed.run())
        stream = feed.stream()

        async def until(name: str) -> Any:
            while True:
                kind, data = parsed(await asyncio.wait_for(anext(stream), 10))
                if kind == name:
                    return data

        first = await until("locks")
        assert first["all"]
        assert [row["owner"] for row in first["rows"].values()] == ["web1"]
        assert [each["number"] for each in await until("events")] == [1]
        daemon.held = []
        daemon.now = replace(daemon.now, last_event=2)
        later = await until("locks")
        assert (later["all"], later["rows"], later["gone"]) == (False, {}, list(first["rows"]))
        assert [each["number"] for each in await until("events")] == [2]
        for _ in range(3):
            await until("state")
        assert daemon.asked_for_locks == 2, "nothing has happened since"
        daemon.down = "it is gone"
        assert await until("daemon") == {"up": False, "why": "it is gone"}
        daemon.down = ""
        await until("state")
        await stream.aclose()
        running.cancel()

    asyncio.run(go())


def test_viewer_that_does_not_read_is_dropped_and_a_stop_ends_all_streams(daemon: Daemon) -> None:
    async def go() -> None:
        feed = Feed(daemon.connect)
        running = asyncio.create_task(feed.run())
        slow, other = feed.stream(), feed.stream()
        await anext(slow)
        await anext(other)
        for _ in range(BEHIND_MAX * 3):
            await anext(other)
        # Its stream has ended; the browser begins another one.
        assert len([sent async for sent in slow]) < BEHIND_MAX
        feed.close()
        await asyncio.wait_for(_drained(other), 10)
        running.cancel()

    async def _drained(stream: Any) -> None:
        async for _ in stream:
            pass

    asyncio.run(go())


def test_nobody_watching_means_that_nothing_is_asked(daemon: Daemon) -> None:
    async def go() -> None:
        feed = Feed(daemon.connect)
        running = asyncio.create_task(feed.run())
        await asyncio.sleep(0.1)
        assert daemon.asked_for_locks == 0
        running.cancel()

    asyncio.run(go())
