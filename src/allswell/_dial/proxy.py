"""From a route to a byte stream to its host, through proxies: the lower layers of a connection.

Each hop adds its layers to the stack that reaches it: ``http-connect > tcp`` for an http proxy, ``http-connect > tls >
tcp`` for an https one, ``socks5 > tcp``. Two hops add two such pieces.

An https proxy may speak HTTP/2 or HTTP/3. Then the connection to it is one of the pool's own, with a route of its own
(``Route.for_tunnels``). A tunnel is one of its exchanges, and the stack on the tunnel begins with ``tunnel``. The
connection lives as long as it has tunnels. It counts against no limit, because the request that waits for the tunnel
already has a place.

Only the first connection shows whether a proxy speaks HTTP/2. If it does not, the first tunnel uses up that HTTP/1.1
connection, as its only exchange. The next tunnels are built as above, without asking for HTTP/2.
"""

from __future__ import annotations

from dataclasses import replace
from socket import AF_UNSPEC
from typing import Literal

from allswell._addresses import AllowAddress, check_contact
from allswell._backends.http1 import Http1
from allswell._config import ProxyHop, Timeouts
from allswell._connection.service import Service
from allswell._deadline import Deadline
from allswell._dial.addresses import address_meant, connect_any, is_address, words
from allswell._dial.builder import Made
from allswell._dial.context import Context
from allswell._dial.kit import Kit
from allswell._dial.lookups import Address, Resolve, Send
from allswell._dial.proxy_auth import ProxyAuth
from allswell._errors import AddressNotAllowed, AllswellError, ConnectFailed, ProxyRefused, Timeout
from allswell._fields import connect_udp_path, forwarded, host_and_port
from allswell._filters.connect_udp import ConnectUdpFilter
from allswell._filters.http_connect import BODY_PATIENCE, BODY_SHOWN, HttpConnectFilter, refused
from allswell._filters.interface import ByteStream, Datagrams
from allswell._filters.socks import Socks5Filter
from allswell._filters.socks_udp import SocksDatagrams, relay_address
from allswell._filters.stack import Layer, Stack
from allswell._filters.tunnel import no_tunnel
from allswell._filters.udp import UdpFilter
from allswell._messages import RequestHead
from allswell._request.network_stream import ExchangeStream
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._request.route import Route, authority

_NO_TIMEOUTS = Timeouts(None, None, None, None)  # the dial that needs the tunnel has a deadline


class ProxyBuilder:
    """Makes byte streams and carriers of datagrams through proxies, for one pool."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._config = kit.config
        self._memory = kit.memory
        self._ask = kit.lookups.addresses

    async def reach(self, context: Context) -> Stack[ByteStream]:
        """A connected stack whose bytes arrive at the route's host and port.

        :raises ConnectFailed: if that fails. It names what failed.
        """
        route = context.route
        if not route.proxies:
            tcp = Stack(self._kit.tcp(context))
            await context.connect(tcp)
            return tcp
        hop = route.proxies[-1]
        check_literal(self._config.allow_address, route, "tcp")
        if self._may_carry(route):
            with context.phase("proxy", str(hop)):
                return Stack(await self._carried(context))
        if hop.scheme == "socks5" and not is_address(route.host):
            return await self._resolved(context)
        return await self._tunnelled(context)

    async def _resolved(self, context: Context) -> Stack[ByteStream]:
        """A tunnel to the first of the host's addresses that the proxy reaches. We resolve the host."""
        route = context.route

        async def attempt(address: Address) -> Stack[ByteStream]:
            return await self._tunnelled(context.towards(route._replace(host=address[1][0])))

        allow = self._config.allow_address
        try:
            return await connect_any(
                route.host, route.port, attempt, Stack.abort, ask=context.asking(self._ask), allow=allow
            )
        except ConnectFailed as error:
            if error.phase != "dns" or allow is not None:
                raise
            return await self._tunnelled(context)  # the proxy may know a name that we do not

    def _may_carry(self, route: Route) -> bool:
        hop = route.proxies[-1]
        if hop.scheme != "https":
            return False
        http2 = hop.http2 and self._config.http2
        return bool(hop.http3) or (http2 and self._memory.of(route.to_proxy(for_tunnels=True)).http2)

    async def _tunnelled(self, context: Context) -> Stack[ByteStream]:
        """A tunnel on a connection of its own."""
        route, hop = context.route, context.route.proxies[-1]
        nearer = context.towards(route.to_proxy())
        if hop.scheme in ("socks5", "socks5h"):
            stack = await self.reach(nearer)
            return await self._tunnel(context, stack, _socks(stack.top, hop, route.host, route.port))
        target = host_and_port(route.host, route.port)
        trust = self._kit.trust(hop) if hop.scheme == "https" else None
        async with ProxyAuth(hop, b"CONNECT", target) as auth:
            while True:
                stack = await self.reach(nearer)
                if trust is not None:
                    stack = await nearer.push(stack, self._kit.tls(nearer.route, stack.top, trust, ["http/1.1"]))
                tunnel = HttpConnectFilter(
                    stack.top,
                    proxy=str(hop),
                    target=target,
                    headers=auth.headers,
                    max_head=self._config.max_header_size,
                )
                try:
                    return await self._tunnel(context, stack, tunnel)
                except ProxyRefused as error:
                    if not await auth.again(error.status, error.headers):
                        raise

    async def _tunnel(self, context: Context, stack: Stack[ByteStream], layer: Layer) -> Stack[Layer]:
        """Open a tunnel on a connection to a proxy. A refusal cuts nothing, so the connection then says goodbye.

        :raises ConnectFailed: if that fails.
        """
        try:
            return await context.push(stack, layer)
        except ProxyRefused:
            context = context.towards(context.route.to_proxy()).second()
            unused = Made(stack, Http1(max_header_size=self._config.max_header_size))
            context.discard(unused.connection(self._kit.host, context, Service()), "the proxy refused a tunnel")
            raise

    async def reach_datagrams(self, context: Context) -> Stack[Datagrams]:
        """A connected stack whose datagrams arrive at the route's host and port.

        It is ``socks5-udp > udp > socks5 > tcp``, or ``connect-udp > tunnel``.

        :raises ConnectFailed: if that fails. It names what failed.
        """
        config, route, hop = self._config, context.route, context.route.proxies[-1]
        check_literal(config.allow_address, route, "udp")
        if hop.scheme == "https":
            with context.phase("proxy", str(hop)):
                tunnel = await self._carried(context, datagrams=True)
            over = ConnectUdpFilter(tunnel, tunnel, proxy=str(hop), host=route.host, port=route.port)
            return await context.push(Stack(tunnel), over)
        if hop.scheme == "socks5" and not is_address(route.host):
            route = route._replace(host=await self._first_address(route, context.asking(self._ask)))
        stack = await self.reach(context.towards(route.to_proxy()))
        control = await self._tunnel(context, stack, _socks(stack.top, hop, "0.0.0.0", 0, datagrams=True))
        relay = relay_address(control.top.bound, control.extra("server_addr")[0])
        try:
            check_contact(config.allow_address, hop.host, relay[1], "udp")
        except BaseException:
            control.abort()
            raise
        own = UdpFilter(*relay, local_address=config.local_address, socket_options=config.socket_options)
        udp = await context.push(control, own)
        over_udp = SocksDatagrams(udp.top, control.top, proxy=str(hop), host=route.host, port=route.port)
        return await context.push(udp, over_udp)

    async def _first_address(self, route: Route, ask: Resolve) -> str:
        """The first of the host's addresses that is allowed; the name itself if we find none and allow all.

        :raises ConnectFailed: if none is allowed, or ``allow_address`` is set and we find none.
        """
        try:
            found = await ask(route.host, route.port, AF_UNSPEC)
        except OSError as error:
            if self._config.allow_address is None:
                return route.host  # the proxy may know a name that we do not
            raise ConnectFailed(f"cannot resolve {route.host}: {words(error)}", phase="dns") from error
        refusal: AddressNotAllowed | None = None
        for _, address in found:
            try:
                check_contact(self._config.allow_address, route.host, address, "udp")
            except AddressNotAllowed as error:
                refusal = refusal or error
            else:
                return str(address[0])
        assert refusal is not None
        raise refusal

    def carries_datagrams(self, route: Route) -> bool:
        """Whether datagrams may go through its proxies: through one SOCKS5 proxy, or a last one of HTTP/2 or HTTP/3."""
        hop = route.proxies[-1]
        return self._may_carry(route) or (len(route.proxies) == 1 and hop.scheme in ("socks5", "socks5h"))

    async def _carried(self, context: Context, *, datagrams: bool = False) -> ExchangeStream:
        """A tunnel that is an exchange of another connection of the pool."""
        route, hop = context.route, context.route.proxies[-1]
        target = host_and_port(route.host, route.port)
        head = RequestHead(b"CONNECT", b"https", target, target, [])
        if datagrams:
            # RFC 9298 §3.4
            head.authority = authority("https", hop.host, hop.port).encode("ascii")
            head.target = connect_udp_path(route.host, route.port)
            head.headers = [(b"capsule-protocol", b"?1")]
            head.protocol = b"connect-udp"
        carrier = route.to_proxy(for_tunnels=True)
        async with ProxyAuth(hop, head.method, head.target) as auth:
            while True:
                ask = replace(head, headers=[*head.headers, *auth.headers])
                try:
                    response = await context.send(Request(ask, carrier, timeouts=_NO_TIMEOUTS))
                except (ConnectFailed, Timeout):
                    raise
                except AllswellError as error:
                    raise ConnectFailed(no_tunnel(str(hop), str(error)), phase="proxy", by=error.by) from error
                if response.http_version not in (b"HTTP/2", b"HTTP/3"):
                    self._memory.of(carrier).http2 = False
                if 200 <= response.status < 300:
                    return response.tunnel()
                body = await _start_of(response)
                if not await auth.again(response.status, response.headers):
                    raise refused(str(hop), response.status, response.reason, response.headers, body)


def check_literal(allow: AllowAddress | None, route: Route, transport: Literal["tcp", "udp"]) -> None:
    """Check the address in a URL before a proxy gets it. (Only the proxy will know the address of a name.)

    :raises AddressNotAllowed: if it is not allowed.
    """
    if allow is not None and (address := address_meant(route.host)) is not None:
        check_contact(allow, route.host, (address, route.port), transport)


def forwards(request: Request) -> bool:
    """Whether the request goes to an HTTP proxy that forwards it (RFC 9112 §3.2.2), and not through a tunnel.

    A request goes through a tunnel if its scheme is not http, or it is a CONNECT or an upgrade, which proxies do not
    forward (RFC 9110 §7.8).
    """
    route = request.route
    if route.scheme != "http" or route.upgrades or request.head.method == b"CONNECT":
        return False
    return route.proxy is None and route.proxies[-1].scheme in ("http", "https")


async def forward(request: Request, send: Send, allow: AllowAddress | None) -> Response:
    """Send a request to the proxy that forwards it. If that asks for credentials, send it again if the body allows.

    :raises ConnectFailed: if the host's address is not allowed, or ``allow_address`` fails.
    """
    try:
        check_literal(allow, request.route, "tcp")
    except ConnectFailed:
        raise
    except Exception as error:  # the caller's allow_address has failed: the same error as when we connect
        message = f"cannot connect to {request.route.label}: {error!r}"
        raise ConnectFailed(message, phase="tcp", by="us") from error
    head, hop = forwarded(request.head), request.route.proxies[-1]
    request = replace(request, route=request.route.to_proxy())
    said = {name.lower() for name, _ in head.headers}  # the request's own fields: they come before the proxy's
    async with ProxyAuth(hop, head.method, head.target) as auth:
        while True:
            more = [field for field in auth.headers if field[0].lower() not in said]
            response = await send(replace(request, head=replace(head, headers=[*head.headers, *more])))
            try:
                if not request.may_repeat(proven=True) or not await auth.again(response.status, response.headers):
                    return response
            except BaseException:
                await response.drop()
                raise
            await _start_of(response)


def _socks(lower: ByteStream, hop: ProxyHop, host: str, port: int, *, datagrams: bool = False) -> Socks5Filter:
    auth = hop.auth if isinstance(hop.auth, tuple) else None  # (for SOCKS it cannot be anything else)
    return Socks5Filter(lower, proxy=str(hop), host=host, port=port, auth=auth, datagrams=datagrams)


async def _start_of(response: Response) -> bytes:
    """The beginning of a refusal's body, as much as comes soon."""
    body = b""
    try:
        with Deadline.after(BODY_PATIENCE).scope():
            while len(body) < BODY_SHOWN and (piece := await response.receive()):
                body += piece
    except AllswellError:
        pass  # only the refusal matters, and not how it ended
    finally:
        await response.aclose()
    return body
