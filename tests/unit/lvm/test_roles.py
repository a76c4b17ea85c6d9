"""The role of a VM by each status file that a traced migration wrote, in order (libvirt-hooks-lvm.md 1.3, 1.7, 2.2)."""

from __future__ import annotations

import pytest

from holdfast.backends.lvm.roles import Role, role, runs, unknown_words
from holdfast.system.libvirt.domains import Domain, parse_domain

FILE = """<domstatus state='{state}' reason='{reason}' pid='{pid}'>
  <monitor path='/var/lib/libvirt/qemu/domain-1-v1/monitor.sock' type='unix'/>
  {job}
  <domain type='qemu' id='1'>
    <name>v1</name>
    <uuid>0d9a5a72-c2bd-4f5a-a8f5-1f4bd2b5a001</uuid>
    <devices>
      <disk type='block' device='disk'>
        <driver name='qemu' type='raw' cache='none'/>
        <source dev='/dev/vg/lv1'/>
        <target dev='vda' bus='virtio'/>
      </disk>
    </devices>
  </domain>
</domstatus>
"""
NO_JOB = ""


def job(name: str, phase: str | None = None, *, type_: str = "none", flags: str = "0x3") -> str:
    at = f" phase='{phase}'" if phase is not None else ""
    return f"<job type='{type_}' async='{name}'{at} flags='{flags}' asyncStarted='1795735530059'/>"


def file(state: str, reason: str, about: str, pid: int = 24098) -> Domain:
    return parse_domain(FILE.format(state=state, reason=reason, job=about, pid=pid).encode())


OUT, IN = "migration out", "migration in"
SOURCE = (
    (("running", "booted", NO_JOB), Role.OWNER),
    (("running", "booted", job(OUT, flags="0x0")), Role.SOURCE),
    (("running", "booted", job(OUT, "begin3")), Role.SOURCE),
    (("running", "booted", job(OUT, "perform3")), Role.SOURCE),
    (("paused", "migration", job(OUT, "perform3")), Role.SOURCE),
    (("paused", "migration", job(OUT, "perform3_done")), Role.LEFT),
    (("paused", "migration", job(OUT, "confirm3")), Role.LEFT),
)
"""libvirt 9.0, 11.3 and 12.8 alike."""
TARGET = (
    (("paused", "starting up", job(IN, "prepare"), 0), Role.TARGET),
    (("paused", "starting up", job(IN, "prepare")), Role.TARGET),
    (("paused", "migration", job(IN, "prepare")), Role.TARGET),
    (("paused", "migration", job(IN, "finish3")), Role.FINISHING),
    (("running", "migrated", job(IN, "finish3")), Role.FINISHING),
    (("running", "migrated", NO_JOB), Role.OWNER),
)
CANCELLED = (
    (("running", "unpaused", job(OUT, "perform3")), Role.SOURCE),
    (("running", "unpaused", job(OUT, "confirm3_cancelled")), Role.CAME_BACK),
    (("paused", "migration", job(OUT, "confirm3_cancelled")), Role.CAME_BACK),
    (("running", "unpaused", NO_JOB), Role.OWNER),
    (("running", "migration canceled", NO_JOB), Role.OWNER),
)
OTHERS = (
    (("paused", "starting up", job("start", flags="0x0"), 0), Role.OWNER),
    (("running", "booted", job("save")), Role.OWNER),
    (("paused", "user", NO_JOB), Role.OWNER),
    (("paused", "user", job(OUT, "perform3")), Role.SOURCE),
    (("paused", "post-copy", job(OUT, "perform3", flags="0x8003")), Role.LEFT),
    (("paused", "post-copy failed", job(OUT, "postcopy_failed")), Role.LEFT),
    (("paused", "migration", NO_JOB), Role.UNSETTLED),
    (("shutdown", "unknown", job("none", type_="destroy")), Role.OWNER),
)


@pytest.mark.parametrize(("words", "expected"), [*SOURCE, *TARGET, *CANCELLED, *OTHERS])
def test_role_by_the_words_of_a_status_file(words: tuple[str, str, str], expected: Role) -> None:
    seen = file(*words)
    assert role(seen) is expected
    assert unknown_words(seen) == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("running", "booted", job(OUT, "perform4")), "phase 'perform4'"),
        (("paused", "migration", job(IN, "finish4")), "phase 'finish4'"),
        (("running", "booted", job("moving away")), "job 'moving away'"),
        (("dreaming", "of sheep", NO_JOB), "state 'dreaming'"),
    ],
)
def test_words_that_are_not_known_make_an_owner_and_are_named(
    words: tuple[str, str, str], named: str
) -> None:
    seen = file(*words)
    assert role(seen) is Role.OWNER
    assert unknown_words(seen) == named


@pytest.mark.parametrize(
    ("state", "does"),
    [
        ("running", True),
        ("pmsuspended", True),
        ("shutdown", True),
        ("paused", False),
        ("crashed", False),
        ("?", True),
    ],
)
def test_state_that_is_not_known_counts_as_running(state: str, does: bool) -> None:
    assert runs(file(state, "", NO_JOB)) is does
