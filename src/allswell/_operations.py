"""The end of a service: :func:`drain_on_signal` closes a client at a signal, :func:`lifespan` is for ASGI applications.

In both, the client refuses new requests, finishes those in flight, and says its goodbyes, within a given time. At one
more signal, requests in flight are cut, and the goodbyes are said at once.

A SIGTERM after a SIGINT does not count as one more. On Ctrl-C a terminal sends SIGINT to all processes in its
foreground. A process that has started others (uvicorn, for its workers) then signals these, too.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Literal, Protocol

import anyio

from allswell._client import AsyncClient
from allswell._clock import monotonic
from allswell._report import CloseReport
from allswell._signals import receive_signals
from allswell._tasks import current_host

_SIGNALS = (signal.SIGTERM,)

#: What the caller's block may raise. It is raised again outside our task group, which would put it in a group.
_RAISED = (Exception, KeyboardInterrupt, SystemExit)


class Closes(Protocol):
    """An object that can be closed within a time: a client, a pool, a transport of ours."""

    async def aclose(self, timeout: float | None = None) -> object:
        """Close within so many seconds. A second call, with a shorter time, shortens the first."""


#: How many seconds after a SIGINT its echo comes, at most. (uvicorn's parent sees to its workers' health before.)
_ECHO = 10.0


class _Heard:
    """The signals that have come."""

    def __init__(self) -> None:
        self._any = False
        self._echo_until = -math.inf

    def add(self, number: int) -> Literal["first", "echo", "again"]:
        """Take a signal. Return what it is beside those before it."""
        now = monotonic()
        if not self._any:
            self._any = True
            if number == signal.SIGINT:
                self._echo_until = now + _ECHO
            return "first"
        echo, self._echo_until = number == signal.SIGTERM and now <= self._echo_until, -math.inf
        return "echo" if echo else "again"


@asynccontextmanager
async def drain_on_signal(
    client: Closes,
    *,
    signals: Sequence[signal.Signals] = _SIGNALS,
    grace: float | None = None,
    cancel: bool = True,
) -> AsyncIterator[anyio.Event]:
    """Have a signal close a client gracefully, while the block runs::

        async with allswell.AsyncClient() as client, allswell.drain_on_signal(client, grace=10) as stopping:
            while not stopping.is_set():
                await work(client)

    At the first signal ``stopping`` is set, and the client is closed: it refuses new requests, those in flight may
    finish while there is time, and then all goodbyes are said. When that is over, the block is cancelled, without an
    error. At the second signal, what is still in flight is cut, and nothing is waited for.

    In an application that a server runs, use :func:`lifespan`. With this function the server would not get the signal.

    :param client: an :class:`AsyncClient` or a :class:`ConnectionPool`.
    :param signals: SIGTERM by default. While the block runs, this function handles them. Then the handlers from before
        are set again.
    :param grace: seconds that the close may take; the client's own grace by default.
    :param cancel: ``False``: the block is not cancelled, and ends by itself.
    :raises ValueError: if ``signals`` is empty.
    :raises RuntimeError: in any thread but the main one, because only that one may set handlers of signals.
    """
    if not signals:
        raise ValueError("drain_on_signal needs a signal: signals is empty")
    stopping = anyio.Event()
    heard = _Heard()
    failed: BaseException | None = None
    with receive_signals(*signals) as received:
        async with anyio.create_task_group() as tasks:
            listening, block = anyio.CancelScope(), anyio.CancelScope()

            async def close() -> None:
                await client.aclose(grace)
                listening.cancel()
                if cancel:
                    block.cancel()

            async def listen() -> None:
                with listening:
                    async for number in received:
                        match heard.add(number):
                            case "first":
                                stopping.set()
                                tasks.start_soon(close)
                            case "again":
                                await client.aclose(0)

            tasks.start_soon(listen)
            try:
                with block:
                    yield stopping
            except _RAISED as error:
                failed = error
            if not stopping.is_set():
                listening.cancel()
    if failed is not None:
        raise failed


def lifespan(
    make: Callable[[], AsyncClient] = AsyncClient,
    *,
    name: str = "client",
    grace: float | None = None,
    within: float | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    on_close: Callable[[CloseReport], object] | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, AsyncClient]]]:
    """The lifespan of an ASGI application that has a client: ``FastAPI(lifespan=allswell.lifespan())``.

    The client is made when the application starts, and is ``request.state.client`` in each endpoint. The server handles
    the signals. At the first one it takes no more requests, and finishes those that it has. Then the client says its
    goodbyes. At a second signal the client's requests in flight are cut, so the endpoints that wait for them fail. (On
    Ctrl-C a worker gets a signal from the terminal and one from its parent. These count as one.)

    :param make: makes the client.
    :param name: its name in the state of the lifespan.
    :param grace: seconds that the close may take; the client's own grace by default.
    :param within: seconds after the first signal at which the client's requests are cut, as at a second signal. By
        default they are cut only then.
    :param signals: the signals that the client notices, if the server has set handlers for them in the main thread. The
        server's handlers are called as before.
    :param on_close: called once with the :class:`CloseReport` when the client has closed, whatever made it close.
    :return: a function for the parameter ``lifespan`` of Starlette and FastAPI. It takes the application, and returns
        an async context manager.
    """

    @asynccontextmanager
    async def life(app: Any) -> AsyncIterator[dict[str, AsyncClient]]:
        client, heard = make(), _Heard()
        failed: BaseException | None = None
        reported = False

        def report() -> None:
            nonlocal reported
            if on_close is not None and client.close_report is not None and not reported:
                reported = True
                on_close(client.close_report)

        try:
            async with client:
                async with anyio.create_task_group() as tasks:

                    async def hurry(seconds: float) -> None:
                        await anyio.sleep(seconds)
                        await client.aclose(0)
                        report()  # the server may end without the lifespan's end

                    def hear(number: int) -> None:
                        match heard.add(number):
                            case "first" if within is not None:
                                tasks.start_soon(hurry, within)
                            case "again":
                                tasks.start_soon(hurry, 0)

                    with _overheard(signals, hear):
                        try:
                            yield {name: client}
                            await client.aclose(grace)
                        except _RAISED as error:
                            failed = error
                    tasks.cancel_scope.cancel()
                if failed is not None:
                    raise failed  # within the client's block, which cuts what is in flight then
        finally:
            report()

    return life


@contextmanager
def _overheard(signals: Sequence[signal.Signals], told: Callable[[int], None]) -> Iterator[None]:
    """Have ``told`` called in the event loop with each of these signals. Their handlers are called as before.

    A signal without a handler in Python is left alone, because a handler would change what the signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread may set handlers
        return
    host, ours, over = current_host(), {}, False

    def hear(number: int) -> None:
        if not over:  # a signal may have come just before the end; and a later handler may go on calling ours
            told(number)

    def overhear(theirs: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], Any]:
        def handler(number: int, frame: FrameType | None) -> None:
            host.call_soon_threadsafe(partial(hear, number))
            theirs(number, frame)

        return handler

    for each in signals:
        theirs = signal.getsignal(each)
        if callable(theirs):
            ours[each] = (handler := overhear(theirs)), theirs
            signal.signal(each, handler)
    try:
        yield
    finally:
        over = True
        for each, (handler, theirs) in ours.items():
            if signal.getsignal(each) is handler:
                signal.signal(each, theirs)
