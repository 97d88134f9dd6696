"""The dispatcher: which connection serves a request, and when to make another.

Theory of operation. All decisions are synchronous, and made where something has changed: a request arrives, an exchange
ends, a dial ends, a connection leaves. If a connection has room, a request opens its exchange at once. Otherwise it
waits (`waiters.py`), and the pool dials for it if the limits allow. A waiter is served by the first connection of its
route that has room, whether or not that was dialled for it. The dispatcher itself opens the exchange for the waiter. So
no room is reserved for a task that has yet to wake up.

Dials belong to the pool, and not to the request that caused them. A dial has as much time as the longest connect
timeout of its waiters allows. A waiter that has less, or is cancelled, leaves the dial to the others.

With pipelining, a connection can have room *behind* other exchanges. That room is used if no connection is idle, before
a new one is made, in turns. Only requests that may follow others can use it. They do not overtake a waiter that may not
follow others, because that might then wait for an idle connection for ever.

A connection may serve other routes than the one that it was made for (`coalescing.py`). A dial first looks for such a
connection. Until it knows that there is none, it makes no connection, and holds no place.

Connections are reused last-in first-out. So those that are not needed grow idle and expire. `places.py` says how many
there may be, and which one ends to make room; `endings.py` says how they end.
"""

from __future__ import annotations

import math
import random
import weakref
from functools import partial
from typing import TYPE_CHECKING

import anyio

from allswell._backends.interface import AlternativeOffered, OriginsNamed
from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._connection.lifecycle import LOOP_ENDED
from allswell._deadline import Deadline
from allswell._debug_log import DIAL
from allswell._dial.context import Context
from allswell._dial.dialer import Dialer
from allswell._dial.lookups import Send
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
from allswell._events import DialBegan, DialFailed, RequestWaits
from allswell._observers import Observers
from allswell._pool.coalescing import Coalescing
from allswell._pool.endings import DRAINED, Endings
from allswell._pool.freshness import ANY, Freshness
from allswell._pool.member import Member, RouteState, Standing
from allswell._pool.places import Places
from allswell._pool.waiters import Dial, Waiter, Waiters
from allswell._report import ConnectionEnd
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._request.route import Route
from allswell._tasks import Alarm, Limit, TaskHost, logger, weak_method

if TYPE_CHECKING:
    from allswell._pool.snapshot import ConnectionSnapshot, RouteSnapshot


class Ungranted(NotProcessed):
    """Internal: the connection that a request waited for has ended before it allowed any request.

    :ivar connection: the connection.
    """

    def __init__(self, connection: Connection, label: str) -> None:
        why = f" ({connection.reason})" if connection.reason else ""
        cause = RemoteProtocolError(f"{label} ended its connection before it allowed a request{why}")
        super().__init__(cause, proven=True)
        self.connection = connection


class Dispatcher:
    """Matches the waiters of one pool with its connections. It is the owner of the connections.

    :param send: sends a request through the pool. It is held weakly.
    :param observers: get the events of dials and connections.
    :ivar host: the event loop.
    :ivar endings: the connections until they are closed, and how they ended.
    :ivar send_through: sends a request of the pool's own through the pool: for a tunnel through a proxy, or a resolver.
    """

    def __init__(
        self,
        host: TaskHost,
        dialer: Dialer,
        config: PoolConfig,
        send: Send,
        observers: Observers,
    ) -> None:
        self.config = config
        self.dialer = dialer
        self.host = host
        self.endings = Endings(host, config.on_connection_end, observers)
        self._observers = observers
        self.send_through = _weakly(send)
        self._routes: dict[Route, RouteState] = {}
        self._waiters: Waiters[RouteState, Waiter] = Waiters()
        self._members: dict[Connection, Member] = {}  # the open connections
        self._places = Places(host, config)
        self._coalescing = Coalescing(config, dialer)
        self._look_again = Alarm(host, weak_method(self._make_room_for_all))  # when expected room has not come in time

    # For requests

    def open_now(self, request: Request, fresh: Freshness) -> Exchange[Connection] | None:
        """Open the exchange at once if a connection has room, and no other request waits for it. Otherwise ``None``."""
        state = self._routes.get(request.route)
        if state is None or self._waiters.waiting(state) or self.endings.deadline is not None:
            return None
        free = state.free
        while free:
            member = next(reversed(free))
            connection = member.connection
            if fresh is not ANY and not fresh.met_by(connection):
                return None
            if connection.usable() if _looks(connection, request) else connection.capacity():
                return self._open_on(state, member, request)
            member.has_none()  # requests of another route have taken its room, or it is about to leave
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
        self._places.is_used(member)
        if not connection.capacity():
            member.has_none()
        elif not connection.multiplexes:
            member.has_room()
        return exchange

    async def wait(self, request: Request, fresh: Freshness) -> Exchange[Connection]:
        """Wait for a connection with room. It is made if that is needed. Return the exchange that was opened on it.

        :param fresh: how fresh the connection must be.
        :raises AllswellError: if there is no connection in time, or the pool closes.
        """
        if self.endings.deadline is not None:
            raise PoolClosed(f"{request.route.label}: the pool is closed")
        if request.observed is not None:
            request.observed.tell(RequestWaits(request.observed.number))
        waiter = Waiter(request, self.host.signal(), fresh=fresh)
        route = request.route
        state = self._routes.get(route)
        if state is None:
            state = self._routes[route] = RouteState(route)
        pool_at = math.inf if request.timeouts.pool is None else monotonic() + request.timeouts.pool
        self._waiters.add(state, waiter)
        for member in state.expecting:
            self._places.is_used(member)  # this request wants its room
        for member in list(state.free):  # (the waiter before this one may need a fresher connection)
            self._serve(state, member)
        try:
            while waiter.exchange is None and waiter.error is None:
                if waiter.dial is None:
                    self._make_room(state)  # also after its dial was cancelled: the loop runs, because this task does
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
            if not self._waiters.waiting(state):
                for member in list(state.expecting):
                    self.connection_available(member.connection)  # no request wants its room any more, so it is idle
            self._tidy(state)
        if waiter.exchange is None:
            assert waiter.error is not None
            raise waiter.error
        return waiter.exchange

    def _until(self, waiter: Waiter, pool_at: float) -> tuple[float, TimeoutPhase]:
        """Until when the waiter waits now, and the phase of the timeout then."""
        until = pool_at
        if waiter.dial is not None:  # the dial has its own limit, which may be longer because of other waiters
            sooner = waiter.connect_timeout < waiter.dial.timeout
            until = waiter.covered_at + waiter.connect_timeout * (1 + self.config.retries) if sooner else math.inf
        if until >= waiter.request.total_at:
            return waiter.request.total_at, "total"
        return until, "connect" if waiter.dial is not None else "pool"

    def _forget(self, state: RouteState, waiter: Waiter) -> None:
        self._waiters.remove(state, waiter)
        if waiter.dial is not None:
            waiter.dial.lose(waiter)
            waiter.dial = None

    def offers_extended_connect(self, route: Route) -> bool:
        """Whether a connection that serves this route offers extended CONNECT, or has not said yet."""
        state = self._routes.get(route)
        return state is not None and any(
            member.connection.extended_connect is not False for members in state.members for member in members
        )

    # Serving and dialling

    def _serve(self, state: RouteState, member: Member) -> None:
        """Give the connection's room to the waiters of its route, in the order in which they came."""
        connection, looked = member.connection, False
        while connection.capacity():
            chosen = next((w for w in self._waiters.first(state) if w.fresh.met_by(connection)), None)
            if chosen is None or (connection.open_exchanges and not may_join(connection, chosen.request)):
                return
            if connection.history.opened and not looked and _looks(connection, chosen.request):
                if not connection.usable():  # this may read the end of the connection
                    return
                looked = True  # the look may have changed what waits, so choose again
                continue
            self._forget(state, chosen)
            try:
                chosen.exchange = self._open_on(state, member, chosen.request)
            except NotProcessed:
                self._waiters.add(state, chosen)  # at the end of the queue. The connection has no more room
                return
            except Exception as error:  # noqa: BLE001 - the request is wrong, not the connection: its requester gets it
                chosen.error = error
            chosen.signal.set()

    def _waited_since(self, state: RouteState) -> float:
        first = next(self._waiters.first(state), None)
        return first.came_at if first is not None else math.inf

    def _make_room(self, state: RouteState) -> None:
        """Give each waiter of the route a dial, if it has none: one under way that may serve more, or a new one."""
        waiters = self._waiters
        if self.endings.deadline is not None:
            return
        for dial in state.dials:
            self._cover(state, dial)
        while (first := waiters.first_without_dial(state)) is not None:
            if (at := state.worth_waiting(first.fresh)) is not None:
                self._look_again.set(min(self._look_again.at, at))
                break
            searches = not first.searched and self._coalescing.promises(state.route)
            if not searches and not self._admit(state):
                break
            dial = Dial(self._expected(state), searches=searches)
            state.dials[dial] = None
            self.endings.dial_begins(dial)
            if not searches:
                self._give_place(state, dial)
            self._cover(state, dial)
            dial.timeout = max(waiter.connect_timeout for waiter in dial.waiters)
            self.host.spawn(self._dial, state, dial, first.request, name=f"allswell dials {state.route.origin}")

    def _make_room_for_all(self) -> None:
        for state in self._waiters.routes_without_dial():
            self._make_room(state)

    def _cover(self, state: RouteState, dial: Dial) -> None:
        """Let waiters without a dial wait for this one, as many as it may serve."""
        now = monotonic()
        while (waiter := self._waiters.first_without_dial(state)) is not None and dial.takes(waiter):
            self._waiters.with_dial(state, waiter)
            waiter.dial = dial
            dial.cover(waiter)
            waiter.covered_at = now
            waiter.signal.set()

    def _give_place(self, state: RouteState, dial: Dial) -> None:
        dial.has_place = True
        self._places.take(state)

    def _expected(self, state: RouteState) -> int:
        multiplexes = state.multiplexes
        if multiplexes is None:
            multiplexes = self.dialer.may_multiplex(state.route)
        return self.dialer.streams(state.route) if multiplexes else 1

    def _admit(self, state: RouteState) -> bool:
        """Whether the limits allow one more connection on this route. If necessary, an idle one ends to make room."""
        places = self._places
        while not places.free_for(state):
            idle = places.in_the_way(state)
            if idle is None:
                return False
            self._evict(idle)
        return True

    def _evict(self, member: Member) -> None:
        """End an idle connection. It gives back its place first, and the caller decides who gets that."""
        states = self._detach(member)
        member.connection.close("another connection needed its place")
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
                        if failure.by == "us":
                            break  # it would be the same the next time
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
        except BaseException as failure:  # noqa: BLE001 - from a caller's code (a proxy's Auth): a request gets it
            raised = first_of(failure)
        finally:
            del state.dials[dial]
            if dial.has_place:
                self._places.give_back(state)
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
            self.endings.dial_is_over(dial)

    async def _connect(self, state: RouteState, dial: Dial, request: Request) -> Connection | None:
        """Find a connection of another route that may serve this one, or make one. ``None`` if there is no room."""
        route, seconds = state.route, None if dial.timeout == math.inf else dial.timeout
        observers = self._observers if self._observers.wanted(DIAL) else None
        number: int | None = None  # the number of the new connection, if observers get its events
        try:
            with Limit(self.host, math.inf if seconds is None else monotonic() + seconds):
                if dial.searches:
                    found = await self._coalescing.find(route)
                    dial.searches = False
                    if found is not None or not self._admit(state):
                        return found
                    self._give_place(state, dial)
                discard, tracer = partial(self._discard, route), request.tracer
                context = Context(route, self.config, self, self.send_through, discard, tracer, seconds, observers)
                if observers is not None:
                    number = context.number
                    cause = None if request.observed is None else request.observed.number
                    observers.tell(DialBegan(number, route.place, cause))
                return await self.dialer.dial(context)
            raise Timeout(f"{route.label}: no connection within {seconds:g} s", phase="connect")
        except BaseException as error:
            if observers is not None and number is not None:
                observers.tell(DialFailed(number, first_of(error)))
            raise

    def _dial_failed(self, state: RouteState, dial: Dial, error: AllswellError) -> None:
        for waiter in list(dial.waiters):
            if isinstance(error, Timeout) and waiter.connect_timeout > dial.timeout:
                self._uncover(state, waiter)  # it has more time than this dial had
                continue
            self._fail(state, waiter, error.copy())
        self._room_came(state)

    def _dial_stopped(self, state: RouteState, dial: Dial, error: BaseException) -> None:
        """A caller's code has raised SystemExit, say, in this dial. One request gets that, the others a new dial."""
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

        A new dial must not begin here, because it might never run. So the waiters are woken. If one is not cancelled,
        it asks for a dial itself, which proves that the loop runs.
        """
        for waiter in list(dial.waiters):
            self._uncover(state, waiter)
        self._wake_those_without_dial()
        self._tidy(state)

    def _wake_those_without_dial(self) -> None:
        """A place may be free, but no dial may begin here. So wake each request that waits for one: it asks itself."""
        for waiter in self._waiters:
            if waiter.dial is None:
                waiter.signal.set()

    def _dial_succeeded(self, state: RouteState, dial: Dial, connection: Connection) -> None:
        member = self._members.get(connection)
        if member is not None:
            if state not in member.serves:  # (two dials may have found it)
                member.join(state)
        elif self.endings.deadline is not None:
            self.endings.dial_succeeded(dial, connection)
            self.endings.discard(connection, state.route, "the pool closes")
            return
        else:
            self.endings.dial_succeeded(dial, connection)
            state.multiplexes = connection.multiplexes
            self._members[connection] = Member(connection, state)
            self._places.take(state)
            self.endings.start(connection, state.route)
            self._coalescing.add(connection, state.route)
        self.connection_available(connection)
        if member is None and dial.drained:
            connection.close(DRAINED)
        # Waiters that it could not serve (it has less room than was expected) wait for another.
        for waiter in list(dial.waiters):
            self._uncover(state, waiter)
        self._make_room(state)

    def _discard(self, route: Route, connection: Connection, reason: str) -> None:
        """It has lost its race: it takes no place, and says its goodbyes."""
        self.endings.discard(connection, route, reason)

    def _uncover(self, state: RouteState, waiter: Waiter) -> None:
        """The waiter's dial is over, and has not served it."""
        waiter.dial = None
        self._waiters.without_dial(state, waiter)
        waiter.signal.set()

    def _room_came(self, state: RouteState) -> None:
        """A place may be free. The waiter that has waited longest gets it, whichever its route is."""
        places = self._places
        if not places.limited:
            self._make_room(state)
        else:
            for each in self._waiters.routes_without_dial():
                self._make_room(each)
                if places.full and not places.idle:
                    break
        self._tidy(state)

    def _owed_elsewhere(self, state: RouteState) -> bool:
        """Whether the place of a connection without exchanges belongs to another route.

        That is so if a request waits there without a dial, has waited longest, and no connection or dial can serve it.
        """
        oldest = self._waiters.longest_without_dial()
        if oldest is None or oldest is state or not state.takes_places:
            return False
        return not oldest.used and self._places.full

    def _tidy(self, state: RouteState) -> None:
        used = state.used or self._waiters.waiting(state)
        if not used and self._routes.get(state.route) is state:  # (it may have been replaced by a new one)
            del self._routes[state.route]

    # Calls of the connections (see `Owner` in _connection/connection.py)

    def connection_available(self, connection: Connection) -> None:
        """It has room, or is idle: serve waiters with it, or keep it."""
        member = self._members.get(connection)
        if member is None:
            return
        states, waited = member.serves, False
        if self._waiters:
            # (One that has carried nothing yet was made for a waiter of its own route, so it serves that first.)
            if connection.history.opened and not connection.open_exchanges and self._owed_elsewhere(member.home):
                # The waiters of its own route go on waiting, because it is not the server that ends it.
                self._evict(member)
                self._room_came(member.home)
                return
            for state in states if len(states) == 1 else sorted(states, key=self._waited_since):
                if self._waiters.waiting(state):
                    waited = True
                    self._serve(state, member)
        room = connection.capacity()
        if room:
            member.has_room()
        else:
            member.has_none()
        if waited:  # some may still wait, and need another connection now, or when expected room does not come
            for state in states:
                self._make_room(state)
        if connection.open_exchanges or connection not in self._members:
            return
        if room or not self.connection_wanted(connection):
            self._places.is_idle(member)
            if self._waiters and self._waiters.longest_without_dial() is not None:
                self._room_came(member.home)  # another route may need its place
            self._places.thin_out()

    def connection_wanted(self, connection: Connection) -> bool:
        """Whether a request waits for room that is expected on it."""
        member = self._members.get(connection)
        if member is None or member.standing is not Standing.EXPECTING:
            return False
        return any(self._waiters.waiting(state) for state in member.serves)

    def connection_leaving(self, connection: Connection) -> None:
        """It takes no more requests. So another connection may have its place while it drains."""
        member = self._members.get(connection)
        if member is None:
            return
        ungranted, states = member.ungranted, self._detach(member)
        if connection.reason == LOOP_ENDED:
            self._wake_those_without_dial()
        elif self.endings.deadline is None:
            if ungranted:
                connection.history.service.barren += 1
                for state in states:
                    self._fail_ungranted(state, connection)
            for state in states[1:]:
                self._make_room(state)
                self._tidy(state)
            self._room_came(states[0])

    def _fail_ungranted(self, state: RouteState, connection: Connection) -> None:
        """A connection has ended that never had room. The requests that waited for that may try again; it counts."""
        for waiter in self._waiters.of(state):
            if waiter.dial is None and waiter.fresh.met_by(connection):
                self._fail(state, waiter, Ungranted(connection, state.label))

    def _detach(self, member: Member) -> tuple[RouteState, ...]:
        """Take back its place, and serve no request with it any more. Return the routes that it served."""
        states = member.serves
        self._coalescing.remove(member.connection)
        del self._members[member.connection]
        for state in states:
            member.leave(state)
        self._places.is_used(member)
        self._places.give_back(member.home)
        return states

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """The server names the origins that it serves, or an alternative service of one."""
        if isinstance(news, OriginsNamed):
            for route in self._coalescing.name(connection, news.origins):
                self._take_back(connection, route)
            return
        # RFC 7838 §4: it may name alternatives only for origins for which it is authoritative.
        for route in (self.endings.connections[connection], *self._coalescing.routes(connection)):
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
        self.endings.ended(connection, end)

    def snapshot(self) -> tuple[RouteSnapshot, ...]:
        """The connections, dials and waiting requests of each route."""
        from allswell._pool.snapshot import ConnectionSnapshot, RouteSnapshot  # late: few programs take one

        now = monotonic()
        connections: dict[Route, list[ConnectionSnapshot]] = {route: [] for route in self._routes}
        for connection, route in self.endings.connections.items():
            serves = tuple(each.label for each in self._coalescing.routes(connection))
            connections.setdefault(route, []).append(ConnectionSnapshot.of(connection, now, serves))
        found = []
        for route, those in connections.items():
            state = self._routes.get(route)
            dials, waiting = (0, 0) if state is None else (len(state.dials), len(self._waiters.of(state)))
            if those or dials or waiting:
                found.append(RouteSnapshot(route.label, tuple(those), dials, waiting))
        return tuple(found)

    # Closing

    async def close(self, deadline: Deadline, began: float, *, cut: bool) -> None:
        """End everything: see :meth:`Endings.close`. Requests that wait fail."""
        self._places.stop()
        self._look_again.stop()
        for waiter in self._waiters:
            waiter.error = PoolClosed(
                f"{waiter.request.route.label}: the pool was closed while the request waited for a connection"
            )
            waiter.signal.set()
        for state in list(self._routes.values()):
            for dial in list(state.dials):
                dial.deadline.tighten(monotonic())
        await self.endings.close(deadline, began, cut=cut)


def may_join(connection: Connection, request: Request) -> bool:
    """Whether the request may be sent on the connection while others are under way there."""
    return connection.multiplexes or request.may_follow


def _weakly(send: Send) -> Send:
    """The same function, but it does not keep its pool alive."""
    reference = weakref.WeakMethod(send)

    async def through(request: Request) -> Response:
        method = reference()
        if method is None:
            raise PoolClosed(f"{request.route.label}: the pool was dropped without being closed")
        return await method(request)

    return through


def _looks(connection: Connection, request: Request) -> bool:
    """Whether to look at the socket before the request goes out on it: see :meth:`Connection.usable`."""
    return not connection.multiplexes or not request.may_repeat(proven=False)
