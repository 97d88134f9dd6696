"""The settings of a pool. Each is documented here and nowhere else, and has a default that works."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Literal, TypedDict

import httpx2

from allswell._addresses import AllowAddress, Resolver
from allswell._alt_svc_store import AltSvcStore
from allswell._client_certificate import ClientCertificate
from allswell._given import (
    as_origin_given,
    is_pair,
    require,
    require_address,
    require_callable,
    require_context,
    require_like,
    require_number,
    require_one_of,
    require_pairs,
    require_several,
    require_timeout,
    require_type,
)
from allswell._late import Late
from allswell._pins import read_pins
from allswell._report import ConnectionEnd

if TYPE_CHECKING:
    from allswell import _quic_store
else:
    _quic_store = Late("allswell._quic_store")

SocketOption = tuple[int, int, int] | tuple[int, int, bytes] | tuple[int, int, None, int]

#: Seconds that a close may take, for all layers of all connections together (curl's default too).
DEFAULT_GRACE = 2.0

#: Bytes (RFC 9113 §6.9.1).
_LARGEST_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds. ``None`` means no limit. What is not more than 0 is over at once.

    :ivar connect: for a connection: name resolution, TCP, TLS and proxies together.
    :ivar read: for the next bytes of a response. It starts anew with each arrival.
    :ivar write: for the peer to take the next bytes of a request. It starts anew whenever it takes some.
    :ivar pool: for room in the pool, once its limits are reached.
    :ivar total: for the whole request, from the call until the last byte of the response was read.
    """

    connect: float | None = 5.0
    read: float | None = 5.0
    write: float | None = 5.0
    pool: float | None = 5.0
    total: float | None = None

    def __post_init__(self) -> None:
        require_timeout(connect=self.connect, read=self.read, write=self.write, pool=self.pool, total=self.total)


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failures are tried again: responses with these statuses, and connections that failed or were lost.

    A request must be one that may be sent twice. Its method is idempotent (RFC 9110 §9.2.2) or named here, and its body
    can start anew. A request that was certainly not sent may go again with any method. Nothing is tried again once the
    caller has the response's head, or beyond the request's total timeout.

    :ivar attempts: how many in all, the first one included.
    :ivar statuses: a response with one of these is tried again while attempts are left.
    :ivar methods: methods that may be sent twice, besides the idempotent ones: ``{"POST"}``.
    :ivar backoff: the longest first pause, in seconds. It doubles with each attempt. A pause is random, between 0 and
        that, but never shorter than the server's ``Retry-After``.
    :ivar longest: the longest pause, in seconds. If the server asks for more, its response is the last.
    :ivar budget: how many retries each request adds to the budget of its origin. Each retry takes one. The budget
        begins with ten. So a server that always fails is asked little more often. ``None``: no budget.
    """

    attempts: int = 3
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    methods: Collection[str] = frozenset()
    backoff: float = 0.5
    longest: float = 30.0
    budget: float | None = 0.2

    def __post_init__(self) -> None:
        require_number(whole=True, least=1, attempts=self.attempts)
        require_number(backoff=self.backoff, longest=self.longest)
        require_number(none=True, budget=self.budget)
        require_several(statuses=self.statuses, methods=self.methods)
        for status in self.statuses:
            require_number(whole=True, least=100, statuses=status)
        for method in self.methods:
            require_type(str, none=False, methods=method)
        object.__setattr__(self, "statuses", frozenset(self.statuses))
        object.__setattr__(self, "methods", frozenset(self.methods))


@dataclass(frozen=True, slots=True)
class QuicConfig:
    """Settings of connections over QUIC.

    :ivar versions: QUIC versions in order of preference (RFC 9000, RFC 9369).
    :ivar idle_timeout: both sides forget a connection after so many seconds of silence (RFC 9000 §10.1).
    :ivar keepalive: a PING is sent after so many seconds of silence. ``None``: no PING is sent.
    :ivar early_data: allow 0-RTT for requests with safe methods. An attacker can replay such requests (RFC 8470).
    :ivar store: a :class:`QuicStore` for session tickets and tokens. ``None``: the pool's memory.
    :ivar certfile: a client certificate and its chain, as a PEM file, for QUIC only. Origins see it, proxies do not.
        (QUIC cannot read the client certificate of an ``SSLContext``. ``PoolConfig.cert`` is for QUIC and TCP.)
    :ivar keyfile: the certificate's key, if it is in another file.
    :ivar key_password: the key's password.
    :ivar qlog_dir: a directory for qlog files, one for each connection. ``None``: what ``QLOGDIR`` says.
    :ivar datagrams: take and send DATAGRAM frames (RFC 9221), for HTTP datagrams (RFC 9297).
    """

    versions: tuple[int, ...] = (0x00000001, 0x6B3343CF)
    idle_timeout: float = 30.0
    keepalive: float | None = None
    early_data: bool = False
    store: _quic_store.QuicStore | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    qlog_dir: str | None = None
    datagrams: bool = False

    def __post_init__(self) -> None:
        require_several(versions=self.versions)
        require_number(idle_timeout=self.idle_timeout)
        require_number(none=True, keepalive=self.keepalive)
        if self.store is not None:
            require_like(_quic_store.QuicStore, store=self.store)


@dataclass(frozen=True, slots=True)
class ProxyHop:
    """One proxy.

    :ivar scheme: how to speak to it: ``"http"``, ``"https"`` (HTTP over TLS), ``"socks5"`` (names are resolved here, or
        by the proxy if that fails) or ``"socks5h"`` (the proxy resolves names).
    :ivar host: a host name, or an IP address without brackets.
    :ivar port: its port.
    :ivar auth: user name and password: Basic for HTTP (RFC 7617), RFC 1929 for SOCKS. For HTTP, it may be an ``Auth``
        of httpx2's, such as ``httpx2.DigestAuth`` (RFC 7616).
    :ivar headers: sent to the proxy only: with each CONNECT, and with each request that the proxy forwards.
    :ivar ssl_context: for TLS with an https proxy. ``None``: the system's trust store. (TLS with the origin uses the
        context of the pool.)
    :ivar http2: allow HTTP/2 with an https proxy: one connection then carries many tunnels.
    :ivar http3: allow HTTP/3 with an https proxy. QUIC races TCP, as it does to origins. ``"only"``: HTTP/3 and nothing
        else.
    """

    scheme: Literal["http", "https", "socks5", "socks5h"]
    host: str
    port: int
    auth: tuple[bytes, bytes] | httpx2.Auth | None = field(default=None, repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    ssl_context: ssl.SSLContext | None = None
    http2: bool = True
    http3: bool | Literal["only"] = False

    def __post_init__(self) -> None:
        require_one_of(("http", "https", "socks5", "socks5h"), scheme=self.scheme)
        require_one_of((False, True, "only"), http3=self.http3)
        require_type(str, none=False, host=self.host)
        require_number(whole=True, port=self.port)
        require_context(ssl_context=self.ssl_context)
        require("httpx2", auth=self.auth)
        require_pairs(headers=self.headers)
        if not (isinstance(self.auth, (httpx2.Auth, NoneType)) or is_pair(self.auth)):
            raise TypeError("auth must be a pair of bytes, an httpx2.Auth, or None")
        if self.http3 and self.scheme != "https":
            raise ValueError(f"http3 is only for https proxies, and {self} is not one")
        if self.scheme in ("socks5", "socks5h") and not isinstance(self.auth, (tuple, NoneType)):
            raise ValueError(f"auth of the proxy {self} must be a pair of name and password: SOCKS has nothing else")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """All settings of a pool.

    :ivar ssl_context: for TLS with https origins. The pool sets its ALPN protocols. ``None``: the system's trust store.
    :ivar cert: a :class:`ClientCertificate` for origins that ask for one, over TCP and QUIC. It is loaded into
        ``ssl_context``. Proxies do not see it. ``coalescing`` is off with it.
    :ivar pins: the public keys that servers may have, by host name: ``{"example.org": "sha256//…"}``, or several in a
        collection. A server with another key is a :class:`PinMismatch`, even if its certificate is trusted. The host is
        that of the URL, and that of ``sni_hostname``; for an https proxy it is the proxy's.
    :ivar resolver: an async callable that is given a host name and returns its IP addresses. ``None`` from it: the
        system's resolver is asked. It is used wherever a name is looked up here: of origins, of alternatives (Alt-Svc,
        HTTPS records), of proxies. An error that it raises becomes a :class:`ConnectFailed` with phase ``"dns"``.
        :class:`Hosts` and :class:`DnsOverHttps` are two.
    :ivar allow_address: called with a :class:`Contact` before each connect, and before an address is given to a proxy.
        ``False`` from it is an :class:`AddressNotAllowed`. :class:`PublicAddresses` is one.
    :ivar http1: allow HTTP/1.1.
    :ivar http2: allow HTTP/2: chosen by ALPN on https. On http it is spoken only if ``http1`` is off (prior knowledge).
    :ivar http3: allow HTTP/3 with https origins that are known to offer it: by ``http3_origins``, an Alt-Svc field, or
        an HTTPS record. QUIC then races TCP. ``"only"``: HTTP/3 and nothing else.
    :ivar http3_origins: origins (``"https://example.org"``) that speak HTTP/3, by prior knowledge.
    :ivar alt_svc: an :class:`AltSvcStore` for the alternatives that servers announce, such as an :class:`AltSvcFile`.
        ``None``: the pool's memory.
    :ivar https_records: ask DNS for HTTPS records (RFC 9460), with ``http3`` on. It needs ``allswell[dns]``.
    :ivar nameservers: IP addresses of the DNS servers to ask for HTTPS records. Empty: the server of a
        :class:`DnsOverHttps` that is the ``resolver``, else the system's.
    :ivar quic: settings of QUIC.
    :ivar coalescing: let an HTTP/2 or HTTP/3 connection serve other https origins too. Its verified certificate must
        cover their names, and their names must resolve to the address that it is connected to (RFC 9113 §9.1.1,
        RFC 9114 §3.3). It never happens through proxies, with ``sni_hostname``, with IP addresses for hosts, or with
        certificates that are not verified. ``"origin"``: a server's ORIGIN frame replaces the comparison of addresses
        (RFC 8336 §2.4; §4 says what that risks). Give ``False`` if ``ssl_context`` holds a client certificate and
        servers must not see it for another origin: a context does not tell whether it has one.
    :ivar max_connections: how many in all; ``None``: no limit. Connections that take no new requests, because they
        drain or say goodbye, do not count.
    :ivar max_connections_per_route: how many to one origin; ``None``: no limit.
    :ivar max_keepalive_connections: how many idle ones are kept; 0: none; ``None``: no limit.
    :ivar keepalive_expiry: how many seconds an idle connection is kept; 0: not at all; ``None``: as long as the server
        keeps it. It is shorter if an HTTP/1.1 server says so (``Keep-Alive: timeout``).
    :ivar grace: how many seconds a close may take, for all connections and layers together.
    :ivar retries: how often connecting is tried again after it failed, with growing pauses.
    :ivar proxies: the proxies that all connections go through, the nearest first.
    :ivar uds: the path of a Unix domain socket. Every connection goes there, whatever the host.
    :ivar local_address: the local IP address to connect from.
    :ivar socket_options: arguments of ``socket.setsockopt``, set on each TCP and UDP socket before it connects.
    :ivar max_header_size: the largest head (or header list) of a response that is accepted, in bytes.
    :ivar pipelining: how many HTTP/1.1 requests may be sent behind one that is not answered yet (RFC 9112 §9.3.2); 0:
        none. It happens only if no connection is idle, and only with idempotent methods. A request that waits behind
        others for longer than its read timeout goes elsewhere.
    :ivar expect_continue_timeout: how many seconds a body waits for the answer to ``Expect: 100-continue`` before it is
        sent anyway (RFC 9110 §10.1.1).
    :ivar stream_window: how many bytes one HTTP/2 or HTTP/3 response may run ahead of its reader.
    :ivar connection_window: the same for all responses of a connection together.
    :ivar ping_interval: after so many seconds of silence an HTTP/2 connection is probed with a PING. ``None``: never.
    :ivar ping_timeout: how many seconds the answer to that PING may take.
    :ivar trust_env: use ``SSLKEYLOGFILE`` and ``QLOGDIR`` of the environment, and ``SSL_CERT_FILE`` and
        ``SSL_CERT_DIR`` for the default context.
    :ivar on_connection_end: called with the :class:`ConnectionEnd` of every connection, also in the background.
    """

    ssl_context: ssl.SSLContext | None = None
    cert: ClientCertificate | None = None
    pins: Mapping[str, str | Collection[str]] = field(default_factory=dict)
    resolver: Resolver | None = None
    allow_address: AllowAddress | None = None
    http1: bool = True
    http2: bool = True
    http3: bool | Literal["only"] = False
    http3_origins: Collection[str] = frozenset()
    alt_svc: AltSvcStore | None = None
    https_records: bool = False
    nameservers: Sequence[str] = ()
    quic: QuicConfig = QuicConfig()
    coalescing: bool | Literal["origin"] = True
    max_connections: int | None = 100
    max_connections_per_route: int | None = None
    max_keepalive_connections: int | None = 20
    keepalive_expiry: float | None = 5.0
    grace: float = DEFAULT_GRACE
    retries: int = 0
    proxies: tuple[ProxyHop, ...] = ()
    uds: str | None = None
    local_address: str | None = None
    socket_options: Sequence[SocketOption] = ()
    max_header_size: int = 100 * 1024
    pipelining: int = 0
    expect_continue_timeout: float = 1.0
    stream_window: int = 2 * 1024 * 1024
    connection_window: int = 256 * 1024 * 1024
    ping_interval: float | None = None
    ping_timeout: float = 20.0
    trust_env: bool = True
    on_connection_end: Callable[[ConnectionEnd], None] | None = None

    def __post_init__(self) -> None:
        require_context(ssl_context=self.ssl_context)
        require_type(ClientCertificate, cert=self.cert)
        require_type(QuicConfig, none=False, quic=self.quic)
        require_type(str, uds=self.uds, local_address=self.local_address)
        require_address(local_address=self.local_address)
        require_like(AltSvcStore, alt_svc=self.alt_svc)
        require_callable(resolver=self.resolver)
        require_callable(at_once=True, allow_address=self.allow_address, on_connection_end=self.on_connection_end)
        require_one_of((False, True, "only"), http3=self.http3)
        require_one_of((False, True, "origin"), coalescing=self.coalescing)
        require_several(
            http3_origins=self.http3_origins,
            nameservers=self.nameservers,
            proxies=self.proxies,
            socket_options=self.socket_options,
        )
        for proxy in self.proxies:
            require_type(ProxyHop, none=False, proxies=proxy)
        for option in self.socket_options:
            require_several(socket_options=option)
        require_number(
            none=True,
            least=1,
            max_connections=self.max_connections,
            max_connections_per_route=self.max_connections_per_route,
        )
        require_number(none=True, max_keepalive_connections=self.max_keepalive_connections)
        require_number(whole=True, retries=self.retries, pipelining=self.pipelining)
        require_number(whole=True, least=1, max_header_size=self.max_header_size)
        require_number(
            whole=True,
            least=1,
            most=_LARGEST_WINDOW,
            stream_window=self.stream_window,
            connection_window=self.connection_window,
        )
        require_number(none=True, keepalive_expiry=self.keepalive_expiry)
        require_number(none=True, above=True, ping_interval=self.ping_interval)
        require_number(
            expect_continue_timeout=self.expect_continue_timeout, grace=self.grace, ping_timeout=self.ping_timeout
        )
        object.__setattr__(self, "http3_origins", frozenset(map(as_origin_given, self.http3_origins)))
        object.__setattr__(self, "pins", read_pins(self.pins))


class TransportSettings(TypedDict, total=False):
    """The settings of a :class:`PoolConfig` that httpx2's transport does not have."""

    ssl_context: ssl.SSLContext | None
    pins: Mapping[str, str | Collection[str]]
    resolver: Resolver | None
    allow_address: AllowAddress | None
    http3: bool | Literal["only"]
    http3_origins: Collection[str]
    alt_svc: AltSvcStore | None
    https_records: bool
    nameservers: Sequence[str]
    quic: QuicConfig
    coalescing: bool | Literal["origin"]
    max_connections: int | None
    max_connections_per_route: int | None
    max_keepalive_connections: int | None
    keepalive_expiry: float | None
    proxies: tuple[ProxyHop, ...]
    max_header_size: int
    pipelining: int
    expect_continue_timeout: float
    stream_window: int
    connection_window: int
    ping_interval: float | None
    ping_timeout: float
    on_connection_end: Callable[[ConnectionEnd], None] | None


class PoolSettings(TransportSettings, total=False):
    """The settings of a :class:`PoolConfig`, as keywords."""

    cert: ClientCertificate | None
    http1: bool
    http2: bool
    grace: float
    retries: int
    uds: str | None
    local_address: str | None
    socket_options: Sequence[SocketOption]
    trust_env: bool
