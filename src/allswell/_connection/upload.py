"""The upload of a request's body: from the caller's iterator to the connection, by a task of its own.

A body that fits the first write goes out with the head, without any of this. A task uploads any other. So an early
response (RFC 9110 §9.3, 413 and the like) reaches the requester during the upload, and the rest can be dropped. What
the caller's iterator raises is raised where the response is waited for.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextvars import copy_context
from typing import Protocol

import anyio
import anyio.lowlevel

from allswell._clock import monotonic
from allswell._config import Timeouts
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._halves import Receive, ReceiveHalf, SendHalf
from allswell._messages import Headers, RequestHead
from allswell._tasks import TaskHost

#: How many pieces are sent without a wait, before other tasks (the one that reads the response) have their turn.
_SENDS_IN_A_ROW = 8

TrailerSource = Headers | Callable[[], Headers] | None


class Uploads(Protocol):
    """The calls of an upload to its exchange."""

    label: str
    request: RequestHead
    timeouts: Timeouts
    sending: SendHalf
    receiving: ReceiveHalf

    @property
    def error(self) -> BaseException | None:
        """The error that the exchange has failed with."""

    def send_window(self) -> int:
        """How many bytes of body may be sent now."""

    def send_body(self, data: bytes | memoryview, *, end: bool = False, trailers: Headers | None = None) -> None:
        """Send a piece, at most :meth:`send_window` bytes."""

    def unsent(self) -> int:
        """How many unsent bytes keep it from sending more."""

    def on_upload_waits(self, until: float) -> None:
        """The upload waits for the peer to take more."""

    def on_upload_moved(self) -> None:
        """The upload has sent something, or is over."""

    def on_upload_raised(self, error: BaseException) -> None:
        """The caller's iterator has raised this."""

    def fail(self, error: BaseException) -> None:
        """End the exchange with this error."""


class _UploadStopped(Exception):
    """The rest of the body is no longer wanted."""


class Upload:
    """One upload.

    :param host: runs its task.
    :param continue_timeout: how many seconds to wait for 100 (Continue), if the request expects it.
    :param continues: set when 100 (Continue), or the response, has come.
    :ivar running: whether the caller's iterator has not ended yet.
    :ivar raised: the error of the caller's iterator.
    :ivar write_at: the deadline for the peer to take something, while there is no room for more; else ``inf``.
    """

    __slots__ = (
        "_continue",
        "_continue_timeout",
        "_exchange",
        "_host",
        "_room",
        "_scope",
        "_unsent",
        "raised",
        "running",
        "write_at",
    )

    def __init__(self, exchange: Uploads, host: TaskHost, continue_timeout: float | None, *, continues: bool) -> None:
        self._exchange = exchange
        self._host = host
        self._room = host.signal()  # more may be sent
        self._scope: anyio.CancelScope | None = None
        self._unsent = 0  # when the wait for room began
        self._continue_timeout = continue_timeout
        self._continue = continues
        self.running = False
        self.raised: BaseException | None = None
        self.write_at = math.inf

    def start(self, body: AsyncIterable[bytes | memoryview], trailers: TrailerSource) -> None:
        """Send the body from a task of its own, which sees the caller's context variables."""
        self.running = True
        name = f"allswell upload to {self._exchange.label}"
        self._host.spawn(self._run, body, trailers, name=name, context=copy_context())

    def stop(self) -> None:
        """The rest is not wanted: stop."""
        if self._scope is not None:
            self._scope.cancel()
        self._room.set()

    def on_room(self) -> None:
        """More may be sent, by this upload or by others."""
        if self.write_at < math.inf and self._exchange.send_window() > 0:
            self.write_at = math.inf
        self._room.set()

    def on_continue(self) -> None:
        """The peer has said that it wants the body."""
        self._continue = True
        self._room.set()

    def write_again_at(self, now: float) -> float:
        """The new deadline for the peer, if it has taken some of the unsent bytes; else ``inf``.

        (There may be no room for more yet.)
        """
        before, self._unsent = self._unsent, self._exchange.unsent()
        if self._unsent >= before:
            return math.inf
        assert self._exchange.timeouts.write is not None
        self.write_at = now + self._exchange.timeouts.write
        return self.write_at

    async def _run(self, body: AsyncIterable[bytes | memoryview], trailers: TrailerSource) -> None:
        exchange, pieces = self._exchange, aiter(body)
        try:
            try:
                with Deadline().scope() as self._scope:
                    if exchange.sending.open:  # it was not stopped before it began
                        await self._send_all(pieces, trailers)
            finally:
                self._scope = None
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()
        except _UploadStopped:
            pass  # the exchange goes on without the rest
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            # The iterator waited for something that was cancelled. Or the event loop ends.
            exchange.fail(TransportError(f"the upload to {exchange.label} was cancelled", operation="write", by="us"))
            raise
        except BaseException as error:  # noqa: BLE001 - the caller's iterator may raise anything: it goes to the caller
            self.raised = error
            exchange.on_upload_raised(error)
        finally:
            self.running = False
            self.write_at = math.inf
            exchange.on_upload_moved()

    async def _send_all(self, pieces: AsyncIterator[bytes | memoryview], trailers: TrailerSource) -> None:
        if any(name.lower() == b"expect" for name, _ in self._exchange.request.headers):
            await self._wait_for_continue()
        count = 0
        async for piece in pieces:
            await self.send(piece)
            count += 1
            if count % _SENDS_IN_A_ROW == 0:  # neither source nor peer makes it wait, so others get a turn
                await anyio.lowlevel.checkpoint()
        await self.send(b"", end=True, trailers=trailers() if callable(trailers) else trailers)

    async def _wait_for_continue(self) -> None:
        """Wait for 100 (Continue), for a limited time (RFC 9110 §10.1.1)."""
        with Deadline.after(self._continue_timeout).scope():
            while not self._continue:
                await self._room.wait()
                if not self._exchange.sending.open:
                    raise _UploadStopped

    async def send(self, data: bytes | memoryview, *, end: bool = False, trailers: Headers | None = None) -> None:
        """Send a piece of the request's body, and wait for room.

        :raises LocalProtocolError: when the body contradicts its head.
        :raises AllswellError: when the exchange is over.
        """
        exchange, offset = self._exchange, 0
        while offset < len(data) or end:
            window = exchange.send_window()
            if exchange.error is not None:
                raise exchange.error
            if not exchange.sending.open:
                raise _UploadStopped
            if offset < len(data) and window <= 0:
                if exchange.timeouts.write is not None and self.write_at == math.inf:
                    self._unsent = exchange.unsent()
                    self.write_at = monotonic() + exchange.timeouts.write
                    exchange.on_upload_waits(self.write_at)
                await self._room.wait()
                continue
            self.write_at = math.inf
            piece = data if len(data) <= window and not offset else data[offset : offset + window]
            offset += len(piece)
            last = end and offset >= len(data)
            exchange.send_body(piece, end=last, trailers=trailers if last else None)
            if exchange.receiving.state is Receive.ENDED:
                exchange.on_upload_moved()
            if last:
                return
