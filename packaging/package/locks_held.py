#!/usr/bin/python@VERSION@ -I
"""Who would lose a lock if Holdfast were removed now: one line each on stdout. For the package's prerm.

    locks-held             asks the daemon; one that does not answer is read about in its journal
    locks-held --offline   reads the journal only

Exit 0: nobody. 1: the owners that it printed. 2: it can't be determined, and stderr says why; that is not "nobody".
3: the journal names nobody, and no daemon answered: that is "nobody" only if none runs.
"""

import json
import os
import select
import subprocess
import sys

UNREACHABLE = 69
NO_ANSWER = 3
ANSWER_S = 60
SHOWN_MAX = 50


class Doubt(Exception):
    """It can't be determined."""


def online():
    """The owners that the daemon names, or None if there is no daemon."""
    try:
        asked = subprocess.run(
            ["holdfast", "list", "--json"], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Doubt(f"holdfastd has not answered within {ANSWER_S} s") from None
    except OSError as e:
        raise Doubt(f"holdfast list: {e}") from None
    if asked.returncode == UNREACHABLE:
        return None
    if asked.returncode != 0:
        raise Doubt(f"holdfast list: exit {asked.returncode}: {asked.stderr.strip() or asked.stdout.strip()}")
    try:
        return owners_of(json.loads(asked.stdout))
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise Doubt(f"holdfast list: not understood: {e!r}") from None


def owners_of(listed):
    """Lines about the locks of `holdfast list --json`. It lists disks that have no lock, too: they are not `held`."""
    found = []
    for lock in listed:
        if lock["held"] is False:
            continue
        owner = lock["unknown"] and "an unknown owner" or lock["owner"] or "a process"
        # `path` would be the lock file or lease where the disk has one.
        found.append(f"{owner} (pid {lock['pid']}): {lock['resource'] or lock['path']}")
    return found


def offline():
    """The owners of the journal of this boot that may still live."""
    sys.path.insert(0, "/usr/lib/holdfast/lib")
    sys.dont_write_bytecode = True
    from holdfast.daemon import kept_file
    from holdfast.manager.journal_replay import replay_with_extent
    from holdfast.system.host.process import boot_id

    run_dir = kept_file.run_dir_of(None)
    try:
        with open(f"{run_dir}/journal", "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return []
    except OSError as e:
        raise Doubt(f"{run_dir}/journal: {e}") from None
    try:
        with open(f"{run_dir}/journal.extent", "rb") as file:
            extent = file.read()
    except OSError:
        extent = b""
    state = replay_with_extent(raw, extent)
    if state.boot and state.boot != boot_id():
        return []
    found = []
    for lock in state.locks.values():
        for owner_id, claims in (lock.claims or {0: {}}).items():
            owner = state.owners.get(owner_id)
            disk = ", ".join(map(str, claims)) or lock.path
            if owner is None or owner_id in state.unknown:
                found.append(f"an unknown owner: {disk}")
            elif has_no_process(owner):
                found.append(
                    f"{owner.name.name or 'a process'}: {disk} (start holdfastd: it finds out whether it ended)"
                )
            elif may_live(owner.process.pid, owner.process.start_ticks):
                found.append(f"{owner.name.name or 'a process'} (pid {owner.process.pid}): {disk}")
    if not found and raw and not state.is_whole:
        raise Doubt(f"{run_dir}/journal is damaged: {state.doubt}")
    return found


def has_no_process(owner):
    """A VM that is being started, what outlives its client, and what is held until a disk is closed: no end to see."""
    return bool(
        owner.process.pid <= 0
        or owner.prepared
        or owner.until_closed
        or owner.family
        or owner.persistent
        or owner.keeps_orphans
    )


def may_live(pid, start_ticks):
    """False if that process has ended, also as a zombie that nobody reaps; one with a thread in the kernel lives."""
    try:
        pinned = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        same = start_ticks == 0 or int(fields[19]) == start_ticks
        return same and not select.select([pinned], [], [], 0)[0]
    except (OSError, ValueError, IndexError):
        return True
    finally:
        os.close(pinned)


def main():
    try:
        free = 0
        found = offline() if sys.argv[1:] == ["--offline"] else online()
        if found is None:
            free, found = NO_ANSWER, offline()
    except Doubt as e:
        print(e, file=sys.stderr)
        return 2
    for line in found[:SHOWN_MAX]:
        print(f"  {line}")
    if len(found) > SHOWN_MAX:
        print(f"  and {len(found) - SHOWN_MAX} more")
    return 1 if found else free


if __name__ == "__main__":
    sys.exit(main())
