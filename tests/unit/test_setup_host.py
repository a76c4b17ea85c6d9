"""`holdfast setup` on made-up hosts: real files, libvirt's real lens, real lockspaces, a systemctl that only remembers."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
from tests.unit.doctor.machine import DAEMON, FakeHost, Machine, status

from holdfast.cli.commands.lockspace import make
from holdfast.cli.doctor.scene import Host, Program, Scene
from holdfast.cli.setup import execute, lens
from holdfast.cli.setup.execute import Executor, StepFailed
from holdfast.cli.setup.facts import Wishes
from holdfast.cli.setup.lockspace_there import look
from holdfast.cli.setup.plan import plan
from holdfast.cli.setup.record import Record, RecordUnusable, alone
from holdfast.cli.setup.show import as_object, difference
from holdfast.cli.setup.steps import Plan
from holdfast.cli.setup.survey import Survey, survey
from holdfast.cli.setup.undo import refusals, undo
from holdfast.switch.left_behind import LeftBehind

LEASES = "/srv/shared/leases"
QEMU_CONF = '# The lock manager.\n#\n#lock_manager = "lockd"\n\nuser = "root"\n'


class Systemd(FakeHost):
    """A host whose units change as `run`, which is there in place of processes, asks its systemctl."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self.commands: list[str] = []
        self.fails: str = ""
        self.listens = 1
        self.processes = self.processes[:1]
        loaded = {
            "LoadState": "loaded",
            "ActiveState": "inactive",
            "UnitFileState": "disabled",
            "MainPID": "0",
        }
        sockets = ("holdfastd.socket", "virtlockd.socket", "virtlockd-admin.socket", "libvirtd.socket")
        services = ("holdfastd.service", "virtlockd.service", "libvirtd.service", "chrony.service")
        names = (*sockets, *services, "holdfast-lease-gc.timer")
        self.units = {each: {**loaded, "Id": each} for each in names}
        for each in ("virtlockd.socket", "libvirtd.socket", "libvirtd.service"):
            self.units[each].update(ActiveState="active", UnitFileState="enabled")

    def run(self, command: tuple[str, ...]) -> None:
        self.commands.append(" ".join(command))
        if self.fails and self.fails in self.commands[-1]:
            raise StepFailed(f"{self.commands[-1]}: exit 1: it fails here")
        verb, names = command[1], [each for each in command[2:] if not each.startswith("-")]
        for name in names:
            unit = self.units[name]
            if verb in ("enable", "disable"):
                unit["UnitFileState"] = f"{verb}d"
                self._link(name, there=verb == "enable")
            if verb in ("start", "restart") or (verb == "enable" and "--now" in command):
                unit["ActiveState"] = "active"
            if verb == "stop" or (verb == "disable" and "--now" in command):
                unit["ActiveState"] = "inactive"
        self._machine.status, self.listens = None, 1
        if self.units["holdfastd.service"]["ActiveState"] == "active":
            self._machine.status = status()
            self.listens = DAEMON

    def _link(self, name: str, *, there: bool) -> None:
        target = {"service": "multi-user", "socket": "sockets", "timer": "timers"}[name.rpartition(".")[2]]
        link = self._machine.root / f"etc/systemd/system/{target}.target.wants/{name}"
        link.unlink(missing_ok=True)
        if there:
            self._machine.enable(target, name)


class Site:
    """One host, with the command's own survey, executor and undo."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(root)
        shutil.rmtree(root / "etc/systemd")
        self.machine.config.unlink()
        self.machine.qemu(QEMU_CONF)
        self.machine.status = None
        self.systemd = Systemd(self.machine)
        self.machine.host = self.systemd
        monkeypatch.setattr(execute, "run", self.systemd.run)
        monkeypatch.setattr("holdfast.cli.setup.undo.run", self.systemd.run)
        self.root = root
        self.qemu = root / "etc/libvirt/qemu.conf"
        self.toml = root / "etc/holdfast/holdfast.toml"

    def scene(self, file: str | None, _socket: str | None, _root: str, *, host: Host | None = None) -> Scene:
        if file is None:
            self.machine.configure("")
        else:
            text = Path(file).read_text()
            self.machine.configure(text.replace("{", "{{").replace("}", "}}"))
        made = self.machine.scene()
        self.machine.config.unlink()
        return made

    def survey(self, wishes: Wishes = Wishes()) -> Survey:  # noqa: B008
        return survey(
            wishes,
            Record(str(self.root)),
            config_file=None,
            socket=None,
            root=str(self.root),
            host=self.systemd,
            scene_of=self.scene,
        )

    def plan(self, wishes: Wishes = Wishes()) -> Plan:  # noqa: B008
        found = self.survey(wishes)
        return plan(wishes, found.facts, found.proposal, found.space)

    def setup(self, wishes: Wishes = Wishes()) -> list[str]:  # noqa: B008
        said: list[str] = []
        record = Record(str(self.root))

        def look() -> Survey:
            return dataclasses.replace(self.survey(wishes))

        Executor(record, look, said.append, self.systemd).carry_out(wishes, self.plan(wishes))
        return said

    def undo(self) -> list[str]:
        said: list[str] = []
        undo(Record(str(self.root)), lambda: self.scene(None, None, ""), self.systemd, said.append)
        return said

    def snapshot(self) -> Mapping[str, tuple[int, bytes | str]]:
        return {
            str(path.relative_to(self.root)): (
                path.lstat().st_mode,
                os.readlink(path) if path.is_symlink() else path.read_bytes(),
            )
            for path in sorted((self.root / "etc").rglob("*"))
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


# --- libvirt's files ---


def test_lens_puts_a_setting_beside_its_comment_and_changes_nothing_else() -> None:
    new = lens.edited("qemu.conf", QEMU_CONF.encode(), "Libvirtd_qemu.lns", (("lock_manager", "lockd"),))
    assert new.decode() == QEMU_CONF.replace('"lockd"\n', '"lockd"\nlock_manager = "lockd"\n')
    off = b'lock_manager = "nop"\nuser = "root"\n'
    assert lens.edited("q", off, "Libvirtd_qemu.lns", (("lock_manager", "lockd"),)) == off.replace(
        b"nop", b"lockd"
    )


def test_file_that_the_lens_cannot_read_is_left_with_the_line() -> None:
    with pytest.raises(lens.NotEdited, match=r"qemu.conf, line 2"):
        lens.edited("qemu.conf", b"# x\nmistyped = 1\n", "Libvirtd_qemu.lns", (("lock_manager", "lockd"),))


def test_missing_augeas_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lens.cannot_edit("Libvirtd_qemu.lns") == ""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "apt-get install augeas-tools" in lens.cannot_edit("Libvirtd_qemu.lns")
    monkeypatch.undo()
    monkeypatch.setattr(lens, "LENS_DIRECTORIES", ())
    assert "libvirt-daemon-driver-qemu" in lens.cannot_edit("Libvirtd_qemu.lns")


# --- the whole way ---


def test_setup_again_is_a_no_op_and_the_undo_leaves_every_file_as_it_was(site: Site) -> None:
    os.chmod(site.qemu, 0o600)
    before = site.snapshot()
    site.setup()
    assert 'lock_manager = "lockd"' in site.qemu.read_text().splitlines()
    assert site.qemu.stat().st_mode & 0o777 == 0o600
    assert site.plan().steps == ()
    assert site.setup() == []
    assert refusals(Record(str(site.root)), site.scene(None, None, "")) == []
    site.undo()
    assert {k: v for k, v in site.snapshot().items() if "virtlockd.socket" not in k} == before
    assert site.systemd.units["virtlockd.socket"]["ActiveState"] == "active"
    assert site.systemd.units["virtlockd.socket"]["UnitFileState"] == "enabled"
    assert site.systemd.units["holdfastd.service"]["ActiveState"] == "inactive"
    assert not (site.root / "var/lib/holdfast/setup").exists()


@pytest.mark.parametrize(
    ("place", "enabled", "warned"),
    [("/srv/leases", [], True), ("", [], False), ("/srv/leases", ["holdfastd.socket"], False)],
)
def test_undo_says_that_virtlockd_sees_no_lease(
    site: Site, place: str, enabled: list[str], *, warned: bool
) -> None:
    site.setup()
    record = Record(str(site.root))
    record.kept.enabled += enabled
    record.begin(Wishes(join=place), record.kept.libvirt_active, (), ())
    said = "".join(site.undo())
    assert (f"virtlockd sees no lease in {place}" in said) == warned


def test_libvirt_that_idles_is_reachable_again_after_setup_and_after_its_undo(site: Site) -> None:
    site.systemd.units["libvirtd.service"]["ActiveState"] = "inactive"
    site.setup()
    assert site.systemd.units["libvirtd.socket"]["ActiveState"] == "active"
    assert site.systemd.units["libvirtd.service"]["ActiveState"] == "inactive"
    site.undo()
    assert site.systemd.units["libvirtd.socket"]["ActiveState"] == "active"


@pytest.mark.parametrize(
    "fails", ["stop libvirtd", "disable --now", "enable --now", "restart libvirtd.socket"]
)
def test_setup_that_was_stopped_anywhere_is_finished_by_the_next_run(site: Site, fails: str) -> None:
    before = site.snapshot()
    site.systemd.fails = fails
    with pytest.raises(StepFailed):
        site.setup()
    record = Record(str(site.root))
    assert record.kept.under_way or record.kept.steps
    assert not record.kept.complete
    site.systemd.fails = ""
    site.setup()
    assert site.plan().steps == ()
    assert site.systemd.units["libvirtd.service"]["ActiveState"] == "active"
    assert site.systemd.units["holdfastd.service"]["ActiveState"] == "active"
    site.undo()
    assert {k: v for k, v in site.snapshot().items() if "virtlockd.socket" not in k} == before


def test_vm_that_appears_before_virtlockd_is_stopped_keeps_it_running(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started after the plan was shown, while libvirt still ran."""
    agreed = site.plan()
    assert agreed.refusals == ()
    stop = site.systemd.run

    def run(command: tuple[str, ...]) -> None:
        stop(command)
        if command[1] == "stop":
            site.machine.program(77, "virtlockd")
            site.machine.start("web1", "/srv/web1.img")

    monkeypatch.setattr(execute, "run", run)
    with pytest.raises(StepFailed, match="virtlockd is not stopped: web1"):
        site.setup()
    assert not any("disable" in each for each in site.systemd.commands)
    assert site.systemd.commands[-1] == "systemctl start libvirtd.socket libvirtd.service"


def test_undo_is_refused_where_a_file_was_edited_since_and_while_a_vm_has_a_lock(site: Site) -> None:
    site.setup()
    edited = site.qemu.read_text() + "# mine\n"
    site.qemu.write_text(edited)
    with pytest.raises(StepFailed, match=r"qemu\.conf was edited since"):
        site.undo()
    assert site.qemu.read_text() == edited
    assert site.systemd.units["holdfastd.service"]["ActiveState"] == "active"
    site.qemu.write_text(edited.removesuffix("# mine\n"))
    site.machine.lock("web1", "/srv/web1.img")
    with pytest.raises(StepFailed, match=r"web1 \(pid 4242\) have locks in holdfastd"):
        site.undo()
    assert site.systemd.units["holdfastd.service"]["ActiveState"] == "active"
    assert site.systemd.units["libvirtd.service"]["ActiveState"] == "active"


def test_daemon_that_does_not_answer_is_doubt_and_the_undo_is_refused(site: Site) -> None:
    site.setup()
    site.machine.status = None
    site.machine.program(DAEMON, "holdfastd")
    assert "who has locks is not known" in refusals(Record(str(site.root)), site.scene(None, None, ""))[0]


def test_undo_of_a_setup_that_was_stopped_before_the_switch_leaves_virtlockd_and_its_vms_alone(
    site: Site,
) -> None:
    before = site.snapshot()
    site.systemd.fails = "stop libvirtd"
    with pytest.raises(StepFailed):
        site.setup()
    assert site.snapshot() != before
    site.systemd.fails = ""
    site.machine.program(77, "virtlockd")
    site.machine.start("web1", "/srv/web1.img")
    site.systemd.commands.clear()
    site.undo()
    assert {k: v for k, v in site.snapshot().items() if "virtlockd.socket" not in k} == before
    assert not any("disable" in each or "stop virtlockd" in each for each in site.systemd.commands)


def test_undo_is_refused_while_locks_of_a_switch_wait_for_holdfastd(site: Site) -> None:
    site.setup()
    site.machine.status = None
    left = LeftBehind(4711, 1, ["web1: /srv/web1.img"], b"")
    site.machine.file("run/holdfast-switch/locks").write_bytes(msgspec.json.encode(left))
    (why,) = refusals(Record(str(site.root)), site.scene(None, None, ""))
    assert "web1: /srv/web1.img" in why
    assert "run holdfast setup" in why
    site.machine.program(77, "virtlockd")  # any connection starts one by its socket
    assert refusals(Record(str(site.root)), site.scene(None, None, "")) == [why]


def test_two_setups_at_once_are_one(tmp_path: Path) -> None:
    with (
        alone(str(tmp_path)),
        pytest.raises(RecordUnusable, match="another holdfast setup runs"),
        alone(str(tmp_path)),
    ):
        pass
    with alone(str(tmp_path)):
        pass


def test_damaged_record_is_refused_and_names_the_copies(site: Site) -> None:
    site.setup()
    (site.root / "var/lib/holdfast/setup/done.json").write_text("{")
    with pytest.raises(RecordUnusable, match="has the copies"):
        Record(str(site.root))


# --- leases ---


@pytest.fixture
def shared(site: Site) -> Path:
    directory = site.root / "srv"
    directory.mkdir()
    site.machine.mounts.add(directory, "nfs4")
    (site.root / "dev").mkdir()
    (site.root / "dev/watchdog").touch()
    return directory / "leases"


def test_first_host_makes_the_lockspace_and_its_configuration_and_the_second_joins_it(
    site: Site, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(leases=str(shared), profile="balanced")
    first = site.plan(wishes)
    assert first.refusals == ()
    assert [each.id for each in first.steps][:3] == ["lease-directory", "lockspace", "configuration"]
    assert [each.id for each in first.steps][-1] == "join"

    found = site.survey(wishes)
    executor = Executor(Record(str(site.root)), lambda: found, lambda _: None, site.systemd)
    for step in first.steps[:2]:
        executor._perform(step.action, found)
    seen = look(str(shared))
    assert (seen.name, seen.unused_io_timeout_s, seen.hosts, seen.fault) == ("__LIBVIRT__DISKS__", 5, (), "")
    assert "lockspace" not in [each.id for each in site.plan(wishes).steps], "it is made once"
    joining = site.survey(Wishes(join=str(shared)))
    assert joining.proposal.text == first_text(site, wishes)
    misfit = site.survey(Wishes(join=str(shared), profile="fast")).proposal
    assert any("does not fit" in each for each in misfit.refusals)


def test_systemd_that_keeps_holdfastds_watchdog_descriptor_is_no_other_user_of_it(
    site: Site, shared: Path
) -> None:
    host = site.machine.host
    host.processes = [Program(1, "systemd"), Program(9, "holdfastd")]
    host.opened = {str(site.root / "dev/watchdog"): [1, 9]}
    assert site.plan(Wishes(leases=str(shared))).refusals == ()
    host.opened = {str(site.root / "dev/watchdog"): [1]}  # RuntimeWatchdogSec=: it is systemd's own
    [refused] = site.plan(Wishes(leases=str(shared))).refusals
    assert "systemd (pid 1) has /dev/watchdog open" in refused


def first_text(site: Site, wishes: Wishes) -> str:
    return site.survey(wishes).proposal.text


def test_leases_on_a_local_file_system_are_refused(site: Site, shared: Path) -> None:
    local = site.root / "local"
    local.mkdir()
    assert any("local to this host" in each for each in site.plan(Wishes(leases=str(local))).refusals)


def test_own_configuration_is_replaced_and_an_edited_one_is_not(site: Site, shared: Path) -> None:
    record = Record(str(site.root))
    wishes = Wishes(leases=str(shared))
    text = first_text(site, wishes)
    record.replace(str(site.toml), text.encode())
    assert site.survey(wishes).facts.config_is_ours
    site.toml.write_text(text + "# mine\n")
    edited = site.survey(wishes)
    assert not edited.facts.config_is_ours
    assert "configuration" not in [each.id for each in site.plan(wishes).steps]
    assert difference(edited)[-1] == "-# mine"


@pytest.mark.parametrize(
    ("make_it", "fault"),
    [
        (lambda path: path.write_bytes(b"QFI\xfb" + bytes(4092)), "holds a qcow2 image"),
        (
            lambda path: make(str(path), name="other", hosts_max=4, index=None, io_timeout=1),
            "has its name as its file's",
        ),
    ],
)
def test_what_is_no_lockspace_for_a_directory_is_said(
    tmp_path: Path, make_it: Callable[[Path], object], fault: str
) -> None:
    path = tmp_path / "vms"
    make_it(path)
    assert fault in look(str(path)).fault


def test_settings_of_libvirts_lock_managers_are_in_the_plan(site: Site, shared: Path) -> None:
    (site.root / "etc/libvirt/qemu-sanlock.conf").write_text(
        f'auto_disk_leases = 1\ndisk_lease_dir = "{shared}"\nhost_id = 9\nuser = "sanlock"\n'
    )
    (site.root / "etc/libvirt/qemu-lockd.conf").write_text('file_lockspace_dir = "/srv/locks"\n')
    wishes = Wishes(leases=str(shared))
    found = site.survey(wishes)
    assert "host_id = 9\n" in found.proposal.text
    settings = [each.setting.split(" ")[0] for each in found.facts.carried]
    assert settings == ["auto_disk_leases", "disk_lease_dir", "host_id", "user", "file_lockspace_dir"]
    assert [each.used for each in found.facts.carried] == [True, True, True, False, False]
    alone = site.survey(Wishes())
    assert [each.used for each in alone.facts.carried] == [True, False, False, False, True]


def test_host_without_libvirt_is_refused_with_the_plan(site: Site) -> None:
    site.qemu.unlink()
    found = site.survey()
    made = plan(Wishes(), found.facts, found.proposal, found.space)
    said = as_object(made, found)
    assert any("install libvirt's QEMU driver" in each for each in made.refusals)
    assert "No such file" in str(said["steps"])
