"""The signals of the process as an async iterator, on every event loop."""

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
    """Like :func:`anyio.open_signal_receiver`, but it also works for asyncio on Windows, and in nested blocks.

    At the end the handlers from before are set again. (asyncio would set none. So the end of an inner block would leave
    the outer block without its handlers.)

    :raises RuntimeError: in any thread but the main one, because only that one may set handlers of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("handlers of signals can be set in the main thread only")
    host = current_host()
    send, receive = anyio.create_memory_object_stream[signal.Signals](10)

    def handle(number: int, _: object) -> None:
        host.call_soon_threadsafe(partial(deliver, signal.Signals(number)))  # this wakes the event loop

    def deliver(number: signal.Signals) -> None:
        with suppress(anyio.WouldBlock, anyio.ClosedResourceError):  # ten already wait; the block has ended
            send.send_nowait(number)

    with send, receive, ExitStack() as before:
        for number in signals:
            # signal.signal returns None if the handler was not set from Python. That one cannot be set again.
            before.callback(signal.signal, number, signal.signal(number, handle) or signal.SIG_DFL)
        yield receive
