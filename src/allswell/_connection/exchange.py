"""One exchange: a request and its response, between the task that wants it and the connection that carries it.

Theory of operation. The requester's task calls. The connection delivers, by the methods that begin with ``on_``. What
is delivered waits here until the requester takes it: the head, pieces of the body, trailers, or an error. An error is
raised after the pieces that came before it were taken. Everything but waiting is synchronous. So nothing can be half
done when the requester is cancelled: a wait that is cancelled abandons the exchange, in one synchronous call.

The exchange knows its connection by a small protocol (:class:`Carries`). A body that does not go out with the head is
an :class:`~allswell._connection.upload.Upload`. Raw bytes go through a :class:`~allswell._connection.tunnel.Tunnel`.
Timeouts are instants, which the connection's one alarm watches. So no wait needs a cancel scope.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Generic, Protocol, Self, TypeVar

from allswell._clock import monotonic
from allswell._config import Timeouts
from allswell._connection.body import ReceivedBody
from allswell._connection.informational import Informational
from allswell._connection.parting import Parting
from allswell._connection.tunnel import Tunnel
from allswell._connection.upload import TrailerSource, Upload
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
from allswell._fields import announced_length
from allswell._halves import (
    RECEIVE_BODY,
    RECEIVE_ENDED,
    RECEIVE_FAILED,
    RECEIVE_TUNNEL,
    SEND_BODY,
    SEND_ENDED,
    Halves,
    ReceiveHalf,
    SendHalf,
    wants_rest,
)
from allswell._messages import Headers, RequestHead, ResponseHead
from allswell._priority import priority_value
from allswell._tasks import TaskHost

#: How many HTTP datagrams may wait to be taken.
_DATAGRAMS = 1024

#: If a turn was too short to take all that has come, the deadline is looked at again after so many seconds.
_LOOK_AGAIN = 0.01

InformationalHook = Callable[[ResponseHead], Awaitable[None]]


class FallenSilent(Exception):
    """The peer has stopped answering, even QUIC's own probes. It may answer later."""


class Carries(Protocol):
    """What an exchange asks of the connection that carries it.

    :ivar host: the event loop.
    :ivar silent: whether the peer has stopped answering probes.
    :ivar parting: what the peer has said of its leaving.
    """

    host: TaskHost
    silent: bool
    parting: Parting

    @property
    def writable(self) -> bool:
        """Whether no write has failed."""

    @property
    def expect_continue_timeout(self) -> float | None:
        """How many seconds an upload waits for 100 (Continue)."""

    def watch(self, at: float) -> None:
        """Have :meth:`Exchange.expire` called, at this instant at the latest."""

    def holds(self, exchange: Exchange[Self]) -> bool:
        """Whether it is under way."""

    def in_line(self, exchange: Exchange[Self]) -> bool:
        """Whether others have to be answered before it (pipelining)."""

    def unsent(self, exchange: Exchange[Self]) -> int:
        """Bytes that keep the exchange from sending more."""

    def send_window(self, exchange: Exchange[Self]) -> int:
        """Bytes of body that may be sent now."""

    def send_body(
        self, exchange: Exchange[Self], data: bytes | memoryview, *, end: bool, trailers: Headers | None
    ) -> None:
        """Send a piece of body, at most :meth:`send_window` bytes."""

    def half_ended(self, exchange: Exchange[Self]) -> None:
        """We have ended one of its halves."""

    def consumed(self, exchange: Exchange[Self], credit: int) -> None:
        """The application has read content of this credit."""

    def reprioritize(self, exchange: Exchange[Self], priority: bytes) -> None:
        """Tell the peer that its response has another priority now."""

    def abandon(self, exchange: Exchange[Self]) -> None:
        """The requester takes no more of it."""

    def stop_lingering(self, exchange: Exchange[Self]) -> None:
        """Wait no longer for the peer's end of a tunnel."""


On = TypeVar("On", bound=Carries)


class Exchange(Halves, Generic[On]):
    """One request and its response. Made by :meth:`Connection.open`.

    :ivar number: by which the backend knows it.
    :ivar connection: the connection that carries it.
    :ivar label: the origin, as errors name it. The connection may have been made for another.
    :ivar informational: the 1xx responses that have come; if there were many, the newest.
    :ivar trailers: the response's trailer section, once its body was read.
    :ivar body: what has come of the response's body.
    :ivar timeouts: the request's.
    :ivar error: what it has failed with.
    :ivar upload: the request's body, if it did not go out with the head.
    :ivar tunnel: its two streams of raw bytes, if it has become a tunnel (RFC 9110 §7.8, §9.3.6).
    :ivar dropped_datagrams: how many HTTP datagrams were dropped, because too many waited to be taken.
    :ivar hung_up: whether it is a tunnel that our side has closed. Only the peer's end is still to come.
    """

    __slots__ = (
        "_datagrams",
        "_head",
        "_informational",
        "_read_at",
        "_ready",
        "_silence",
        "_total_at",
        "body",
        "connection",
        "dropped_datagrams",
        "error",
        "hung_up",
        "informational",
        "label",
        "number",
        "request",
        "timeouts",
        "trailers",
        "tunnel",
        "upload",
    )

    def __init__(self, connection: On, request: RequestHead, label: str, timeouts: Timeouts, total_at: float) -> None:
        super().__init__(SendHalf(), ReceiveHalf(request.method))
        self.label = label
        self.connection = connection
        self.request = request
        self.number = 0
        self.timeouts = timeouts
        self.informational: list[ResponseHead] = []
        self.body = ReceivedBody()
        self.trailers: Headers = []
        self.error: BaseException | None = None
        self.upload: Upload | None = None
        self.tunnel: Tunnel | None = None
        self.hung_up = False
        self._informational: Informational | None = None
        self._total_at = total_at
        self._head: ResponseHead | None = None
        self._datagrams: list[bytes] | None = None
        self.dropped_datagrams = 0
        self._ready = connection.host.signal()  # the requester's: something was delivered
        self._read_at = math.inf
        self._silence = False

    # For the requester: the response

    async def response(self, on_informational: InformationalHook | None = None) -> ResponseHead:
        """The final response's head.

        :param on_informational: awaited with each 1xx response (RFC 9110 §15.2), in order, as it comes.
        :raises NotProcessed: if the peer did not process the request.
        :raises FallenSilent: if the peer has fallen silent. The exchange goes on, and this can be called again.
        :raises AllswellError: if there will be no response.
        """
        while True:
            if self._informational is not None:
                await self._tell(self._informational, on_informational)
            if self._head is not None:
                return self._head
            if self.error is not None:
                raise self.error
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
    def lingers(self) -> bool:
        """Whether it is a tunnel whose end we have sent, or that we have closed. The peer has to end the rest."""
        return self.hung_up or (self.tunnel is not None and self.sending.state is SEND_ENDED)

    @property
    def uploading(self) -> bool:
        """Whether the request's body is still taken from the caller's iterator."""
        return self.upload is not None and self.upload.running

    async def settled(self) -> None:
        """Wait until the head has come, or never will, or a peer that had fallen silent is heard again."""
        while self._head is None and self.error is None and self.connection.silent:
            await self._wait_ready()

    async def receive(self) -> bytes:
        """The next piece of the response's body; ``b""`` at its end. Then ``trailers`` have come, too.

        :raises AllswellError: if the body ends before it is complete.
        """
        while (data := self.receive_nowait()) is None:
            await self._wait_ready()
        return data

    async def receive_whole(self) -> bytes:
        """The rest of the body, in one. It is put together as it comes, and the requester wakes once.

        :raises AllswellError: if the body ends before it is complete.
        """
        body = self.body
        while self.receiving.state is not RECEIVE_ENDED:
            if self.error is not None:
                raise self.error
            if body.whole is None:
                announced = None if self._head is None else announced_length(self._head.headers)
                body.collect(self._take_all(), announced or 0)
            await self._wait_ready()
        if self.error is not None:
            raise self.error
        return self._take_all() if body.whole is None else body.collected()

    def take_whole(self) -> bytes | None:
        """The whole body, if all of it has come and the exchange needs nothing more; else ``None``. Do not wait."""
        if (
            self.receiving.state is not RECEIVE_ENDED
            or self.sending.open
            or self.upload is not None
            or self.error is not None
            or self.body.whole is not None
        ):
            return None
        return self._take_all()

    def _take_all(self) -> bytes:
        """All that waits to be read."""
        if not self.body.pieces:
            return b""
        data, credit = self.body.take_all()
        self.connection.consumed(self, credit)
        return data

    def receive_nowait(self) -> bytes | None:
        """As :meth:`receive`, without waiting; ``None`` if nothing has come."""
        if self.body.pieces:
            data, credit = self.body.take()
            self.connection.consumed(self, credit)
            return data
        if self.error is not None:
            raise self.error
        return b"" if self.receiving.state is RECEIVE_ENDED else None

    @property
    def all_read(self) -> bool:
        """Whether the response is complete, and the requester has taken all of it."""
        return self.receiving.state is RECEIVE_ENDED and not self.body.pieces

    @property
    def needs_requester(self) -> bool:
        """Whether something goes on that must end once the requester is gone."""
        # (`all_read` and `uploading`, written out: every response asks for this when it is dropped)
        if self.receiving.state is RECEIVE_ENDED and not self.body.pieces:
            return self.upload is not None and self.upload.running and self.error is None and self.tunnel is None
        return self.error is None and self.tunnel is None

    async def readable(self) -> None:
        """Wait until :meth:`receive_nowait` is worth a call, or a datagram came. Spurious returns are allowed.

        It does not return at once if datagrams wait, because a reader of raw bytes never takes them.
        """
        if not self.body.pieces and self.error is None and not self.receiving.over:
            await self._wait_ready()

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Instead of waiting, have a function called whenever :meth:`receive_nowait` is worth a call.

        See :meth:`Carrier.listen`.
        """
        return self._ready.listen(function)

    async def finish(self) -> None:
        """Wait for an upload that goes on after the response is complete, as long as it makes progress.

        It makes none if the peer takes nothing within the write timeout, or the caller's iterator gives nothing within
        the read timeout. Then the upload is stopped, and the response stands. The iterator then has the read timeout
        to end, because it must not go on after its caller.

        :raises BaseException: what the caller's iterator raised.
        """
        upload = self.upload
        if upload is None:
            return
        while upload.running and self.sending.open:
            if upload.write_at == math.inf and self.timeouts.read is not None:
                self._read_at = monotonic() + self.timeouts.read
                self.connection.watch(self._read_at)
            await self._guarded(self._ready.wait())
        self._read_at = math.inf
        if upload.running:  # the exchange is over, so the alarm looks at it no more
            with Deadline.after(self.timeouts.read).scope():
                while upload.running:
                    await self._ready.wait()
        if upload.raised is not None:
            raise upload.raised

    def take_datagrams(self) -> list[bytes]:
        """The HTTP datagrams that have come (RFC 9297 §2.1)."""
        datagrams, self._datagrams = self._datagrams, None
        return datagrams or []

    def reprioritize(self, priority: str | bytes) -> None:
        """See :meth:`Response.reprioritize`."""
        self.connection.reprioritize(self, priority_value(priority))

    def abandon(self) -> None:
        """Take no more of it, and drop what is unread. Idempotent. It does nothing once the exchange is over."""
        all_read = self.all_read
        if self.hung_up or (all_read and not self.sending.open and not self.uploading):
            return
        if not all_read:
            # A later read must fail: neither hang nor look like the end of the body.
            self.error = self.error or TransportError(
                f"the response of {self.label} was closed before its body was read",
                operation="read",
                by="us",
            )
            self._ready.set()
        self._stop_upload("us")
        self.receiving.move(RECEIVE_FAILED)
        self.connection.abandon(self)
        self.body.clear()

    async def delivered(self) -> None:
        """Wait until anything is delivered, for as long as it takes."""
        await self._ready.wait()

    async def _wait_ready(self) -> None:
        if self.tunnel is not None:
            await self._ready.wait()  # raw bytes: the caller decides how long to wait
            return
        # While we upload, the peer may well say nothing. The read timeout begins when the request was sent in full.
        if self.timeouts.read is not None and not (self.sending.open and self.uploading):
            self._read_at = monotonic() + self.timeouts.read
            self.connection.watch(self._read_at)
        try:
            await self._ready.wait()
        except BaseException:
            self.abandon()
            raise
        self._read_at = math.inf

    async def _guarded(self, step: Awaitable[None]) -> None:
        try:
            await step
        except BaseException:
            self.abandon()
            raise

    # For the requester: the request's body

    def start_upload(self, body: AsyncIterable[bytes | memoryview], trailers: TrailerSource = None) -> None:
        """Send the body from a task of its own, which sees the caller's context variables.

        Whatever the caller's iterator raises is raised where the response is waited for.
        """
        self.begin_upload().start(body, trailers)

    def begin_upload(self) -> Upload:
        """The upload of a body that the caller hands over piece by piece."""
        connection = self.connection
        continues = self._head is not None or any(head.status == 100 for head in self.informational)
        self.upload = Upload(self, connection.host, connection.expect_continue_timeout, continues=continues)
        return self.upload

    # For the upload, and the tunnel

    @property
    def under_way(self) -> bool:
        """Whether at least one of its halves has not ended."""
        return self.connection.holds(self)

    def send_window(self) -> int:
        """Bytes of body that may be sent now."""
        return self.connection.send_window(self)

    def send_body(self, data: bytes | memoryview, *, end: bool = False, trailers: Headers | None = None) -> None:
        """Send a piece of body, at most :meth:`send_window` bytes.

        :raises LocalProtocolError: when it contradicts its head.
        """
        self.connection.send_body(self, data, end=end, trailers=trailers)

    @property
    def writable(self) -> bool:
        """Whether no write of its connection has failed. (The reader tells of that, but only while it reads.)"""
        return self.connection.writable

    def unsent(self) -> int:
        """How many bytes keep it from sending more."""
        return self.connection.unsent(self)

    def on_upload_waits(self, until: float) -> None:
        """The upload waits for the peer to take more."""
        self.connection.watch(until)
        if self.receiving.state is RECEIVE_ENDED:
            self._read_at = math.inf  # :meth:`finish` waits for the peer now, not for the caller's iterator

    def on_upload_moved(self) -> None:
        """The upload has sent something, or is over. So :meth:`finish` sees progress, or the read timeout begins."""
        self._ready.set()

    def on_upload_raised(self, error: BaseException) -> None:
        """The caller's iterator has raised this."""
        if self.error is None or not isinstance(error, Exception):  # (KeyboardInterrupt and the like always count)
            self.error = error
        self.fail(error)

    def _stop_upload(self, by: Party) -> None:
        self.sending.stop(by)
        if self.upload is not None:
            self.upload.stop()
        if self.tunnel is not None:
            self.tunnel.on_room()
        self._ready.set()  # the read timeout begins

    # For the connection: deliveries

    def on_first_in_line(self) -> None:
        """All that were pipelined before it have been answered. The read timeout begins."""
        if self._read_at != math.inf:
            assert self.timeouts.read is not None
            self._read_at = monotonic() + self.timeouts.read
            self.connection.watch(self._read_at)

    def on_informational(self, head: ResponseHead) -> None:
        """A 1xx response came."""
        if self._informational is None:
            self._informational = Informational(self.informational)
        if not self._informational.add(head):
            self.fail(RemoteProtocolError(f"{self.label} sent too many informational responses"))
            return
        self._read_at = math.inf
        if head.status == 100 and self.upload is not None:
            self.upload.on_continue()
        self._ready.set()

    def on_response(self, head: ResponseHead, *, tunnel: bool) -> None:
        """The final response's head came."""
        self._head = head
        self._read_at = math.inf  # it has come in time, though the requester may wake much later
        if tunnel:
            self.tunnel = Tunnel(self, self.connection.host.signal())
            self.receiving.move(RECEIVE_TUNNEL)
            self.sending.move(SEND_BODY)
        else:
            self.receiving.move(RECEIVE_BODY)
            if not wants_rest(head.status):
                self._stop_upload("us")
        if self.upload is not None:
            self.upload.on_continue()
        self._ready.set()

    def on_body(self, data: bytes | memoryview, credit: int) -> bool:
        """A piece of the response's body came. Return whether it counts as read already.

        :param data: valid until this returns.
        """
        if self.body.add(data, credit):
            if self._read_at != math.inf:
                assert self.timeouts.read is not None
                self._read_at = monotonic() + self.timeouts.read
            return True
        self._read_at = math.inf
        self._ready.set()
        return False

    def on_datagram(self, payload: bytes) -> None:
        """An HTTP datagram came. It is dropped if too many wait already."""
        if self.hung_up:
            return
        if self._datagrams is None:
            self._datagrams = []
        if len(self._datagrams) < _DATAGRAMS:
            self._datagrams.append(payload)
            self._ready.set()
        else:
            self.dropped_datagrams += 1

    def on_complete(self, trailers: Headers) -> None:
        """The response is complete."""
        self.receiving.move(RECEIVE_ENDED)
        self._read_at = math.inf
        self.trailers = trailers
        self._ready.set()
        if self.tunnel is not None:
            self.tunnel.on_room()
        if self.hung_up:
            self.end_tunnel()

    def on_room(self) -> None:
        """More may be sent."""
        if self.upload is not None:
            self.upload.on_room()
        if self.tunnel is not None:
            self.tunnel.on_room()

    def on_upload_refused(self) -> None:
        """The peer wants no more of the request's body."""
        self._stop_upload("peer")

    def on_error(self, error: BaseException) -> None:
        """The exchange has failed. Pieces that came before can still be read first."""
        if self.error is None and self.receiving.state is not RECEIVE_ENDED:
            self.error = self._named(error) if isinstance(error, AllswellError) else error
        self.receiving.move(RECEIVE_FAILED)
        self._stop_upload(error.by if isinstance(error, AllswellError) else "us")
        self._ready.set()

    def _named(self, error: AllswellError) -> AllswellError:
        """The error as the requester sees it: with the origin's name, and what the peer has said of its leaving.

        If a server has said GOAWAY with an error, and then falls silent or resets, the GOAWAY has the reason.
        """
        parting = self.connection.parting.words
        error = error.named(self.label)
        return error.after(parting) if parting and error.by != "us" else error

    def on_silence(self, silent: bool) -> None:
        """The peer has fallen silent, or was heard again."""
        if self._head is None:
            self._silence = silent
            self._ready.set()

    def hang_up(self, grace: float) -> None:
        """Our side has closed a tunnel. A task that still waits for its bytes learns of it.

        The peer has some time to end its half. Our half ends, too, if it has not yet. What still comes is dropped.

        :param grace: how many seconds the peer has. Then the stream is reset.
        """
        if self.hung_up:
            return
        closed = TransportError(f"the tunnel to {self.label} was closed", operation="read", by="us")
        if self.receiving.over or not self.under_way:
            self.on_error(closed)
            self.connection.half_ended(self)
            return
        self.hung_up = True
        self.error = self.error or closed
        self._ready.set()
        self.on_room()
        self.connection.consumed(self, self.body.drop())
        self._total_at = monotonic() + grace
        self.connection.watch(self._total_at)

    def end_tunnel(self) -> None:
        """End our half of a tunnel, if it has not ended."""
        if self.tunnel is not None:
            self.tunnel.end()

    def fail(self, error: BaseException) -> None:
        """End the exchange from our side, with this error."""
        self.on_error(error)
        self.connection.abandon(self)

    def expire(self, now: float, *, seen_all: bool) -> float:
        """Fail if a deadline has passed. Return when the next one is (``inf``: there is none).

        :param seen_all: whether all that has come was taken.
        """
        upload = self.upload
        if self.hung_up and self._total_at <= now:
            self.connection.stop_lingering(self)
            return math.inf
        total_at = math.inf if self.tunnel is not None and not self.hung_up else self._total_at
        write_at = math.inf if upload is None else upload.write_at
        at = min(self._read_at, write_at, total_at)
        if at > now:
            return at
        phase: TimeoutPhase = "total" if total_at <= now else "write" if at == write_at else "read"
        if phase == "write":
            assert upload is not None
            if (write_at := upload.write_again_at(now)) < math.inf:
                return min(self._read_at, write_at, total_at)
        if phase == "read" and not seen_all:
            # It may lie behind what comes for others. The wait for that is bounded by the same timeout, once more.
            assert self.timeouts.read is not None
            if now < self._read_at + self.timeouts.read:
                return now + _LOOK_AGAIN
        self._read_at = math.inf
        if upload is not None:
            upload.write_at = math.inf
        if self.receiving.state is RECEIVE_ENDED:
            # Only our upload was still going on, and it has run out of time.
            self._stop_upload("us")
            self.connection.abandon(self)
            return math.inf
        seconds = {"total": self.timeouts.total, "write": self.timeouts.write, "read": self.timeouts.read}[phase]
        did = {"total": "did not finish", "write": "took nothing of the request", "read": "sent nothing"}[phase]
        error = Timeout(f"{self.label} {did} within {seconds:g} s", phase=phase)
        # Behind others in a pipeline its own response is not what is late. It can be sent elsewhere.
        elsewhere = phase == "read" and self.connection.in_line(self)
        self.fail(NotProcessed(error, proven=False) if elsewhere else error)
        return math.inf
