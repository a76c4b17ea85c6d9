"""`holdfast who` about leases of sanlock's clients: their names, and what their places say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.leases import SPACE, make_area

from holdfast.cli.who.client_leases import ClientLease, at_start_of, named
from holdfast.cli.who.inquiry import ask
from holdfast.cli.who.leases import look_at
from holdfast.config import Config
from holdfast.ondisk.geometry import MIB


@pytest.mark.parametrize(
    ("what", "lease"),
    [
        ("LS1:web:/leases:0", ClientLease("LS1", "web", "/leases", 0)),
        ("LS1:web:/leases:1048576:7", ClientLease("LS1", "web", "/leases", MIB)),
        (r"LS1:web:/a\:b/c:0", ClientLease("LS1", "web", "/a:b/c", 0)),
        ("LS1:web", ClientLease("LS1", "web")),
        ("sanlock:LS1/web", ClientLease("LS1", "web")),
        ("rbd:pool/image", None),
        ("nbd://host:10809/export", None),
        ("nbd:unix:/run/nbd.sock:exportname=a", None),
        ("/srv/web.img", None),
        ("web1", None),
        ("LS1:web:relative:0", None),
        ("LS1:web:/leases:", None),
        (f"{'x' * 49}:web:/leases:0", None),
    ],
)
def test_names(what: str, lease: ClientLease | None) -> None:
    assert named(what) == lease
    if lease is not None and lease.path:
        assert named(str(lease)) == lease


def test_place_of_a_lease_as_the_daemon_has_it() -> None:
    lease = ClientLease("LS1", "web")
    assert lease.at("/a:b/c:4096") == ClientLease("LS1", "web", "/a:b/c", 4096)
    assert lease.at("") == lease.at("web") == lease


def test_another_lease_at_that_place_says_nothing_about_it(tmp_path: Path) -> None:
    area = tmp_path / "leases: of a domain"
    make_area(area, MIB, "web")
    there = ClientLease(SPACE, "web", str(area), MIB)
    seen = look_at(there, None)
    assert (seen.unreadable, seen.holders) == (None, ())
    for other in (
        there._replace(name="db"),
        there._replace(lockspace="other"),
        there._replace(offset_bytes=0),
    ):
        assert look_at(other, None).unreadable is not None, other


@pytest.mark.parametrize("offset_bytes", [0, MIB])
def test_without_a_daemon_storage_alone_says_it(tmp_path: Path, offset_bytes: int) -> None:
    area = tmp_path / "leases"
    make_area(area, offset_bytes, "web")
    config = Config(run_dir=str(tmp_path / "run"), state_dir=str(tmp_path / "state"))
    asked = f"{SPACE}:web:{area}:{offset_bytes}"
    socket = str(tmp_path / "no.sock")
    assert ask(config, socket, asked, root=str(tmp_path)).verdict == "free"
    nothing_there = f"{SPACE}:web:{area}:{64 * MIB}"
    assert ask(config, socket, nothing_there, root=str(tmp_path)).verdict == "unknown"
    assert at_start_of(str(area)) == (asked if offset_bytes == 0 else "")
