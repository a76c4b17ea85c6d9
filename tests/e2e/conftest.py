"""Brings the lab up once per run and hands every scenario a clean one.

`--hook` gives every host with holdfastd libvirt's hook: what holds without it holds with it.

`--lockd=virtlockd` runs the scenarios against Debian's daemon, to tell a fault of Holdfast from a fault of
the scenario.  What virtlockd is known to get wrong is marked `virtlockd_fails`; in that run such a test
must fail.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.lab.daemons import Kind, LockMode
from tests.e2e.lab.lab import Lab, LabFactory
from tests.e2e.lab.polling import until
from tests.e2e.lab.programs import Programs, missing

SCENARIO_LIMIT_S = 300
LOG_TAIL_CHARS = 6000

LAB_KEY = pytest.StashKey[Lab]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lockd",
        choices=("holdfastd", "virtlockd"),
        default="holdfastd",
        help="the lock daemon of the end-to-end tests' hosts",
    )
    parser.addoption(
        "--hook",
        action="store_true",
        help="libvirt's hook on every host of the end-to-end tests that has holdfastd",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "virtlockd_fails(reason): Debian's virtlockd is known to fail this scenario"
    )
    config.addinivalue_line("markers", "without_hook(reason): is about a host that has no hook of libvirt's")
    config.addinivalue_line("markers", "holdfast_only(reason): means nothing with Debian's virtlockd alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    virtlockd = lock_daemon(config) == "virtlockd"
    kept, dropped = [], []
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SCENARIO_LIMIT_S))
            other = (virtlockd and item.get_closest_marker("holdfast_only")) or (
                config.getoption("--hook", False) and item.get_closest_marker("without_hook")
            )
            if other:
                dropped.append(item)
                continue
            known = item.get_closest_marker("virtlockd_fails")
            if virtlockd and known:
                item.add_marker(pytest.mark.xfail(reason=known.args[0], strict=True))
        kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed scenario shows what the daemons said."""
    report = yield
    lab = item.stash.get(LAB_KEY, None)
    if report.failed and lab is not None:
        for daemon in lab.daemons:
            report.sections.append((f"{daemon.name} on {daemon.host.name}", daemon.said[-LOG_TAIL_CHARS:]))
    return report


def lock_daemon(config: pytest.Config) -> Kind:
    """The lock daemon under test."""
    chosen: Kind = "virtlockd" if config.getoption("--lockd", "holdfastd") == "virtlockd" else "holdfastd"
    return chosen


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> Kind:
    """The lock daemon under test."""
    return lock_daemon(request.config)


@pytest.fixture(scope="session")
def make_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabFactory]:
    """Brings up labs; they stay up until the run ends, and a second call gets the same one."""
    problem = missing()
    if problem:
        pytest.fail(problem, pytrace=False)
    base = tmp_path_factory.mktemp("lab")
    for mounted_over in ("/srv", "/run"):
        for needed in (base, Path(__file__)):
            if needed.is_relative_to(mounted_over):
                pytest.fail(
                    f"the lab gives its hosts their own {mounted_over}: move {needed} elsewhere",
                    pytrace=False,
                )
    programs = Programs.build(base)
    labs: dict[tuple[tuple[Kind, ...], LockMode, bool], Lab] = {}

    always = request.config.getoption("--hook", False)

    def make(kinds: tuple[Kind, ...], mode: LockMode, *, hook: bool = False) -> Lab:
        hook = hook or always
        if (kinds, mode, hook) not in labs:
            folder = base / f"{'-'.join(kinds)}-{mode}{'-hook' if hook else ''}"
            # One cache for all hosts: probing QEMU's abilities takes libvirt seconds.
            lab = Lab(
                folder=folder, cache=base / "cache", programs=programs, kinds=kinds, mode=mode, hook=hook
            )
            lab.up()
            labs[kinds, mode, hook] = lab
        return labs[kinds, mode, hook]

    yield make
    for lab in labs.values():
        lab.down()


def clean(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Lab]:
    """A lab without guests before the scenario, and without locks after it."""
    request.node.stash[LAB_KEY] = lab
    lab.reset()
    for daemon in lab.daemons:
        daemon.listen_anew()
    yield lab
    lab.reset()
    if all(daemon.kind == "holdfastd" for daemon in lab.lockd.values()):
        until(lambda: not lab.held_files(), "all locks to be free once all guests are gone")


@pytest.fixture
def lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """Both hosts on the daemon under test, indirect locks: the setting that most scenarios use."""
    yield from clean(request, make_lab((kind, kind), "indirect"))


@pytest.fixture
def direct_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """Both hosts on the daemon under test, direct locks on the images."""
    yield from clean(request, make_lab((kind, kind), "direct"))


@pytest.fixture(params=["indirect", "direct"])
def any_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """For what must hold either way."""
    yield from clean(request, make_lab((kind, kind), request.param))


@pytest.fixture(params=["direct", "indirect", "leases"])
def hooked_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """A lab with libvirt's hook on both hosts: holdfastd is asked before QEMU is there."""
    yield from clean(request, make_lab((kind, kind), request.param, hook=True))


_HOOK = pytest.mark.holdfast_only("virtlockd has no hook")


@pytest.fixture(
    params=[
        "indirect",
        "direct",
        pytest.param("indirect, hook", marks=_HOOK),
        pytest.param("direct, hook", marks=_HOOK),
    ]
)
def start_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """For what a start does either way, with the hook and without it."""
    mode, _, hook = request.param.partition(", ")
    yield from clean(request, make_lab((kind, kind), mode, hook=bool(hook)))


@pytest.fixture
def lease_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """Both hosts with leases on the shared folder: what excludes are bytes there, not the kernel's locks."""
    yield from clean(request, make_lab((kind, kind), "leases"))


@pytest.fixture
def hashed_lease_lab(request: pytest.FixtureRequest, make_lab: LabFactory, kind: Kind) -> Iterator[Lab]:
    """The same, and alpha's libvirt names disks by hashes."""
    yield from clean(request, make_lab((kind, kind), "hashed leases"))
