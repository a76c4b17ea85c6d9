"""What `driver = "lvm"` costs: a conversion by lvmlockd's socket beside `lvchange`; a start beside one without Holdfast.

All in emulated guests, so that ratios count, and differences as far as they exceed what runs differ among themselves.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence

from lab.fencing.guests import LabError
from lab.lvm.host import IN_GUEST
from lab.lvm.pause import Site, unlocked
from lab.lvm.vm_host import LV, VM, VmHost

FIGURES_S = 900.0
FASTER = 5
"""A conversion by lvmlockd's socket, at least, than by `lvchange`."""
STARTS = 10
KNOWN_HOOK = f"""#!/bin/sh
case "$2" in
prepare) lvchange -aey {LV} ;;
release) lvchange -an {LV} ;;
esac
"""
"""What hooks for shared volumes do at a start and at an end, in the fewest words."""
START = f"""set -e
began=$(date +%s%N); virsh -q create /root/{VM}.xml; ended=$(date +%s%N)
virsh -q destroy {VM}
for _ in $(seq 300); do [ -e {LV} ] || break; [ "$1" = active ] && break; sleep .1; done
echo $(((ended - began) / 1000))"""
"""Prints microseconds; the VM is gone again, and so is its device unless it was active before."""


def conversions(site: Site) -> str:
    """Medians (and the least) in milliseconds; see `in_guest/figures`. Raises `LabError` if the socket is not `FASTER`."""
    host = site.other
    host.in_background("figures", f"PYTHONPATH={host.guests.python} {IN_GUEST}/figures /root/{VM}.xml")
    found = ""

    def ended() -> bool:
        nonlocal found
        found = host.ended("figures") or ""
        return bool(found)

    site.wait(ended, lambda: "the figures", FIGURES_S)
    if not found.endswith("status 0"):
        raise LabError(found)
    times = json.loads(found.splitlines()[-2])
    ratio = times["lvchange"][0] / times["socket"][0]
    if ratio < FASTER:
        raise LabError(
            f"a conversion by socket is {ratio:.1f} times as fast as lvchange, not {FASTER}: {times}"
        )
    return f"{times} ms; by socket {ratio:.1f} times as fast as by lvchange"


def starts(site: Site) -> str:
    """Medians, least and greatest of `virsh create`, in milliseconds: with `driver = "lvm"`, with a hook that only calls
    `lvchange`, and with neither, the volume being active.
    """
    host = site.at
    host.sh(f"virsh destroy {VM}; for _ in $(seq 120); do [ -e {LV} ] || exit 0; sleep .5; done; exit 1")
    found = {"driver lvm": _starts(host, "inactive")}
    site.start_vm(host)
    with unlocked(site, runs=False):
        found["neither"] = _starts(site.one, "active")
    with unlocked(site, KNOWN_HOOK, runs=False):
        found["lvchange in a hook"] = _starts(site.one, "inactive")
    return (
        "; ".join(f"{name}: {spread(times)} ms" for name, times in found.items()) + f"; {STARTS} starts each"
    )


def _starts(host: VmHost, device: str) -> list[float]:
    """Milliseconds of each start."""
    host.put("/root/start", START.encode())
    return [int(host.sh(f"bash /root/start {device}").splitlines()[-1]) / 1000 for _ in range(STARTS)]


def spread(times: Sequence[float]) -> str:
    """The median, with the least and the greatest."""
    return f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
