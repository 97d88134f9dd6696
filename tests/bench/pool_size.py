"""What a request costs the pool with 1 and with 10,000 idle connections elsewhere: ``python -m tests.bench.pool_size``.

The connections are pretended, so only the dispatcher is measured: it finds an idle connection, opens an exchange on it,
and takes it back when the exchange is over.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

from allswell._config import PoolConfig
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._connection.history import History
from allswell._connection.lifecycle import State
from allswell._connection.service import Service
from allswell._dial.dialer import Dialer
from allswell._messages import RequestHead
from allswell._observers import Observers
from allswell._pool.dispatcher import Dispatcher
from allswell._pool.freshness import ANY
from allswell._pool.member import RouteState
from allswell._pool.waiters import Dial
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._request.route import Route
from allswell._tasks import TaskHost


class PretendedConnection:
    """What a dispatcher asks of a connection; always HTTP/1.1, always answered at once by :meth:`finish`."""

    multiplexes = False
    shared = False
    capacity_expected = False
    http_version = "HTTP/1.1"
    label = "pretended"
    state = State.OPEN
    reason = ""

    def __init__(self) -> None:
        self.history = History(Service())
        self.open_exchanges = 0
        self.idle_since = self.history.made_at

    def capacity(self) -> int:
        """See :class:`Connection`."""
        return 1 - self.open_exchanges

    def usable(self) -> bool:
        """See :class:`Connection`."""
        return not self.open_exchanges

    def open(self, *_: Any, **__: Any) -> Exchange[Connection]:
        """See :class:`Connection`."""
        self.history.on_opened()
        self.open_exchanges = 1
        return cast(Exchange[Connection], self)

    def finish(self) -> None:
        """The exchange is over."""
        self.open_exchanges = 0

    def start(self) -> None:
        """See :class:`Connection`."""


class _Host:
    def when_over(self, method: Callable[[], None]) -> None:
        """It has no end."""


class _Sender:
    async def send(self, request: Request) -> Response:
        raise NotImplementedError(request)


def warm_request(idle: int) -> Callable[[], None]:
    """A function that makes one request on a warm route, with so many idle connections on other routes."""
    config = PoolConfig(max_connections=None, max_keepalive_connections=None)
    sender = _Sender()
    dispatcher = Dispatcher(cast(TaskHost, _Host()), cast(Dialer, None), config, sender.send, Observers())
    warm = Route("http", "warm.test", 80)
    for route in [warm, *(Route("http", f"other{number}.test", 80) for number in range(idle))]:
        adopt(dispatcher, route, PretendedConnection())
    head = RequestHead(b"GET", b"http", b"warm.test", b"/", [(b"Host", b"warm.test")])
    request = Request(head, warm)

    def once(_keep: object = sender) -> None:
        exchange = cast(Any, dispatcher.open_now(request, ANY))
        exchange.finish()
        dispatcher.connection_available(exchange)

    return once


def adopt(dispatcher: Dispatcher, route: Route, connection: PretendedConnection) -> None:
    """Give the dispatcher a connection as a dial does."""
    state = dispatcher._routes[route] = RouteState(route)
    dispatcher._dial_succeeded(state, Dial(1, searches=False), cast(Connection, connection))


def main() -> None:
    """Print both."""
    for idle in (1, 100, 10_000):
        once = warm_request(idle)
        best = float("inf")
        for _ in range(30):
            began = perf_counter()
            for _ in range(1000):
                once()
            best = min(best, (perf_counter() - began) / 1000)
        print(f"{idle:>6} idle connections elsewhere: {best * 1e6:.2f} µs a request in the dispatcher")


if __name__ == "__main__":
    main()
