"""Routes: where a connection leads, and by what way. The pool keeps connections under this key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import httpx2

from allswell._config import ProxyHop
from allswell._errors import LocalProtocolError, UnsupportedProtocol
from allswell._events import Place
from allswell._fields import name_for_tls, named_url, no_url, without_zone
from allswell._memory import remember

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

#: An IPv6 address with a zone. RFC 6874 §2 writes "%25"; people write "%".
_ZONED = re.compile(r"(?P<address>[0-9A-Fa-f:.]+)%(?:25)?(?P<zone>[A-Za-z0-9._~-]+)")

# The characters that httpx2 does not change in a path and in a query (RFC 3986). It never changes a "%" either.
IN_SEGMENT = r"[!$%&'()*+,\-.0-9:;=@A-Z\[\\\]^_a-z|~]"
IN_QUERY = r"[!$%&'()*+,\-./0-9:;=?@A-Z\[\\\]^_`a-z{|}~]"
SEGMENT = rf"(?!\.\.?(?:[/?]|\Z)){IN_SEGMENT}*+"  # httpx2 removes "." and ".."
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_NAME = r"(?:[a-z0-9_-]++\.)*+(?=[0-9_-]*+[a-z])[a-z0-9_-]++"  # a name and no address: its last label has a letter

#: An origin and a rest: a URL for a request that is already in its normal form.
_ORIGIN = re.compile(rf"(https?|wss?)://({_BYTE}(?:\.{_BYTE}){{3}}|{_NAME})(?::([1-9][0-9]{{0,5}}))?(?=[/?]|\Z)").match
_REST = re.compile(rf"((?:/{SEGMENT})*+)(?:\?({IN_QUERY}*+))?").fullmatch
#: httpx2 accepts no longer URL, in characters.
LONGEST_URL = 65536

Proxy = str | httpx2.URL | httpx2.Proxy | ProxyHop
#: One proxy, or a chain of proxies, the nearest first.
Proxies = Proxy | Sequence[Proxy] | None


class Route(NamedTuple):
    """An origin (RFC 9110 §4.3.1), and all else on which a connection to it depends.

    :ivar scheme: ``"http"`` or ``"https"``.
    :ivar host: a host name, or an IP address without brackets. IPv6 may have a zone (``fe80::1%eth0``).
    :ivar server_name: the name for TLS, if that is not the host.
    :ivar upgrades: whether it may carry only HTTP/1.1, because no other version has the Upgrade field (RFC 9110 §7.8).
    :ivar proxies: the proxies on the way, the nearest first.
    :ivar proxy: the proxy at the end of the route, if it ends at one: for forwarded requests, or for tunnels. Then the
        other fields are about that proxy.
    :ivar for_tunnels: whether it serves other connections, by tunnels or lookups (DNS over HTTPS). Then it counts
        against no limit.
    """

    scheme: str
    host: str
    port: int
    server_name: str | None = None
    upgrades: bool = False
    proxies: tuple[ProxyHop, ...] = ()
    proxy: ProxyHop | None = None
    for_tunnels: bool = False

    @property
    def origin(self) -> str:
        """``"https://example.org"``, with the port only if that is not the default."""
        return f"{self.scheme}://{authority(self.scheme, self.host, self.port)}"

    @property
    def tls_name(self) -> str:
        """The name that the certificate must be for."""
        return name_for_tls(self.server_name or self.host)

    @property
    def label(self) -> str:
        """Its name in errors and reports: the origin, and the proxies on the way."""
        end = f"the proxy {self.proxy}" if self.proxy is not None else self.origin
        return " through ".join([end, *map(str, reversed(self.proxies))]) if self.proxies else end

    @property
    def place(self) -> Place:
        """Its form in the events for observers."""
        return Place(self.label, self.scheme, self.host, self.port)

    def to_proxy(self, *, for_tunnels: bool = False) -> Route:
        """The route that ends at the last proxy of this one."""
        *before, hop = self.proxies
        return Route(hop.scheme, hop.host, hop.port, proxies=tuple(before), proxy=hop, for_tunnels=for_tunnels)


class Endpoint(NamedTuple):
    """A host and port that offer an origin's service: the origin's own, or those that Alt-Svc or DNS name.

    :ivar hints: addresses to begin with while the host's are not known (RFC 9460 §7.3).
    :ivar alternative: whether it is an alternative service (RFC 7838 §2). Requests name that in Alt-Used (§5).
    """

    host: str
    port: int
    hints: tuple[str, ...] = ()
    alternative: bool = False


class Destination(NamedTuple):
    """Where the requests to the URLs of one origin go."""

    route: Route
    scheme: bytes
    authority: bytes


def authority(scheme: str, host: str, port: int) -> str:
    """The authority component, without the scheme's default port (RFC 9110 §7.2)."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == DEFAULT_PORTS.get(scheme) else f"{bracketed}:{port}"


def _host(url: httpx2.URL) -> str:
    """The URL's host, in the form of routes.

    :raises ValueError: if an IPv6 zone is not valid.
    """
    host = url.raw_host.decode("ascii")
    if ":" not in host or "%" not in host:
        return host
    zoned = _ZONED.fullmatch(host)
    if zoned is None:
        raise ValueError(f"{host!r} is not a valid IPv6 address with a zone")
    return f"{zoned['address']}%{zoned['zone']}"


def destination(url: httpx2.URL, server_name: str | None = None) -> Destination:
    """The destination of a request to this URL.

    :raises UnsupportedProtocol: if the URL's scheme is not http, https, ws or wss.
    :raises LocalProtocolError: if it names no host, or no valid port.
    """
    scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
    if scheme not in ("http", "https"):
        raise UnsupportedProtocol(f"cannot request {named_url(url)!r}: its scheme is {url.scheme!r}, not http or https")
    try:
        host = _host(url)
    except ValueError as error:
        raise LocalProtocolError(f"cannot request {named_url(url)!r}: {error}") from error
    if not host:
        raise LocalProtocolError(f"cannot request {named_url(url)!r}: it names no host")
    port = DEFAULT_PORTS[scheme] if url.port is None else url.port
    if not 0 < port < 1 << 16:
        raise LocalProtocolError(f"cannot request {named_url(url)!r}: its port is not from 1 to 65535")
    return _destination(scheme, host, port, server_name)


def _destination(scheme: str, host: str, port: int, server_name: str | None = None) -> Destination:
    named = authority(scheme, without_zone(host), port)
    return Destination(Route(scheme, host, port, server_name), scheme.encode("ascii"), named.encode("ascii"))


def proxy_hops(proxies: Proxies) -> tuple[ProxyHop, ...]:
    """The hops for proxies that httpx2 or httpx describes.

    :raises ValueError: if a URL cannot be that of a proxy.
    """
    if proxies is None:
        return ()
    if isinstance(proxies, (list, tuple)):
        return tuple(_hop(each) for each in proxies)
    return (_hop(proxies),)


def _hop(proxy: Any) -> ProxyHop:
    if isinstance(proxy, ProxyHop):
        return proxy
    if not hasattr(proxy, "url"):  # (it may be a URL of httpx)
        proxy = _proxy(str(proxy))
    url = proxy.url
    host = _host(url)
    if url.scheme not in _PROXY_PORTS or not host:
        schemes = ", ".join(_PROXY_PORTS)
        raise ValueError(
            f"{named_url(url)} is not the URL of a proxy: it needs a host, and one of the schemes {schemes}"
        )
    return ProxyHop(
        url.scheme,
        host,
        url.port or _PROXY_PORTS[url.scheme],
        proxy.raw_auth,
        tuple(proxy.headers.raw),
        proxy.ssl_context,
    )


def _proxy(url: str) -> httpx2.Proxy:
    try:
        return httpx2.Proxy(url)
    except httpx2.InvalidURL as error:
        message = f"not the URL of a proxy: {no_url(url, error)}"
    raise ValueError(message)


_Origin = TypeVar("_Origin")


class PlainUrls(Generic[_Origin]):
    """Takes URLs apart that are in their normal form: into the origin, and the path with the query.

    Most requests of a program go to few origins, and most of those to the one of the last request. So origins are
    remembered, and of most URLs only the rest is looked at.

    :param origin: makes what stands for an origin, of the match of :data:`_ORIGIN`: scheme, host and port.
    """

    _MOST = 1024

    def __init__(self, origin: Callable[[re.Match[str]], _Origin]) -> None:
        self._origin = origin
        self._known: dict[str, _Origin] = {}
        self._last: tuple[str, _Origin] | None = None

    def __len__(self) -> int:
        return len(self._known)

    def split(self, url: str) -> tuple[_Origin, re.Match[str]] | None:
        """The origin, and the match of the rest: path and query. ``None`` if the URL is not in its normal form."""
        if len(url) > LONGEST_URL:
            return None
        last = self._last
        rest = _REST(url, len(last[0])) if last is not None and url.startswith(last[0]) else None
        if last is None or rest is None:
            match = _ORIGIN(url)
            rest = None if match is None else _REST(url, match.end())
            if match is None or rest is None:
                return None
            last = self._last = match[0], self._of(match)
        return last[1], rest

    def _of(self, match: re.Match[str]) -> _Origin:
        known = self._known.get(match[0])
        return remember(self._known, match[0], self._origin(match), self._MOST) if known is None else known


class Destinations:
    """Remembers the destinations of one pool's requests, because to parse a URL costs 20 µs.

    URLs may have secrets in them, so each pool has its own memory.
    """

    _MOST = 1024

    def __init__(self) -> None:
        self._plain = PlainUrls(_plain_destination)
        self._others: dict[str, tuple[Destination, bytes]] = {}

    def __len__(self) -> int:
        return len(self._plain) + len(self._others)

    def __getitem__(self, url: str) -> tuple[Destination, bytes]:
        """The destination, and the target there."""
        plain = self._plain.split(url)
        if plain is not None:
            to, rest = plain
            return to, (rest[0] if rest[1] else f"/{rest[0]}").encode("ascii")
        known = self._others.get(url)
        return remember(self._others, url, parsed(url), self._MOST) if known is None else known


def _plain_destination(origin: re.Match[str]) -> Destination:
    """The destination of a URL with this origin, as :func:`parsed` gives it, which takes 12 µs."""
    scheme, host, given = origin.groups()
    scheme = scheme.replace("ws", "http")
    port = int(given) if given else DEFAULT_PORTS[scheme]
    return _destination(scheme, host, port) if port < 1 << 16 else parsed(origin.string)[0]


def parsed(url: str) -> tuple[Destination, bytes]:
    """The same for any URL, of which nothing is remembered.

    :raises LocalProtocolError: as :func:`destination`, or if it is no URL at all.
    """
    try:
        made = httpx2.URL(url)
        return destination(made), made.raw_path
    except httpx2.InvalidURL as error:
        message = no_url(url, error)
    raise LocalProtocolError(message)
