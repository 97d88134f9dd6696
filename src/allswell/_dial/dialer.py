"""From a route to a connection: with `quic_dialer.py` the one place that composes filters and backends.

The stacks: ``tcp`` for http, ``tls > tcp`` or ``quic > udp`` for https, on top of whatever leads through proxies
(`proxy_dialer.py`). On TLS the backend follows from what ALPN chose
(RFC 7301); on http it is HTTP/1.1, or HTTP/2 by prior knowledge (RFC 9113 §3.3) when HTTP/1.1 is not wanted.
A route that ends at a proxy is dialled in the same way, as its hop allows.

QUIC is tried where the origin is known to offer it (`discovery.py`), and TCP 250 ms later, or as soon as QUIC has
failed; the first wins (draft-ietf-happy-happyeyeballs-v3). Several endpoints of either race each other in the same way.
Where QUIC failed it is left alone for a while; it has failed, too, where TCP did all of its work in the meantime.
"""

from __future__ import annotations

import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from allswell._backends.http1 import Http1
from allswell._backends.http1_pipeline import Http1Pipeline
from allswell._backends.http2 import Http2
from allswell._backends.http2_core import StreamLimit
from allswell._backends.interface import Backend
from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection, Owner
from allswell._connection.driver import Driver
from allswell._connection.service import Service
from allswell._dial.discovery import Discovery, Ways
from allswell._dial.happy_eyeballs import CONNECTION_ATTEMPT_DELAY, connect_tcp, connect_unix, staggered
from allswell._dial.proxy_dialer import ProxyDialer, Send
from allswell._errors import ConnectFailed
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._filters.interface import ByteStream, Carrier, Filter, ReceiveBuffer
from allswell._filters.keylog import trusted
from allswell._filters.stack import AroundConnect, Stack
from allswell._filters.tcp import TcpFilter
from allswell._filters.tls import TlsFilter
from allswell._pins import pin_check
from allswell._request.route import Endpoint, Route, authority
from allswell._tasks import TaskHost
from allswell._trace import Tracer

if TYPE_CHECKING:
    from allswell._dial.quic_dialer import QuicDialer
    from allswell._filters.quic import QuicFilter
    from allswell._quic.interface import QuicEvent

#: Origins whose manners are remembered.
_MANNERS = 1024


class _Manners(NamedTuple):
    """What was learnt about an origin: how it answers close_notify and FIN, its limit of streams, what it served."""

    tls: GoodbyeTimeout
    tcp: GoodbyeTimeout
    streams: StreamLimit
    service: Service


class _Made(NamedTuple):
    """What an attempt made, and when it began."""

    stack: Stack[Carrier[Any]]
    backend: Backend[Any]
    began: float


class Dialer:
    """Makes connections for one pool.

    :ivar discovery: what is known of where to.
    """

    def __init__(self, host: TaskHost, config: PoolConfig) -> None:
        self._host = host
        self._config = config
        self._buffer = ReceiveBuffer()
        self._context = config.ssl_context
        self._manners: OrderedDict[Route, _Manners] = OrderedDict()
        self.discovery = Discovery(host, config)
        self._quic: QuicDialer | None = None
        self._proxies = ProxyDialer(
            config,
            self._buffer,
            self._tcp,
            lambda route: self._manners_of(route).tls,
            self.discovery.lookups.addresses,
        )

    async def dial(
        self,
        route: Route,
        owner: Owner,
        send: Send,
        discard: Callable[[Connection, str], None],
        tracer: Tracer | None,
        *,
        timeout: float | None = None,
    ) -> Connection:
        """A new connection; its task is not running yet.

        :param send: sends a request on another connection of the owner's: one for a tunnel that this one goes through.
        :param discard: ends a connection that was made and is not wanted, for this reason.
        :param timeout: what the caller allows for it, for the tracer to tell.
        :raises ConnectFailed: naming the peer and what went wrong.
        """
        around = _traced(tracer, route, self._config, timeout, self._context) if tracer is not None else None
        discovery = self.discovery
        find = partial(discovery.find, route, datagrams=self._proxies.carries_datagrams(route))
        trying: dict[Endpoint, float] = {}  # over QUIC: those that neither failed nor worked yet, and when they began

        async def over_quic(endpoint: Endpoint) -> _Made:
            began = trying[endpoint] = monotonic()
            try:
                made = _Made(*await self._dial_quic(route, endpoint, send, around), began)
                if ways.tcp and not made.backend.capacity():
                    discard(connection(made), "it has no room yet, and TCP may have")
                    raise ConnectFailed(f"{route.label} grants no request streams over QUIC", phase="quic", by="peer")
            except ConnectFailed:
                del trying[endpoint]
                discovery.failed(route, endpoint)
                raise
            del trying[endpoint]
            discovery.worked(route, endpoint)
            return made

        async def over_tcp(endpoint: Endpoint) -> _Made:
            began = monotonic()
            stack, backend = await self._dial_tcp(route, endpoint, send, around)
            return _Made(stack, backend, began)

        def connection(made: _Made) -> Connection:
            driver = Driver(
                self._host,
                made.stack,
                made.backend,
                label=route.label,
                owner=owner,
                config=self._config,
                service=self._manners_of(route).service,
            )
            return driver.connection

        def second(made: _Made) -> None:
            discard(connection(made), "another was made sooner")

        async def race(ways: Ways) -> _Made:
            races = [
                partial(staggered, [partial(attempt, endpoint) for endpoint in endpoints], second)
                for attempt, endpoints in ((over_quic, ways.quic), (over_tcp, ways.tcp))
                if endpoints
            ]
            return await staggered(races, second)

        ways = await find()
        try:
            made = await race(ways)
        except ConnectFailed:
            more = (await find(patient=True)).besides(ways)  # DNS may have been late
            if not any(more):
                raise
            made = await race(more)
        for endpoint, began in trying.items():
            if began < made.began - CONNECTION_ATTEMPT_DELAY / 2:  # not one that began beside it
                discovery.failed(route, endpoint)
        return connection(made)

    async def _dial_quic(
        self, route: Route, to: Endpoint, send: Send, around: AroundConnect | None
    ) -> tuple[Stack[QuicFilter], Backend[list[QuicEvent]]]:
        if self._quic is None:
            # Imported when it is first needed: QUIC's dependencies take longer to load than all else together.
            from allswell._dial.quic_dialer import QuicDialer

            self._quic = QuicDialer(self._config, self._trust, self.discovery.lookups.addresses)
        settings = self._quic.settings(route)
        if route.proxies:
            stack = await self._proxies.reach_datagrams(route._replace(host=to.host, port=to.port), send, around)
            return await self._quic.dial_over(stack, route, settings, to, around)
        return await self._quic.dial(route, settings, to, around)

    async def _dial_tcp(
        self, route: Route, to: Endpoint, send: Send, around: AroundConnect | None
    ) -> tuple[Stack[ByteStream], Backend[memoryview]]:
        context = self._trust(route) if route.scheme == "https" else None
        if route.proxies:
            stack = await self._proxies.reach(route, send, around)
        else:
            tcp = Stack(self._tcp(route, to))
            await tcp.connect(around)
            stack = tcp
        chosen: str | None = None
        if context is not None:
            tls = await stack.push(self._tls(route, stack.top, context), around)
            stack, chosen = tls, tls.top.alpn_protocol
        try:
            return stack, self._backend(route, chosen)
        except ConnectFailed:
            stack.abort()
            raise

    def _tls(self, route: Route, lower: ByteStream, context: ssl.SSLContext) -> TlsFilter:
        if route.proxy is not None:
            return self._proxies.tls(lower, route, context, self._alpn(route))
        return TlsFilter(
            lower,
            peer=authority(route.scheme, route.host, route.port),
            context=context,
            server_name=route.tls_name,
            alpn=self._alpn(route),
            buffer=self._buffer,
            goodbye_timeout=self._manners_of(route).tls,
            pinned=pin_check(self._config.pins, route.host, route.tls_name),
        )

    def may_multiplex(self, route: Route) -> bool:
        """Whether a connection to this route might carry many exchanges at once, for all we know before dialling."""
        if route.upgrades and self._config.http1:
            return False
        if route.proxy is not None:
            return "h2" in self._alpn(route) or bool(route.proxy.http3)
        if self._config.http3 == "only":
            return True
        return self._config.http2 and (route.scheme == "https" or not self._config.http1)

    def tls(self, lower: ByteStream, context: ssl.SSLContext, server_name: str) -> TlsFilter:
        """TLS over any byte stream (a tunnel that a caller wants to talk TLS through)."""
        return TlsFilter(
            lower,
            peer=server_name,
            context=context,
            server_name=server_name,
            alpn=(),
            buffer=self._buffer,
            pinned=pin_check(self._config.pins, server_name),
        )

    def _tcp(self, route: Route, to: Endpoint | None = None) -> TcpFilter:
        """To the route's host, or an endpoint of its."""
        config = self._config
        host, port, hints, _ = to or Endpoint(route.host, route.port)
        where = authority(route.scheme, route.host, route.port) if route.proxy is None else f"the proxy {route.proxy}"

        async def dial() -> socket.socket:
            try:
                if config.uds is not None:
                    return await connect_unix(config.uds, options=config.socket_options)
                return await connect_tcp(
                    host,
                    port,
                    local_address=config.local_address,
                    options=config.socket_options,
                    hints=hints,
                    ask=self.discovery.lookups.addresses,
                    allow=config.allow_address,
                )
            except ConnectFailed as error:
                if route.proxy is None:
                    raise
                raise error.of(f"the proxy {route.proxy}") from error

        goodbye_timeout = self._manners_of(route).tcp
        return TcpFilter(where if config.uds is None else config.uds, dial, self._buffer, goodbye_timeout)

    def _backend(self, route: Route, chosen: str | None) -> Backend[memoryview]:
        config = self._config
        forwards = route.proxy is not None
        if chosen == "h2" or (route.scheme == "http" and not config.http1 and not forwards):
            return Http2(
                max_header_size=config.max_header_size,
                initial_window=config.stream_window,
                connection_window=config.connection_window,
                assumed=self._manners_of(route).streams,
            )
        if not config.http1 and not forwards:
            raise ConnectFailed(f"{route.origin} does not speak HTTP/2", phase="tls", by="peer")
        size = config.max_header_size
        if config.pipelining > 0 and not (route.upgrades or route.for_tunnels):
            return Http1Pipeline(depth=config.pipelining, max_header_size=size)
        return Http1(max_header_size=size)

    def _alpn(self, route: Route) -> list[str]:
        if route.upgrades and self._config.http1:
            return ["http/1.1"]
        if route.proxy is not None:
            return ["h2"] * (self._config.http2 and route.proxy.http2) + ["http/1.1"]
        return ["h2"] * self._config.http2 + ["http/1.1"] * self._config.http1

    def _trust(self, route: Route) -> ssl.SSLContext:
        """Whom to trust at the route's end. To be asked before anything is connected: it may fail."""
        if route.proxy is not None:
            return self._proxies.context(route.proxy)
        self._context = trusted(self._context, self._config.trust_env)
        return self._context

    def streams(self, route: Route) -> int:
        """How many exchanges a connection that multiplexes is likely to take."""
        manners = self._manners_of(route)
        return max(1, int(min(manners.streams.value, manners.service.takes)))

    def _manners_of(self, route: Route) -> _Manners:
        manners = self._manners.get(route)
        if manners is None:
            manners = self._manners[route] = _Manners(GoodbyeTimeout(), GoodbyeTimeout(), StreamLimit(), Service())
        self._manners.move_to_end(route)
        if len(self._manners) > _MANNERS:
            self._manners.popitem(last=False)
        return manners


def _traced(
    tracer: Tracer, route: Route, config: PoolConfig, timeout: float | None, context: ssl.SSLContext | None
) -> Callable[[Filter, Callable[[], Awaitable[None]]], Awaitable[None]]:
    """Wraps each filter's connect in the trace events that httpx2 documents for it."""
    common = {"timeout": timeout, "socket_options": config.socket_options or None}
    near = route.proxies[0] if route.proxies else route
    to_host = {"host": near.host, "port": near.port, "local_address": config.local_address, **common}
    infos: dict[str, tuple[str, dict[str, Any]]] = {
        "tcp": (
            ("connect_tcp", to_host) if config.uds is None else ("connect_unix_socket", {"path": config.uds, **common})
        ),
        "udp": ("connect_udp", to_host),
        "quic": ("connect_quic", {"server_hostname": route.tls_name, "timeout": timeout}),
        "tls": (
            "start_tls",
            {"ssl_context": context, "server_hostname": route.tls_name, "timeout": timeout},
        ),
    }

    async def connect(layer: Filter, step: Callable[[], Awaitable[None]]) -> None:
        name, info = infos.get(layer.name) or ("connect_via_proxy", {"layer": layer.name, "timeout": timeout})
        tracer.note(f"{name}.started", info)
        try:
            await step()
        except BaseException as error:
            tracer.note(f"{name}.failed", {"exception": error})
            raise
        tracer.note(f"{name}.complete", {"return_value": layer})

    return connect
