"""The AppArmor profiles against what holdfastd and holdfast-web do: a typical life under strace, each access against a rule.

Two hosts as in `test_readme`, with a wire between them for migrations, and a double of wdmd on alpha; strace is inserted
into both units. holdfast-web's system call filter is off meanwhile, since it forbids ptrace(2). This machine's kernel need
not have AppArmor, and nothing is enforced.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.cli.setup.profiles import PROFILES
from tests.e2e.lab.polling import until
from tests.e2e.lab.storage import Image
from tests.support.apparmor import TRACED, Host, Profile, Trace, preprocessed
from tests.support.fuse_storage import FaultyStorage
from tests.support.readme import Page, build_packages, one_vm_one_host, open_page, protect
from tests.support.wdmd_double import Generation, Wdmd
from tests.systemd.machine import PROJECT, require
from tests.systemd.root_host import SUITE, RootHost, hosts, make_template, of_libvirt_hosts
from tests.systemd.test_readme import (
    HERE,
    NEXT,
    await_writes,
    equip,
    install_lab,
    newer,
    shared_image,
    upgraded_with_its_vm,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
TRACES = "/var/lib/traces"
UNITS = {"holdfastd": "-D", "holdfast-web": "-D --seccomp-bpf"}
ADDRESSES = ("10.79.0.1", "10.79.0.2")
TOKEN = "0123456789abcdef0123456789abcdef"
LIFE = (
    "holdfast status; holdfast list; holdfast who web1; holdfast who /srv/shared/web1.img; holdfast events",
    "holdfast host list; holdfast lockspace list; holdfast lease list; holdfast doctor; holdfast metrics; holdfast vm list",
    "holdfast log-level debug; holdfast log-level info; holdfast maintenance on; holdfast maintenance off; holdfast version",
    "holdfast explain-reset; holdfast support-dump dump.tar; holdfast config show; holdfast lease gc",
    "truncate -s 1M /var/lib/libvirt/images/x.img; holdfast run --disk /var/lib/libvirt/images/x.img -- true",
    "virsh suspend web1; virsh resume web1; virsh destroy web1; virsh start web1; virsh reset web1",
    "systemctl reload holdfastd",
    "systemctl restart holdfastd",
    "kill -9 $(systemctl show -P MainPID holdfastd)",
)
"""Commands may fail, as on hosts that have no locks to show: what they ask holdfastd for is done all the same."""


SEEN = {
    "holdfastd": {
        *("signal", "unix", "/run/holdfast/journal rw", "/run/holdfast/holdfastd.pid kw"),
        "/run/wdmd/wdmd.sock rw",
    },
    "holdfast-web": {
        "network inet stream",
        "/run/holdfast/io.holdfast.Control.read-only rw",
        "/run/credentials/holdfast-web.service/token r",
    },
}
"""Among others: without these the trace is not of that life."""
NEEDED = {
    "holdfastd": {
        *(
            "/** rk,",
            "/{,var/}run/** rwkl,",
            "/var/lib/** rwkl,",
            "owner @{PROC}/@{pid}/{,task/@{tid}/}comm w,",
        ),
        *("unix,", "signal,", "/{,usr/}{,s}bin/* PUx,"),
    },
    "holdfast-web": {
        *(
            "/usr/bin/holdfast-web r,",
            "/usr/{,local/}{lib,share}/** r,",
            "/{,var/}run/holdfast/* rw,",
            "unix,",
        ),
        "/{,var/}run/credentials/holdfast-web.service/* r,",
    },
}
"""Rules of the profiles' own text without which an access of this life is refused."""


@pytest.fixture(scope="module", params=sorted({SUITE, NEXT}))
def suite(request: pytest.FixtureRequest) -> str:
    """The hosts' release."""
    return str(request.param)


@pytest.fixture(scope="module")
def template(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    root = tmp_path_factory.mktemp("traced") / "template"
    make_template(root, suite, f"{of_libvirt_hosts(suite)},strace")
    return root


@pytest.fixture(scope="module")
def packages(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build_packages(tmp_path_factory.mktemp("packages"), suite)
    newer(made)
    return made


def insert_strace(host: RootHost) -> None:
    """Into both units, before they are started for the first time. The daemon stays the main process (-D)."""
    traced = TRACED.replace("%", "%%")  # systemd has specifiers of its own
    for unit, options in UNITS.items():
        at = f"{TRACES}/{unit}"
        drop_in = [
            "[Service]",
            "ExecStart=",
            f"ExecStart=/usr/bin/strace -ff -y {options} -o {at}/t -e trace={traced} /usr/bin/{unit} $OPTIONS",
        ]
        if unit == "holdfast-web":
            drop_in += ["SystemCallFilter=", f"ReadWritePaths={at}"]
        lines = " ".join(f"'{each}'" for each in drop_in)
        directory = f"/etc/systemd/system/{unit}.service.d"
        host.run(
            f"install -d -m 1777 {at}; mkdir -p {directory}; printf '%s\\n' {lines} >{directory}/strace.conf"
        )
    host.run("systemctl daemon-reload")


def read_by_token(host: RootHost) -> None:
    """The page from other hosts, with a token, as docs/web.md says."""
    host.run(
        f"echo {TOKEN} >/etc/holdfast/web-token; chmod 600 /etc/holdfast/web-token; "
        "printf '[Service]\\nLoadCredential=token:/etc/holdfast/web-token\\n' "
        ">/etc/systemd/system/holdfast-web.service.d/token.conf; "
        "echo 'OPTIONS=--listen 0.0.0.0:8320' >/etc/default/holdfast-web; "
        "systemctl daemon-reload; systemctl restart holdfast-web"
    )
    asked = f"curl -sSf --retry 20 --retry-connrefused --retry-delay 1 -H 'Authorization: Bearer {TOKEN}'"
    assert "holdfast_" in host.run(f"{asked} http://127.0.0.1:8320/metrics")
    assert host.try_run("curl -sSf http://127.0.0.1:8320/metrics").returncode != 0


def connect(*hosts: RootHost) -> None:
    """A wire between two hosts, at which the libvirtd of each listens."""
    ends = [word for host in hosts for word in ("wire", "netns", str(host.pid))]
    subprocess.run(["ip", "link", "add", *ends[:3], "type", "veth", "peer", "name", *ends[3:]], check=True)
    for host, address in zip(hosts, ADDRESSES, strict=True):
        host.run(f"ip address add {address}/24 dev wire && ip link set wire up")
        # One kernel, so one UUID of the machine: libvirt takes a migration for one to the same host.
        host.run(
            f'printf \'auth_tcp = "none"\\nhost_uuid = "{uuid.uuid4()}"\\n\' >>/etc/libvirt/libvirtd.conf && '
            "systemctl stop libvirtd.service && systemctl start libvirtd-tcp.socket"
        )


def migrate_there_and_back(alpha: RootHost, beta: RootHost, image: Image) -> None:
    connect(alpha, beta)
    for source, target, address in ((alpha, beta, ADDRESSES[1]), (beta, alpha, ADDRESSES[0])):
        source.run(f"virsh migrate --live --p2p --unsafe web1 qemu+tcp://{address}/system tcp://{address}")
        assert target.run("virsh domstate web1").strip() == "running"
        assert "web1" in target.run("holdfast list")
        await_writes(image)


@contextlib.contextmanager
def watched_by_wdmd(host: RootHost, image: Image) -> Iterator[None]:
    """wdmd is there, and holdfastd feeds it from its next start on, which is now."""
    at = Path(f"/proc/{host.pid}/root/run/wdmd")
    at.mkdir()
    double = Wdmd(at / "wdmd.sock", Generation.SINCE_3_9, PROFILES["fast"].fire_timeout_s)
    try:
        host.run(
            'virsh destroy web1; sed -i \'s/^watchdog = "none"/watchdog = "wdmd"/\' /etc/holdfast/holdfast.toml'
        )
        host.run("systemctl restart holdfastd.service")
        until(lambda: answers(host), "holdfastd to have joined by wdmd", 120.0)
        host.run("virsh start web1")
        await_writes(image)
        assert any(double.expires(each) for each in range(len(double.said))), double.said
        yield
    finally:
        double.close()


def answers(host: RootHost) -> bool:
    return host.try_run("holdfast lockspace list").stdout.find("joined") >= 0


def live(host: RootHost) -> None:
    for each in LIFE:
        done = host.try_run(each)
        print(f"{host.name}: {each}: {done.returncode} {done.stdout[-300:]} {done.stderr[-300:]}")
        until(lambda: answers(host), "holdfastd to have joined")


def facts_of(host: RootHost) -> Host:
    """Of paths, as the host sees them."""
    root = Path(f"/proc/{host.pid}/root")

    def real(path: str) -> str:
        found = ""
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                found = found.rpartition("/")[0]
                continue
            at = f"{found}/{part}"
            try:
                target = os.readlink(f"{root}{at}")
            except OSError:
                found = at
                continue
            found = real(target if target.startswith("/") else f"{found}/{target}")
        return found or "/"

    return Host(real, lambda path: os.path.isdir(f"{root}{path}"))


def text_of(name: str) -> str:
    return (PROJECT / "packaging/apparmor" / name).read_text()


def trace_of(host: RootHost, name: str, profile: Profile) -> Trace:
    return Trace(Path(f"/proc/{host.pid}/root{TRACES}/{name}"), profile, facts_of(host))


def lines_without_which_it_is_refused(host: RootHost, name: str) -> set[str]:
    """Each rule of the profile's own text is left out once: those without which an access is refused."""
    lines = text_of(name).splitlines(keepends=True)
    found = set()
    for at, line in enumerate(lines):
        if re.match(r"^  (?!include)[^#]*,$", line.rstrip("\n")):
            left = Profile.of(preprocessed("".join(lines[:at] + lines[at + 1 :])))
            if trace_of(host, name, left).refused():
                found.add(line.strip())
    return found


def test_each_access_of_a_typical_life_has_a_rule(
    template: Path, packages: Path, shared: FaultyStorage, tmp_path: Path
) -> None:
    page = Page()
    image = shared_image(shared, "web1")
    install_lab(tmp_path, {"web1": image})
    with hosts(tmp_path, template, shared.at, "alpha", "beta") as (alpha, beta):
        for host in (alpha, beta):
            equip(host, tmp_path, packages, "web1")
            insert_strace(host)
        protect(page, alpha, beta, HERE, within_s=300.0, unexplained_s=20.0)
        one_vm_one_host(page, alpha, beta, lambda: await_writes(image))
        open_page(page, (alpha, beta))
        read_by_token(alpha)
        migrate_there_and_back(alpha, beta, image)
        with watched_by_wdmd(alpha, image):
            live(alpha)
            await_writes(image)
            upgraded_with_its_vm(alpha, beta, image)
            # holdfastd ends a VM whose lockspace is lost.
            qemu = alpha.run("cat /run/libvirt/qemu/web1.pid").strip()
            shared.fail()
            until(
                lambda: alpha.try_run(f"test -e /proc/{qemu}").returncode != 0,
                "holdfastd to end the VM",
                120.0,
            )
            shared.healthy()
            until(lambda: answers(alpha), "alpha to have joined", 120.0)
            alpha.run("systemctl stop holdfastd.socket holdfastd.service holdfast-web.service")

        for name in UNITS:
            profile = Profile.of(preprocessed(text_of(name)))
            trace = trace_of(alpha, name, profile)
            print(f"{name}: {len(trace.accesses)} accesses; executed: {sorted(trace.programs)}")
            assert trace.refused() == []
            assert {str(each) for each in trace.accesses} >= SEEN[name]
            # By PUx it would go on without a profile.
            own = [each for each in trace.programs if re.match(r"/usr/bin/(python3|holdfast)", each)]
            assert all(profile.execution(each) == "ix" for each in own), own
            needed = lines_without_which_it_is_refused(alpha, name)
            print(f"{name}: not without {sorted(needed)}")
            assert needed >= NEEDED[name]
