"""The manager's claims and the grants on volumes, compared: the stricter one counts, and both are repaired (ADR 0216)."""

from __future__ import annotations

from collections.abc import Collection

from holdfast.backends.lvm.host_volumes import HostVolumes, is_of
from holdfast.backends.lvm.roles import Role, role
from holdfast.backends.lvm.write_rules import Vm
from holdfast.system.libvirt.domains import Survey


def add_missing_grants(host: HostVolumes, survey: Survey) -> None:
    """A claim of the journal without a grant: the record was lost. Its VM may write, so others may not."""
    added = False
    for path, holding in host.claims():
        volume = host.volumes.at(path)
        if volume is None or any(each.vm == holding.vm for each in host.kept.holdings.get(volume.id, ())):
            continue
        lives = holding.vm.is_program or any(
            is_of(domain, holding.vm) and role(domain) is not Role.LEFT for domain in survey.domains
        )
        if lives:
            host.hold(volume, holding)
            added = True
    if added:
        host.saved()


def end_programs(host: HostVolumes, claiming: Collection[Vm]) -> None:
    """Programs that no claim of a whole journal has are over: no status file shows their end."""
    over = [
        (lv, holding.vm)
        for lv, holdings in host.kept.holdings.items()
        for holding in holdings
        if holding.vm.is_program and holding.vm not in claiming
    ]
    for lv, vm in over:
        host.drop(lv, vm)
    if over:
        host.saved()
