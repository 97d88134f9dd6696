"""Tasks, signals and timers outside any caller's cancel scope, on asyncio and trio. Only this file names either.

Theory of operation. A connection outlives the request that opened it. So its tasks cannot be in that request's task
group. A client must also work without ``async with``, so there may be no task group at all. anyio has no tasks outside
of groups, by design. The event loops have: ``create_task`` of asyncio, and system tasks of trio. A :class:`TaskHost`
has one interface for both. What runs in it must never raise. If a connection fails, its exchanges are told, and never
the host.

Three more things are here, because the portable ones cost several times as much, and every request uses them:

- A :class:`Signal` wakes the one task that waits for it. (An ``anyio.Event`` serves many tasks, and each use takes a
  new one.)
- An :class:`Alarm` is a timer that costs nothing to move back. So a read timeout costs one assignment, and no cancel
  scope.
- ``watch_readable`` has the event loop call us when a socket is readable, if it can (asyncio). A task that waits would
  take two system calls and two task switches for every response.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import socket
import sys
import weakref
from asyncio.selector_events import BaseSelectorEventLoop
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from heapq import heapify, heappop, heappush
from inspect import CORO_CLOSED, getcoroutinestate
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from allswell._clock import monotonic

if TYPE_CHECKING:
    import trio

logger = logging.getLogger("allswell")

#: If a timer rings later than by so many seconds, the program has held the event loop.
_LATE = 0.005

_BUSY = "another task waits for the same: only one may read a response (or write to a stream) at a time"


class Signal(Protocol):
    """Wakes the one task that waits for it. If it is set before the wait, the wait returns at once."""

    def set(self) -> None:
        """Wake the waiter, or let the next wait pass."""

    async def wait(self) -> None:
        """Wait until it is set, then clear it.

        :raises RuntimeError: if another task already waits.
        """

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Have a function called soon after the signal is set; ``None``: no more. Return whether it will be called.

        It cannot be on trio. While a function listens, no task may wait.
        """


class Timer(Protocol):
    """A call that will be made, unless it is cancelled."""

    def cancel(self) -> None:
        """Make sure that the call is not made. Idempotent."""


class TaskHost(Protocol):
    """The part of an event loop that we need.

    :ivar line: where tasks wait that may be many, and have much to do.
    """

    line: Line

    @property
    def current(self) -> bool:
        """Whether this event loop is the one that runs now in this thread."""

    @property
    def over(self) -> bool:
        """Whether the event loop has ended, so nothing can run there any more."""

    @property
    def ending(self) -> bool:
        """Asked in a task of ours that was cancelled: whether that was because the event loop ends."""

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run a task that belongs to no caller. Its exceptions are logged, and never raised.

        :param context: the context variables that it sees. By default it sees none of its caller's, because it outlives
            the caller.
        """

    def signal(self) -> Signal:
        """A new, unset signal."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        """Call a function from the event loop after so many seconds."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function from the event loop, after all that is ready now."""

    def when_over(self, method: Callable[[], Awaitable[None]]) -> None:
        """Await a method when the event loop ends. Its object is not kept alive.

        Do nothing on trio: each connection has a task there, which is cancelled at the end.
        """

    def watch_readable(self, sock: socket.socket, function: Callable[[], None] | None) -> bool:
        """Call a function whenever the socket is readable; ``None``: no more. Return whether the loop can do that."""

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        """Have the event loop call a function. Any thread and any finalizer may ask. Do nothing if the loop is over."""


def current_host() -> TaskHost:
    """The host for the event loop that is running now.

    :raises RuntimeError: if none is running.
    """
    if "trio" in sys.modules:
        import trio

        with suppress(RuntimeError):  # (older versions of trio have no predicate for this)
            trio.lowlevel.current_task()
            return _TrioHost()
    try:
        return _AsyncioHost(asyncio.get_running_loop())
    except RuntimeError:
        raise RuntimeError("allswell needs a running event loop: asyncio or trio") from None


class Alarm:
    """A timer that is cheap to put off: that costs one comparison. To bring it forward costs a timer of the event loop.

    Most deadlines are put off long before they pass: every byte that is read moves the read timeout. So the event
    loop's timer stays as it is. If it fires too early, a new one is set for the rest.
    """

    __slots__ = ("_armed_at", "_callback", "_host", "_timer", "at")

    def __init__(self, host: TaskHost, callback: Callable[[], None]) -> None:
        self._host = host
        self._callback = callback
        self._timer: Timer | None = None
        self._armed_at = math.inf
        self.at = math.inf

    def set(self, at: float) -> None:
        """Fire at this instant of :func:`time.monotonic`; ``inf``: never."""
        self.at = at
        if at < self._armed_at:
            self._arm(at)

    def stop(self) -> None:
        """Never fire again, unless set again."""
        self.at = self._armed_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = at
        self._timer = self._host.call_later(max(0.0, at - monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._armed_at = math.inf
        if self.at == math.inf:
            return
        # Event loops have coarse clocks (uvloop: 1 ms). So this may be early: set a timer for the rest.
        if monotonic() < self.at:
            self._arm(self.at)
        else:
            self.at = math.inf
            self._callback()


class Limit:
    """A time limit, as a context manager. It gives more time if the program has held the event loop.

    If the timer rings late, no task had a turn meanwhile, and what the block waits for may have come. So it calls
    ``look``, and allows once more as much time as it was late.

    :param at: the instant of the limit; ``inf`` for none.
    :param look: processes what has come. It is called only if the timer rings late.
    """

    __slots__ = ("_alarm", "_at", "_host", "_look", "_scope", "_strict")

    def __init__(self, host: TaskHost, at: float, look: Callable[[], object] | None = None) -> None:
        self._host = host
        self._alarm: Alarm | None = None
        self._at = at
        self._look = look
        self._scope = anyio.CancelScope()
        self._strict = False

    @property
    def passed(self) -> bool:
        """Whether it has ended what it limits."""
        return self._scope.cancelled_caught

    def __enter__(self) -> Self:
        self._strict = self._at <= monotonic()
        self._scope.__enter__()
        if self._at != math.inf:
            self._alarm = Alarm(self._host, self._ring)
            self._alarm.set(self._at)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._alarm is not None:
            self._alarm.stop()
            self._alarm = None  # it refers to us
        return bool(self._scope.__exit__(kind, error, traceback))

    def _ring(self) -> None:
        now = monotonic()
        late = now - self._at
        if late <= _LATE or self._strict:
            self._scope.cancel()
            return
        self._strict = True
        assert self._alarm is not None
        self._alarm.set(now + late)
        if self._look is not None:
            self._look()


class Line:
    """Lets a few tasks pass in each turn of the event loop. The others wait, in the order in which they came.

    If thousands of connections end at once, nobody else would have a turn before all have said their goodbyes. The
    answers to the first would wait for the goodbyes of the last, and times would pass.
    """

    __slots__ = ("_left", "_waiting")

    #: How many may pass in one turn.
    MOST = 32

    def __init__(self) -> None:
        self._left = self.MOST
        self._waiting: deque[Signal] = deque()

    async def wait(self, host: TaskHost) -> None:
        """Wait for a turn in which there is room.

        :param host: whose line this is.
        """
        if self._left == self.MOST:
            host.call_soon(partial(self._turn, host))
        if self._left:
            self._left -= 1
            return
        signal = host.signal()
        self._waiting.append(signal)
        await signal.wait()

    def _turn(self, host: TaskHost) -> None:
        self._left = self.MOST
        if self._waiting:
            host.call_soon(partial(self._turn, host))
        while self._left and self._waiting:
            self._left -= 1
            self._waiting.popleft().set()


async def side_by_side(steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Take all steps at the same time. An error of one step does not stop the others. A cancellation stops all.

    :raises BaseException: the error of a step; if several failed, a group of their errors.
    """
    if len(steps) == 1:
        await steps[0]()
        return
    errors: list[BaseException] = []

    async def take(step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, when all is over
            errors.append(error)

    try:
        async with anyio.create_task_group() as tasks:
            for step in steps:
                tasks.start_soon(take, step)
    finally:
        if errors:
            raise errors[0] if len(errors) == 1 else BaseExceptionGroup("several steps failed", errors)


def weak_method(method: Callable[[], None]) -> Callable[[], None]:
    """A function that calls a method without keeping its object alive. It does nothing once the object is gone."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call


async def _contained(function: Callable[..., Awaitable[object]], args: tuple[Any, ...], name: str) -> None:
    try:
        await function(*args)
    except Exception:  # a bug of ours. On trio it would end the whole program, so it is only logged
        logger.exception("allswell: task %r failed", name)


class _LoopEnd:
    """Notices the end of an event loop of asyncio without a task: it has a generator that the loop closes at its end.

    (``asyncio.run`` and its like cancel all tasks, and then call ``loop.shutdown_asyncgens()``.)

    The generator refers to its loop. So only something that does not outlive the loop may hold this: the loop's host.
    """

    def __init__(self) -> None:
        self._methods: set[weakref.WeakMethod[Callable[[], Awaitable[None]]]] = set()
        self._generator = self._wait()
        with suppress(StopIteration):
            self._generator.__anext__().send(None)  # run it up to its yield: the loop knows it from now on

    def call(self, method: Callable[[], Awaitable[None]]) -> None:
        self._methods.add(weakref.WeakMethod(method, self._methods.discard))

    async def _wait(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            methods = [method for reference in list(self._methods) if (method := reference()) is not None]
            if methods:
                await asyncio.gather(*(method() for method in methods))

    def __del__(self) -> None:
        # The generator is not needed any more, so it is closed. (If it were collected, the loop would make a task.)
        with suppress(StopIteration, RuntimeError):  # RuntimeError: the loop is just closing it
            self._generator.aclose().send(None)


class _AsyncioHost:
    __slots__ = ("_context", "_end", "_ending", "_forgets", "_keeps", "_loop", "_tasks", "_watched", "line")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.line = Line()
        self._loop = loop
        self._ending: bool | None = None  # in this turn of the loop; `None`: nobody has asked
        self._end: _LoopEnd | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._forgets = not isinstance(loop, asyncio.BaseEventLoop)  # uvloop drops a watch: see `_forgotten`
        # Whether it calls readers in the context in which they were added. (qasync, asyncio's loop on Qt's, does not.)
        self._keeps = getattr(loop.add_reader, "__func__", None) is BaseSelectorEventLoop.add_reader
        self._watched: dict[socket.socket, object] = {}  # if the loop forgets: a weak reference to each watch
        # Callbacks and tasks must not keep the context variables of the code that opened a connection. So they have an
        # empty context, but for one variable: by that anyio knows in a callback, without a task, which event loop runs.
        self._context = contextvars.Context()
        try:
            import sniffio
        except ImportError:
            return  # anyio works without that variable then: it assumes asyncio
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")

    @property
    def current(self) -> bool:
        return asyncio._get_running_loop() is self._loop  # (a public function: it is in ``asyncio.__all__``)

    @property
    def over(self) -> bool:
        return self._loop.is_closed()

    @property
    def ending(self) -> bool:
        # asyncio.run() cancels all tasks when the main one is done. If one task is not cancelled, the loop goes on.
        # That is found out once in a turn of the loop. Thousands of tasks may ask, and each would look at all of them.
        if self.over:
            return True
        if self._ending is None:
            self._ending = all(task.cancelling() for task in asyncio.all_tasks(self._loop))
            self._loop.call_soon(self._ask_again, context=self._context)
        return self._ending

    def _ask_again(self) -> None:
        self._ending = None

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        begun = False

        async def run() -> None:
            nonlocal begun
            begun = True
            await _contained(function, args, name)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not begun and not self.ending:  # it was cancelled with all tasks before its first step: begin again
                self.spawn(function, *args, name=name, context=context)

        task = self._loop.create_task(run(), name=name, context=self._context.copy() if context is None else context)
        self._tasks.add(task)
        task.add_done_callback(over)

    def signal(self) -> Signal:
        return _AsyncioSignal(self._loop, self._context)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        return self._loop.call_later(seconds, function, context=self._context)

    def call_soon(self, function: Callable[[], None]) -> None:
        self._loop.call_soon(function, context=self._context)

    def when_over(self, method: Callable[[], Awaitable[None]]) -> None:
        if self._end is None:
            self._end = _LoopEnd()
        self._end.call(method)

    def watch_readable(self, sock: socket.socket, function: Callable[[], None] | None) -> bool:
        try:
            self._watched.pop(sock, None)
            if function is None:
                self._loop.remove_reader(sock)
            elif self._keeps:
                # It is called in that context. (By its number: asyncio would look for the socket by its ``repr``.)
                self._context.copy().run(self._loop.add_reader, sock.fileno(), function)
            else:
                call = partial(self._context.run, function)
                self._loop.add_reader(sock, call)
                if self._forgets:
                    self._watched[sock] = weakref.ref(call, partial(self._forgotten, sock, function))
        except NotImplementedError:
            return False  # Windows' proactor loop
        return True

    def _forgotten(self, sock: socket.socket, function: Callable[[], None], reference: object) -> None:
        """uvloop has dropped our function by itself, because the socket had an error.

        It has called the function once more, and does not watch the socket any longer. But one call may read only a
        part of what came before the error. So the socket is watched again.
        """
        if self._watched.get(sock) is reference and not self._loop.is_closed():
            self._loop.call_soon(self._remember, sock, function, reference, context=self._context)

    def _remember(self, sock: socket.socket, function: Callable[[], None], reference: object) -> None:
        if self._watched.get(sock) is reference:
            self._loop.remove_reader(sock)  # uvloop keeps a part of the old watch, and would refuse the new one
            self.watch_readable(sock, function)

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is over, as of now perhaps: this may be another thread
            self._loop.call_soon_threadsafe(function, context=self._context)


class _AsyncioSignal:
    __slots__ = ("_context", "_function", "_future", "_loop", "_set")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self._loop = loop
        self._context = context
        self._set = False
        self._future: asyncio.Future[None] | None = None
        self._function: Callable[[], None] | None = None

    def set(self) -> None:
        if self._set:
            return  # the waiting task is already woken
        self._set = True
        if self._future is not None:
            if not self._future.done():  # (it may be cancelled)
                self._future.set_result(None)
        elif self._function is not None:
            self._loop.call_soon(self._call, context=self._context)

    async def wait(self) -> None:
        if not self._set:
            if self._future is not None:
                raise RuntimeError(_BUSY)
            self._future = self._loop.create_future()
            try:
                await self._future
            finally:
                self._future = None
        self._set = False

    def listen(self, function: Callable[[], None] | None) -> bool:
        self._function = function
        if function is not None:
            self._set = False  # a listener looks for itself before it listens
        return function is not None

    def _call(self) -> None:
        if self._function is not None:
            self._set = False
            self._function()


class _TrioHost:
    __slots__ = ("_root", "_timers", "_token", "line")

    def __init__(self) -> None:
        import trio

        self.line = Line()
        self._timers = _TrioTimers()
        self._token = trio.lowlevel.current_trio_token()
        self._root = trio.lowlevel.current_root_task()

    @property
    def current(self) -> bool:
        import trio

        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_root_task() is self._root

    @property
    def over(self) -> bool:
        assert self._root is not None
        return getcoroutinestate(self._root.coro) == CORO_CLOSED

    @property
    def ending(self) -> bool:
        return True  # nothing else cancels system tasks

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        _spawn_system_task(function, args, name, contextvars.Context() if context is None else context)

    def signal(self) -> Signal:
        return _TrioSignal()

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        return self._timers.set(seconds, function)

    def call_soon(self, function: Callable[[], None]) -> None:
        self._token.run_sync_soon(function)

    def when_over(self, method: Callable[[], Awaitable[None]]) -> None:
        """Do nothing: trio cancels system tasks when it ends, and each connection has one."""

    def watch_readable(self, sock: socket.socket, function: Callable[[], None] | None) -> bool:
        return False

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        import trio

        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return  # the loop has ended, so the function has nothing to do


class _TrioSignal:
    __slots__ = ("_set", "_task")

    def __init__(self) -> None:
        self._set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        self._set = True
        if self._task is not None:
            import trio

            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        import trio

        if not self._set:
            if self._task is not None:
                raise RuntimeError(_BUSY)
            self._task = trio.lowlevel.current_task()

            def abandoned(_: Any) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abandoned)
        self._set = False

    def listen(self, function: Callable[[], None] | None) -> bool:
        return False


def _spawn_system_task(
    function: Callable[..., Awaitable[object]], args: tuple[Any, ...], name: str, context: contextvars.Context
) -> None:
    import trio

    trio.lowlevel.spawn_system_task(_contained, function, args, name, name=name, context=context)


class _TrioTimers:
    """The timers of a host. One task waits for the next of them; while there is none, there is no task."""

    __slots__ = ("_count", "_heap", "_runs", "_scope", "_waiting")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _TrioTimer]] = []  # by trio's clock, then in order
        self._count = 0
        self._waiting = 0  # of those in the heap: cancelled ones stay there for a while
        self._runs = False
        self._scope: trio.CancelScope | None = None  # of the task's wait

    def set(self, seconds: float, function: Callable[[], None]) -> _TrioTimer:
        import trio

        timer, at = _TrioTimer(self, function), trio.current_time() + seconds
        if len(self._heap) >= 2 * self._waiting + 64:
            self._heap = [entry for entry in self._heap if entry[2].function is not None]
            heapify(self._heap)
        self._count += 1
        heappush(self._heap, (at, self._count, timer))
        self._waiting += 1
        if not self._runs:
            self._runs = True
            _spawn_system_task(self._run, (), "allswell timers", contextvars.Context())
        elif self._scope is not None and (at < self._scope.deadline or self._waiting == 1):
            self._scope.deadline = at
        return timer

    def cancelled(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._heap.clear()
            if self._scope is not None:
                self._scope.deadline = -math.inf  # the task may end

    async def _run(self) -> None:
        import trio

        try:
            while self._waiting:
                with trio.CancelScope(deadline=self._heap[0][0]) as self._scope:
                    await trio.sleep_forever()
                self._scope = None
                self._call_due(trio.current_time())
        finally:
            self._runs, self._scope = False, None

    def _call_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            _, _, timer = heappop(self._heap)
            function, timer.function = timer.function, None
            if function is None:
                continue
            self._waiting -= 1
            try:
                function()
            except Exception:  # a bug of ours: the other timers must survive it, the log must tell
                logger.exception("allswell: a timer failed")


class _TrioTimer:
    __slots__ = ("_timers", "function")

    def __init__(self, timers: _TrioTimers, function: Callable[[], None]) -> None:
        self._timers = timers
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        if self.function is not None:
            self.function = None
            self._timers.cancelled()
