"""From a route to a connection: QUIC races TCP, directly or through proxies.

QUIC is tried if the origin is known to offer it (`discovery.py`). TCP follows 250 ms later, or as soon as QUIC has
failed. The first to connect wins (`race.py`). If QUIC fails, or if an attempt that began later connects first, QUIC is
not tried at that endpoint for a while. A route that ends at a proxy is dialled in the same way, as its hop allows.

Builders make the parts of a connection: `tcp.py`, `quic.py`, and `proxy.py` for the way through proxies.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection
from allswell._dial.builder import Builder, Made
from allswell._dial.context import Context
from allswell._dial.discovery import Discovery, Ways
from allswell._dial.kit import Kit
from allswell._dial.lookups import Lookups
from allswell._dial.origin_memory import BrokenMarks, OriginMemory
from allswell._dial.race import CONNECTION_ATTEMPT_DELAY, in_turn
from allswell._dial.tcp import TcpBuilder, alpn
from allswell._errors import ConnectFailed
from allswell._filters.interface import ByteStream
from allswell._filters.tls import TlsFilter
from allswell._late import Late
from allswell._request.route import Endpoint, Route
from allswell._tasks import TaskHost

if TYPE_CHECKING:
    from allswell._dial import proxy
    from allswell._quic.interface import QuicEvent

    AnyMade = Made[memoryview] | Made[list[QuicEvent]]
    QuicMaker = Callable[[Kit, proxy.ProxyBuilder], Builder[list[QuicEvent]]]
else:
    proxy = Late("allswell._dial.proxy")


class _Tried(NamedTuple):
    """The result of an attempt, and when it began."""

    made: AnyMade
    began: float


class Dialer:
    """Makes connections for one pool.

    :param quic: makes the builder of HTTP/3 connections, once it is needed.
    :ivar memory: the records of origins.
    :ivar discovery: finds where origins offer their service.
    """

    def __init__(self, host: TaskHost, config: PoolConfig, quic: QuicMaker | None = None) -> None:
        self._host = host
        self._config = config
        self.memory = OriginMemory()
        lookups = Lookups(host, config.resolver)
        self.discovery = Discovery(host, config, self.memory, lookups)
        self._kit = Kit(config, lookups, self.memory, host)
        self._tcp = TcpBuilder(self._kit)
        self._make_quic = quic or _quic_builder
        self._quic: Builder[list[QuicEvent]] | None = None

    @property
    def quic(self) -> Builder[list[QuicEvent]]:
        """The builder of HTTP/3 connections."""
        if self._quic is None:
            self._quic = self._make_quic(self._kit, proxy.ProxyBuilder(self._kit))
        return self._quic

    async def dial(self, context: Context) -> Connection:
        """Make a connection. Its task is not running yet.

        :raises ConnectFailed: if that fails. It names the peer and what went wrong.
        """
        route = context.route
        find = partial(
            self.discovery.find,
            route,
            datagrams=not route.proxies or proxy.ProxyBuilder(self._kit).carries_datagrams(route),
            around=partial(context.phase, "dns", f"{route.host} HTTPS"),
        )
        attempts = _Attempts(context, self._tcp, lambda: self.quic, self.memory.of(route).quic, self._connection)
        ways = await find()
        try:
            made = await attempts.race(ways)
        except ConnectFailed as before:
            more = (await find(patient=True)).besides(ways)  # HTTPS records may have come too late for the first race
            if not any(more):
                raise
            try:
                made = await attempts.race(more)
            except ConnectFailed as error:
                raise error.besides([before]) from error
        return self._connection(context, made)

    def _connection(self, context: Context, made: AnyMade) -> Connection:
        return made.connection(self._host, context, self.memory.of(context.route).service)

    def may_multiplex(self, route: Route) -> bool:
        """Whether a connection to this route may carry many exchanges at once, by what is known before the dial."""
        if route.upgrades and self._config.http1:
            return False
        if route.proxy is not None:
            return "h2" in alpn(route, self._config) or bool(route.proxy.http3)
        if self._config.http3 == "only":
            return True
        return self._config.http2 and (route.scheme == "https" or not self._config.http1)

    def streams(self, route: Route) -> int:
        """How many exchanges a connection will probably take at once, if it multiplexes."""
        return self.memory.of(route).takes

    def tls(self, lower: ByteStream, context: ssl.SSLContext, server_name: str) -> TlsFilter:
        """TLS over any byte stream, for a caller who begins TLS in a tunnel."""
        return self._kit.tls_for_caller(lower, context, server_name)


class _Attempts:
    """The attempts of one dial over QUIC and over TCP, and their results.

    :param marks: the endpoints where QUIC failed.
    :param connection: makes a connection of an attempt's result.
    """

    def __init__(
        self,
        context: Context,
        tcp: Builder[memoryview],
        quic: Callable[[], Builder[list[QuicEvent]]],
        marks: BrokenMarks,
        connection: Callable[[Context, AnyMade], Connection],
    ) -> None:
        self._context = context
        self._tcp = tcp
        self._quic = quic
        self._marks = marks
        self._connection = connection
        self._trying: dict[Endpoint, float] = {}  # attempts over QUIC that are under way: when each began

    async def race(self, ways: Ways) -> AnyMade:
        """Return the result of the first attempt that succeeds.

        :raises ConnectFailed: if none does.
        """
        over_quic = partial(self._over_quic, needs_room=bool(ways.tcp))
        races: list[Callable[[], Awaitable[_Tried]]] = []
        if ways.quic:
            races.append(partial(in_turn, ways.quic, over_quic, self._second))
        if ways.tcp:
            races.append(partial(in_turn, ways.tcp, self._over_tcp, self._second))
        first = await in_turn(races, _run, self._second)
        for endpoint, since in self._trying.items():
            if since < first.began - CONNECTION_ATTEMPT_DELAY / 2:  # (not if both began together)
                self._marks.failed(endpoint)
        return first.made

    async def _over_quic(self, endpoint: Endpoint, *, needs_room: bool) -> _Tried:
        """Try HTTP/3.

        :param needs_room: whether a connection that grants no request streams counts as failed. (TCP may have room.)
        """
        began = self._trying[endpoint] = monotonic()
        try:
            made = await self._quic().build(self._context, endpoint)
            if needs_room and not made.backend.capacity():
                self._discard(made, "it has no room yet, and TCP may have room")
                label = self._context.route.label
                raise ConnectFailed(f"{label} has allowed no request over QUIC yet", phase="quic", by="peer")
        except ConnectFailed:
            del self._trying[endpoint]
            self._marks.failed(endpoint)
            raise
        del self._trying[endpoint]
        self._marks.worked(endpoint)
        return _Tried(made, began)

    async def _over_tcp(self, endpoint: Endpoint) -> _Tried:
        began = monotonic()
        return _Tried(await self._tcp.build(self._context, endpoint), began)

    def _second(self, tried: _Tried) -> None:
        self._discard(tried.made, "another connection was made sooner")

    def _discard(self, made: AnyMade, reason: str) -> None:
        self._context.discard(self._connection(self._context.second(), made), reason)


async def _run(race: Callable[[], Awaitable[_Tried]]) -> _Tried:
    return await race()


def _quic_builder(kit: Kit, proxies: proxy.ProxyBuilder) -> Builder[list[QuicEvent]]:
    # Imported late: QUIC's dependencies take longer to load than all else together.
    from allswell._dial.quic import QuicBuilder

    return QuicBuilder(kit, proxies)
