"""What a host calls itself in a lockspace, and which host a name means.

sanlock's field has 47 bytes for the name. A name of ours is the node's name and twelve digits that are fresh for each term:

    alpha.3f9c20b1a7d4
    compute-0017.rack-04.clou~5be1a90c.3f9c20b1a7d4     a node's name that does not fit: its begin, and digits of all of it

So hosts whose names begin alike differ in their records, and each finds its own by its whole name. Earlier versions cut the
name to 34 bytes and left it at that: such a record may be of any host whose name begins so.
"""

from __future__ import annotations

import hashlib

from holdfast.ondisk.padded_name import HOST_NAME_BYTES_MAX
from holdfast.protocol.timing import NAME_TOKEN_DIGITS, is_of_holdfast

NODE_BYTES_MAX = HOST_NAME_BYTES_MAX - NAME_TOKEN_DIGITS - 1
DIGEST_DIGITS = 8
"""32 bits: of two hosts whose names begin alike, one in 4 milliards has the digits of the other."""
CUT_MARK = "~"
"""No node's name has one (RFC 1123)."""


def node_in_record(node: str) -> str:
    """What a record says of a node's name."""
    raw = node.encode("utf-8", "replace")
    if len(raw) <= NODE_BYTES_MAX:
        return raw.decode()
    digest = hashlib.sha256(raw).hexdigest()[:DIGEST_DIGITS]
    return f"{_cut(raw, NODE_BYTES_MAX - len(CUT_MARK) - DIGEST_DIGITS)}{CUT_MARK}{digest}"


def fresh_name(node: str, token: str) -> str:
    """A name that no term has had."""
    return f"{node_in_record(node)}.{token}"


def node_of(host_name: str) -> str:
    """What a name of ours says of its node; empty for a name of another kind."""
    return host_name.rpartition(".")[0] if is_of_holdfast(host_name) else ""


def is_of_node(host_name: str, node: str) -> bool:
    """Whether a record of that name is of the host with that node name, or of another one that is called the same."""
    return node_of(host_name) == node_in_record(node)


def may_be_of_node(host_name: str, node: str) -> bool:
    """The same, and whether an earlier version of this program may have written it there."""
    return is_of_node(host_name, node) or node_of(host_name) == _cut(
        node.encode("utf-8", "replace"), NODE_BYTES_MAX
    )


def is_called(said: str, host_id: int, host_name: str) -> bool:
    """Whether somebody who says that means this host: by its host id, its whole name in the record, or its node's name."""
    return bool(said) and (said in (str(host_id), host_name) or is_of_node(host_name, said))


def _cut(raw: bytes, bytes_max: int) -> str:
    return raw[:bytes_max].decode("utf-8", "ignore")
