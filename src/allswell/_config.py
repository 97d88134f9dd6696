"""Settings of a pool, each with its one place of documentation and a default a stranger can live with."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from allswell._given import require
from allswell._quic_store import QuicStore
from allswell._report import ConnectionEnd

if TYPE_CHECKING:
    import httpx2

SocketOption = tuple[int, int, int] | tuple[int, int, bytes] | tuple[int, int, None, int]

#: Seconds that a close may take, for all layers of all connections together (curl's default too).
DEFAULT_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds; ``None`` for ever.

    :ivar connect: for a connection to be made: name resolution, TCP, TLS, proxies, all together.
    :ivar read: for the next bytes of a response, each time.
    :ivar write: for the peer to take the next bytes of a request, each time.
    :ivar pool: for room in the pool, when its limits are reached.
    :ivar total: for the whole request, from the call until the last byte of the response was read.
    """

    connect: float | None = 5.0
    read: float | None = 5.0
    write: float | None = 5.0
    pool: float | None = 5.0
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """What failed for now is tried again: a response with one of these statuses, a connection that failed or was lost.

    Only what may be sent twice is: requests with idempotent methods (RFC 9110 §9.2.2), or others that are named, whose
    body can be sent once more, whole. What certainly was not sent goes again with any method. Nothing is tried again
    once a response's head was given to the caller, nor beyond the request's total timeout.

    :ivar attempts: in all, the first one included.
    :ivar statuses: of responses that are not wanted, as long as there are attempts.
    :ivar methods: that may be sent twice, besides the idempotent ones: ``{"POST"}``.
    :ivar backoff: seconds that the first pause may take; it doubles each time. A pause is chosen at random between none
        and that, and not shorter than the server's ``Retry-After`` asks for.
    :ivar longest: seconds that any pause may take. If the server asks for more, its response is the last.
    :ivar budget: retries that each request to an origin adds to what they share, so that a server that always fails is
        asked little more often; they begin with ten. ``None``: no bound.
    """

    attempts: int = 3
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    methods: Collection[str] = frozenset()
    backoff: float = 0.5
    longest: float = 30.0
    budget: float | None = 0.2

    def __post_init__(self) -> None:
        for name in ("statuses", "methods"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} must be a collection, not a str")
            object.__setattr__(self, name, frozenset(value))
        if self.attempts < 1 or self.backoff < 0 or self.longest < 0:
            raise ValueError("a Retry has at least one attempt, and no negative pauses")


@dataclass(frozen=True, slots=True)
class QuicConfig:
    """What is special about connections over QUIC.

    :ivar versions: QUIC versions in order of preference (RFC 9000, RFC 9369).
    :ivar idle_timeout: seconds of silence after which both sides forget a connection (RFC 9000 §10.1).
    :ivar keepalive: seconds of silence after which a PING keeps it alive; ``None``: let it be forgotten.
    :ivar early_data: allow 0-RTT for requests with safe methods. An attacker can replay what it carries (RFC 8470).
    :ivar store: where session tickets and tokens are kept: a :class:`QuicStore`; ``None`` for the pool's memory.
    :ivar certfile: a client certificate and its chain, PEM, for origins; proxies are not shown it. (A context does not
        give its own away.)
    :ivar keyfile: its key, where that is not in the same file.
    :ivar key_password: and the key's password.
    :ivar qlog_dir: a directory for a qlog file of each connection; by default what ``QLOGDIR`` says.
    :ivar datagrams: accept DATAGRAM frames (RFC 9221).
    """

    versions: tuple[int, ...] = (0x00000001, 0x6B3343CF)
    idle_timeout: float = 30.0
    keepalive: float | None = None
    early_data: bool = False
    store: QuicStore | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    qlog_dir: str | None = None
    datagrams: bool = False


@dataclass(frozen=True, slots=True)
class ProxyHop:
    """A proxy on the way.

    :ivar scheme: how to speak to it: ``"http"``, ``"https"`` (HTTP over TLS), ``"socks5"`` (which is given addresses,
        where we can resolve names) or ``"socks5h"`` (which is given names).
    :ivar host: a host name, or an IP address without brackets.
    :ivar auth: user name and password: Basic for HTTP (RFC 7617), RFC 1929 for SOCKS. Or, for HTTP, an ``Auth`` of
        httpx2's, which remembers what it is asked: ``httpx2.DigestAuth`` (RFC 7616).
    :ivar headers: sent to the proxy, and only there: with each CONNECT, and with each request that it forwards.
    :ivar ssl_context: for TLS with an https proxy (the origin's TLS has the pool's own); ``None`` for the defaults.
    :ivar http2: may speak HTTP/2 with an https proxy: one connection then carries many tunnels.
    :ivar http3: may speak HTTP/3 with an https proxy, which does the same, over UDP; QUIC races TCP, as to origins.
        ``"only"``: HTTP/3 and nothing else.
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
        require("httpx2", auth=self.auth)
        if self.http3 and self.scheme != "https":
            raise ValueError(f"HTTP/3 is for https proxies, and {self} is none")
        if self.scheme in ("socks5", "socks5h") and not isinstance(self.auth, (tuple, NoneType)):
            raise ValueError(f"SOCKS knows a name and a password only, which {self} is not given")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """All that a pool can be told.

    :ivar ssl_context: for https origins; ALPN is set by the pool.
    :ivar http1: may speak HTTP/1.1.
    :ivar http2: may speak HTTP/2: by ALPN on https, and by prior knowledge on http when ``http1`` is off.
    :ivar http3: may speak HTTP/3 with https origins that are known to (by ``http3_origins``, or by the Alt-Svc field of
        an earlier response); QUIC then races TCP. ``"only"``: HTTP/3 and nothing else.
    :ivar http3_origins: origins (``"https://example.org"``) that speak HTTP/3, by prior knowledge.
    :ivar quic: settings of QUIC.
    :ivar coalescing: an HTTP/2 or HTTP/3 connection may serve other https origins than the one it was made for, where
        its verified certificate covers their names, and their names have the address that it is connected to
        (RFC 9113 §9.1.1, RFC 9114 §3.3). Never through proxies, nor with ``sni_hostname``, IP addresses for hosts, or
        certificates that are not verified. ``"origin"``: a server's ORIGIN frame is taken for the address
        (RFC 8336 §2.4, and §4 for what that risks). Say ``False`` where servers tell clients apart by certificates of
        theirs: a context does not tell whether it has one.
    :ivar max_connections: in all; ``None`` for no limit. Connections that take no new exchanges (they drain, or
        say goodbye) do not count.
    :ivar max_connections_per_route: to one origin.
    :ivar max_keepalive_connections: idle ones that are kept; 0: none.
    :ivar keepalive_expiry: seconds that one is kept idle; 0: not at all; ``None`` for as long as the peer lets us.
        (For less, where an HTTP/1.1 server says that it keeps it for less: ``Keep-Alive: timeout``.)
    :ivar grace: seconds that a close may take.
    :ivar retries: further tries to connect after the first failed, with back-off.
    :ivar proxies: what all connections go through, the nearest first.
    :ivar uds: a Unix domain socket's path, connected to in place of any host.
    :ivar local_address: the address to connect from.
    :ivar socket_options: as for ``socket.setsockopt``.
    :ivar max_header_size: bytes of a response's head (or header list) that are accepted.
    :ivar pipelining: HTTP/1.1 requests that may be sent behind one that is not answered yet (RFC 9112 §9.3.2), where no
        connection is idle; idempotent ones only. One that waits behind others for longer than its read timeout goes
        elsewhere. 0: none.
    :ivar expect_continue_timeout: seconds that ``Expect: 100-continue`` waits before the body is sent anyway
        (RFC 9110 §10.1.1).
    :ivar stream_window: bytes that one HTTP/2 or HTTP/3 response may run ahead of its reader.
    :ivar connection_window: the same for all responses of a connection together.
    :ivar ping_interval: seconds of silence after which an HTTP/2 connection is asked for a sign of life, or ``None``.
    :ivar ping_timeout: seconds that the answer may take.
    :ivar trust_env: heed the environment: ``SSLKEYLOGFILE`` and ``QLOGDIR``; for the default context, also
        ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    :ivar on_connection_end: called with the end of every connection, those in the background included.
    """

    ssl_context: ssl.SSLContext | None = None
    http1: bool = True
    http2: bool = True
    http3: bool | Literal["only"] = False
    http3_origins: frozenset[str] = frozenset()
    alt_svc: Any = None
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


class TransportSettings(TypedDict, total=False):
    """The settings of a :class:`PoolConfig` that are no parameters of a transport of httpx2's."""

    ssl_context: ssl.SSLContext | None
    http3: bool | Literal["only"]
    http3_origins: frozenset[str]
    alt_svc: Any
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

    http1: bool
    http2: bool
    grace: float
    retries: int
    uds: str | None
    local_address: str | None
    socket_options: Sequence[SocketOption]
    trust_env: bool
