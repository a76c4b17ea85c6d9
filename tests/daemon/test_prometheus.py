"""Prometheus' own programs read what holdfast writes: promtool metrics and rules; a real server scrapes and alerts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.support.daemon import Factory, make_disk
from tests.support.polling import wait_until
from tests.support.web import HoldfastWeb

pytestmark = pytest.mark.long
RULES = Path(__file__).parents[2] / "packaging" / "prometheus" / "holdfast.rules.yml"
SCRAPED_S = 60.0
"""Prometheus starts, scrapes twice and evaluates, on a busy machine."""


def promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "Debian's package prometheus is missing: tools/debian-packages long"
    return subprocess.run(
        [program, *arguments], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def test_promtool_finds_nothing_wrong_with_rules_and_metrics(make_daemon: Factory, place: Path) -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stderr
    daemon = make_daemon().start()
    daemon.vm([make_disk(place, 'we"ird\\ \n.img')], name="web1")
    linted = promtool("check", "metrics", text=daemon.cli("metrics").stdout)
    assert (linted.returncode, linted.stderr) == (0, "")
    assert promtool("check", "metrics", text="holdfast_up one\n").returncode != 0, "it does read them"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_real_prometheus_scrapes_and_alerts(make_daemon: Factory, place: Path) -> None:
    daemon = make_daemon().start()
    token = place / "token"
    token.write_text("0123456789abcdef0123456789\n")
    token.chmod(0o600)
    web = HoldfastWeb(daemon, place / "web.log", ["--token-file", str(token)])
    # Alerts that wait for minutes fire at once here; nothing else of the rules differs.
    (place / "rules.yml").write_text(re.sub(r"(?m)^ +for: \w+\n", "", RULES.read_text()))
    (place / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [rules.yml]\nscrape_configs:\n"
        f"  - job_name: holdfast\n    authorization: {{credentials_file: {token}}}\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{web.port}']}}]\n"
    )
    port = free_port()
    with open(place / "prometheus.log", "wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={place}/prometheus.yml",
                f"--storage.tsdb.path={place}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def ask(query: str) -> list[Any]:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                found: list[Any] = json.load(answer)["data"]["result"]
                return found
        except OSError:
            assert server.poll() is None, (place / "prometheus.log").read_text()
            return []

    try:
        (up,) = wait_until(lambda: ask("holdfast_up"), "the first scrape", timeout_s=SCRAPED_S)
        assert up["value"][1] == "1"
        wait_until(
            lambda: ask("histogram_quantile(0.5, rate(holdfast_event_loop_delay_seconds_bucket[1m])) > 0"),
            "a histogram that it understands",
            timeout_s=SCRAPED_S,
        )
        assert ask('holdfast_events_total{kind="daemon-started"}')[0]["value"][1] == "1"
        assert not ask('ALERTS{alertname="HoldfastDown"}')
        daemon.kill()
        wait_until(
            lambda: ask('ALERTS{alertname="HoldfastDown",alertstate="firing"}'),
            "the alert",
            timeout_s=SCRAPED_S,
        )
    finally:
        server.kill()
        server.wait()
        web.stop()
