"""A lockspace of the simulated hosts, as it is set up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """A lockspace and the resources whose leases are on the same disk."""

    name: str
    resources: tuple[str, ...]
    is_added: bool = False
    """No configuration names it: on each host a client of sanlock's adds and removes it."""
