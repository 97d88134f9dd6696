"""One exchange: a request and its response, between the task that wants it and the task that drives its connection.

Theory of operation. The requester calls; the connection's task delivers (the methods that begin with ``on_``). What is
delivered waits here until the requester takes it: the head, pieces of body, trailers, or an error, which comes only
after the pieces that arrived before it. Everything but waiting is synchronous, so nothing can be half done when
the requester is cancelled: a wait that is cancelled abandons the exchange, and that is one synchronous call.

A body that fits the first write goes out with the head. Any other is uploaded by a task of its own, so that an early
response (RFC 9110 §9.3, 413 and the like) reaches the requester while it is still uploading, and the rest can be
dropped. Timeouts are instants that the connection's one alarm watches; no wait costs a cancel scope.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from allswell._clock import monotonic
from allswell._config import Timeouts
from allswell._connection.informational import Informational
from allswell._deadline import Deadline
from allswell._errors import (
    AllswellError,
    NotProcessed,
    Party,
    RemoteProtocolError,
    Timeout,
    TimeoutPhase,
    TransportError,
)
from allswell._halves import Halves, Receive, ReceiveHalf, Send, SendHalf, wants_rest
from allswell._messages import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    from allswell._connection.connection import Connection

#: HTTP datagrams that may wait to be taken.
_DATAGRAMS = 1024

#: Seconds until what has come is looked at again, where a turn did not suffice to see it all.
_LOOK_AGAIN = 0.01

#: Pieces sent in a row without waiting, before other tasks (the one that reads the response) get their turn.
_SENDS_IN_A_ROW = 8

#: Pieces of a body below this size are put together while they wait: each costs some 100 bytes besides what is in it,
#: and windows count only that.
_SMALL = 1024

TrailerSource = Headers | Callable[[], Headers] | None
InformationalHook = Callable[[ResponseHead], Awaitable[None]]


class FallenSilent(Exception):
    """The peer answers nothing any more, not even on QUIC's own level. It may yet."""


class _UploadStopped(Exception):
    """The rest of the body is not wanted any more."""


class Exchange(Halves):
    """One request and its response. Made by :meth:`Connection.open`.

    :ivar number: the backend's name for it.
    :ivar connection: the one that carries it.
    :ivar label: the origin, as errors name it; the connection may have been made for another.
    :ivar informational: the 1xx responses so far (of many, the newest).
    :ivar trailers: the response's trailer section, once its body was read.
    :ivar buffered: bytes that have come and were not read yet.
    :ivar uploading: a task takes the request's body from the caller's iterator.
    """

    __slots__ = (
        "_chunks",
        "_continue",
        "_datagrams",
        "_error",
        "_head",
        "_informational",
        "_raised",
        "_read_at",
        "_ready",
        "_room",
        "_silence",
        "_timeouts",
        "_total_at",
        "_unsent",
        "_upload_scope",
        "_write_at",
        "buffered",
        "connection",
        "informational",
        "label",
        "number",
        "request",
        "trailers",
        "uploading",
    )

    def __init__(
        self, connection: Connection, request: RequestHead, label: str, timeouts: Timeouts, total_at: float
    ) -> None:
        super().__init__(SendHalf(), ReceiveHalf(request.method))
        host = connection.host
        self.label = label
        self.connection = connection
        self.request = request
        self.number = 0
        self.informational: list[ResponseHead] = []
        self._informational: Informational | None = None
        self.trailers: Headers = []
        self.buffered = 0
        self.uploading = False
        self._timeouts = timeouts
        self._total_at = total_at
        self._head: ResponseHead | None = None
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._datagrams: list[bytes] | None = None
        self._error: BaseException | None = None
        self._raised: BaseException | None = None  # what the request's body raised
        self._ready = host.signal()  # the requester's: something was delivered
        self._room = host.signal()  # the uploader's: more may be sent
        self._read_at = math.inf
        self._write_at = math.inf
        self._unsent = 0  # when the wait for room began
        self._continue = False
        self._silence = False
        self._upload_scope: anyio.CancelScope | None = None

    # For the requester: the response

    async def response(self, on_informational: InformationalHook | None = None) -> ResponseHead:
        """The final response's head.

        :param on_informational: awaited with each 1xx response (RFC 9110 §15.2), in order, as it comes.
        :raises NotProcessed: when the peer did not process the request.
        :raises FallenSilent: when the peer has; the exchange goes on, and this can be called again.
        :raises AllswellError: when there will be no response.
        """
        while True:
            if self._informational is not None:
                await self._tell(self._informational, on_informational)
            if self._head is not None:
                return self._head
            if self._error is not None:
                raise self._error
            if self._silence:
                self._silence = False
                raise FallenSilent
            await self._wait_ready()

    async def _tell(self, informational: Informational, hook: InformationalHook | None) -> None:
        if hook is None:
            informational.no_hook()
            return
        while (head := informational.take()) is not None:
            await self._guarded(hook(head))

    @property
    def answered(self) -> bool:
        """Whether the final response's head has come."""
        return self._head is not None

    @property
    def tunnel(self) -> bool:
        """Whether it has become a pair of raw byte streams (RFC 9110 §7.8, §9.3.6)."""
        return self.receiving.tunnel

    @property
    def lingers(self) -> bool:
        """Whether it is a tunnel whose end we have sent: what is left is the peer's."""
        return self.receiving.tunnel and self.sending.state is Send.ENDED

    async def settled(self) -> None:
        """Wait until it has, or never will, or the peer that had fallen silent is heard again."""
        while self._head is None and self._error is None and self.connection.silent:
            await self._wait_ready()

    async def receive(self) -> bytes:
        """The next piece of the response's body; ``b""`` at its end, when ``trailers`` are there too.

        :raises AllswellError: when the body ends before it is complete.
        """
        while (data := self.receive_nowait()) is None:
            await self._wait_ready()
        return data

    def receive_nowait(self) -> bytes | None:
        """The same without waiting; ``None`` when nothing has come."""
        if self._chunks:
            data, credit = self._chunks.popleft()
            self.buffered -= len(data)
            self.connection.consumed(self, credit)
            return data
        if self._error is not None:
            raise self._error
        return b"" if self.receiving.state is Receive.ENDED else None

    @property
    def all_read(self) -> bool:
        """Whether the response is complete, and the requester has taken all of it."""
        return self.receiving.state is Receive.ENDED and not self._chunks

    @property
    def needs_requester(self) -> bool:
        """Whether something goes on that must end when nobody waits for it any more."""
        return self._error is None and not self.tunnel and (self.uploading or not self.all_read)

    async def readable(self) -> None:
        """Wait until :meth:`receive_nowait` is worth a call. Spurious returns are allowed."""
        if not self._chunks and self._error is None and not self.receiving.over and not self._datagrams:
            await self._wait_ready()

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Have a function called whenever :meth:`receive_nowait` is worth a call, in place of waiting.

        See :meth:`Carrier.listen`.
        """
        return self._ready.listen(function)

    async def finish(self) -> None:
        """Wait for the upload that goes on behind a response that is complete, as long as it makes progress.

        It makes none when the peer takes nothing within the write timeout, or the caller's iterator gives nothing
        within the read timeout: then it is stopped, and the response stands. An iterator that was stopped has as long
        to end: it must not go on after its caller did.

        :raises BaseException: what the caller's iterator raised.
        """
        while self.uploading and self.sending.open:
            if self._write_at == math.inf and self._timeouts.read is not None:
                self._read_at = monotonic() + self._timeouts.read
                self.connection.watch(self._read_at)
            await self._guarded(self._ready.wait())
        self._read_at = math.inf
        if self.uploading:  # the exchange is over, so the alarm looks at it no more
            with Deadline.after(self._timeouts.read).scope():
                while self.uploading:
                    await self._ready.wait()
        if self._raised is not None:
            raise self._raised

    def take_datagrams(self) -> list[bytes]:
        """The HTTP datagrams that have come (RFC 9297 §2.1)."""
        datagrams, self._datagrams = self._datagrams, None
        return datagrams or []

    def abandon(self) -> None:
        """Take no more of it: what is unread is dropped. Synchronous and idempotent; does nothing once it is over."""
        if not self.all_read:
            # A later read must fail: neither hang nor look like the end of the body.
            self._error = self._error or TransportError(
                f"the response of {self.label} was closed before its body was read",
                operation="read",
                by="us",
            )
            self._ready.set()
        self._stop_upload("us")
        self.receiving.move(Receive.FAILED)
        self.connection.abandon(self)
        self._chunks.clear()
        self.buffered = 0

    async def _wait_ready(self) -> None:
        if self.tunnel:
            await self._ready.wait()  # raw bytes: how long to wait, and what then, is up to the caller
            return
        # While we upload, silence is the peer listening: the read timeout begins when it has heard all.
        if not (self.uploading and self.sending.open) and self._timeouts.read is not None:
            self._read_at = monotonic() + self._timeouts.read
            self.connection.watch(self._read_at)
        await self._guarded(self._ready.wait())
        self._read_at = math.inf

    async def _guarded(self, step: Awaitable[None]) -> None:
        try:
            await step
        except BaseException:
            self.abandon()
            raise

    # For the requester: the request's body

    def start_upload(self, body: AsyncIterable[bytes], trailers: TrailerSource = None) -> None:
        """Send the body from a task of its own, which sees the caller's context variables.

        Whatever the caller's iterator raises is raised where the response is waited for.
        """
        self.uploading = True
        name = f"allswell upload to {self.label}"
        self.connection.host.spawn(self._upload, body, trailers, name=name, context=copy_context())

    async def send(self, data: bytes, *, end: bool = False, trailers: Headers | None = None) -> None:
        """Send a piece of the request's body, waiting for room.

        :raises LocalProtocolError: when the body contradicts its head.
        :raises AllswellError: when the exchange is over.
        """
        offset = 0
        while offset < len(data) or end:
            window = self.connection.send_window(self)
            if self._error is not None:
                raise self._error
            if not self.sending.open:
                if self.tunnel:
                    raise TransportError(f"the tunnel to {self.label} has ended", operation="write")
                raise _UploadStopped
            if offset < len(data) and window <= 0:
                if self.tunnel and self.receiving.over:
                    # The peer ended its half. Nothing reads any more that would notice the end of the rest.
                    raise TransportError(f"the tunnel to {self.label} has ended", operation="write")
                if not self.tunnel and self._timeouts.write is not None:
                    self._unsent = self.connection.unsent(self)
                    self._write_at = monotonic() + self._timeouts.write
                    self.connection.watch(self._write_at)
                    if self.receiving.state is Receive.ENDED:
                        self._read_at = math.inf  # of :meth:`finish`, which waits for the peer now
                await self._room.wait()
                self._write_at = math.inf
                continue
            piece = data if len(data) <= window and not offset else data[offset : offset + window]
            offset += len(piece)
            last = end and offset >= len(data)
            self.connection.send_body(self, piece, end=last, trailers=trailers if last else None)
            if self.receiving.state is Receive.ENDED:
                self._ready.set()  # :meth:`finish` sees progress
            if last:
                return

    def room(self) -> int:
        """How much of our half of a tunnel may be sent now.

        :raises AllswellError: when there never will be room again.
        """
        if self._error is not None:
            raise self._error
        if not self.sending.open:
            raise TransportError(f"the tunnel to {self.label} has ended", operation="write")
        return self.connection.send_window(self)

    async def wait_room(self) -> None:
        """Wait until :meth:`room` is worth another call."""
        await self._room.wait()

    def end_our_half(self) -> None:
        """End our half of a tunnel."""
        if self.sending.open:
            self.connection.send_body(self, b"", end=True, trailers=None)

    async def end_tunnel(self) -> bool:
        """End our half of a tunnel, then drop what comes until the peer has ended its own; whether it has.

        In HTTP/1.1 a tunnel is the connection: there is no end of it to wait for before the layers below say goodbye.
        """
        self.end_our_half()
        while self.connection.holds(self):
            while self.receive_nowait():
                pass
            if not self.receiving.over:
                await self._ready.wait()
        return self.receiving.state is Receive.ENDED

    async def _upload(self, body: AsyncIterable[bytes], trailers: TrailerSource) -> None:
        pieces = aiter(body)
        try:
            try:
                with Deadline().scope() as self._upload_scope:
                    if self.sending.open:  # nobody stopped us before we began
                        await self._send_all(pieces, trailers)
            finally:
                self._upload_scope = None
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()
        except _UploadStopped:
            pass  # the exchange goes on without the rest
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            # The iterator waited for what was cancelled; or the event loop ends.
            self.fail(TransportError(f"the upload to {self.label} was cancelled", operation="write", by="us"))
            raise
        except BaseException as error:  # noqa: BLE001 - the caller's iterator may raise anything: it goes to the caller
            self._raised = error
            if self._error is None or not isinstance(error, Exception):  # (who wants the program to end is heard)
                self._error = error
            self.fail(error)
        finally:
            self.uploading = False
            self._ready.set()  # the read timeout begins

    async def _send_all(self, pieces: AsyncIterator[bytes], trailers: TrailerSource) -> None:
        if any(name.lower() == b"expect" for name, _ in self.request.headers):
            await self._expect_continue()
        count = 0
        async for piece in pieces:
            await self.send(piece)
            count += 1
            if count % _SENDS_IN_A_ROW == 0:  # a source and a peer that never make us wait: others wait
                await anyio.lowlevel.checkpoint()
        await self.send(b"", end=True, trailers=trailers() if callable(trailers) else trailers)

    async def _expect_continue(self) -> None:
        """Wait for 100 (Continue), but not for ever (RFC 9110 §10.1.1)."""
        patience = self.connection.config.expect_continue_timeout
        with Deadline.after(patience).scope():
            while not self._continue:
                await self._room.wait()
                if not self.sending.open:
                    raise _UploadStopped

    def _stop_upload(self, by: Party) -> None:
        self.sending.stop(by)
        if self._upload_scope is not None:
            self._upload_scope.cancel()
        self._room.set()
        self._ready.set()  # the read timeout begins

    # For the connection's task: deliveries

    def on_first_in_line(self) -> None:
        """Those that were pipelined before it were answered: the read timeout begins."""
        if self._read_at != math.inf:
            assert self._timeouts.read is not None
            self._read_at = monotonic() + self._timeouts.read
            self.connection.watch(self._read_at)

    def on_informational(self, head: ResponseHead) -> None:
        """A 1xx response came."""
        if self._informational is None:
            self._informational = Informational(self.informational)
        if not self._informational.add(head):
            self.fail(RemoteProtocolError(f"{self.label} sent more informational responses than are read"))
            return
        self._read_at = math.inf
        self._continue = self._continue or head.status == 100
        self._room.set()
        self._ready.set()

    def on_response(self, head: ResponseHead, *, tunnel: bool) -> None:
        """The final response's head came."""
        self._head = head
        self._read_at = math.inf  # what was waited for has come, though who waits may have its turn much later
        self._continue = True
        if tunnel:
            self.receiving.move(Receive.TUNNEL)
            self.sending.move(Send.BODY)
        else:
            self.receiving.move(Receive.BODY)
            if not wants_rest(head.status):
                self._stop_upload("us")
        if self.sending.open:
            self._room.set()
        self._ready.set()

    def on_body(self, data: bytes, credit: int) -> None:
        """A piece of the response's body came."""
        chunks = self._chunks
        if chunks and len(data) < _SMALL and len(chunks[-1][0]) < _SMALL:
            before, freed = chunks[-1]
            chunks[-1] = (before + data, freed + credit)
        else:
            chunks.append((data, credit))
        self.buffered += len(data)
        self._read_at = math.inf
        self._ready.set()

    def on_datagram(self, payload: bytes) -> None:
        """An HTTP datagram came. When too many wait already it is lost, as on any network."""
        if self._datagrams is None:
            self._datagrams = []
        if len(self._datagrams) < _DATAGRAMS:
            self._datagrams.append(payload)
            self._ready.set()

    def on_complete(self, trailers: Headers) -> None:
        """The response is complete."""
        self.receiving.move(Receive.ENDED)
        self._read_at = math.inf
        self.trailers = trailers
        self._ready.set()

    def on_room(self) -> None:
        """More may be sent."""
        self._write_at = math.inf
        self._room.set()

    def on_upload_refused(self) -> None:
        """The peer wants no more of the request's body."""
        self._stop_upload("peer")

    def on_error(self, error: BaseException) -> None:
        """The exchange is over. Pieces that came before are still read first."""
        if self._error is None and self.receiving.state is not Receive.ENDED:
            self._error = self._told(error) if isinstance(error, AllswellError) else error
        self.receiving.move(Receive.FAILED)
        self._stop_upload(error.by if isinstance(error, AllswellError) else "us")
        self._ready.set()

    def _told(self, error: AllswellError) -> AllswellError:
        """As the requester is told of it: by name, and with what the peer had said before of why it leaves.

        A server that has said GOAWAY with an error may well fall silent, or reset: then that was the reason.
        """
        parting = self.connection.parting_words
        error = error.named(self.label)
        return error.after(parting) if parting and error.by != "us" else error

    def on_silence(self, silent: bool) -> None:
        """The peer has fallen silent, or was heard again."""
        if self._head is None:
            self._silence = silent
            self._ready.set()

    def hang_up(self) -> None:
        """A tunnel was closed from our side: whoever still waits for its bytes learns of it."""
        self.on_error(TransportError(f"the tunnel to {self.label} was closed", operation="read", by="us"))
        self.connection.half_ended(self)

    def fail(self, error: BaseException) -> None:
        """End the exchange from our side, with this error."""
        self.on_error(error)
        self.connection.abandon(self)

    def expire(self, now: float, *, seen_all: bool) -> float:
        """Fail when a deadline has passed; else when the next one is (``inf``: none is running).

        :param seen_all: all that has come so far was taken.
        """
        total_at = math.inf if self.tunnel else self._total_at
        at = min(self._read_at, self._write_at, total_at)
        if at > now:
            return at
        phase: TimeoutPhase = "total" if total_at <= now else "write" if at == self._write_at else "read"
        if phase == "write" and self.connection.unsent(self) < self._unsent:
            # It took some of what waits to be sent, though there is no room yet for more.
            assert self._timeouts.write is not None
            self._unsent = self.connection.unsent(self)
            self._write_at = now + self._timeouts.write
            return min(self._read_at, self._write_at, total_at)
        if phase == "read" and not seen_all:
            # What is waited for may be behind what others are sent. The time that this may take is bounded, too.
            assert self._timeouts.read is not None
            if now < self._read_at + self._timeouts.read:
                return now + _LOOK_AGAIN
        self._write_at = self._read_at = math.inf
        if self.receiving.state is Receive.ENDED:
            # Only our upload goes on, and time is up for it.
            self._stop_upload("us")
            self.connection.abandon(self)
            return math.inf
        seconds = {"total": self._timeouts.total, "write": self._timeouts.write, "read": self._timeouts.read}[phase]
        did = {"total": "did not finish", "write": "took nothing of the request", "read": "sent nothing"}[phase]
        error = Timeout(f"{self.label} {did} within {seconds:g} s", phase=phase)
        # Behind others in a pipeline it is not its own response that is late: it goes elsewhere.
        elsewhere = phase == "read" and self.connection.in_line(self)
        self.fail(NotProcessed(error, proven=False) if elsewhere else error)
        return math.inf
