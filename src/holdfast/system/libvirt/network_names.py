"""Names of disks that are reached over a network: one text for one disk, however its XML spells it. PURE.

    rbd:pool/image@snapshot    nbd://host:10809/export    nbd+unix:///export?socket=/path    iscsi:IQN/LUN

A port that is missing is the protocol's own; host names are in lower case, several are sorted. Ceph, Gluster and Sheepdog
find a disk by its name in the cluster, whichever server is asked, and an iSCSI target has one name in the world, whichever
portal leads to it (RFC 7143, 4.2.7): so their servers are no part of the name. Two clusters can have a disk of one name.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass

PORTS = {
    "nbd": "10809",
    "iscsi": "3260",
    "gluster": "24007",
    "http": "80",
    "https": "443",
    "ftp": "21",
    "ftps": "990",
    "tftp": "69",
    "ssh": "22",
    "vxhs": "9999",
}
"""What libvirt uses where the XML has no port."""
BY_CLUSTER = frozenset(("rbd", "sheepdog", "gluster", "iscsi"))
"""Protocols whose disks have one name, whichever server is asked."""


@dataclass(frozen=True, slots=True)
class Server:
    """One <host> of a source."""

    name: str = ""
    port: str = ""
    transport: str = ""
    socket: str = ""


def servers(source: ET.Element) -> tuple[Server, ...]:
    """Its <host> elements."""
    return tuple(
        Server(each.get("name", ""), each.get("port", ""), each.get("transport", ""), each.get("socket", ""))
        for each in source.findall("host")
    )


def network_name(
    protocol: str, name: str, hosts: Iterable[Server] = (), *, snapshot: str = "", query: str = ""
) -> str:
    """`name` is what the XML has: POOL/IMAGE, an export, IQN/LUN, a path."""
    hosts = list(hosts)
    marked = f"{name}@{snapshot}" if snapshot else name
    if protocol == "iscsi" and "/" not in name:
        marked = f"{name}/0"
    if protocol in BY_CLUSTER:
        return f"{protocol}:{marked.lstrip('/')}"
    path = marked.lstrip("/") + (f"?{query}" if query else "")
    for host in hosts:
        if host.socket:
            return f"{protocol}+unix:///{path}?socket={host.socket}"
    if not hosts:
        return f"{protocol}:{path}"
    over = next((f"+{each.transport}" for each in hosts if each.transport not in ("", "tcp")), "")
    where = ",".join(sorted({_authority(protocol, each) for each in hosts}))
    return f"{protocol}{over}://{where}/{path}"


def source_name(source: ET.Element) -> str:
    """Of a disk of type network; empty if it has no protocol."""
    protocol = source.get("protocol", "")
    snapshot = source.find("snapshot")
    return protocol and network_name(
        protocol,
        source.get("name", ""),
        servers(source),
        snapshot="" if snapshot is None else snapshot.get("name", ""),
        query=source.get("query", ""),
    )


def _authority(protocol: str, host: Server) -> str:
    name = host.name.lower()
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    port = host.port or PORTS.get(protocol, "")
    return f"{name}:{port}" if port else name
