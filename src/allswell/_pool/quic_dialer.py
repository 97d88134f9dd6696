"""From a route to HTTP/3 on ``quic > udp``: the dialer's other half, apart because its imports are heavy."""

from __future__ import annotations

import os
import ssl
from typing import Any

from allswell._backends.http3 import Http3
from allswell._backends.interface import Backend
from allswell._config import PoolConfig
from allswell._filters.happy_eyeballs import connect_any
from allswell._filters.interface import Datagrams
from allswell._filters.lookups import Address, Resolve
from allswell._filters.quic import QuicFilter
from allswell._filters.quic_settings import QuicSettings
from allswell._filters.quic_tickets import MemoryStore, QuicStore
from allswell._filters.stack import AroundConnect, Stack
from allswell._filters.udp import UdpFilter
from allswell._pool.route import Endpoint, Route


class QuicDialer:
    """Makes HTTP/3 connections for one pool.

    :param context: whom to trust, as on TCP.
    :param ask: the resolver.
    """

    def __init__(self, config: PoolConfig, context: ssl.SSLContext, ask: Resolve) -> None:
        self._config = config
        self._ask = ask
        self._context = context
        self._keylog: str | None = getattr(context, "keylog_filename", None)
        self._store: QuicStore = config.quic.store or MemoryStore()

    async def dial(self, route: Route, to: Endpoint, around: AroundConnect | None) -> tuple[Stack, Backend[Any]]:
        """Connect to the first of the host's addresses that answers.

        :param to: the UDP service, which need not be at the route's host and port (RFC 7838 §2.1).
        :raises ConnectFailed: naming the peer and what went wrong.
        """
        config = self._config
        made: dict[QuicFilter, Stack] = {}

        async def attempt(address: Address) -> QuicFilter:
            udp = UdpFilter(*address, local_address=config.local_address, socket_options=config.socket_options)
            quic = QuicFilter(udp, self._settings(route))
            made[quic] = Stack(quic, udp)
            await made[quic].connect(around)
            return quic

        def discard(quic: QuicFilter) -> None:
            made[quic].abort()

        quic = await connect_any(
            to.host,
            to.port,
            attempt,
            discard,
            local_address=config.local_address,
            hints=to.hints,
            ask=self._ask,
        )
        return made[quic], Http3(quic.connection, max_header_size=config.max_header_size)

    async def dial_over(self, stack: Stack, route: Route, around: AroundConnect | None) -> tuple[Stack, Backend[Any]]:
        """Connect over a stack that carries datagrams to the server.

        :raises ConnectFailed: naming the peer and what went wrong.
        """
        assert isinstance(stack.top, Datagrams)
        quic = QuicFilter(stack.top, self._settings(route))
        await stack.push(quic, around)
        return stack, Http3(quic.connection, max_header_size=self._config.max_header_size)

    def _settings(self, route: Route) -> QuicSettings:
        config, quic = self._config, self._config.quic
        return QuicSettings(
            server_name=route.server_name or route.host,
            server=f"{route.host}:{route.port}",
            trust=self._context,
            certfile=quic.certfile,
            keyfile=quic.keyfile,
            key_password=quic.key_password,
            versions=quic.versions,
            idle_timeout=quic.idle_timeout,
            keepalive=quic.keepalive,
            stream_window=config.stream_window,
            connection_window=config.connection_window,
            datagrams=quic.datagrams,
            store=self._store,
            early_data=quic.early_data,
            qlog_dir=quic.qlog_dir or os.environ.get("QLOGDIR") or None,
            keylog_file=self._keylog,
        )
