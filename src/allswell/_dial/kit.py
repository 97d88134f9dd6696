"""The common part of a pool's builders: settings, trust, the records of origins, and the usual layers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from functools import partial

from allswell._config import PoolConfig, ProxyHop
from allswell._dial.context import Context
from allswell._dial.lookups import Lookups
from allswell._dial.origin_memory import OriginMemory
from allswell._dial.sockets import connect_tcp, connect_unix
from allswell._errors import ConnectFailed
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._filters.keylog import trusted
from allswell._filters.tcp import TcpFilter
from allswell._filters.tls import TlsFilter
from allswell._pins import pin_check
from allswell._request.route import Endpoint, Route, authority
from allswell._tasks import TaskHost


class Kit:
    """The common part of a pool's builders.

    :ivar config: the pool's settings.
    :ivar lookups: looks up addresses.
    :ivar memory: the records of origins.
    :ivar host: the event loop.
    """

    def __init__(self, config: PoolConfig, lookups: Lookups, memory: OriginMemory, host: TaskHost) -> None:
        self.config = config
        self.lookups = lookups
        self.memory = memory
        self.host = host
        self._buffer = ReceiveBuffer()
        self._trust: ssl.SSLContext | None = None  # the default, once it is needed

    def trust(self, proxy: ProxyHop | None) -> ssl.SSLContext:
        """The context for certificates of this proxy, or of origins if none is given.

        Call this before anything is connected.

        :raises ConnectFailed: if the environment names something that cannot be used, or a proxy would see ``cert``.
        """
        config = self.config
        given = config.ssl_context if proxy is None else proxy.ssl_context
        if given is not None:
            if proxy is not None and config.cert is not None and given is config.ssl_context:
                told = f"the proxy {proxy} would be shown cert: it must have another ssl_context than the pool"
                raise ConnectFailed(told, phase="tls", by="us")
            return trusted(given, self.config.trust_env)
        self._trust = trusted(self._trust, self.config.trust_env)
        return self._trust

    def tcp(self, context: Context, to: Endpoint | None = None) -> TcpFilter:
        """TCP to the route's host, or to an endpoint; or the Unix domain socket of the settings."""
        config, route = self.config, context.route
        peer = _peer(route)
        host, port, hints, _ = to or Endpoint(route.host, route.port)

        async def dial() -> socket.socket:
            try:
                if config.uds is not None:
                    with context.phase("tcp", config.uds):
                        return await connect_unix(config.uds, options=config.socket_options)
                return await connect_tcp(
                    host,
                    port,
                    ask=context.asking(self.lookups.addresses),
                    local_address=config.local_address,
                    options=config.socket_options,
                    hints=hints,
                    allow=config.allow_address,
                    around=partial(context.connecting, "tcp"),
                )
            except ConnectFailed as error:
                if route.proxy is None:
                    raise
                raise error.of(peer) from error

        peer_here = peer if config.uds is None else config.uds
        return TcpFilter(peer_here, dial, self._buffer, self.memory.of(route).tcp, self.host)

    def tls(self, route: Route, lower: ByteStream, context: ssl.SSLContext, alpn: Sequence[str]) -> TlsFilter:
        """TLS with the route's end.

        :param context: the result of :meth:`trust`.
        """
        return TlsFilter(
            lower,
            peer=_peer(route),
            context=context,
            server_name=route.tls_name,
            alpn=alpn,
            buffer=self._buffer,
            goodbye_timeout=self.memory.of(route).tls,
            pinned=pin_check(self.config.pins, route.host, route.tls_name),
        )

    def tls_for_caller(self, lower: ByteStream, context: ssl.SSLContext, server_name: str) -> TlsFilter:
        """TLS over any byte stream, such as a tunnel in which a caller begins TLS."""
        return TlsFilter(
            lower,
            peer=server_name,
            context=context,
            server_name=server_name,
            alpn=(),
            buffer=self._buffer,
            pinned=pin_check(self.config.pins, server_name),
        )


def _peer(route: Route) -> str:
    """The name of the route's end in errors."""
    if route.proxy is not None:
        return f"the proxy {route.proxy}"
    return authority(route.scheme, route.host, route.port)
