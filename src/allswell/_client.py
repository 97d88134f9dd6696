"""The client: httpx2's AsyncClient on our transport. Closing it returns a report."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

import anyio
import httpx2

from allswell._addresses import AllowAddress, Resolver
from allswell._alt_svc_store import AltSvcStore
from allswell._client_certificate import ClientCertificate
from allswell._config import DEFAULT_GRACE, QuicConfig, Retry, SocketOption
from allswell._errors import PoolClosed
from allswell._given import require, require_none_beside_pool, require_timeout, require_type
from allswell._har.defaults import MAX_BODY, SECRETS
from allswell._late import Late
from allswell._pool.pool import ConnectionPool
from allswell._report import CloseReport, ConnectionEnd
from allswell._request.route import Proxies
from allswell._short import ShortWays
from allswell._tasks import side_by_side
from allswell._transport import AsyncTransport, Closing

if TYPE_CHECKING:
    from httpx2 import _types

    from allswell._har import recording as har_recording
else:
    _types = Late("httpx2._types", "httpx2")
    har_recording = Late("allswell._har.recording")


class ClientSettings(TypedDict, total=False):
    """The parameters of ``httpx2.AsyncClient`` that :class:`AsyncClient` hands on unchanged."""

    auth: _types.AuthTypes | None
    params: _types.QueryParamTypes | None
    headers: _types.HeaderTypes | None
    cookies: _types.CookieTypes | None
    verify: ssl.SSLContext | str | bool
    cert: _types.CertTypes | ClientCertificate | None
    proxy: Proxies
    timeout: _types.TimeoutTypes
    follow_redirects: bool
    limits: httpx2.Limits
    max_redirects: int
    event_hooks: Mapping[str, list[Callable[..., Any]]] | None
    base_url: httpx2.URL | str
    trust_env: bool
    default_encoding: str | Callable[[bytes], str | None]


#: Of :class:`ClientSettings`.
_OF_CONNECTIONS = ("verify", "cert", "limits")
#: Mappings do, of whatever package.
_MAPPINGS = ("headers", "params")


def _of_httpx2(settings: ClientSettings) -> dict[str, object]:
    return {name: value for name, value in settings.items() if name not in _MAPPINGS}


class AsyncClient(ShortWays):
    """An async HTTP client: ``httpx2.AsyncClient`` with connections that end properly.

    :class:`PoolConfig` says more about the settings of connections.

    :param http1: allow HTTP/1.1.
    :param http2: allow HTTP/2.
    :param http3: allow HTTP/3 with origins that are known to offer it. ``"only"``: HTTP/3 and nothing else.
    :param http3_origins: origins (``"https://example.org"``) that speak HTTP/3, by prior knowledge.
    :param alt_svc: an :class:`AltSvcStore` for the alternatives that servers announce, such as an :class:`AltSvcFile`.
        ``None``: memory.
    :param https_records: ask DNS for HTTPS records. It needs ``allswell[dns]``.
    :param nameservers: IP addresses of the DNS servers to ask for HTTPS records. Empty: the server of a
        :class:`DnsOverHttps` that is the ``resolver``, else the system's.
    :param quic: settings of QUIC.
    :param resolver: an async callable that returns the addresses of a host name, such as :class:`Hosts` and
        :class:`DnsOverHttps`. ``None``: the system's resolver.
    :param allow_address: called with a :class:`Contact` before each connect. ``False`` forbids that address.
        :class:`PublicAddresses` is one.
    :param pins: the public keys that servers may have, by host: ``{"example.org": "sha256//…"}``.
    :param pipelining: how many HTTP/1.1 requests may be sent behind one that is not answered yet.
    :param max_connections_per_route: how many connections to one origin; ``None``: no limit.
    :param retries: how often connecting is tried again after it failed, with growing pauses.
    :param uds: the path of a Unix domain socket. Every connection goes there, whatever the host.
    :param local_address: the local IP address to connect from.
    :param socket_options: arguments of ``socket.setsockopt``, set on each socket before it connects.
    :param on_connection_end: called with the :class:`ConnectionEnd` of every connection, as it ends.
    :param grace: how many seconds closing may take, for all connections and layers together.
    :param total_timeout: how many seconds a request may take, from its start until its response was read. For one
        request: ``extensions={"total_timeout": 10.0}``.
    :param retry: which failures are tried again; ``None``: none. For one request: ``extensions={"retry": …}``.
    :param pool: a :class:`ConnectionPool` to share with others. It closes when its last user leaves. It has the
        settings of connections (``verify``, ``http1``, ``limits``, …), so one given here as well is a ``TypeError``.
    :param transport: a transport to use in place of our own, as in httpx2. Settings of connections, ``total_timeout``
        and ``retry`` have no effect on it, only on proxies (``proxy``, or those of the environment).
    :param mounts: transports by URL pattern, as in httpx2.
    :param settings: the other parameters of ``httpx2.AsyncClient``. ``proxy`` may be a list, the nearest first.
        ``cert`` may be a :class:`ClientCertificate`.
    :ivar close_report: how all connections ended, once the client is closed.
    """

    def __init__(
        self,
        *,
        http1: bool = True,
        http2: bool = True,
        http3: bool | Literal["only"] = False,
        http3_origins: Collection[str] = (),
        alt_svc: AltSvcStore | None = None,
        https_records: bool = False,
        nameservers: Sequence[str] = (),
        quic: QuicConfig | None = None,
        resolver: Resolver | None = None,
        allow_address: AllowAddress | None = None,
        pins: Mapping[str, str | Collection[str]] | None = None,
        pipelining: int = 0,
        max_connections_per_route: int | None = None,
        retries: int = 0,
        uds: str | None = None,
        local_address: str | None = None,
        socket_options: Sequence[SocketOption] | None = None,
        on_connection_end: Callable[[ConnectionEnd], None] | None = None,
        grace: float = DEFAULT_GRACE,
        total_timeout: float | None = None,
        retry: Retry | None = None,
        pool: ConnectionPool | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        mounts: Mapping[str, httpx2.AsyncBaseTransport | None] | None = None,
        **settings: Unpack[ClientSettings],
    ) -> None:
        require("httpx2", transport=transport, mounts=mounts and dict(mounts), **_of_httpx2(settings))
        require_type(ConnectionPool, pool=pool)
        self.close_report: CloseReport | None = None
        self._closing: Closing | None = None
        self._closed = anyio.Event()
        self._recordings: har_recording.Recordings | None = None
        self._connections: dict[str, Any] = {
            "http3": http3,
            "http3_origins": http3_origins,
            "alt_svc": alt_svc,
            "https_records": https_records,
            "nameservers": nameservers,
            "quic": quic,
            "resolver": resolver,
            "allow_address": allow_address,
            "pins": pins,
            "pipelining": pipelining,
            "max_connections_per_route": max_connections_per_route,
            "retries": retries,
            "uds": uds,
            "local_address": local_address,
            "socket_options": socket_options,
            "on_connection_end": on_connection_end,
            "grace": grace,
        }
        if pool is not None:
            require_none_beside_pool(AsyncClient.__init__, {"http1": http1, "http2": http2, **self._connections})
            handed = {name: value for name, value in settings.items() if name in _OF_CONNECTIONS and value is not None}
            require_none_beside_pool(httpx2.AsyncClient.__init__, handed)
        self._connections["quic"] = quic or QuicConfig()
        self._connections["pins"] = pins or {}
        self._grace = grace if pool is None else pool.config.grace
        self._total_timeout = total_timeout
        self._retrying = retry
        self._pool = pool
        handed_on = cast(dict[str, Any], settings)  # a chain of proxies: httpx2 takes it and gives it to our hook
        super().__init__(http1=http1, http2=http2, transport=transport, mounts=mounts, **handed_on)

    def _init_transport(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: _types.CertTypes | ClientCertificate | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = True,
        limits: httpx2.Limits | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> httpx2.AsyncBaseTransport:
        # httpx2 calls this for its transport. It is a private name of httpx2, as are the overridden methods below.
        if transport is not None:
            return transport
        return self._make_transport(
            self._pool, None, verify=verify, cert=cert, trust_env=trust_env, http1=http1, http2=http2, limits=limits
        )

    def _init_proxy_transport(
        self,
        proxy: httpx2.Proxy,
        verify: ssl.SSLContext | str | bool = True,
        cert: _types.CertTypes | ClientCertificate | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = True,
        limits: httpx2.Limits | None = None,
    ) -> httpx2.AsyncBaseTransport:
        # httpx2 calls this for each proxy. A proxy is part of the route, so one pool serves all proxies, and no proxy.
        return self._make_transport(
            self.pool, proxy, verify=verify, cert=cert, trust_env=trust_env, http1=http1, http2=http2, limits=limits
        )

    def _make_transport(self, pool: ConnectionPool | None, proxy: httpx2.Proxy | None, **theirs: Any) -> AsyncTransport:
        """:param theirs: httpx2's settings of connections. With a pool, they are its own."""
        total, retry = self._total_timeout, self._retrying
        if pool is not None:
            return AsyncTransport(proxy=proxy, total_timeout=total, retry=retry, pool=pool)
        return AsyncTransport(proxy=proxy, total_timeout=total, retry=retry, **theirs, **self._connections)

    def _redirect_headers(self, request: httpx2.Request, url: httpx2.URL, method: str) -> httpx2.Headers:
        # On a redirect to another origin httpx2 drops Authorization. Proxy-Authorization is dropped here.
        headers = super()._redirect_headers(request, url, method)
        if url.origin != request.url.origin:
            headers.pop("Proxy-Authorization", None)
        return headers

    @property
    def pool(self) -> ConnectionPool | None:
        """The :class:`ConnectionPool` with its connections; ``None`` if the transport is not ours."""
        return self._transport.pool if isinstance(self._transport, AsyncTransport) else self._pool

    def _pools(self) -> list[ConnectionPool]:
        """The pools of those transports that are ours."""
        transports = (self._transport, *self._mounts.values())
        return list(dict.fromkeys(each.pool for each in transports if isinstance(each, AsyncTransport)))

    def _transport_for_url(self, url: httpx2.URL) -> httpx2.AsyncBaseTransport:
        # httpx2 calls this for each request.
        transport = super()._transport_for_url(url)
        return transport if self._recordings is None else self._recordings.over(transport)

    @contextmanager
    def har(
        self, path: str | os.PathLike[str], *, redact: Collection[str] = SECRETS, max_body: int = MAX_BODY
    ) -> Iterator[har_recording.HarRecording]:
        """Record the requests that begin in a ``with`` block, and write them to a HAR 1.2 file at its end.

        Redirects, steps of ``auth`` and attempts are entries of their own, in the order in which they began. Failed
        requests are entries, too. A response's body is recorded as far as the caller reads it. The file is written in
        one step, also if the block fails or is cancelled. Blocks may be nested, or overlap.

        :param path: the file. If there is one, it is replaced.
        :param redact: the names whose values are not shown: of header fields (``cookie``), and of parameters in the
            query and in urlencoded forms. ``()``: all is shown.
        :param max_body: how many bytes of each body are recorded, of requests and of responses.
        :return: the recording. Its ``as_dict()`` returns what would be written.
        :raises OSError: if the file cannot be written. It is raised before the block begins.
        """
        recordings = self._recordings or har_recording.Recordings()
        recording = har_recording.HarRecording(redact, max_body, recordings)
        file = har_recording.HarFile(path)
        recordings.begin(recording)
        self._recordings = recordings
        try:
            yield recording
        finally:
            if not recordings.end(recording):
                self._recordings = None
            file.write(recording)

    async def drain(self, timeout: float | None = None) -> CloseReport:
        """Replace all connections while the client stays open: old ones end after their requests.

        Requests that are made from now on get new connections.

        A transport that is not ours, or that wraps ours, is left alone. See :meth:`ConnectionPool.drain`.

        :param timeout: how many seconds to wait for the ends of the old ones; by default, as long as it takes.
        :return: the ends of the connections that ended in time.
        :raises PoolClosed: if the client is closing, or closed.
        """
        require_timeout(timeout=timeout)
        if self._closing is not None or self.close_report is not None:
            raise PoolClosed("the client is closed")
        pools = self._pools()
        reports: list[CloseReport] = []

        async def drain(pool: ConnectionPool) -> None:
            reports.append(await pool.drain(timeout))

        await side_by_side([partial(drain, pool) for pool in pools])
        return CloseReport(
            tuple(end for report in reports for end in report.connections),
            math.inf if timeout is None else timeout,
            max((report.seconds for report in reports), default=0.0),
        )

    async def aclose(self, timeout: float | None = None) -> CloseReport:  # type: ignore[override]  # httpx2's returns None
        """Close the client: say goodbye at every layer of every connection, and wait for the answers.

        Responses in flight may finish while there is time. See :meth:`ConnectionPool.aclose`.

        :param timeout: the grace in seconds; ``None``: the client's ``grace``. 0: say everything, wait for nothing.
        :return: how each connection ended.
        :raises RuntimeError: if the connections belong to another event loop that still lives. They stay open.
        """
        require_timeout(timeout=timeout)
        await self._close(super().aclose, lambda each: each.aclose(), timeout, cut=False)
        assert self.close_report is not None
        return self.close_report

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        rest = partial(super().__aexit__, exc_type, exc_value, traceback)
        await self._close(
            rest, lambda each: each.__aexit__(exc_type, exc_value, traceback), None, cut=exc_type is not None
        )

    async def _close(
        self,
        theirs: Callable[[], Awaitable[None]],
        close: Callable[[httpx2.AsyncBaseTransport], Awaitable[None]],
        timeout: float | None,
        *,
        cut: bool,
    ) -> None:
        """Close all transports side by side. (httpx2 closes them one by one, and stops at the first that fails.)

        :param theirs: closes the client as httpx2 does.
        :param close: closes one transport in the same way.
        """
        if self.close_report is not None:
            await theirs()
            return
        if self._closing is not None:
            await self._closing.shorten_grace(timeout)
            await self._closed.wait()
            if self.close_report is None:  # the other close was refused
                await self._close(theirs, close, timeout, cut=cut)
            return
        there = {id(each): each for each in (self._transport, *self._mounts.values()) if each is not None}
        transports = list(there.values())
        ours = [each for each in transports if isinstance(each, AsyncTransport)]
        for each in ours:
            each.pool.may_close()
        closing, state = Closing(timeout, cut=cut), self._state
        self._closing = closing
        try:
            with closing.under_way():
                if self._closes_ordinarily():
                    self._state = type(state).CLOSED
                    await side_by_side([partial(close, each) for each in transports])
                else:
                    try:
                        await side_by_side([partial(close, each) for each in ours])
                    finally:
                        await theirs()
        finally:
            if closing.refused:  # by the pool of a transport that others have wrapped: it stays as it was
                self._closing, self._state = None, state
            else:
                self.close_report = closing.report(self._grace)
            self._closed.set()
            if closing.refused:
                self._closed = anyio.Event()
