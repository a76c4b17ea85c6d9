"""`holdfast metrics`: the text format as Prometheus reads it, and alert rules that name metrics which exist."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.doctor.machine import Machine, space, status

from holdfast.cli.commands.metrics import HELP, UNREACHABLE, samples, text, write
from holdfast.cli.commands.status import Answer
from holdfast.control.api import HistogramInfo, LeaseSpaceMeasures, MeasuresInfo
from holdfast.system.histogram import Histogram

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "packaging" / "prometheus" / "holdfast.rules.yml").read_text()
LINE = re.compile(r'holdfast_[a-z_]+(\{([a-z]+="(?:[^"\\\n]|\\[\\"n])*"(,|(?=\})))+\})? -?[0-9.e+]+')
MEASURES = MeasuresInfo(
    events={"refused": 2, "acquired": 1},
    loop_delay=HistogramInfo([0.001, 1.0], [2, 0, 1], 7.5),
    watchdog_feeds=40,
    watchdog_fed_s_ago=0.5,
    lockspaces=[LeaseSpaceMeasures("vms", 10, HistogramInfo([0.01, 0.1], [1, 3, 0], 0.2), 5, [])],
)


@pytest.fixture
def written(tmp_path: Path) -> str:
    machine = Machine(tmp_path)
    machine.lock("web1", '/srv/we"ird\\ \n.img')
    machine.lock("db1", "/srv/db.img", pid=5)
    machine.locks[1] = replace(machine.locks[1], held=False, protection=2)
    joined = space(renewed_s_ago=12.5, fails_in_s=67.5, fenced=False)
    answer = Answer(status(locks_lost=1, journal="no space"), [joined, space("other", "lost")], [])
    return text(list(samples(answer, machine.locks, MEASURES)))


def family_of(line: str) -> str:
    """Of a sample: a histogram's parts are of one family."""
    return re.sub(r"_(bucket|sum|count)$", "", re.split(r"[ {]", line)[0])


def test_each_line_is_of_the_text_format_and_each_family_is_described_once(written: str) -> None:
    lines = written.splitlines()
    values = [each for each in lines if not each.startswith("#")]
    assert all(LINE.fullmatch(each) for each in values), values
    families = [each.split()[2] for each in lines if each.startswith("# TYPE")]
    assert len(families) == len(set(families))
    order = list(dict.fromkeys(map(family_of, values)))
    assert order == families, "samples of a family stand together"
    assert len({each.rpartition(" ")[0] for each in values}) == len(values), "no sample twice"


def test_values_are_those_of_the_daemon(written: str) -> None:
    for line in (
        "holdfast_up 1",
        "holdfast_journal_ok 0",
        "holdfast_locks_lost 1",
        'holdfast_lockspace_age_seconds{lockspace="__LIBVIRT__DISKS__"} 12.5',
        'holdfast_lockspace_bound_seconds{lockspace="__LIBVIRT__DISKS__"} 80',
        'holdfast_lockspace_fenced{lockspace="__LIBVIRT__DISKS__"} 0',
        'holdfast_lockspace_joined{lockspace="other"} 0',
        'holdfast_events_total{kind="refused"} 2',
        'holdfast_events_total{kind="lock-lost"} 0',
        "holdfast_watchdog_feeds_total 40",
        "holdfast_watchdog_fed_age_seconds 0.5",
        'holdfast_lockspace_renewal_failures_total{lockspace="vms"} 5',
        'holdfast_disk_protection{disk="/srv/db.img",vm="db1",pid="5",backend="file"} 0',
        'holdfast_disk_protection{disk="/srv/we\\"ird\\\\ \\n.img",vm="web1",pid="4242",backend="file"} 1',
    ):
        assert line in written.splitlines(), line


def test_buckets_of_a_histogram_are_added_up(written: str) -> None:
    parts = [each for each in written.splitlines() if "renewal_seconds" in each and each[0] != "#"]
    assert parts == [
        'holdfast_lockspace_renewal_seconds_bucket{lockspace="vms",le="0.01"} 1',
        'holdfast_lockspace_renewal_seconds_bucket{lockspace="vms",le="0.1"} 4',
        'holdfast_lockspace_renewal_seconds_bucket{lockspace="vms",le="+Inf"} 4',
        'holdfast_lockspace_renewal_seconds_sum{lockspace="vms"} 0.20000000000000001',
        'holdfast_lockspace_renewal_seconds_count{lockspace="vms"} 4',
    ]
    assert 'holdfast_event_loop_delay_seconds_bucket{le="+Inf"} 3' in written.splitlines()
    kinds = dict(re.findall(r"# TYPE holdfast_(\w+) (\w+)", written))
    assert kinds["event_loop_delay_seconds"] == "histogram"
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name for name in kinds if name.endswith("_total")
    }


def test_value_at_a_bound_is_below_it_and_one_above_all_bounds_is_counted() -> None:
    histogram = Histogram([0.1, 1.0])
    for seconds in (0.1, 0.2, 5.0):
        histogram.add(seconds)
    assert histogram.counts == [1, 1, 1]
    assert histogram.sum_s == pytest.approx(5.3)


def test_daemon_of_an_earlier_release_has_no_measures() -> None:
    found = list(samples(Answer(status(), [], []), [], None))
    assert {each.family for each in found} & {"up", "events_total"} == {"up"}


def test_daemon_that_does_not_answer_is_a_metric_too() -> None:
    assert text(UNREACHABLE).splitlines()[-1] == "holdfast_up 0"


def test_alerts_name_metrics_that_exist() -> None:
    named = set(re.findall(r"holdfast_([a-z_]+)", "\n".join(re.findall(r"expr: (.*)", RULES))))
    assert len(named) > 5
    assert {re.sub(r"_(bucket|sum|count)$", "", each) for each in named} <= set(HELP)
    labels = set(re.findall(r"\$labels\.([a-z]+)", RULES)) - {"instance"}
    assert labels <= {"lockspace", "disk", "vm", "kind"}


def test_textfile_is_replaced_as_a_whole_and_readable_for_the_collector(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.prom"
    write(str(path), "holdfast_up 1\n")
    write(str(path), "holdfast_up 0\n")
    assert path.read_text() == "holdfast_up 0\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
