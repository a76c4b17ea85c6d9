"""`holdfast-qemu-hook`: libvirt's hook for QEMU, which asks holdfastd for a VM's disks before QEMU opens them.

libvirt calls it as `GUESTNAME OPERATION SUBOP EXTRA` with the domain's XML on stdin, and waits (libvirt-hooks-lvm.md 1.1):

    migrate     a guest is about to arrive: the next `prepare` takes nothing             fails if it would run without a lock
                                                                                         or can't be on two hosts
    prepare     its disks are held for it, or the start fails with the holder's name     fails in doubt
    release     nothing of it runs: what was prepared and not used is released           never fails
    others      nothing                                                                  never fail

libvirt calls `migrate` on the target alone, before anything of the guest is there. If this host's libvirt asks nobody for
locks (`lock_manager`), the guest would run here with no lock on its disks, while its source has released them: what the hook
holds for a start is not held for an arriving guest. So that migration is refused, and the guest runs on at its source.

A failure of `reconnect` or `started` would have libvirt kill a QEMU that runs, and one of `stopped` and `release` is ignored
by libvirt. Nothing is written to stdout: in `migrate` and `restore` libvirt takes that for the new XML. The reason of a
failure is one line on stderr, which virsh shows. libvirt is never called: it would wait for this program.

Each start of a VM waits for this program, so it imports only what an operation needs.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # not typing's: its import takes as long as a call of holdfastd
    from collections.abc import Sequence
    from types import FrameType

    from holdfast.system.libvirt.domains import Domain

LIMIT_S = 30.0
"""For the whole call: while a hook runs, every question about its VM waits, and libvirt itself has no limit."""
XML_BYTES_MAX = 4 << 20
"""As for libvirt's status files: a domain with a thousand disks stays below."""
CONTROL_SOCKET = "/run/holdfast/io.holdfast.Control"
"""Of a configuration without `run_dir` and `control.socket`; the script names another one by --socket."""
QEMU_CONF = "/etc/libvirt/qemu.conf"
"""libvirt's, as nearly all builds have it; the script names another one by --qemu-conf."""
ASKED = ("migrate", "prepare", "release")
MUST_HOLD = "prepare"
"""The operation that fails if holdfastd does not grant the disks."""
ARRIVES = "migrate"
OWN_KINDS = ("file", "dir")
"""Of a VM's NVRAM and TPM state: only these can be local."""
REFUSED = "Refused"
"""The kind of a refusal by holdfastd of which its sentence says all."""
SHARED = "shared"
"""`Access` of a disk that is <shareable/>."""
OK, FAILED = 0, 1


class HookFailed(Exception):
    """Why a VM must not be started, in one sentence with the fix."""


class MigrationRefused(HookFailed):
    """Why a guest must not arrive, in the same way."""


def main() -> None:
    """The entry point. It leaves at once, without the interpreter's last steps, which can fail on a full disk."""
    os._exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of one call; the reason of a failure is on stderr."""
    operation = ""
    try:
        places = {"--socket": CONTROL_SOCKET, "--qemu-conf": QEMU_CONF}
        while arguments[0] in places:
            places[arguments[0]], arguments = arguments[1], arguments[2:]
        socket = places["--socket"]
        guest, operation = arguments[0], arguments[1]
        if operation in ASKED:
            _limit_time()
        xml = _read_stdin()
        if operation in ASKED:
            _ask(socket, places["--qemu-conf"], guest, operation, xml)
    except MigrationRefused as e:
        _said(operation, str(e))
        return FAILED
    except HookFailed as e:
        return _said(operation, str(e))
    except IndexError:
        return _said(
            operation,
            "usage: [--socket PATH] [--qemu-conf PATH] GUESTNAME OPERATION SUBOP EXTRA, as libvirt calls its hooks",
        )
    except BaseException as e:
        return _said(operation, f"{type(e).__name__}: {e}; this is an error in Holdfast, please report it")
    return OK


def _said(operation: str, why: str) -> int:
    line = " ".join(f"holdfast: {why}".split()) + "\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        pass  # stderr is closed or its disk is full; the exit code counts
    return FAILED if operation == MUST_HOLD else OK


def _read_stdin() -> bytes:
    """All of it, up to the limit: libvirt gets no error from a pipe that nobody reads. Empty if it is closed."""
    parts, size = [], 0
    try:
        while size <= XML_BYTES_MAX and (part := os.read(0, 1 << 16)):
            parts.append(part)
            size += len(part)
    except OSError:
        pass
    return b"".join(parts)


def _limit_time() -> None:
    import signal

    def over(_: int, __: FrameType | None) -> None:
        raise HookFailed(
            f"holdfastd did not grant the disks within {LIMIT_S:g} s; 'holdfast status' names storage that does not answer"
        )

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)


def _ask(socket: str, qemu_conf: str, guest: str, operation: str, xml: bytes) -> None:
    from holdfast.system.libvirt.domains import parse_domain
    from holdfast.system.libvirt.xml_text import NotUnderstood

    if len(xml) > XML_BYTES_MAX:
        raise HookFailed(
            f"the XML of {guest} has more than {XML_BYTES_MAX} bytes: remove disks or metadata from it"
        )
    try:
        domain = parse_domain(xml)
    except NotUnderstood as e:
        raise HookFailed(f"the XML of {guest} on stdin: {e}; libvirt calls this hook, with the XML") from None
    named = operation in (MUST_HOLD, ARRIVES)
    wanted = [disk for disk in domain.disks if not disk.transient] if named else []
    networked = domain.networked if named else ()
    unasked = _why_unasked(qemu_conf) if operation == ARRIVES and (domain.disks or networked) else ""
    if unasked and domain.disks:
        raise MigrationRefused(
            f"{guest} would run on this host without a lock on its {len(domain.disks)} writable disks: {unasked}"
        )
    own_files = [part.path for part in domain.parts if part.path and part.kind in OWN_KINDS]
    if operation == MUST_HOLD and not (wanted or own_files or networked):
        return
    from holdfast.control.api import DiskWish, Starter
    from holdfast.control.client import CallRefused, ControlClient, DaemonUnreachable
    from holdfast.system.host.process import start_ticks

    disks = [DiskWish(disk.path, disk.shareable) for disk in wanted]
    network_disks = [DiskWish(disk.name, disk.access == SHARED) for disk in networked]
    libvirtd = os.getppid()
    try:
        with ControlClient(socket, timeout_s=LIMIT_S) as daemon:
            daemon.hook(
                operation,
                name=guest,
                uuid=domain.uuid,
                libvirtd=Starter(libvirtd, start_ticks(libvirtd)),
                disks=disks,
                own_files=own_files if operation == MUST_HOLD else (),
                network_disks=network_disks if operation == MUST_HOLD or unasked else (),
                unasked_because=unasked,
            )
    except DaemonUnreachable as e:
        raise HookFailed(_unreachable(guest, domain, str(e))) from None
    except CallRefused as e:
        does_not_know = e.kind.endswith(("MethodNotFound", "InvalidParameter"))
        refuses = not does_not_know if unasked else e.kind == REFUSED
        if operation == ARRIVES and refuses:
            raise MigrationRefused(str(e)) from None
        if does_not_know:
            raise HookFailed("holdfastd is older than this hook: systemctl reload holdfastd") from None
        raise HookFailed(str(e)) from None


def _why_unasked(qemu_conf: str) -> str:
    """Why this host's libvirt asks holdfastd for no locks, as far as its configuration says; empty if it asks."""
    from holdfast.cli.libvirt_files import read_conf
    from holdfast.system.files.regular_file import Unreadable

    conf = read_conf(qemu_conf)
    if isinstance(conf, Unreadable):
        has = f"{qemu_conf} can't be read: {conf.reason}"
    elif conf.text("lock_manager") == "lockd":
        return ""
    elif conf.error:
        has = f"{qemu_conf}, line {conf.error_line}: {conf.error}"
    elif (found := conf.get("lock_manager")) is None:
        has = f"{qemu_conf} has no lock_manager"
    else:
        has = f"{qemu_conf} has lock_manager = {found.value!r}, line {found.line}"
    return (
        f"libvirt does not ask holdfastd here ({has}): "
        f'write lock_manager = "lockd" into that file, then: systemctl restart {_libvirtd()}'
    )


def _libvirtd() -> str:
    """The unit of the libvirt daemon that has called."""
    try:
        with open(f"/proc/{os.getppid()}/comm") as file:
            name = file.read().strip()
    except OSError:
        name = ""
    return "virtqemud" if name == "virtqemud" else "libvirtd"


def _unreachable(guest: str, domain: Domain, why: str) -> str:
    return (
        f"{why}; so nobody knows whether another VM has the {len(domain.disks)} writable disks of {guest}: "
        "systemctl start holdfastd.socket holdfastd.service; systemctl status holdfastd.service"
    )


if __name__ == "__main__":
    main()
