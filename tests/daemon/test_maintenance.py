"""`holdfast maintenance` and `holdfast log-level` on a real daemon: what goes on, what is refused, and over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemon.test_qemu_hook import WEB, call, xml
from tests.support.daemon import Factory, Holdfastd, locked, make_disk
from tests.support.polling import wait_until


def libvirtd_asks_for(daemon: Holdfastd, pid: int, disk: Path) -> None:
    """A resume, a hotplug, or the finish of an incoming migration: libvirtd's own process registers for the VM."""
    with daemon.client() as client:
        client.register(pid=pid, name="web1", domain_id=1)
        client.acquire(str(disk))


def test_no_vm_begins_while_those_that_are_here_go_on_over_a_restart(
    make_daemon: Factory, place: Path
) -> None:
    daemon = make_daemon().start()
    first, second, third = (make_disk(place, f"{name}.img") for name in "abc")
    vm = daemon.vm([first], name="web1")
    done = daemon.cli("maintenance", "on", "--reason", "new memory")
    assert done.returncode == 0, done.stderr
    assert "1 to move" in done.stdout
    assert f"web1\t{vm}\t{first}" in done.stdout
    for _ in range(2):
        with pytest.raises(
            AssertionError, match=r"in maintenance since .*: new memory.*holdfast maintenance off"
        ):
            daemon.vm([second], name="web2")
        assert call(daemon, "migrate", xml("web3", WEB, third), name="web3").returncode == 0
        for _of_arrival_then_start in range(2):
            hook = call(daemon, "prepare", xml("web3", WEB, third), name="web3")
            assert (hook.returncode, b"holdfast maintenance off" in hook.stderr) == (1, True), hook.stderr
        ran = daemon.cli("run", "--disk", str(third), "--", "true")
        assert (ran.returncode, "in maintenance" in ran.stderr) == (75, True), ran.stderr
        assert not locked(second)
        assert not locked(third)
        libvirtd_asks_for(daemon, vm, second)
        assert locked(second)
        with daemon.client() as client:
            client.register(pid=vm, name="web1", domain_id=1)
            client.release(str(second))
        wait_until(lambda: not locked(second), "the release")
        assert "in maintenance since" in daemon.cli("status").stdout
        assert "in maintenance since" in daemon.cli("top", "--once").stdout
        assert "holdfast_maintenance 1" in daemon.cli("metrics").stdout.splitlines()
        (finding,) = daemon.cli_json("doctor", "--only", "HF013")
        assert finding["severity"] == "note"
        daemon.kill()
        daemon.start()
    assert daemon.cli_json("maintenance", "status")["reason"] == "new memory"
    refused = [each for each in daemon.cli("why", "web2").stdout.splitlines() if "in maintenance" in each]
    assert not refused, "events begin with the daemon"
    assert daemon.cli("maintenance", "off").returncode == 0
    daemon.vm([second], name="web2")
    assert "holdfast_maintenance 0" in daemon.cli("metrics").stdout.splitlines()


def test_log_level_changes_at_run_time_and_the_log_says_by_whom(make_daemon: Factory) -> None:
    daemon = make_daemon().start()
    assert daemon.cli_json("log-level") == {"ok": True, "level": "debug", "before": None}
    assert daemon.cli_json("log-level", "error") == {"ok": True, "level": "error", "before": "debug"}
    daemon.says("log level: error, before debug; changed by root (pid ")
    assert daemon.cli("maintenance", "on").returncode == 0
    assert daemon.cli("log-level", "warning").returncode == 0
    daemon.says("log level: warning, before error; changed by root")
    assert "maintenance of this host begins" not in daemon.log_text(), "it was a warning"
    assert daemon.cli("maintenance", "off").returncode == 0
    daemon.says("maintenance of this host ends: by root")
    assert daemon.cli("log-level", "loud").returncode == 2
    daemon.reexec()
    assert daemon.cli_json("log-level")["level"] == "debug"
