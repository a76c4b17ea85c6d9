"""`lvchange`, `lvs` and `lvmconfig` of one host of a test: locks by the fake lvmlockd, devices by mknod, no device mapper.

    python lvm_stand_in.py FACTS COMMAND [ARGUMENT ...]

FACTS is a JSON file: the host's id, its directory, and the volumes by name. A file `open-LV` in that directory stands for a
process that has the device open. Words and exit codes are those of libvirt-hooks-lvm.md 3.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from holdfast.backends.lvm.volumes import FIELDS
from holdfast.system.lvm.lvmlockd_client import (
    HeldElsewhere,
    LvLock,
    LvmlockdClient,
    LvmlockdError,
    Mode,
)

MAJOR = 240
"""Of the device nodes where the volume has none of its own: one that no driver has, as nothing opens them."""
MODES = {"-aey": Mode.EXCLUSIVE, "-asy": Mode.SHARED, "-an": Mode.UNLOCKED}


def main(facts: dict[str, Any], command: str, *arguments: str) -> int:
    match command:
        case "lvmconfig":
            print(f"host_id={facts['host_id']}")
            return 0
        case "lvs":
            return _reported(facts, arguments[-1])
        case "lvchange":
            return _changed(facts, *arguments)
        case _:
            return 3


def _reported(facts: dict[str, Any], path: str) -> int:
    vg, name = path.removeprefix("/dev/").split("/")
    volume = facts["volumes"].get(name)
    if volume is None or vg != volume["vg"]:
        print(f'  Failed to find logical volume "{vg}/{name}"', file=sys.stderr)
        return 5
    shared = volume["vg"] == "vg"
    row = dict.fromkeys(FIELDS.split(","), "") | {
        "vg_name": vg,
        "vg_uuid": facts["vg_uuid"],
        "vg_lock_type": "sanlock" if shared else "",
        "vg_lock_args": "1.0.0:lvmlock" if shared else "",
        "lv_name": name,
        "lv_uuid": volume["uuid"],
        "lv_lockargs": f"1.0.0:{volume['at']}" if shared and "pool" not in volume else "",
        "lv_layout": volume.get("layout", "linear"),
        "pool_lv": volume.get("pool", ""),
        "lv_role": "public",
    }
    print("  WARNING: this is a stand-in.")
    print(json.dumps({"report": [{"lv": [row]}]}))
    return 0


def _changed(facts: dict[str, Any], switch: str, name: str) -> int:
    vg, lv = name.split("/")
    volume, mode = facts["volumes"][lv], MODES[switch]
    node = Path(f"/dev/{vg}/{lv}")
    if mode is Mode.UNLOCKED and (Path(facts["directory"], f"open-{lv}").exists() or _is_open(node)):
        print(f"  Logical volume {name} in use.", file=sys.stderr)
        return 5
    lock = LvLock(vg, lv, volume["uuid"], "1.0.0:lvmlock", f"1.0.0:{volume['at']}", lock_type="sanlock")
    if mode is Mode.UNLOCKED:
        node.unlink(missing_ok=True)  # before the lock goes
    try:
        with LvmlockdClient() as client:
            client.lock_lv(lock, mode)
    except HeldElsewhere:
        print(f"  LV locked by other host: {name}\n  Failed to lock logical volume {name}.", file=sys.stderr)
        return 5
    except LvmlockdError as e:
        print(f"  WARNING: lvmlockd process is not running.\n  {e}", file=sys.stderr)
        return 5
    if mode is not Mode.UNLOCKED and not node.exists():
        os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(volume.get("major", MAJOR), volume["minor"]))
    return 0


def _is_open(node: Path) -> bool:
    """Whether a process of this host has it open."""
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(fd) == str(node):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), *sys.argv[2:]))
