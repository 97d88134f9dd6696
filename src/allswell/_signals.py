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

    The handlers that were there before are put back. (asyncio would leave none, so one block in another would leave the
    outer one without its own.)

    :raises RuntimeError: in another thread than the main one, which alone has handlers of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("only the main thread can have handlers of signals")
    host = current_host()
    send, receive = anyio.create_memory_object_stream[signal.Signals](10)

    def handle(number: int, _: object) -> None:
        host.call_soon_threadsafe(partial(deliver, signal.Signals(number)))  # which wakes the event loop

    def deliver(number: signal.Signals) -> None:
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError):  # ten are enough; it is over
            send.send_nowait(number)

    with send, receive, ExitStack() as before:
        for number in signals:
            # (None: it was not set from Python, and cannot be put back.)
            before.callback(signal.signal, number, signal.signal(number, handle) or signal.SIG_DFL)
        yield receive
