"""Checks of the hosts of a lockspace: do their watchdogs agree, has each a name of its own?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from holdfast.cli.doctor.findings import Finding, found
from holdfast.cli.doctor.scene import Scene
from holdfast.control.api import HostInfo, LeaseSpaceInfo
from holdfast.protocol.timing import FIRE_TIMEOUT_DEFAULT_S
from holdfast.supervision.host_names import node_of

_OVER = ("FREE", "DEAD")
"""States of hosts of which nothing runs."""


def hosts(scene: Scene) -> Iterator[Finding]:
    for space in scene.spaces or ():
        others = [h for h in space.hosts if h.host_id != space.host_id and h.state not in _OVER]
        if space.misfits:
            yield found("HF100", f"{space.name}: {space.misfits}", "fire_timeout_s in the [backend] table")
        # With 60 s nobody counts less than another host takes. Hosts with sanlock are among the misfits.
        silent = [h for h in others if not h.fire_timeout_s and node_of(h.name)]
        if silent and 0 < space.fire_timeout_s < FIRE_TIMEOUT_DEFAULT_S:
            yield found(
                "HF102",
                f"{space.name}: {', '.join(map(_called, silent))} can't tell this host their fire timeout (an earlier "
                f"holdfast, or a lockspace on a device), and this host counts its own {space.fire_timeout_s} s for them",
                "see that fire_timeout_s is the same on all hosts",
            )
        yield from _namesakes(space)


def _namesakes(space: LeaseSpaceInfo) -> Iterator[Finding]:
    by_node: dict[str, list[HostInfo]] = defaultdict(list)
    for each in space.hosts:
        if each.state not in _OVER and (node := each.node or node_of(each.name)):
            by_node[node].append(each)
    for node, called_so in by_node.items():
        if len(called_so) > 1:
            ids = ", ".join(str(h.host_id) for h in called_so)
            yield found(
                "HF103",
                f"{space.name}: {len(called_so)} hosts are called {node} (host_id {ids}): 'holdfast host fenced' needs the "
                "host id of one",
                "give each host a name of its own (hostnamectl), then restart its holdfastd when it runs no VM",
            )


def _called(host: HostInfo) -> str:
    return f"host {host.node or host.name} (host_id {host.host_id})"
