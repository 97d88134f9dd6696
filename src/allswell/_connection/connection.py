"""A connection: its exchanges, its life, and what its backend's events mean for both. Without any I/O.

Theory of operation. All of it is synchronous. There is no ``await`` between a check and its change, so there are no
locks. Requesters call ``open``, ``send_body``, ``consumed`` and ``abandon``. The owner calls ``close``, ``cut`` and
``abort``. The driver hands over the backend's events by :meth:`Connection.received`, and the connection hands each to
its exchange. What the backend has to say to a batch of input goes out at once, in one write. Requests go out at once,
too. But if several HTTP/2 responses have come together, the requests that follow them leave together
(:meth:`Connection._gather`).

The driver (`driver.py`) has the bytes, the time and the goodbyes. The connection knows it by a small protocol
(:class:`Drives`). The driver reads and writes, and wakes the connection when a deadline has passed. The connection
tells the driver when the goodbyes can begin because no exchange is left, or that all ends now. So a connection can be
tested without an event loop.

The connection holds its owner weakly: a pool that nobody uses any more is collected, and its connections end.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Never, Protocol

from allswell._backends.interface import (
    AlternativeOffered,
    Backend,
    BackPressure,
    BodyReceived,
    ConnectionBroken,
    ConnectionEvent,
    DatagramBackend,
    DatagramReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    OriginsNamed,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    SendWindowOpened,
    SilenceChanged,
)
from allswell._clock import monotonic
from allswell._config import PoolConfig, Timeouts
from allswell._connection.exchange import Exchange
from allswell._connection.history import History
from allswell._connection.idle import Idle, WatchedIdle
from allswell._connection.lifecycle import CLOSED, DRAINING, OPEN, Lifecycle, State
from allswell._connection.parting import Parting
from allswell._connection.service import Service
from allswell._connection.writer import Writer
from allswell._deadline import Deadline
from allswell._errors import AllswellError, LocalProtocolError, NotProcessed, RemoteProtocolError, TransportError
from allswell._events import Peer
from allswell._halves import RECEIVE_ENDED, RECEIVE_FAILED, SEND_BODY, SEND_ENDED, SEND_STOPPED
from allswell._messages import Headers, RequestHead
from allswell._report import ConnectionEnd
from allswell._tasks import Alarm, TaskHost

_CREDIT = BackPressure.CREDIT  # by a name of its own: see `_halves.py`

#: Where back-pressure works by not reading: reading stops when the application has left so many bytes unread, and goes
#: on when it has left no more than so many.
_PAUSE_AT, _RESUME_AT = 256 * 1024, 64 * 1024

#: How many requests leave together at most. The server can begin with these while others still have their turn.
_TOGETHER = 16

#: A connection that is idle for too long stays open while a request waits for room on it. After so many seconds it is
#: checked again.
_WANTED_AGAIN = 0.5


class Owner(Protocol):
    """The owner of connections. Called synchronously, from whichever task made the change; must not raise."""

    def connection_available(self, connection: Connection) -> None:
        """An exchange ended, or the peer allows more, or less. The connection is open, and has capacity or is idle."""

    def connection_wanted(self, connection: Connection) -> bool:
        """Whether a request waits for room on it. If so, it does not end for being idle."""

    def connection_leaving(self, connection: Connection) -> None:
        """It takes no new exchanges any more."""

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """The server names the origins that it serves, or an alternative service of one."""

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """It is closed. The end says how."""


class Drives(Protocol):
    """What a connection asks of its driver.

    :ivar host: the event loop.
    :ivar alarm: calls :meth:`Connection.expire`.
    :ivar writer: takes what is to be written.
    """

    host: TaskHost
    alarm: Alarm
    writer: Writer

    def start(self) -> None:
        """Begin to read."""

    def full(self) -> bool:
        """Whether reading is suspended because there is no room."""

    def resume(self) -> None:
        """There may be room again."""

    def glance(self) -> None:
        """Take what has arrived, if the socket says that anything has."""

    def catch_up(self) -> bool:
        """See :meth:`Connection.catch_up`."""

    def limit(self, deadline: Deadline | None, epoch: float | None) -> None:
        """See :meth:`Connection.close`."""

    def leave(self) -> None:
        """No exchange is left. Read no more, and say the goodbyes."""

    def abort(self, last_words: str) -> None:
        """End all layers at once.

        :param last_words: what the backend has said before; no other layer says anything.
        """

    def take_leave(self, reason: str) -> None:
        """See :meth:`Connection.take_leave`."""

    def so_far(self) -> ConnectionEnd:
        """See :meth:`Connection.so_far`."""

    def extra(self, name: str) -> Any:
        """See :meth:`Filter.extra`."""


class Connection:
    """One HTTP connection, of any version. Made by its driver.

    :param label: the origin, as errors and reports name it: ``"https://example.org"``.
    :param service: what all connections to this server have in common.
    :ivar number: see `_events.py`.
    :ivar http_version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar multiplexes: whether it carries many exchanges side by side.
    :ivar history: what it has carried.
    :ivar silent: whether the peer has stopped answering probes.
    :ivar parting: what the peer has said of its leaving.
    :ivar error: what broke it, or what the peer left with.
    """

    def __init__(
        self,
        driver: Drives,
        backend: Backend[Never],
        *,
        label: str,
        owner: Owner,
        config: PoolConfig,
        service: Service | None = None,
        number: int = 0,
    ) -> None:
        self.host = driver.host
        self.number = number
        self.label = label
        self.config = config
        self.http_version = backend.http_version
        self.multiplexes = not backend.in_order
        self.history = History(service or Service())
        self.silent = False
        self.parting = Parting()
        self.error: AllswellError | None = None
        self._driver = driver
        self._backend = backend
        self._by_credit = backend.back_pressure is _CREDIT
        self._datagrams = backend if isinstance(backend, DatagramBackend) else None
        self._owner = weakref.ref(owner)
        self._life = Lifecycle()
        self._exchanges: dict[int, Exchange[Connection]] = {}
        self._idle = Idle(config.keepalive_expiry, self.history.made_at)
        self._looking = False  # at the socket: see `usable`
        self._gathers = False
        self._gathered = 0  # requests that have yet to leave

    def __repr__(self) -> str:
        state = f"{self.state.value}, {len(self._exchanges)} open, {self.history.opened} in all"
        return f"<{self.http_version} to {self.label} over {self._driver}: {state}>"

    # What the pool asks

    @property
    def state(self) -> State:
        """Its state of life."""
        return self._life.state

    @property
    def reason(self) -> str:
        """Why it is not open any more."""
        return self._life.reason

    @property
    def shared(self) -> bool:
        """Whether exchanges of several requesters may be under way at once: it multiplexes, or pipelines."""
        return self.multiplexes or self.config.pipelining > 0

    @property
    def open_exchanges(self) -> int:
        """How many exchanges are under way."""
        return len(self._exchanges)

    @property
    def lingers(self) -> bool:
        """Whether nothing is under way but tunnels that we have ended, and the peer has not."""
        return all(exchange.lingers for exchange in self._exchanges.values())

    @property
    def expect_continue_timeout(self) -> float | None:
        """How many seconds an upload waits for 100 (Continue)."""
        return self.config.expect_continue_timeout

    @property
    def idle_since(self) -> float:
        """When its last exchange ended; if it had none, when it was made. ``inf`` while one is open."""
        return self._idle.since

    def capacity(self) -> int:
        """How many exchanges may be opened now."""
        if self._life.state is not OPEN:
            return 0
        room = self._backend.capacity()
        return self.history.room(room, busy=bool(self._exchanges)) if room else 0

    @property
    def capacity_expected(self) -> bool:
        """Whether it has no room, but will probably have some soon without the end of an open exchange."""
        return self._life.state is OPEN and self._backend.capacity_expected

    @property
    def extended_connect(self) -> bool | None:
        """Whether an extended CONNECT may be sent; ``None`` while that is not known."""
        return self._backend.extended_connect

    def extra(self, name: str) -> Any:
        """See :meth:`Filter.extra`."""
        return self._driver.extra(name)

    @property
    def peer(self) -> Peer | None:
        """What it is connected to; ``None`` if that is not known (any more)."""
        try:
            address = self.extra("server_addr")
        except OSError:  # the peer has reset it
            return None
        return address[:2] if isinstance(address, tuple) else address or None

    @property
    def layers(self) -> str:
        """Its stack, top to bottom: ``"tls > tcp"``."""
        return str(self._driver)

    def tell_use(self, told: Callable[[bool], None]) -> None:
        """Have a function called when its use begins (with ``True``), and when it ends (with ``False``)."""
        self._idle = WatchedIdle(self._idle, told)

    def usable(self) -> bool:
        """Whether it can still take a request, after one more look at the socket.

        The server may have closed an idle connection, or sent something unasked, and the event loop has not told us
        yet. The look costs a system call, and cannot catch all such cases. It is done before a request that must not
        be sent twice. It is also done before each request in HTTP/1.1, where only their order tells responses apart.
        What is in the socket before a request is sent cannot be its response, and ends the connection. That is so
        behind other exchanges, too (pipelining). If reading is suspended there, the look is not possible, and no
        request follows.
        """
        busy = bool(self._exchanges)
        if monotonic() >= self._idle.until:
            self._end_idle()  # the event loop was blocked, and the alarm is late
        if self._life.state is OPEN and not self._looking and not (busy and self.multiplexes):
            if busy and self._driver.full():
                return False
            self._looking = True  # the owner may be told of room meanwhile, and must not have us look again
            try:
                self._driver.glance()
            finally:
                self._looking = False
        return self.capacity() > 0

    # What requesters do: synchronous, all of it

    def open(
        self,
        head: RequestHead,
        body: bytes | None,
        *,
        timeouts: Timeouts,
        label: str = "",
        total_at: float = math.inf,
        upload: bool = False,
    ) -> Exchange[Connection]:
        """Open an exchange, and send the request's head, with the body if that is small.

        :param body: all of the body, if it is small enough to go at once; ``None`` for no body. If the peer's window is
            too small for it, it is not sent, and the exchange's ``sending`` is still open.
        :param label: what errors call the origin, if the connection was made for another.
        :param upload: whether the body follows by :meth:`Exchange.start_upload`.
        :raises LocalProtocolError: if HTTP cannot express the request.
        :raises NotProcessed: if the connection takes no more.
        """
        exchange = Exchange(self, head, label or self.label, timeouts, total_at)
        backend = self._backend
        try:
            number = exchange.number = backend.open(head, end=body is None and not upload)
            if body is not None:
                if len(body) <= backend.send_window(number):
                    backend.send_body(number, body, end=True)
                else:
                    upload = True
        except LocalProtocolError as error:
            if exchange.number or backend.must_abort:
                self._abandon(exchange.number)
            raise error.named(exchange.label) from error
        # (The tunnel follows the head of a CONNECT.)
        exchange.sending.move(SEND_BODY if upload or head.method == b"CONNECT" else SEND_ENDED)
        self._exchanges[number] = exchange
        self._idle.end()
        self.history.on_opened()
        if total_at != math.inf:
            self.watch(total_at)
        self._gathered += 1
        if not self._gathers or self._gathered >= _TOGETHER:
            self._transmit()
        return exchange

    def holds(self, exchange: Exchange[Connection]) -> bool:
        """Whether it is under way: at least one of its halves has not ended."""
        return exchange.number in self._exchanges

    def in_line(self, exchange: Exchange[Connection]) -> bool:
        """Whether other exchanges must be answered before it (pipelining)."""
        return self._backend.in_order and next(iter(self._exchanges.values()), exchange) is not exchange

    def unsent(self, exchange: Exchange[Connection]) -> int:
        """How many bytes keep the exchange from sending more: its own, and all that were written before."""
        return self._driver.writer.unsent + self._backend.unsent(exchange.number)

    @property
    def writable(self) -> bool:
        """Whether no write has failed."""
        return not self._driver.writer.failed

    def send_window(self, exchange: Exchange[Connection]) -> int:
        """Bytes of body that may be sent now."""
        if exchange.number not in self._exchanges or self._driver.writer.full:
            return 0
        return self._backend.send_window(exchange.number)

    def send_body(
        self, exchange: Exchange[Connection], data: bytes | memoryview, *, end: bool, trailers: Headers | None
    ) -> None:
        """Send a piece of body, at most :meth:`send_window` bytes.

        :raises LocalProtocolError: when it contradicts its head.
        """
        try:
            self._backend.send_body(exchange.number, data, end=end, trailers=trailers)
        except LocalProtocolError as error:
            raise error.named(exchange.label) from error
        self._transmit()
        if len(self._exchanges) > 1 and exchange.number in self._exchanges:
            # Move it behind the others. Uploads that wait for room are woken in this order, and the first takes it.
            self._exchanges[exchange.number] = self._exchanges.pop(exchange.number)
        if end:
            exchange.sending.move(SEND_ENDED)
            if exchange.receiving.tunnel and self._backend.in_order:
                # In HTTP/1.1 a tunnel is the connection, which says goodbye now. The tunnel's other half ends with it.
                exchange.receiving.move(RECEIVE_FAILED)
            self.half_ended(exchange)

    def half_ended(self, exchange: Exchange[Connection]) -> None:
        """We have ended one of its halves. If the other half is over too, the exchange is over."""
        if exchange.over:
            self._over(exchange)
            self.settle()

    def datagram_room(self, exchange: Exchange[Connection]) -> int:
        """The largest HTTP datagram that may be sent beside the exchange's stream, in bytes; 0: none may."""
        datagrams = self._datagrams
        return datagrams.datagram_room(exchange.number) if datagrams is not None else 0

    def send_datagrams(self, exchange: Exchange[Connection], payloads: Sequence[bytes]) -> None:
        """Send HTTP datagrams, for which there is room. They may be lost."""
        assert self._datagrams is not None  # there was room
        for payload in payloads:
            self._datagrams.send_datagram(exchange.number, payload)
        self._transmit()

    def reprioritize(self, exchange: Exchange[Connection], priority: bytes) -> None:
        """Tell the peer that the exchange's response has another priority now, if the protocol can say so."""
        if exchange.number in self._exchanges:
            self._backend.reprioritize(exchange.number, priority)
            self._transmit()

    def consumed(self, exchange: Exchange[Connection], credit: int) -> None:
        """The application has read content of this credit."""
        if self._by_credit:
            if self._backend.consumed(exchange.number, credit) and not self._gathers:
                self._transmit()
        elif exchange.body.buffered <= _RESUME_AT:
            self._driver.resume()

    def stop_lingering(self, exchange: Exchange[Connection]) -> None:
        """Wait no longer for the peer's end of a tunnel.

        If the connection goes on, the stream is reset. If the connection leaves, it is not, because the reset might
        overtake the tunnel's last bytes.
        """
        if self._life.state is OPEN or exchange.sending.open:
            exchange.hung_up = False
            exchange.abandon()
        else:
            self._over(exchange)
            self.settle()

    def drop_closed_tunnels(self) -> None:
        """Wait no longer for the ends of tunnels that our side has closed: they end with the connection."""
        for exchange in [each for each in self._exchanges.values() if each.hung_up]:
            exchange.end_tunnel()
            self._over(exchange)

    def abandon(self, exchange: Exchange[Connection]) -> None:
        """The requester wants no more of it. If the protocol needs the rest of it to go on, the connection ends."""
        if exchange.receiving.tunnel and exchange.all_read and exchange.number in self._exchanges:
            self.send_body(exchange, b"", end=True, trailers=None)  # the peer's half ended well, so ours does, too
        open_still = self._exchanges.pop(exchange.number, None) is not None
        if open_still or self._by_credit:
            self._abandon(exchange.number)
        if open_still:
            self.settle()

    def _abandon(self, number: int) -> None:
        if self._life.state is CLOSED:
            return
        self._backend.cancel(number)
        if self._backend.must_abort:
            why = "an exchange was abandoned before it was complete"
            if self._exchanges:  # others are pipelined with it
                error = TransportError(f"{self.label}: {why}", operation="read", by="us")
                self._dispatch(self._backend.receive_eof(error), last=True)
            self.abort(why)
        else:
            self._transmit()

    def close(self, reason: str, deadline: Deadline | None = None, *, epoch: float | None = None) -> None:
        """Take no new exchanges, and say goodbye when the last one is over.

        :param deadline: when the goodbyes must be over; ``None``: when the grace has passed since they began.
        :param epoch: the instant from which the report counts the seconds of this connection's end.
        """
        if deadline is not None or epoch is not None:
            self._driver.limit(deadline, epoch)
        if self._life.move(DRAINING, reason):
            self._tell_leaving()
        self.settle()

    def cut(self, error: AllswellError) -> None:
        """Fail every open exchange. Then the goodbyes can begin, if the protocol still allows them."""
        # From the last to the first: in a pipeline the end of one exchange ends those behind it with another error.
        self.drop_closed_tunnels()
        for exchange in reversed(list(self._exchanges.values())):
            self.history.cut_short += self.holds(exchange)
            exchange.fail(error)
        self.settle()

    def abort(self, reason: str, error: AllswellError | None = None) -> None:
        """End it now, without a word: no close_notify, TCP RST. Idempotent."""
        self._abort(reason, error or TransportError(f"{self.label}: {reason}", operation="read", by="us"))

    def _abort(self, reason: str, error: AllswellError, last_words: str = "") -> None:
        counted = self._life.state is State.CLOSING
        if not self._life.move(CLOSED, reason):
            return
        if not counted:
            self.history.on_ended()
        self._tell_leaving()
        self.drop_closed_tunnels()
        self.history.cut_short += len(self._exchanges)
        self._fail_all(error)
        self._driver.abort(last_words)

    def take_leave(self, reason: str) -> None:
        """Say all goodbyes now, without a wait: GOAWAY, close_notify and FIN leave in this one step.

        Then a task of the connection waits for the answers, within the grace, as long as the event loop lives. (If an
        answer met a closed socket, the peer would see a reset.) A connection with an exchange in flight is aborted.
        """
        self._driver.take_leave(reason)

    def so_far(self) -> ConnectionEnd:
        """How it has ended so far: what was said and heard until now."""
        return self._driver.so_far()

    # What its driver tells and asks

    def start(self) -> None:
        """Begin to drive it, until it is closed."""
        self._watch_idle()
        self._driver.start()

    @property
    def reads(self) -> bool:
        """Whether anything that arrives is still of use."""
        return self._life.state in (OPEN, DRAINING)

    def unread_much(self) -> bool:
        """Whether nothing is to be read before the application has read more."""
        if self._by_credit or not self._exchanges:
            return False
        return any(each.body.buffered >= _PAUSE_AT for each in self._exchanges.values())

    def received(self, events: Sequence[Event]) -> None:
        """The backend has taken one batch of input. Act on its events, and send what it answers."""
        backend = self._backend
        completed = self._dispatch(events)
        if not backend.unfinished:
            self._transmit(answers=True)
        if completed > 1 and not (backend.in_order or self._driver.writer.pushes):
            self._gather()
        if backend.must_abort:
            self.abort("the connection cannot be used any more")
        elif self._life.state is DRAINING:
            self.settle()

    def end_of_stream(self, *, truncated: bool) -> None:
        """The peer has ended what it sends.

        :param truncated: whether the goodbye of the layer below is missing.
        """
        words = f"{self.label} ended TLS without close_notify: truncated"
        why = RemoteProtocolError(words, missing="end") if truncated else None
        cut = self.history.cut_short
        self._dispatch(self._backend.receive_eof(why), last=True)
        halves = (each.receiving.tunnel and each.receiving.state is RECEIVE_ENDED for each in self._exchanges.values())
        if self.history.cut_short > cut or self._backend.must_abort or not all(halves):
            self.abort("the server ended the connection in the middle of an exchange", why)
        else:
            # Only our half of a tunnel is left. It may have more to send.
            self.parting.ended = True
            self.close("the server ended the connection")

    def ended(self) -> bool:
        """The goodbyes are over. Return whether it was not aborted before."""
        return self._life.move(CLOSED)

    def lost(self, error: TransportError) -> None:
        """The layer below is gone."""
        if self._life.state is not CLOSED:
            self.error = self.error or error
            self._dispatch(self._backend.receive_eof(error), last=True)
            self.abort(str(error), error)

    def _dispatch(self, events: Sequence[Event], *, last: bool = False) -> int:
        """Hand the events to their exchanges. Return how many responses are complete with them.

        :param last: whether the connection ends with these events. Then it has cut short the exchanges that fail. (So
            has one of the events if it is :class:`ConnectionBroken`.)
        """
        exchanges, completed = self._exchanges, 0
        for event in events:
            if isinstance(event, BodyReceived):  # the most frequent ones come first
                exchange = exchanges.get(event.exchange)
                if exchange is None or exchange.on_body(event.data, event.credit):
                    self._backend.consumed(event.exchange, event.credit)
                continue
            if isinstance(event, ConnectionEvent):
                self._on_connection_event(event)
                continue
            if isinstance(event, SendWindowOpened):
                self._on_window(event.exchange)
                continue
            exchange = exchanges.get(event.exchange)
            if exchange is None:
                continue
            if isinstance(event, ResponseReceived):
                self.history.on_answered()
                exchange.on_response(event.head, tunnel=event.tunnel)
            elif isinstance(event, ResponseCompleted):
                completed += 1
                exchange.on_complete(event.trailers)
                if exchange.over:
                    self._over(exchange)
            elif isinstance(event, InformationalReceived):
                exchange.on_informational(event.head)
            elif isinstance(event, DatagramReceived):
                exchange.on_datagram(event.payload)
            elif isinstance(event, ExchangeFailed):
                del exchanges[exchange.number]
                self.history.cut_short += (last or ConnectionBroken in map(type, events)) and not exchange.hung_up
                if isinstance(event.error, NotProcessed) and event.error.proven:
                    self.history.on_refused(leaving=self._life.state is not OPEN)
                exchange.on_error(event.error)
            else:
                exchange.on_upload_refused()
                if exchange.over:
                    self._over(exchange)
        return completed

    def _on_window(self, number: int | None) -> None:
        """More may be sent: of this exchange, or of any if none is given."""
        for exchange in self._exchanges.values() if number is None else (self._exchanges.get(number),):
            if exchange is not None:
                exchange.on_room()

    def _on_connection_event(self, event: ConnectionEvent) -> None:
        if isinstance(event, PeerLeaving):
            self.error = self.error or event.error
            self.close(self.parting.on_leaving(self._backend.says_goodbye, event.error))
        elif isinstance(event, ConnectionBroken):
            self.error = self.error or event.error
            self._transmit()  # GOAWAY with the error code
            self._abort(str(event.error), event.error, self._backend.says_goodbye)
        elif isinstance(event, (OriginsNamed, AlternativeOffered)):
            self._tell_announced(event)
        else:
            if isinstance(event, SilenceChanged):
                self.silent = event.silent
                for exchange in self._exchanges.values():
                    exchange.on_silence(event.silent)
            if self._life.state is OPEN:
                self._tell_available()

    def _tell_announced(self, news: OriginsNamed | AlternativeOffered) -> None:
        owner = self._owner()
        if isinstance(news, AlternativeOffered) and news.exchange:
            exchange = self._exchanges.get(news.exchange)
            if exchange is None:
                return  # its exchange is over
            news.origin = exchange.request.origin
        if owner is not None:
            owner.connection_announced(self, news)

    def _over(self, exchange: Exchange[Connection]) -> None:
        """Both halves are over: the response is complete, and our side has sent all, or stopped."""
        if self._exchanges.pop(exchange.number, None) is not None:
            if exchange.sending.state is SEND_STOPPED:
                self._backend.stop(exchange.number)
            self._driver.resume()  # its unread body need not hold up reading any more
            if self._exchanges and self._backend.in_order:
                next(iter(self._exchanges.values())).on_first_in_line()

    def settle(self) -> None:
        """Exchanges may have ended. Go on to the next state of life, or tell the owner that there is room."""
        state = self._life.state
        if state is DRAINING:
            if not self._exchanges and self._life.move(State.CLOSING):
                self.history.on_ended()
                self._driver.leave()
        elif state is OPEN:
            if self._backend.exhausted:
                # A tunnel has ended, Connection: close came before our half was over, or all stream ids are used.
                self.close("it can carry no more requests")
            elif self._exchanges:
                if self.capacity():
                    self._tell_available()
            elif self._idle.since == math.inf:  # (else it was idle already: a PING does not end idle time)
                self._idle.begin(monotonic(), self._backend.kept_idle)
                self._watch_idle()
                self._tell_available()

    def _watch_idle(self) -> None:
        if self._idle.until < math.inf:
            self.watch(self._idle.until)

    def _end_idle(self) -> None:
        """It was idle for too long."""
        self.close(self._idle.reason)

    # Writing

    def _gather(self) -> None:
        """Let requests wait for each other until those whose responses have just come have had their turn.

        Their requesters are woken, and many send another request. One write for all of these costs a fraction of one
        for each. (HTTP/1.1 sends a request as soon as it is opened: see :meth:`usable`. QUIC gains nothing by this.)
        """
        if not self._gathers:
            self._gathers = True
            self.host.call_soon(self._let_go)

    def _let_go(self) -> None:
        self._gathers = False
        self._transmit()

    def _transmit(self, *, answers: bool = False) -> None:
        self._gathered = 0
        data = self._backend.take_output()
        writer = self._driver.writer
        if (data or writer.pushes) and self._life.state is not CLOSED:
            writer.write(data, answers=answers)

    def written(self) -> None:
        """All that waited to be sent has gone out."""
        for exchange in self._exchanges.values():
            exchange.on_room()

    # Time

    def watch(self, at: float) -> None:
        """Have the deadlines looked at, at this instant at the latest."""
        alarm = self._driver.alarm
        if at < alarm.at:
            alarm.set(at)

    def catch_up(self) -> bool:
        """Take what has come and send what can go, without the event loop.

        :return: whether all that has come was taken.
        """
        return self._driver.catch_up()

    def expire(self, now: float, *, seen_all: bool) -> float:
        """Do what is due. Return when to look again.

        :param seen_all: whether all that has come was taken.
        """
        following = math.inf
        for exchange in list(self._exchanges.values()):
            following = min(following, exchange.expire(now, seen_all=seen_all))
        if self._life.state is OPEN:
            if now < self._idle.until:
                following = min(following, self._idle.until)
            elif self._wanted():
                following = min(following, now + _WANTED_AGAIN)
            else:
                self._end_idle()
        return following

    def ping(self) -> bool:
        """Ask the peer for a sign of life. Return whether that is possible."""
        if not self.reads or not self._backend.ping():
            return False
        self._transmit()
        return True

    # Its owner

    @property
    def owner(self) -> Owner | None:
        """The owner; ``None`` if it was collected."""
        return self._owner()

    def _fail_all(self, error: AllswellError) -> None:
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.on_error(error)

    def _tell_available(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner.connection_available(self)
        elif not self._exchanges:
            self.close("its pool was dropped without being closed")

    def _wanted(self) -> bool:
        owner = self._owner()
        return owner is not None and not self.capacity() and owner.connection_wanted(self)

    def _tell_leaving(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner.connection_leaving(self)
