"""What a daemon must remember of volumes and can read nowhere: who is announced, what may be deactivated, who may write.

All else is read again: libvirt's status files, lvmlockd, the leases, the devices. A volume that is not in `volumes` was
never activated for a VM by Holdfast, and is never deactivated. So a lost record costs an operator's `lvchange -an`, and
frees nothing. It is written before the deed that it allows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast.backends.lvm.ports import LvId, Volume
from holdfast.backends.lvm.write_rules import Grant, Holding, Vm
from holdfast.model import Mode, ProcessId

FORMAT = 1


class Record(Protocol):
    """The port: a small file that outlives the daemon, and not the host's boot."""

    def read(self) -> bytes:
        """The content; empty if there is none. Raises OSError."""

    def replace(self, raw: bytes) -> None:
        """Make it the content; raises OSError and leaves the old content."""


class NotUnderstood(ValueError):
    """The record is damaged, or of a version that is not known."""


@dataclass(slots=True)
class Announced:
    """A VM that libvirt's hook has announced, and that has no status file yet."""

    arrives: bool
    """By a migration."""
    libvirtd: ProcessId
    """The process that has announced it: without that, nothing comes of it."""
    volumes: list[LvId] = field(default_factory=list)
    """Empty until `prepare`."""
    answered_at: float | None = None
    """When the hook had its answer (boot time). None: it still waits, or it failed with the daemon that it had asked."""


@dataclass(slots=True)
class Kept:
    """By UUID of the VM, and by volume."""

    announced: dict[str, Announced] = field(default_factory=dict)
    volumes: dict[LvId, Volume] = field(default_factory=dict)
    holdings: dict[LvId, list[Holding]] = field(default_factory=dict)
    pinned: dict[LvId, str] = field(default_factory=dict)
    """Activated by an operator's order: for the VM with that UUID, or (empty) for nobody yet. Until a VM uses it."""

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(
            {
                "format": FORMAT,
                "announced": [
                    [uuid, each.arrives, each.libvirtd, each.volumes, each.answered_at]
                    for uuid, each in self.announced.items()
                ],
                "volumes": [
                    [
                        each.id,
                        each.vg_name,
                        each.lv_name,
                        each.lock_type,
                        each.vg_lock_args,
                        each.lv_lock_args,
                        each.lock_lv,
                        each.why_not_shared,
                    ]
                    for each in self.volumes.values()
                ],
                "holdings": [
                    [lv, each.vm, each.name, int(each.mode), each.grant.value]
                    for lv, holdings in self.holdings.items()
                    for each in holdings
                ],
                "pinned": [[lv, uuid] for lv, uuid in self.pinned.items()],
            }
        ).encode()


def decode(raw: bytes) -> Kept:
    """The record; an empty one from no bytes. Raises `NotUnderstood`."""
    kept = Kept()
    if not raw:
        return kept
    try:
        saved: Any = json.loads(raw)
        if saved["format"] != FORMAT:
            raise NotUnderstood(f"it has format {saved['format']!r}, and this version knows {FORMAT}")
        for uuid, arrives, libvirtd, volumes, answered_at in saved["announced"]:
            ids = [LvId(*lv) for lv in volumes]
            kept.announced[uuid] = Announced(arrives, ProcessId(*libvirtd), ids, answered_at)
        for lv, vg_name, lv_name, lock_type, vg_args, lv_args, lock_lv, why in saved["volumes"]:
            kept.volumes[LvId(*lv)] = Volume(
                id=LvId(*lv),
                vg_name=vg_name,
                lv_name=lv_name,
                lock_type=lock_type,
                vg_lock_args=vg_args,
                lv_lock_args=lv_args,
                lock_lv=(lock_lv[0], lock_lv[1]),
                why_not_shared=why,
            )
        for lv, vm, name, mode, grant in saved["holdings"]:
            holding = Holding(Vm(*vm), name, Mode(mode), Grant(grant))
            kept.holdings.setdefault(LvId(*lv), []).append(holding)
        # A daemon of an earlier release has none, and deactivates what nobody uses.
        kept.pinned = {LvId(*lv): str(uuid) for lv, uuid in saved.get("pinned", ())}
    except NotUnderstood:
        raise
    except (ValueError, TypeError, KeyError, IndexError) as e:
        raise NotUnderstood(f"it is damaged: {e}") from None
    return kept
