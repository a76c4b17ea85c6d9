"""An asyncio event loop for one simulated process: it runs on the world's time and stops when its process does.

Shipping code uses asyncio's own tasks, futures and waits. They need little of a loop: `call_soon` and `call_at`. Both
become events of the world that belong to the process; the loop itself never blocks, polls or starts a thread. The other
parts of a loop (sockets, executors, signals) belong to `system` and are missing on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import traceback
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from holdfast_sim.world import Happen, ProcessGone, Violation, World

T = TypeVar("T")


class Process:
    """A running program of one machine. While it is frozen none of its events run; after its end none ever runs again."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stopped = False
        self.frozen_until = 0.0
        self.deferred: deque[Happen] = deque()
        self.loop = ProcessLoop(self)  # type: ignore[abstract]
        self._stall: tuple[int, float, str] | None = None
        self._inside_call = False
        self._resumed_at = -1.0
        """When the last stall ended: the interrupted step runs at that moment and is not stalled again (docs/safety.md)."""

    def freeze(self, seconds: float) -> None:
        """Stop it between two of its steps, as SIGSTOP or an overloaded scheduler does."""
        until = self.world.now + seconds
        if self.alive and until > self.frozen_until:
            self.stopped = True
            self.frozen_until = until
            self.world.at(until, self._thaw)

    def _thaw(self) -> None:
        if self.frozen_until <= self.world.now and not self._inside_call:
            self.stopped = False
            while self.deferred:
                self.world.at(self.world.now, self.deferred.popleft(), self)

    def heal(self) -> None:
        """End the present freeze and cancel a stall that has been arranged."""
        self._stall = None
        self.frozen_until = self.world.now
        self.world.at(self.world.now, self._thaw)

    def end(self) -> None:
        self.alive = False
        self.deferred.clear()
        self.loop.ended()

    def stall_in(self, calls: int, seconds: float, kind: str = "") -> None:
        """Freeze it inside the `calls`-th call of a port from now on (of that kind, if one is named): after it read the
        clock and before it acts on the time, or after a decision and before the write to the device.
        """
        self._stall = (calls, seconds, kind)

    def port(self, kind: str) -> None:
        """Called first by every port that does not suspend: here the process may lose its CPU."""
        if not self.alive:
            raise ProcessGone
        if self._stall is None or self.world.depth > 1 or self.world.now == self._resumed_at:
            return
        calls, seconds, wanted = self._stall
        if wanted not in ("", kind):
            return
        self._stall = (calls - 1, seconds, wanted) if calls > 0 else None
        if calls > 0:
            return
        self.world.record(self.name, f"loses its processor for {seconds:.1f} s inside a call ({kind})")
        self._inside_call = True
        self.freeze(seconds)
        with self.loop.left():
            while self.alive and self.frozen_until > self.world.now:
                self.world.run(self.frozen_until)
        self._inside_call = False
        self._resumed_at = self.world.now
        self._thaw()
        if not self.alive:
            raise ProcessGone

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        if not self.alive:
            coroutine.close()
            raise ProcessGone
        with self.loop.entered():
            task = self.loop.create_task(coroutine)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or not self.alive:
            return
        error = task.exception()
        if error is not None and not isinstance(error, ProcessGone | Violation):
            trace = "".join(traceback.format_exception(error)[-9:])
            self.world.bug(self.name, trace)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The loop of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ready: deque[asyncio.Handle] = deque()
        self._arranged = False
        self._tasks: dict[int, asyncio.Task[Any]] = {}

    # --- what asyncio asks for ---

    def time(self) -> float:
        return self._process.world.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return not self._process.alive

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._arranged:
            self._arranged = True
            world = self._process.world
            world.at(world.now, self._turn, self._process)
        return handle

    # A real process calls this one from other threads; the simulator has only one thread.
    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._process.world.at(when, lambda: self._due(handle), self._process)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: the event of a cancelled timer does nothing."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        # Referenced here, so that the history does not depend on the garbage collector.
        self._tasks[id(task)] = task
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[id(task)]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self._process.alive and not isinstance(error, ProcessGone | Violation):
            self._process.world.bug(self._process.name, f"{context.get('message')}: {error!r}")

    # --- used by the world ---

    @contextmanager
    def entered(self) -> Iterator[None]:
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            yield
        finally:
            events._set_running_loop(before)

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave the running task for a while, so that the loops of other processes can run."""
        task = asyncio.current_task(self) if self.is_running() else None
        before = events._get_running_loop()
        if task is not None:
            tasks._leave_task(self, task)
        events._set_running_loop(None)
        try:
            yield
        finally:
            events._set_running_loop(before)
            if task is not None:
                tasks._enter_task(self, task)

    def ended(self) -> None:
        """Close all tasks, because the process has ended: what they wait for never happens.

        They are closed explicitly, because the garbage collector would close them at any time and in any order.
        """
        for task in list(self._tasks.values()):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if inspect.iscoroutine(coroutine) or inspect.isgenerator(coroutine):
                # Cleanup code that calls a port gets `ProcessGone`; a coroutine that is running ends there too.
                with contextlib.suppress(BaseException):
                    coroutine.close()
        self._ready.clear()

    def _due(self, handle: asyncio.TimerHandle) -> None:
        if not handle.cancelled():
            self._ready.append(handle)
            self._turn()

    def _turn(self) -> None:
        self._arranged = False
        with self.entered():
            for _ in range(len(self._ready)):
                # A process may end inside one of its own steps, which wakes others on its way out.
                if not self._ready or not self._process.alive:
                    break
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        if self._ready and not self._arranged and self._process.alive:
            self._arranged = True
            self._process.world.at(self._process.world.now, self._turn, self._process)
