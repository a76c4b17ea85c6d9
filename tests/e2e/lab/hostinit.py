"""The first process of a lab host: makes the host's own view of the machine, then keeps it alive.

It is started by `unshare` as pid 1 of new mount, UTS, network and pid namespaces.  It gives the host its
own /dev, /proc, /run and libvirt folders, and says "ready" together with the pid under which the outside
knows it.  Then it only waits for the end of its standard input.  When that comes (the test run has ended,
or has been killed) it exits, and the kernel ends everything that lives in the host and drops its mounts: a
host never outlives its tests.

It imports nothing of the project, because it runs as a script.
"""

import json
import os
import signal
import socket
import subprocess
import sys

CHARACTER_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "fuse": (10, 229),
}


def main() -> None:
    wanted = json.loads(sys.argv[1])
    outer_pid = int(os.readlink("/proc/self"))  # /proc is still the outside's
    socket.sethostname(wanted["name"])
    mount("-t", "proc", "proc", "/proc")
    make_dev(wanted["block_devices"])
    for source, target in wanted["binds"]:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        mount("--bind", source, target)
    print(outer_pid, flush=True)
    # Ignoring SIGCHLD makes the kernel reap orphans at once: a guest that has ended is gone, not a zombie
    # that libvirtd and the lock daemon would wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.read(0, 512):
        pass


def make_dev(block_devices: list[tuple[str, int, int]]) -> None:
    """A /dev of its own: nothing is left on the machine, and each host has own nodes of shared devices."""
    mount("-t", "tmpfs", "-o", "mode=755", "dev", "/dev")
    os.umask(0)
    for name, (major, minor) in CHARACTER_DEVICES.items():
        os.mknod(f"/dev/{name}", 0o020666, os.makedev(major, minor))
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}", 0o755)
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620", "devpts", "/dev/pts")
    mount("-t", "tmpfs", "shm", "/dev/shm")
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.symlink("/proc/self/fd", "/dev/fd")
    for path, major, minor in block_devices:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.mknod(path, 0o060660, os.makedev(major, minor))
    os.umask(0o022)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
