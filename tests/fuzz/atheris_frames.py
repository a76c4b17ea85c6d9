"""Coverage-guided fuzzing of everything that reads foreign bytes (`make fuzz`).

    python tests/fuzz/atheris_frames.py -max_total_time=60

What may come out is named for each target; anything else is a finding, and libFuzzer keeps the input as ./crash-….
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["holdfast"]):
    from holdfast import config, config_toml
    from holdfast.backends.file import owner_record
    from holdfast.backends.paxos import owner_note
    from holdfast.cli.offline import identify
    from holdfast.manager import journal_replay
    from holdfast.ondisk.delta import DeltaLease, decode_bitmap
    from holdfast.ondisk.host_block import HostBlock
    from holdfast.ondisk.leader import Leader
    from holdfast.ondisk.request import Request
    from holdfast.ondisk.rindex import RindexEntry, RindexHeader, entries
    from holdfast.wire import libvirt_rpc as rpc
    from holdfast.wire import virtlockd as wire
    from holdfast.wire import xdr
    from holdfast.wire.sanlock import replies, request_table, state_string
    from holdfast.wire.sanlock.command import Command
    from holdfast.wire.sanlock.framer import KEPT_BYTES_MAX, Framed, Framer
    from holdfast.wire.sanlock.malformed import MalformedMessage

CONFIG_FILE = os.path.join(tempfile.mkdtemp(prefix="holdfast-fuzz-"), "holdfast.toml")


def frames(raw: bytes) -> None:
    """The splitter, in two cuts: the same messages or the same refusal, and bounded memory."""

    def run(chunks: list[bytes]) -> list[rpc.Message] | None:
        splitter = rpc.Splitter()
        found: list[rpc.Message] = []
        try:
            for chunk in chunks:
                found += splitter.feed(chunk)
        except rpc.FramingError:
            return None
        assert len(splitter.carried) <= rpc.KEPT_BYTES
        return found

    middle = raw[0] if raw else 0
    whole = run([raw])
    assert whole == run([raw[:middle], raw[middle:]])
    for message in whole or []:
        calls(message.header.procedure, message.payload)


def calls(procedure: int, payload: bytes) -> None:
    with contextlib.suppress(xdr.XdrError):
        call = wire.decode(procedure, payload)
        if call is not None:
            again = wire.decode(procedure, call.encode())
            assert again == call, (call, again)


def journals(raw: bytes) -> None:
    state = journal_replay.replay(raw)
    assert all(lock.claims for lock in state.locks.values())


def records(raw: bytes) -> None:
    for holder in owner_record.decode(raw):
        str(holder)
    owner_record.is_ours(raw)


def configurations(raw: bytes) -> None:
    with open(CONFIG_FILE, "wb") as f:
        f.write(raw)
    read, problems = config.check(CONFIG_FILE, environ={"HOME": "/root"}, uid=0)
    assert (read is None) == bool(problems)
    if read is not None:
        config_toml.to_toml(read)


RECORDS = (DeltaLease, Leader, HostBlock, Request, RindexHeader, RindexEntry)


def sectors(raw: bytes) -> None:
    """Records of lockspaces, leases and indexes: a value or a `Malformed`, both of which can be shown, and nothing else."""
    for kind in RECORDS:
        str(kind.decode(raw))
    decode_bitmap(raw)
    owner_note.noted(raw)
    owner_note.vm_of(raw)
    found = identify.identify(raw)
    identify.describe(found, raw)
    if isinstance(found, DeltaLease):
        identify.hosts_of(raw, found.geometry)
    elif isinstance(found, Leader):
        identify.blocks_of(raw, found)
        identify.lvb_of(raw, found)
    elif isinstance(found, RindexHeader):
        list(entries(found, raw))


def sanlock_requests(raw: bytes) -> None:
    """The framer, in two cuts: the same requests, each of them readable, and bounded memory."""

    def run(chunks: list[bytes]) -> list[Framed]:
        framer = Framer()
        found: list[Framed] = []
        for chunk in chunks:
            framer.feed(chunk)
            while (framed := framer.next()) is not None:
                found.append(framed)
            assert framer.waiting_bytes <= KEPT_BYTES_MAX
        return found

    middle = raw[0] if raw else 0
    whole = run([raw])
    assert whole == run([raw[:middle], raw[middle:]])
    for framed in whole:
        if framed.refused is None:
            request = request_table.decode(framed.header, framed.body)
            (again,) = run([request_table.encode(request)])
            assert request_table.decode(again.header, again.body) == request
        else:
            replies.refusal(framed.header, framed.body, framed.refused).encode(framed.header)


def sanlock_answers(raw: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        replies.decode(Command(raw[0] % len(Command) + 1) if raw else Command.STATUS, raw[1:])
    with contextlib.suppress(MalformedMessage):
        state_string.parse(raw.decode("utf-8", "surrogateescape"))


TARGETS = (
    sectors,
    sanlock_requests,
    sanlock_answers,
    frames,
    lambda raw: calls(raw[0] % 10 if raw else 0, raw[1:]),
    journals,
    records,
    configurations,
)


def one_input(raw: bytes) -> None:
    if raw:
        TARGETS[raw[0] % len(TARGETS)](raw[1:])


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
