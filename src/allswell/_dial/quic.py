"""From a route to HTTP/3 on ``quic > udp``, or through proxies. It has its own module because its imports are heavy."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from allswell._addresses import SocketAddress, check_contact
from allswell._backends.http3 import Http3
from allswell._dial.addresses import connect_any
from allswell._dial.builder import Made
from allswell._dial.context import Context
from allswell._dial.kit import Kit
from allswell._dial.lookups import Address
from allswell._dial.proxy import ProxyBuilder
from allswell._errors import ConnectFailed
from allswell._filters.quic import QuicFilter
from allswell._filters.stack import Stack
from allswell._filters.udp import UdpFilter
from allswell._pins import pin_check
from allswell._quic.interface import QuicEvent
from allswell._quic.settings import QuicSettings
from allswell._quic_store import QuicMemory, QuicStore
from allswell._request.route import Endpoint, Route, authority
from allswell._tasks import logger

#: Bytes of the largest UDP payload that every path of QUIC must carry (RFC 9000 §14).
_SMALLEST = 1200
#: The same for a connection that carries the packets of another one, which may carry those of a third. Each level takes
#: up to 50 bytes. Nearly all paths carry so much. On others the handshake fails, because its packets are as large.
_CARRIER = 1350


class QuicBuilder:
    """Makes HTTP/3 connections for one pool. A :class:`Builder`.

    :param proxies: makes the carriers of datagrams through proxies.
    """

    def __init__(self, kit: Kit, proxies: ProxyBuilder) -> None:
        self._kit = kit
        self._config = kit.config
        self._memory = kit.memory
        self._proxies = proxies
        self._store: QuicStore = kit.config.quic.store or QuicMemory()

    async def build(self, context: Context, to: Endpoint) -> Made[list[QuicEvent]]:
        """See :meth:`Builder.build`. The UDP service need not be at the route's host and port (RFC 7838 §2.1)."""
        route, settings = context.route, self.settings(context.route)
        stack = await (self._over if route.proxies else self._direct)(context, settings, to)
        return Made(stack, self._backend(stack.top, route, to))

    async def _direct(self, context: Context, settings: QuicSettings, to: Endpoint) -> Stack[QuicFilter]:
        """``quic > udp``."""
        config = self._config

        async def attempt(address: Address) -> Stack[QuicFilter]:
            udp = UdpFilter(
                *address,
                local_address=config.local_address,
                socket_options=config.socket_options,
                check=partial(self._check_other, to.host),
            )
            stack = Stack(QuicFilter(udp, settings, self._kit.host), udp)
            with context.connecting("quic", address):
                await context.connect(stack)
            return stack

        return await connect_any(
            to.host,
            to.port,
            attempt,
            Stack.abort,
            ask=context.asking(self._kit.lookups.addresses),
            local_address=config.local_address,
            hints=to.hints,
            allow=config.allow_address,
            transport="udp",
        )

    async def _over(self, context: Context, settings: QuicSettings, to: Endpoint) -> Stack[QuicFilter]:
        """``quic`` on a carrier of datagrams through proxies."""
        there = context.towards(context.route._replace(host=to.host, port=to.port))
        stack = await self._proxies.reach_datagrams(there)
        settings = replace(settings, max_datagram_size=min(settings.max_datagram_size, stack.top.largest))
        return await context.push(stack, QuicFilter(stack.top, settings, self._kit.host))

    def _check_other(self, host: str, address: SocketAddress) -> None:
        """Check a server's preferred address (RFC 9000 §9.6).

        :raises ConnectFailed: if it is not allowed.
        """
        try:
            check_contact(self._config.allow_address, host, address, "udp")
        except ConnectFailed:
            raise
        except Exception as error:  # the caller's allow_address has failed, and no request waits for this
            logger.exception("allswell: allow_address failed")
            raise ConnectFailed(f"allow_address failed: {error!r}", phase="quic", by="us") from error

    def _backend(self, quic: QuicFilter, route: Route, to: Endpoint) -> Http3:
        if quic.connection.handshake_complete:
            self._memory.of(route).early_data = True
        origin, used = (authority("https", each.host, each.port).encode("ascii") for each in (route, to))
        alternative = (origin, used) if to.alternative else None
        return Http3(quic.connection, max_header_size=self._config.max_header_size, alternative=alternative)

    def settings(self, route: Route) -> QuicSettings:
        """The settings for a connection of this route.

        :raises ConnectFailed: if the trust settings cannot be used.
        """
        config, quic = self._config, self._config.quic
        trust = self._kit.trust(route.proxy)
        server, origin = _server(route), self._memory.of(route)
        # A connection that carries tunnels must not end when they are silent for a while.
        keepalive = quic.keepalive or (quic.idle_timeout / 2 if route.for_tunnels else None)
        return QuicSettings(
            server_name=route.tls_name,
            server=server,
            way=f"through {' and '.join(map(str, route.proxies))}" if route.proxies else "direct",
            trust=trust,
            pinned=pin_check(config.pins, route.host, route.tls_name),
            certificate=config.cert if route.proxy is None else None,
            certfile=quic.certfile if route.proxy is None else None,  # (it is for origins, and not for proxies)
            keyfile=quic.keyfile,
            key_password=quic.key_password,
            versions=quic.versions,
            idle_timeout=quic.idle_timeout,
            keepalive=keepalive,
            stream_window=config.stream_window,
            connection_window=config.connection_window,
            max_datagram_size=_CARRIER if route.for_tunnels else _SMALLEST,
            datagrams=quic.datagrams or route.for_tunnels,
            store=self._store,
            early_data=quic.early_data and origin.early_data,
            unanswered=origin.ignores_early_data,
            qlog_dir=quic.qlog_dir or (os.environ.get("QLOGDIR") if config.trust_env else None) or None,
            keylog_file=getattr(trust, "keylog_filename", None),
        )


def _server(route: Route) -> str:
    return f"{route.host}:{route.port}" if route.proxy is None else f"the proxy {route.proxy}"
