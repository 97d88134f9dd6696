"""The dispatcher: which connection serves a request, when to make another, and which has to go.

Theory of operation. All decisions are synchronous, made where something changed: a request arrives, an exchange ends, a
dial ends, a connection leaves. A request that finds a connection with room opens its exchange there and then;
otherwise it waits (`waiters.py`), and we dial for it when the limits allow. A waiter is served by whichever connection
of its route has room first, dialled for it or not: the exchange is opened in its name, so that room is never reserved
for a task that has yet to wake up. Dials belong to the pool, not to the request that caused them: a dial has the time
that its most patient waiter allows. One that has less (or is cancelled) leaves it to the others.

Where requests are pipelined, a connection can have room *behind* other exchanges. It is used when no idle one is there,
and before a new one is made, in turns; only for requests that may follow others, and never past one that waits and
may not: it would wait for ever for a connection to become idle.

A connection may serve other routes than the one that it was made for (`coalescing.py`). A dial looks for such a one
first; until it has found none, it makes no connection, and counts against no limit.

Connections are reused last-in first-out, so that those that are not needed grow idle and expire. Over the limits, the
idle connection that was unused for longest ends (in the background, politely), whichever route it serves.
"""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel

from allswell._backends.interface import AlternativeOffered, OriginsNamed
from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._connection.lifecycle import LAST_MOMENT, LOOP_ENDED
from allswell._deadline import Deadline
from allswell._dial.dialer import Dialer
from allswell._errors import (
    AllswellError,
    ConnectFailed,
    NotProcessed,
    PoolClosed,
    RemoteProtocolError,
    Timeout,
    TimeoutPhase,
    first_of,
)
from allswell._pool.coalescing import Coalescing
from allswell._pool.member import ANY, Freshness, Member, Standing
from allswell._pool.route_state import Dial, RouteState, Waiter, may_join
from allswell._pool.snapshot import ConnectionSnapshot, RouteSnapshot
from allswell._pool.waiters import Waiters
from allswell._report import ConnectionEnd
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._request.route import Route
from allswell._tasks import Alarm, Limit, TaskHost, logger, weak_method

#: How long an idle connection over the keep-alive limit is kept after all, in seconds.
_SURPLUS_FOR = 0.5

#: After the grace: time for tasks that were told to finish, in seconds. (They wait for nothing any more.)
_SLACK = 0.1


class Ungranted(NotProcessed):
    """Internal: the connection that a request waited for has ended before it allowed any.

    :ivar connection: that one.
    """

    def __init__(self, connection: Connection, label: str) -> None:
        why = f" ({connection.reason})" if connection.reason else ""
        cause = RemoteProtocolError(f"{label} ended its connection before it allowed a request{why}")
        super().__init__(cause, proven=True)
        self.connection = connection


class Dispatcher:
    """The connections of one pool, and who waits for them. It is the owner that its connections tell what happens.

    :param send: how a request is sent through the pool (a tunnel through a proxy is one); held weakly.
    :ivar host: the event loop.
    :ivar connections: all that are not closed, those in their goodbyes included, and their routes.
    :ivar ends: of those that closed since :meth:`close` was called.
    :ivar dropped: how many the end of the event loop cut off.
    """

    def __init__(
        self,
        host: TaskHost,
        dialer: Dialer,
        config: PoolConfig,
        send: Callable[[Request], Awaitable[Response]],
    ) -> None:
        self.config = config
        self.dialer = dialer
        self.connections: dict[Connection, Route] = {}
        self.ends: list[ConnectionEnd] = []
        self.dropped = 0
        self.host = host
        self._send = weakref.WeakMethod(send)
        self._routes: dict[Route, RouteState] = {}
        self._waiters: Waiters[Waiter] = Waiters()
        #: Of each connection while it counts: it is open.
        self._members: dict[Connection, Member] = {}
        self._idle: dict[Member, None] = {}  # the first has been idle for longest
        self._keep = 0 if config.keepalive_expiry == 0 else config.max_keepalive_connections  # how many of them
        self._coalescing = Coalescing(config, dialer)
        self._surplus: Alarm | None = None
        self._look_again = Alarm(host, weak_method(self._make_room_for_all))  # at the waiters for what exists
        self._counted = 0  # connections and dials that count against the limit
        self._closing: Deadline | None = None
        self._late = ""  # what an exchange is told that has not ended with the grace
        self._lingering: dict[Connection, None] = {}  # that were left (take_leave), and have not ended yet
        self._ended = anyio.Event()
        host.when_over(self._loop_ended)

    # For requests

    def open_now(self, request: Request, fresh: Freshness) -> Exchange[Connection] | None:
        """Open the exchange at once, where a connection has room and nobody has waited for it longer."""
        state = self._routes.get(request.route)
        if state is None or self._closing is not None or self._waiters.waiting(request.route):
            return None
        free = state.free
        while free:
            member = next(reversed(free))
            connection = member.connection
            if fresh is not ANY and not fresh.met_by(connection):
                return None
            if connection.usable() if _looks(connection, request) else connection.capacity():
                return self._open_on(state, member, request)
            member.has_none()  # another route's requests took it; or it is about to leave
        if state.behind and request.may_follow:
            for member in [each for each in state.behind if fresh.met_by(each.connection)]:
                if member.connection.usable():
                    return self._open_on(state, member, request)
                member.has_none()
        return None

    def _open_on(self, state: RouteState, member: Member, request: Request) -> Exchange[Connection]:
        connection, inline = member.connection, request.inline
        exchange = connection.open(
            request.head,
            inline,
            label=state.label,
            timeouts=request.timeouts,
            total_at=request.total_at,
            upload=request.body is not None and inline is None,
        )
        self._idle.pop(member, None)
        if not connection.capacity():
            member.has_none()
        elif not connection.multiplexes:
            member.has_room()
        return exchange

    async def wait(self, request: Request, fresh: Freshness) -> Exchange[Connection]:
        """Wait for a connection with room, and for it to be made if need be; the exchange opened there.

        :param fresh: how fresh its connection must be.
        :raises AllswellError: when there is none to be had.
        """
        if self._closing is not None:
            raise PoolClosed(f"{request.route.label}: the pool is closed")
        waiter = Waiter(request, self.host.signal(), fresh=fresh)
        route = request.route
        state = self._routes.get(route)
        if state is None:
            state = self._routes[route] = RouteState(route)
        pool_at = math.inf if request.timeouts.pool is None else monotonic() + request.timeouts.pool
        self._waiters.add(route, waiter)
        for member in state.refilling:
            self._idle.pop(member, None)  # somebody wants it
        for member in list(state.free):  # the one in front of it may need a fresh one
            self._serve(state, member)
        try:
            while waiter.exchange is None and waiter.error is None:
                if waiter.dial is None:
                    self._make_room(state)  # again, where its dial was cancelled: a caller proves that the loop runs
                until, phase = self._until(waiter, pool_at)
                with Limit(self.host, until) as limit:
                    await waiter.signal.wait()
                if request.tracer is not None:
                    await request.tracer.tell()
                if limit.passed and waiter.exchange is None and waiter.error is None:
                    waiter.error = waiter.timed_out(phase, ungranted=state.ungranted)
        except BaseException:
            if waiter.exchange is not None:
                waiter.exchange.abandon()
            raise
        finally:
            self._forget(state, waiter)
            if not self._waiters.waiting(route):
                for member in list(state.refilling):
                    self.connection_available(member.connection)  # it is idle after all
            self._tidy(state)
        if waiter.exchange is None:
            assert waiter.error is not None
            raise waiter.error
        return waiter.exchange

    def _until(self, waiter: Waiter, pool_at: float) -> tuple[float, TimeoutPhase]:
        """How long it waits as things are, and what is then to blame."""
        until = pool_at
        if waiter.dial is not None:  # which ends in time by itself, unless others allow it more
            impatient = waiter.patience < waiter.dial.patience
            until = waiter.covered_at + waiter.patience * (1 + self.config.retries) if impatient else math.inf
        if until >= waiter.request.total_at:
            return waiter.request.total_at, "total"
        return until, "connect" if waiter.dial is not None else "pool"

    def _forget(self, state: RouteState, waiter: Waiter) -> None:
        self._waiters.remove(state.route, waiter)
        if waiter.dial is not None:
            waiter.dial.lose(waiter)
            waiter.dial = None

    # Serving and dialling

    def _serve(self, state: RouteState, member: Member) -> None:
        """Give the connection's room to those who wait on its route, first come first."""
        connection, looked = member.connection, False
        while connection.capacity():
            chosen = next((w for w in self._waiters.first(state.route) if w.fresh.met_by(connection)), None)
            if chosen is None or (connection.open_exchanges and not may_join(connection, chosen.request)):
                return
            if connection.opened and not looked and _looks(connection, chosen.request):
                if not connection.usable():  # it may find its end behind a response
                    return
                looked = True  # and it may have served the waiter
                continue
            self._forget(state, chosen)
            try:
                chosen.exchange = self._open_on(state, member, chosen.request)
            except NotProcessed:
                self._waiters.add(state.route, chosen)  # to its end: but it has no more room, so the loop is over
                return
            except Exception as error:  # noqa: BLE001 - whatever cannot be said is its requester's: not the connection's
                chosen.error = error
            chosen.signal.set()

    def _waited_since(self, state: RouteState) -> float:
        first = next(self._waiters.first(state.route), None)
        return first.came_at if first is not None else math.inf

    def _make_room(self, state: RouteState) -> None:
        """Give the route's waiters without a dial one: a dial under way that may serve more, else a new one."""
        waiters = self._waiters
        if self._closing is not None:
            return
        for dial in state.dials:
            self._cover(state, dial)
        while (first := waiters.first_without_dial(state.route)) is not None:
            if (at := state.worth_waiting(first)) is not None:
                self._look_again.set(min(self._look_again.at, at))
                break
            searches = not first.searched and self._coalescing.promises(state.route)
            if not searches and not self._admit(state):
                break
            dial = Dial(self._expected(state), searches=searches)
            state.dials[dial] = None
            if not searches:
                self._count(state, dial)
            self._cover(state, dial)
            dial.patience = max(waiter.patience for waiter in dial.waiters)
            self.host.spawn(self._dial, state, dial, first.request, name=f"allswell dials {state.route.origin}")

    def _make_room_for_all(self) -> None:
        for route in self._waiters.routes_without_dial():
            assert isinstance(route, Route)
            self._make_room(self._routes[route])

    def _cover(self, state: RouteState, dial: Dial) -> None:
        """Let waiters without a dial wait for this one, as many as it may serve."""
        now = monotonic()
        while (waiter := self._waiters.first_without_dial(state.route)) is not None and dial.takes(waiter):
            self._waiters.with_dial(state.route, waiter)
            waiter.dial = dial
            dial.cover(waiter)
            waiter.covered_at = now
            waiter.signal.set()

    def _count(self, state: RouteState, dial: Dial) -> None:
        dial.counts = True
        state.dialling += 1
        self._counted += state.counts

    def _expected(self, state: RouteState) -> int:
        multiplexes = state.multiplexes
        if multiplexes is None:
            multiplexes = self.dialer.may_multiplex(state.route)
        return self.dialer.streams(state.route) if multiplexes else 1

    def _admit(self, state: RouteState) -> bool:
        """Whether the limits allow one more connection on this route, if need be in the place of an idle one."""
        if not state.counts:
            return True
        limits = self.config
        per_route = limits.max_connections_per_route
        if per_route is not None and state.connections + state.dialling >= per_route:
            # It is idle, yet not fresh enough for the waiter: it can go.
            idle = next((each for each in state.free if each in self._idle and each.home is state), None)
            if idle is None:
                return False
            self._evict(idle)
        while limits.max_connections is not None and self._counted >= limits.max_connections:
            # Not one of this route's that is idle for want of room: its peer would allow a new one no more.
            others = (each for each in self._idle if each.connection.capacity() or state not in each.serves)
            oldest = next(others, None)
            if oldest is None:
                return False
            self._evict(oldest)
        return True

    def _evict(self, member: Member) -> None:
        """End an idle connection; its place is the caller's to give, so it is taken from it first."""
        states = self._detach(member)
        member.connection.close("its place was needed")
        for state in states:
            self._tidy(state)

    async def _dial(self, state: RouteState, dial: Dial, request: Request) -> None:
        error: AllswellError | None = None
        raised: BaseException | None = None
        connection: Connection | None = None
        crowded = cancelled = False
        try:
            with dial.deadline.scope() as closing:
                for attempt in range(self.config.retries + 1):
                    if attempt:
                        await anyio.sleep(0.5 * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
                    try:
                        connection = await self._connect(state, dial, request)
                        crowded = connection is None
                        break
                    except (ConnectFailed, Timeout) as failure:
                        error = failure
            if closing.cancelled_caught:
                error = PoolClosed(
                    f"{state.route.label}: the pool was closed while the request waited for a connection"
                )
        except Exception as failure:  # noqa: BLE001 - a bug, or a setting that the system refuses: the waiters must learn
            told = first_of(failure)
            error = ConnectFailed(f"cannot connect to {state.route.label}: {told!r}", phase="tcp", by="us")
            error.__cause__ = failure
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            cancelled = True
            raise
        except BaseException as failure:  # noqa: BLE001 - of the caller's code (a proxy's Auth): it is its request's
            raised = first_of(failure)
        finally:
            del state.dials[dial]
            if dial.counts:
                state.dialling -= 1
                self._counted -= state.counts
            if connection is not None:
                self._dial_succeeded(state, dial, connection)
            elif crowded:
                for waiter in list(dial.waiters):
                    waiter.searched = True
                    self._uncover(state, waiter)
                self._tidy(state)
            elif cancelled:
                self._dial_cancelled(state, dial)
            elif raised is not None:
                self._dial_stopped(state, dial, raised)
            else:
                assert error is not None
                self._dial_failed(state, dial, error)
            self._something_ended()

    async def _connect(self, state: RouteState, dial: Dial, request: Request) -> Connection | None:
        """One of another route's connections, where there is one to be had; else a new one, if there is room for it."""
        route, seconds = state.route, None if dial.patience == math.inf else dial.patience
        with Limit(self.host, math.inf if seconds is None else monotonic() + seconds):
            if dial.searches:
                found = await self._coalescing.find(route)
                dial.searches = False
                if found is not None or not self._admit(state):
                    return found
                self._count(state, dial)
            return await self.dialer.dial(
                route, self, self._send_through, partial(self._discard, route), request.tracer, timeout=seconds
            )
        raise Timeout(f"{route.label}: no connection within {seconds:g} s", phase="connect")

    async def _send_through(self, request: Request) -> Response:
        send = self._send()
        if send is None:
            raise PoolClosed(f"{request.route.label}: the pool is gone")
        return await send(request)

    def _dial_failed(self, state: RouteState, dial: Dial, error: AllswellError) -> None:
        for waiter in list(dial.waiters):
            if isinstance(error, Timeout) and waiter.patience > dial.patience:
                self._uncover(state, waiter)  # it came later, and has more time than this dial had
                continue
            self._fail(state, waiter, error.copy())
        self._room_came(state)

    def _dial_stopped(self, state: RouteState, dial: Dial, error: BaseException) -> None:
        """The caller's code wants more to end than this dial: one request is told. For the others another is made."""
        told = next(iter(dial.waiters), None)
        if told is None:
            logger.error("allswell: a dial that nobody waited for was stopped", exc_info=error)
        else:
            self._fail(state, told, error)
        for waiter in list(dial.waiters):
            self._uncover(state, waiter)
        self._room_came(state)

    def _fail(self, state: RouteState, waiter: Waiter, error: BaseException) -> None:
        self._forget(state, waiter)
        waiter.error = error
        waiter.signal.set()

    def _dial_cancelled(self, state: RouteState, dial: Dial) -> None:
        """Its task was cancelled: the event loop ends, or a program cancels all tasks of a loop that goes on.

        Nothing can be begun from here, for it might never run. The waiters are woken. A request that is not cancelled
        as well asks again, and so proves that the loop runs.
        """
        for waiter in list(dial.waiters):
            self._uncover(state, waiter)
        self._wake_those_without_dial()
        self._tidy(state)

    def _wake_those_without_dial(self) -> None:
        """A place under the limits is free, but nothing can be begun from here: whoever waits for one asks itself."""
        for waiter in self._waiters:
            if waiter.dial is None:
                waiter.signal.set()

    def _dial_succeeded(self, state: RouteState, dial: Dial, connection: Connection) -> None:
        member = self._members.get(connection)
        if member is not None:
            if state not in member.serves:  # (two dials may have found it)
                member.join(state)
        else:
            state.multiplexes = connection.multiplexes
            state.connections += 1
            self._members[connection] = Member(connection, state)
            self._counted += state.counts
            self._start(connection, state.route)
            if self._closing is not None:
                connection.close("the pool closes", self._time_left())
                return
            self._coalescing.add(connection, state.route)
        self.connection_available(connection)
        # Waiters that it could not serve (it has less room than was expected) wait for another.
        for waiter in list(dial.waiters):
            self._uncover(state, waiter)
        self._make_room(state)

    def _start(self, connection: Connection, route: Route) -> None:
        self.connections[connection] = route
        connection.start()

    def _discard(self, route: Route, connection: Connection, reason: str) -> None:
        """It has not won its race: it counts nowhere, and says its goodbyes."""
        self._start(connection, route)
        connection.close(reason, self._time_left())

    def _time_left(self) -> Deadline | None:
        """When the goodbyes must be over; ``None`` when nobody waits for them (then they have the grace)."""
        return self._closing if self._closing is not None and not self._closing.passed() else None

    def _uncover(self, state: RouteState, waiter: Waiter) -> None:
        """Its dial is over, and did not serve it."""
        waiter.dial = None
        self._waiters.without_dial(state.route, waiter)
        waiter.signal.set()

    def _room_came(self, state: RouteState) -> None:
        """A place under the limits is free: the one who has waited longest, on whichever route, has it."""
        if self.config.max_connections is None:
            self._make_room(state)
        else:
            for route in self._waiters.routes_without_dial():
                assert isinstance(route, Route)
                self._make_room(self._routes[route])
                if self._counted >= self.config.max_connections and not self._idle:
                    break
        self._tidy(state)

    def _owed_elsewhere(self, state: RouteState) -> bool:
        """Whether the place of a connection without exchanges belongs to another route.

        There a request has waited for longer than any here, and nothing is under way that could ever serve it.
        """
        oldest = self._waiters.longest_without_dial()
        if oldest is None or oldest == state.route or self.config.max_connections is None or not state.counts:
            return False
        assert isinstance(oldest, Route)
        other = self._routes[oldest]
        return not other.used and self._counted >= self.config.max_connections

    def _tidy(self, state: RouteState) -> None:
        used = state.used or self._waiters.waiting(state.route)
        if not used and self._routes.get(state.route) is state:  # and not another, that was made since
            del self._routes[state.route]

    # What connections tell (see _connection/connection.py)

    def connection_available(self, connection: Connection) -> None:
        """It has room, or is idle: serve who waits, or keep it."""
        member = self._members.get(connection)
        if member is None:
            return
        # (One that has carried nothing yet was made for a waiter here, when it was its turn.)
        if connection.opened and not connection.open_exchanges and self._owed_elsewhere(member.home):
            # Its end is not the server's doing: the waiters here wait on.
            self._evict(member)
            self._room_came(member.home)
            return
        states, waited = member.serves, False
        for state in states if len(states) == 1 else sorted(states, key=self._waited_since):
            if self._waiters.waiting(state.route):
                waited = True
                self._serve(state, member)
        if connection.capacity():
            member.has_room()
        else:
            member.has_none()
        if waited:  # and some wait on: they may need another now, or when the room that is expected has not come
            for state in states:
                self._make_room(state)
        if connection.open_exchanges or connection not in self._members:
            return
        if connection.capacity() or not self.connection_wanted(connection):
            self._idle[member] = None
            if self._waiters.longest_without_dial() is not None:
                self._room_came(member.home)  # for which it may have to end
            if self._keep is not None and len(self._idle) > self._keep:
                self._thin_out()

    def _thin_out(self) -> None:
        """End idle connections over the keep-alive limit, oldest first: those that nobody wanted for a moment.

        (When fifty answers come at once, fifty connections are idle until the fifty requesters have had their turn.
        Who asks for none to be kept has none kept.)
        """
        limit = self._keep or 0
        after_all = _SURPLUS_FOR if limit else 0.0
        now = monotonic()
        while len(self._idle) > limit:
            oldest = next(iter(self._idle)).connection
            if oldest.idle_since + after_all > now:
                if self._surplus is None:
                    self._surplus = Alarm(self.host, weak_method(self._thin_out))
                self._surplus.set(min(self._surplus.at, oldest.idle_since + after_all))
                return
            oldest.close(f"more than {limit} idle connections")

    def connection_wanted(self, connection: Connection) -> bool:
        """Whether somebody waits for the room that it is expected to have."""
        member = self._members.get(connection)
        if member is None or member.standing is not Standing.REFILLING:
            return False
        return any(self._waiters.waiting(state.route) for state in member.serves)

    def connection_leaving(self, connection: Connection) -> None:
        """It takes no more: it counts no more either, so another may take its place while it still drains."""
        member = self._members.get(connection)
        if member is None:
            return
        ungranted, states = member.ungranted, self._detach(member)
        if connection.reason == LOOP_ENDED:
            self._wake_those_without_dial()
        elif self._closing is None:
            if ungranted:
                connection.service.barren += 1
                for state in states:
                    self._fail_ungranted(state, connection)
            for state in states[1:]:
                self._make_room(state)
                self._tidy(state)
            self._room_came(states[0])

    def _fail_ungranted(self, state: RouteState, connection: Connection) -> None:
        """Who waited for room on a connection that has never had any may try again; it counts as an attempt."""
        for waiter in self._waiters.of(state.route):
            if waiter.dial is None and waiter.fresh.met_by(connection):
                self._fail(state, waiter, Ungranted(connection, state.label))

    def _detach(self, member: Member) -> tuple[RouteState, ...]:
        """Count it no more; the routes that it served until now."""
        states, home = member.serves, member.home
        self._idle.pop(member, None)
        self._coalescing.remove(member.connection)
        del self._members[member.connection]
        for state in states:
            member.leave(state)
        home.connections -= 1
        self._counted -= home.counts
        return states

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """The server says for which origins it is ready, or where else one of them is to be had."""
        if isinstance(news, OriginsNamed):
            for route in self._coalescing.name(connection, news.origins):
                self._take_back(connection, route)
            return
        # RFC 7838 §4: what it is not authoritative for is nothing that it can speak of.
        for route in (self.connections[connection], *self._coalescing.routes(connection)):
            if route.origin == news.origin:
                self.dialer.discovery.learn(route, news.field)

    def misdirected(self, connection: Connection, route: Route) -> None:
        """It answered 421 to a request on this route (RFC 9110 §15.5.20)."""
        if self._coalescing.refuse(connection, route):
            self._take_back(connection, route)

    def _take_back(self, connection: Connection, route: Route) -> None:
        """A connection of another route's must not serve this one any more."""
        state = self._routes[route]
        self._members[connection].leave(state)
        self._make_room(state)
        self._tidy(state)

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """It is closed."""
        ours = self.connections.pop(connection, None) is not None
        self._lingering.pop(connection, None)
        if ours and self._closing is not None:
            self.ends.append(end)
        elif ours and end.reason == LOOP_ENDED:
            self.dropped += 1
        if self.config.on_connection_end is not None:
            try:
                self.config.on_connection_end(end)
            except BaseException:  # noqa: BLE001 - the caller's; the request that caused this end must not pay for it
                logger.exception("allswell: on_connection_end failed")
        self._something_ended()

    def _something_ended(self) -> None:
        ended, self._ended = self._ended, anyio.Event()
        ended.set()

    def snapshot(self) -> tuple[RouteSnapshot, ...]:
        """What there is now, by route."""
        now = monotonic()
        connections: dict[Route, list[ConnectionSnapshot]] = {route: [] for route in self._routes}
        for connection, route in self.connections.items():
            serves = tuple(each.label for each in self._coalescing.routes(connection))
            connections.setdefault(route, []).append(ConnectionSnapshot.of(connection, now, serves))
        found = []
        for route, those in connections.items():
            dials = len(self._routes[route].dials) if route in self._routes else 0
            waiting = len(self._waiters.of(route))
            if those or dials or waiting:
                found.append(RouteSnapshot(route.label, tuple(those), dials, waiting))
        return tuple(found)

    # Closing

    async def close(self, deadline: Deadline, began: float, *, cut: bool) -> None:
        """End everything, as :meth:`ConnectionPool.aclose` says it; ``ends`` tells how.

        :param deadline: the end of the grace.
        :param began: when it began.
        """
        grace, left = deadline.at - began, deadline.left()
        self._closing = deadline
        if self._surplus is not None:
            self._surplus.stop()
        self._look_again.stop()
        for waiter in self._waiters:
            waiter.error = PoolClosed(
                f"{waiter.request.route.label}: the pool was closed while the request waited for a connection"
            )
            waiter.signal.set()
        for state in list(self._routes.values()):
            for dial in list(state.dials):
                dial.deadline.tighten(monotonic())
        reserve = min(0.5, left / 4)
        carried = any(route.carries for route in self.connections.values())
        for connection, route in list(self.connections.items()):
            # What may go through another connection ends sooner, so that the other has its turn. (That one waits: its
            # exchanges are tunnels.)
            sooner = carried and route.proxies and not route.carries
            until = deadline.shifted(-reserve / 2) if sooner else deadline
            connection.close("the pool closes", until if left else None, epoch=began)
        self._late = f"the pool was closed, and the response was not complete within its grace of {grace:.3g} s"
        try:
            if left and not cut:
                await self._all_ended(deadline.shifted(-reserve))
            self._cut()
            if left:
                await self._all_ended(deadline.shifted(_SLACK))
        finally:
            self.take_leave("the grace is over")
        if not left:
            await (
                anyio.lowlevel.checkpoint()
            )  # the tasks that hear the answers have begun, whatever becomes of the loop

    def hurry(self, deadline: Deadline) -> None:
        """The grace has become shorter while everything ends."""
        if deadline.passed():
            self._cut()
            self.take_leave("the grace is over")
        for connection in list(self.connections):
            connection.close("the pool closes", deadline)

    def _cut(self) -> None:
        for connection, route in list(self.connections.items()):
            if not route.carries:
                connection.cut(PoolClosed(self._late))

    def take_leave(self, reason: str) -> None:
        """Have everything said now, and wait for nothing; exchanges in flight are aborted.

        What has not heard its answers yet goes on by itself (see :meth:`Connection.take_leave`). It is not the pool's
        any more, and told of as it is now. What goes through another of the pool's connections leaves before that one
        does, and hears nothing more.
        """
        carriers = {route for route in self.connections.values() if route.carries}
        for connection, route in sorted(self.connections.items(), key=lambda each: -len(each[1].proxies)):
            connection.take_leave(reason)
            if route.proxies and route.to_proxy(carries=True) in carriers:
                connection.abort(reason)
            if self.connections.pop(connection, None) is not None:
                self.ends.append(connection.so_far())
                self._lingering[connection] = None
        self._something_ended()

    async def _loop_ended(self) -> None:
        """It ends under us, and does not end before this does: the answers that come at once are heard."""
        self.dropped += len(self.connections)
        self.take_leave(LOOP_ENDED)
        with Deadline.after(LAST_MOMENT).scope():
            while self._lingering:
                await self._ended.wait()
        for connection in list(self._lingering):
            connection.abort(LOOP_ENDED)

    async def _all_ended(self, deadline: Deadline) -> None:
        with deadline.scope():
            while self.connections or any(state.dials for state in self._routes.values()):
                await self._ended.wait()


def _looks(connection: Connection, request: Request) -> bool:
    """Whether the socket is looked at before the request goes out there: see :meth:`Connection.usable`."""
    return not connection.multiplexes or not request.may_repeat(proven=False)
