"""Strategies for everything that sanlock's socket carries: any value that a client or a daemon may send."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.wire.sanlock import requests as r
from holdfast.wire.sanlock import structures as s
from holdfast.wire.sanlock.flags import FOR_CLIENT_ID, ReleaseFlag

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.binary(max_size=NAME_BYTES).map(lambda raw: PaddedName(raw.ljust(NAME_BYTES, b"\0")))
PATHS = (
    st.binary(max_size=40)
    .map(lambda raw: raw.replace(b"\0", b"/").decode("utf-8", "surrogateescape"))
    .filter(lambda text: len(text.encode("utf-8", "surrogateescape")) < 120)
)
DISKS = st.builds(s.Disk, PATHS, U64)


@st.composite
def resources(draw: st.DrawFn, *, whole: bool) -> s.Resource:
    disks = tuple(draw(st.lists(DISKS, min_size=1, max_size=s.DISKS_MAX))) if whole else ()
    return s.Resource(
        lockspace=draw(NAMES),
        name=draw(NAMES),
        lver=draw(U64),
        data64=draw(U64),
        data32=draw(U32),
        flags=draw(U32),
        num_disks=len(disks) if whole else draw(U32),
        disks=disks,
    )


HEADS, WHOLE = resources(whole=False), resources(whole=True)
LOCKSPACES = st.builds(s.Lockspace, NAMES, U64, U32, DISKS)
HOSTS = st.builds(s.Host, U64, U64, U64, U32, U32)
EVENTS = st.builds(s.HostEvent, U64, U64, U64, U64)
RECORDS = st.builds(s.HostRecord, U64, U64, NAMES, U64)
INDEXES = st.builds(s.Rindex, NAMES, U32, U32, DISKS)
ENTRIES = st.builds(s.RindexEntry, NAMES, U64, U32)
OPTIONS = st.builds(s.Options, NAMES)
TARGETS = st.one_of(st.just(r.OWN), st.builds(r.Target, st.integers(0, 2**32 - 2), st.booleans()))
PIDS = TARGETS.map(lambda target: target._replace(by_client_id=False))
CLIENT_FLAGS = U32.map(lambda flags: flags & ~FOR_CLIENT_ID)
"""Without the bit that the target carries."""

_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "lockspace": LOCKSPACES,
    "host": HOSTS,
    "event": EVENTS,
    "record": RECORDS,
    "rindex": INDEXES,
    "entry": ENTRIES,
    "disk": DISKS,
    "path": PATHS,
    "arguments": PATHS,
    "target": TARGETS,
}
_HEADS_ONLY = (r.ExamineResource, r.Convert, r.SetLvb, r.GetLvb)


def _request(kind: Any) -> st.SearchStrategy[r.AnyRequest]:
    fields: dict[str, st.SearchStrategy[Any]] = {name: _FIELDS.get(name, U32) for name in kind._fields}
    if "resource" in fields:
        fields["resource"] = HEADS if kind in _HEADS_ONLY else WHOLE
    if kind in (r.Acquire, r.Acquire2):
        fields |= {"resources": st.lists(WHOLE, max_size=8).map(tuple), "options": OPTIONS}
    elif kind is r.Release:
        fields["resources"] = st.lists(HEADS, max_size=9).map(tuple)
        fields["flags"] = CLIENT_FLAGS.map(lambda flags: flags & ~ReleaseFlag.ALL)
    elif kind is r.SetLvb:
        fields["value_block"] = st.binary(max_size=600)
    elif kind is r.Killpath:
        fields["target"] = PIDS
    if "target" in fields and kind not in (r.Killpath, r.Release):
        fields["flags"] = CLIENT_FLAGS
    return st.builds(kind, **fields)


REQUEST_TYPES: tuple[Any, ...] = get_args(r.AnyRequest)
REQUESTS_BY_TYPE = {kind: _request(kind) for kind in REQUEST_TYPES}
REQUESTS: st.SearchStrategy[r.AnyRequest] = st.one_of(list(REQUESTS_BY_TYPE.values()))
