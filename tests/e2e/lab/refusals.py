"""What a refused user must be told.

libvirt shows the lock daemon's text as it is.  The frame of the text is virtlockd's, because libvirt's
error code and people's scripts hang on it; what Holdfast adds is who holds the disk.
"""

from tests.e2e.lab.hosts import Host
from tests.e2e.lab.lab import Lab
from tests.e2e.lab.vms import Vm


def assert_refused(error: str) -> None:
    """The lock manager refused, and nothing else did (not QEMU, not a missing file)."""
    asked_by = ("resource busy: ", "holdfast: ")  # libvirt's plugin, or the hook
    assert any(f"{each}Lockspace resource '" in error for each in asked_by), error
    assert "' is locked" in error, error


def assert_told_holder(error: str, holder: Vm, *, asked: Host, lab: Lab) -> None:
    """The user who asked on host `asked` reads which guest on which host holds the disk."""
    assert_refused(error)
    if lab.lockd[asked].kind == "virtlockd":
        return  # it never says
    assert f"VM {holder.name} " in error, error
    assert f"uuid {holder.domain.uuid}" in error, error
    # What another host reads was written before there was a QEMU, if the hook asked.
    if asked is holder.host or not lab.hook:
        assert f"pid {holder.inner_pid}" in error, error
    assert f"on host {holder.host.name}" in error, error


def assert_told_by_the_hook(error: str, *words: str) -> None:
    """virsh's error is the hook's, in one line, with the holder."""
    assert "Hook script execution failed" in error, error
    assert "holdfast: Lockspace resource '" in error, error
    assert "write" not in error, error
    for word in words:
        assert word in error, error
