"""OpenTelemetry: spans and metrics, as the SDK's in-memory exporters have them, against the semantic conventions."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import dns_attributes, tls_attributes
from opentelemetry.semconv._incubating.attributes import http_attributes as incubating_http
from opentelemetry.semconv._incubating.metrics import http_metrics as incubating_metrics
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.semconv.metrics import http_metrics
from opentelemetry.trace import SpanKind, StatusCode

import allswell
import allswell.httpx
from allswell import AsyncClient, AsyncTransport, ConnectFailed, ConnectionPool, ProxyHop, Retry, Timeout, Timeouts
from allswell._events import next_number
from allswell.otel import _SCHEMA, instrument
from allswell.testing import Origin, Request, Response
from tests.support.certificates import certificates
from tests.support.dns_server import DnsServer
from tests.support.lag import LAG
from tests.support.names import names
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.scripts import Ending, answers, response

pytestmark = pytest.mark.anyio

#: Private names of opentelemetry-api that `otel.py` uses.
NAMES = {"_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "_SUPPRESS_INSTRUMENTATION_KEY"}

#: What the conventions name, and the types that they say.
CONVENTIONS: dict[str, type] = {
    http_attributes.HTTP_REQUEST_METHOD: str,
    http_attributes.HTTP_REQUEST_METHOD_ORIGINAL: str,
    http_attributes.HTTP_REQUEST_RESEND_COUNT: int,
    http_attributes.HTTP_RESPONSE_STATUS_CODE: int,
    incubating_http.HTTP_CONNECTION_STATE: str,
    server_attributes.SERVER_ADDRESS: str,
    server_attributes.SERVER_PORT: int,
    url_attributes.URL_FULL: str,
    url_attributes.URL_SCHEME: str,
    error_attributes.ERROR_TYPE: str,
    network_attributes.NETWORK_PEER_ADDRESS: str,
    network_attributes.NETWORK_PEER_PORT: int,
    network_attributes.NETWORK_PROTOCOL_VERSION: str,
    network_attributes.NETWORK_TRANSPORT: str,
    network_attributes.NETWORK_TYPE: str,
    user_agent_attributes.USER_AGENT_ORIGINAL: str,
    dns_attributes.DNS_QUESTION_NAME: str,
    dns_attributes.DNS_ANSWERS: tuple,
    tls_attributes.TLS_PROTOCOL_NAME: str,
    tls_attributes.TLS_PROTOCOL_VERSION: str,
}

#: Ours.
OWN: dict[str, type] = {
    "allswell.connection.id": int,
    "allswell.connection.layers": str,
    "allswell.connection.reason": str,
    "allswell.connection.outcome": str,
    "allswell.connection.clean": bool,
    "allswell.connection.exchanges": int,
    "allswell.connection.cut": int,
    "allswell.error.by": str,
    "allswell.error.phase": str,
    "allswell.layer.name": str,
    "allswell.layer.said": str,
    "allswell.layer.heard": str,
    "allswell.layer.outcome": str,
    "allswell.layer.seconds": float,
    "allswell.phase.called_off": bool,
    "allswell.proxy": str,
    "allswell.request.processed": str,
    "allswell.request.why": str,
}

SERVER = {"server.address", "server.port"}

#: Of each metric: its kind, its unit, the attributes that it must have, and those that it may have besides.
METRICS: dict[str, tuple[type, str, set[str], set[str]]] = {
    http_metrics.HTTP_CLIENT_REQUEST_DURATION: (
        Histogram,
        "s",
        {"http.request.method", *SERVER},
        {"error.type", "http.response.status_code", "network.protocol.version"},
    ),
    incubating_metrics.HTTP_CLIENT_ACTIVE_REQUESTS: (Sum, "{request}", {"http.request.method", *SERVER}, set()),
    incubating_metrics.HTTP_CLIENT_OPEN_CONNECTIONS: (
        Sum,
        "{connection}",
        {"http.connection.state", *SERVER},
        {"network.peer.address", "network.protocol.version"},
    ),
    incubating_metrics.HTTP_CLIENT_CONNECTION_DURATION: (
        Histogram,
        "s",
        SERVER,
        {"network.peer.address", "network.protocol.version"},
    ),
    "allswell.connection.endings": (
        Sum,
        "{connection}",
        {"allswell.connection.outcome", "allswell.connection.clean", *SERVER},
        {"allswell.connection.reason", "error.type", "network.peer.address", "network.protocol.version"},
    ),
    "allswell.request.replays": (Sum, "{request}", {"error.type", "allswell.request.processed", *SERVER}, set()),
}

#: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
BUCKETS = {
    "http.client.request.duration": (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    "http.client.connection.duration": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
}


class Telemetry:
    """An SDK of a test's own. All that it gets is held against the conventions at its end."""

    def __init__(self, sampler: sampling.Sampler = sampling.ALWAYS_ON) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, self.meters = TracerProvider(sampler), MeterProvider([self.reader])
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of(self, target: Any, **settings: Any) -> Callable[[], None]:
        return instrument(target, tracer_provider=self.tracers, meter_provider=self.meters, **settings)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def requests(self) -> list[ReadableSpan]:
        return [each for each in self.spans if each.kind is SpanKind.CLIENT]

    @property
    def connections(self) -> list[ReadableSpan]:
        return [each for each in self.spans if each.name.startswith("HTTP connection ")]

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        return [each for each in self.spans if each.parent == parent.context]

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics
        return {metric.name: metric for each in found for scope in each.scope_metrics for metric in scope.metrics}

    def points(self, name: str) -> list[NumberDataPoint | HistogramDataPoint]:
        metric = self.metrics.get(name)
        return [] if metric is None else list(metric.data.data_points)  # type: ignore[arg-type]  # of either kind

    def counted(self, name: str) -> dict[str, float]:
        """The sums of a counter, by its attributes."""
        return {
            str({**(each.attributes or {})}): each.value for each in self.points(name) if type(each) is NumberDataPoint
        }

    def judge(self) -> None:
        known = {**CONVENTIONS, **OWN}
        for span in self.spans:
            said_by: list[ReadableSpan | Event] = [span, *span.events]
            for each in said_by:
                for name, value in attributes(each).items():
                    assert type(value) is known[name], (span.name, name, value)
        for name, metric in self.metrics.items():
            kind, unit, needed, allowed = METRICS[name]
            assert (type(metric.data), metric.unit) == (kind, unit)
            for point in metric.data.data_points:
                said = {*(point.attributes or {})}
                assert needed <= said <= needed | allowed, (name, said)
                assert all(type(value) is known[each] for each, value in (point.attributes or {}).items())
                if isinstance(point, HistogramDataPoint):
                    assert tuple(point.explicit_bounds) == BUCKETS[name]


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.judge()
    made.tracers.shutdown()
    made.meters.shutdown()


def attributes(of: ReadableSpan | Event) -> Mapping[str, Any]:
    return of.attributes or {}


def events(span: ReadableSpan, name: str) -> list[Mapping[str, Any]]:
    return [attributes(each) for each in span.events if each.name == name]


def pool_for(origin: Origin, **settings: Any) -> ConnectionPool:
    http3: Any = "only" if origin.versions == {"h3"} else False
    return ConnectionPool(ssl_context=origin.client_context(), http3=http3, grace=3 * LAG, **settings)


def test_the_schema_is_known() -> None:
    assert _SCHEMA in {each.value for each in schemas.Schemas}


def test_the_metrics_are_as_the_conventions_create_them() -> None:
    for name, (_, unit, _, _) in METRICS.items():
        if not name.startswith("allswell."):
            assert f"Unit: {unit}" in _documented(name)


def _documented(name: str) -> str:
    """What the package of the conventions says of a metric."""
    for module in (http_metrics, incubating_metrics):
        assert module.__file__ is not None
        with open(module.__file__) as source:
            text = source.read()
        _, found, rest = text.partition(f'"{name}"\n"""')
        if found and "Unit:" in rest.partition('"""')[0]:
            return rest.partition('"""')[0]
    raise AssertionError(name)


# Requests


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
async def test_a_request_and_its_connection(version: Any, telemetry: Telemetry) -> None:
    async with Origin(versions=[version]) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            for _ in range(2):
                await pool.request("GET", f"{origin.url}/path?query=1")
    number = {"h1": "1.1", "h2": "2", "h3": "3"}[version]
    first, second = telemetry.requests
    [connection] = telemetry.connections
    identity = attributes(connection)["allswell.connection.id"]
    for each in (first, second):
        assert (each.name, each.parent, each.status.status_code) == ("GET", None, StatusCode.UNSET)
        assert attributes(each) == {
            "http.request.method": "GET",
            "server.address": "localhost",
            "server.port": origin.port,
            "url.full": f"{origin.url}/path?query=1",
            "http.response.status_code": 200,
            "network.protocol.version": number,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": origin.port,
        }
        [link] = each.links
        assert link.context == connection.context
        assert events(each, "allswell.request.sent") == [
            {"allswell.connection.id": identity, "network.protocol.version": number}
        ]
    assert [each.name for each in first.events] == ["allswell.request.waits", "allswell.request.sent"]
    assert [each.name for each in second.events] == ["allswell.request.sent"]

    assert (connection.name, connection.kind) == (f"HTTP connection localhost:{origin.port}", SpanKind.INTERNAL)
    assert connection.parent is None
    assert connection.context.trace_id not in {first.context.trace_id, second.context.trace_id}
    [cause] = connection.links
    assert cause.context == first.context
    said = attributes(connection)
    assert (said["network.protocol.version"], said["allswell.connection.exchanges"]) == (number, 2)
    assert (said["allswell.connection.clean"], said["allswell.connection.reason"]) == (True, "the pool closes")
    assert said.get("tls.protocol.version") == (None if version == "h3" else "1.3")
    assert connection.status.status_code is StatusCode.UNSET
    handshake = {
        "h1": [f"socket connect 127.0.0.1:{origin.port}", "TLS client handshake localhost"],
        "h2": [f"socket connect 127.0.0.1:{origin.port}", "TLS client handshake localhost"],
        "h3": [f"QUIC client handshake 127.0.0.1:{origin.port}"],
    }[version]
    children = telemetry.children(connection)
    assert [each.name for each in children] == ["DNS lookup localhost", *handshake]
    assert "127.0.0.1" in attributes(children[0])["dns.answers"]
    assert attributes(children[1])["network.transport"] == ("quic" if version == "h3" else "tcp")
    for child in children:
        assert connection.start_time is not None
        assert child.start_time is not None
        assert child.end_time is not None
        assert connection.start_time <= child.start_time <= child.end_time
    layers = [each["allswell.layer.name"] for each in events(connection, "allswell.layer.ended")]
    assert layers == {"h1": ["h1", "tls", "tcp"], "h2": ["h2", "tls", "tcp"], "h3": ["h3", "quic", "udp"]}[version]


async def test_metrics(telemetry: Telemetry) -> None:
    asked, go_on = threading.Event(), threading.Event()

    async def slow(request: Request) -> Response:
        asked.set()
        while not go_on.is_set():  # noqa: ASYNC110  it is set in another thread
            await anyio.sleep(0.01)
        return Response()

    async with Origin({"/": Response(), "/slow": slow}, versions=["h2"]) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        to = {"server.address": "localhost", "server.port": origin.port}
        there = {**to, "network.protocol.version": "2", "network.peer.address": "127.0.0.1"}
        of_get = str({"http.request.method": "GET", **to})
        idle, active = (str({**there, "http.connection.state": state}) for state in ("idle", "active"))
        async with pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.request, "GET", f"{origin.url}/slow")
                await anyio.to_thread.run_sync(asked.wait, 30)
                assert telemetry.counted("http.client.active_requests") == {of_get: 1}
                assert telemetry.counted("http.client.open_connections") == {idle: 0, active: 1}
                await pool.request("GET", f"{origin.url}/")
                assert telemetry.counted("http.client.open_connections") == {idle: 0, active: 1}
                go_on.set()
            assert telemetry.counted("http.client.active_requests") == {of_get: 0}
            assert telemetry.counted("http.client.open_connections") == {idle: 1, active: 0}
        assert telemetry.counted("http.client.open_connections") == {idle: 0, active: 0}
        [duration] = telemetry.points("http.client.request.duration")
        assert isinstance(duration, HistogramDataPoint)
        assert (duration.count, {**(duration.attributes or {})}) == (
            2,
            {"http.request.method": "GET", **to, "network.protocol.version": "2", "http.response.status_code": 200},
        )
        [lifetime] = telemetry.points("http.client.connection.duration")
        assert isinstance(lifetime, HistogramDataPoint)
        assert (lifetime.count, {**(lifetime.attributes or {})}) == (1, there)
        ended = {
            "allswell.connection.outcome": "clean",
            "allswell.connection.clean": True,
            "allswell.connection.reason": "the pool closes",
        }
        assert telemetry.counted("allswell.connection.endings") == {str({**there, **ended}): 1}


async def test_the_context_is_sent_and_the_caller_is_the_parent(telemetry: Telemetry) -> None:
    seen: list[str] = []

    def handler(request: Request) -> Response:
        seen.extend(value for name, value in request.headers if name == "traceparent")
        return Response()

    async with Origin({"/": handler}) as origin, AsyncClient(verify=origin.client_context()) as client:
        telemetry.of(client)
        with telemetry.tracers.get_tracer("the caller's").start_as_current_span("caller"):
            await client.get(f"{origin.url}/", headers={"Traceparent": "00-" + 32 * "1" + "-" + 16 * "1" + "-00"})
    [span] = telemetry.requests
    [caller] = [each for each in telemetry.spans if each.name == "caller"]
    assert span.parent == caller.context
    assert [each[:-2] for each in seen] == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"]


async def test_a_context_that_the_caller_gave_is_replaced_as_a_whole(telemetry: Telemetry) -> None:
    """As OpenTelemetry's other instrumentations do. Another's tracestate would belong to no traceparent then."""
    seen: dict[str, str] = {}

    def handler(request: Request) -> Response:
        seen.update(request.headers)
        return Response()

    theirs = {"traceparent": "00-" + 32 * "1" + "-" + 16 * "1" + "-01", "Tracestate": "theirs=1", "baggage": "a=b"}
    async with Origin({"/": handler}) as origin, AsyncClient(verify=origin.client_context()) as client:
        telemetry.of(client)
        await client.get(f"{origin.url}/", headers=theirs)
        assert seen["traceparent"] != theirs["traceparent"]
        assert "tracestate" not in seen
        assert seen["baggage"] == "a=b"
        parent = propagate.extract({name.lower(): value for name, value in theirs.items()})
        with trace.use_span(trace.get_current_span(parent)):
            await client.get(f"{origin.url}/")
        assert seen["traceparent"].startswith("00-" + 32 * "1")
        assert seen["tracestate"] == "theirs=1"


@pytest.mark.parametrize("status", [200, 204, 304, 400, 404, 500, 599])
async def test_statuses(status: int, telemetry: Telemetry) -> None:
    async with Origin({"/": Response(status)}) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", f"{origin.url}/")
    [span] = telemetry.requests
    wrong = status >= 400
    assert span.status.status_code is (StatusCode.ERROR if wrong else StatusCode.UNSET)
    assert span.status.description is None
    assert attributes(span).get("error.type") == (str(status) if wrong else None)
    [point] = telemetry.points("http.client.request.duration")
    assert (point.attributes or {}).get("error.type") == (str(status) if wrong else None)


@pytest.mark.parametrize(
    ("method", "known", "told"),
    [
        ("QUERY", None, ("QUERY", "QUERY", None)),
        ("PROPFIND", None, ("HTTP", "_OTHER", "PROPFIND")),
        ("get", None, ("HTTP", "_OTHER", "get")),
        ("PROPFIND", "GET, PROPFIND", ("PROPFIND", "PROPFIND", None)),
        ("POST", "GET, PROPFIND", ("HTTP", "_OTHER", "POST")),
    ],
)
async def test_methods(
    method: str,
    known: str | None,
    told: tuple[str, str, str | None],
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if known is not None:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", known)
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            await pool.request(method, origin.url)
    [span] = telemetry.requests
    said = attributes(span)
    assert (span.name, said["http.request.method"], said.get("http.request.method_original")) == told
    [point] = telemetry.points("http.client.request.duration")
    assert (point.attributes or {})["http.request.method"] == told[1]


async def test_urls_without_secrets(telemetry: Telemetry) -> None:
    async with Origin(tls=False) as origin, AsyncClient() as client:
        telemetry.of(client)
        url = origin.url.replace("://", "://ann:secret@")
        await client.get(f"{url}/a?color=blue&sig=SECRET&X-Amz-Signature=SECRET#fragment")
        await client.get(f"{url}/?AWSAccessKeyId=SECRET&Signature=SECRET&X-Goog-Signature=SECRET&signature=kept")
        await client.request("OPTIONS", url, extensions={"target": "*"})
    assert [attributes(each)["url.full"] for each in telemetry.requests] == [
        f"{origin.url}/a?color=blue&sig=REDACTED&X-Amz-Signature=REDACTED",
        f"{origin.url}/?AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED&signature=kept",
        origin.url,
    ]


@pytest.mark.parametrize("opted", [False, True])
async def test_the_user_agent_is_opted_in_to(opted: bool, telemetry: Telemetry) -> None:
    async with Origin(tls=False) as origin, AsyncClient(headers={"User-Agent": "example/1"}) as client:
        telemetry.of(client, user_agent=opted)
        await client.get(origin.url)
    [span] = telemetry.requests
    assert attributes(span).get("user_agent.original") == ("example/1" if opted else None)


# Failures


async def test_a_dial_that_fails(telemetry: Telemetry, closed_port: int) -> None:
    pool = ConnectionPool()
    telemetry.of(pool)
    async with pool:
        with pytest.raises(ConnectFailed):
            await pool.request("GET", f"http://127.0.0.1:{closed_port}")
    [request], [connection] = telemetry.requests, telemetry.connections
    for each in (request, connection):
        said = attributes(each)
        assert said["error.type"] == "allswell.ConnectFailed"
        assert (said["allswell.error.by"], said["allswell.error.phase"]) == ("network", "tcp")
        assert each.status.status_code is StatusCode.ERROR
        assert each.status.description == f"cannot connect to 127.0.0.1:{closed_port}: 127.0.0.1: Connection refused"
    assert not request.links
    assert connection.links[0].context == request.context
    [attempt] = telemetry.children(connection)
    assert attributes(attempt)["error.type"] == "ConnectionRefusedError"
    assert attempt.status.status_code is StatusCode.ERROR
    [point] = telemetry.points("http.client.request.duration")
    assert (point.attributes or {})["error.type"] == "allswell.ConnectFailed"
    assert not any(telemetry.counted("http.client.active_requests").values())
    assert not telemetry.points("http.client.connection.duration")


async def test_a_name_that_is_not_known(telemetry: Telemetry) -> None:
    with names():
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with pytest.raises(ConnectFailed):
                await pool.request("GET", "http://name.example")
    [connection] = telemetry.connections
    assert attributes(connection)["allswell.error.phase"] == "dns"
    assert [(each.name, attributes(each)["error.type"]) for each in telemetry.children(connection)] == [
        ("DNS lookup name.example", "socket.gaierror")
    ] * 2


async def test_lookups(telemetry: Telemetry) -> None:
    with DnsServer() as dns, names(name_example="127.0.0.1"), scripted_peer(answers(), tls=True) as peer:
        pool = ConnectionPool(
            http3=True, https_records=True, nameservers=[dns.address], ssl_context=certificates().client_context()
        )
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", f"https://name.example:{peer.port}")
    [connection] = telemetry.connections
    lookups = [each for each in telemetry.children(connection) if each.name.startswith("DNS lookup ")]
    assert {each.name for each in lookups} == {"DNS lookup name.example HTTPS", "DNS lookup name.example"}
    assert {attributes(each)["dns.question.name"] for each in lookups} == {"name.example"}


async def test_a_dial_that_takes_too_long(telemetry: Telemetry) -> None:
    with scripted_peer(lambda connection: connection.read_until_end(), handshake=False) as peer:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with pytest.raises(Timeout):
                await pool.request("GET", f"https://127.0.0.1:{peer.port}", timeouts=Timeouts(connect=2))
    for each in (*telemetry.requests, *telemetry.connections):
        assert attributes(each)["error.type"] == "allswell.Timeout"
        assert attributes(each)["allswell.error.phase"] == "connect"
    [connection] = telemetry.connections
    _, handshake = telemetry.children(connection)
    assert attributes(handshake)["allswell.phase.called_off"] is True
    assert handshake.status.status_code is StatusCode.UNSET


async def test_a_response_that_takes_too_long(telemetry: Telemetry) -> None:
    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with pytest.raises(Timeout):
                await pool.request("POST", peer.url, timeouts=Timeouts(read=0.1))
    [request], [connection] = telemetry.requests, telemetry.connections
    assert attributes(request)["error.type"] == "allswell.Timeout"
    assert attributes(request)["allswell.error.phase"] == "read"
    assert request.links[0].context == connection.context
    assert connection.status.status_code is StatusCode.ERROR
    assert attributes(connection)["allswell.connection.outcome"] == "aborted"


async def test_a_request_that_is_cancelled(telemetry: Telemetry) -> None:
    """By one name on both event loops."""
    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with anyio.move_on_after(0.1):
                await pool.request("GET", peer.url)
    [span] = telemetry.requests
    assert attributes(span)["error.type"] == "cancelled"
    assert span.status.status_code is StatusCode.ERROR
    assert not any(telemetry.counted("http.client.active_requests").values())


async def test_what_is_not_ours_is_told_by_its_class(telemetry: Telemetry) -> None:
    async def body() -> Any:
        yield b"a piece"
        raise ValueError("SECRET")

    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with pytest.raises(ValueError, match="SECRET"):
                await pool.request("POST", peer.url, content=body())
    [span] = telemetry.requests
    assert (attributes(span)["error.type"], span.status.description) == ("ValueError", "ValueError")


# What is sent again


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_request_that_was_refused(version: Any, telemetry: Telemetry) -> None:
    async with Origin(versions=[version]) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", origin.url)
            origin.refuse(1)
            await pool.request("POST", origin.url, content=b"once")
    _, span = telemetry.requests
    assert attributes(span)["http.request.resend_count"] == 1
    assert span.status.status_code is StatusCode.UNSET
    [back] = events(span, "allswell.request.sent_back")
    assert (back["error.type"], back["allswell.request.processed"]) == ("allswell.ExchangeReset", "no")
    assert len(events(span, "allswell.request.sent")) == 2
    why = {"error.type": "allswell.ExchangeReset", "allswell.request.processed": "no"}
    to = {"server.address": "localhost", "server.port": origin.port}
    assert telemetry.counted("allswell.request.replays") == {str({**to, **why}): 1}


async def test_a_server_that_leaves_without_a_request(telemetry: Telemetry) -> None:
    """GOAWAY: it goes on another connection, and its span links to both."""
    async with Origin(versions=["h2"]) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", origin.url)
            origin.goaway()
            await pool.request("GET", origin.url)
            await pool.request("GET", origin.url)
    first, second = sorted(telemetry.connections, key=lambda each: each.start_time or 0)
    assert [first.context.span_id, second.context.span_id] == [
        *dict.fromkeys(link.context.span_id for each in telemetry.requests for link in each.links)
    ]
    [h2, *_] = events(first, "allswell.layer.ended")
    assert (h2["allswell.layer.said"], h2["allswell.layer.heard"]) == ("GOAWAY", "GOAWAY")
    assert h2["allswell.layer.outcome"] == "peer-first"
    assert attributes(first)["allswell.connection.outcome"] == "peer-first"


async def test_a_stale_connection(telemetry: Telemetry) -> None:
    with scripted_peer(answers(1, instead=True, ending=Ending.FIN)) as peer:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            for _ in range(2):
                await pool.request("GET", peer.url)
    _, span = telemetry.requests
    [back] = events(span, "allswell.request.sent_back")
    assert back["allswell.request.processed"] == "perhaps"
    assert attributes(span)["http.request.resend_count"] == 1
    assert {link.context.span_id for link in span.links} == {each.context.span_id for each in telemetry.connections}


async def test_a_retry(telemetry: Telemetry) -> None:
    calls = iter([Response(503), Response(503), Response(200)])
    async with (
        Origin({"/": lambda request: next(calls)}) as origin,
        AsyncClient(verify=origin.client_context(), retry=Retry(backoff=0.0)) as client,
    ):
        telemetry.of(client)
        await client.get(f"{origin.url}/")
    [span] = telemetry.requests
    said = attributes(span)
    assert (said["http.request.resend_count"], said["http.response.status_code"]) == (2, 200)
    assert [each["error.type"] for each in events(span, "allswell.request.sent_back")] == ["503", "503"]
    assert [*telemetry.counted("allswell.request.replays").values()] == [2]


async def test_each_hop_of_a_client_is_a_span(telemetry: Telemetry) -> None:
    """Redirects and authentication: as many requests, all children of the caller's span."""

    def away(request: Request) -> Response:
        return Response(307, headers={"Location": "/protected"})

    def protected(request: Request) -> Response:
        if "authorization" in dict(request.headers):
            return Response()
        return Response(401, headers={"WWW-Authenticate": 'Digest realm="a", nonce="b", qop="auth"'})

    async with (
        Origin({"/": away, "/protected": protected}) as origin,
        AsyncClient(verify=origin.client_context(), follow_redirects=True) as client,
    ):
        telemetry.of(client)
        with telemetry.tracers.get_tracer("the caller's").start_as_current_span("caller"):
            answer = await client.get(f"{origin.url}/", auth=httpx2.DigestAuth("ann", "secret"))
    assert answer.status_code == 200
    told = [(each.attributes or {}) for each in telemetry.requests]
    assert [(each["url.full"], each["http.response.status_code"]) for each in told] == [
        (f"{origin.url}/", 307),
        (f"{origin.url}/protected", 401),
        (f"{origin.url}/", 307),  # httpx2 begins anew with the credentials
        (f"{origin.url}/protected", 200),
    ]
    [caller] = [each for each in telemetry.spans if each.name == "caller"]
    assert all(each.parent == caller.context for each in telemetry.requests)


# Endings


async def test_a_goodbye_that_is_not_heard(telemetry: Telemetry) -> None:
    def deaf(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"ok"))
        connection.stall()

    with scripted_peer(deaf, tls=certificates().server_context()) as peer:
        pool = ConnectionPool(ssl_context=certificates().client_context())
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", f"https://localhost:{peer.port}")
            await pool.aclose(1)
    [connection] = telemetry.connections
    layers = {each["allswell.layer.name"]: each for each in events(connection, "allswell.layer.ended")}
    assert (layers["tls"]["allswell.layer.said"], layers["tls"]["allswell.layer.heard"]) == ("close_notify", "")
    assert layers["tls"]["allswell.layer.outcome"] == "timed-out"
    said = attributes(connection)
    assert (said["allswell.connection.clean"], said["allswell.connection.outcome"]) == (False, "timed-out")
    assert (said["error.type"], connection.status.status_code) == ("timed-out", StatusCode.ERROR)
    times = [each.timestamp for each in connection.events]
    assert times == sorted(times)
    assert connection.end_time is not None
    assert times[-1] <= connection.end_time


async def test_the_reasons_of_metrics_are_few(telemetry: Telemetry) -> None:
    """Errors by their class, and our own reasons without numbers."""
    async with Origin(tls=False) as origin:
        pool = ConnectionPool(keepalive_expiry=0.05)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", origin.url)
            await origin.ended(timeout=30)

    def breaking(connection: PeerConnection) -> None:
        connection.read_request()
        connection.reset()

    with scripted_peer(breaking) as broken:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            with pytest.raises(allswell.AllswellError):
                await pool.request("POST", broken.url)
    told = [each.attributes or {} for each in telemetry.points("allswell.connection.endings")]
    reasons = [(each.get("allswell.connection.reason"), each.get("error.type")) for each in told]
    assert sorted(reasons, key=str) == [("idle for N s", None), (None, "allswell.TransportError")]
    idle = [each for each in telemetry.connections if "error.type" not in attributes(each)]
    assert [attributes(each)["allswell.connection.reason"] for each in idle] == ["idle for 0.05 s"]


async def test_through_a_proxy(telemetry: Telemetry) -> None:
    """The server is the one behind it, and the peer is the proxy."""
    async with Origin(versions=["h1"]) as origin:
        with scripted_peer(connect_proxy()) as proxy:
            hop = ProxyHop("http", proxy.host, proxy.port, auth=(b"ann", b"SECRET"))
            pool = pool_for(origin, proxies=(hop,))
            telemetry.of(pool)
            async with pool:
                await pool.request("GET", origin.url)
    [request], [connection] = telemetry.requests, telemetry.connections
    for each in (request, connection):
        said = attributes(each)
        assert (said["server.address"], said["server.port"]) == ("localhost", origin.port)
        assert (said["network.peer.address"], said["network.peer.port"]) == ("127.0.0.1", proxy.port)
    assert [each.name for each in telemetry.children(connection)] == [
        f"socket connect 127.0.0.1:{proxy.port}",
        f"proxy tunnel http://127.0.0.1:{proxy.port}",
        "TLS client handshake localhost",
    ]
    assert "SECRET" not in "".join(each.to_json() for each in telemetry.spans)


async def test_a_unix_socket(telemetry: Telemetry, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    pool = ConnectionPool(uds=path)
    telemetry.of(pool)
    async with pool:
        with pytest.raises(ConnectFailed):
            await pool.request("GET", "http://example.org")
    [connection] = telemetry.connections
    [attempt] = telemetry.children(connection)
    assert attempt.name == f"socket connect {path}"
    said = attributes(attempt)
    assert (said["network.peer.address"], said["network.transport"]) == (path, "unix")


# Turning it on and off


async def test_it_ends_at_once_for_what_is_under_way(telemetry: Telemetry) -> None:
    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        pool = ConnectionPool()
        undo = telemetry.of(pool)
        async with pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", peer.url)
            await anyio.to_thread.run_sync(peer.wait_accepted)
            while "allswell.request.sent" not in _so_far(pool):  # noqa: ASYNC110  a span is no event
                await anyio.sleep(0.01)
            undo()
            assert len(telemetry.requests) == len(telemetry.connections) == 1
            for name in ("http.client.active_requests", "http.client.open_connections"):
                assert not any(telemetry.counted(name).values())
            tasks.cancel_scope.cancel()
    assert len(telemetry.requests) == len(telemetry.connections) == 1
    undo()


def _so_far(pool: ConnectionPool) -> list[str]:
    """The events of the requests under way."""
    [telling] = pool.observers.functions
    spans = [each.span for each in telling._requests.values()]  # type: ignore[attr-defined]  # it is one of otel's
    return [event.name for span in spans for event in span.events]


async def test_twice_is_refused(telemetry: Telemetry) -> None:
    async with ConnectionPool() as pool, AsyncClient(pool=pool) as client:
        undo = telemetry.of(pool)
        for each in (pool, client, AsyncTransport(pool=pool)):
            with pytest.raises(ValueError, match="is already instrumented"):
                telemetry.of(each)
        undo()
        telemetry.of(client)()


async def test_what_cannot_be_instrumented(telemetry: Telemetry) -> None:
    async with AsyncClient(transport=httpx2.MockTransport(lambda request: httpx2.Response(200))) as client:
        with pytest.raises(ValueError, match="no pool of allswell"):
            telemetry.of(client)
    with pytest.raises(TypeError, match="must be a pool, client or transport of allswell, not MockTransport"):
        telemetry.of(httpx2.MockTransport(lambda request: httpx2.Response(200)))


async def test_mounted_transports_and_httpx(telemetry: Telemetry) -> None:
    async with Origin(tls=False) as first, Origin(tls=False) as second:
        async with AsyncClient(mounts={second.url: AsyncTransport()}) as client:
            telemetry.of(client)
            await client.get(first.url)
            await client.get(second.url)
        transport = allswell.httpx.AsyncTransport()
        telemetry.of(transport)
        async with httpx.AsyncClient(transport=transport) as other:
            await other.get(first.url)
    ports = [attributes(each)["server.port"] for each in telemetry.requests]
    assert ports == [first.port, second.port, first.port]


@pytest.mark.parametrize("key", sorted(NAMES))
async def test_suppressed(key: str, telemetry: Telemetry) -> None:
    """By who tells of a request already. (A canary, too: the keys are private names.)"""
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            token = context.attach(context.set_value(getattr(context, key), True))
            try:
                await pool.request("GET", origin.url)
            finally:
                context.detach(token)
    assert not telemetry.requests
    assert len(telemetry.connections) == 1


async def test_without_spans_of_connections(telemetry: Telemetry, closed_port: int) -> None:
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        telemetry.of(pool, connection_spans=False)
        async with pool:
            await pool.request("GET", origin.url)
        async with ConnectionPool() as other:
            telemetry.of(other, connection_spans=False)
            with pytest.raises(ConnectFailed):
                await other.request("GET", f"http://127.0.0.1:{closed_port}")
    assert len(telemetry.spans) == 2
    assert telemetry.points("http.client.connection.duration")


async def test_spans_that_are_not_sampled_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(sampling.ALWAYS_OFF)
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", origin.url)
    assert not telemetry.spans
    assert telemetry.points("http.client.request.duration")
    assert not caplog.records


async def test_without_an_sdk(caplog: pytest.LogCaptureFixture) -> None:
    """The API does nothing then, but hands the caller's context on."""
    seen: list[str] = []
    parent = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1))

    def handler(request: Request) -> Response:
        seen.extend(value for name, value in request.headers if name == "traceparent")
        return Response()

    async with Origin({"/": handler}) as origin:
        pool = pool_for(origin)
        instrument(pool)
        async with pool:
            with trace.use_span(trace.NonRecordingSpan(parent)):
                await pool.request("GET", f"{origin.url}/")
    assert seen == [f"00-{1:032x}-{2:016x}-01"]
    assert not caplog.records


def test_nobody_else_imports_opentelemetry() -> None:
    program = "import sys, allswell, allswell.httpx; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


async def test_what_was_open_before_is_told_of_from_its_next_request(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection has no span, so nothing links to it."""
    before = next_number()
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        async with pool:
            await pool.request("GET", origin.url)
            telemetry.of(pool)
            await pool.request("GET", origin.url)
    [span] = telemetry.requests
    assert not span.links
    [sent] = events(span, "allswell.request.sent")
    assert sent["allswell.connection.id"] > before
    assert not telemetry.connections
    assert not caplog.records


# Propagators


class Propagator(TextMapPropagator):
    """One that sends these fields, or fails."""

    def __init__(self, carried: dict[str, str]) -> None:
        self.carried = carried

    def extract(self, carrier: Any, context: context.Context | None = None, getter: Any = None) -> context.Context:
        raise NotImplementedError

    def inject(self, carrier: Any, context: context.Context | None = None, setter: Any = None) -> None:
        if not self.carried:
            raise LookupError("a bug in a propagator")
        carrier.update(self.carried)

    @property
    def fields(self) -> set[str]:
        return set(self.carried)


@pytest.fixture
def propagating(carried: dict[str, str]) -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Propagator(carried))
    yield
    propagate.set_global_textmap(before)


@pytest.mark.usefixtures("propagating")
@pytest.mark.parametrize("carried", [{"X-Amzn-Trace-Id": "the span's"}])
async def test_a_propagators_field_takes_the_place_of_the_same_in_other_case(telemetry: Telemetry) -> None:
    seen: list[str] = []

    def handler(request: Request) -> Response:
        seen.extend(value for name, value in request.headers if name.lower() == "x-amzn-trace-id")
        return Response()

    async with Origin({"/": handler}) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", f"{origin.url}/", headers={"x-amzn-trace-id": "older"})
    assert seen == ["the span's"]


@pytest.mark.usefixtures("propagating")
@pytest.mark.parametrize("carried", [{}, {"x": "\u20ac"}], ids=["fails", "no-field"])
async def test_a_propagator_that_fails_costs_no_span(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    async with Origin({"/": Response()}) as origin:
        pool = pool_for(origin)
        telemetry.of(pool)
        async with pool:
            await pool.request("GET", f"{origin.url}/")
    [request] = telemetry.requests
    assert attributes(request)["http.response.status_code"] == 200
    assert set(telemetry.counted("http.client.active_requests").values()) == {0}
    assert [each.message for each in caplog.records] == ["allswell: an observer failed"]


# Event loops


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of asyncio: the first loop left its socket open
def test_connections_that_a_loop_took_with_it_are_open_no_more(telemetry: Telemetry) -> None:
    """On asyncio. (Trio's loop always says that it ends.)"""

    def use(url: str) -> None:
        pool = ConnectionPool()
        telemetry.of(pool)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.request("GET", url))
        loop.close()  # without shutdown_asyncgens(): nobody is told
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pool.request("GET", url))
        [lost] = telemetry.connections
        assert attributes(lost)["allswell.connection.reason"] == "the event loop ended"
        assert not attributes(lost)["allswell.connection.clean"]
        assert sum(telemetry.counted("http.client.open_connections").values()) == 1
        loop.run_until_complete(pool.aclose())
        loop.close()

    with Origin({"/": Response()}, tls=False) as origin:
        use(f"{origin.url}/")
        gc.collect()
    assert set(telemetry.counted("http.client.open_connections").values()) == {0}
