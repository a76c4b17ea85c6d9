"""Finds the host that an operator names: exactly one, or a refusal with those that may be meant.

Freeing the leases of the wrong host lets two virtual machines write, so a name that two hosts have is refused. A host's
whole name is in its host record (`supervision.host_records`); without that its delta lease has as much of it as fits, and
the rest of a name that an earlier version cut is not known. A record that was given back (FREE) makes no name ambiguous:
hosts leave one when they change their ids. A DEAD record does: the host that was switched off may be that one, while
another of its name has lost its storage and still runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.errors import Refused
from holdfast.model import printable
from holdfast.ondisk.host_record import HostRecord
from holdfast.protocol.host_status import HostState, HostView
from holdfast.protocol.membership import Membership
from holdfast.supervision.host_names import is_called, may_be_of_node, node_of
from holdfast.supervision.host_records import HostRecords
from holdfast.supervision.lockspace_port import NotAMember


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host of a lockspace, with its host record if that can be believed."""

    lockspace: str
    view: HostView
    said: HostRecord | None

    @property
    def node(self) -> str:
        """Its whole name, as far as it is known."""
        return self.said.node if self.said is not None else node_of(self.view.name) or self.view.name

    @property
    def has_left(self) -> bool:
        return self.view.state is HostState.FREE

    def is_meant_by(self, name: str) -> bool:
        if self.said is not None and name == self.said.node:
            return True
        if not is_called(name, self.view.host_id, self.view.name):
            return False
        exact = name in (str(self.view.host_id), self.view.name, node_of(self.view.name))
        return exact or self.said is None  # two names may have the same digits; its host record decides

    def may_be_meant_by(self, name: str) -> bool:
        """Whether its record was written by an earlier version, which cut the name, and begins like this one."""
        return self.said is None and may_be_of_node(self.view.name, name)

    def is_same_host(self, other: Candidate) -> bool:
        """Whether the two may be one host in two lockspaces."""
        boots = {each.said.boot for each in (self, other) if each.said is not None}
        return self.node == other.node and len(boots) < 2

    def __str__(self) -> str:
        return f"host_id {self.view.host_id} of lockspace {self.lockspace} ({printable(self.node)}, {self.view.state.name})"


class Space(Protocol):
    """A lockspace of this host: `supervision.supervisor`."""

    name: str
    records: HostRecords | None

    def membership(self) -> Membership | NotAMember: ...
    def hosts(self) -> Sequence[HostView]: ...


def candidates_of(space: Space) -> list[Candidate]:
    """Every host that is known in a lockspace."""
    records = space.records
    return [
        Candidate(space.name, view, records.of(view) if records is not None else None)
        for view in space.hosts()
    ]


def meant(name: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The host of that name, host id or whole name in the record, in each lockspace; empty if there is none.

    Raises `Refused` if it may be more than one host.
    """
    found = [each for each in candidates if each.is_meant_by(name)]
    if not found and (maybe := [each for each in candidates if each.may_be_meant_by(name)]):
        raise Refused(
            reason=f"an earlier holdfast has cut the name of {_listed(maybe)}, so nothing tells whether that is {name}: "
            "say the host id"
        )
    present = [each for each in found if not each.has_left]
    for index, each in enumerate(present):
        for other in present[:index]:
            if each.lockspace == other.lockspace:
                raise Refused(
                    reason=f"{name} may be {_listed(present)}: say the host id of the one that is meant"
                )
            if not each.is_same_host(other):
                raise Refused(
                    reason=f"{name} may be {_listed(present)}: say which lockspace is meant (--lockspace), and the host id "
                    "there"
                )
    return found


def _listed(candidates: Sequence[Candidate]) -> str:
    return " or ".join(map(str, candidates))
