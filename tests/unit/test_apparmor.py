"""The AppArmor profiles: apparmor_parser accepts them, and they allow what the units and the defaults need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.support.apparmor import Access, Profile, Trace
from tests.support.apparmor import Host as FilesHere

from holdfast.config import load
from holdfast.daemon.sanlockd import RUN_DIR

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "packaging" / "apparmor"
RULE = re.compile(r"^  (?:owner )?(/\S*) ([a-zA-Z]+),$", re.MULTILINE)


def allows(profile: str, path: str, mode: str) -> bool:
    """By the profile's own rules, without those that it includes."""
    return Profile.of(profile).allows(Access(path, frozenset(mode)))


def why_not_parsed(file: Path) -> str:
    """What apparmor_parser has against it; empty if nothing. It loads nothing, and needs no kernel that has AppArmor."""
    command = ["/usr/sbin/apparmor_parser", "-Q", "--skip-kernel-load", "--skip-cache", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr or str(done.returncode) if done.returncode else ""


@pytest.mark.long
@pytest.mark.parametrize("name", ["holdfastd", "holdfast-web"])
def test_parser_accepts_the_profile(name: str) -> None:
    assert why_not_parsed(PROFILES / name) == ""


@pytest.mark.long
def test_parser_accepts_the_lines_for_libvirts_qemu_and_refuses_nonsense(tmp_path: Path) -> None:
    lines = (PROFILES / "libvirt-qemu.local").read_text()
    file = tmp_path / "profile"
    file.write_text(f"abi <abi/3.0>,\nprofile qemu {{\n{lines}}}\n")
    assert why_not_parsed(file) == ""
    file.write_text(f"abi <abi/3.0>,\nprofile qemu {{\n{lines}  signal (recieve) peer=holdfastd,\n}}\n")
    assert "at line 7" in why_not_parsed(file)


def test_lines_for_libvirts_qemu_name_the_profile() -> None:
    lines = (PROFILES / "libvirt-qemu.local").read_text()
    name = re.search(r"^profile (\S+)", (PROFILES / "holdfastd").read_text(), re.MULTILINE)
    assert name is not None
    found = re.findall(r"^  (signal|ptrace) \((?:receive|readby)\) peer=(\S+),", lines, re.MULTILINE)
    assert found == [("ptrace", name[1]), ("signal", name[1])]


def test_capabilities_are_those_of_the_unit() -> None:
    unit = (ROOT / "packaging/systemd/holdfastd.service").read_text()
    wanted = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert wanted is not None
    profile = (PROFILES / "holdfastd").read_text()
    found = re.findall(r"^  capability (\w+),$", profile, re.MULTILINE)
    assert {f"CAP_{each.upper()}" for each in found} == set(wanted[1].split())


@pytest.mark.parametrize(
    "path",
    [
        *("/run/holdfast/journal", "/run/holdfast/lockspaces/vms", "/var/lib/holdfast/notes"),
        *("/run/libvirt/virtlockd-sock", f"{RUN_DIR}/sanlock.sock", "/run/wdmd/wdmd.sock"),
        *("/dev/watchdog", "/dev/mapper/vg-web", "/srv/images/web.img", "/var/lib/libvirt/images/web.img"),
    ],
)
def test_daemon_may_lock_and_write_what_it_has_by_default(path: str) -> None:
    profile = (PROFILES / "holdfastd").read_text()
    assert allows(profile, path, "w") and allows(profile, path, "k")
    assert not allows(profile, "/etc/shadow", "w")
    assert not allows(profile, "/usr/bin/virsh", "w")


def test_directories_of_the_configuration_are_within_the_profile(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").touch()
    config = load(str(tmp_path / "holdfast.toml"), environ={}, uid=0)
    profile = (PROFILES / "holdfastd").read_text()
    for directory in (config.run_dir, config.state_dir, config.host_locks):
        assert allows(profile, f"{directory}/x", "w"), directory


def test_page_can_write_nothing_but_its_socket() -> None:
    profile = (PROFILES / "holdfast-web").read_text()
    assert [pattern for pattern, modes in RULE.findall(profile) if "w" in modes] == ["/{,var/}run/holdfast/*"]
    assert "capability" not in profile


# The checker of tests/systemd/test_apparmor_trace.py.
RULES = """@{run}=/run/ /var/run/
@{multi}=*-linux-*
profile x /usr/bin/x flags=(complain) {
  unix,
  network inet stream,
  /** rk,
  deny /etc/secret r,
  @{run}/x/** rwkl,
  /lib/@{multi}/**.so* mr,
  /{,usr/}bin/* PUx,
  /usr/bin/python3.11 ix,
}
"""


@pytest.mark.parametrize(
    ("path", "modes", "allowed"),
    [
        *(("/etc/x", "rk", True), ("/etc/x", "rw", False), ("/", "r", False), ("/etc/", "r", True)),
        *(("/etc/secret", "r", False), ("/etc/secret2", "r", True)),
        *(
            ("/run/x/a", "rwk", True),
            ("/var/run/x/a/b", "w", True),
            ("/run/x/", "w", False),
            ("/run/xy", "w", False),
        ),
        *(("/lib/x86_64-linux-gnu/a/b.so.1", "m", True), ("/lib/x86_64-linux-gnu/b.py", "m", False)),
        *(
            ("/lib/a/x-linux-gnu/b.so", "m", False),
            ("network inet stream", "", True),
            ("network inet dgram", "", False),
        ),
        *(("unix", "", True), ("signal", "", False)),
    ],
)
def test_checker_matches_as_apparmor_does(path: str, modes: str, *, allowed: bool) -> None:
    assert Profile.of(RULES).allows(Access(path, frozenset(modes))) == allowed


def test_checker_prefers_an_exact_path_for_execution() -> None:
    profile = Profile.of(RULES)
    assert profile.attachment == "/usr/bin/x"
    assert [profile.execution(f"/usr/bin/{each}") for each in ("python3.11", "virsh", "a/b")] == [
        "ix",
        "PUx",
        "",
    ]


START = 'execve("/usr/bin/x", ["x"], 0x7ffd /* 4 vars */) = 0\n'


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ('openat(AT_FDCWD</root>, "a", O_RDONLY|O_CLOEXEC) = 3</root/a>', []),
        ('openat(AT_FDCWD</root>, "a", O_RDWR) = 3</root/a>', ["/root/a rw"]),
        ('openat(AT_FDCWD</root>, "a", O_RDWR) = -1 ENOENT (No such file or directory)', []),
        ('openat(5</d>, "a", O_RDONLY|O_CREAT, 0600) = 3</d/a>', ["/d/a rw"]),
        ('openat(AT_FDCWD</>, "a", O_RDWR|O_PATH) = 3</a>', []),
        ("fcntl(3</run/x/a>, F_OFD_SETLK, {l_type=F_WRLCK, l_whence=SEEK_SET}) = 0", []),
        ("fcntl(3</srv/a>, F_OFD_SETLK, {l_type=F_RDLCK, l_whence=SEEK_SET}) = 0", []),
        ("fcntl(3</srv/a>, F_OFD_SETLK, {l_type=F_WRLCK, l_whence=SEEK_SET}) = 0", ["/srv/a kw"]),
        ("flock(3</srv/a>, LOCK_EX|LOCK_NB) = 0", ["/srv/a kw"]),
        ("mmap(NULL, 8192, PROT_READ|PROT_EXEC, MAP_PRIVATE, 4</opt/x.so>, 0) = 0x7f1", ["/opt/x.so m"]),
        ('renameat2(4</run/x>, "a", 4</run/x>, "b", 0) = 0\nrename("/run/x/b", "/b") = 0', ["/b w"]),
        ('mkdir("/run/x/d", 0700) = 0\nmkdir("/var/d", 0700) = 0', ["/var/d/ w"]),
        ('unlink("/var/run/x/a") = 0\nlink("/run/x/a", "/srv/b") = 0', ["/srv/b l"]),
        ('connect(3<socket:[1]>, {sa_family=AF_UNIX, sun_path="/srv/s"}, 110) = 0', ["/srv/s rw"]),
        ("socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3<socket:[9]>", []),
        ("socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3<socket:[9]>", ["network netlink raw"]),
        ("kill(77, 0) = 0", []),
        ("kill(77, SIGTERM) = 0", ["signal"]),
        ("tgkill(9, 11, SIGTERM) = 0", ["signal peer=@{profile_name}"]),
        ("kill(11, SIGTERM) = 0", ["signal peer=@{profile_name}"]),
        ("pidfd_send_signal(11, SIGTERM, NULL, 0) = 0", ["signal"]),
        # A program of its own profile, or of none, is not judged; a child that executes none is.
        ('execve("/usr/bin/virsh", ["virsh"], 0x0) = 0\nkill(77, SIGTERM) = 0', []),
        ('execve("/usr/bin/python3.11", ["p"], 0x0) = 0\nkill(77, SIGTERM) = 0', ["signal"]),
        ('execve("/opt/tool", ["tool"], 0x0) = 0', ["/opt/tool x"]),
        ("clone3({flags=0}, 88) = 12", ["signal"]),
    ],
)
def test_checker_reads_a_trace(tmp_path: Path, lines: str, refused: list[str]) -> None:
    (tmp_path / "t.11").write_text(f"{START}{lines}\n")
    (tmp_path / "t.12").write_text("kill(78, SIGTERM) = 0\n")
    trace = Trace(tmp_path, Profile.of(RULES), FilesHere(lambda path: path, lambda _: False))
    assert [each.split(":", 1)[0] for each in trace.refused()] == refused
