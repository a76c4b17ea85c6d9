"""The page of holdfast-web in a real browser: load, changes, a host that dies, a daemon that restarts, 2000 VMs, keys."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.daemon.conftest import FIRE_TIMEOUT_S, IO_TIMEOUT_S
from tests.daemon.test_leases import joined
from tests.support.browser import Browser
from tests.support.daemon import Holdfastd, make_disk
from tests.support.leases import SPACE, make_lockspace
from tests.support.web import HoldfastWeb

pytestmark = pytest.mark.long

VMS = 2000
EVIL = "<script>alert(1)</script>"
EVIL_DISK = '"><img src=x onerror=alert(1)>.img'
DIES_S = 90.0
"""A host with an io_timeout of 1 s and a fire_timeout of 6 s is dead after 14 s."""


class Site(NamedTuple):
    place: Path
    alpha: Holdfastd
    beta: Holdfastd
    web: HoldfastWeb
    browser: Browser


def host(place: Path, number: int) -> Holdfastd:
    return Holdfastd(
        place / f"h{number}",
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{place}/leases"\nhost_id = {number}\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\ncross_host = true\n"
        '[[disk]]\nmatch = "*/leased/*"\nbackend = "leases"\n',
    )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    place = Path(tempfile.mkdtemp(prefix="hf-"))
    for name in ("leases", "leased"):
        (place / name).mkdir()
    make_lockspace(place / "leases" / SPACE)
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, place, ignore_errors=True)
        alpha, beta = host(place, 1), host(place, 2)
        for each in (alpha, beta):
            ends.callback(each.stop_all)
            each.start()
        for each in (alpha, beta):
            joined(each)
        alpha.vm([make_disk(place / "leased", "a.img"), make_disk(place, "plain.img")], name="web1")
        alpha.vm([make_disk(place / "leased", EVIL_DISK)], name=EVIL)
        web = HoldfastWeb(alpha, place / "web.log")
        ends.callback(web.stop)
        browser = Browser(place / "browser")
        ends.callback(browser.close)
        browser.size(1100, 1000)
        yield Site(place, alpha, beta, web, browser)


@pytest.fixture
def page(site: Site) -> Browser:
    site.browser.open(f"{site.web.url}/")
    site.browser.until("document.querySelectorAll('#vms tbody tr').length >= 2", "the VMs to be shown")
    site.browser.until("document.querySelectorAll('#events li').length > 0", "the events to be shown")
    return site.browser


def shows(text: str, selector: str = "body") -> str:
    """A script; also before the page is there."""
    return (
        f"document.querySelector({json.dumps(selector)})?.textContent.includes({json.dumps(text)}) ?? false"
    )


def test_page_shows_lockspace_hosts_vms_with_protection_latency_and_events(page: Browser) -> None:
    assert page.text("[data-space] h3").split() == [SPACE, "joined"]
    assert page.run("document.querySelectorAll('[data-space] tbody tr').length") == 2
    page.until("document.querySelectorAll('svg circle.took').length > 1", "renewals to be drawn")
    assert "budget: 1 s a request, lost after 8 s" in page.run("document.querySelector('svg').ariaLabel")
    rows = page.run("[...document.querySelectorAll('#vms tbody tr')].map((row) => row.innerText)")
    (web1,) = (row for row in rows if "web1" in row)
    assert "1 same host" in web1.split("\t")[1], "the weakest of its disks"
    assert "2 across hosts" in web1
    assert page.run(shows("acquired", "#events"))
    assert page.run("document.getElementById('trouble').hidden")


def test_what_comes_from_vms_and_disks_is_text(page: Browser) -> None:
    page.until(shows(EVIL, "#vms"), "the VM with that name")
    assert page.run(shows(EVIL_DISK, "#vms"))
    assert page.run("document.querySelectorAll('main script, main img, main iframe').length") == 0
    assert page.messages == [], "no dialog, no error, nothing that the policy had to stop"


def test_change_is_shown_without_a_reload_and_seconds_count(page: Browser, site: Site) -> None:
    vm = site.alpha.vm([make_disk(site.place / "leased", "late.img")], name="latecomer")
    page.until(shows("latecomer", "#vms"), "the new VM")
    site.alpha.end_vm(vm)
    page.until(f"!({shows('latecomer', '#vms')})", "the VM to be gone")
    page.until(f"({shows('owner-died', '#events')}) || ({shows('released', '#events')})", "the event")
    first = page.run("document.querySelector('meter').value")
    page.until(f"document.querySelector('meter').value !== {first}", "the lockspace's seconds to count")


def test_keys_filter_and_clear(page: Browser) -> None:
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip", "the first stop leads past the lockspaces"
    page.press("/")
    assert page.run("document.activeElement.id") == "filter"
    assert page.run("document.getElementById('filter').value") == ""
    for key in "web1":
        page.press(key)
    page.until("document.querySelectorAll('#vms tbody tr').length === 1", "the filter to work")
    page.press("Escape")
    page.until("document.querySelectorAll('#vms tbody tr').length >= 2", "the filter to be cleared")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1100])
def test_screen_of_any_width_has_no_sideways_scrolling_and_contrast(
    page: Browser, width: int, dark: bool
) -> None:
    page.size(width, 800)
    page.dark(dark)
    try:
        page.until(f"window.innerWidth === {width}", "the new width")
        assert page.run("document.documentElement.scrollWidth") <= width
        colours = page.run(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(*colours) > 7
        quiet = page.run("getComputedStyle(document.getElementById('daemon')).color")
        assert contrast(quiet, colours[1]) > 4.5
    finally:
        page.size(1100, 1000)
        page.dark(False)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio of two colours as `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(each) / 255 for each in colour[4:-1].split(",")[:3]]
        linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_host_that_dies_counts_down_and_is_dead(page: Browser, site: Site) -> None:
    state = "document.querySelector('[data-host=\"2\"] td:nth-child(3)').textContent"
    left = "parseInt(document.querySelector('[data-host=\"2\"] td:nth-child(5)').textContent)"
    page.until(f"{state} === 'LIVE'", "the other host to be seen")
    site.beta.kill()
    page.until(f"{left} < 8", "the seconds until its leases are free to count down", DIES_S)
    page.until(f"{state} === 'DEAD'", "the other host to be dead", DIES_S)


def test_daemon_that_ends_is_said_and_its_return_is_seen(page: Browser, site: Site) -> None:
    site.alpha.kill()
    page.until("!document.getElementById('trouble').hidden", "the page to say so")
    assert "holdfastd does not answer" in page.text("#trouble")
    site.alpha.start()
    page.until("document.getElementById('trouble').hidden", "the page to be live again")
    page.until(shows(f"pid {site.alpha.pid}", "#daemon"), "the new daemon's state")


def test_page_of_two_thousand_vms_answers_to_keys_at_once() -> None:
    with contextlib.ExitStack() as ends:
        place = Path(tempfile.mkdtemp(prefix="hf-"))
        ends.callback(shutil.rmtree, place, ignore_errors=True)
        daemon = Holdfastd(place / "d")
        ends.callback(daemon.stop_all)
        daemon.start()
        web = HoldfastWeb(daemon, place / "web.log")
        ends.callback(web.stop)
        browser = Browser(place / "browser")
        ends.callback(browser.close)
        disks = [make_disk(place, f"vm{n:04}.img") for n in range(VMS)]
        for first in range(0, VMS, 20):
            daemon.vm(disks[first : first + 20], name=f"group{first // 20:03}")
        with daemon.admin() as admin:
            assert admin.status().locks == VMS
        browser.open(f"{web.url}/")
        browser.until(shows("100 of 100 VMs", "#count"), "all to be shown")
        # One owner for each disk, as the daemon would send them: that many processes are more than this test may start.
        browser.run(
            "(() => { const found = [...rows.entries()]; rows.clear(); for (const [n, [key, row]] of found.entries())"
            " rows.set(key, { ...row, pid: n + 1, owner: `vm${n}` }); gather(); drawVms(); })()"
        )
        assert browser.text("#count") == f"{VMS} of {VMS} VMs"
        assert browser.text("#page") == "page 1 of 20"
        browser.press("n")
        assert browser.text("#page") == "page 2 of 20"
        browser.press("p")
        browser.press("/")
        took_ms = browser.run(
            "(() => { const began = performance.now(); document.getElementById('filter').value = 'vm1999';"
            " turn(0); return performance.now() - began; })()"
        )
        assert browser.text("#count") == f"1 of {VMS} VMs"
        assert took_ms < 1000
