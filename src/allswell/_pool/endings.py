"""The connections of a pool until they are closed, also those that say their goodbyes, and how each ended.

Theory of operation. A connection is added when it starts, and removed when it is closed. When the pool closes, all end
side by side, within one grace. Exchanges in flight may finish until little of the grace is left. Then they are cut. If
nobody has the time to wait, everything is said in one step (:meth:`Endings.take_leave`). Connections that have yet to
hear the answers then go on by themselves, and the end of the event loop waits a moment for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio
import anyio.lowlevel

from allswell._connection.connection import Connection
from allswell._connection.lifecycle import LAST_MOMENT, LOOP_ENDED
from allswell._deadline import Deadline
from allswell._debug_log import CONNECTION
from allswell._errors import PoolClosed
from allswell._events import ConnectionEnded, ConnectionOpened, ConnectionUsed
from allswell._observers import Observers, notify
from allswell._pool.waiters import Dial
from allswell._report import ConnectionEnd
from allswell._request.route import Route
from allswell._tasks import TaskHost

#: How many seconds tasks have to finish after the grace. (They wait for nothing by then.)
_SLACK = 0.1

#: Why a connection ended that was to be replaced.
DRAINED = "it was drained"


class _Drain:
    """One call of :meth:`Endings.drain`.

    :ivar waits_for: the connections that have not ended, and the dials that are not over.
    :ivar ends: the ends of the connections that have ended.
    """

    __slots__ = ("ends", "waits_for")

    def __init__(self, *waits_for: Connection | Dial) -> None:
        self.waits_for = set(waits_for)
        self.ends: list[ConnectionEnd] = []


class Endings:
    """The connections of one pool, until they are closed.

    :param on_end: called with the end of each (:attr:`PoolConfig.on_connection_end`).
    :param observers: get the events of their beginning, use and end.
    :ivar connections: the connections that are not closed, and the routes that they were made for.
    :ivar dials: the dials that are under way. Each may make one more connection to end.
    :ivar ends: the ends of those that closed since :meth:`close` was called.
    :ivar dropped: how many the end of the event loop cut off.
    :ivar deadline: the end of the grace, once the pool closes.
    """

    def __init__(self, host: TaskHost, on_end: Callable[[ConnectionEnd], object] | None, observers: Observers) -> None:
        self.connections: dict[Connection, Route] = {}
        self.dials: dict[Dial, None] = {}
        self.ends: list[ConnectionEnd] = []
        self.dropped = 0
        self.deadline: Deadline | None = None
        self._began = 0.0  # when the pool began to close
        self._on_end = on_end
        self._observers = observers
        self._drains: dict[_Drain, None] = {}
        self._lingering: dict[Connection, None] = {}  # that were left (take_leave), and have not ended yet
        self._changed = anyio.Event()
        host.when_over(self._loop_ended)

    def start(self, connection: Connection, route: Route) -> None:
        """Add a connection, and start it."""
        self.connections[connection] = route
        observers = self._observers
        if observers.wanted(CONNECTION):
            number = connection.number
            tls = connection.extra("ssl_object")
            version = "" if tls is None else tls.version() or ""
            observers.tell(
                ConnectionOpened(
                    number, route.place, connection.http_version, connection.layers, connection.peer, version
                )
            )
        if observers.functions:
            connection.tell_use(lambda active: observers.tell(ConnectionUsed(number, active)))
        connection.start()

    def discard(self, connection: Connection, route: Route, reason: str) -> None:
        """Add a connection that nobody wants. It says its goodbyes."""
        self.start(connection, route)
        deadline = self.deadline
        # Goodbyes in the background have a grace of their own.
        connection.close(reason, None if deadline is None or deadline.passed() else deadline)

    def dial_begins(self, dial: Dial) -> None:
        """A connection is being made."""
        self.dials[dial] = None

    def dial_succeeded(self, dial: Dial, connection: Connection) -> None:
        """It is made, and starts next: what waits for the dial waits for the connection too."""
        for drain in self._drains:
            if dial in drain.waits_for:
                drain.waits_for.add(connection)

    def dial_is_over(self, dial: Dial) -> None:
        """It was made, or failed."""
        del self.dials[dial]
        for drain in self._drains:
            drain.waits_for.discard(dial)
        self._tell()

    def ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """A connection is closed, and this is its end."""
        ours = self.connections.pop(connection, None) is not None
        for drain in self._drains:
            if connection in drain.waits_for:
                drain.waits_for.remove(connection)
                drain.ends.append(end)
        self._lingering.pop(connection, None)
        if ours and self.deadline is not None:
            self.ends.append(end)
        elif ours and end.reason == LOOP_ENDED:
            self.dropped += 1
        if self._on_end is not None:
            notify("on_connection_end", self._on_end, end)
        if self._observers.wanted(CONNECTION):
            self._observers.tell(ConnectionEnded(connection.number, end, connection.error))
        self._tell()

    async def drain(self, deadline: Deadline) -> list[ConnectionEnd]:
        """Let all present connections take no more requests, and end after their exchanges.

        Those in the making serve the requests that wait, and end too. (They may go through one that is present.)

        :param deadline: when to stop waiting. Those that have not ended then go on.
        :return: the ends of those that ended in time.
        """
        drain = _Drain(*self.connections, *self.dials)
        self._drains[drain] = None
        try:
            for dial in self.dials:
                dial.drain()
            for connection in list(self.connections):
                connection.close(DRAINED)
            with deadline.scope():
                while drain.waits_for:
                    await self._changed.wait()
        finally:
            del self._drains[drain]
        return drain.ends

    async def close(self, deadline: Deadline, began: float, *, cut: bool) -> None:
        """End everything, as :meth:`ConnectionPool.aclose` says. The results are in ``ends``.

        :param deadline: the end of the grace.
        :param began: when it began.
        """
        left = deadline.left()
        self.deadline, self._began = deadline, began
        reserve = min(0.5, left / 4)
        carried = any(route.for_tunnels for route in self.connections.values())
        for connection, route in list(self.connections.items()):
            # Connections through another one end sooner, so that the other has its turn. (It waits, because its
            # exchanges are tunnels.)
            sooner = carried and route.proxies and not route.for_tunnels
            until = deadline.shifted(-reserve / 2) if sooner else deadline
            connection.close("the pool closes", until if left else None, epoch=began)
        try:
            if left and not cut:
                await self._all_ended(deadline.shifted(-reserve))
            self._cut("the pool was closed before the response was complete" if cut else self._late(deadline))
            if left:
                await self._all_ended(deadline)
                await self._all_ended(Deadline.after(_SLACK))  # from now on: the program may have held the event loop
        except BaseException:
            self._cut("the close of the pool was cancelled before the response was complete")
            raise
        finally:
            self.take_leave("the grace is over")
        if not left:
            # The tasks that hear the answers have begun by then, whatever happens to the loop.
            await anyio.lowlevel.checkpoint()

    def shorten_grace(self, deadline: Deadline) -> None:
        """The grace has become shorter during the close."""
        if deadline.passed():
            self._cut(self._late(deadline))
            self.take_leave("the grace is over")
        for connection in list(self.connections):
            connection.close("the pool closes", deadline)

    def _late(self, deadline: Deadline) -> str:
        grace = deadline.at - self._began  # it may be shorter than it was at the beginning
        return f"the pool was closed, and the response was not complete within its grace of {grace:.3g} s"

    def _cut(self, why: str) -> None:
        for connection, route in list(self.connections.items()):
            if not route.for_tunnels:
                connection.cut(PoolClosed(why))

    def take_leave(self, reason: str) -> None:
        """Say everything now, and wait for nothing. Exchanges in flight are aborted.

        A connection that has yet to hear its answers goes on by itself (see :meth:`Connection.take_leave`). It no
        longer belongs to the pool, and is reported as it is now. Connections through another one leave before that one,
        and hear nothing more.
        """
        carriers = {route for route in self.connections.values() if route.for_tunnels}
        for connection, route in sorted(self.connections.items(), key=lambda each: -len(each[1].proxies)):
            connection.take_leave(reason)
            if route.proxies and route.to_proxy(for_tunnels=True) in carriers:
                connection.abort(reason)
            if self.connections.pop(connection, None) is not None:
                self.ends.append(connection.so_far())
                self._lingering[connection] = None
        self._tell()

    async def _loop_ended(self) -> None:
        """The event loop ends, and waits for this: the answers that come at once are heard."""
        self.dropped += len(self.connections)
        self.take_leave(LOOP_ENDED)
        with Deadline.after(LAST_MOMENT).scope():
            while self._lingering:
                await self._changed.wait()
        for connection in list(self._lingering):
            connection.abort(LOOP_ENDED)

    def were_dropped(self) -> int:
        """The event loop is over. How many it has cut off: observers are told of those that had no chance to end."""
        if self._observers.wanted(CONNECTION):
            for connection in self.connections:
                end = replace(connection.so_far(), reason=LOOP_ENDED)
                self._observers.tell(ConnectionEnded(connection.number, end, connection.error))
        return len(self.connections) + self.dropped

    async def _all_ended(self, deadline: Deadline) -> None:
        if not (self.connections or self.dials):
            return
        with deadline.scope():
            while self.connections or self.dials:
                await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
