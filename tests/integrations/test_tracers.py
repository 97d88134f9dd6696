"""Tracers for the whole process: each request has its span, and carries its context to the origin.

What they patch stays patched, so each runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integrations.conftest import Origin
from tests.integrations.needs import needed

_CLIENTS = {
    "AsyncClient": "allswell.AsyncClient()",
    "httpx2": "httpx2.AsyncClient(transport=allswell.AsyncTransport())",
    "httpx": "httpx.AsyncClient(transport=allswell.httpx.AsyncTransport())",
}

_PROGRAM = """
import json, sys
import anyio, httpx, httpx2
import allswell, allswell.httpx

told = {}
CLIENT, URL = sys.argv[1:]

async def get(path):
    async with eval(CLIENT) as client:
        response = await client.get(URL + path)
        assert response.extensions["attempts"] == []

def run(function, *args):
    for loop in "asyncio", "trio":
        anyio.run(function, *args, backend=loop)
"""

_OTEL = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor, HTTPX2ClientInstrumentor

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
tracers = [HTTPXClientInstrumentor(), HTTPX2ClientInstrumentor()]
for each in tracers:
    each.instrument(tracer_provider=provider)
run(get, "/traced")
for each in tracers:
    each.uninstrument()
run(get, "/not-traced")
told["spans"] = [span.attributes["http.url"] for span in spans.get_finished_spans()]
"""

_LOGFIRE = """
import logfire
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[SimpleSpanProcessor(spans)])
logfire.instrument_httpx()
run(get, "/traced")
told["spans"] = [
    span.attributes["http.url"] for span in spans.get_finished_spans()
    if span.attributes.get("logfire.span_type") != "pending_span"
]
"""

_SENTRY = """
import sentry_sdk

events = []
class Keep(sentry_sdk.Transport):
    def capture_envelope(self, envelope):
        events.append(envelope)

sentry_sdk.init("http://key@127.0.0.1:1/1", traces_sample_rate=1.0, transport=Keep, auto_session_tracking=False)
async def main():
    with sentry_sdk.start_transaction(name="test"):
        await get("/traced")
run(main)
spans = [
    span
    for envelope in events
    for item in envelope.items
    if item.type == "transaction"
    for span in item.payload.json["spans"]
]
told["spans"] = [span["data"]["url"] for span in spans if span["op"] == "http.client"]
"""

_DDTRACE = """
import ddtrace
from ddtrace.trace import tracer, TraceFilter

spans = []
class Keep(TraceFilter):
    def process_trace(self, trace):
        spans.extend(trace)
        return None

tracer.configure(trace_processors=[Keep()])
ddtrace.patch(httpx=True, httpx2=True)
run(get, "/traced")
tracer.flush()
told["spans"] = [span.get_tag("http.url") for span in spans]
"""

_ELASTIC = """
import elasticapm
from elasticapm.instrumentation.control import instrument

class Keep(elasticapm.Client):
    def queue(self, event_type, data, flush=False):
        if event_type == "span":
            told.setdefault("spans", []).append(data["context"]["http"]["url"])

quiet = dict(disable_metrics="*", central_config=False, cloud_provider=False, span_compression_enabled=False)
apm = Keep(service_name="test", **quiet)
instrument()
async def main():
    apm.begin_transaction("test")
    await get("/traced")
    apm.end_transaction("test")
run(main)
apm.close()
"""

#: By package: how it traces, and the header in which it tells the origin.
_TRACERS = {
    "opentelemetry.instrumentation.httpx": (_OTEL, "traceparent"),
    "logfire": (_LOGFIRE, "traceparent"),
    "sentry_sdk": (_SENTRY, "sentry-trace"),
    "ddtrace": (_DDTRACE, "x-datadog-trace-id"),
    "elasticapm": (_ELASTIC, "traceparent"),
}


def _run(program: str, client: str, url: str) -> Any:
    program = _PROGRAM + program + "\nprint('\\n' + json.dumps(told))"
    env = {**os.environ, "DD_TRACE_STARTUP_LOGS": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    command = [sys.executable, "-c", program, _CLIENTS[client], url]
    done = subprocess.run(command, capture_output=True, timeout=550, env=env)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(600)  # to begin, a tracer takes seconds of CPU time
@pytest.mark.parametrize("client", _CLIENTS)
@pytest.mark.parametrize("package", _TRACERS)
def test_each_request_has_one_span(package: str, client: str, origin: Origin) -> None:
    needed(package)
    if package == "elasticapm" and client != "httpx":
        pytest.skip("it does not know httpx2")
    program, header = _TRACERS[package]
    told = _run(program, client, origin.url)
    assert told["spans"] == [f"{origin.url}/traced"] * 2
    traced, not_traced = origin.requests[:2], origin.requests[2:]
    assert [(each["path"], header in each["headers"]) for each in traced] == [("/traced", True)] * 2
    assert [header in each["headers"] for each in not_traced] == ([False] * 2 if "opentelemetry" in package else [])
