"""OpenTelemetry: spans of requests and of connections, and metrics, by the conventions for HTTP clients.

It needs ``allswell[otel]``, which installs OpenTelemetry's API. That does nothing until the program sets up an SDK. See
the how-to "OpenTelemetry".

Theory of operation. This is an observer of a pool (`_observers.py`). It has a span for each request that is under way,
and for each connection.

- A request's span begins in the caller's task, so its parent is the caller's span. It ends with the head of the
  response. The conventions ask for that if a body may be left unread. A request that is sent again has one span, as in
  .NET, and each attempt is an event.
- A connection outlives the request that caused it, and other requests use it. So its span is the root of a trace of its
  own, as in .NET's conventions. A request links to the connection that carried it, and a connection links to the
  request that it was made for. The phases of its dial are its child spans, and the ends of its layers are events.

The conventions: https://opentelemetry.io/docs/specs/semconv/http/ and, for connections, …/semconv/dotnet/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

from allswell import __version__
from allswell._client import AsyncClient
from allswell._clock import monotonic
from allswell._errors import described, shown
from allswell._events import (
    ConnectionEnded,
    ConnectionOpened,
    ConnectionUsed,
    DialBegan,
    DialFailed,
    Event,
    Peer,
    PhaseEnded,
    Place,
    RequestAnswered,
    RequestBegan,
    RequestFailed,
    RequestSent,
    RequestSentBack,
    RequestWaits,
    address,
)
from allswell._fields import SIGNATURES
from allswell._messages import Headers
from allswell._observers import Observers
from allswell._pool.pool import ConnectionPool
from allswell._report import ConnectionEnd, Outcome
from allswell._transport import Sender

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY
except ImportError as error:
    raise ImportError("allswell.otel needs the package opentelemetry-api: install allswell[otel]") from error

__all__ = ["instrument"]

_SCHEMA = "https://opentelemetry.io/schemas/1.41.0"

#: The methods that the conventions know: those of RFC 9110, PATCH, QUERY.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})

#: The query parameters whose values are hidden. By the conventions, upper and lower case differ.
_SECRETS = re.compile(rf"([?&](?:{'|'.join(sorted(SIGNATURES))})=)[^&]*")

_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_Attributes = dict[str, Any]


def instrument(
    target: ConnectionPool | AsyncClient | Sender[Any, Any],
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    connection_spans: bool = True,
    user_agent: bool = False,
) -> Callable[[], None]:
    """Tell OpenTelemetry what a pool does: its requests, its connections, and how these end.

    :param target: a :class:`ConnectionPool`, or a client or transport of ours. All that share its pool are
        observed, too. Do not instrument the same client with ``opentelemetry-instrumentation-httpx`` as well: then
        each request has two spans.
    :param tracer_provider: makes the spans; ``None``: the global one.
    :param meter_provider: makes the metrics; ``None``: the global one.
    :param connection_spans: ``False``: connections have no spans, only metrics.
    :param user_agent: the request's ``User-Agent`` becomes the attribute ``user_agent.original``.
    :return: a function that stops the observation. It also ends the spans that are open.
    :raises ValueError: if it is already instrumented, or the client has no pool of ours.
    :raises ImportError: if opentelemetry-api is missing. The import of this module raises it.
    """
    pools = _pools(target)
    if not pools:
        raise ValueError("the client has no pool of allswell: none of its transports is an allswell.AsyncTransport")
    for pool in pools:
        if any(isinstance(each, _Telemetry) for each in pool.observers.functions):
            raise ValueError(f"{pool!r} is already instrumented")
    tracer = trace.get_tracer("allswell", __version__, tracer_provider, _SCHEMA)
    meters = _Meters(metrics.get_meter("allswell", __version__, meter_provider, _SCHEMA))
    telling: list[tuple[Observers, _Telemetry]] = []
    for pool in pools:
        telemetry = _Telemetry(tracer, meters, connection_spans=connection_spans, user_agent=user_agent)
        telling.append((pool.observers, telemetry))
        pool.observers.add(telemetry)

    def undo() -> None:
        for observers, telemetry in telling:
            observers.remove(telemetry)
            telemetry.stop()

    return undo


def _pools(target: ConnectionPool | AsyncClient | Sender[Any, Any]) -> list[ConnectionPool]:
    if isinstance(target, ConnectionPool):
        return [target]
    if isinstance(target, AsyncClient):
        return target._pools()
    if isinstance(target, Sender):
        return [target.pool]
    raise TypeError(f"target must be a pool, client or transport of allswell, not {type(target).__name__}")


class _Meters:
    """The instruments."""

    def __init__(self, meter: metrics.Meter) -> None:
        self.duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=[
                0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
            ],
        )  # fmt: skip
        self.active = meter.create_up_down_counter(
            "http.client.active_requests", "{request}", "Number of active HTTP requests."
        )
        self.connections = meter.create_up_down_counter(
            "http.client.open_connections",
            "{connection}",
            "Number of outbound HTTP connections that are currently active or idle on the client.",
        )
        self.lifetime = meter.create_histogram(
            "http.client.connection.duration",
            "s",
            "The duration of the successfully established outbound HTTP connections.",
            explicit_bucket_boundaries_advisory=[
                0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0
            ],
        )  # fmt: skip
        self.endings = meter.create_counter(
            "allswell.connection.endings", "{connection}", "Number of connections that have ended, by outcome."
        )
        self.replays = meter.create_counter(
            "allswell.request.replays", "{request}", "Number of times that a request was sent again, by reason."
        )


@dataclass(slots=True)
class _Request:
    """A request that is under way.

    :ivar attributes: the attributes of its metrics.
    :ivar back: why the last attempt has failed, if it has.
    :ivar sent: how many attempts there were.
    """

    span: trace.Span
    began: float
    to: _Attributes
    attributes: _Attributes
    back: _Attributes | None = None
    sent: int = 0


@dataclass(slots=True)
class _Connection:
    """A connection that is being made, or is open.

    :ivar span: its span; ``None`` if connections have none.
    :ivar attributes: the attributes of its metrics.
    :ivar state: ``"idle"`` or ``"active"``; empty while it is being made.
    """

    span: trace.Span | None
    attributes: _Attributes
    opened: float = 0.0
    state: str = ""
    scope: context.Context = field(default_factory=context.Context)


class _Telemetry:
    """The observer of one pool."""

    def __init__(self, tracer: trace.Tracer, meters: _Meters, *, connection_spans: bool, user_agent: bool) -> None:
        self._tracer = tracer
        self._connection_spans = connection_spans
        self._meters = meters
        self._user_agent = user_agent
        known = os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS")
        self._methods = _METHODS if not known else frozenset(name.strip() for name in known.split(","))
        self._requests: dict[int, _Request] = {}
        self._connections: dict[int, _Connection] = {}
        self._told: Mapping[type[Event], Callable[[Any], None]] = {
            RequestBegan: self._request_began,
            RequestWaits: self._request_waits,
            RequestSent: self._request_sent,
            RequestSentBack: self._request_sent_back,
            RequestAnswered: self._request_answered,
            RequestFailed: self._request_failed,
            DialBegan: self._dial_began,
            PhaseEnded: self._phase_ended,
            DialFailed: self._dial_failed,
            ConnectionOpened: self._connection_opened,
            ConnectionUsed: self._connection_used,
            ConnectionEnded: self._connection_ended,
        }

    def __call__(self, event: Event) -> None:
        self._told[type(event)](event)

    def stop(self) -> None:
        """No more events will come: end all open spans."""
        for request in self._requests.values():
            self._meters.active.add(-1, self._active(request))
            request.span.end()
        for connection in self._connections.values():
            self._count(connection, -1)
            if connection.span is not None:
                connection.span.end()
        self._requests.clear()
        self._connections.clear()

    # Requests

    def _request_began(self, event: RequestBegan) -> None:
        if any(map(context.get_value, (_SUPPRESS_INSTRUMENTATION_KEY, _SUPPRESS_HTTP_INSTRUMENTATION_KEY))):
            return
        to, head = _server(event.to), event.head
        said = head.method.decode("ascii", "replace")
        method = said if said in self._methods else "_OTHER"
        attributes = {"http.request.method": method, **to}
        more: _Attributes = {"url.full": _url(event)}
        if method != said:
            more["http.request.method_original"] = shown(said)
        if self._user_agent and (agent := _value(head.headers, b"user-agent")) is not None:
            more["user_agent.original"] = agent
        span = self._tracer.start_span(
            method if method == said else "HTTP", kind=trace.SpanKind.CLIENT, attributes={**attributes, **more}
        )
        request = self._requests[event.request] = _Request(span, monotonic(), to, attributes)
        self._meters.active.add(1, self._active(request))
        carried: dict[str, str] = {}
        propagate.inject(carried, trace.set_span_in_context(span))  # if the propagator fails, the span is already kept
        if carried:
            fields = {name.lower().encode("ascii"): value.encode("latin-1") for name, value in carried.items()}
            # A tracestate belongs to the traceparent that it came with (W3C Trace Context §3.3).
            replaced = fields.keys() | ({b"tracestate"} if b"traceparent" in fields else set())
            head.headers[:] = [*(each for each in head.headers if each[0].lower() not in replaced), *fields.items()]

    def _active(self, request: _Request) -> _Attributes:
        return {"http.request.method": request.attributes["http.request.method"], **request.to}

    def _request_waits(self, event: RequestWaits) -> None:
        if (request := self._requests.get(event.request)) is not None:
            request.span.add_event("allswell.request.waits")

    def _request_sent(self, event: RequestSent) -> None:
        request = self._requests.get(event.request)
        if request is None:
            return
        span, version = request.span, _version(event.http_version)
        request.attributes["network.protocol.version"] = version
        request.sent += 1
        span.set_attributes({"network.protocol.version": version, **_peer(event.peer)})
        if request.sent > 1:
            span.set_attribute("http.request.resend_count", request.sent - 1)
        if request.back is not None:
            self._meters.replays.add(1, {**request.to, **request.back})
            request.back = None
        number = {"allswell.connection.id": event.connection}
        span.add_event("allswell.request.sent", {**number, "network.protocol.version": version})
        connection = self._connections.get(event.connection)
        if connection is not None and connection.span is not None:
            span.add_link(connection.span.get_span_context(), number)

    def _request_sent_back(self, event: RequestSentBack) -> None:
        if (request := self._requests.get(event.request)) is not None:
            cause = str(event.cause) if isinstance(event.cause, int) else _kind(event.cause)
            request.back = {"error.type": cause, "allswell.request.processed": event.processed}
            request.span.add_event("allswell.request.sent_back", {**request.back, "allswell.request.why": event.why})

    def _request_answered(self, event: RequestAnswered) -> None:
        facts: _Attributes = {
            "http.response.status_code": event.status,
            "network.protocol.version": _version(event.http_version),
        }
        if event.status >= 400:
            facts["error.type"] = str(event.status)
        self._request_ended(event.request, facts, None)

    def _request_failed(self, event: RequestFailed) -> None:
        self._request_ended(event.request, {"error.type": _kind(event.error)}, event.error)

    def _request_ended(self, number: int, facts: _Attributes, failure: BaseException | None) -> None:
        request = self._requests.pop(number, None)
        if request is None:
            return
        seconds, span = monotonic() - request.began, request.span
        span.set_attributes({**facts, **_blame(failure)})
        if "error.type" in facts:
            span.set_status(trace.StatusCode.ERROR, None if failure is None else described(failure))
        self._meters.active.add(-1, self._active(request))
        scope = trace.set_span_in_context(span)
        self._meters.duration.record(seconds, {**request.attributes, **facts}, scope)
        span.end()

    # Connections

    def _dial_began(self, event: DialBegan) -> None:
        cause = self._requests.get(event.request) if event.request is not None else None
        links = [] if cause is None else [trace.Link(cause.span.get_span_context())]
        self._connections[event.connection] = self._connection(event.connection, event.to, links)

    def _connection(self, number: int, to: Place, links: list[trace.Link]) -> _Connection:
        attributes = _server(to)
        if not self._connection_spans:
            return _Connection(None, attributes)
        span = self._tracer.start_span(
            f"HTTP connection {address((to.host, to.port))}",
            context.Context(),  # it has no parent
            attributes={**attributes, "url.scheme": to.scheme, "allswell.connection.id": number},
            links=links,
        )
        return _Connection(span, attributes, scope=trace.set_span_in_context(span, context.Context()))

    def _phase_ended(self, event: PhaseEnded) -> None:
        connection = self._connections.get(event.connection)
        if connection is None or connection.span is None:
            return
        name, attributes = _phase(event)
        now = time_ns()
        span = self._tracer.start_span(
            name, connection.scope, attributes=attributes, start_time=now - int(event.seconds * 1e9)
        )
        if isinstance(event.error, Exception):
            span.set_attribute("error.type", _kind(event.error))
            span.set_status(trace.StatusCode.ERROR, described(event.error))
        elif event.error is not None:
            span.set_attribute("allswell.phase.called_off", True)
        span.end(now)

    def _dial_failed(self, event: DialFailed) -> None:
        connection = self._connections.pop(event.connection, None)
        if connection is not None and connection.span is not None:
            connection.span.set_attributes({"error.type": _kind(event.error), **_blame(event.error)})
            connection.span.set_status(trace.StatusCode.ERROR, described(event.error))
            connection.span.end()

    def _connection_opened(self, event: ConnectionOpened) -> None:
        connection = self._connections.get(event.connection)
        if connection is None:  # it lost its race
            connection = self._connections[event.connection] = self._connection(event.connection, event.to, [])
        connection.attributes["network.protocol.version"] = _version(event.http_version)
        peer = _peer(event.peer)
        if peer:
            connection.attributes["network.peer.address"] = peer["network.peer.address"]
        connection.opened, connection.state = monotonic(), "idle"
        self._count(connection, 1)
        if connection.span is not None:
            facts = {"network.protocol.version": _version(event.http_version), **peer}
            if event.tls:
                facts |= {"tls.protocol.name": "tls", "tls.protocol.version": event.tls.removeprefix("TLSv")}
            connection.span.set_attributes(facts)
            connection.span.add_event("allswell.connection.opened", {"allswell.connection.layers": event.layers})

    def _connection_used(self, event: ConnectionUsed) -> None:
        connection = self._connections.get(event.connection)
        if connection is not None:
            self._count(connection, -1)
            connection.state = "active" if event.active else "idle"
            self._count(connection, 1)

    def _count(self, connection: _Connection, by: int) -> None:
        if connection.state:
            self._meters.connections.add(by, {**connection.attributes, "http.connection.state": connection.state})

    def _connection_ended(self, event: ConnectionEnded) -> None:
        connection = self._connections.pop(event.connection, None)
        if connection is None:
            return
        end = event.end
        self._count(connection, -1)
        self._meters.lifetime.record(monotonic() - connection.opened, connection.attributes, connection.scope)
        facts = _ending(event)
        self._meters.endings.add(1, {**connection.attributes, **facts})
        if connection.span is not None:
            _tell_end(connection.span, end, facts)


def _tell_end(span: trace.Span, end: ConnectionEnd, facts: _Attributes) -> None:
    """The end of each layer as an event, at its time."""
    now = time_ns()
    left = sum(layer.seconds for layer in end.layers)
    for layer in end.layers:
        left -= layer.seconds
        said = {
            "allswell.layer.name": layer.layer,
            "allswell.layer.said": layer.said,
            "allswell.layer.heard": layer.heard,
            "allswell.layer.outcome": layer.outcome.value,
            "allswell.layer.seconds": layer.seconds,
        }
        span.add_event("allswell.layer.ended", said, now - int(left * 1e9))
    counts = {"allswell.connection.exchanges": end.exchanges, "allswell.connection.cut": end.cut}
    span.set_attributes({**facts, **counts, "allswell.connection.reason": end.reason})
    if not end.clean:
        span.set_status(trace.StatusCode.ERROR, end.reason)
    span.end(now)


#: The outcomes of layers, the worst first.
_WORST = (Outcome.ABORTED, Outcome.TIMED_OUT, Outcome.PEER_FIRST, Outcome.CLEAN, Outcome.SKIPPED)


def _ending(event: ConnectionEnded) -> _Attributes:
    """How it ended. Metrics have these attributes, so there are few values: reasons without their numbers, say."""
    end = event.end
    outcomes = {layer.outcome for layer in end.layers}
    outcome = next((each for each in _WORST if each in outcomes), Outcome.SKIPPED)
    facts: _Attributes = {"allswell.connection.outcome": outcome.value, "allswell.connection.clean": end.clean}
    if event.error is not None:
        facts["error.type"] = _kind(event.error)
    else:
        facts["allswell.connection.reason"] = _NUMBER.sub("N", end.reason)
        if not end.clean:
            facts["error.type"] = "cut" if end.cut else outcome.value
    return facts


def _phase(event: PhaseEnded) -> tuple[str, _Attributes]:
    """The name and the attributes of a phase's span. They are .NET's, if .NET has such a phase."""
    subject, name = event.subject, address(event.subject)
    if event.phase == "dns":
        found = {"dns.answers": list(event.found)} if event.found else {}
        return f"DNS lookup {name}", {"dns.question.name": name.partition(" ")[0], **found}  # without the record type
    if event.phase == "tls":
        return f"TLS client handshake {name}", {"server.address": name}
    if event.phase == "proxy":
        return f"proxy tunnel {name}", {"allswell.proxy": name}
    attributes = _peer(subject)
    if isinstance(subject, str):
        return f"socket connect {name}", {**attributes, "network.transport": "unix"}
    attributes["network.type"] = "ipv6" if ":" in subject[0] else "ipv4"
    if event.phase == "tcp":
        return f"socket connect {name}", {**attributes, "network.transport": "tcp"}
    return f"QUIC client handshake {name}", {**attributes, "network.transport": "quic"}


def _server(to: Place) -> _Attributes:
    return {"server.address": to.host, "server.port": to.port}


def _peer(peer: Peer | None) -> _Attributes:
    if peer is None:
        return {}
    if isinstance(peer, str):
        return {"network.peer.address": peer}
    return {"network.peer.address": peer[0], "network.peer.port": peer[1]}


def _version(http_version: str) -> str:
    return http_version.removeprefix("HTTP/")


def _url(event: RequestBegan) -> str:
    """The request's URL without known secrets. (Userinfo of a URL is already a header field here.)"""
    head = event.head
    target = head.target if head.target.startswith(b"/") else b""
    return _SECRETS.sub(r"\1REDACTED", f"{head.origin}{target.decode('ascii', 'replace')}")


def _value(headers: Headers, name: bytes) -> str | None:
    return next((value.decode("latin-1") for each, value in headers if each.lower() == name), None)


def _kind(error: BaseException) -> str:
    """An error's class. Ours have their public names. Cancellation has one name on both event loops."""
    kind = type(error)
    if kind.__name__ in ("Cancelled", "CancelledError"):
        return "cancelled"
    package = "allswell" if kind.__module__.startswith("allswell.") else kind.__module__
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"


def _blame(error: BaseException | None) -> _Attributes:
    """The attributes that only our own errors have."""
    facts = {"allswell.error.by": getattr(error, "by", None), "allswell.error.phase": getattr(error, "phase", None)}
    return {name: value for name, value in facts.items() if value is not None}
