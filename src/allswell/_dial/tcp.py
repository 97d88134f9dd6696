"""From a route to HTTP/1.1 or HTTP/2 on a byte stream: ``tcp``, ``tls > tcp``, or the same through proxies.

On TLS, ALPN chooses the backend (RFC 7301). Without TLS it is HTTP/1.1, or HTTP/2 by prior knowledge (RFC 9113 §3.3) if
HTTP/1.1 is not wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allswell._backends.http1 import Http1
from allswell._backends.http1_pipeline import Http1Pipeline
from allswell._backends.interface import Backend
from allswell._config import PoolConfig
from allswell._dial.builder import Made
from allswell._dial.context import Context
from allswell._dial.kit import Kit
from allswell._errors import ConnectFailed
from allswell._filters.interface import ByteStream
from allswell._filters.stack import Stack
from allswell._late import Late
from allswell._request.route import Endpoint, Route

if TYPE_CHECKING:
    from allswell._dial import proxy
else:
    proxy = Late("allswell._dial.proxy")


class TcpBuilder:
    """Makes connections over TCP for one pool. A :class:`Builder`."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._config = kit.config

    async def build(self, context: Context, to: Endpoint) -> Made[memoryview]:
        """See :meth:`Builder.build`."""
        kit, route = self._kit, context.route
        trust = kit.trust(route.proxy) if route.scheme == "https" else None
        stack: Stack[ByteStream]
        if route.proxies:
            stack = await proxy.ProxyBuilder(kit).reach(context)
        else:
            stack = Stack(kit.tcp(context, to))
            await context.connect(stack)
        chosen: str | None = None
        try:
            if trust is not None:
                tls = await context.push(stack, kit.tls(route, stack.top, trust, alpn(route, self._config)))
                stack, chosen = tls, tls.top.alpn_protocol
            return Made(stack, self._backend(route, chosen))
        except BaseException:
            stack.abort()
            raise

    def _backend(self, route: Route, chosen: str | None) -> Backend[memoryview]:
        config = self._config
        forwards = route.proxy is not None
        if chosen == "h2" or (route.scheme == "http" and not config.http1 and not forwards):
            from allswell._backends.http2 import Http2  # late, with h2: programs with HTTP/1.1 need not wait

            return Http2(
                max_header_size=config.max_header_size,
                initial_window=config.stream_window,
                connection_window=config.connection_window,
                assumed=self._kit.memory.of(route).streams,
            )
        if not config.http1 and not forwards:
            raise ConnectFailed(f"{route.origin} does not speak HTTP/2", phase="tls", by="peer")
        size = config.max_header_size
        if config.pipelining > 0 and not (route.upgrades or route.for_tunnels):
            return Http1Pipeline(depth=config.pipelining, max_header_size=size)
        return Http1(max_header_size=size)


def alpn(route: Route, config: PoolConfig) -> list[str]:
    """The protocols to offer on TLS at the route's end, best first."""
    if route.upgrades and config.http1:
        return ["http/1.1"]
    if route.proxy is not None:
        return ["h2"] * (config.http2 and route.proxy.http2) + ["http/1.1"]
    return ["h2"] * config.http2 + ["http/1.1"] * config.http1
