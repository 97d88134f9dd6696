"""A connection: one backend on one stack, driven by what arrives and by those who have requests.

Theory of operation. One place reads (`reader.py`): calls by the event loop or, where it makes none, a task. It takes
what has arrived, feeds the backend, hands the events to their exchanges and sends what the backend answers: one flush
for each batch of input. Others change the connection only by synchronous calls (``open``, ``send_body``, ``consumed``,
``abandon``, ``close``, ``abort``); there is no ``await`` between a check and its change, so there are no locks.

Writing is tried at once, by whoever wants to write. What the socket does not take is kept by the stack and finished by
a task of the connection's (`writer.py`), never by the requester's: its cancellation cannot leave half a frame.

When nothing more is read, the connection is either CLOSING, and a task says the goodbyes from the top of the stack
down; or it is CLOSED already, because it was lost or aborted. Either way it tells its owner how each layer ended. Where
nobody has the time to wait (:meth:`Connection.take_leave`), all goodbyes are said in one synchronous step; the task
only hears the answers. The owner is held weakly: a pool that nobody holds any more is collected, and its connections
end.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import anyio.lowlevel

from allswell._backends.interface import (
    AlternativeOffered,
    Backend,
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
    UploadRefused,
)
from allswell._clock import monotonic
from allswell._config import PoolConfig, Timeouts
from allswell._connection.exchange import Exchange
from allswell._connection.interface import Owner
from allswell._connection.lifecycle import LAST_MOMENT, LOOP_ENDED, Lifecycle, State
from allswell._connection.pulse import Pulse
from allswell._connection.reader import Reader
from allswell._connection.service import Service
from allswell._connection.writer import Writer
from allswell._deadline import Deadline
from allswell._errors import AllswellError, LocalProtocolError, NotProcessed, RemoteProtocolError, TransportError
from allswell._filters.interface import LAST_READS
from allswell._filters.stack import Stack
from allswell._halves import Receive, Send
from allswell._messages import Headers, RequestHead
from allswell._report import ConnectionEnd, LayerEnd, Outcome
from allswell._tasks import Alarm, TaskHost

#: Where back-pressure works by not reading: stop at so many bytes unread by the application, go on at so many.
_PAUSE_AT, _RESUME_AT = 256 * 1024, 64 * 1024

#: A connection is not used any more so many seconds before its server ends it, as that says; or in the last half of its
#: time, where that is shorter.
_ON_THE_WAY = 1.0

#: Where somebody waits for room on a connection that would be idle for too long: looked at again after so many seconds.
_WANTED_AGAIN = 0.5


class Connection:
    """One HTTP connection, of any version.

    :param label: the origin, as errors and reports name it: ``"https://example.org"``.
    :param service: what all connections to this server have in common.
    :ivar silent: whether the peer is known to have fallen silent.
    :ivar opened: exchanges opened in its life.
    :ivar answered: those of which the final response's head has come.
    :ivar parting_words: how the peer said that it leaves, and why: ``"sent GOAWAY, ENHANCE_YOUR_CALM"``.
    :ivar made_at: when it was made, as :func:`time.monotonic` tells.
    """

    def __init__(
        self,
        *,
        host: TaskHost,
        label: str,
        stack: Stack,
        backend: Backend[Any],
        owner: Owner,
        config: PoolConfig,
        service: Service | None = None,
    ) -> None:
        self.host = host
        self.label = label
        self.service = service or Service()
        self.config = config
        self.silent = False
        self.opened = 0
        self.answered = 0
        self._taken = 0  # of those that were opened; refused ones do not count
        self.made_at = monotonic()
        self._stack = stack
        self._top = stack.top
        self._backend = backend
        self._owner = weakref.ref(owner)
        self._life = Lifecycle()
        self._exchanges: dict[int, Exchange] = {}
        self._alarm = Alarm(host, self._on_alarm)
        self._idle_since = self.made_at
        self._idle_limit = math.inf if config.keepalive_expiry is None else config.keepalive_expiry
        self._idle_for = self._idle_limit  # or less: as long as the server keeps it
        self._pulse = Pulse(config.ping_interval, config.ping_timeout, self.made_at)
        self._heard_goodbye = ""
        self.parting_words = ""
        self._at_end = False  # of what the peer sends
        self._task = False  # whether there is one already
        self._looking = False
        self._reader = Reader(
            host,
            self._top,
            take=self._receive,
            full=self._full,
            done=self._settle,
            lost=self._lost,
            failed=self._failed,
        )
        self._writer = Writer(host, self._top, name=f"allswell writes to {label}", room=self._written)
        self._deadline: Deadline | None = None
        self._epoch: float | None = None
        self._cut = 0  # exchanges that ended because the connection did
        self._ended = False
        self._leaves_at = math.inf  # when its goodbyes began
        self._said: str | None = None  # the backend's goodbye, once it was said
        self._keeper: Owner | None = None  # the owner, while a goodbye that it did not wait for is still to be told

    def __repr__(self) -> str:
        state = f"{self.state.value}, {len(self._exchanges)} open, {self.opened} in all"
        return f"<{self.http_version} to {self.label} over {self._stack}: {state}>"

    # What the pool asks

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._life.state

    @property
    def reason(self) -> str:
        """Why it is not open any more."""
        return self._life.reason

    @property
    def http_version(self) -> str:
        """``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``."""
        return self._backend.http_version

    @property
    def multiplexes(self) -> bool:
        """Whether it carries many exchanges side by side."""
        return not self._backend.pauses_reading

    @property
    def shared(self) -> bool:
        """Whether exchanges of several requesters may be under way at once: it multiplexes, or pipelines."""
        return self.multiplexes or self.config.pipelining > 0

    @property
    def open_exchanges(self) -> int:
        """Exchanges under way."""
        return len(self._exchanges)

    @property
    def idle_since(self) -> float:
        """When the last exchange ended, or it was made; ``inf`` while one is open."""
        return self._idle_since

    def capacity(self) -> int:
        """Exchanges that may be opened now."""
        if self._life.state is not State.OPEN:
            return 0
        room, takes = self._backend.capacity(), self.service.takes
        if room and room > takes - self._taken:
            # More than such connections took before they left. When all of that is answered, one more will show.
            room = max(int(takes) - self._taken, 0 if self._exchanges else 1)
        return room

    @property
    def capacity_expected(self) -> bool:
        """Whether it has no room, but is expected to have some without the end of what is open."""
        return self._life.state is State.OPEN and self._backend.capacity_expected

    def extra(self, name: str) -> Any:
        """See :meth:`Filter.extra`."""
        return self._stack.extra(name)

    def usable(self) -> bool:
        """Whether it can still take a request, after one more look at the socket.

        A server may have closed an idle connection, or said something without being asked, and the event loop has not
        told us yet. That race cannot be won for good. But a request that must not be sent twice is worth a system call,
        and so is any that goes where responses have no name but their order (HTTP/1.1): what lies in the socket before
        it is sent cannot be its response, and ends the connection. That holds behind other exchanges, too (pipelining);
        as long as reading is suspended there nobody can tell, so nothing follows.
        """
        busy = bool(self._exchanges)
        if monotonic() >= self._idle_since + self._idle_for:
            self._expire()  # the event loop was held, and the alarm is late
        if self._life.state is State.OPEN and not self._looking and (self._backend.pauses_reading or not busy):
            if busy and self._full():
                return False
            self._looking = True  # the owner is told of room meanwhile, and need not look again
            try:
                self._reader.glance()
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
    ) -> Exchange:
        """Open an exchange and send the request's head, with the body where that is small.

        :param body: all of the body, small enough to go at once; ``None`` for no body. Where the peer's window is too
            small for it, it is not sent: ``sending`` of the exchange tells.
        :param label: what errors call the origin, where the connection was made for another.
        :param upload: the body follows by :meth:`Exchange.start_upload`.
        :raises LocalProtocolError: when HTTP cannot say it.
        :raises NotProcessed: when the connection takes no more.
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
        # (Behind the head of a CONNECT comes its tunnel.)
        exchange.sending.move(Send.BODY if upload or head.method == b"CONNECT" else Send.ENDED)
        self._exchanges[number] = exchange
        self._idle_since = math.inf
        self.opened += 1
        self._taken += 1
        if total_at != math.inf:
            self.watch(total_at)
        self._transmit()
        return exchange

    def holds(self, exchange: Exchange) -> bool:
        """Whether it is under way: at least one of its halves has not ended."""
        return exchange.number in self._exchanges

    def in_line(self, exchange: Exchange) -> bool:
        """Whether others have to be answered before it (pipelining)."""
        return self._backend.pauses_reading and next(iter(self._exchanges.values()), exchange) is not exchange

    def unsent(self, exchange: Exchange) -> int:
        """Bytes that keep the exchange from sending more: of its own, and of all that was written before."""
        return self._top.unsent + self._backend.unsent(exchange.number)

    def send_window(self, exchange: Exchange) -> int:
        """Bytes of body that may be sent now."""
        if exchange.number not in self._exchanges or self._writer.full:
            return 0
        return self._backend.send_window(exchange.number)

    def send_body(self, exchange: Exchange, data: bytes, *, end: bool, trailers: Headers | None) -> None:
        """Send a piece of body, at most :meth:`send_window` bytes.

        :raises LocalProtocolError: when it contradicts its head.
        """
        try:
            self._backend.send_body(exchange.number, data, end=end, trailers=trailers)
        except LocalProtocolError as error:
            raise error.named(exchange.label) from error
        self._transmit()
        if len(self._exchanges) > 1 and exchange.number in self._exchanges:
            # Behind those that wait for room: they are woken in this order, and the first takes what there is.
            self._exchanges[exchange.number] = self._exchanges.pop(exchange.number)
        if end:
            exchange.sending.move(Send.ENDED)
            if exchange.tunnel and self._backend.pauses_reading:
                # In HTTP/1.1 a tunnel is the connection: its other half ends with that, which says goodbye now.
                exchange.receiving.move(Receive.FAILED)
            self.half_ended(exchange)

    def half_ended(self, exchange: Exchange) -> None:
        """One of its halves has ended by our own doing: with the other over too, so is the exchange."""
        if exchange.over:
            self._over(exchange)
            self._settle()

    def datagram_room(self, exchange: Exchange) -> int:
        """Bytes of the largest HTTP datagram that may go beside the exchange's stream; 0: none may."""
        backend = self._backend
        return backend.datagram_room(exchange.number) if isinstance(backend, DatagramBackend) else 0

    def send_datagrams(self, exchange: Exchange, payloads: Sequence[bytes]) -> None:
        """Send HTTP datagrams, where there is room for them. They may be lost."""
        backend = cast(DatagramBackend, self._backend)
        for payload in payloads:
            backend.send_datagram(exchange.number, payload)
        self._transmit()

    def consumed(self, exchange: Exchange, credit: int) -> None:
        """The application has read so much."""
        if not self._backend.pauses_reading:
            self._backend.consumed(exchange.number, credit)
            self._transmit()
        elif exchange.buffered <= _RESUME_AT:
            self._reader.resume()

    def stop_lingering(self, exchange: Exchange) -> None:
        """Wait no longer for the peer's end of a tunnel. A connection that goes on is rid of the stream by a reset.

        One that leaves is not in need of it, and the reset might overtake what the tunnel carried last.
        """
        if self._life.state is State.OPEN:
            exchange.abandon()
        else:
            self._over(exchange)
            self._settle()

    def abandon(self, exchange: Exchange) -> None:
        """The requester takes no more of it. The protocol is kept in step; where it cannot be, the connection ends."""
        if exchange.tunnel and exchange.all_read and exchange.number in self._exchanges:
            self.send_body(exchange, b"", end=True, trailers=None)  # its other half ended well: so does ours
        open_still = self._exchanges.pop(exchange.number, None) is not None
        if open_still or not self._backend.pauses_reading:
            self._abandon(exchange.number)
        if open_still:
            self._settle()

    def _abandon(self, number: int) -> None:
        if self._life.state is State.CLOSED:
            return
        self._backend.cancel(number)
        if self._backend.must_abort:
            why = "an exchange was abandoned before it was complete"
            if self._exchanges:  # those that were pipelined with it
                error = TransportError(f"{self.label}: {why}", operation="read", by="us")
                self._dispatch(self._backend.receive_eof(error), last=True)
            self.abort(why)
        else:
            self._transmit()

    def watch(self, at: float) -> None:
        """See to it that deadlines are looked at, at this instant."""
        if at < self._alarm.at:
            self._alarm.set(at)

    def close(self, reason: str, deadline: Deadline | None = None, *, epoch: float | None = None) -> None:
        """Take no new exchanges, and say goodbye when the last one is over.

        :param deadline: when the goodbyes must be over; without one, they have the grace from when they begin.
        :param epoch: the instant that the report counts this connection's end from.
        """
        self._epoch = self._epoch if epoch is None else epoch
        if deadline is not None:
            if self._deadline is None:
                self._deadline = Deadline(deadline.at)
            else:
                self._deadline.tighten(deadline.at)
        if self._life.move(State.DRAINING, reason):
            self._tell_leaving()
        self._settle()

    def cut(self, error: AllswellError) -> None:
        """Fail every exchange that is still open; the goodbyes can begin (where the protocol still allows them)."""
        # The last one first: the end of one in a pipeline would end those behind it with another error.
        for exchange in reversed(list(self._exchanges.values())):
            self._cut += self.holds(exchange)
            exchange.fail(error)

    def abort(self, reason: str, error: AllswellError | None = None) -> None:
        """End it now, without a word: no close_notify, TCP RST. Idempotent."""
        self._abort(reason, error or TransportError(f"{self.label}: {reason}", operation="read", by="us"))

    def _abort(self, reason: str, error: AllswellError, last_words: str = "") -> None:
        counted = self._life.state is State.CLOSING
        if not self._life.move(State.CLOSED, reason):
            return
        if not counted:
            self._count()
        if self._leaves_at == math.inf:
            self._leaves_at = monotonic()
        self._tell_leaving()
        self._cut += len(self._exchanges)
        self._fail_all(error)
        if self._said is None:
            end = LayerEnd(self._backend.name, last_words, self._heard_goodbye, Outcome.ABORTED)
        else:
            end = self._told(taken=self._top.acknowledged)
        layers = [end, *self._stack.abort(reset=not last_words)]
        self._reader.stop()
        self._end(layers)

    def take_leave(self, reason: str) -> None:
        """Say everything now, and wait for nothing: GOAWAY, close_notify and FIN leave in this one step.

        The connection's task then goes on hearing, within the grace, as long as the event loop lives: a socket that is
        closed before the peer's answer has come would reset it. A connection with an exchange in flight is aborted.
        """
        if self._ended:
            return
        if self._exchanges:
            self.abort(reason)
            return
        self._keeper = self._owner()
        self.close(reason)
        if self._life.state is State.CLOSING and self._said is None:
            with suppress(TransportError):  # what follows tells that the peer is gone
                for _ in range(LAST_READS):  # and dropped; unread, it would make a RST of our end
                    data = self._top.receive_nowait()
                    if data is None or not len(data):
                        break
            self._say_ours()
        self._stack.say_goodbye()

    def so_far(self) -> ConnectionEnd:
        """How it ends, as far as that has come: what was said and heard until now."""
        return self._report([self._told(taken=self._top.acknowledged), *self._stack.so_far()])

    # Driving

    def start(self) -> None:
        """Begin to drive it, until it is closed."""
        if self.config.ping_interval is not None:
            self.watch(monotonic() + self.config.ping_interval)
        self._watch_idle()
        self._transmit()
        if not self._reader.start():
            self._task = True
            self._spawn()

    def _spawn(self) -> None:
        self.host.spawn(self._run, name=f"allswell {self.http_version} to {self.label}")

    async def _run(self) -> None:
        """The task, where there is one: it reads, and then says goodbye; or (see `reader.py`) it only says goodbye.

        Raises nothing but cancellation (with all tasks of the event loop), and bugs.
        """
        try:
            await self._drive()
        except Exception as error:
            self._failed(error)
            raise
        except GeneratorExit:  # dropped with its event loop, of which nothing can be waited for any more
            self.take_leave(LOOP_ENDED)
            self.abort(LOOP_ENDED)
            raise
        except BaseException:  # cancelled, with all tasks
            if self.host.ending:
                try:
                    await self._hear_last_answers()
                finally:
                    self.abort(LOOP_ENDED)
            else:
                # By somebody who goes on, and may wait until they are all over: another task takes its place.
                self._spawn()
            raise

    async def _drive(self) -> None:
        if self._reads():
            await self._reader.run()
            await anyio.lowlevel.checkpoint()  # what ran through it (it was a tunnel's) ends first
        if self._life.state is State.CLOSING:
            await self._say_goodbye()

    async def _hear_last_answers(self) -> None:
        """The event loop ends: all is said, and the answers that come at once are heard.

        Whoever ends an event loop waits for its tasks. So this may wait, and must, or the answers would meet a closed
        socket. But not for long.
        """
        if not self._exchanges:
            self.take_leave(LOOP_ENDED)
        with Deadline.after(LAST_MOMENT).scope(shield=True):
            if self._exchanges:
                await anyio.lowlevel.checkpoint()  # what goes through this connection leaves first
            if all(exchange.lingers for exchange in self._exchanges.values()):
                self.close(LOOP_ENDED)
                await self._drive()

    def _failed(self, error: Exception) -> None:
        self.abort(f"a bug: {error!r}")

    def _reads(self) -> bool:
        return self._life.state in (State.OPEN, State.DRAINING)

    def _full(self) -> bool:
        if self._at_end or self._writer.owes:
            return True
        return self._backend.pauses_reading and any(e.buffered >= _PAUSE_AT for e in self._exchanges.values())

    def _receive(self) -> bool:
        """Take one batch of input, act on it and answer it; whether there may be more."""
        backend = self._backend
        if backend.unfinished:
            events = backend.go_on()
        else:
            try:
                data = self._top.receive_nowait()
            except TransportError as error:
                self._lost(error)
                return False
            if data is None:
                return False
            if not len(data):
                self._end_of_stream()
                return self._reads()
            events = backend.receive(data)
        self._dispatch(events)
        if not self.silent:
            self._pulse.heard_at = monotonic()
        if not backend.unfinished:
            self._transmit(answers=True)
        if backend.must_abort:
            self.abort("the connection cannot be used any more")
        elif self._life.state is State.DRAINING:
            self._settle()
        return self._reads()

    def _end_of_stream(self) -> None:
        truncated = getattr(self._top, "truncated", False)
        why = RemoteProtocolError(f"{self.label} ended TLS without close_notify: truncated") if truncated else None
        cut = self._cut
        self._dispatch(self._backend.receive_eof(why), last=True)
        halves = (each.tunnel and each.receiving.state is Receive.ENDED for each in self._exchanges.values())
        if self._cut > cut or self._backend.must_abort or not all(halves):
            self.abort("the server ended the connection in the middle of an exchange", why)
        else:
            # What is left is our half of a tunnel: it may have something to say yet.
            self._at_end = True
            self.close("the server ended the connection")

    def _lost(self, error: TransportError) -> None:
        if self._life.state is not State.CLOSED:
            self._dispatch(self._backend.receive_eof(error), last=True)
            self.abort(str(error), error)

    def _dispatch(self, events: Sequence[Event], *, last: bool = False) -> None:
        """Hand the events to their exchanges.

        :param last: the connection ends with them: it cuts those that fail. (So it does where it is broken.)
        """
        exchanges = self._exchanges
        last = last or ConnectionBroken in map(type, events)
        for event in events:
            kind = type(event)
            if isinstance(event, ConnectionEvent):
                self._on_connection_event(event)
                continue
            if kind is SendWindowOpened and event.exchange is None:
                for each in exchanges.values():
                    each.on_room()
                continue
            exchange = exchanges.get(event.exchange)  # type: ignore[arg-type]  # None was dealt with just above
            if exchange is None:
                if isinstance(event, BodyReceived):
                    self._backend.consumed(event.exchange, event.credit)
            elif isinstance(event, ResponseReceived):
                self.answered += 1
                self.service.answered += 1
                if self.answered > self.service.takes:
                    self.service.takes_more()
                exchange.on_response(event.head, tunnel=event.tunnel)
            elif isinstance(event, BodyReceived):
                exchange.on_body(event.data, event.credit)
            elif isinstance(event, ResponseCompleted):
                exchange.on_complete(event.trailers)
                if exchange.over:
                    self._over(exchange)
            elif isinstance(event, InformationalReceived):
                exchange.on_informational(event.head)
            elif isinstance(event, DatagramReceived):
                exchange.on_datagram(event.payload)
            elif isinstance(event, ExchangeFailed):
                del exchanges[exchange.number]
                self._cut += last
                if isinstance(event.error, NotProcessed) and event.error.proven:
                    self._refused(self._taken - 1)
                exchange.on_error(event.error)
            elif kind is UploadRefused:
                exchange.on_upload_refused()
                if exchange.over:
                    self._over(exchange)
            else:
                exchange.on_room()

    def _refused(self, taken: int) -> None:
        """The peer has refused a request, so it took so many until now."""
        self._taken = taken
        if self._life.state is not State.OPEN:
            self.service.leaves(self.made_at, taken)

    def _on_connection_event(self, event: ConnectionEvent) -> None:
        if isinstance(event, PeerLeaving):
            self._heard_goodbye = self._backend.says_goodbye
            if event.error is not None:
                self.parting_words = str(event.error).removeprefix("the peer ")
            elif not self.parting_words and self._heard_goodbye:
                self.parting_words = f"sent {self._heard_goodbye}"
            self.close(str(event.error) if event.error is not None else "the server is leaving")
        elif isinstance(event, ConnectionBroken):
            self._transmit()  # GOAWAY with the error code
            self._abort(str(event.error), event.error, self._backend.says_goodbye)
        elif isinstance(event, (OriginsNamed, AlternativeOffered)):
            self._tell_announced(event)
        else:
            if isinstance(event, SilenceChanged):
                self.silent = event.silent
                for exchange in self._exchanges.values():
                    exchange.on_silence(event.silent)
            if self._life.state is State.OPEN:
                self._tell_available()

    def _tell_announced(self, news: OriginsNamed | AlternativeOffered) -> None:
        owner = self._owner()
        if isinstance(news, AlternativeOffered) and news.exchange:
            exchange = self._exchanges.get(news.exchange)
            if exchange is None:
                return  # nobody waits for it any more
            news.origin = exchange.request.origin
        if owner is not None:
            owner.connection_announced(self, news)

    def _over(self, exchange: Exchange) -> None:
        """Both halves are over: the response is complete, and our side sent all, or stopped."""
        if self._exchanges.pop(exchange.number, None) is not None:
            if exchange.sending.state is Send.STOPPED:
                self._backend.stop(exchange.number)
            self._reader.resume()  # what has yet to be read of it holds up nobody else
            if self._exchanges and self._backend.pauses_reading:
                next(iter(self._exchanges.values())).on_first_in_line()

    def _settle(self) -> None:
        """After exchanges ended: move on in life, or tell the owner of the room."""
        state = self._life.state
        if state is State.DRAINING:
            if not self._exchanges and self._life.move(State.CLOSING):
                self._count()
                self._reader.stop()
                if not self._task:
                    self._spawn()
        elif state is State.OPEN:
            if self._backend.spent:
                # The end of a tunnel, Connection: close heard before our half was over, or the last stream id is used.
                self.close("it can carry no more requests")
            elif self._exchanges:
                if self.capacity():
                    self._tell_available()
            elif self._idle_since == math.inf:  # and not only a PING or the like, to which it stays as idle as it was
                self._idle_since = monotonic()
                self._idle_for = min(self._idle_limit, _kept(self._backend.kept_idle))
                self._watch_idle()
                self._tell_available()

    def _count(self) -> None:
        """It is over with its exchanges. (One that never had any, a race's second or a surplus one, shows nothing.)"""
        if self.opened and not self.answered:
            self.service.barren += 1

    def _watch_idle(self) -> None:
        if self._idle_for < math.inf:
            self.watch(self._idle_since + self._idle_for)

    def _expire(self) -> None:
        """It was idle for too long."""
        kept = self._backend.kept_idle
        why = f", and the server keeps it for {kept:g} s" if self._idle_for < self._idle_limit else ""
        self.close(f"idle for {self._idle_for:g} s{why}")

    # Writing

    def _transmit(self, *, answers: bool = False) -> None:
        data = self._backend.take_output()
        if self._life.state is not State.CLOSED:
            self._writer.write(data, answers=answers)

    def _written(self) -> None:
        self._reader.resume()
        for exchange in self._exchanges.values():
            exchange.on_room()

    # Time

    def catch_up(self) -> bool:
        """Take what has come, and send what can go, though the event loop had no time to have us do so.

        :return: whether that was all that has come.
        """
        unsent = self._top.unsent
        self._top.catch_up()
        if self._top.unsent < unsent:
            self._written()
        return not self._reads() or self._reader.catch_up()

    def _on_alarm(self) -> None:
        seen_all = self.catch_up()
        if self._ended:
            return
        now, following = monotonic(), math.inf
        for exchange in list(self._exchanges.values()):
            following = min(following, exchange.expire(now, seen_all=seen_all))
        if self._life.state is State.OPEN:
            idle_until = self._idle_since + self._idle_for  # (inf while an exchange is open)
            if now < idle_until:
                following = min(following, idle_until)
            elif self._wanted():
                following = min(following, now + _WANTED_AGAIN)
            else:
                self._expire()
        following = min(following, self._pulse.look(now, self._ping))
        if following == -math.inf:
            waited = f"no sign of life within {self._pulse.timeout:g} s of a PING"
            self._abort(waited, TransportError(f"{self.label}: {waited}", operation="read"))
        elif self._life.state is not State.CLOSED:
            self.watch(following)

    def _ping(self) -> bool:
        if not self._reads() or not self._backend.ping():
            return False
        self._transmit()
        return True

    # Ending

    async def _say_goodbye(self) -> None:
        deadline = self._deadline = self._deadline or Deadline.after(self.config.grace)
        if not await self._writer.finished(deadline):
            self.abort("the server took no more of what we sent")
            return
        self._say_ours()
        taken = await self._top.delivered(deadline) if self._said else True
        seconds = monotonic() - self._leaves_at
        lower = await self._stack.hear_out(deadline)
        taken = taken and lower[-1].said != "RST"  # then the peer did not even take it
        if self._life.move(State.CLOSED):
            self._end([self._told(taken=taken, seconds=seconds), *lower])

    def _say_ours(self) -> None:
        """The backend's goodbye, once."""
        if self._said is None:
            self._leaves_at = monotonic()
            # To a peer that has ended there is nothing to say.
            self._said = "" if self._at_end else self._backend.says_goodbye
            self._backend.goodbye()
            self._top.transmit_last(self._backend.take_output())

    def _told(self, *, taken: bool, seconds: float = 0.0) -> LayerEnd:
        """The backend's own end.

        :param taken: the peer has what was said, as far as we know.
        """
        outcome = Outcome.PEER_FIRST if self._heard_goodbye else Outcome.CLEAN
        if self._said and not taken:
            outcome = Outcome.TIMED_OUT
        return LayerEnd(self._backend.name, self._said or "", self._heard_goodbye, outcome, seconds)

    def _report(self, layers: Sequence[LayerEnd]) -> ConnectionEnd:
        began = min(self._leaves_at, monotonic())
        return ConnectionEnd(
            route=self.label,
            http_version=self.http_version,
            reason=self.reason,
            layers=tuple(layers),
            exchanges=self.opened,
            cut=self._cut,
            began=began - self._epoch if self._epoch is not None else 0.0,
            seconds=monotonic() - began,
        )

    def _end(self, layers: Sequence[LayerEnd]) -> None:
        if self._ended:
            return
        self._ended = True
        self._alarm.stop()
        end = self._report(layers)
        self._keeper = None
        owner = self._owner()
        if owner is not None:
            owner.connection_ended(self, end)

    def _fail_all(self, error: AllswellError) -> None:
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.on_error(error)

    def _tell_available(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner.connection_available(self)
        elif not self._exchanges:
            self.close("its pool is gone")

    def _wanted(self) -> bool:
        owner = self._owner()
        return owner is not None and not self.capacity() and owner.connection_wanted(self)

    def _tell_leaving(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner.connection_leaving(self)


def _kept(seconds: float) -> float:
    """How long a connection may be idle that its server keeps for so long: a request needs time to arrive there."""
    return seconds - min(_ON_THE_WAY, seconds / 2) if seconds < math.inf else seconds
