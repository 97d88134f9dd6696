"""The pool as a transport for httpx2 and httpx: it translates requests, responses and errors."""

from __future__ import annotations

import math
import ssl
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, Self, TypeVar, Unpack, cast

import httpx2

from allswell._client_certificate import ClientCertificate
from allswell._clock import monotonic
from allswell._config import (
    DEFAULT_GRACE,
    PoolConfig,
    PoolSettings,
    ProxyHop,
    QuicConfig,
    Retry,
    SocketOption,
    Timeouts,
    TransportSettings,
)
from allswell._errors import (
    AllswellError,
    ConnectFailed,
    ExchangeReset,
    LocalProtocolError,
    PoolClosed,
    RemoteProtocolError,
    Timeout,
    TransportError,
    UnsupportedProtocol,
)
from allswell._fields import as_bytes
from allswell._filters.keylog import new_context
from allswell._given import require, require_known, require_none_beside_pool, require_timeout, require_type
from allswell._late import Late
from allswell._memory import remember
from allswell._messages import RequestHead
from allswell._patched import Library
from allswell._pool.pool import ConnectionPool
from allswell._priority import priority_value, with_priority
from allswell._report import CloseReport
from allswell._request.network_stream import NetworkStream
from allswell._request.request import Body, Request, starts_anew
from allswell._request.response import Response
from allswell._request.route import Destination, Proxies, destination, proxy_hops
from allswell._short import Response as ShortResponse
from allswell._short import WholeStream, body_of, origin_and_target, taken_apart
from allswell._tasks import side_by_side
from allswell._trace import Tracer

if TYPE_CHECKING:
    from httpx2 import _types
else:
    _types = Late("httpx2._types", "httpx2")

#: Which error of httpx2 (and httpx) stands for which of ours; the first that fits.
_ERRORS: Sequence[tuple[type[AllswellError], str]] = (
    (ConnectFailed, "ConnectError"),
    (UnsupportedProtocol, "UnsupportedProtocol"),
    (LocalProtocolError, "LocalProtocolError"),
    (RemoteProtocolError, "RemoteProtocolError"),
    (ExchangeReset, "RemoteProtocolError"),
    (PoolClosed, "CloseError"),
)
_TIMEOUTS = {"connect": "ConnectTimeout", "read": "ReadTimeout", "write": "WriteTimeout", "pool": "PoolTimeout"}


#: Streams of the library whose body was begun and cannot start anew.
_SPENT: weakref.WeakSet[object] = weakref.WeakSet()


def _rewinds(field: object) -> bool:
    """Whether a field of a form can be sent again in full. (Its file, if it has one, is rewound for that.)"""
    file = getattr(field, "file", b"")
    if isinstance(file, (str, bytes)):
        return True
    try:
        return hasattr(file, "seek") and file.seekable() is True
    except (AttributeError, ValueError):  # it cannot say, or it was closed
        return False


def raise_as(library: ModuleType, error: AllswellError) -> NoReturn:
    """Raise the error of the library that stands for one of ours."""
    if isinstance(error, Timeout):
        name = _TIMEOUTS.get(error.phase, "TimeoutException")
    elif isinstance(error, TransportError):
        name = "ReadError" if error.operation == "read" else "WriteError"
    elif isinstance(error, ConnectFailed) and error.phase == "proxy":
        name = "ProxyError"
    else:
        name = next((words for kind, words in _ERRORS if isinstance(error, kind)), "TransportError")
    raise getattr(library, name)(str(error)) from error


def _reprioritize(library: ModuleType, response: Response, priority: str | bytes) -> None:
    """The ``reprioritize`` extension: see :meth:`Response.reprioritize`."""
    try:
        response.reprioritize(priority)
    except AllswellError as error:
        raise_as(library, error)


@cache
def _as_httpcore2s() -> type[RawStream]:
    return type("RawStream", (RawStream, sys.modules["httpcore2"].AsyncNetworkStream), {})


class RawStream:
    """The ``network_stream`` extension. It raises the exceptions that its users know: those of httpcore2, or httpcore.

    It is also an ``httpcore2.AsyncNetworkStream``, if httpcore2 is imported. (We do not import it, because it imports
    trio.)
    """

    __slots__ = ("__dict__", "__weakref__", "_library", "_made", "_response", "body")  # (the dict: tools patch methods)

    def __init__(self, response: Response, library: str, stream: NetworkStream | None = None) -> None:
        self._response = response
        self._library = library
        self._made = stream
        self.body: ResponseStream | None = None

    @property
    def _stream(self) -> NetworkStream:
        """It is made when it is asked for. Few callers do."""
        if self._made is None:
            self._made = self._response.network_stream
        return self._made

    @property  # type: ignore[misc]  # read-only; isinstance() asks for it
    def __class__(self) -> type[RawStream]:
        return _as_httpcore2s() if "httpcore2" in sys.modules else RawStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See :meth:`NetworkStream.read`."""
        with self._errors_of("Read"):
            return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See :meth:`NetworkStream.write`."""
        with self._errors_of("Write"):
            await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """See :meth:`NetworkStream.aclose`."""
        with self._errors_of("Write"):
            await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> RawStream:
        """See :meth:`NetworkStream.start_tls`."""
        with self._errors_of("Connect"):
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return RawStream(self._response, self._library, stream)

    def get_extra_info(self, info: str) -> Any:
        """See :meth:`NetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)

    @contextmanager
    def _errors_of(self, operation: str) -> Iterator[None]:
        try:
            yield
        except AllswellError as error:
            kind = operation + ("Timeout" if isinstance(error, Timeout) else "Error")
            kind = "LocalProtocolError" if isinstance(error, LocalProtocolError) else kind
            raise getattr(import_module(self._library), kind)(str(error)) from error


class _Pieces:
    """A body, piece by piece. (It is no generator: trio warns of one that is left half-way and not closed.)"""

    __slots__ = ("_next",)

    def __init__(self, stream: ResponseStream) -> None:
        self._next = stream.next_piece

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._next()
        if not piece:
            raise StopAsyncIteration
        return piece


class ResponseStream(WholeStream):
    """The body of a response, for httpx2."""

    _library: ModuleType = httpx2

    def __init__(self, response: Response) -> None:
        self._response = response
        self.extensions: dict[str, Any] = {}  # later the response's own dict: the library copies what it is given

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self)

    async def next_piece(self) -> bytes:
        """The next piece of it; ``b""`` at its end."""
        try:
            piece = await self._response.receive()
        except AllswellError as error:
            raise_as(self._library, error)
        if not piece:
            self.extensions["trailers"] = self._response.trailers
        return piece

    def take_whole(self) -> bytes | None:
        """See :class:`WholeStream`."""
        try:
            content = self._response.take_whole()
        except AllswellError as error:
            raise_as(self._library, error)
        if content is not None:
            self.extensions["trailers"] = self._response.trailers
        return content

    async def read_whole(self, count: Callable[[int], None]) -> bytes:
        """See :class:`WholeStream`."""
        try:
            content = await self._response.read_counted(count)
        except AllswellError as error:
            raise_as(self._library, error)
        self.extensions["trailers"] = self._response.trailers
        return content

    async def aclose(self) -> None:
        """See :meth:`Response.aclose`."""
        if self._response.settled:
            return
        try:
            await self._response.aclose()
        except AllswellError as error:
            raise_as(self._library, error)


class Closing:
    """The closing of a client, for all our transports in it, however deep others have wrapped them.

    A wrapper (a cache, retries, tracing) closes the transport that it wraps, in the client's context or a copy of it.
    There our transport finds this object. It learns how much time is left, and says which pool it leaves. So all pools
    have one deadline.

    :param timeout: as for :meth:`ConnectionPool.aclose`.
    :param cut: do not wait for exchanges in flight.
    :ivar refused: a pool belongs to another event loop.
    """

    _current: ContextVar[Closing | None] = ContextVar("allswell closing", default=None)

    def __init__(self, timeout: float | None, *, cut: bool) -> None:
        self._began = monotonic()
        self._allowed = timeout
        self._cut = cut
        self._within = math.inf if timeout is None else timeout  # seconds from then on
        self._pools: dict[ConnectionPool, None] = {}
        self.refused = False

    @classmethod
    def joined(cls, pool: ConnectionPool, timeout: float | None, cut: bool) -> tuple[float | None, bool, float | None]:
        """Say that this pool is left. Return the timeout, whether to cut, and when the close began.

        :raises RuntimeError: when it belongs to another event loop.
        """
        closing = cls._current.get()
        try:
            pool.may_close()
        except RuntimeError:
            if closing is not None:
                closing.refused = True
            raise
        if closing is None:
            return timeout, cut, None
        closing._pools[pool] = None
        within = closing._within
        if timeout is not None:
            within = min(within, monotonic() - closing._began + timeout)
        return None if within == math.inf else within, cut or closing._cut, closing._began

    async def shorten_grace(self, timeout: float | None) -> None:
        """Shorten a close that has begun."""
        if timeout is not None:
            self._within = min(self._within, monotonic() - self._began + timeout)
        await side_by_side([partial(pool.aclose, timeout) for pool in self._pools if pool.closing])

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """All that closes inside takes part in this closing."""
        token = self._current.set(self)
        try:
            yield
        finally:
            self._current.reset(token)

    def report(self, grace: float) -> CloseReport:
        """The ends of the pools that have closed. (Others may still use the rest.)"""
        # Not what leaving them returned: a cancelled close returns nothing, and its report counts too.
        reports = [pool.close_report for pool in self._pools if pool.close_report is not None]
        return CloseReport(
            tuple(end for report in reports for end in report.connections),
            grace if self._allowed is None else self._allowed,
            max((report.seconds for report in reports), default=0.0),
        )


_OriginKey = tuple[str, str | bytes, int | None]
_MOST_ORIGINS = 1024


def _retry_settings(given: object) -> Retry | None:
    if given is None or isinstance(given, Retry):
        return given
    raise TypeError(f"retry must be an allswell.Retry or None, not {type(given).__name__}")


def _with_files(quic: QuicConfig, cert: _types.CertTypes) -> QuicConfig:
    """The settings of QUIC with the client certificate of TLS. If they have one of their own, they are not changed."""
    if quic.certfile is not None:
        return quic
    certfile, keyfile, password, *_ = (cert, None, None) if isinstance(cert, str) else (*cert, None, None)
    return replace(quic, certfile=certfile, keyfile=keyfile, key_password=password)


class _Limits(Protocol):
    """Limits of either library."""

    max_connections: int | None
    max_keepalive_connections: int | None
    keepalive_expiry: float | None


_LimitsT = TypeVar("_LimitsT", bound=_Limits)
_ProxyT = TypeVar("_ProxyT")


class Sender(Generic[_LimitsT, _ProxyT]):
    """The common part of the transports for httpx2 and httpx: the pool, and the translation of requests and errors."""

    _library: ModuleType = httpx2
    _asks: type = httpx2.Request
    _core = "httpcore2"
    _stream: type[ResponseStream] = ResponseStream
    _patches = Library(httpx2, "httpcore2")
    _owns = False  # whether it has made the pool itself. Then it makes another one if it is used after a close

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: _types.CertTypes | ClientCertificate | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = True,
        limits: _LimitsT | None = None,
        proxy: _ProxyT | ProxyHop | str | Sequence[_ProxyT | ProxyHop | str] | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Sequence[SocketOption] | None = None,
        *,
        grace: float = DEFAULT_GRACE,
        total_timeout: float | None = None,
        retry: Retry | None = None,
        pool: ConnectionPool | None = None,
        **settings: Unpack[TransportSettings],
    ) -> None:
        require(self._library.__name__, limits=limits, proxy=proxy)
        require_type(ConnectionPool, pool=pool)
        require_type(QuicConfig, quic=settings.get("quic"))
        require_known(settings, PoolConfig.__dataclass_fields__, "AsyncTransport")
        require_timeout(total_timeout=total_timeout)
        own: PoolSettings = {
            "trust_env": trust_env,
            "http1": http1,
            "http2": http2,
            "grace": grace,
            "retries": retries,
            "uds": uds,
            "local_address": local_address,
            "socket_options": socket_options or (),
        }
        if pool is not None:
            beside = {"verify": verify, "cert": cert, "limits": limits, **own, "socket_options": socket_options}
            require_none_beside_pool(Sender.__init__, {**beside, **settings})
        else:
            ours, files = (cert, None) if isinstance(cert, ClientCertificate) else (None, cert)
            if files:
                settings["quic"] = _with_files(settings.get("quic") or QuicConfig(), files)
            context = new_context(verify, files, trust_env)
            config = replace(PoolConfig(ssl_context=context, cert=ours, coalescing=cert is None), **own)
            if limits is not None:
                config = replace(
                    config,
                    max_connections=limits.max_connections,
                    max_keepalive_connections=limits.max_keepalive_connections,
                    keepalive_expiry=limits.keepalive_expiry,
                )
            pool = ConnectionPool(config, **settings)
            self._owns = True
        self._total = total_timeout
        self._retrying = _retry_settings(retry)
        self.pool = pool
        self._proxies = proxy_hops(cast(Proxies, proxy)) or self.pool.config.proxies
        self.pool.share()
        self._left = False
        self._origins: dict[_OriginKey, Destination] = {}
        self._waits: tuple[object, Timeouts] = None, Timeouts()

    def _send(self, request: httpx2.Request) -> Awaitable[Response]:
        """Send it through the pool, whose errors are raised."""
        if self._left:
            self._return()
        return self.pool.send(self._request(request))

    def _facts(self, response: Response) -> dict[str, Any]:
        """The response's ``extensions``."""
        facts = response.extension_facts()
        facts["network_stream"] = RawStream(response, self._core)
        facts["reprioritize"] = partial(_reprioritize, self._library, response)
        return facts

    @property
    def _pool(self) -> Any:  # the library's own method uses it, if it is called with our transport as ``self``
        return self._patches.pool(self._carry, self._proxies)

    async def _carry(self, request: Any) -> Any:
        """Send a request of the core library (httpcore2, httpcore). The errors are the client library's."""
        library, core, url = self._library, import_module(self._core), request.url
        target = b"/" if "target" in request.extensions else url.target  # (that extension need not be a path)
        given = library.Request(
            request.method.decode("ascii"),
            library.URL(
                scheme=url.scheme.decode("ascii"), host=url.host.decode("ascii"), port=url.port, raw_path=target
            ),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await self._send(given)
        except AllswellError as error:
            raise_as(library, error)
        facts = self._facts(response)
        facts["network_stream"].body = stream = self._stream(response)
        return core.Response(response.status, headers=response.headers, content=stream, extensions=facts)

    async def _hand_over(self, request: Any) -> Any:
        """Send a request through the functions that others have patched."""
        response = await self._patches.hand_over(self, request)
        network = response.extensions.get("network_stream")
        if isinstance(network, RawStream) and network.body is not None:
            network.body.extensions = response.extensions  # the body puts the trailers there
            network.body = None
        return response

    def _request(self, request: httpx2.Request) -> Request:
        if not isinstance(request, self._asks):
            require(self._library.__name__, request=request)
        extensions = request.extensions
        key, target = origin_and_target(request.url)
        name = extensions.get("sni_hostname")
        origin = self._origins.get(key) if name is None else None
        if origin is None:
            origin = self._new_origin(key, request.url, name)
        headers, names = taken_apart(request.headers)
        route = origin.route._replace(upgrades=True) if b"upgrade" in names else origin.route
        protocol = extensions.get("protocol")
        if "priority" in extensions and (priority := extensions["priority"]) is not None:
            headers = with_priority(headers, priority_value(priority))
        head = RequestHead(
            as_bytes(request.method, "method"),
            origin.scheme,
            origin.authority,
            as_bytes(extensions["target"], "target") if "target" in extensions else target,
            headers,
            None if protocol is None else as_bytes(protocol, "protocol"),
        )
        trace = extensions.get("trace")
        return Request(
            head,
            route,
            self._body(request, framed=b"content-length" in names),
            self._timeouts(extensions),
            extensions.get("trailers"),
            extensions.get("informational"),
            trace if trace is None or isinstance(trace, Tracer) else Tracer(trace),
            self._retrying if "retry" not in extensions else self._retrying_of(extensions["retry"]),
        )

    def _retrying_of(self, extension: object) -> Retry | None:
        """The retry setting of a request. (httpx-retries uses the same name for objects of its own.)"""
        if extension is None or isinstance(extension, Retry) or type(extension).__module__ == "builtins":
            return _retry_settings(extension)
        return self._retrying

    def _new_origin(self, key: _OriginKey, url: httpx2.URL, server_name: str | None) -> Destination:
        """The destination of a request to this URL. (Finding it costs more than remembering it.)"""
        found = destination(url, server_name)
        if self._proxies:
            found = found._replace(route=found.route._replace(proxies=self._proxies))
        if server_name is None:
            remember(self._origins, key, found, _MOST_ORIGINS)
        return found

    def _timeouts(self, extensions: Mapping[str, Any]) -> Timeouts:
        waits: Mapping[str, float | None] = extensions.get("timeout", {})
        total = extensions.get("total_timeout", self._total)
        if (waits, total) != self._waits[0]:  # mostly they are those of the client, each time
            key = waits.get("connect"), waits.get("read"), waits.get("write"), waits.get("pool"), total
            require(self._library.__name__, timeout=key)
            self._waits = (dict(waits), total), Timeouts(*key)
        return self._waits[1]

    def _body(self, request: httpx2.Request, *, framed: bool) -> Body | None:
        """The request's body; ``None`` if there is none.

        :param framed: the header section gives its length.
        :raises StreamConsumed: if the client sends the body again (a redirect with 307 or 308, a flow of its ``auth``)
            and only a rest of it is left. (The library raises it for generators, and sends the rest of others.)
        """
        library = self._library
        stream: Any = request.stream
        content = body_of(stream)
        if content is None and isinstance(stream, library.ByteStream):
            content = b"".join(stream)
        if content is not None:
            return Body(content) if content or framed else None
        if isinstance(stream, library._content.AsyncIteratorByteStream):
            # The caller's iterable, in the library's wrapper. Even if it makes a new iterator each time, that may go on
            # reading from the same place (a file, say). So we send it once. The library may send it again.
            if starts_anew(stream._stream):
                return Body(stream._stream, anew=False)
            anew = False
        elif isinstance(stream, library._multipart.MultipartStream):
            anew = all(map(_rewinds, stream.fields))
        else:
            return Body(stream, anew=False)  # the caller's own stream: nothing is known of it
        if stream in _SPENT:
            raise library.StreamConsumed
        return Body(stream, anew=anew, begun=partial(_SPENT.add, stream))

    async def leave(self, timeout: float | None = None, *, cut: bool = False) -> CloseReport:
        """Leave the pool. The last user to leave closes it: see :meth:`ConnectionPool.leave`."""
        require_timeout(timeout=timeout)
        timeout, cut, began = Closing.joined(self.pool, timeout, cut)
        if self._left:
            return await self.pool.aclose(timeout, began=began) if self.pool.closing else CloseReport()
        self._left = True
        return await self.pool.leave(timeout, cut=cut, began=began)

    def _return(self) -> None:
        """Open again after a close. (Several clients may use a transport one after another, and each closes it.)"""
        if self.pool.state == "closed" and self._owns:
            observers, self.pool = self.pool.observers, ConnectionPool(self.pool.config)
            self.pool.observers = observers
        if not self.pool.closing:
            self.pool.share()
            self._left = False

    def __del__(self) -> None:
        if not getattr(self, "_left", True):
            self.pool.forget()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.leave(cut=exc_type is not None)


class AsyncTransport(Sender[httpx2.Limits, httpx2.URL | httpx2.Proxy], httpx2.AsyncBaseTransport):
    """A transport for ``httpx2.AsyncClient``, with the parameters of ``httpx2.AsyncHTTPTransport``.

    After a close it opens again with the next request, as httpx2's does. So several clients may use it one after
    another. For several clients at the same time, share a ``pool``.

    :param proxy: a proxy, or a list of proxies, the nearest first.
    :param grace: how many seconds closing may take, for all connections and layers together.
    :param total_timeout: how many seconds a request may take, from its start until its response was read. For one
        request: ``extensions={"total_timeout": 10.0}``.
    :param retry: which failures are tried again; ``None``: none. For one request: ``extensions={"retry": …}``.
    :param pool: a :class:`ConnectionPool` to share; the transport then makes none. The pool has the settings of
        connections, so one given here as well is a ``TypeError``.
    :param settings: other settings of :class:`PoolConfig`.
    :ivar pool: its :class:`ConnectionPool`.
    """

    async def aclose(self, timeout: float | None = None, *, cut: bool = False) -> CloseReport:  # type: ignore[override]
        """Close the transport: leave the pool, which closes if nobody else uses it.

        :param timeout: the grace in seconds; ``None``: the ``grace`` of the pool. 0: say everything, wait for nothing.
        :param cut: do not wait for requests in flight.
        :return: how each connection ended; empty if the pool stays open.
        """
        return await self.leave(timeout, cut=cut)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. The client calls this.

        :raises httpx2.TransportError: one of its subclasses, with the :class:`AllswellError` as ``__cause__``.
        """
        if self._patches.is_patched():
            answer = await self._hand_over(request)
            if type(answer) is httpx2.Response:
                answer.__class__ = ShortResponse  # it decodes as ours do
            return cast(httpx2.Response, answer)
        try:
            response = await self._send(request)
        except AllswellError as error:
            raise_as(self._library, error)
        stream = ResponseStream(response)
        answer = ShortResponse.of(
            response.status, response.headers, stream, self._facts(response), plain=response.plain
        )
        stream.extensions = answer.extensions
        return answer
