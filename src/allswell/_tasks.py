"""Tasks, signals and timers outside any caller's cancel scope, on asyncio and trio: the one file that names either.

Theory of operation. A connection outlives the request that opened it, so its task cannot live in that request's
task group, and a client must work without ``async with``, so there may be no task group at all. anyio has no
answer to that (by design); each event loop has: asyncio's ``create_task`` and trio's system tasks. A
:class:`TaskHost` is that answer behind one face. What runs in it must never raise: a connection's failure
reaches its exchanges, never the host.

Three more things are here because the portable ones cost several times as much on the path that every request
takes: a :class:`Signal` wakes the one task that waits for it (an ``anyio.Event`` serves many and is made afresh for
each use); an :class:`Alarm` is a timer that is moved back for free, so that a read timeout costs one assignment
and not a cancel scope; and ``watch_readable`` has the event loop call us when a socket is readable, where it can
(asyncio), in place of a task that waits for it (two system calls and two task switches for every response).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import socket
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from inspect import CORO_CLOSED, getcoroutinestate
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from allswell._clock import monotonic

if TYPE_CHECKING:
    import trio

logger = logging.getLogger("allswell")

#: Seconds by which a timer rings late when the program has held the event loop.
_LATE = 0.005

_BUSY = "another task waits for the same: only one may read a response (or write to a stream) at a time"


class Signal(Protocol):
    """Wakes the one task that waits for it. Set before the wait, it is not lost: the wait returns at once."""

    def set(self) -> None:
        """Wake the waiter, or let the next wait pass."""

    async def wait(self) -> None:
        """Wait until set, then clear.

        :raises RuntimeError: when another task waits already.
        """

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Have a function called soon after it is set, until told to stop by ``None``; whether the loop can.

        Nobody may wait meanwhile.
        """


class Timer(Protocol):
    """A call that will happen, unless cancelled."""

    def cancel(self) -> None:
        """Make sure that the call does not happen; idempotent."""


class TaskHost(Protocol):
    """The event loop that runs us, as far as we need it."""

    @property
    def current(self) -> bool:
        """Whether it is the event loop that runs now, in this thread."""

    @property
    def over(self) -> bool:
        """Whether the loop has ended: nothing can run there any more."""

    @property
    def ending(self) -> bool:
        """For a task of ours that was cancelled: whether the loop ends. (Or a program cancels all, and goes on.)."""

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str,
        context: contextvars.Context | None = None,
    ) -> None:
        """Run a task that belongs to no caller. Its exceptions are logged, never raised.

        :param context: the context variables that it sees; by default none, for it outlives its cause.
        """

    def signal(self) -> Signal:
        """A new, unset signal."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        """Call a function from the event loop in so many seconds."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function from the event loop, once what is ready now has had its turn."""

    def when_over(self, method: Callable[[], Awaitable[None]]) -> None:
        """Await a method, of an object that this keeps not alive, when the loop ends; where tasks do not tell that."""

    def watch_readable(self, sock: socket.socket, function: Callable[[], None] | None) -> bool:
        """Call a function whenever the socket is readable, until told to stop by ``None``; whether the loop can."""

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        """Call a function from the event loop, from anywhere (a finalizer included). Nothing when the loop is over."""


def current_host() -> TaskHost:
    """The host for the event loop that is running now.

    :raises RuntimeError: when none is.
    """
    if "trio" in sys.modules:
        import trio

        with suppress(RuntimeError):  # (There is a predicate, which a trio that is older than ours does not have.)
            trio.lowlevel.current_task()
            return _TrioHost()
    try:
        return _AsyncioHost(asyncio.get_running_loop())
    except RuntimeError:
        raise RuntimeError("allswell needs a running event loop: asyncio or trio") from None


class Alarm:
    """A timer that costs one comparison to move back, and a real timer only to bring forward.

    Most deadlines are moved on long before they pass: every byte read moves the read timeout. So the real timer is
    left where it is, and when it fires early it is set again for what is left.
    """

    __slots__ = ("_armed_at", "_callback", "_host", "_timer", "at")

    def __init__(self, host: TaskHost, callback: Callable[[], None]) -> None:
        self._host = host
        self._callback = callback
        self._timer: Timer | None = None
        self._armed_at = math.inf
        self.at = math.inf

    def set(self, at: float) -> None:
        """Fire at this instant of :func:`time.monotonic`; ``inf`` for never."""
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
        # Clocks of event loops are coarse (uvloop: 1 ms): do not fire early, and do not spin for the rest.
        if monotonic() < self.at:
            self._arm(self.at)
        else:
            self.at = math.inf
            self._callback()


class Limit:
    """A time limit, as a context; but time in which the program held the event loop does not count twice.

    A limit that rings late says that nobody has had a turn for so long: what is waited for may be there. So it looks,
    and gives as much time again, once.

    :param at: the instant of the limit; ``inf`` for none.
    :param look: takes what has come.
    """

    __slots__ = ("_alarm", "_at", "_look", "_scope", "_strict")

    def __init__(self, host: TaskHost, at: float, look: Callable[[], object] | None = None) -> None:
        self._alarm = Alarm(host, self._ring)
        self._at = at
        self._look = look
        self._scope = anyio.CancelScope()
        self._strict = False

    @property
    def passed(self) -> bool:
        """Whether it has cut short what it limits."""
        return self._scope.cancelled_caught

    def __enter__(self) -> Self:
        self._strict = self._at <= monotonic()
        self._scope.__enter__()
        if self._at != math.inf:
            self._alarm.set(self._at)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._alarm.stop()
        return bool(self._scope.__exit__(kind, error, traceback))

    def _ring(self) -> None:
        now = monotonic()
        late = now - self._at
        if late <= _LATE or self._strict:
            self._scope.cancel()
            return
        self._strict = True
        self._alarm.set(now + late)
        if self._look is not None:
            self._look()


async def side_by_side(steps: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Take all steps at the same time. What one raises does not stop the others; a cancellation reaches all.

    :raises BaseException: what one of them raised; of several, a group.
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
    """A call of a method that does not keep its object alive; nothing once the object is gone."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound = reference()
        if bound is not None:
            bound()

    return call


async def _contained(function: Callable[..., Awaitable[object]], args: tuple[Any, ...], name: str) -> None:
    try:
        await function(*args)
    except Exception:  # a bug of ours: the host (and in trio the whole program) must survive it, the log must tell
        logger.exception("allswell: task %r failed", name)


class _LoopEnd:
    """Hears of the end of one of asyncio's loops without a task: it closes what asynchronous generators there are.

    (``asyncio.run`` and all that are like it call ``loop.shutdown_asyncgens()`` when all tasks are cancelled.)

    The generator refers to its loop. So nothing that outlives the loop may hold this: its host does.
    """

    def __init__(self) -> None:
        self._methods: set[weakref.WeakMethod[Callable[[], Awaitable[None]]]] = set()
        self._generator = self._wait()
        with suppress(StopIteration):
            self._generator.__anext__().send(None)  # to its yield: the loop knows it from now on

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
        # Nothing asks any more, so the generator ends here. (Left to be collected, it would be given a task.)
        with suppress(StopIteration, RuntimeError):  # RuntimeError: the loop's end is closing it
            self._generator.aclose().send(None)


class _AsyncioHost:
    __slots__ = ("_context", "_end", "_forgets", "_loop", "_tasks", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._end: _LoopEnd | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._forgets = not isinstance(loop, asyncio.BaseEventLoop)  # asyncio's own watch until they are told to stop
        self._watched: dict[socket.socket, object] = {}  # where it forgets: by what we learn of it
        # An empty context: a connection must not keep the context variables of the code that opened it. Empty but for
        # one, by which anyio knows in a callback, where there is no task to ask, which event loop this is.
        self._context = contextvars.Context()
        try:
            import sniffio
        except ImportError:
            return  # then anyio takes it for granted
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")

    @property
    def current(self) -> bool:
        return asyncio._get_running_loop() is self._loop  # (public, but for its name: it is in ``__all__``)

    @property
    def over(self) -> bool:
        return self._loop.is_closed()

    @property
    def ending(self) -> bool:
        # asyncio.run() cancels all tasks when the main one is done. Another canceller is itself a task that is left.
        return self.over or all(task.cancelling() for task in asyncio.all_tasks(self._loop))

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
            if not begun and not self.ending:  # cancelled, with all tasks, before it could do or undo anything
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
            else:
                call = partial(self._context.run, function)
                self._loop.add_reader(sock, call)
                if self._forgets:
                    self._watched[sock] = weakref.ref(call, partial(self._forgotten, sock, function))
        except NotImplementedError:
            return False  # Windows' proactor loop
        return True

    def _forgotten(self, sock: socket.socket, function: Callable[[], None], reference: object) -> None:
        """uvloop has let go of what it was to call, and nobody told it to: the socket had an error.

        It calls once more then, and watches no longer. But one call may read what came before the error, and not that.
        """
        if self._watched.get(sock) is reference and not self._loop.is_closed():
            self._loop.call_soon(self._remember, sock, function, reference, context=self._context)

    def _remember(self, sock: socket.socket, function: Callable[[], None], reference: object) -> None:
        if self._watched.get(sock) is reference:
            self._loop.remove_reader(sock)  # what is left of the old watch would refuse the new one
            self.watch_readable(sock, function)

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        if not self._loop.is_closed():
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
            return  # what waits has been woken
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
            self._set = False  # a listener looks first
        return function is not None

    def _call(self) -> None:
        if self._function is not None:
            self._set = False
            self._function()


class _TrioHost:
    __slots__ = ("_root", "_token")

    def __init__(self) -> None:
        import trio

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
        import trio

        context = contextvars.Context() if context is None else context
        trio.lowlevel.spawn_system_task(_contained, function, args, name, name=name, context=context)

    def signal(self) -> Signal:
        return _TrioSignal()

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        timer = _TrioTimer(seconds, function)
        self.spawn(timer.run, name="allswell timer")
        return timer

    def call_soon(self, function: Callable[[], None]) -> None:
        self._token.run_sync_soon(function)

    def when_over(self, method: Callable[[], Awaitable[None]]) -> None:
        """Not told: system tasks are cancelled then, and there is one for each connection."""

    def watch_readable(self, sock: socket.socket, function: Callable[[], None] | None) -> bool:
        return False

    def call_soon_threadsafe(self, function: Callable[[], None]) -> None:
        import trio

        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return  # the loop is over, and with it whatever was to be called about


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


class _TrioTimer:
    __slots__ = ("_function", "_scope", "_seconds")

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        import trio

        self._seconds = seconds
        self._function: Callable[[], None] | None = function
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        import trio

        with self._scope:
            await trio.sleep(self._seconds)
        function, self._function = self._function, None
        if function is not None and not self._scope.cancelled_caught:
            function()

    def cancel(self) -> None:
        self._function = None
        self._scope.cancel()
