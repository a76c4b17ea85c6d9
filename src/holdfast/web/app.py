"""The ASGI application: a few fixed paths, each answer with headers that let a browser run nothing but our own script.

GET and HEAD alone. Paths are looked up as a whole: none of them is ever part of a file's name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any

from holdfast.cli.commands import metrics
from holdfast.control.client import CallRefused, DaemonUnreachable
from holdfast.web.access import Access
from holdfast.web.feed import Connect, Feed

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
PLAIN = "text/plain; charset=utf-8"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METRICS_AGE_MAX_S = 1.0
"""Scrapes within so long share an answer: the daemon is asked once."""
SECURITY = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
CHALLENGE = (b"www-authenticate", b'Basic realm="holdfast-web", charset="UTF-8"')


class App:
    """`connect` opens a connection to holdfastd, which is asked for nothing but what it reports."""

    def __init__(self, access: Access, connect: Connect) -> None:
        self._access = access
        self._connect = connect
        self.feed = Feed(connect)
        package = resources.files("holdfast.web") / "static"
        self._pages = {path: ((package / name).read_bytes(), kind) for path, (name, kind) in PAGES.items()}
        self._asking = asyncio.Lock()
        self._metrics = b""
        self._metrics_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        asking = asyncio.create_task(self.feed.run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        head_only, path = scope["method"] == "HEAD", scope["path"]
        refusal = self._access.refusal(scope["headers"])
        if refusal is not None:
            more = [CHALLENGE] if refusal.status == 401 else []
            await _reply(send, refusal.status, f"{refusal.text}\n".encode(), PLAIN, more)
        elif scope["method"] not in ("GET", "HEAD"):
            await _reply(send, 405, b"nothing can be changed here\n", PLAIN, [(b"allow", b"GET, HEAD")])
        elif path in self._pages:
            body, kind = self._pages[path]
            await _reply(send, 200, body, kind, head_only=head_only)
        elif path == "/metrics":
            await _reply(send, 200, await self._metrics_now(), METRICS_TYPE, head_only=head_only)
        elif path == "/events" and self.feed.is_full:
            await _reply(send, 503, b"too many pages are open\n", PLAIN)
        elif path == "/events":
            await self._stream(receive, send, head_only=head_only)
        else:
            await _reply(send, 404, b"there is no such page\n", PLAIN)

    async def _metrics_now(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() - self._metrics_at >= METRICS_AGE_MAX_S:
                self._metrics = await asyncio.to_thread(self._ask_metrics)
                self._metrics_at = loop.time()
            return self._metrics

    def _ask_metrics(self) -> bytes:
        """As `holdfast metrics` writes them, without the disks that only libvirt's files show, which are root's."""
        try:
            with self._connect() as client:
                found = metrics.ask(client, lambda locks: [])
        except (DaemonUnreachable, CallRefused):
            found = list(metrics.UNREACHABLE)
        return metrics.text(found).encode()

    async def _stream(self, receive: Receive, send: Send, *, head_only: bool) -> None:
        headers = [(b"content-type", b"text/event-stream"), *SECURITY]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if head_only:
            await send({"type": "http.response.body"})
            return
        sending = asyncio.create_task(self._send_events(send))
        leaving = asyncio.create_task(_gone(receive))
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_events(self, send: Send) -> None:
        async with contextlib.aclosing(self.feed.stream()) as stream:
            async for sent in stream:
                await send({"type": "http.response.body", "body": sent, "more_body": True})
        await send({"type": "http.response.body"})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reply(
    send: Send,
    status: int,
    body: bytes,
    kind: str,
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    head_only: bool = False,
) -> None:
    found = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        *SECURITY,
        *(headers or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": b"" if head_only else body})
