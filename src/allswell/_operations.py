"""A program's end: a signal drains a client, and an ASGI application's lifespan holds one.

In both, the client refuses new requests, finishes those in flight, and says its goodbyes, within a given time. One more
signal hurries it: requests in flight are cut, and the goodbyes are said at once.

A SIGTERM behind a SIGINT is not one more. On Ctrl-C a terminal tells all processes in its foreground, and then one that
has started others (uvicorn, for its workers) tells these, too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Literal, Protocol

import anyio

from allswell._client import AsyncClient
from allswell._report import CloseReport
from allswell._signals import receive_signals
from allswell._tasks import current_host

_SIGNALS = (signal.SIGTERM,)

#: What a block raises on its way out of ours, and is raised as it is: a task group would put it in a group.
_RAISED = (Exception, KeyboardInterrupt, SystemExit)


class Closes(Protocol):
    """What can be closed within a time: a client, a pool, a transport of ours."""

    async def aclose(self, timeout: float | None = None) -> object:
        """Close; called again with a shorter time, hurry."""


class _Heard:
    """The signals that have come."""

    def __init__(self) -> None:
        self._any = False
        self._may_echo = False

    def add(self, number: int) -> Literal["first", "echo", "again"]:
        """Take a signal. Return what it is beside those before it."""
        if not self._any:
            self._any, self._may_echo = True, number == signal.SIGINT
            return "first"
        echo, self._may_echo = self._may_echo and number == signal.SIGTERM, False
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

    In an application that a server runs, use :func:`lifespan`. This function would take the signal from the server.

    :param client: an :class:`AsyncClient` or a :class:`ConnectionPool`.
    :param signals: SIGTERM, unless you say otherwise. Their handlers are this function's while the block runs, and
        then those that were there before.
    :param grace: seconds that the close may take; the client's own grace by default.
    :param cancel: ``False``: the block is not cancelled, and ends when it likes.
    :raises ValueError: there is no signal.
    :raises RuntimeError: in another thread than the main one, which alone has handlers of signals.
    """
    if not signals:
        raise ValueError("drain_on_signal needs a signal")
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

    The client is made when the application starts, and is ``request.state.client`` in each endpoint. Signals are the
    server's: told to stop, it takes no more requests and finishes those that it has. Then the client says its goodbyes.
    A second signal hurries: what the client has in flight is cut, so that the endpoints that wait for it fail. (On
    Ctrl-C a worker is told by the terminal and by its parent. That is one signal.)

    :param make: makes the client.
    :param name: its name in the state of the lifespan.
    :param grace: seconds that the close may take; the client's own grace by default.
    :param within: seconds from the first signal after which the second is not waited for; by default, the server
        decides how long it waits.
    :param signals: those that are overheard, where the server has handlers of them in the main thread.
    :param on_close: called once with how everything ended, as soon as the client has closed, whatever made it close.
    :return: what Starlette and FastAPI take as ``lifespan``: called with the application, an async context manager.
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
            async with client, anyio.create_task_group() as tasks:

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
        finally:
            report()
        if failed is not None:
            raise failed

    return life


@contextmanager
def _overheard(signals: Sequence[signal.Signals], told: Callable[[int], None]) -> Iterator[None]:
    """Have ``told`` called in the event loop with each of these signals. Their handlers go on as they are.

    A signal that has no handler (in Python) is left alone: to have one would change what it does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread may set handlers
        return
    host, ours, over = current_host(), {}, False

    def hear(number: int) -> None:
        if not over:  # the handler may have been called just before, and one that came after ours calls it for ever
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
