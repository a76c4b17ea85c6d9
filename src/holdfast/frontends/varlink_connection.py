"""One Varlink client: its socket, its messages one after the other, and the bounds that protect other clients.

asyncvarlink converts and dispatches calls; this module reads and writes the socket itself, because the library's transport
has no bounds: it copies an unfinished message with each read (8 MB without a NUL took half a minute of the event loop),
reads for as long as a client sends, and keeps replies that the client does not read.

    bytes ─► buffer (at most MESSAGE_BYTES_MAX) ─► one call at a time ─► reply ─► socket … full: nothing is read or served
                │ too long, not UTF-8, no JSON object, no call                       until the client has read it
                └─► one error, then the connection is closed

A client that is between calls, or doesn't read its reply, is disconnected after a while: places are few. One that follows
events is in a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

from asyncvarlink.error import GenericVarlinkErrorReply, VarlinkErrorReply
from asyncvarlink.message import VarlinkMethodCall, VarlinkMethodReply
from asyncvarlink.serverprotocol import VarlinkInterfaceRegistry, VarlinkInterfaceServerProtocol
from asyncvarlink.types import JSONObject, JSONValue

from holdfast.control.api import ERROR_INTERNAL, ERROR_PROTOCOL
from holdfast.frontends.listener import Peer
from holdfast.system.logs.log_limit import LimitedLog

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 1 << 20
"""A thousand disks with long paths in one Acquire, twice over."""
READ_BYTES = 64 << 10
"""Size of one read; between two reads other clients are served."""
DRAIN_READS_MAX = 64
"""Reads that discard the input of a disconnected client: more than the kernel buffers for one socket."""
_END = b"\0"

malformed = LimitedLog(log)
failures = LimitedLog(log, logging.ERROR)


FOLLOWING = frozenset(("WatchEvents",))
"""Methods whose replies end only when the client goes. They change nothing."""


class Malformed(Exception):
    """The bytes are not a Varlink call; the text says why."""


def decode(raw: bytes) -> VarlinkMethodCall:
    """The call in one message; raises `Malformed`."""
    if not raw:
        raise Malformed("the message is empty")
    try:
        found = json.loads(str(raw, "utf-8"))
    except UnicodeDecodeError:
        raise Malformed("the message is not UTF-8") from None
    except RecursionError:
        raise Malformed("the message is nested too deeply") from None
    except ValueError as e:
        raise Malformed(f"the message is not JSON: {e}") from None
    if not isinstance(found, dict):
        raise Malformed("the message is not a JSON object")
    # Valid UTF-8 has neither of these, and JSON no control characters, but for escapes.
    if b"\\u" in raw and (odd := _odd_text(found)):
        raise Malformed(odd)
    try:
        return VarlinkMethodCall.fromjson(found)
    except (TypeError, ValueError):
        raise Malformed(
            'the message is not a Varlink call: it needs "method": "INTERFACE.METHOD" and may have an object '
            '"parameters" and the flags "more", "oneway" and "upgrade"'
        ) from None


def _odd_text(value: JSONValue) -> str:
    """What is wrong with the texts in a message: names and paths of the system have no NUL, and can be encoded."""
    waiting: list[JSONValue] = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str):
            if "\0" in each:
                return "the message has a text with a NUL in it"
            try:
                each.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                return "the message has a text with half of a surrogate pair in it"
    return ""


class VarlinkConnection(VarlinkInterfaceServerProtocol):
    """One client, served on the event loop. `gone` is called once, when the connection has closed."""

    def __init__(
        self,
        registry: VarlinkInterfaceRegistry,
        sock: socket.socket,
        peer: Peer,
        *,
        idle_timeout_s: float,
        gone: Callable[[VarlinkConnection], None],
    ) -> None:
        super().__init__(registry)
        self.peer = peer
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._gone = gone
        self._idle_timeout_s = idle_timeout_s
        self._buffer = bytearray()
        self._searched = 0
        """How much of the buffer is known to have no end of a message in it."""
        self._out = bytearray()
        self._unsent: list[asyncio.Future[None]] = []
        """Of the replies that are in `_out`."""
        self._call: asyncio.Future[None] | None = None
        self._follows = False
        """Whether that call would never end (`FOLLOWING`)."""
        """The call that is being served."""
        self._serving = False
        self._reading = False
        self._closed = False
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._read_on()
        self._timer = self._loop.call_later(self._idle_timeout_s, self._check_idle)

    # --- reading ---

    def _read_on(self) -> None:
        if not (self._reading or self._closed):
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _read_no_more(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _on_readable(self) -> None:
        try:
            part = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            log.debug("client pid %d: %s", self.peer.pid, e)
            part = b""
        if not part:
            self.leave()
            return
        self._buffer += part
        self._serve()

    def _next_message(self) -> bytes | None:
        """Take a message from the buffer; None if none is whole. Raises `Malformed` if none can become whole within it."""
        end = self._buffer.find(_END, self._searched)
        if end > MESSAGE_BYTES_MAX or (end < 0 and len(self._buffer) > MESSAGE_BYTES_MAX):
            raise Malformed(f"the message is longer than {MESSAGE_BYTES_MAX} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return raw

    def _serve(self) -> None:
        """Serve the calls in the buffer one after the other, until one has to wait."""
        if self._serving:
            return
        self._serving = True
        try:
            while not (self._closed or self._call is not None or self._out):
                raw = self._next_message()
                if raw is None:
                    break
                self._serve_call(decode(raw))
        except Malformed as e:
            self._refuse(str(e))
        finally:
            self._serving = False
        # A client whose call is being served is read ahead once, so that its end is noticed; no further.
        if self._out or (self._call is not None and self._buffer):
            self._read_no_more()
        else:
            self._read_on()

    def _refuse(self, why: str) -> None:
        malformed.write(
            "control: client pid %d uid %d is disconnected: %s", self.peer.pid, self.peer.uid, why
        )
        self.send_error(GenericVarlinkErrorReply(ERROR_PROTOCOL, {"message": why}))
        self.leave()

    # --- serving ---

    def _serve_call(self, call: VarlinkMethodCall) -> None:
        self._idle_since = self._loop.time()
        try:
            served = self.call_received(call, None)
        except Exception as error:
            self._failed(error, call.oneway)
            return
        if served is not None:
            self._call, self._follows = served, call.method.rpartition(".")[2] in FOLLOWING
            served.add_done_callback(lambda done: self._served(done, call.oneway))

    def _served(self, done: asyncio.Future[None], oneway: bool) -> None:
        self._call = None
        self._idle_since = self._loop.time()
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            self._failed(error, oneway)
        if self._closed:
            return
        self._serve()

    def _failed(self, error: BaseException, oneway: bool) -> None:
        if not isinstance(error, VarlinkErrorReply):
            failures.write("unexpected failure serving client pid %d", self.peer.pid, failure=error)
            error = GenericVarlinkErrorReply(
                ERROR_INTERNAL, {"message": "unexpected failure; see holdfastd's log"}
            )
        if not oneway:
            self.send_error(error)

    # --- writing ---

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        return self.send_message(reply.tojson(), fds, autoclose)

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """The future is done when the kernel has the whole message; no reply of ours has descriptors."""
        sent: asyncio.Future[None] = self._loop.create_future()
        if self._closed:
            sent.cancel()
            return sent
        raw = json.dumps(obj, separators=(",", ":")).encode() + _END
        waiting = bool(self._out)
        self._out += raw
        self._unsent.append(sent)
        if not waiting:
            self._write()
            if self._out and not self._closed:
                self._read_no_more()
                self._loop.add_writer(self._sock.fileno(), self._on_writable)
        return sent

    def _write(self) -> None:
        try:
            del self._out[: self._sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            log.debug("client pid %d: %s", self.peer.pid, e)
            self._loop.call_soon(self.leave)  # not inside a call of the library's
            return
        if not self._out:
            self._idle_since = self._loop.time()
            unsent, self._unsent = self._unsent, []
            for each in unsent:
                if not each.done():
                    each.set_result(None)

    def _on_writable(self) -> None:
        self._write()
        if not self._out and not self._closed:
            self._loop.remove_writer(self._sock.fileno())
            self._serve()

    # --- the end ---

    def _check_idle(self) -> None:
        """Disconnect a client that is between calls, or doesn't read its reply, for too long."""
        idle_s = self._loop.time() - self._idle_since
        busy = self._call is not None
        if not busy and idle_s >= self._idle_timeout_s:
            log.info(
                "control: client pid %d uid %d is disconnected: idle for %.0f s",
                self.peer.pid,
                self.peer.uid,
                idle_s,
            )
            self.leave()
            return
        left_s = self._idle_timeout_s if busy else self._idle_timeout_s - idle_s
        self._timer = self._loop.call_later(left_s, self._check_idle)

    def close(self) -> None:
        self.leave()

    def leave(self) -> None:
        """The client has gone, or must go: its streaming calls end, its unread input is discarded. A call that changes
        state runs to its end: half of an Acquire or of a Release would leave a lease that no owner can take.
        """
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._read_no_more()
        self._loop.remove_writer(self._sock.fileno())
        if self._call is not None and self._follows:
            self._call.cancel()
        for each in self._unsent:
            each.cancel()
        _drain(self._sock)
        self._sock.close()
        self._gone(self)


def _drain(sock: socket.socket) -> None:
    """Read the rest: unread bytes would make the kernel discard the reply that the client has not read yet."""
    try:
        sock.shutdown(socket.SHUT_RD)
        for _ in range(DRAIN_READS_MAX):
            if not sock.recv(READ_BYTES):
                return
    except OSError:
        return


def refuse_client(sock: socket.socket, name: str, parameters: dict[str, Any]) -> None:
    """One error to a client that is not served, before it has asked anything; then the connection is closed."""
    with sock:
        try:
            sock.send(json.dumps({"error": name, "parameters": parameters}).encode() + _END)
        except OSError:
            return
        _drain(sock)
