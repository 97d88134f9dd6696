"""Signals of the process, as they come, on every event loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import anyio

from allswell._tasks import current_host


@contextmanager
def receive_signals(*signals: signal.Signals) -> Iterator[AsyncIterator[signal.Signals]]:
    """What :func:`anyio.open_signal_receiver` does, also for asyncio on Windows, whose event loop takes no handlers.

    :raises RuntimeError: in another thread than the main one, which alone has handlers of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only the main thread can have handlers of signals")
    with ExitStack() as stack:
        try:
            received = stack.enter_context(anyio.open_signal_receiver(*signals))
        except NotImplementedError:
            received = stack.enter_context(_handled(signals))
        yield received


@contextmanager
def _handled(signals: tuple[signal.Signals, ...]) -> Iterator[AsyncIterator[signal.Signals]]:
    host = current_host()
    send, receive = anyio.create_memory_object_stream[signal.Signals](10)

    def handle(number: int, _: object) -> None:
        host.call_soon_threadsafe(partial(deliver, signal.Signals(number)))  # which wakes the event loop

    def deliver(number: signal.Signals) -> None:
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError):  # ten are enough; it is over
            send.send_nowait(number)

    with send, receive, ExitStack() as before:
        for number in signals:
            before.callback(signal.signal, number, signal.signal(number, handle))
        yield receive
