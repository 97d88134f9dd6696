"""The connection pool: which connection serves a request, when to make another, what may be sent again, how all ends.

Theory of operation. All decisions are synchronous, made where something changed: a request arrives, an exchange ends, a
dial ends, a connection leaves. A request that finds a connection with room opens its exchange there and then;
otherwise it waits (`waiters.py`), and the pool dials for it when the limits allow. A waiter is served by whichever
connection of its route has room first, dialled for it or not: the pool opens the exchange in its name, so that room
is never reserved for a task that has yet to wake up. Dials belong to the pool, not to the request that caused them.

Connections are reused last-in first-out, so that those that are not needed grow idle and expire. Over the limits, the
idle connection that was unused for longest ends (in the background, politely), whichever route it serves.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Self

import anyio
import httpx2

from allswell._config import PoolConfig, ProxyHop, Timeouts
from allswell._connection.driver import Connection
from allswell._connection.exchange import Exchange, TrailerSource
from allswell._deadline import Deadline
from allswell._errors import AllswellError, ConnectFailed, NotProcessed, PoolClosed, Timeout
from allswell._messages import Headers, RequestHead
from allswell._pool.dialer import Dialer
from allswell._pool.proxy_dialer import forwarded
from allswell._pool.request import Body, Request
from allswell._pool.response import Response
from allswell._pool.route import Destination, Route, destination, parsed
from allswell._pool.waiters import Waiters
from allswell._report import CloseReport, ConnectionEnd
from allswell._tasks import Alarm, Signal, TaskHost, current_host, weak_method
from allswell._trace import PREFIXES

#: Without a total timeout: how long a request that the peer provably did not process is tried again, in seconds.
_REPLAY_FOR = 60.0

#: How long an idle connection over the keep-alive limit is kept after all, in seconds.
_SURPLUS_FOR = 0.5

#: After the grace: time for tasks that were told to finish, in seconds. (They wait for nothing any more.)
_SLACK = 0.1


class _Dial:
    """A connection in the making, and how many waiters it may serve."""

    __slots__ = ("covers", "deadline", "waiters")

    def __init__(self, covers: int) -> None:
        self.covers = covers
        self.waiters: dict[_Waiter, None] = {}
        self.deadline = Deadline()  # none, until the pool closes


class _Waiter:
    """A request that waits for room; served, it has an exchange, else an error."""

    __slots__ = ("dial", "error", "exchange", "request", "signal", "since", "total_at")

    def __init__(self, request: Request, total_at: float, signal: Signal, *, since: float) -> None:
        self.request = request
        self.total_at = total_at
        self.signal = signal
        self.since = since  # see _fit
        self.dial: _Dial | None = None
        self.exchange: Exchange | None = None
        self.error: AllswellError | None = None


class _RouteState:
    """What the pool has on one route."""

    __slots__ = ("available", "connections", "counts", "dials", "multiplexes", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.available: dict[Connection, None] = {}  # with room; the last one was used last
        self.connections = 0  # those that count against the limits
        self.dials: dict[_Dial, None] = {}
        self.multiplexes: bool | None = None  # as the last connection turned out
        self.counts = not route.carries  # against the limits


class ConnectionPool:
    """HTTP connections, and requests over them. Give it settings, or keywords for a :class:`PoolConfig`.

    Use it in ``async with``, or call :meth:`aclose` when done. It belongs to one event loop.
    """

    def __init__(self, config: PoolConfig | None = None, **settings: object) -> None:
        self.config = replace(config or PoolConfig(), **settings)  # type: ignore[arg-type]  # checked by dataclass
        if not (self.config.http1 or self.config.http2):
            raise ValueError("no version of HTTP is left: http1 and http2 are both off")
        self._host: TaskHost | None = None
        self._dialer: Dialer | None = None
        self._routes: dict[Route, _RouteState] = {}
        self._waiters: Waiters[_Waiter] = Waiters()
        self._idle: dict[Connection, None] = {}  # the first has been idle for longest
        self._homes: dict[Connection, _RouteState] = {}  # where each connection counts, while it does
        self._connections: dict[Connection, Route] = {}  # all that are not closed, those in their goodbyes included
        self._surplus: Alarm | None = None
        self._counted = 0  # connections and dials that count against the limit
        self._users = 0
        self._closing: Deadline | None = None
        self._ended = anyio.Event()
        self._ends: list[ConnectionEnd] = []
        self._dropped = 0
        self.close_report: CloseReport | None = None

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests: it is closing, or closed."""
        return self._closing is not None

    # For callers

    async def request(
        self,
        method: str,
        url: str | httpx2.URL,
        *,
        headers: Headers | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeouts: Timeouts | None = None,
        trailers: TrailerSource = None,
    ) -> Response:
        """Send a request and read the whole response.

        :param headers: names and values; ``Host`` and the framing of ``content`` are added where they are missing.
        :param content: the body; an async iterable is sent chunked, unless a Content-Length is given.
        :raises AllswellError: saying who failed and how.
        """
        made = _request(method, url, headers, content, timeouts, trailers, self.config.proxies)
        response = await self.send(made)
        try:
            await response.read()
        except BaseException:
            await response.aclose()
            raise
        return response

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str | httpx2.URL,
        *,
        headers: Headers | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeouts: Timeouts | None = None,
        trailers: TrailerSource = None,
    ) -> AsyncIterator[Response]:
        """Send a request; the body is read piece by piece, as far as one likes. Parameters as in :meth:`request`."""
        made = _request(method, url, headers, content, timeouts, trailers, self.config.proxies)
        response = await self.send(made)
        try:
            yield response
        finally:
            await response.aclose()

    async def send(self, request: Request) -> Response:
        """Send a request; its response, of which the head has come. The caller must read or close it.

        :raises AllswellError: saying who failed and how.
        """
        if request.route.proxies and self.config.http1:
            request = forwarded(request)
        total = request.timeouts.total
        total_at = math.inf if total is None else monotonic() + total
        attempts: list[str] = []
        since = -math.inf
        give_up_at = total_at if total is not None else monotonic() + _REPLAY_FOR
        while True:
            exchange = self._open_now(request, total_at, since)
            if exchange is None:
                exchange = await self._wait(_Waiter(request, total_at, self._loop().signal(), since=since))
            try:
                return await self._respond(request, exchange, attempts)
            except NotProcessed as error:
                attempts.append(str(error.cause))
                given_up = monotonic() > give_up_at or (since == math.inf and not error.proven)
                if given_up or not request.may_repeat(proven=error.proven):
                    raise error.cause from error
                if error.proven:
                    await _jitter(len(attempts), error)
                else:
                    # Its like would end just the same, so a new one. Many may have been lost at once: where they can
                    # share it, they do; but who is lost a second time gets one of his own, and that is the last.
                    shared = exchange.connection.multiplexes and since == -math.inf
                    since = monotonic() if shared else math.inf

    def share(self) -> None:
        """Become a user of this pool. It closes when the last of its users has left."""
        self._users += 1

    def forget(self) -> None:
        """A user was dropped without leaving: it counts no more, so that the others can be the last."""
        self._users -= 1

    async def leave(self, timeout: float | None = None, *, cut: bool = False) -> CloseReport:
        """Be a user no longer; the last one closes the pool. Others' exchanges are not disturbed.

        :return: as :meth:`aclose`; empty when the pool stays open for others.
        """
        self._users -= 1
        if self._users > 0:
            return CloseReport()
        return await self.aclose(timeout, cut=cut)

    async def __aenter__(self) -> Self:
        self._loop()
        self.share()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave(cut=kind is not None)

    async def aclose(self, timeout: float | None = None, *, cut: bool = False) -> CloseReport:
        """Close all connections, side by side, each layer with its goodbye; never longer than the grace.

        Refuses new requests; fails those that wait for a connection. Exchanges in flight may finish, until a quarter of
        the grace (at most 0.5 s) is left for the goodbyes. Called again, it returns the same report.

        :param timeout: the grace in seconds; the pool's own (2.0) by default; 0 to say everything and wait for nothing.
        :param cut: do not wait for exchanges in flight.
        """
        grace = self.config.grace if timeout is None else timeout
        if self._closing is None:
            self._closing = Deadline.after(grace)
            self.close_report = await self._close(self._closing, grace, cut=cut)
        else:
            self._closing.tighten(monotonic() + grace)
            for connection in list(self._connections):
                connection.close("the pool closes", self._closing)
            while self.close_report is None:
                await self._ended.wait()
        return self.close_report

    def __del__(self) -> None:
        orphans = len(getattr(self, "_connections", ())) + getattr(self, "_dropped", 0)
        if orphans and self.close_report is None:
            message = f"unclosed {self!r}: {orphans} connections were left open"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)
            if self._host is not None and self._connections:
                self._host.call_soon_threadsafe(partial(_abort_all, list(self._connections)))

    def __repr__(self) -> str:
        state = "closed" if self.close_report else "closing" if self._closing else "open"
        return f"<ConnectionPool, {state}, {len(self._connections)} connections>"

    # One request

    async def _respond(self, request: Request, exchange: Exchange, attempts: list[str]) -> Response:
        tracer = request.tracer
        if request.body is not None and not exchange.uploaded:
            exchange.start_upload(request.body.pieces(), request.trailers)
        if tracer is None:
            head = await exchange.response(request.on_informational)
        else:
            tracer.prefix = PREFIXES[exchange.connection.http_version]
            tracer.request = request
            for step in ("send_request_headers", "send_request_body"):
                tracer.note(f"{step}.started", {"request": request})
                tracer.note(f"{step}.complete", {"return_value": None})
            tracer.note("receive_response_headers.started", {"request": request})
            await tracer.tell()
            try:
                head = await exchange.response(request.on_informational)
            except BaseException as error:
                tracer.note("receive_response_headers.failed", {"exception": error})
                tracer.note("response_closed.started", {})
                tracer.note("response_closed.complete", {"return_value": None})
                await tracer.tell()
                raise
            told = (head.http_version, head.status, head.reason, head.headers)
            tracer.note("receive_response_headers.complete", {"return_value": told})
            await tracer.tell()
        assert self._dialer is not None
        if self.config.http3 is True and request.route.scheme == "https" and request.route.proxy is None:
            for name, value in head.headers:
                if name.lower() == b"alt-svc":
                    self._dialer.learn(request.route, value)
        return Response(head, exchange, attempts, self._dialer.tls, tracer)

    def _open_now(self, request: Request, total_at: float, since: float) -> Exchange | None:
        """Open the exchange at once, where a connection has room and nobody has waited for it longer."""
        state = self._routes.get(request.route)
        if state is None or self._closing is not None or self._waiters.waiting(request.route):
            return None
        available = state.available
        while available:
            connection = next(reversed(available))
            if not _fit(connection, since):
                return None
            ready = connection.capacity() if request.may_repeat(proven=False) else connection.usable()
            if ready:
                return self._open_on(state, connection, request, total_at)
            available.pop(connection, None)
        return None

    def _open_on(self, state: _RouteState, connection: Connection, request: Request, total_at: float) -> Exchange:
        inline = request.inline
        exchange = connection.open(
            request.head,
            inline,
            timeouts=request.timeouts,
            total_at=total_at,
            upload=request.body is not None and inline is None,
        )
        self._idle.pop(connection, None)
        if not connection.capacity():
            state.available.pop(connection, None)
        return exchange

    async def _wait(self, waiter: _Waiter) -> Exchange:
        request = waiter.request
        if self._closing is not None:
            raise PoolClosed("the pool is closed")
        route = request.route
        state = self._routes.get(route)
        if state is None:
            state = self._routes[route] = _RouteState(route)
        pool_at = math.inf if request.timeouts.pool is None else monotonic() + request.timeouts.pool
        self._waiters.add(route, waiter)
        self._make_room(state)
        try:
            while waiter.exchange is None and waiter.error is None:
                until = waiter.total_at if waiter.dial is not None else min(pool_at, waiter.total_at)
                with Deadline(until).scope() as scope:
                    await waiter.signal.wait()
                if request.tracer is not None:
                    await request.tracer.tell()
                if scope.cancelled_caught and waiter.exchange is None and waiter.error is None:
                    self._time_out(waiter)
        except BaseException:
            if waiter.exchange is not None:
                waiter.exchange.abandon()
            raise
        finally:
            self._forget(state, waiter)
        if waiter.exchange is None:
            assert waiter.error is not None
            raise waiter.error
        return waiter.exchange

    def _time_out(self, waiter: _Waiter) -> None:
        origin, timeouts = waiter.request.route.label, waiter.request.timeouts
        if waiter.total_at <= monotonic():
            waiter.error = Timeout(f"{origin}: no connection within the total {timeouts.total:g} s", phase="total")
        else:
            waiter.error = Timeout(f"{origin}: no room in the pool within {timeouts.pool:g} s", phase="pool")

    def _forget(self, state: _RouteState, waiter: _Waiter) -> None:
        self._waiters.remove(state.route, waiter)
        if waiter.dial is not None:
            waiter.dial.waiters.pop(waiter, None)
            waiter.dial = None

    # Serving and dialling

    def _serve(self, state: _RouteState, connection: Connection) -> None:
        """Give the connection's room to those who wait on its route, first come first."""
        while connection.capacity():
            chosen = next((w for w in self._waiters.first(state.route) if _fit(connection, w.since)), None)
            if chosen is None:
                return
            self._forget(state, chosen)
            try:
                chosen.exchange = self._open_on(state, connection, chosen.request, chosen.total_at)
            except NotProcessed:
                self._waiters.add(state.route, chosen)  # to its end: but it has no more room, so the loop is over
                return
            except AllswellError as error:
                chosen.error = error
            chosen.signal.set()

    def _make_room(self, state: _RouteState) -> None:
        """Cover the route's starved waiters: by dials under way that may serve more, then by new ones."""
        waiters = self._waiters
        if self._closing is not None:
            return
        for dial in list(state.dials):
            while len(dial.waiters) < dial.covers and (waiter := waiters.starved(state.route)) is not None:
                self._cover(state, waiter, dial)
        while waiters.starved(state.route) is not None and self._admit(state):
            dial = _Dial(self._expected(state))
            state.dials[dial] = None
            self._counted += state.counts
            first = waiters.starved(state.route)
            assert first is not None
            while len(dial.waiters) < dial.covers and (waiter := waiters.starved(state.route)) is not None:
                self._cover(state, waiter, dial)
            self._loop().spawn(self._dial, state, dial, first.request, name=f"allswell dials {state.route.origin}")

    def _cover(self, state: _RouteState, waiter: _Waiter, dial: _Dial) -> None:
        self._waiters.cover(state.route, waiter)
        waiter.dial = dial
        dial.waiters[waiter] = None
        waiter.signal.set()

    def _expected(self, state: _RouteState) -> int:
        assert self._dialer is not None
        multiplexes = state.multiplexes
        if multiplexes is None:
            multiplexes = self._dialer.may_multiplex(state.route)
        return self._dialer.streams(state.route) if multiplexes else 1

    def _admit(self, state: _RouteState) -> bool:
        """Whether the limits allow one more connection on this route, if need be in the place of an idle one."""
        if not state.counts:
            return True
        limits = self.config
        per_route = limits.max_connections_per_route
        if per_route is not None and state.connections + len(state.dials) >= per_route:
            # One that is idle although somebody waits here will not do for him: he needs a fresh one.
            idle = next((each for each in state.available if each in self._idle), None)
            if idle is None:
                return False
            self._evict(idle)
        while limits.max_connections is not None and self._counted >= limits.max_connections:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            self._evict(oldest)
        return True

    def _evict(self, connection: Connection) -> None:
        """End an idle connection; its place is the caller's to give, so it is taken from it first."""
        state = self._detach(connection)
        connection.close("its place was needed")
        if state is not None:
            self._tidy(state)

    async def _dial(self, state: _RouteState, dial: _Dial, request: Request) -> None:
        error: AllswellError | None = None
        connection: Connection | None = None
        try:
            with dial.deadline.scope() as closing:
                for attempt in range(self.config.retries + 1):
                    if attempt:
                        await anyio.sleep(0.5 * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
                    try:
                        connection = await self._connect(state.route, request)
                        break
                    except (ConnectFailed, Timeout) as failure:
                        error = failure
            if closing.cancelled_caught:
                error = PoolClosed("the pool was closed while the request waited for a connection")
        except Exception as failure:  # noqa: BLE001 - a bug, or a setting that the system refuses: who waits must learn
            error = ConnectFailed(f"cannot connect to {state.route.label}: {failure!r}", phase="tcp", by="us")
            error.__cause__ = failure
        finally:
            del state.dials[dial]
            self._counted -= state.counts
            if connection is None:
                self._dial_failed(state, dial, error or PoolClosed("the event loop ended"))
            else:
                self._dial_succeeded(state, dial, connection)
            self._something_ended()

    async def _connect(self, route: Route, request: Request) -> Connection:
        assert self._dialer is not None
        seconds = request.timeouts.connect
        with Deadline.after(seconds).scope():
            return await self._dialer.dial(route, self, self.send, request.tracer, timeout=seconds)
        raise Timeout(f"{route.label}: no connection within {seconds:g} s", phase="connect")

    def _dial_failed(self, state: _RouteState, dial: _Dial, error: AllswellError) -> None:
        for waiter in list(dial.waiters):
            self._forget(state, waiter)
            waiter.error = error
            waiter.signal.set()
        self._room_came(state)

    def _dial_succeeded(self, state: _RouteState, dial: _Dial, connection: Connection) -> None:
        state.multiplexes = connection.capacity() > 1
        state.connections += 1
        self._homes[connection] = state
        self._connections[connection] = state.route
        self._counted += state.counts
        self._loop().spawn(connection.run, name=f"allswell {connection.http_version} to {connection.label}")
        if self._closing is not None:
            connection.close("the pool closes", self._closing)
            return
        self.connection_available(connection)
        # Whom it could not serve (they were more than it turned out to have room for) waits for another.
        for waiter in list(dial.waiters):
            waiter.dial = None
            self._waiters.uncover(state.route, waiter)
            waiter.signal.set()
        self._make_room(state)

    def _room_came(self, state: _RouteState) -> None:
        """A place under the limits is free: the one who has waited longest, on whichever route, has it."""
        if self.config.max_connections is None:
            self._make_room(state)
        else:
            for route in self._waiters.starved_routes():
                assert isinstance(route, Route)
                self._make_room(self._routes[route])
                if self._counted >= self.config.max_connections and not self._idle:
                    break
        self._tidy(state)

    def _owed_elsewhere(self, state: _RouteState) -> bool:
        """Whether the place of a connection without exchanges belongs to another route.

        There someone has waited for longer than anyone here, and nothing is under way that could ever serve him.
        """
        oldest = self._waiters.starved_longest()
        if oldest is None or oldest == state.route or self.config.max_connections is None or not state.counts:
            return False
        assert isinstance(oldest, Route)
        other = self._routes[oldest]
        return not (other.connections or other.dials) and self._counted >= self.config.max_connections

    def _tidy(self, state: _RouteState) -> None:
        if not (state.connections or state.dials or self._waiters.waiting(state.route)):
            self._routes.pop(state.route, None)

    # What connections tell (see _connection/interface.py)

    def connection_available(self, connection: Connection) -> None:
        """It has room: serve who waits, or keep it."""
        state = self._homes.get(connection)
        if state is None:
            return
        # (One that has carried nothing yet was made for who waits here, when it was his turn.)
        if connection.opened and not connection.open_exchanges and self._owed_elsewhere(state):
            self._detach(connection)
            connection.close("its place was needed")
            self._room_came(state)
            return
        if self._waiters.waiting(state.route):
            self._serve(state, connection)
        if connection.capacity():
            state.available.pop(connection, None)
            state.available[connection] = None
            if not connection.open_exchanges:
                self._idle[connection] = None
                if self._waiters.starved_longest() is not None:
                    self._room_came(state)  # for which it may have to end
                limit = self.config.max_keepalive_connections
                if limit is not None and len(self._idle) > limit:
                    self._thin_out()

    def _thin_out(self) -> None:
        """End idle connections over the keep-alive limit, oldest first: those that nobody wanted for a moment.

        (When fifty answers come at once, fifty connections are idle until the fifty requesters have had their turn.)
        """
        limit = self.config.max_keepalive_connections or 0
        now = monotonic()
        while len(self._idle) > limit:
            oldest = next(iter(self._idle))
            if oldest.idle_since + _SURPLUS_FOR > now:
                if self._surplus is None:
                    self._surplus = Alarm(self._loop(), weak_method(self._thin_out))
                self._surplus.set(min(self._surplus.at, oldest.idle_since + _SURPLUS_FOR))
                return
            oldest.close(f"more than {limit} idle connections")

    def connection_leaving(self, connection: Connection) -> None:
        """It takes no more: it counts no more either, so another may take its place while it still drains."""
        state = self._detach(connection)
        if state is not None and self._closing is None:
            self._room_came(state)

    def _detach(self, connection: Connection) -> _RouteState | None:
        """Count it no more; the route's state, where it did count until now."""
        self._idle.pop(connection, None)
        state = self._homes.pop(connection, None)
        if state is not None:
            state.available.pop(connection, None)
            state.connections -= 1
            self._counted -= state.counts
        return state

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """It is closed."""
        self._connections.pop(connection, None)
        if self._closing is not None:
            self._ends.append(end)
        elif end.reason == "the event loop ended":
            self._dropped += 1
        if self.config.on_connection_end is not None:
            self.config.on_connection_end(end)
        self._something_ended()

    def _something_ended(self) -> None:
        ended, self._ended = self._ended, anyio.Event()
        ended.set()

    # Closing

    async def _close(self, deadline: Deadline, grace: float, *, cut: bool) -> CloseReport:
        epoch = monotonic()
        if self._surplus is not None:
            self._surplus.stop()
        for waiter in self._waiters:
            waiter.error = PoolClosed("the pool was closed while the request waited for a connection")
            waiter.signal.set()
        for state in list(self._routes.values()):
            for dial in list(state.dials):
                dial.deadline.tighten(epoch)
        reserve = min(0.5, grace / 4)
        carried = any(route.carries for route in self._connections.values())
        for connection, route in list(self._connections.items()):
            # What may go through another connection ends sooner, so that the other has its turn. (That one waits: its
            # exchanges are tunnels.)
            sooner = carried and route.proxies and not route.carries
            connection.close("the pool closes", deadline.shifted(-reserve / 2) if sooner else deadline, epoch=epoch)
        try:
            if not cut:
                await self._all_ended(deadline.shifted(-reserve))
            late = PoolClosed(f"the pool was closed, and the response was not complete within its grace of {grace:g} s")
            for connection, route in list(self._connections.items()):
                if not route.carries:
                    connection.cut(late)
            await self._all_ended(deadline.shifted(_SLACK))
        finally:
            for connection in list(self._connections):
                connection.abort("the grace is over")
            self.close_report = CloseReport(tuple(self._ends), grace, monotonic() - epoch)
            self._ended.set()
        return self.close_report

    async def _all_ended(self, deadline: Deadline) -> None:
        with deadline.scope():
            while self._connections or any(state.dials for state in self._routes.values()):
                await self._ended.wait()

    def _loop(self) -> TaskHost:
        if self._host is None:
            self._host = current_host()
            self._dialer = Dialer(self._host, self.config)
        return self._host


def _abort_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.abort("its pool was dropped open")


def _fit(connection: Connection, since: float) -> bool:
    """Whether it was made since then, or has carried nothing yet.

    (``-inf``: any will do. ``inf``: only one that has carried nothing.)
    """
    return connection.made_at > since or not connection.opened


async def _jitter(tries: int, error: NotProcessed) -> None:
    """Where a peer keeps refusing: do not hurry back together with everybody else."""
    if tries > 1:
        await anyio.sleep(random.uniform(0, min(1.0, 0.01 * 2 ** min(tries, 7))))


def _request(
    method: str,
    url: str | httpx2.URL,
    headers: Headers | None,
    content: bytes | AsyncIterable[bytes] | None,
    timeouts: Timeouts | None,
    trailers: TrailerSource,
    proxies: tuple[ProxyHop, ...],
) -> Request:
    to: Destination = parsed(url) if isinstance(url, str) else destination(url)
    given = {name.lower() for name, _ in headers} if headers else ()
    section: Headers = [] if b"host" in given else [(b"Host", to.authority)]
    if headers:
        section += headers
    if content is not None and b"content-length" not in given and b"transfer-encoding" not in given:
        if isinstance(content, bytes) and trailers is None:
            section.append((b"Content-Length", str(len(content)).encode("ascii")))
        else:
            section.append((b"Transfer-Encoding", b"chunked"))
    head = RequestHead(method.encode("ascii"), to.route.scheme.encode("ascii"), to.authority, to.target, section)
    body = Body(content) if content is not None else None
    route = to.route._replace(proxies=proxies) if proxies else to.route
    if b"upgrade" in given:
        route = route._replace(upgrades=True)
    return Request(head, route, body, timeouts or Timeouts(), trailers)
