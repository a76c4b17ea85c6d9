"""The gate in front of all storage: which requests are inside, and what a closed one does to requests that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.polling import wait_until

from holdfast.system.block_io import thread_name
from holdfast.system.block_io.request_gate import RequestGate
from holdfast.system.block_io.worker_pool import JobFate, Request, WorkerPool


def performing(function: Callable[[], object]) -> Request[object]:
    return Request(lambda _: function())


def test_request_that_hangs_is_inside_under_the_name_of_its_pool_until_it_ends() -> None:
    gate, hangs = RequestGate(), threading.Event()
    pool = WorkerPool("leases of A", gate=gate)
    pool.submit(performing(hangs.wait))
    wait_until(lambda: gate.inside(at_least_s=0.2), "the request to be inside for a while")
    (inside,) = gate.inside()
    assert inside.pool == "leases of A"
    assert str(inside).startswith("leases of A: a request has not ended for ")
    assert not gate.inside(at_least_s=1000.0)
    hangs.set()
    wait_until(lambda: not gate.inside(), "the gate to be empty")
    pool.close()


def test_what_follows_a_request_is_inside_too() -> None:
    """Closing a file that came too late, or its last user's end, may hang as the request itself."""
    gate, hangs, began = RequestGate(), threading.Event(), threading.Event()

    def end() -> None:
        began.set()
        hangs.wait()

    pool = WorkerPool("A", gate=gate)
    pool.finish(end)
    assert began.wait(30)
    assert gate.inside()
    hangs.set()
    wait_until(lambda: not gate.inside(), "the gate to be empty")
    pool.close()


def test_closed_gate_lets_end_what_has_begun_and_begins_nothing_new() -> None:
    gate, hangs = RequestGate(), threading.Event()
    pool = WorkerPool("A", workers=2, gate=gate)
    pool.submit(performing(hangs.wait))
    wait_until(gate.inside, "the first to be inside")
    gate.close()
    done = threading.Event()
    second = performing(lambda: None)
    second.on_done = done.set
    pool.submit(second)
    hangs.set()
    wait_until(lambda: not gate.inside(), "the first to end")
    assert not done.wait(0.2)
    gate.open()
    assert done.wait(30)
    pool.close()


def test_request_that_waits_at_the_gate_can_still_be_withdrawn() -> None:
    """Else its caller had to count it as one that may reach the disk, for nothing."""
    gate, ran = RequestGate(), threading.Event()
    gate.close()
    pool = WorkerPool("A", gate=gate)
    request = performing(ran.set)
    pool.submit(request)
    wait_until(lambda: pool._queue.qsize() == 0, "a worker to have it before the gate")
    assert pool.give_up(request) is JobFate.WITHDRAWN
    gate.open()
    last = threading.Event()
    pool.submit(performing(last.set))
    assert last.wait(30)
    assert not ran.is_set()
    pool.close()


def test_places_of_workers_that_ended_are_forgotten() -> None:
    gate = RequestGate()
    for _ in range(3):
        pool = WorkerPool("A", gate=gate)
        pool.submit(performing(lambda: None))
        pool.close()
        wait_until(lambda pool=pool: not pool.workers, "its workers to end")  # type: ignore[misc]
    wait_until(lambda: not gate._places, "the gate to know none of them")


def test_worker_has_the_name_of_its_pool_for_the_next_daemon_to_read() -> None:
    names: list[str] = []
    done = threading.Event()

    def read() -> None:
        names.append(Path("/proc/thread-self/comm").read_text().strip())
        done.set()

    pool = WorkerPool("leases of A", gate=RequestGate())
    pool.submit(performing(read))
    assert done.wait(30)
    pool.close()
    assert names == [thread_name.of_pool("leases of A")]
    assert len(names[0]) == 15
