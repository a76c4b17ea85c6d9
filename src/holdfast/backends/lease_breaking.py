"""Whose claims stand on a lease that is to be broken, and what proves that they are over."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.ondisk.delta import DeltaLease
from holdfast.protocol.host_status import HostState, HostView, proven_gone
from holdfast.protocol.words import Generation, HostId
from holdfast.supervision.host_terms import node_of

UNPROVEN = (
    ": not proven to be off; if you know that it is, name it (--attest-off HOST --operator YOU), and wait until it has "
    "not renewed for 3 io_timeouts"
)


@dataclass(frozen=True, slots=True)
class Claimant:
    """A term of a host that has a claim on a lease: what storage and our looks tell of it."""

    term: tuple[HostId, Generation]
    record: DeltaLease | None
    view: HostView

    def is_called(self, name: str) -> bool:
        """By its host id, its whole name, or its node's name."""
        called = self.record.host_name.text if self.record is not None else ""
        return name in (str(self.term[0]), called, node_of(called)) and bool(name)

    def proof(self, attested: frozenset[tuple[HostId, Generation]]) -> str:
        """Why its hold was over, once the lease was won from it."""
        if self.record is not None and proven_gone(self.term[1], self.record, self.view):
            if self.view.state is HostState.DEAD:
                return f"{self}: DEAD, unchanged for {self.view.unchanged_s:.0f} s"
            return f"{self}: that term is over"
        if self.term in attested:
            return f"{self}: attested to be off, unchanged for {self.view.unchanged_s:.0f} s"
        return f"{self}: it had given the lease up"

    def __str__(self) -> str:
        called = self.record.host_name.text if self.record is not None else "unknown"
        return f"host {called} (host_id {self.term[0]}, generation {self.term[1]})"
