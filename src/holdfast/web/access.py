"""PURE. Who may read: by the name under which the server is asked, or by a token.

Without a token it listens on loopback alone, where every user of the host may read. A web page of somebody else's, open in a
browser on this host, must not: a name of its own that resolves to 127.0.0.1 makes its requests same-origin (DNS rebinding),
but they carry that name in Host. With a token that is needed instead: such a page does not have it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))
TOKEN_CHARS_MIN = 16
"""Shorter ones can be guessed over a network."""
Headers = Iterable[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """An HTTP status and what to do."""

    status: int
    text: str


class Access:
    """What a request must have. `token` None: a Host of `LOOPBACK_NAMES` or of `names`."""

    def __init__(self, token: bytes | None, names: Sequence[str] = ()) -> None:
        self._token = token
        self._names = LOOPBACK_NAMES | {name.lower() for name in names}

    def refusal(self, headers: Headers) -> Refusal | None:
        """Names in `headers` are in lower case (ASGI)."""
        found = [(name, value) for name, value in headers if name in (b"host", b"authorization")]
        if self._token is not None:
            given = [token_of(value) for name, value in found if name == b"authorization"]
            if len(given) == 1 and hmac.compare_digest(given[0], self._token):
                return None
            return Refusal(401, "a token is needed: as the password of any user name, or as a bearer token")
        hosts = [value for name, value in found if name == b"host"]
        if len(hosts) == 1 and host_name(hosts[0].decode("latin-1")) in self._names:
            return None
        return Refusal(
            403, "this server answers to localhost, 127.0.0.1 and [::1] only; --name adds one, for a proxy"
        )


def host_name(host: str) -> str:
    """Of a Host header, without its port, in lower case."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    return name.lower() if not port or port.isdigit() else ""


def token_of(authorization: bytes) -> bytes:
    """What a header gives as the token: a bearer's, or the password of any user; empty if it is neither."""
    scheme, _, rest = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def why_no_token(token: bytes) -> str:
    """Why this is no token to listen with; empty if it is one."""
    if len(token) < TOKEN_CHARS_MIN:
        return f"has less than {TOKEN_CHARS_MIN} characters"
    if not all(0x21 <= byte <= 0x7E for byte in token):
        return "must be one line of printable ASCII without blanks"
    return ""
