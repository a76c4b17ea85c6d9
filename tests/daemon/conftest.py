"""Daemons for tests: one for each test that restarts it, one shared by tests that only speak to it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support.daemon import Factory, Holdfastd
from tests.support.leases import SPACE, make_lockspace
from tests.support.service_manager import ServiceManager

IO_TIMEOUT_S, FIRE_TIMEOUT_S = 1, 6
"""Of the hosts that `make_host` makes."""
MakeHost = Callable[..., Holdfastd]


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail(
            "the daemon's tests need root (other users, small file systems): run 'make test' as root, "
            "for instance in a container; tools/debian-packages test lists what else they need"
        )


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: socket paths have at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="hf-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_daemon(place: Path) -> Iterator[Factory]:
    made: list[Holdfastd] = []

    def make(
        extra: str = "",
        *,
        name: str = "d",
        virtlockd: str = "",
        top: str = "",
        host_locks: Path | None = None,
    ) -> Holdfastd:
        daemon = Holdfastd(place / name, extra, virtlockd=virtlockd, top=top, host_locks=host_locks)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.stop_all()


@pytest.fixture
def daemon(make_daemon: Factory) -> Holdfastd:
    """One of its own, started."""
    return make_daemon().start()


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Holdfastd]:
    """One for all tests of a module; each uses files of its own."""
    path = Path(tempfile.mkdtemp(prefix="hf-"))
    daemon = Holdfastd(path).start()
    yield daemon
    daemon.stop_all()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def service(make_daemon: Factory, place: Path) -> Iterator[ServiceManager]:
    """A daemon under a double of systemd, with sockets and a descriptor store, started."""
    daemon = make_daemon()
    manager = ServiceManager(
        place,
        daemon,
        sockets=[("holdfastd.socket", daemon.socket), ("holdfastd-control.socket", daemon.control)],
    )
    manager.start()
    yield manager
    daemon.stop_all()
    manager.close()


@pytest.fixture
def leases(place: Path) -> Path:
    directory = place / "leases"
    directory.mkdir()
    make_lockspace(directory / SPACE)
    return directory


@pytest.fixture
def make_host(make_daemon: Factory, leases: Path) -> MakeHost:
    def make(name: str, host_id: int | str, more: str = "", *, identity: str = "") -> Holdfastd:
        host = json.dumps(host_id)
        return make_daemon(
            f'[backend.leases]\ndriver = "paxos"\ndirectory = "{leases}"\nhost_id = {host}\n'
            f'watchdog = "none"\nio_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\n'
            f"cross_host = true\n{more}\n"
            '[[disk]]\nmatch = "*/local/*"\nbackend = "file"\n[[disk]]\nmatch = "*"\nbackend = "leases"\n'
            + (f'identity = "{identity}"\n' if identity else ""),
            name=name,
        )

    return make


@pytest.fixture
def make_host_by_path(make_host: MakeHost) -> MakeHost:
    """Hosts that know a disk by its path only, so that it has one lease: for tests that count leases."""
    return partial(make_host, identity="path")
