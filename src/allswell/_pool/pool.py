"""The connection pool: requests in, responses out, sending again, its users and its end.

The dispatcher (`dispatcher.py`) decides which connection serves a request. Here a request becomes an exchange. If the
peer did not process it, it becomes another one (`replay.py`).
"""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from logging import DEBUG
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import anyio
import httpx2

from allswell._clock import monotonic
from allswell._config import PoolConfig, PoolSettings, ProxyHop, Timeouts
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange, FallenSilent
from allswell._connection.upload import TrailerSource
from allswell._deadline import Deadline
from allswell._debug_log import POOL
from allswell._dial.dialer import Dialer
from allswell._errors import AllswellError, ConnectFailed, ExchangeReset, NotOffered, NotProcessed, PoolClosed, Timeout
from allswell._events import RequestAnswered, RequestBegan, RequestFailed, RequestSent, next_number
from allswell._fields import HeadersGiven, as_bytes, given_fields
from allswell._filters.keylog import named_log, new_context
from allswell._given import require_known, require_timeout, require_type
from allswell._late import Late
from allswell._messages import Headers, RequestHead, ResponseHead
from allswell._observers import Observed, Observers
from allswell._pool.dispatcher import Dispatcher, Ungranted
from allswell._pool.freshness import ANY, Freshness
from allswell._pool.replay import Replay
from allswell._pool.retries import Budgets, Pauses, retried
from allswell._priority import priority_value, with_priority
from allswell._report import CloseReport, counted
from allswell._request.extended_connect import NOT_THIS_WAY, WEBSOCKET, as_extended_connect, as_upgraded
from allswell._request.request import Body, Request
from allswell._request.response import Attempt, Response
from allswell._request.route import Destination, Destinations, destination
from allswell._tasks import TaskHost, current_host
from allswell._trace import PREFIXES, Tracer

if TYPE_CHECKING:
    from allswell._pool import snapshot as snapshots
else:
    snapshots = Late("allswell._pool.snapshot")

#: A server that has fallen silent may only be busy. Its requests go elsewhere after so many seconds more.
_SILENT_FOR = 0.5
_SILENT = "the server has fallen silent"

_POOLS: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()

#: What a forked process inherits of its parent's pools. It is not used: two processes would speak on one connection. It
#: is never collected: ending a connection, or an event loop's interest in it, would end the parent's.
_INHERITED: list[Dispatcher] = []


class ConnectionPool:
    """HTTP connections, and requests over them.

    Use it in ``async with``, or call :meth:`aclose` at the end. It belongs to one event loop at a time. When that loop
    has ended, or in a forked process, it can be used in another one and begins anew. While the loop lives, use in
    another one raises ``RuntimeError``.

    :param config: the settings; ``None``: the defaults of :class:`PoolConfig`.
    :param settings: fields of :class:`PoolConfig` as keywords. They replace those of ``config``.
    :raises TypeError: for an unknown setting, or one of a wrong type.
    :raises ValueError: if a value is not valid, or no version of HTTP is allowed.
    :raises ImportError: if ``https_records`` is on and dnspython is not installed.
    :raises OSError: if the file that ``SSLKEYLOGFILE`` names cannot be written; ``ssl.SSLError`` if ``cert`` cannot be
        used.
    :ivar config: its settings.
    :ivar close_report: how all connections ended, once the pool is closed.
    """

    def __init__(self, config: PoolConfig | None = None, **settings: Unpack[PoolSettings]) -> None:
        require_type(PoolConfig, config=config)
        require_known(settings, PoolConfig.__dataclass_fields__, "ConnectionPool")
        self.config = PoolConfig(**settings) if config is None else replace(config, **settings)
        if not (self.config.http1 or self.config.http2 or self.config.http3 == "only"):
            raise ValueError("no version of HTTP is left: http1 and http2 are both off")
        if self.config.https_records:
            try:
                import dns.asyncresolver  # noqa: F401
            except ImportError as error:
                raise ImportError("https_records needs the package dnspython: install allswell[dns]") from error
        if self.config.trust_env:
            named_log()  # an unusable name is an error here, not in the first request
        if self.config.cert is not None:
            context = self.config.ssl_context or new_context(trust_env=self.config.trust_env)
            self.config.cert.load_into(context)
            self.config = replace(self.config, ssl_context=context)
        self._dispatcher: Dispatcher | None = None  # made when an event loop runs
        _POOLS.add(self)
        self.observers = Observers()
        self._destinations = Destinations()
        self._users = 0
        self._budgets, self._pauses = Budgets(), Pauses()
        self._closing: Deadline | None = None
        self._closed = anyio.Event()
        self.close_report: CloseReport | None = None

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests, because it is closing or closed."""
        return self._closing is not None

    @property
    def state(self) -> Literal["open", "closing", "closed"]:
        """The state of its life."""
        return "closed" if self.close_report is not None else "closing" if self.closing else "open"

    def snapshot(self) -> snapshots.PoolSnapshot:
        """Return its connections and waiting requests at this instant. ``str`` of the result is a table."""
        routes = self._dispatcher.snapshot() if self._dispatcher is not None else ()
        return snapshots.PoolSnapshot(self.state, self._users, routes)

    # For callers

    async def request(
        self,
        method: str,
        url: str | httpx2.URL,
        *,
        headers: HeadersGiven | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeouts: Timeouts | None = None,
        trailers: TrailerSource = None,
        priority: str | bytes | None = None,
    ) -> Response:
        """Send a request and read the whole response.

        :param method: any token (RFC 9110 §9.1), in the case in which it shall be sent.
        :param url: an http or https URL.
        :param headers: names and values, as a mapping or as pairs, in text or bytes. ``Host`` and the framing of
            ``content`` are added if they are missing.
        :param content: the body. An async iterable is sent in chunks, unless ``headers`` has a Content-Length.
        :param timeouts: how long to wait; ``None``: the defaults of :class:`Timeouts`.
        :param trailers: the trailers as pairs of bytes, or a function that returns them once the body was sent.
        :param priority: the priority, in the form of the Priority field (RFC 9218 §5): ``"u=1, i"``.
        :raises AllswellError: if the request fails. Its subclasses say how: see the page "Errors".
        :raises RuntimeError: if the pool belongs to another event loop that still lives, or no event loop is running.
        """
        to, target = self._to(url)
        made = _request(method, to, target, headers, content, timeouts, trailers, self.config.proxies, priority)
        response = await self.send(made)
        if response.read_nowait():
            return response
        try:
            await response.read()
            await response.finish()
        except BaseException:
            await response.drop()
            raise
        return response

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str | httpx2.URL,
        *,
        headers: HeadersGiven | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeouts: Timeouts | None = None,
        trailers: TrailerSource = None,
        priority: str | bytes | None = None,
    ) -> AsyncIterator[Response]:
        """Send a request, and read as much of the response's body as you like.

        Parameters and errors are those of :meth:`request`. The end of the block closes the response: see
        :meth:`Response.aclose`. If an exception leaves the block, the rest of the upload is not waited for.
        """
        to, target = self._to(url)
        made = _request(method, to, target, headers, content, timeouts, trailers, self.config.proxies, priority)
        response = await self.send(made)
        try:
            yield response
        except BaseException:
            await response.drop()
            raise
        await response.aclose()

    def _to(self, url: str | httpx2.URL) -> tuple[Destination, bytes]:
        if isinstance(url, str):
            return self._destinations[url]
        if not hasattr(url, "raw_host"):
            raise TypeError(f"url must be str or httpx2.URL, not {type(url).__qualname__}")
        return destination(url), url.raw_path

    def send(self, request: Request, replay: Replay | None = None) -> Coroutine[Any, Any, Response]:
        """Send a request. Return its response as soon as the head has come. The caller must read or close it.

        (Mostly it is :meth:`_send` that the caller awaits: each level of coroutines takes time.)

        :param replay: the ledger of earlier attempts, if there were any.
        :raises AllswellError: if the request fails.
        """
        total = request.timeouts.total
        if total is not None and request.total_at == math.inf:
            request.total_at = monotonic() + total
        if (
            (self.observers.functions or POOL.isEnabledFor(DEBUG))
            and request.observed is None
            and replay is None
            and not request.route.for_tunnels  # such a request is the pool's own
        ):
            return self._observed(request)
        if request.retry is not None and replay is None:
            return retried(request, request.retry, self._budgets, self._pauses, self.send)
        if request.route.upgrades and (connect := as_extended_connect(request.head)) is not None:
            return self._switch(request, connect, replay or Replay(request))
        return self._send(request, replay)

    async def _send(self, request: Request, replay: Replay | None) -> Response:
        total = request.timeouts.total
        if total is not None and request.total_at <= monotonic():
            late = f"{request.route.label}: not sent, because the total timeout of {total:g} s is over"
            raise Timeout(late, phase="total")
        if request.route.proxies and self._upgrades:
            from allswell._dial.proxy import forward, forwards  # late: programs without proxies need not wait

            if forwards(request):
                return await forward(request, partial(self.send, replay=replay), self.config.allow_address)
        dispatcher = self._dispatch()
        exchange: Exchange[Connection] | None = None
        while True:
            try:
                if exchange is None:
                    fresh = ANY if replay is None else replay.fresh
                    exchange = dispatcher.open_now(request, fresh) or await dispatcher.wait(request, fresh)
                    if request.observed is not None:
                        _tell_sent(request.observed, exchange.connection)
                connection, opened_at = exchange.connection, monotonic()
                if replay is not None:
                    replay.http_version = connection.http_version
                if request.body is not None and exchange.sending.open and not exchange.uploading:
                    exchange.start_upload(request.body.pieces(request.tracer), request.trailers)
                if request.tracer is None:
                    head = await exchange.response(request.on_informational)
                else:
                    head = await _traced(request, exchange, request.tracer)
                if self.config.http3 is True:
                    dispatcher.dialer.discovery.heard(request.route, head)
                attempts = [] if replay is None else replay.attempts
                response = Response(head, exchange, attempts, dispatcher.dialer.tls, request.tracer)
                if response.status not in (408, 421, 425):
                    return response
                if response.status == 421:
                    dispatcher.misdirected(connection, request.route)
                replay = replay or Replay(request)
                if not replay.unserved(response, connection, opened_at):
                    return response
                await response.aclose()
                if response.status == 421 and connection.http_version == "HTTP/3":
                    dispatcher.dialer.discovery.alt_svc.forget(request.route)  # RFC 7838 §6
            except FallenSilent:
                assert exchange is not None
                replay = replay or Replay(request)
                exchange = await self._past_silence(request, exchange, dispatcher, replay)
                continue
            except Ungranted as error:
                replay = replay or Replay(request)
                await replay.again(error, error.connection)
            except NotProcessed as error:
                assert exchange is not None
                replay = replay or Replay(request)
                await replay.again(error, exchange.connection)
            except BaseException:
                if exchange is not None:
                    exchange.abandon()  # a hook of the caller failed or was cancelled, and nobody else holds it
                raise
            exchange = None

    def network_changed(self) -> None:
        """Forget what was learnt on the old network: the computer has moved to another one.

        These are addresses, HTTPS records, where HTTP/3 failed, and the alternatives of Alt-Svc without ``persist``
        (RFC 7838 §2.2). Connections are left alone. Those that are dead now find out by themselves.
        """
        if self._dispatcher is not None:
            self._dispatcher.dialer.discovery.network_changed()

    async def drain(self, timeout: float | None = None) -> CloseReport:
        """Replace its connections: those that it has take no new requests, and new requests have new connections.

        The old ones end, each with its goodbyes, when their exchanges have; none is cut. One that is being made serves
        the requests that wait, and is old then. For a new certificate, or before the network changes (then with
        :meth:`network_changed`).

        :param timeout: seconds to wait for their ends; by default, as long as it takes. What has not ended then goes
        on.
        :return: the ends of the connections that ended in time.
        :raises PoolClosed: if the pool is closing, or closed.
        :raises RuntimeError: if the pool belongs to another event loop that still lives.
        """
        require_timeout(timeout=timeout)
        if self._closing is not None:
            raise PoolClosed("the pool is closed")
        dispatcher, began = self._own(), monotonic()
        ends = await dispatcher.endings.drain(Deadline.after(timeout)) if dispatcher is not None else []
        return CloseReport(tuple(ends), math.inf if timeout is None else timeout, monotonic() - began)

    def share(self) -> None:
        """Become a user of this pool. It closes when the last of its users has left."""
        self._users += 1

    def forget(self) -> None:
        """A user was dropped without leaving. Count it no more, so that one of the others can be the last."""
        self._users -= 1

    async def leave(
        self, timeout: float | None = None, *, cut: bool = False, began: float | None = None
    ) -> CloseReport:
        """Be a user no longer. The last one closes the pool. Exchanges of others are not disturbed.

        :return: as :meth:`aclose`; empty if the pool stays open for others.
        :raises RuntimeError: if the pool belongs to another event loop that still lives. Nothing has changed then.
        """
        self.may_close()
        self._users -= 1
        if self._users > 0:
            return CloseReport()
        return await self.aclose(timeout, cut=cut, began=began)

    def may_close(self) -> None:
        """Check that the running event loop may close it.

        :raises RuntimeError: if not.
        """
        if self.close_report is None:
            self._own()

    async def __aenter__(self) -> Self:
        self._dispatch()
        self.share()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave(cut=kind is not None)

    async def aclose(
        self, timeout: float | None = None, *, cut: bool = False, began: float | None = None
    ) -> CloseReport:
        """Close all connections side by side, with a goodbye at each layer, within the grace.

        New requests are refused. Requests that wait for a connection fail. Requests in flight may finish, until a
        quarter of the grace (at most 0.5 s) is left for the goodbyes. A second call returns the same report. If the
        close is cancelled, it says everything and waits for nothing, as with a timeout of 0. Requests that are still in
        flight are then aborted.

        :param timeout: the grace in seconds; ``None``: the ``grace`` of the pool. 0: say everything, wait for nothing.
        :param cut: do not wait for requests in flight.
        :param began: the start of a larger close that this one is part of, on the clock of :func:`time.monotonic`. The
            grace counts from then.
        :return: how each connection ended.
        :raises RuntimeError: if the pool belongs to another event loop that still lives. Nothing has changed then.
        """
        require_timeout(timeout=timeout)
        if self.close_report is not None:
            return self.close_report
        dispatcher = self._own()
        grace = self.config.grace if timeout is None else timeout
        began = monotonic() if began is None else began
        if self._closing is None:
            deadline = self._closing = Deadline(began + grace)
            self._pauses.end()
            try:
                if dispatcher is not None:
                    try:
                        await dispatcher.close(deadline, began, cut=cut)
                    finally:
                        await dispatcher.dialer.discovery.aclose(deadline)
            finally:
                ends = dispatcher.endings.ends if dispatcher is not None else ()
                self.close_report = CloseReport(tuple(ends), grace, monotonic() - began)
                self._closed.set()
        else:
            self._closing.tighten(began + grace)
            if dispatcher is not None:
                dispatcher.endings.shorten_grace(self._closing)
            await self._closed.wait()
        assert self.close_report is not None
        return self.close_report

    def __del__(self) -> None:
        dispatcher: Dispatcher | None = getattr(self, "_dispatcher", None)
        if dispatcher is None or self.close_report is not None:
            return
        endings = dispatcher.endings
        orphans = len(endings.connections) + endings.dropped
        if orphans:
            were = "was" if orphans == 1 else "were"
            message = f"unclosed {self!r}: {counted(orphans, 'connection')} {were} left open"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)
            if endings.connections:  # not when the event loop is over, and perhaps the interpreter too
                dispatcher.host.call_soon_threadsafe(partial(endings.take_leave, "its pool was dropped open"))

    def __repr__(self) -> str:
        connections = len(self._dispatcher.endings.connections) if self._dispatcher is not None else 0
        return f"<ConnectionPool, {self.state}, {counted(connections, 'connection')}>"

    # One request

    @property
    def _upgrades(self) -> bool:
        """Whether HTTP/1.1 may be spoken."""
        return self.config.http1 and self.config.http3 != "only"

    async def _switch(self, request: Request, connect: RequestHead, replay: Replay) -> Response:
        """Send a request for another protocol: as an extended CONNECT, or as an Upgrade of HTTP/1.1.

        Nobody can know before the handshake of a connection whether it will offer extended CONNECT. Most servers do not
        offer it for WebSockets. So these take it where a connection to the origin is open that offers it, and where it
        has worked before. (CONNECT-UDP was made for it, and tries it first.) All else goes by HTTP/1.1, and so does
        what is refused for the way that it was asked. It is a GET, so it may be sent again.

        :param connect: the same as an extended CONNECT.
        """
        dispatcher, route, protocol = self._dispatch(), request.route._replace(upgrades=False), connect.protocol
        assert protocol is not None
        known, refused = dispatcher.dialer.memory.of(route).extended_connect, None
        promising = known.get(protocol, protocol != WEBSOCKET or dispatcher.offers_extended_connect(route))
        if self._upgrades and not promising:
            return await self._send(request, replay)
        try:
            response = await self._send(replace(request, head=connect, route=route), replay)
            if 200 <= response.status < 300:
                known[protocol] = True
                response.status, response.plain = 101, None
                response.headers = as_upgraded(protocol, request.head.headers, response.headers)
                return response
            if not self._upgrades or response.status not in NOT_THIS_WAY:
                return response
            refused, why, version = response, f"the server answered {response.status}", response.http_version.decode()
            cause: Exception | int = response.status
        except NotOffered:
            if not self._upgrades:
                raise
            known.pop(protocol, None)
            return await self._send(request, replay)
        except ExchangeReset as error:
            if not self._upgrades:
                raise
            why, version, cause = str(error), replay.http_version, error
        replay.note(Attempt(f"{why} to an extended CONNECT", "declined", version), cause)
        try:
            switched = await self._send(request, replay)
        except BaseException as error:
            if refused is None:
                raise
            if isinstance(error, ConnectFailed) or (isinstance(error, Timeout) and error.phase in ("connect", "pool")):
                return refused  # no HTTP/1.1 connection can be made
            await refused.drop()
            raise
        if refused is not None:
            try:
                await refused.drop()
            except BaseException:
                await switched.drop()  # a hook of the caller failed or was cancelled, and nobody else holds it
                raise
        if switched.status == 101:
            known[protocol] = False
        return switched

    async def _past_silence(
        self, request: Request, silent: Exchange[Connection], dispatcher: Dispatcher, replay: Replay
    ) -> Exchange[Connection]:
        """Find the exchange to wait for: the silent one if its server is heard again, or one on another connection.

        A server that was restarted does not know its old QUIC connections, and may be unable to reset them. If the path
        is gone instead, no other connection can be made, and nothing is lost by trying.
        """
        if not request.may_repeat(proven=False) or any(attempt.why == _SILENT for attempt in replay.attempts):
            return silent  # if a second one is silent too, the read timeout decides
        fresh = Freshness(monotonic())
        found: list[Exchange[Connection]] = []
        failed: list[BaseException] = []

        async def elsewhere() -> None:
            try:
                await anyio.sleep(_SILENT_FOR)
                found.append(await dispatcher.wait(request, fresh))
            except AllswellError:
                return  # the silent one remains
            except (anyio.get_cancelled_exc_class(), GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - a hook's; raised below, not in a group
                failed.append(error)
            tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(elsewhere)
                await silent.settled()
                tasks.cancel_scope.cancel()
            if failed:
                raise failed[0]
        except BaseException:
            for each in (silent, *found):
                each.abandon()
            raise
        if not found:
            return silent
        [other] = found
        if silent.answered or not request.may_repeat(proven=False):  # its body was begun in the meantime
            other.abandon()
            return silent
        silent.abandon()
        replay.note(Attempt(_SILENT, "perhaps", silent.connection.http_version), FallenSilent())
        if request.observed is not None:
            _tell_sent(request.observed, other.connection)
        return other

    async def _observed(self, request: Request) -> Response:
        """The same, of which the observers are told."""
        number, tell = next_number(), self.observers.tell
        request.observed = Observed(number, tell)
        tell(RequestBegan(number, request.route.place, request.head))
        try:
            response = await self.send(request)
        except BaseException as error:
            tell(RequestFailed(number, error))
            raise
        tell(RequestAnswered(number, response.status, response.http_version.decode("ascii")))
        return response

    def _dispatch(self) -> Dispatcher:
        if self._closing is not None:
            raise PoolClosed("the pool is closed")
        dispatcher = self._own()
        if dispatcher is None:
            host, before = current_host(), self._dispatcher
            dialer = self._make_dialer(host)
            dispatcher = self._dispatcher = Dispatcher(host, dialer, self.config, self.send, self.observers)
            dialer.discovery.lookups.send = dispatcher.send_through
            if before is not None:  # these ended with their event loop, and were not closed
                dispatcher.endings.dropped = before.endings.were_dropped()
        return dispatcher

    def _own(self) -> Dispatcher | None:
        """The dispatcher, if its event loop is running here; ``None`` if there is none, or its event loop has ended.

        :raises RuntimeError: if it belongs to another event loop that has not ended.
        """
        dispatcher = self._dispatcher
        if dispatcher is None or dispatcher.host.current:
            return dispatcher
        if dispatcher.host.over:
            return None
        raise RuntimeError(f"{self!r} belongs to another event loop, which has not ended: each needs a pool of its own")

    def _make_dialer(self, host: TaskHost) -> Dialer:
        return Dialer(host, self.config)


def _tell_sent(observed: Observed, connection: Connection) -> None:
    observed.tell(RequestSent(observed.number, connection.number, connection.http_version, connection.peer))


async def _traced(request: Request, exchange: Exchange[Connection], tracer: Tracer) -> ResponseHead:
    """Wait for the head of the response. The request's tracer gets the events."""
    tracer.prefix = PREFIXES[exchange.connection.http_version]
    tracer.request = request
    for step in ("send_request_headers", "send_request_body"):
        tracer.note(f"{step}.started", {"request": request})
        tracer.note(f"{step}.complete", {"return_value": None})
    tracer.note("receive_response_headers.started", {"request": request})
    await tracer.tell()
    try:
        head = await exchange.response(request.on_informational)
    except BaseException as error:
        tracer.note("receive_response_headers.failed", {"exception": error})
        tracer.note("response_closed.started", {})
        tracer.note("response_closed.complete", {"return_value": None})
        await tracer.tell()
        raise
    told = (head.http_version, head.status, head.reason, head.headers)
    tracer.note("receive_response_headers.complete", {"return_value": told})
    await tracer.tell()
    return head


_TIMEOUTS = Timeouts()


def _request(
    method: str,
    to: Destination,
    target: bytes,
    headers: HeadersGiven | None,
    content: bytes | AsyncIterable[bytes] | None,
    timeouts: Timeouts | None,
    trailers: TrailerSource,
    proxies: tuple[ProxyHop, ...],
    priority: str | bytes | None = None,
) -> Request:
    if timeouts is not None:
        require_type(Timeouts, timeouts=timeouts)
    if not (content is None or isinstance(content, (bytes, AsyncIterable))):
        raise TypeError(f"content must be bytes or an async iterable of bytes, not {type(content).__qualname__}")
    fields = given_fields(headers) if headers else []
    given = {name.lower() for name, _ in fields}
    section: Headers = [] if b"host" in given else [(b"Host", to.authority)]
    section += fields if priority is None else with_priority(fields, priority_value(priority))
    if content is not None and b"content-length" not in given and b"transfer-encoding" not in given:
        if isinstance(content, bytes) and trailers is None:
            section.append((b"Content-Length", str(len(content)).encode("ascii")))
        else:
            section.append((b"Transfer-Encoding", b"chunked"))
    head = RequestHead(as_bytes(method, "method"), to.scheme, to.authority, target, section)
    body = Body(content) if content is not None else None
    route = to.route._replace(proxies=proxies) if proxies else to.route
    if b"upgrade" in given:
        route = route._replace(upgrades=True)
    return Request(head, route, body, timeouts or _TIMEOUTS, trailers)


def _forked() -> None:
    for pool in list(_POOLS):
        if pool._dispatcher is not None:
            _INHERITED.append(pool._dispatcher)
            pool._dispatcher = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
