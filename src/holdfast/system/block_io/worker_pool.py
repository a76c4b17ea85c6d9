"""Threads that may hang: where requests to shared storage run, so that nobody else has to hang with them.

A thread inside pread or pwrite cannot be called back. So a request runs on a worker, its caller waits elsewhere
and may give it up; the worker stays with it until the kernel answers:

    caller      submit ──► waits … timeout ──► give_up: "in flight"        goes on with other things
    worker                 └─ pwrite() ……………………… hangs …………………………………… returns: completion accounted for

A request that nobody has begun when its caller gives up is withdrawn: it will never reach the disk.

A *pool* is a queue with a few workers. Each lockspace has a pool of its own, so a storage that hangs all workers of
one pool hangs that pool only. A worker owns its buffer (page-aligned, as O_DIRECT wants it): a read that completes
late scribbles over memory that nobody else uses.
"""

from __future__ import annotations

import enum
import mmap
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from holdfast.system.block_io.request_gate import GATE, Place, RequestGate
from holdfast.system.block_io.thread_name import name_this_thread

T = TypeVar("T")

WORKERS_DEFAULT = 4
"""As many stuck requests until a pool is out of workers; sanlock gives a lockspace four slots too."""
REQUESTS_WAITING_MAX = 1024
"""Requests not begun, those withdrawn among them: behind workers that all hang, there is no point in queueing more."""
_BUFFER_KEPT_BYTES_MAX = 1 << 20
"""A worker keeps a buffer for the usual area; formatting 8 MiB once shall not cost 8 MiB for ever."""


class PoolFull(Exception):
    """More requests wait than callers could; nothing was issued."""


class AlignedBuffer:
    """Anonymous pages, kept from one request to the next: renewals allocate nothing."""

    def __init__(self) -> None:
        self._pages: mmap.mmap | None = None

    def view(self, length_bytes: int) -> memoryview:
        if self._pages is None or len(self._pages) < length_bytes:
            self._pages = mmap.mmap(-1, -(-length_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        return memoryview(self._pages)[:length_bytes]

    def shrink(self) -> None:
        if self._pages is not None and len(self._pages) > _BUFFER_KEPT_BYTES_MAX:
            self._pages = None


class _State(enum.Enum):
    WAITING = 0
    RUNNING = 1
    DONE = 2
    WITHDRAWN = 3


def do_nothing() -> None:
    return None


def _ignore(_: object) -> None:
    return None


class Request(Generic[T]):
    """One thing to do on a worker. `on_end` always runs once, when it is over; `on_done` wakes the caller if it still waits;
    `undo` gets a result that came too late for that.
    """

    __slots__ = ("_error", "_given_up", "_result", "_state", "on_done", "on_end", "perform", "undo")

    def __init__(
        self,
        perform: Callable[[AlignedBuffer], T],
        *,
        on_done: Callable[[], None] = do_nothing,
        on_end: Callable[[], None] = do_nothing,
        undo: Callable[[T], None] = _ignore,
    ) -> None:
        self.perform = perform
        self.on_done = on_done
        self.on_end = on_end
        self.undo = undo
        self._state = _State.WAITING
        self._given_up = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def result(self) -> T:
        """What `perform` returned or raised; only once it is done."""
        if self._state is not _State.DONE:
            raise RuntimeError("the request has not completed")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class JobFate(enum.Enum):
    """What became of a request that its caller gives up."""

    COMPLETED = "its result was there in time after all"
    WITHDRAWN = "it was never begun and never will be"
    IN_FLIGHT = "it may still take effect"


class WorkerPool:
    """A queue and its workers. They start when there is work for them and stay until the pool is closed."""

    def __init__(self, name: str, workers: int = WORKERS_DEFAULT, gate: RequestGate = GATE) -> None:
        self.name = name
        self._gate = gate
        self._workers_max = workers
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Request[object] | None] = queue.SimpleQueue()
        """In it are requests that wait, those that were withdrawn meanwhile, and None, which only wakes a worker."""
        self._waiting = 0
        self._workers = 0
        self._idle = 0
        self._closed = False

    def submit(self, request: Request[T]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError(f"pool {self.name} is closed")
            if self._queue.qsize() >= REQUESTS_WAITING_MAX:
                raise PoolFull
        self._put(request)

    def finish(self, last: Callable[[], None]) -> None:
        """Have a worker do what may hang and what nobody waits for, also where too much waits already."""
        request: Request[None] = Request(lambda _: None, on_end=last)
        request._given_up = True
        self._put(request)

    def _put(self, request: Request[T]) -> None:
        with self._lock:
            self._waiting += 1
            start = self._waiting > self._idle and self._workers < self._workers_max
            if start:
                self._workers += 1
        self._queue.put(request)  # type: ignore[arg-type]
        if start:
            threading.Thread(target=self._work, name=f"disk {self.name}", daemon=True).start()

    def give_up(self, request: Request[T]) -> JobFate:
        """The caller waits no longer; `on_done` will not be called from now on."""
        with self._lock:
            request._given_up = True
            if request._state is _State.DONE:
                return JobFate.COMPLETED
            if request._state is _State.RUNNING:
                return JobFate.IN_FLIGHT
            request._state = _State.WITHDRAWN
            self._waiting -= 1
        request.on_end()
        return JobFate.WITHDRAWN

    @property
    def waiting(self) -> int:
        """Requests that no worker has begun, for status."""
        return self._waiting

    @property
    def workers(self) -> int:
        """Threads that it has; those of a closed pool hang inside the kernel, or are about to end."""
        return self._workers

    def close(self) -> None:
        """Workers end when nothing is left to do. One that is stuck ends when the kernel lets it."""
        with self._lock:
            self._closed = True
        self._queue.put(None)

    def _work(self) -> None:
        name_this_thread(self.name)
        place = self._gate.place(self.name)
        try:
            self._serve(place)
        finally:
            self._gate.forget(place)

    def _serve(self, place: Place) -> None:
        buffer = AlignedBuffer()
        while (request := self._next(place)) is not None:
            error: BaseException | None = None
            result: object = None
            try:
                result = request.perform(buffer)
            except BaseException as e:  # carried to the caller, whatever it is
                error = e
            # Release the sectors before waking the waiter, so that it can write them at once.
            request.on_end()
            with self._lock:
                request._state, request._result, request._error = _State.DONE, result, error
                awaited = not request._given_up
            if awaited:
                request.on_done()
            elif error is None:
                request.undo(result)
            place.leave()
            del request, result, error
            buffer.shrink()

    def _next(self, place: Place) -> Request[object] | None:
        """The next request, begun and inside the gate; None if there will be no more. One that waits for the gate to open
        has not begun, and can still be withdrawn.
        """
        while True:
            with self._lock:
                if self._closed and not self._waiting:
                    self._workers -= 1
                    return None
                self._idle += 1
            request = self._queue.get()
            place.enter()
            with self._lock:
                self._idle -= 1
                if self._closed:
                    self._queue.put(None)  # for the next one, who may wait for what we have taken
                if request is None or request._state is _State.WITHDRAWN:
                    place.leave()
                    continue
                self._waiting -= 1
                request._state = _State.RUNNING
                return request
