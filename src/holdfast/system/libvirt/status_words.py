"""Words of libvirt's status files about migrations and states (libvirt-hooks-lvm.md 1.7 and 2.2).

9.0, 11.3 and 12.8 have the same ones. What they mean for a lock, `manager/migration_roles` knows; for the mode of a logical
volume, `backends/lvm/roles`.
"""

from __future__ import annotations

OUT, IN = "migration out", "migration in"
OTHER_JOBS = frozenset(("", "start", "save", "dump", "snapshot", "backup", IN))
PHASES_OPEN = frozenset(("", "none", "perform2", "begin3", "perform3", "confirm3_cancelled"))
"""The guest may still continue at the source."""
PHASES_DONE = frozenset(("perform3_done", "confirm3"))
"""The source's QEMU has closed its disks for writing."""
PHASE_ACQUIRES = "finish3"
"""In it the target acquires; the source has reached `PHASES_DONE` by then."""
POST_COPY = "post-copy"
"""How the reasons of a source begin whose guest runs on the target already."""
STARTING_UP = "starting up"
"""Why a VM is paused that has not run yet."""
RUNS = frozenset(("running", "shutdown", "pmsuspended"))
STANDS = frozenset(("paused", "crashed", "shutoff"))
