"""Host names in a lockspace: how they are made, and which host a name means.

sanlock's field has 47 bytes. Our names are the node's name and twelve digits that are fresh for each incarnation:

    alpha.3f9c20b1a7d4
    compute-0017.rack-04.clou~5be1a90c.3f9c20b1a7d4     a node's name that does not fit: its begin, and digits of all of it

So hosts whose names begin alike differ in their records, and each finds its own by its whole name. Earlier versions only
cut the name to 34 bytes: such a record may be of any host whose name begins so.
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
    """A node's name as it is in a record: whole, or cut and with digits of the whole."""
    raw = node.encode("utf-8", "replace")
    if len(raw) <= NODE_BYTES_MAX:
        return raw.decode()
    digest = hashlib.sha256(raw).hexdigest()[:DIGEST_DIGITS]
    return f"{_cut(raw, NODE_BYTES_MAX - len(CUT_MARK) - DIGEST_DIGITS)}{CUT_MARK}{digest}"


def fresh_name(node: str, token: str) -> str:
    """A name that no earlier incarnation has had."""
    return f"{node_in_record(node)}.{token}"


def node_of(host_name: str) -> str:
    """The node part of a name that Holdfast made; empty for any other name."""
    return host_name.rpartition(".")[0] if is_of_holdfast(host_name) else ""


def is_of_node(host_name: str, node: str) -> bool:
    """Whether a record of that name is of a host with that node name."""
    return node_of(host_name) == node_in_record(node)


def may_be_of_node(host_name: str, node: str) -> bool:
    """As `is_of_node`, and also true for a name that an earlier version may have written for that node."""
    return is_of_node(host_name, node) or node_of(host_name) == _cut(
        node.encode("utf-8", "replace"), NODE_BYTES_MAX
    )


def is_called(said: str, host_id: int, host_name: str) -> bool:
    """Whether `said` means this host: it is its host id, its whole name in the record, or its node's name."""
    return bool(said) and (said in (str(host_id), host_name) or is_of_node(host_name, said))


def _cut(raw: bytes, bytes_max: int) -> str:
    return raw[:bytes_max].decode("utf-8", "ignore")
