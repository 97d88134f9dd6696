"""The pool's invariants, whatever happens in whichever order: no network, no time, no peer; the dispatcher alone.

The connections, the dials and the clock are models that do what they are told to. What must hold after each step is in
the methods marked ``@invariant()``, and in :meth:`PoolMachine.served`, which sees each exchange as it is opened.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from allswell._config import PoolConfig, Timeouts
from allswell._connection.connection import Connection
from allswell._connection.history import History
from allswell._connection.lifecycle import Lifecycle, State
from allswell._connection.service import Service
from allswell._dial.context import Context
from allswell._dial.dialer import Dialer
from allswell._errors import ConnectFailed
from allswell._messages import RequestHead
from allswell._observers import Observers
from allswell._pool.dispatcher import Dispatcher, may_join
from allswell._pool.freshness import ANY, UNUSED, Freshness
from allswell._pool.member import Standing
from allswell._report import ConnectionEnd
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._request.route import Route
from allswell._tasks import TaskHost, _AsyncioHost
from tests.support.lag import room_is_awaited

A, B = Route("https", "a.example", 443), Route("https", "b.example", 443)
PLAIN = Route("http", "c.example", 80)
ROUTES = [A, B, PLAIN]

#: Seconds after which nothing is on its way any more: limits of time have passed, surplus connections have ended.
LONG = 10.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: dict[Timer, None] = {}

    def tick(self) -> float:
        """The instant; no two steps have the same."""
        self.now += 1e-6
        return self.now

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self.now = max(self.now, first.at)
            first.cancel()
            first.function()
        self.now = max(self.now, until)


class Timer:
    def __init__(self, clock: Clock, at: float, function: Callable[[], None]) -> None:
        self.at, self.function = at, function
        self._clock = clock
        clock.timers[self] = None

    def cancel(self) -> None:
        self._clock.timers.pop(self, None)


class Host:
    """An event loop whose timers go by the clock."""

    current, over, ending = True, False, False

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._host = _AsyncioHost(loop)
        self._clock = clock
        self.signal = self._host.signal
        self.spawn = self._host.spawn
        self.call_soon = self._host.call_soon

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        return Timer(self._clock, self._clock.now + seconds, function)

    def when_over(self, method: object) -> None:
        """It is not."""


class Model:
    """A connection, as the dispatcher sees it.

    :ivar room: exchanges that the peer allows at a time.
    :ivar capacity_expected: whether it says that there will be some.
    :ivar stale: the peer has ended it, and nobody knows yet.
    """

    def __init__(self, machine: PoolMachine, route: Route, *, multiplexes: bool, room: int) -> None:
        self._machine = machine
        self.home, self.multiplexes, self.room = route, multiplexes, room
        self.http_version = "HTTP/2" if multiplexes else "HTTP/1.1"
        self.capacity_expected = self.stale = self.ended = False
        self.history = History(Service())
        self.history.made_at = self.idle_since = machine.clock.tick()
        self.exchanges: dict[Exchange, None] = {}
        self._life = Lifecycle()

    @property
    def as_connection(self) -> Connection:
        return cast(Connection, self)

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def reason(self) -> str:
        return self._life.reason

    @property
    def open_exchanges(self) -> int:
        return len(self.exchanges)

    def capacity(self) -> int:
        if self.state is not State.OPEN:
            return 0
        if self.multiplexes or not self.exchanges:
            return max(0, self.room - len(self.exchanges))
        last = next(reversed(self.exchanges))
        followed = last.request.may_follow and self.history.answered > 0
        return max(0, self._machine.config.pipelining + 1 - len(self.exchanges)) if followed else 0

    def usable(self) -> bool:
        if self.stale:
            self.lose()
        return self.capacity() > 0

    def extra(self, name: str) -> object:
        return {"certificate": Certificate(), "server_addr": self._machine.address}[name]

    def start(self) -> None:
        self._machine.connections.append(self)

    def open(self, head: RequestHead, inline: bytes | None, **_: object) -> Exchange:
        assert self.capacity() > 0
        request = self._machine.requests[id(head)]
        self._machine.served(self, request)
        exchange = Exchange(self, request)
        self.exchanges[exchange] = None
        self.history.opened += 1
        self.idle_since = float("inf")
        return exchange

    def finish(self, exchange: Exchange) -> None:
        if self.exchanges.pop(exchange, self) is self:
            return
        if self.state is State.DRAINING:
            self._life.move(State.CLOSING)
        elif self.state is State.OPEN:
            if not self.exchanges:
                self.idle_since = self._machine.clock.tick()
            if not self.exchanges or self.capacity():
                self._machine.dispatcher.connection_available(self.as_connection)

    def close(self, reason: str, deadline: object = None, *, epoch: object = None) -> None:
        if self._life.move(State.DRAINING, reason):
            self._machine.dispatcher.connection_leaving(self.as_connection)
            if not self.exchanges:
                self._life.move(State.CLOSING)

    def lose(self) -> None:
        """The peer is gone."""
        was_open = self.state is State.OPEN
        self._life.move(State.CLOSED, "lost")
        if was_open:
            self._machine.dispatcher.connection_leaving(self.as_connection)
        self.exchanges.clear()
        self.end()

    def end(self) -> None:
        self._life.move(State.CLOSED)
        if not self.ended:
            self.ended = True
            self._machine.connections.remove(self)
            end = ConnectionEnd(self.home.label, self.http_version, self.reason, ())
            self._machine.dispatcher.connection_ended(self.as_connection, end)


class Certificate:
    """For A and B."""

    names = (A.host, B.host)

    def covers(self, host: str) -> bool:
        return host in self.names


class Exchange:
    def __init__(self, connection: Model, request: Request) -> None:
        self.connection, self.request = connection, request

    def abandon(self) -> None:
        self.connection.finish(self)


class Dialling:
    """A dial that goes on until it is told how it ends."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.made: asyncio.Future[Model] = asyncio.get_running_loop().create_future()


class Discovery:
    """Where B leads: to the address of every connection, or elsewhere."""

    def __init__(self, machine: PoolMachine) -> None:
        self._machine = machine

    async def destinations(self, route: Route) -> dict[str, list[object]]:
        await asyncio.sleep(0)
        return {"HTTP/2": [self._machine.address] if self._machine.same_address else []}


class Dials:
    """The dialer."""

    def __init__(self, machine: PoolMachine) -> None:
        self._machine = machine
        self.discovery = Discovery(machine)

    def may_multiplex(self, route: Route) -> bool:
        return route.scheme == "https"

    def streams(self, route: Route) -> int:
        return 3

    async def dial(self, context: Context) -> Connection:
        machine, route = self._machine, context.route
        dialling = Dialling(route)
        # Who wanted it may have left since, but not before this step.
        assert machine.waiting(route) or route in machine.left, "a dial that nobody wants"
        machine.dials.append(dialling)
        try:
            return (await dialling.made).as_connection
        finally:
            machine.dials.remove(dialling)


class Waiting:
    """A request that waits.

    :ivar fresh: how fresh its connection must be.
    """

    def __init__(self, request: Request, fresh: Freshness, task: asyncio.Task[Any]) -> None:
        self.request, self.fresh, self.task = request, fresh, task


class PoolMachine(RuleBasedStateMachine):
    """Waiters, dials, connections, limits."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        room_is_awaited(self.patch)  # as outside of tests: here no machine is slow
        for name, module in list(sys.modules.items()):
            if name.startswith(("allswell._pool.", "allswell._tasks")) and hasattr(module, "monotonic"):
                self.patch.setattr(module, "monotonic", self.clock.tick)
        self.address = ("192.0.2.1", 443)
        self.same_address = True
        self.requests: dict[int, Request] = {}
        self.queue: list[Waiting] = []
        self.left: set[Route] = set()  # in this step
        self.at_once: Request | None = None  # what is opened without waiting
        self.connections: list[Model] = []
        self.dials: list[Dialling] = []

    @initialize(
        most=st.sampled_from([None, 1, 2, 3]),
        per_route=st.sampled_from([None, None, 1, 2]),
        keep=st.sampled_from([None, 0, 1, 2]),
        pipelining=st.sampled_from([0, 2]),
    )
    def begin(self, most: int | None, per_route: int | None, keep: int | None, pipelining: int) -> None:
        self.config = PoolConfig(
            max_connections=most,
            max_connections_per_route=per_route,
            max_keepalive_connections=keep,
            pipelining=pipelining,
        )
        host, dialer = cast(TaskHost, Host(self.loop, self.clock)), cast(Dialer, Dials(self))
        self.dispatcher = Dispatcher(host, dialer, self.config, self.send, Observers())

    async def send(self, request: Request) -> Response:
        raise NotImplementedError  # there are no proxies

    def teardown(self) -> None:
        for waiting in self.queue:
            waiting.task.cancel()
        for dialling in list(self.dials):
            dialling.made.cancel()
        self.settle()
        self.patch.undo()
        self.loop.close()

    def settle(self, step: Callable[[], object] = int) -> None:
        """Take this step, then have all tasks run until each waits for what only a rule can bring."""

        async def turns() -> None:
            step()
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for waiting in [each for each in self.queue if each.task.done()]:
            self.queue.remove(waiting)
            error = None if waiting.task.cancelled() else waiting.task.exception()
            if isinstance(error, AssertionError):  # of :meth:`served`: the dispatcher takes it for the request's
                raise error
        self.left.clear()

    def waiting(self, route: Route) -> list[Waiting]:
        """Those who still wait on the route, the first one first."""
        return [each for each in self.queue if each.request.route == route and not self.is_served(each)]

    def is_served(self, waiting: Waiting) -> bool:
        """Its exchange was opened in its name, though its task has not had its turn yet."""
        return waiting.task.done() or waiting.request in (each.request for each in self.opened())

    def opened(self) -> list[Exchange]:
        return [exchange for connection in self.connections for exchange in connection.exchanges]

    def serve(self, route: Route) -> list[Model]:
        """The open connections that may serve the route."""
        found = self.dispatcher._coalescing.routes
        return [
            each
            for each in self.connections
            if each.state is State.OPEN and (each.home == route or route in found(each.as_connection))
        ]

    # What may happen

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """One rule, for hypothesis leaves out some of several: without dials that succeed nothing is to be seen."""
        steps: list[Callable[..., None]] = [self.arrives] * 6 + [self.time_passes, self.another_address]
        steps += [self.dial_succeeds] * 6 * bool(self.dials) + [self.dial_fails] * bool(self.dials)
        steps += [self.exchange_ends] * 6 * bool(self.opened()) + [self.is_cancelled] * bool(self.queue)
        steps += [self.connection_goes] * 2 * bool(self.connections)
        steps += [self.server_changes_its_limit] * 2 * bool(self.multiplexing())
        steps += [self.is_misdirected] * bool(self.borrowers())
        data.draw(st.sampled_from(steps), label="step")(data)
        self.settle()

    def arrives(self, data: st.DataObject) -> None:
        route = data.draw(st.sampled_from(ROUTES))
        head = RequestHead(data.draw(st.sampled_from([b"GET", b"GET", b"POST"])), b"https", b"", b"/", [])
        connect = data.draw(st.sampled_from([5.0, 1.0]))
        request = Request(head, route, timeouts=Timeouts(connect=connect, pool=None))
        self.requests[id(head)] = request
        fresh = data.draw(st.sampled_from([ANY] * 6 + [UNUSED, Freshness(self.clock.tick())]))
        self.at_once = request
        exchange = self.dispatcher.open_now(request, fresh)
        self.at_once = None
        if exchange is None:
            waits = cast(Coroutine[Any, Any, Any], self.dispatcher.wait(request, fresh))
            self.queue.append(Waiting(request, fresh, self.loop.create_task(waits)))

    def is_cancelled(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.queue))
        self.left.add(waiting.request.route)
        waiting.task.cancel()

    def dial_succeeds(self, data: st.DataObject) -> None:
        dialling = data.draw(st.sampled_from(self.dials))
        multiplexes = dialling.route.scheme == "https" and data.draw(st.booleans())
        room = data.draw(st.sampled_from([3, 2, 1, 0])) if multiplexes else 1
        model = Model(self, dialling.route, multiplexes=multiplexes, room=room)
        model.capacity_expected = multiplexes and (room == 0 or data.draw(st.booleans()))
        dialling.made.set_result(model)

    def dial_fails(self, data: st.DataObject) -> None:
        dialling = data.draw(st.sampled_from(self.dials))
        self.left.add(dialling.route)
        dialling.made.set_exception(ConnectFailed("refused", phase="tcp"))

    def exchange_ends(self, data: st.DataObject) -> None:
        exchange = data.draw(st.sampled_from(self.opened()))
        model = exchange.connection
        if not model.multiplexes:
            exchange = next(iter(model.exchanges))  # in order
        model.history.answered += 1
        model.finish(exchange)

    def connection_goes(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.connections))
        how = data.draw(st.sampled_from(["leaves", "is lost", "is stale", "has said goodbye", "expires"]))
        if how == "leaves":
            model.close("the server is leaving")
        elif how == "is lost":
            model.lose()
        elif how == "is stale" and not model.exchanges and model.state is State.OPEN and not model.multiplexes:
            model.stale = True
        elif how == "has said goodbye" and model.state is State.CLOSING:
            model.end()
        elif how == "expires" and not model.exchanges and (model.capacity() or not self.is_wanted(model)):
            model.close("idle")

    def server_changes_its_limit(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.multiplexing()))
        model.room, model.capacity_expected = data.draw(st.integers(0, 4)), data.draw(st.booleans())
        self.dispatcher.connection_available(model.as_connection)

    def time_passes(self, data: st.DataObject) -> None:
        self.left.update(each.request.route for each in self.queue)
        self.settle(partial(self.clock.passes, data.draw(st.sampled_from([0.01, 0.3, 1.0, LONG]))))
        self.settle(partial(self.clock.passes, 0.0))

    def another_address(self, data: st.DataObject) -> None:
        self.same_address = data.draw(st.booleans())

    def is_misdirected(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.borrowers()))
        [route, *_] = self.dispatcher._coalescing.routes(model.as_connection)
        self.dispatcher.misdirected(model.as_connection, route)

    def multiplexing(self) -> list[Model]:
        return [each for each in self.connections if each.multiplexes and each.state is State.OPEN]

    def is_wanted(self, model: Model) -> bool:
        return self.dispatcher.connection_wanted(model.as_connection)

    def borrowers(self) -> list[Model]:
        """Connections that serve another route than their own."""
        routes = self.dispatcher._coalescing.routes
        return [each for each in self.connections if each.state is State.OPEN and routes(each.as_connection)]

    # What must hold

    def served(self, model: Model, request: Request) -> None:
        """An exchange is opened: who came first has it; of idle connections, the one that was used last."""
        busy = bool(model.exchanges)
        assert not busy or may_join(model.as_connection, request)
        for each in self.waiting(request.route):
            if each.request is request:
                break
            assert not each.fresh.met_by(model.as_connection), "somebody has waited for longer"
        if request is self.at_once and not model.multiplexes and not busy:
            others = [each for each in self.serve(request.route) if not each.exchanges and each.capacity()]
            assert not any(each.multiplexes is False and each.idle_since > model.idle_since for each in others)

    @invariant()
    def limits_hold(self) -> None:
        counted = [each.home for each in self.connections if each.state is State.OPEN]
        counted += [each.route for each in self.dials]
        most, per_route = self.config.max_connections, self.config.max_connections_per_route
        assert most is None or len(counted) <= most
        assert per_route is None or all(counted.count(route) <= per_route for route in ROUTES)
        assert self.dispatcher.snapshot() is not None

    @invariant()
    def nobody_waits_in_front_of_a_connection_with_room(self) -> None:
        for route in ROUTES:
            waiting = self.waiting(route)
            for model in self.serve(route) if waiting else ():
                first = next((each for each in waiting if each.fresh.met_by(model.as_connection)), None)
                # (Behind other exchanges of a pipeline there may be room that is found only when one of them ends.)
                if first is not None and not model.stale and (model.multiplexes or not model.exchanges):
                    assert not model.capacity(), f"{route.host} waits in front of a connection with room"

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Without a dial is only who waits for expected room, or whom the limits hold up; and they are used up."""
        for route in ROUTES:
            waiting = self.waiting(route)
            if len(waiting) <= sum(each.route == route for each in self.dials) or not self.without_dial(route):
                continue
            if self.expected(route):
                continue
            counted = [each.home for each in self.connections if each.state is State.OPEN]
            counted += [each.route for each in self.dials]
            most, per_route = self.config.max_connections, self.config.max_connections_per_route
            if per_route is not None and counted.count(route) >= per_route:
                continue
            assert most is not None, f"{route.host} waits, though there is no limit\n{self.dispatcher.snapshot()}"
            assert len(counted) >= most, f"{route.host} waits, though there is a free place"
            for model in self.connections:
                if model.state is State.OPEN and not model.exchanges and model.capacity():
                    wanted = [each for each in ROUTES if model in self.serve(each) and self.waiting(each)]
                    assert wanted, (
                        f"{route.host} waits for the place of {model.home.host}'s\n{self.dispatcher.snapshot()}"
                    )

    def without_dial(self, route: Route) -> bool:
        """Whether somebody waits there for whom no dial is under way."""
        state = self.dispatcher._routes.get(route)
        return state is not None and self.dispatcher._waiters.first_without_dial(state) is not None

    def expected(self, route: Route) -> bool:
        """Whether some waiter without a dial waits for room that a connection said that it will have."""
        state = self.dispatcher._routes[route]
        first = self.dispatcher._waiters.first_without_dial(state)
        assert first is not None
        return state.worth_waiting(first.fresh) is not None

    @invariant()
    def every_connection_has_one_standing(self) -> None:
        dispatcher = self.dispatcher
        members = {cast(Model, each.connection): each for each in dispatcher._members.values()}
        assert set(members) == {each for each in self.connections if each.state is State.OPEN}
        assert set(dispatcher._places.idle) <= set(members.values())
        assert all(not member.connection.open_exchanges for member in dispatcher._places.idle)
        for state in dispatcher._routes.values():
            for each in members.values():
                standings = [standing for standing in Standing if each in state.members[standing]]
                assert standings == ([each.standing] if state in each.serves else [])
        for model, member in members.items():
            assert member.home.route == model.home
            behind = bool(model.exchanges) and not model.multiplexes
            if model.capacity():
                assert member.standing is (Standing.BEHIND if behind else Standing.FREE)
            else:
                assert member.standing is not Standing.FREE

    @invariant()
    def places_are_held_by_open_connections_and_dials(self) -> None:
        dispatcher = self.dispatcher
        holders = [member.home for member in dispatcher._members.values()]
        holders += [state for state in dispatcher._routes.values() for dial in state.dials if dial.has_place]
        for state in {*holders, *dispatcher._routes.values()}:
            assert state.places == holders.count(state)
        assert dispatcher._places.full is (len(holders) >= (self.config.max_connections or sys.maxsize))

    @invariant()
    def idle_ones_are_in_the_order_of_their_last_use(self) -> None:
        # (Those that multiplex may lose their place to somebody who waits for their room, and come back.)
        idle = [each.connection for each in self.dispatcher._places.idle]
        since = [each.idle_since for each in idle if not each.multiplexes]
        assert since == sorted(since)

    @invariant()
    def surplus_goes(self) -> None:
        """Half a second later there are no more idle connections than are kept."""
        keep = self.config.max_keepalive_connections
        if keep is None:
            return
        since = [each.connection.idle_since for each in self.dispatcher._places.idle]
        idle = [each for each in since if each + 0.5 < self.clock.now]
        assert len(idle) <= keep


class Drawn:
    """In place of what hypothesis draws: these, one after the other."""

    def __init__(self, *values: object) -> None:
        self._values = list(values)

    def draw(self, strategy: object) -> Any:
        return self._values.pop(0)


def play(machine: PoolMachine, step: Callable[..., None], *values: object) -> None:
    step(Drawn(*values))
    machine.settle()


@pytest.fixture
def machine() -> Iterator[PoolMachine]:
    machine = PoolMachine()
    machine.begin(None, None, None, 0)
    yield machine
    machine.teardown()


def test_expected_room_that_does_not_come_is_waited_for_no_longer_than_is_said(machine: PoolMachine) -> None:
    """The wait for it may begin when somebody waits already: when the room that came is taken by the one before."""
    play(machine, machine.arrives, B, b"GET", 5.0, ANY)
    play(machine, machine.dial_succeeds, machine.dials[0], True, 1, True)
    for _ in range(2):
        play(machine, machine.arrives, B, b"GET", 5.0, ANY)
    assert machine.dials == []  # nothing was answered yet: another connection would have no more room
    play(machine, machine.exchange_ends, machine.opened()[0])
    assert machine.dials == []
    play(machine, machine.time_passes, 1.0)
    assert len(machine.dials) == len(machine.waiting(B)) == 1


def test_room_that_is_expected_no_more_is_waited_for_no_more(machine: PoolMachine) -> None:
    play(machine, machine.arrives, B, b"GET", 5.0, ANY)
    play(machine, machine.dial_succeeds, machine.dials[0], True, 1, True)
    play(machine, machine.arrives, B, b"GET", 5.0, ANY)
    assert machine.dials == []
    play(machine, machine.server_changes_its_limit, machine.connections[0], 1, False)
    assert len(machine.dials) == len(machine.waiting(B)) == 1


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
